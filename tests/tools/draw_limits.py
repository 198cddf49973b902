"""Draws what the shipped weights still fail at: weights/limits.png, the picture of the README.

No real image may be copied into this project, so each failing is drawn as data/make_sample.py draws
the sample: the shapes, then the light. Not collected by pytest.

    python tests/tools/draw_limits.py
"""

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
from data.pictures import draw_thumbnails, save_contact_sheet

ROOT = Path(__file__).resolve().parents[2]
SIZE = 256, 256
OUT = ROOT / "weights" / "limits.png"


def draw_elongated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Long nuclei that lie over one another; image (H, W) float in gray levels, and labels."""
    shapes = make_sample.place_nuclei(rng, SIZE, 70, 9, aspect=3, press=0.3, swing=0.4)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.13, grain=1.5, vary=0.3)
    return make_sample.fluoresce(rng, nuclei, peak=90, ground=6, blur=1.5), shapes[0]


def draw_dense_tissue(rng):
    """Nuclei of stained epithelium that press on one another; image (H, W, 3)."""
    shapes = make_sample.place_nuclei(rng, SIZE, 110, 11, aspect=1.6, press=0.3, swing=0.4)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.3, grain=1.2, vary=0.4)
    stains = {"nuclear": (0.35, 0.15, 0), "ground": (0.08, 0.25, 0)}
    return make_sample.stain(rng, nuclei, **stains, bare=0.1, blur=1.5), shapes[0]


def draw_fibres(rng):
    """Fibres as bright as the nuclei between them."""
    shapes = make_sample.place_nuclei(rng, SIZE, 40, 8, aspect=1.6, swing=0.3)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.13, grain=1.5)
    nuclei += 0.9 * np.clip(make_sample.fibres(rng, SIZE) - 1.6, 0, 1)
    return make_sample.fluoresce(rng, nuclei, peak=80, ground=6, blur=1.2), shapes[0]


def draw_folds(rng):
    """Pale cells in brightfield whose folds are as dark as their nuclei."""
    shapes = make_sample.place_nuclei(rng, SIZE, 9, 8, aspect=1.2, clumping=0)
    nuclei = make_sample.fill_nuclei(rng, *shapes, texture=0.1, grain=1.2, vary=0.15)
    image = make_sample.shade(rng, nuclei, cell=42)
    inside = make_sample.ndimage.gaussian_filter((image < 205).astype(float), 3) > 0.7
    folds = inside * np.clip(make_sample.fibres(rng, SIZE) - 1.5, 0, 1)
    return image * 10 ** (-0.5 * make_sample.ndimage.gaussian_filter(folds, 1)), shapes[0]


def main() -> None:
    model = Model.load_unet(ROOT / Predict_masks.WEIGHTS)
    pictures, titles = [], []
    for draw in draw_elongated, draw_dense_tissue, draw_fibres, draw_folds:
        image, truth = draw(np.random.default_rng(make_sample.SEED))
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        labels, _ = Predict_masks.segment_image(model, image)
        picture = Preprocessed_data.to_display(image)
        pictures += [draw_thumbnails(picture, truth)[0], draw_thumbnails(picture, labels)[0]]
        dice = Evaluate_model.dice_score(truth > 0, labels > 0)
        found = f"prediction, {labels.max()} nuclei, Dice {dice:.2f}"
        titles += [f"{draw.__name__[5:].replace('_', ' ')}, truth, {truth.max()} nuclei", found]
    save_contact_sheet(pictures, titles, OUT, columns=4)
    print(f"saved the picture to {OUT}")


if __name__ == "__main__":
    run_script(main)
