"""Draws two pictures with the shipped weights: what they find, and what they still fail at.

In:  images of the sample, and drawn images of kinds that fail: the shapes, then the light, as data/make_sample.py draws
     them. No real image may be copied into this project.
Out: weights/example.png and weights/limits.png, the pictures of the README.

    python tests/tools/draw_pictures.py
    python tests/tools/draw_pictures.py --out trial
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Evaluate_model
import Model
import Predict_masks
import Preprocessed_data
from data import make_sample
from data.files import run_script
from data.matching import average_precision, overlap_table
from data.options import DATA, WEIGHTS
from data.pictures import OUTCOME_COLOURS, colour_labels, draw_difference, save_contact_sheet
from data.sources import find_samples
from data.truth import read_sample

ROOT = Path(__file__).resolve().parents[2]
SIZE = 256, 256
FONT_SIZE = 13  # points; the README shows the pictures at less than half of their width


def draw_elongated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Long nuclei that lie over one another; image (H, W) float in gray levels, and labels."""
    shapes = make_sample.place_nuclei(rng, SIZE, 70, 9, aspect=3, press=0.3, swing=0.4)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.13, grain=1.5, vary=0.3)
    return make_sample.fluoresce(rng, nuclei, peak=90, background=6, blur=1.5), shapes[0]


def draw_dense_tissue(rng):
    """Nuclei of stained epithelium that press on one another; image (H, W, 3)."""
    shapes = make_sample.place_nuclei(rng, SIZE, 110, 11, aspect=1.6, press=0.3, swing=0.4)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.3, grain=1.2, vary=0.4)
    stains = {"nuclear": (0.35, 0.15, 0), "background": (0.08, 0.25, 0)}
    return make_sample.stain(rng, nuclei, **stains, bare=0.1, blur=1.5), shapes[0]


def draw_fibres(rng):
    """Fibres as bright as the nuclei between them."""
    shapes = make_sample.place_nuclei(rng, SIZE, 40, 8, aspect=1.6, swing=0.3)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.13, grain=1.5)
    nuclei += 0.9 * np.clip(make_sample.fibres(rng, SIZE) - 1.6, 0, 1)
    return make_sample.fluoresce(rng, nuclei, peak=80, background=6, blur=1.2), shapes[0]


def draw_folds(rng):
    """Pale cells in brightfield whose folds are as dark as their nuclei."""
    shapes = make_sample.place_nuclei(rng, SIZE, 9, 8, aspect=1.2, clumping=0)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.1, grain=1.2, vary=0.15)
    image = make_sample.shade(rng, nuclei, cell=42)
    inside = make_sample.ndimage.gaussian_filter((image < 205).astype(float), 3) > 0.7
    folds = inside * np.clip(make_sample.fibres(rng, SIZE) - 1.5, 0, 1)
    return image * 10 ** (-0.5 * make_sample.ndimage.gaussian_filter(folds, 1)), shapes[0]


def draw_blood(rng):
    """A blood smear: red cells with pale middles, and a few white cells, whose nuclei alone are nuclei."""
    cells, _, _ = make_sample.place_nuclei(rng, SIZE, 45, 13, aspect=1.1, spread=0.04, clumping=0.3)
    depth = np.minimum(make_sample.ndimage.distance_transform_edt(cells), 9) / 9
    labels, _, _ = make_sample.place_nuclei(np.random.default_rng(4), SIZE, 4, 11, aspect=1.3, clumping=0)
    white = make_sample.ndimage.binary_dilation(labels > 0, iterations=6)
    pallor = np.where(cells > 0, 1 - 0.6 * depth**3, 0)
    pallor[white] = 0
    image = np.array((243, 236, 232)) - pallor[..., None] * np.array((60, 95, 70))
    image[white] = (205, 190, 220)
    image[labels > 0] = (88, 45, 130)
    blurred = make_sample.ndimage.gaussian_filter(image, (1, 1, 0))
    return blurred + 2 * rng.standard_normal(blurred.shape), labels


FAILINGS = {
    "long nuclei that overlap": draw_elongated,
    "dense tissue": draw_dense_tissue,
    "bright fibres": draw_fibres,
    "folds of pale cells": draw_folds,
    "blood smear": draw_blood,
}
EXAMPLES = {
    "bright fluorescence": "fluorescence_bright_1",
    "crowded fluorescence": "fluorescence_crowded_1",
    "pale cells": "brightfield_gray_1",
    "purple tissue": "tissue_purple_1",
    "pink tissue": "tissue_pink_1",
}


def crop(picture: np.ndarray, ratio: float = 4 / 3) -> np.ndarray:
    """The upper left part of a picture (H, W, 3), with this ratio of width to height."""
    height, width = picture.shape[:2]
    height = min(height, int(width / ratio))
    return picture[:height, : int(height * ratio)]


def draw_rows(model, images: dict, file: Path) -> None:
    """Draws images, below them their labels, and below these the difference to the truth.

    Args:
        model: of `load_unet`.
        images: name -> image and true labels.
        file: the picture to write.
    """
    rows = [[], [], []]
    titles = [[], [], []]
    for name, (image, truth) in images.items():
        labels, _ = Predict_masks.segment_image(model, image)
        table = overlap_table(truth, labels)
        dice = Evaluate_model.dice_score(truth > 0, labels > 0)
        picture = Preprocessed_data.to_display(image)
        drawn = (picture, colour_labels(labels), draw_difference(picture, truth, labels))
        counts = f"{table.shape[1] - 1} found, {table.shape[0] - 1} true"
        scores = f"Dice {dice:.2f}, AP {average_precision(table):.2f}"
        for row, texts, part, text in zip(rows, titles, drawn, (name, counts, scores), strict=True):
            row.append(crop(part))
            texts.append(text)
    save_contact_sheet(sum(rows, []), sum(titles, []), file, len(images), OUTCOME_COLOURS, FONT_SIZE)
    print(f"saved the picture to {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "weights", type=Path, help="folder (default %(default)s)")
    out = parser.parse_args().out
    out.mkdir(exist_ok=True)
    model = Model.load_unet(ROOT / WEIGHTS)
    samples = {sample.id: sample for sample in find_samples(ROOT / DATA)}
    draw_rows(model, {title: read_sample(samples[name]) for title, name in EXAMPLES.items()}, out / "example.png")
    drawn = {}
    for name, draw in FAILINGS.items():
        image, truth = draw(np.random.default_rng(make_sample.SEED))
        drawn[name] = (np.clip(np.rint(image), 0, 255).astype(np.uint8), truth)
    draw_rows(model, drawn, out / "limits.png")


if __name__ == "__main__":
    run_script(main)
