"""The folder that a training writes to: the names of its files, its history, and its record, training.json.

In:  the folder, or the weights in it; history, one dict an epoch; the record, a dict of JSON types.
Out: training.json and history.csv, and what they say of a training that is done, interrupted or started from.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data.files import UserError, hash_file, read_csv, write_csv, write_whole
from data.options import TrainingOptions
from data.pixels import is_gray

TRAINING_RECORD = "training.json"
KEPT_WEIGHTS = "unet.keras"
HISTORY = "history.csv"
CHECKPOINT = "last.weights.h5"  # state after the last epoch, with the optimizer; only an interrupted training has it
ONE_PICTURE = (
    "all images are of one picture, so none is left to validate on; the scores are of the images that are trained on "
    "and say nothing of others, the last epoch is kept, the thresholds are those of before; add an image of another"
)


def find_record(weights: str | Path) -> dict:
    """What training.json beside a weights file says of its training; {} if it is not there."""
    file = Path(weights).parent / TRAINING_RECORD
    return read_training_record(file) if file.is_file() else {}


def read_training_record(file: str | Path) -> dict:
    """Reads training.json, which Train.py writes beside the weights.

    Raises:
        UserError: the file is no training record, or an id is on both sides of the split.
    """
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        shared = set(record["training_ids"]) & set(record["validation_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: expected a training.json of Train.py, with the ids") from error
    if shared:
        raise UserError(f"{file}: {len(shared)} ids are trained on and validated on, first {min(shared)}")
    return record


def save_record(out: Path, record: dict) -> None:
    """Writes training.json."""
    with write_whole(out / TRAINING_RECORD) as file:
        file.write_text(json.dumps(record, indent=1) + "\n")


def describe_run(
    options: TrainingOptions,
    backend: str,
    kinds: dict[str, str],
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    split: tuple[list[str], list[str]],
) -> dict:
    """What training.json says before the first epoch.

    Args:
        options: of the training.
        backend: of Keras.
        kinds: id -> kind of N images.
        images: the N images.
        labels: of each image.
        split: ids to train on, and to validate on.
    """
    training_ids = set(split[0])
    digests = [hash_image(image) for image_id, image in zip(kinds, images, strict=True) if image_id in training_ids]
    seen = find_record(options.from_weights).get("seen_images", []) if options.from_weights else []
    record = {
        "options": asdict(options),
        "images": len(images),
        "data_sha256": hash_data(kinds, images, labels),
        "versions": {
            "python": platform.python_version(),
            "keras": version("keras"),
            "backend": backend,
            "numpy": np.__version__,
        },
        "training_ids": split[0],
        "validation_ids": split[1],
        "validation_kinds": [kinds[image_id] for image_id in split[1]],
        "seen_images": sorted({*seen, *digests}),  # by this training and by those that its start comes from
    }
    if options.from_weights:
        record["from_weights_sha256"] = hash_file(options.from_weights)
    return record


def hash_data(ids: Iterable[str], images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> str:
    """SHA-256 of ids, images and labels, in hexadecimal."""
    digest = hashlib.sha256()
    for image_id, image, image_labels in zip(ids, images, labels, strict=True):
        digest.update(image_id.encode() + image.tobytes() + image_labels.tobytes())
    return digest.hexdigest()


def hash_image(image: np.ndarray) -> str:
    """The first 16 digits of the SHA-256 of the pixels, the same for a gray image (H, W) and its copy (H, W, 3)."""
    if image.ndim == 3 and is_gray(image):
        image = image[..., 0]
    digest = hashlib.sha256(f"{image.shape} {image.dtype}".encode() + image.tobytes())
    return digest.hexdigest()[:16]


def can_choose(record: dict) -> bool:
    """Whether the validation images may choose epoch and thresholds; where they may not, the last epoch is kept.

    They may not where there are none, or where they are of a kind that is held out and only scored on.
    """
    return bool(record["validation_ids"]) and not record["options"]["hold_out"]


def check_validation_is_unseen(weights: str, validation: dict[str, np.ndarray], hold_out: str | None = None) -> None:
    """Raises UserError where the weights that a training starts from know images that are to validate it.

    Args:
        weights: file of the start; nothing is known of weights without a training.json.
        validation: id -> image, as in the file.
        hold_out: the kind that is held out, if one is.
    """
    known = set(find_record(weights).get("seen_images", []))
    seen = [name for name, image in validation.items() if hash_image(image) in known]
    if seen:
        advice = "give the --split-seed and --data of its training, or other images"
        if hold_out:
            advice = "weights that never saw the kind come from a training without --from"
        raise UserError(
            f"{weights}: it was trained on {len(seen)} of the images to validate on, first {seen[0]}; {advice}"
        )


def back_up_training(out: Path, overwrite: bool, from_weights: str | None = None) -> None:
    """Copies the files of a training in the folder, finished or interrupted, to *.before.

    Raises:
        UserError: there is one, and nobody said that it may be replaced; or the new one is to start from its weights.
    """
    if from_weights and Path(from_weights).resolve() == (out / KEPT_WEIGHTS).resolve():
        raise UserError(f"--from {from_weights} lies in --out and would be replaced; name another --out")
    if not (out / TRAINING_RECORD).is_file():
        return
    if not overwrite:
        state = "a finished training;"
        if (out / CHECKPOINT).is_file():
            state = "an interrupted training; continue it with --resume,"
        raise UserError(f"{out} holds {state} name another --out, or give --overwrite, which keeps it as *.before")
    for name in (KEPT_WEIGHTS, HISTORY, TRAINING_RECORD, CHECKPOINT):
        if (out / name).is_file():
            shutil.copy2(out / name, out / f"{name}.before")


def check_interrupted(out: Path) -> None:
    """Raises UserError where the folder holds no interrupted training."""
    if not (out / CHECKPOINT).is_file():
        raise UserError(f"{out}: no interrupted training here; leave out --resume")


def can_resume(out: Path, run_id: str) -> bool:
    """Whether the folder holds at least one epoch of this training, which has not ended."""
    if not ((out / CHECKPOINT).is_file() and (out / TRAINING_RECORD).is_file()):
        return False
    return read_training_record(out / TRAINING_RECORD).get("run_id") == run_id


def read_interrupted(out: Path, record: dict) -> dict:
    """Reads the record of an interrupted training, which is to continue as the training of `record`.

    Raises:
        UserError: its options or data were others.
    """
    before = read_training_record(out / TRAINING_RECORD)
    other_data = "had other data; name the same --data, with the same files in it"
    differences = {
        "data_sha256": other_data,
        "options": f"had other options: {before.get('options')}; give the same",
        "from_weights_sha256": "started from other weights; name the same file in --from",
        "validation_ids": other_data,
    }
    for name, difference in differences.items():
        if before.get(name) != record.get(name):
            raise UserError(f"{out}: that training {difference}")
    return before


def save_history(history: list[dict], file: Path) -> None:
    """Writes one row per epoch, as `read_history` reads them."""
    write_csv(file, history[0], history)


def read_history(file: Path) -> list[dict]:
    """The rows that `save_history` wrote, as numbers."""
    history = []
    for row in read_csv(file):
        values = {name: float(value) for name, value in row.items()}
        history.append(values | {"epoch": int(row["epoch"])})
    return history
