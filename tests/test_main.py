"""Main: the tour on the committed sample, with the committed weights."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import Main
import Model

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data/sample"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained weights that were, it is written beside them, trained on all but two images."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(1)
    Model.Unet(1, 2).build().save(folder / "unet.keras")
    ids = sorted(file.name for file in SAMPLE.iterdir())
    (folder / "training.json").write_text(json.dumps({"training_ids": ids[2:]}))
    return folder / "unet.keras"


def test_the_committed_weights_do_the_whole_tour(tmp_path):
    command = [sys.executable, ROOT / "Main.py", "--data", SAMPLE, "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "mean Dice" in done.stdout and str(tmp_path) in done.stdout
    with open(tmp_path / "scores.csv", newline="") as stream:
        dice = [float(row["dice"]) for row in csv.DictReader(stream)]
    assert len(dice) == 12
    assert sum(dice) / len(dice) > 0.85
    for kind, ending in (("masks", "png"), ("labels", "tif"), ("overlays", "png")):
        assert len(list((tmp_path / kind).glob(f"*.{ending}"))) == 12
    assert (tmp_path / "predictions.png").is_file() and (tmp_path / "scores.png").is_file()


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


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--weights", "missing.keras"], "missing.keras"),
        (["--data", "no_such_folder"], "no_such_folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, reason):
    command = [sys.executable, ROOT / "Main.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(lines) == 1 and reason in lines[0]
    assert "Traceback" not in done.stderr


def test_help_names_every_option():
    command = [sys.executable, ROOT / "Main.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--data", "--weights", "--out"))
