"""Fine-tuning as the README shows it: a kind of image that the shipped weights do not find, learned from 20 images."""

import csv
import re

import numpy as np
import pytest
from conftest import ROOT, save_image
from scipy import ndimage

import Evaluate_model
import Predict_masks
import Train
from data import make_sample
from data.report import REPORT

SHAPE = (256, 256)
SHIPPED = ROOT / "weights" / "unet.keras"


pytestmark = pytest.mark.usefixtures("keep_precision")


def draw_pale_cells(seed):
    """Nuclei in brightfield that are as pale as what is around them, with a dark rim, between dark organelles.

    Returns:
        image: (H, W) uint8.
        labels: (H, W) uint8.
    """
    rng = np.random.default_rng(seed)
    labels, depth, _ = make_sample.place_nuclei(rng, SHAPE, 9, 20, aspect=1.3, clumping=0)
    is_nucleus = labels > 0
    rim = np.exp(-(((depth - 1.5) / 1.5) ** 2))
    organelles = np.clip(make_sample.smooth_noise(rng, SHAPE, 1.8) - 1.1, 0, 1)
    cytoplasm = 0.01 * make_sample.smooth_noise(rng, SHAPE, 8) + 0.7 * organelles
    absorbance = ndimage.gaussian_filter(np.where(is_nucleus, 0.07 * rim - 0.01, cytoplasm), 0.8)
    image = 229 * make_sample.vignette(rng, SHAPE, 0.05) * 10**-absorbance + 2 * rng.standard_normal(SHAPE)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels.astype(np.uint8)


def write_images(folder, seeds):
    """Writes images/NAME.png and the label picture masks/NAME.png of each seed; returns the folder."""
    for seed in seeds:
        image, labels = draw_pale_cells(seed)
        save_image(folder / "images" / f"cells_{seed:03}.png", image)
        save_image(folder / "masks" / f"cells_{seed:03}.png", labels)
    return folder


def predict(weights, data, out):
    """Predicts and scores a folder as a user does; returns the mean Dice and the page of the report."""
    assert Predict_masks.main(["--data", str(data), "--weights", str(weights), "--out", str(out), "--report"]) == 0
    assert Evaluate_model.main(["--truth", str(data), "--predicted", str(out)]) == 0
    with open(out / "scores.csv", newline="") as stream:
        dice = np.mean([float(row["dice"]) for row in csv.DictReader(stream)])
    return dice, (out / REPORT).read_text(encoding="utf-8")


@pytest.mark.slow
def test_twenty_images_teach_a_kind_that_the_shipped_weights_do_not_find(tmp_path, capsys):
    mine = write_images(tmp_path / "my_images", range(20))
    more = write_images(tmp_path / "more_images", range(100, 110))
    before, _ = predict(SHIPPED, more, tmp_path / "before")
    Train.main(["--from", str(SHIPPED), "--data", str(mine), "--out", str(tmp_path / "my_weights")])
    printed = capsys.readouterr().out
    after, page = predict(tmp_path / "my_weights" / "unet.keras", more, tmp_path / "after")

    assert before < 0.3, before
    assert after > 0.85, after
    assert "20 images, label pictures" in printed
    for score in ("Dice", "AP"):
        assert re.search(rf"^{score} on 3 validation images: .*: better than {re.escape(str(SHIPPED))}$", printed, re.M)
    assert sorted(re.findall('data-id="([^"]*)"', page)) == [f"cells_{seed}" for seed in range(100, 110)]
