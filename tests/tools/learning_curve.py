"""Scores trainings on few images of a kind, from weights that have not seen it and from nothing: weights/learning.png.

In:  images with their truth, and weights of `Train.py --hold-out KIND`. Half of the images of the kind, but 30 at most,
     are scored on; the tiles of one picture stay on one side.
Out: learning.csv, a row for each training, and learning.png, which draws all kinds of that table. A row of 0 images
     is of the weights as they are. Rows that are there are kept, whatever made them, so a stopped run goes on.

A training gets 1 to 16 images in a folder, as a user has them, of different pictures where there are enough. Train.py
itself keeps some of them to validate on: of 1 image none, of 2 to 7 one.

    python Train.py --data data/stage1_train.zip --hold-out brightfield --out no_brightfield
    python tests/tools/learning_curve.py --kind brightfield --from no_brightfield/unet.keras
"""

import argparse
import contextlib
import csv
import io
import itertools
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from skimage.io import imsave

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Evaluate_model
import Model
import Predict_masks
import Train
from data.files import UserError, read_csv, run_script, write_whole
from data.images import read_image
from data.options import KINDS
from data.records import KEPT_WEIGHTS, find_record
from data.sources import Sample, find_samples
from data.truth import load_samples
from Preprocessed_data import group_tiles, image_kind

OUT = Path(__file__).resolve().parents[2] / "weights"
SEED = 2018
COUNTS = (1, 2, 4, 8, 16)  # images to train on
TEST_IMAGES = 30  # at most
CROPS = 640  # crops of a training, all epochs together
EPOCHS = 4  # so few that the last one is kept, see FIXED_EDGES_SHARE
TRAINED, NOTHING = STARTS = ("trained weights", "nothing")
COLOURS = {TRAINED: "#0072B2", NOTHING: "#D55E00"}
LABELS = {TRAINED: "trained on from these", NOTHING: "trained from random weights"}
POINT = ("kind", "start", "images", "seed")
SCORES = {"Dice": "dice", "AP": "ap", "AP50": "ap50"}  # column -> of `Evaluate_model.score_image`


def find_kind(data: str, kind: str, weights: str) -> list[tuple[Sample, np.ndarray]]:
    """Samples and images of one kind; UserError where the weights have seen one, or do not say what they have seen."""
    pairs = ((sample, read_image(sample.image)) for sample in find_samples(data, with_truth=True))
    pairs = [(sample, image) for sample, image in pairs if image_kind(image) == kind]
    trained = find_record(weights).get("training_ids")
    if trained is None or {sample.id for sample, _ in pairs} & set(trained):
        raise UserError(f"{weights}: not known to be without {kind}; make weights by Train.py --hold-out '{kind}'")
    return pairs


def split_test(groups: np.ndarray) -> tuple[list[int], list[int]]:
    """Indices of the images to score on, and of the others; groups (N,) of `group_tiles` stay whole."""
    limit = min(TEST_IMAGES, len(groups) // 2)
    test = []
    for group in np.random.default_rng(SEED).permutation(np.unique(groups)):
        members = np.flatnonzero(groups == group).tolist()
        if len(test) + len(members) <= limit:
            test += members
    if not test:
        raise UserError(f"{len(groups)} images of this kind: too few pictures to train on and to score on")
    return sorted(test), [index for index in range(len(groups)) if index not in test]


def order_images(others: list[int], groups: np.ndarray, seed: int) -> list[int]:
    """The images to train on, of which the first are taken: one of each picture, then a second of each, and so on."""
    order = np.random.default_rng([SEED, seed]).permutation(others)
    taken = [(groups[order[:place]] == groups[index]).sum() for place, index in enumerate(order)]
    return order[np.argsort(taken, kind="stable")].tolist()


def train_on(samples: list[Sample], seed: int, crops: int, more: list[str], folder: Path) -> Path:
    """Writes images and label pictures to a folder and trains on it, as a user does; returns the weights."""
    for sample, image, labels in zip(samples, *load_samples(samples), strict=True):
        for name, pixels in (("images", image), ("masks", labels.astype(np.uint16))):
            (folder / name).mkdir(exist_ok=True)
            imsave(folder / name / f"{sample.id}.png", pixels, check_contrast=False)
    out = folder / "trained"
    command = ["--data", folder, "--out", out, "--seed", seed, "--epochs", EPOCHS, "--crops", max(crops // EPOCHS, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        Train.main([str(word) for word in command] + more)
    Model.keras.utils.clear_session()
    return out / KEPT_WEIGHTS


def score(weights: str | Path, images: list[np.ndarray], truths: list[np.ndarray]) -> dict[str, str]:
    """Means of SCORES over images."""
    model = Model.load_unet(weights)
    rows = []
    for image, truth in zip(images, truths, strict=True):
        labels, _ = Predict_masks.segment_image(model, image)
        rows.append(Evaluate_model.score_image(truth, labels > 0, labels))
    return {name: f"{np.mean([row[key] for row in rows]):.4f}" for name, key in SCORES.items()}


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of the table, which is begun where there is none."""
    if not file.is_file():
        file.write_text(",".join((*POINT, *SCORES)) + "\n")
    return list(read_csv(file))


def draw_curves(rows: list[dict], file: Path) -> None:
    """Draws Dice and AP50 against the number of images, a row of panels for each kind; mean and range of the seeds."""
    kinds = sorted({row["kind"] for row in rows})
    figure = Figure(figsize=(9, 3.2 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 2, squeeze=False, sharex=True, sharey=True)
    for axes, (kind, name) in zip(panels.flat, itertools.product(kinds, ("Dice", "AP50")), strict=True):
        for start, colour in COLOURS.items():
            scores = defaultdict(list)  # number of images -> of each seed
            for row in rows:
                if (row["kind"], row["start"]) == (kind, start):
                    scores[int(row["images"])].append(float(row[name]))
            for value in scores.pop(0, []):
                axes.axhline(value, color=colour, ls=":", label="weights that never saw the kind")
            means, lows, highs = ([f(scores[count]) for count in sorted(scores)] for f in (np.mean, min, max))
            axes.plot(sorted(scores), means, ".-", color=colour, label=LABELS[start])
            axes.fill_between(sorted(scores), lows, highs, color=colour, alpha=0.2, label="lowest to highest seed")
        axes.set(xscale="log", title=f"{kind}: {name}", xlabel="images to train on", ylim=(0, 1.02))
        axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    with write_whole(file) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/stage1_train.zip", help="images with masks (default %(default)s)")
    parser.add_argument("--kind", choices=KINDS, required=True, help="kind of image to learn")
    parser.add_argument("--from", dest="weights", required=True, metavar="FILE", help="weights that never saw the kind")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each point (default %(default)s)")
    parser.add_argument("--crops", type=int, default=CROPS, help="of a training (default %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default %(default)s)")
    args = parser.parse_args()
    pairs = find_kind(args.data, args.kind, args.weights)
    groups = group_tiles([image for _, image in pairs])
    test, others = split_test(groups)
    print(f"{len(test)} images to score on, {len(others)} to choose from")
    images, truths = load_samples([pairs[index][0] for index in test])
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "learning.csv"
    rows = read_table(table)
    counts = [count for count in COUNTS if count <= len(others)]
    for seed, count, start in [(0, 0, TRAINED), *itertools.product(range(args.seeds), counts, STARTS)]:
        point = dict(zip(POINT, (args.kind, start, str(count), str(seed)), strict=True))
        if any(point.items() <= row.items() for row in rows):
            continue
        chosen = [pairs[index][0] for index in order_images(others, groups, seed)[:count]]
        more = ["--from", args.weights] if start == TRAINED else []
        with tempfile.TemporaryDirectory() as folder:
            weights = train_on(chosen, seed, args.crops, more, Path(folder)) if chosen else args.weights
            rows.append(point | score(weights, images, truths))
        print(*rows[-1].values(), sep=", ", flush=True)
        with open(table, "a", newline="") as stream:
            csv.writer(stream).writerow(rows[-1].values())
    draw_curves(rows, args.out / "learning.png")
    print(f"saved the curves to {args.out / 'learning.png'}")


if __name__ == "__main__":
    run_script(main)
