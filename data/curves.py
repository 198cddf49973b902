"""Shows how a training goes: its curves and examples, what fine-tuning has changed, and how to use the weights.

In:  history, one dict an epoch; pictures (H, W, 3) uint8 and labels (H, W) int; scores (N,) of N validation images.
Out: accuracy.png, loss.png and examples.png in one folder; differences with intervals, and sentences.
"""

import shlex
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.backends.backend_agg  # noqa: F401  now, for Ctrl-C while it is loaded becomes an ImportError
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.crops import FIXED_EDGES_SHARE
from data.files import UserError, write_whole
from data.matching import SCORE_NAMES, dice_score, overlap_table, paired_difference
from data.pictures import TITLE_LENGTH, outline_nuclei, save_contact_sheet, show_pictures
from data.records import KEPT_WEIGHTS, TRAINING_RECORD, can_choose, read_training_record
from data.sources import find_samples

CURVES = {"accuracy.png": ("accuracy", "dice"), "loss.png": ("loss",)}
CURVE_SIZE = (9, 4)  # inches, of each figure, so that they fit side by side
CURVE_DPI = 110
CAPTION = "Validation may be better than training, for crops to train on are augmented and whole images are not."
EXAMPLES = "examples.png"
EXAMPLE_COUNT = 4
EXAMPLE_SIDE = 320  # pixels at most; the middle of larger images is shown


class Example(NamedTuple):
    """The middle of a validation image, which is predicted after every epoch."""

    image_id: str
    picture: np.ndarray  # (h, w, 3) uint8
    gray: np.ndarray  # (h, w) float32 in [0, 1]
    truth: np.ndarray  # (h, w) int32


def save_curves(history: list[dict], kept_epoch: int, out: Path) -> None:
    """Draws accuracy.png (accuracy and Dice) and loss.png: training, validation and the epoch that is kept."""
    epochs = [row["epoch"] for row in history]
    axis_titles = {"dice": "Sørensen–Dice"}
    for name, scores in CURVES.items():
        figure = Figure(figsize=CURVE_SIZE, layout="constrained")
        figure.supxlabel(CAPTION, fontsize=8)
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, score in zip(panels, scores, strict=True):
            axes.plot(epochs, [row[score] for row in history], ".-", label="training, augmented crops")
            axes.plot(epochs, [row[f"val_{score}"] for row in history], ".-", label="validation, whole images")
            axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"epoch {kept_epoch}, kept")
            axes.set(xlabel="epoch", ylabel=axis_titles.get(score, score))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend()
        with write_whole(out / name) as temporary:
            figure.savefig(temporary, dpi=CURVE_DPI)


def find_rivals(history: list[dict], epoch: int, epochs: int) -> list[dict]:
    """The rows of the history before an epoch, of so many in all, that it must surpass to be kept.

    Outlines become those that people draw only in the last fifth, so these epochs compete among themselves.
    """
    fixed_from = (1 - FIXED_EDGES_SHARE) * epochs
    before = [row for row in history if row["epoch"] < epoch]
    return [row for row in before if (row["epoch"] > fixed_from) == (epoch > fixed_from)]


def describe_epoch(history: list[dict], record: dict) -> str:
    """A line on the last epoch of the history; it says why that is kept where an earlier one had a higher Dice.

    Args:
        history: one dict an epoch.
        record: what training.json says at this epoch.
    """
    row = history[-1]
    kept_epoch = record["kept"]["epoch"]
    epochs = record["options"]["epochs"]
    rivals = find_rivals(history, row["epoch"], epochs)
    if kept_epoch != row["epoch"]:
        kept = f"epoch {kept_epoch} stays kept"
    elif not can_choose(record):
        kept = "kept (the last until now)"
    elif row["val_dice"] > max((earlier["val_dice"] for earlier in history[:-1]), default=-1.0):
        kept = "kept"
    else:
        kept = "kept (the best of the last fifth)" if rivals else "kept (the first of the last fifth)"
    scores = f"loss {row['loss']:.4f}, training Dice {row['dice']:.4f}, validation Dice {row['val_dice']:.4f}"
    return f"epoch {row['epoch']}/{epochs}: {row['seconds']} s, {scores}, {kept}"


def choose_examples(ids: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Up to EXAMPLE_COUNT of the ids: the first of each kind, then the first of the others.

    >>> choose_examples("abcdef", ["cells", "cells", "tissue", "cells", "cells", "cells"])
    ['a', 'c', 'b', 'd']
    """
    first_ids = [ids[kinds.index(kind)] for kind in dict.fromkeys(kinds)]
    others = [image_id for image_id in ids if image_id not in first_ids]
    return (first_ids + others)[:EXAMPLE_COUNT]


def crop_example(image_id: str, picture: np.ndarray, gray: np.ndarray, truth: np.ndarray) -> Example:
    """The example of an image: its middle, of the picture (H, W, 3), the gray (H, W) and the true labels (H, W)."""
    starts = [max((side - EXAMPLE_SIDE) // 2, 0) for side in gray.shape]
    middle = tuple(slice(start, start + EXAMPLE_SIDE) for start in starts)
    return Example(image_id, picture[middle], gray[middle], truth[middle])


def save_examples(examples: Sequence[Example], predicted: Sequence[np.ndarray], epoch: int, out: Path) -> None:
    """Draws examples.png: a row for each image, with the true nuclei outlined, and those that an epoch predicts.

    These are of the usual thresholds, for the own ones of the weights are chosen after the last epoch.
    """
    pictures = []
    titles = []
    for (image_id, picture, _, truth), labels in zip(examples, predicted, strict=True):
        table = overlap_table(truth, labels)
        pictures += [picture, outline_nuclei(picture, truth), outline_nuclei(picture, labels)]
        titles += [image_id[:TITLE_LENGTH], f"truth, {table.shape[0] - 1} nuclei"]
        titles += [f"epoch {epoch}, {table.shape[1] - 1} nuclei, Dice {dice_score(truth > 0, labels > 0):.2f}"]
    save_contact_sheet(pictures, titles, out / EXAMPLES, columns=3)


def compare_scores(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, dict]:
    """Compares scores (N,) of the same N images, image by image.

    Returns:
        name of a score -> number of images, both means, and the mean difference with its 95 % interval over
        images; None for the interval of one image. JSON types only.
    """
    compared = {}
    for name, scores in after.items():
        difference, low, high = paired_difference(scores, before[name])
        compared[name] = {
            "images": len(scores),
            "before": float(before[name].mean()),
            "after": float(scores.mean()),
            "difference": float(difference),
            "interval": [float(low), float(high)] if len(scores) > 1 else None,
        }
    return compared


def describe_change(compared: dict[str, dict], weights: str) -> list[str]:
    """What `compare_scores` says, a line for each score; better only where the interval lies above 0."""
    lines = []
    for name, score in compared.items():
        means = f"{score['before']:.4f} before, {score['after']:.4f} after"
        if score["interval"] is None:
            count = "1 validation image"
            difference = f"{score['difference']:+.4f}, without an interval, for which it takes two images"
            is_better = False
        else:
            low, high = score["interval"]
            count = f"{score['images']} validation images"
            difference = f"{score['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            is_better = low > 0
        verdict = "better than" if is_better else "not shown to be better than"
        lines.append(f"{SCORE_NAMES[name]} on {count}: {means}, difference {difference}: {verdict} {weights}")
    return lines


def find_scorable(data: Sequence[str], validation_ids: Container[str]) -> str | None:
    """The first source with a validation image and its truth, which Main.py can score; None where they lie apart."""
    for source in data:
        try:
            samples = find_samples(source, with_truth=True)
        except UserError:  # such as a folder of truth alone
            continue
        if any(sample.has_truth and sample.id in validation_ids for sample in samples):
            return source
    return None


def report_training(out: Path, data: Sequence[str]) -> None:
    """Says what a training has reached and how to use its weights, and shows its pictures."""
    record = read_training_record(out / TRAINING_RECORD)
    kept = record["kept"]
    scored = "validation Dice" if record["validation_ids"] else "Dice on the images trained on"
    print(f"kept epoch {kept['epoch']}: {scored} {kept['val_dice']:.4f}, of the pixels above 0.5 at full size")
    changes = describe_change(record.get("fine_tuning", {}), record["options"]["from_weights"])
    if changes:
        print("of whole predictions, as Main.py scores them, with the thresholds of before:")
    for line in changes:
        print(line)
    pictures = [out / name for name in (*CURVES, EXAMPLES)]
    print(f"saved the weights to {out / KEPT_WEIGHTS}, pictures to {', '.join(map(str, pictures))}")
    if can_choose(record):
        print(f"{EXAMPLES} shows the usual thresholds; those of these weights were chosen afterwards")
    weights = shlex.quote(str(out / KEPT_WEIGHTS))
    print(f"use them:     python Predict_masks.py --data IMAGES --weights {weights}")
    scorable = find_scorable(data, record["validation_ids"])
    if scorable is not None:
        scored_out = shlex.quote(str(out / "scored"))
        print(f"score them:   python Main.py --data {shlex.quote(scorable)} --weights {weights} --out {scored_out}")
    comparison = "python Evaluate_model.py --truth IMAGES --predicted PREDICTED --compare OTHERS_PREDICTED"
    print(f"compare them, on images that did not choose the epoch: {comparison}")
    print(
        f"ship them:    with {TRAINING_RECORD} beside them, or python Model.py --export bioimageio --weights {weights}"
    )
    show_pictures(*pictures)
