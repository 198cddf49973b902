"""Main: the tour on the committed sample, with the committed weights."""

import csv
import json

import keras
import pytest
from conftest import ROOT

import Main
import Model

SAMPLE = ROOT / "data/sample"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained weights that were, it is written beside them, trained on all but two images."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(1)
    Model.Unet(1, 2).build().save(folder / "unet.keras")
    ids = sorted(file.name for file in SAMPLE.iterdir())
    (folder / "training.json").write_text(
        json.dumps({"training_ids": ids[2:], "validation_ids": ids[:2]})
    )
    return folder / "unet.keras"


def test_the_committed_weights_do_the_whole_tour(run, tmp_path):
    weights = ROOT / "weights/unet.keras"
    done = run("Main.py", "--data", SAMPLE, "--weights", weights, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mean Dice" in done.stdout and str(tmp_path) in done.stdout
    with open(tmp_path / "scores.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    dice, ap = ([float(row[name]) for row in rows] for name in ("dice", "ap"))
    assert len(dice) == 12
    # Measured: 0.972 and 0.891, the worst image 0.955. Weights that fall below these are worse.
    assert sum(dice) / 12 > 0.968 and sum(ap) / 12 > 0.88 and min(dice) > 0.95
    for kind, ending in (("masks", "png"), ("labels", "tif"), ("overlays", "png")):
        assert len(list((tmp_path / kind).glob(f"*.{ending}"))) == 12
    assert (tmp_path / "predictions.png").is_file() and (tmp_path / "scores.png").is_file()
    assert (tmp_path / "comparison.png").is_file()


def test_images_trained_on_are_never_scored(tmp_path, weights, capsys):
    arguments = ["--data", SAMPLE, "--weights", weights, "--out", tmp_path]
    assert Main.main([str(a) for a in arguments]) == 0
    ids = sorted(file.name for file in SAMPLE.iterdir())
    assert [file.stem for file in sorted((tmp_path / "masks").iterdir())] == ids[:2]
    assert "2 of 12 images" in capsys.readouterr().out


def test_nothing_left_to_score_is_an_error(tmp_path, weights):
    trained_on = sorted(SAMPLE.iterdir())[5] / "images"
    with pytest.raises(ValueError, match="trained on all of it"):
        Main.main(["--data", str(trained_on), "--weights", str(weights), "--out", str(tmp_path)])


def test_mistakes_of_the_command(mistake):
    assert "missing.keras" in mistake("Main.py", "--data", SAMPLE, "--weights", "missing.keras")
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        Main.main(["--weights", str(ROOT / "weights/unet.keras"), "--data", "no_such_folder"])
