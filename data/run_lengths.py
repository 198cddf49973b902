"""Writes and reads nuclei as run lengths, the way of Kaggle's tables.

In:  labels (H, W) int, or texts of run lengths, or Kaggle's solution table.
Out: a text for each nucleus; a mask (H, W) bool; labels (H, W) int32 of each image.
"""

import csv
from pathlib import Path

import numpy as np

from data.files import UserError
from data.pixels import MAX_PIXELS

SOLUTION_COLUMNS = ("ImageId", "EncodedPixels", "Height", "Width")  # columns of Kaggle's solution table


def encode_run_lengths(labels: np.ndarray) -> list[str]:
    """Run lengths as Kaggle writes them: "start length …", starts from 1, down the columns.

    Source: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation

    Args:
        labels: (H, W) int, 0 background, 1…K; or a mask, (H, W) bool.

    Returns:
        K texts, that of nucleus 1 first.

    >>> encode_run_lengths(np.array([[0, 2, 2], [1, 2, 0]]))
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


def decode_run_lengths(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of one text of `encode_run_lengths`.

    Raises:
        UserError: an odd count, a text that is no number, a run outside the image or on another.

    >>> decode_run_lengths("2 3", (2, 2)).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    try:
        values = [int(word) for word in text.split()]
    except ValueError:
        raise UserError(f"run lengths must be whole numbers, not {text[:40]!r}") from None
    if len(values) % 2:
        raise UserError(f"run lengths come in pairs, these are {len(values)} numbers")
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(values[::2], values[1::2], strict=True):
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
    image_id, text, height, width = (row[column] for column in SOLUTION_COLUMNS)
    if None in (image_id, text, height, width):
        raise UserError("the row ends early")
    if (image_id, text) in seen:
        raise UserError("the same nucleus is in an earlier row")
    seen.add((image_id, text))
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"height and width must be whole numbers above 0, not {height!r} and {width!r}")
    shape = (int(height), int(width))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(f"its {height}×{width} pixels are too many")
    nucleus = decode_run_lengths(text, shape)
    image_labels = labels.setdefault(image_id, np.zeros(shape, np.int32))
    if image_labels.shape != shape:
        raise UserError(f"size {shape}, in an earlier row {image_labels.shape}")
    image_labels[nucleus] = image_labels.max() + 1
