"""Reads predictions to score: of Predict_masks.py, label pictures of other tools, or Kaggle's table.

In:  a folder that Predict_masks.py wrote, a folder of label pictures, or a .csv with ImageId,EncodedPixels.
Out: mask (H, W) bool and labels (H, W) integers of each image.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import UserError
from data.images import read_image
from data.layouts import TRUTH_SUFFIXES
from data.outputs import find_predictions, prediction_files
from data.run_lengths import decode_run_lengths

LABEL_ENDINGS = (".tif", ".tiff", ".png")  # JPEG changes numbers


@dataclass(frozen=True)
class Predicted:
    """What is predicted for one image."""

    file: Path  # label picture, or the table
    mask: Path | None = None  # None: the mask is where labels are
    run_lengths: tuple[str, ...] | None = None  # run lengths from a table, one text for each nucleus

    def files(self) -> list[Path]:
        """The files of this image; a table is of no one image."""
        if self.run_lengths is not None:
            return []
        return [self.file] if self.mask is None else [self.mask, self.file]


def find_predicted(source: str | Path) -> dict[str, Predicted]:
    """Finds the images of predictions: id -> what is predicted.

    Raises:
        UserError: the source is not there, or its table is damaged.
    """
    source = Path(source)
    if source.suffix.lower() == ".csv":
        return read_submission(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; python Predict_masks.py --out {source} writes one")
    ours = find_predictions(source)
    if ours or (source / "labels").is_dir():
        files = {image_id: prediction_files(source, image_id) for image_id in ours}
        return {image_id: Predicted(known.labels, known.existing_mask()) for image_id, known in files.items()}
    label_files = [file for file in sorted(source.iterdir()) if file.suffix.lower() in LABEL_ENDINGS]
    predictions = {}
    for file in label_files:
        image_id = name_of_labels(file.stem)
        if image_id in predictions:
            raise UserError(f"{predictions[image_id].file} and {file}: both are labels of {image_id}; remove one")
        predictions[image_id] = Predicted(file)
    return predictions


def name_of_labels(stem: str) -> str:
    """The id of the image that a label picture belongs to.

    >>> name_of_labels("a_cp_masks"), name_of_labels("b")
    ('a', 'b')
    """
    for suffix in TRUTH_SUFFIXES:
        if stem.endswith(suffix) and stem != suffix:
            return stem.removesuffix(suffix)
    return stem


def read_submission(file: Path) -> dict[str, Predicted]:
    """Reads Kaggle's table, ImageId,EncodedPixels, one row for each nucleus; no pixels stand for no nucleus.

    Raises:
        UserError: a column is missing, or the file is no table.
    """
    texts_of_images = defaultdict(list)
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                texts = texts_of_images[row["ImageId"]]  # [] for an image without nuclei
                if row["EncodedPixels"]:
                    texts.append(row["EncodedPixels"])
    except (KeyError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{file}: expected a table with the columns ImageId,EncodedPixels") from None
    return {image_id: Predicted(file, run_lengths=tuple(texts)) for image_id, texts in texts_of_images.items()}


def read_predicted(prediction: Predicted, image_id: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Reads what is predicted for an image.

    Args:
        prediction: of `find_predicted`.
        image_id: id of the image.
        shape: (H, W) of its truth, which a table does not tell.

    Returns:
        mask (H, W) bool, and labels (H, W) integers, at the size of their files.

    Raises:
        UserError: a file or a row holds something else.
    """
    if prediction.run_lengths is not None:
        labels = np.zeros(shape, np.int32)
        for number, text in enumerate(prediction.run_lengths, start=1):
            try:
                labels[decode_run_lengths(text, shape)] = number
            except UserError as error:
                raise UserError(f"{prediction.file}, nucleus {number} of {image_id}: {error}") from None
        return labels > 0, labels
    labels = np.array(read_image(prediction.file))  # which may be read-only
    if labels.ndim != 2 or labels.dtype.kind not in "ui" or labels.min() < 0:
        raise UserError(f"{prediction.file} should be one channel of whole numbers from 0 on")
    if prediction.mask is None:
        return labels > 0, labels
    mask = read_image(prediction.mask)
    if mask.ndim != 2 or not np.isin(mask, (0, 255)).all():  # 0 and 1 would look black elsewhere
        raise UserError(f"{prediction.mask} should be one channel of 0 and 255 only")
    return mask == 255, labels
