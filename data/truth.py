"""Reads the true nuclei, whatever file holds them, and says where they look wrong.

In:  samples of `data.sources` with one mask per nucleus or one file of labels.
Out: labels (H, W) int32, 0 background, one number per nucleus.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from skimage.measure import label
from tqdm import tqdm

from data.channels import pick_gray_or_colours
from data.files import File, UserError
from data.images import read_image
from data.intensity import brightness
from data.label_files import check_jpeg, is_background, is_binary, number_pieces, read_label_file, read_values
from data.layouts import check_one_truth, format_names
from data.nuclei import diameter_of_disk, local_contrast
from data.outputs import prediction_files
from data.pixels import is_gray
from data.records import hash_image
from data.sources import Sample
from data.stacks import read_sample_image

ONE_NUCLEUS = "have one nucleus; is all that is nucleus one number, or the truth one file a nucleus?"
MASKS_FORMAT = "one file a nucleus"
LABELS_FORMAT = "label pictures"
BINARY_FORMAT = "black and white pictures, each connected piece taken for one nucleus"
OUTLINE_FORMATS = {".zip": "ROI sets", ".roi": "ROI sets", ".geojson": "GeoJSON"}
# Where truth looks wrong.
MIN_NUCLEI = 4  # smallest number of nuclei that is judged; fewer may all lie at the border by chance
MIN_IMAGES = 4  # fewer may all have one nucleus by chance
MIN_TRUE_CONTRAST = 0.5  # least `local_contrast`; it is 1 or more where labels are right, at most 0.4 on other images
MIN_BRIGHTNESS = 1e-30  # keeps a black image from a division by 0
MAX_BORDER_SHARE = 0.8  # share of the nuclei that may lie at the border of an image
MIN_COUNTED_PIECE = 10  # pixels; smaller pieces of a label do not count where it is judged, and stay in it
MAX_PIECES = 2  # mean number of pieces of one label; with more, labels are classes
FULL = 255  # the highest of 8 bits
MAX_PIECES_FULL = 1.1  # the same, where all numbers of 8 bits are used


def load_samples(samples: Sequence[Sample], channel: str | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads images and labels in several threads, with a progress bar; `channel` as for `read_true_image`.

    Returns:
        images: list of (H, W) or (H, W, 3), as in the files.
        labels: list of (H, W) int32.

    Raises:
        UserError: the first image or mask that cannot be used, by name.
    """
    images = []
    labels = []
    with ThreadPoolExecutor() as pool:  # decoders release Python's lock
        pairs = pool.map(functools.partial(read_sample, channel=channel), samples)
        bar = tqdm(pairs, "reading", len(samples), unit="image", disable=None)
        try:
            for image, image_labels in bar:
                images.append(image)
                labels.append(image_labels)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # say so before the rest is read
            raise
    return images, labels


def read_sample(sample: Sample, channel: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W) or (H, W, 3) and labels (H, W) int32 of one sample with truth."""
    image = read_true_image(sample, channel)
    if image.ndim == 3 and is_gray(image):
        # Most images are gray in three equal channels; memory holds one of them.
        image = np.broadcast_to(image[..., :1].copy(), image.shape)
    return image, read_labels(sample, image.shape[:2])


def read_true_image(sample: Sample, channel: str | None = None) -> np.ndarray:
    """The image (H, W) or (H, W, 3) of a sample with truth, or that channel of it which shows the nuclei.

    Args:
        sample: of `find_channels`.
        channel: of `pick_channels`; None: that in which Predict_masks.py found the labels, or one with a nuclear name.
    """
    image = read_sample_image(sample)
    return pick_gray_or_colours(image, channel or read_prediction_row(sample).get("channel") or None, sample.image)


def was_trained_on(sample: Sample, record: dict) -> bool:
    """Whether the training of a record saw the image of a sample, by its pixels; by its id in an older record."""
    seen = record.get("seen_images")
    if seen is None:
        return sample.id in record.get("training_ids", ())
    try:
        return hash_image(read_true_image(sample, record["options"].get("channel"))) in seen
    except (UserError, OSError):
        return False  # what reads it says why it cannot be read


def read_prediction_row(sample: Sample) -> dict:
    """How the image of labels/ID.tif was seen, as tables/ID.json beside it says; {} for any other truth."""
    labels = sample.truths[0] if len(sample.truths) == 1 else None
    if not isinstance(labels, Path):
        return {}
    files = prediction_files(labels.parent.parent, labels.stem)
    if files.labels != labels or not files.image_row.is_file():
        return {}
    return files.read_image_row()


def read_labels(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """Numbers the nuclei of one image from its truth; of mask files in the order of their names.

    Args:
        sample: a sample with masks or another truth.
        shape: (H, W) of its image; truth is never resized to fit.

    Returns:
        labels: (H, W) int32, 0 background, 1…K. Of mask files K is their number; an empty mask, or one that later ones
            cover, keeps its number, so that the numbers may have gaps.

    Raises:
        UserError: the truth is unreadable, of another size or in several places, or there is none.
    """
    check_one_truth(sample)
    if sample.truths:
        return read_label_file(sample.truths[0], shape)
    if not sample.masks:
        raise UserError(
            f"{sample.image}: it has no masks; expected {sample.id}/masks/*.png, or one file of labels, as "
            f"masks/{sample.image.stem}.tif beside images/, or {sample.image.stem}_masks.tif"
        )
    labels = np.zeros(shape, np.int32)
    for number, file in enumerate(sample.masks, start=1):
        mask = read_mask(file)
        if mask.shape != shape:
            raise UserError(f"{file}: the mask is {mask.shape}, its image {shape}; remake it")
        labels[mask] = number
    has_sole_mask = len(sample.masks) == 1
    if has_sole_mask and label(labels).max() > 1:  # it holds all nuclei
        return number_pieces(labels > 0, sample.masks[0])
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
        check_jpeg(values, file)
        raise UserError(
            f"{file}: expected the mask of one nucleus, 0 and one other value, but it has several, "
            "as a labelled picture or a photograph has; write one file for each nucleus"
        )
    if is_background(mask):
        raise UserError(f"{file}: most of it and all corners are nucleus; is it inverted? remake it")
    return mask


def describe_formats(samples: Sequence[Sample]) -> str:
    """What the truth of samples is: "label pictures", or "18 label pictures, 2 ROI sets"."""
    with ThreadPoolExecutor() as pool:
        counts = Counter(pool.map(_find_format, samples))
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {truth_format}" for truth_format, count in counts.most_common())


def _find_format(sample: Sample) -> str:
    if len(sample.masks) == 1 and label(read_mask(sample.masks[0])).max() > 1:
        return BINARY_FORMAT
    if not sample.truths:
        return MASKS_FORMAT if sample.masks else "without truth"
    (file,) = sample.truths
    ending = Path(file.name).suffix.lower()
    if ending in OUTLINE_FORMATS:
        return OUTLINE_FORMATS[ending]
    return BINARY_FORMAT if is_binary(read_values(file)) else LABELS_FORMAT


class TruthMeasures(NamedTuple):
    """What tells whether the labels of one image are right."""

    areas: np.ndarray  # (K,) pixels, of each nucleus
    border_share: float  # share of the nuclei that lie at the border
    contrast: float  # `local_contrast` without its sign
    pieces_per_nucleus: float  # mean number of connected pieces, of MIN_COUNTED_PIECE or more


def measure_truth(image: np.ndarray, labels: np.ndarray) -> TruthMeasures:
    """Measures the labels (H, W) int32 of an image (H, W) or (H, W, 3)."""
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    count = max(len(areas), 1)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    at_border = len(np.unique(border[border > 0]))
    piece_areas = np.bincount(label(labels, background=0, connectivity=2).ravel())[1:]
    pieces_per_nucleus = np.count_nonzero(piece_areas >= MIN_COUNTED_PIECE) / count
    gray = brightness(image).astype(np.float32)
    with np.errstate(invalid="ignore"):  # a number without a pixel has no mean
        contrast = abs(local_contrast(gray / max(np.abs(gray).max(), MIN_BRIGHTNESS), labels))
    return TruthMeasures(areas, at_border / count, contrast, pieces_per_nucleus)


def describe_truth(
    samples: Sequence[Sample], images: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[str, list[str]]:
    """Says what the truth of images is, and where it looks wrong.

    Args:
        samples: N, with truth.
        images: N of (H, W) or (H, W, 3), as in the files.
        labels: N of (H, W) int32.

    Returns:
        line: such as "20 images, label pictures, 578 nuclei, median 24 pixels wide"; the width is the diameter of the
            disk of the same area.
        warnings: a line for each thing that looks wrong, with the names of the images.
    """
    with ThreadPoolExecutor() as pool:
        measures = list(pool.map(measure_truth, images, labels))
    areas = np.concatenate([measure.areas for measure in measures])
    line = f"{len(samples)} images, {describe_formats(samples)}, {len(areas):,} nuclei"
    if len(areas):
        line += f", median {diameter_of_disk(np.median(areas)):.0f} pixels wide"
    suspects = {}
    for sample, measure in zip(samples, measures, strict=True):
        for reason in find_faults(measure):
            suspects.setdefault(reason, []).append(sample.id)
    # One nucleus in an image is no fault in itself, but in most of several images it is.
    is_fault = len(samples) >= MIN_IMAGES and len(suspects.get(ONE_NUCLEUS, ())) > len(samples) / 2
    if not is_fault:
        suspects.pop(ONE_NUCLEUS, None)
    total = len(samples)
    return line, [f"{len(ids)} of {total} images {reason}: {format_names(ids)}" for reason, ids in suspects.items()]


def find_faults(measure: TruthMeasures) -> list[str]:
    """What looks wrong about the labels of one image, as the end of a sentence on several images."""
    count = len(measure.areas)
    if count == 0:
        return ["have no nuclei in their truth"]
    faults = []
    if count == 1:
        faults.append(ONE_NUCLEUS)
    if count == FULL and measure.pieces_per_nucleus > MAX_PIECES_FULL:
        faults.append("use all 255 numbers of 8 bits, some for several nuclei; save the labels in 16 bits")
    elif measure.pieces_per_nucleus > MAX_PIECES:
        faults.append("have numbers that lie in several pieces; are they classes, and not one number a nucleus?")
    if count >= MIN_NUCLEI and measure.border_share > MAX_BORDER_SHARE:
        faults.append("have nearly all nuclei at the border; is the truth of a part of the image?")
    if measure.contrast < MIN_TRUE_CONTRAST:
        faults.append("have nuclei that hardly differ from what is around them; is the truth of another image?")
    return faults
