"""Curves with the kept epoch, examples of an epoch, and the words on epochs and on what fine-tuning has changed."""

import matplotlib.figure
import numpy as np
import pytest
from conftest import draw_nuclei, write_source
from PIL import Image

from data import curves
from data.pictures import outline_nuclei

HISTORY = [
    {"epoch": epoch, **dict.fromkeys(("accuracy", "dice", "loss", "val_accuracy", "val_dice", "val_loss"), epoch / 9)}
    for epoch in (1, 2, 3)
]


def test_the_curves_mark_the_kept_epoch_and_are_of_one_size(tmp_path, monkeypatch):
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *a, **k: [figures.append(figure), save(figure, *a, **k)]
    )
    curves.save_curves(HISTORY, 2, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["accuracy.png", "loss.png"]
    assert len({tuple(figure.get_size_inches()) for figure in figures}) == 1
    panels = [axes for figure in figures for axes in figure.axes]
    assert [axes.get_ylabel() for axes in panels] == ["accuracy", "Sørensen–Dice", "loss"]
    for axes in panels:
        training, validation, kept = axes.lines
        assert list(training.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3]
        assert list(kept.get_xdata()) == [2, 2]
        assert axes.get_xlabel() == "epoch"
        assert [text.get_text() for text in axes.get_legend().texts][2] == "epoch 2, kept"
    assert all("crops to train on are augmented" in figure.get_supxlabel() for figure in figures)


def make_record(kept_epoch, epochs, ids=("a",)):
    return {"kept": {"epoch": kept_epoch}, "options": {"epochs": epochs, "hold_out": None}, "validation_ids": ids}


def test_the_line_of_an_epoch_says_which_epoch_is_kept():
    history = [row | {"seconds": 2.5} for row in HISTORY]
    scores = "2.5 s, loss 0.3333, training Dice 0.3333, validation Dice 0.3333"
    assert curves.describe_epoch(history, make_record(3, 9)) == f"epoch 3/9: {scores}, kept"
    assert curves.describe_epoch(history, make_record(2, 9)) == f"epoch 3/9: {scores}, epoch 2 stays kept"
    assert curves.describe_epoch(history, make_record(3, 9, ids=())).endswith(", kept (the last until now)")


@pytest.mark.parametrize(
    ("dice", "kept"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5], "kept (the first of the last fifth)"),
        ([0.9, 0.8, 0.7, 0.6, 0.95], "kept"),
        ([0.9] * 8 + [0.5, 0.6], "kept (the best of the last fifth)"),
    ],
)
def test_the_line_of_an_epoch_says_why_one_of_a_lower_dice_is_kept(dice, kept):
    history = [HISTORY[0] | {"seconds": 1, "epoch": k, "val_dice": value} for k, value in enumerate(dice, start=1)]
    assert curves.describe_epoch(history, make_record(len(dice), len(dice))).endswith(f", {kept}")


def test_an_example_is_the_middle_of_an_image_with_truth_and_prediction(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_contact_sheet", lambda *sheet, **_: drawn.append(sheet))
    monkeypatch.setattr(curves, "EXAMPLE_SIDE", 40)
    image, truth = draw_nuclei((40, 61))
    example = curves.crop_example("a", np.stack([image] * 3, -1), image / np.float32(255), truth)
    np.testing.assert_array_equal(example.truth, truth[:, 10:50])
    np.testing.assert_array_equal(example.picture[..., 0], image[:, 10:50])
    assert example.gray.shape == (40, 40)
    half = np.where(example.truth <= 2, example.truth, 0)
    curves.save_examples([example], [half], 7, tmp_path)
    ((pictures, titles, file),) = drawn
    assert file == tmp_path / "examples.png"
    for picture, labels in zip(pictures, (np.zeros_like(truth[:, 10:50]), example.truth, half), strict=True):
        np.testing.assert_array_equal(picture, outline_nuclei(example.picture, labels))
    both = (half > 0).sum()
    dice = 2 * both / (both + (example.truth > 0).sum())
    assert titles == ["a", "truth, 4 nuclei", f"epoch 7, 2 nuclei, Dice {dice:.2f}"]


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ([0.1, 0.2, 0.1, 0.1, 0.2], "difference +0.1400 [+0.1000, +0.1800]: better than old.keras"),
        ([0.1, 0.11, 0.1], "difference +0.1033 [+0.0890, +0.1177]: better than old.keras"),
        ([0.1, 0.2, 0.1], "difference +0.1333 [-0.0101, +0.2768]: not shown to be better than old.keras"),
        ([0.3, -0.2, 0.2], "not shown to be better than old.keras"),
        ([-0.1, -0.2], "difference -0.1500 [-0.7853, +0.4853]: not shown to be better than old.keras"),
        ([0, 0], "difference +0.0000 [+0.0000, +0.0000]: not shown to be better than old.keras"),
        ([0.4], "difference +0.4000, without an interval, for which it takes two images: not shown to be better"),
    ],
)
def test_better_is_said_where_the_interval_of_the_paired_difference_lies_above_0(gains, words):
    before = np.array([0.1, 0.4, 0.3, 0.2, 0.5])[: len(gains)]
    compared = curves.compare_scores({"dice": before}, {"dice": before + gains})
    (line,) = curves.describe_change(compared, "old.keras")
    images = "1 validation image" if len(gains) == 1 else f"{len(gains)} validation images"
    assert line.startswith(f"Dice on {images}: {before.mean():.4f} before, {(before + gains).mean():.4f} after, ")
    assert words in line


def test_the_source_to_score_holds_validation_images_and_their_truth(tmp_path):
    image, labels = draw_nuclei()
    (tmp_path / "images").mkdir()
    (tmp_path / "nuclei/labels").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "images/a.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "nuclei/labels/a.tif")
    (tmp_path / "nuclei/source.json").write_text("{}")
    apart = [str(tmp_path / "images"), str(tmp_path / "nuclei")]
    assert curves.find_scorable(apart, ["a"]) is None
    other = str(write_source(tmp_path / "other", {"b": (image, labels)}))
    assert curves.find_scorable([*apart, other], ["b"]) == other
    assert curves.find_scorable([*apart, other], ["a"]) is None
