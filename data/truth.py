"""Reads the true nuclei: one mask file per nucleus, run lengths, and Kaggle's solution table.

In:  samples of `data.sources`, or a .csv of run lengths.
Out: labels (H, W) int32, 0 background, one number per nucleus.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.files import File, UserError
from data.images import MAX_PIXELS, read_image
from data.sources import Sample

INVERTED_SHARE = 0.5  # a mask that covers more of the pixels, and all corners, is inverted
SOLUTION_COLUMNS = ("ImageId", "EncodedPixels", "Height", "Width")  # of Kaggle's solution table


def load_samples(samples: Sequence[Sample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads images and labels in several threads, with a progress bar.

    Returns:
        images: list of (H, W) or (H, W, 3), as in the files.
        labels: list of (H, W) int32.

    Raises:
        UserError: the first image or mask that cannot be used, by name.
    """
    images = []
    labels = []
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        pairs = pool.map(read_sample, samples)
        bar = tqdm(pairs, "reading", len(samples), unit="image", disable=None)
        try:
            for image, image_labels in bar:
                images.append(image)
                labels.append(image_labels)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # say so before the rest is read
            raise
    return images, labels


def read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W) or (H, W, 3) and labels (H, W) int32 of one sample with masks."""
    image = read_image(sample.image)
    if image.ndim == 3 and (image == image[..., :1]).all():
        # Most images are gray in three equal channels; memory holds one of them.
        image = np.broadcast_to(image[..., :1].copy(), image.shape)
    return image, read_labels(sample, image.shape[:2])


def read_labels(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """Numbers the nuclei of one image from its mask files, in the order of their names.

    Args:
        sample: a sample with masks.
        shape: (H, W) of its image; masks are never resized to fit.

    Returns:
        labels: (H, W) int32, 0 background, 1…K.

    Raises:
        UserError: a mask is unreadable or of another size, or there is none.
    """
    if not sample.masks:
        raise UserError(f"{sample.image}: it has no masks; expected {sample.id}/masks/*.png")
    labels = np.zeros(shape, np.int32)
    for number, file in enumerate(sample.masks, start=1):
        mask = read_mask(file)
        if mask.shape != shape:
            raise UserError(f"{file}: the mask is {mask.shape}, its image {shape}; remake it")
        labels[mask] = number
    return labels


def read_mask(file: File) -> np.ndarray:
    """Reads the mask of one nucleus, a file of 0 and one other value.

    Returns:
        mask: (H, W) bool.

    Raises:
        UserError: the file holds several values, or looks inverted.
    """
    values = read_image(file)
    mask = values.any(axis=-1) if values.ndim == 3 else values != 0
    inside = values[mask]
    if (inside != inside[:1]).any():
        raise UserError(
            f"{file}: expected the mask of one nucleus, 0 and one other value, but it has several, "
            "as a labelled picture or a photograph has; write one file for each nucleus"
        )
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.all() and mask.mean() > INVERTED_SHARE:
        raise UserError(f"{file}: most of it and all corners are nucleus; is it inverted? remake it")
    return mask


def encode_runs(labels: np.ndarray) -> list[str]:
    """Run lengths as Kaggle writes them: "start length …", starts from 1, down the columns.

    Source: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation

    Args:
        labels: (H, W) int, 0 background, 1…K; or a mask, (H, W) bool.

    Returns:
        K texts, that of nucleus 1 first.

    >>> encode_runs(np.array([[0, 2, 2], [1, 2, 0]]))
    ['2 1', '3 3']
    """
    # A run is a stretch of equal labels down the columns.
    flat = np.append(0, labels.ravel(order="F"))
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(starts, append=labels.size)
    numbers = flat[starts + 1]  # label of each run
    # Sort the runs by nucleus, then split them where the next nucleus begins.
    order = np.argsort(numbers, kind="stable")
    runs = np.column_stack([starts + 1, lengths])[order]
    first_runs = np.searchsorted(numbers[order], np.arange(1, flat.max() + 2))
    # The first part is the background, the last is empty.
    nuclei = np.split(runs, first_runs)[1:-1]
    return [" ".join(map(str, nucleus.ravel())) for nucleus in nuclei]


def decode_runs(runs: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of one text of `encode_runs`.

    Raises:
        UserError: an odd count, a text that is no number, a run outside the image or on another.

    >>> decode_runs("2 3", (2, 2)).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    try:
        numbers = [int(word) for word in runs.split()]
    except ValueError:
        raise UserError(f"run lengths must be whole numbers, not {runs[:40]!r}") from None
    if len(numbers) % 2:
        raise UserError(f"run lengths come in pairs, these are {len(numbers)} numbers")
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 1 or length < 1 or start + length - 1 > flat.size:
            raise UserError(f"run {start} {length} leaves the {shape[0]}x{shape[1]} image")
        run = flat[start - 1 : start - 1 + length]
        if run.any():
            raise UserError(f"run {start} {length} overlaps another of the same nucleus")
        run[:] = True
    return flat.reshape(shape, order="F")


def read_solution(file: str | Path) -> dict[str, np.ndarray]:
    """Reads Kaggle's solution table, ImageId,EncodedPixels,Height,Width,Usage, one row per nucleus.

    Returns:
        id -> labels (H, W) int32; rows with Usage "Ignored" are left out. A pixel of two nuclei belongs to the later
        one.

    Raises:
        UserError: a column is missing or a row is wrong, with its line number.
    """
    labels = {}
    seen = set()
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a table in UTF-8 ({error})") from None
    table = csv.DictReader(text.splitlines())
    missing = set(SOLUTION_COLUMNS) - set(table.fieldnames or ())
    if missing:
        raise UserError(f"{file}: no column {', '.join(sorted(missing))}")
    try:
        for row in table:
            if row.get("Usage") != "Ignored":
                _add_nucleus(labels, seen, row)
    except (UserError, csv.Error) as error:
        raise UserError(f"{file}, line {table.line_num}: {error}") from None
    return labels


def _add_nucleus(labels: dict[str, np.ndarray], seen: set, row: dict[str, str | None]) -> None:
    """Writes the nucleus of one row into the labels of its image."""
    name, runs, height, width = (row[column] for column in SOLUTION_COLUMNS)
    if None in (name, runs, height, width):
        raise UserError("the row ends early")
    if (name, runs) in seen:
        raise UserError("the same nucleus is in an earlier row")
    seen.add((name, runs))
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"height and width must be whole numbers above 0, not {height!r} and {width!r}")
    shape = (int(height), int(width))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(f"its {height}×{width} pixels are too many")
    nucleus = decode_runs(runs, shape)
    image_labels = labels.setdefault(name, np.zeros(shape, np.int32))
    if image_labels.shape != shape:
        raise UserError(f"size {shape}, in an earlier row {image_labels.shape}")
    image_labels[nucleus] = image_labels.max() + 1
