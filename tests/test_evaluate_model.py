"""Scores against answers known by hand: five drawn nuclei, and small tables."""

import csv
import hashlib
import json
import os
import re

import numpy as np
import pytest
import scipy.stats
import skimage.io
import tifffile
from conftest import write_source
from skimage.draw import disk

import Evaluate_model
from data.files import UserError
from data.images import read_image
from data.outputs import save_submission
from data.predictions import find_predicted, read_predicted
from data.run_lengths import encode_run_lengths
from Preprocessed_data import image_kind

# Centres between pixels, so that a disk has two halves of exactly the same area.
CENTRES = ((15.5, 15.5), (15.5, 60.5), (40.5, 40.5), (65.5, 15.5), (65.5, 60.5))
SHAPE = (80, 90)
RADIUS = 10
SCORES = ("dice", "iou", "ap", "ap50", "f1_50", "f1_70")


def draw(centres=CENTRES):
    labels = np.zeros(SHAPE, np.int32)
    for number, centre in enumerate(centres, start=1):
        labels[disk(centre, RADIUS, shape=SHAPE)] = number
    return labels


def score(truth, predicted):
    return Evaluate_model.score_image(truth, predicted > 0, predicted)


def write_truths(folder, truths):
    """Writes id -> labels as a folder in Kaggle's layout; the image is the mask, dim on black."""
    images = {
        name: (np.dstack([np.where(labels > 0, 90, 8).astype(np.uint8)] * 3), labels) for name, labels in truths.items()
    }
    return write_source(folder, images)


def write_predictions(folder, predictions):
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for name, labels in predictions.items():
        save_mask(folder / "masks" / f"{name}.png", np.where(labels > 0, 255, 0).astype(np.uint8))
        save_labels(folder / "labels" / f"{name}.tif", labels.astype(np.uint16))
    return folder


def save_mask(file, pixels):
    skimage.io.imsave(file, pixels, check_contrast=False)


def save_labels(file, labels, description=None):
    """Writes a label file with this description; None: without any."""
    tifffile.imwrite(file, labels, description=description, metadata=None)


def describe(predicted, description):
    """Writes every label file anew with this description; None: without any."""
    for file in predicted.glob("labels/*.tif"):
        save_labels(file, tifffile.imread(file), description)


def without(labels, *numbers):
    return np.where(np.isin(labels, numbers), 0, labels)


@pytest.fixture
def case(tmp_path):
    """Three images: one perfect, one with a missed nucleus, one with nothing found."""
    truth = draw()
    truths = {name: truth for name in ("good", "missed", "nothing")}
    predicted = {"good": truth, "missed": without(truth, 3), "nothing": np.zeros_like(truth)}
    return write_truths(tmp_path / "truth", truths), write_predictions(tmp_path / "predicted", predicted)


# The images to score.


def test_evaluate_reads_masks_and_labels_apart(case):
    truth, predicted = case
    save_labels(predicted / "labels" / "good.tif", (draw() > 0).astype(np.uint16))
    rows, skipped = Evaluate_model.evaluate(truth, predicted)
    good = next(row for row in rows if row["id"] == "good")
    assert skipped == []
    assert (good["dice"], good["ap"], good["nuclei_predicted"]) == (1.0, 0.0, 1)


@pytest.mark.parametrize("name", ["masks/missed.png", "labels/missed.tif"])
def test_another_size_stops_with_both_shapes_and_the_file(case, name):
    if name.endswith("png"):
        save_mask(case[1] / name, np.zeros((80, 80), np.uint8))
    else:
        save_labels(case[1] / name, np.zeros((80, 80), np.uint16))
    message = f"{case[1] / name} is (80, 80) but the truth is (80, 90)"
    with pytest.raises(UserError, match=re.escape(message)):
        Evaluate_model.evaluate(*case)


def test_the_truth_may_be_label_pictures(tmp_path, capsys):
    (tmp_path / "truth").mkdir()
    for name in ("a", "b"):
        save_mask(tmp_path / "truth" / f"{name}.png", np.where(draw() > 0, 90, 8).astype(np.uint8))
        save_labels(tmp_path / f"truth/{name}_masks.tif", draw().astype(np.uint16))
    predicted = write_predictions(tmp_path / "predicted", {"a": draw(), "b": without(draw(), 3)})
    rows, _ = Evaluate_model.evaluate(tmp_path / "truth", predicted)
    assert [(row["id"], row["missed"]) for row in rows] == [("a", 0), ("b", 1)]
    assert "truth: label pictures\n" in capsys.readouterr().out


def test_images_without_any_truth_are_refused(tmp_path):
    source = write_truths(tmp_path / "truth", {"a": np.zeros(SHAPE, np.int32)})
    predicted = write_predictions(tmp_path / "predicted", {"a": draw()})
    with pytest.raises(UserError, match="no truth"):
        Evaluate_model.evaluate(source, predicted)


def test_the_solution_csv_is_a_truth_of_unknown_kind(tmp_path):
    truth = draw()
    solution = tmp_path / "stage1_solution.csv"
    with solution.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ImageId", "EncodedPixels", "Height", "Width", "Usage"])
        for text in encode_run_lengths(truth):
            writer.writerow(["a", text, *SHAPE, "Public"])
    predicted = write_predictions(tmp_path / "predicted", {"a": without(truth, 2)})
    rows, skipped = Evaluate_model.evaluate(solution, predicted)
    assert (len(rows), skipped, rows[0]["kind"]) == (1, [], "unknown")
    assert rows[0]["ap"] == pytest.approx(0.8)
    assert rows[0]["dice"] == pytest.approx(8 / 9)
    table = Evaluate_model.format_table(rows).splitlines()
    assert [line[:6] for line in table[:4]] == ["kind  ", "all   ", "", "mean ["]
    assert table[3].split()[-1] == "all"  # nothing tells its kind
    (predicted / "masks" / "a.png").unlink()
    with pytest.raises(UserError, match="python Predict_masks.py --data IMAGES --out"):
        Evaluate_model.evaluate(solution, predicted)


def test_ids_without_truth_and_no_ids_are_refused(case):
    with pytest.raises(UserError, match="2 of 3 ids not in .*, first absent"):
        Evaluate_model.evaluate(*case, ids=["good", "absent", "gone"])
    with pytest.raises(UserError, match="no image to score: 0 chosen"):
        Evaluate_model.evaluate(*case, ids=[])


def test_missing_predictions_name_how_many_the_first_and_the_command(case):
    truth, predicted = case
    (predicted / "labels" / "missed.tif").unlink()
    (predicted / "masks" / "nothing.png").unlink()
    with pytest.raises(UserError) as error:
        Evaluate_model.evaluate(truth, predicted)
    assert "2 of 3 images" in str(error.value) and "first missed;" in str(error.value)
    assert f"python Predict_masks.py --data {truth} --out {predicted}" in str(error.value)
    assert [row["id"] for row in Evaluate_model.evaluate(truth, predicted, ids=["good"])[0]] == ["good"]


def test_predictions_without_truth_are_ignored_in_one_line(case, capsys):
    write_predictions(case[1], {"spare": draw(), "other": draw()})
    rows, skipped = Evaluate_model.evaluate(*case)
    assert len(rows) == 3 and skipped == []
    assert capsys.readouterr().out.startswith("ignored 2 predictions")


# Provenance.


def provenance(digest="one", **settings):
    """The description that Predict_masks.py writes, of weights with this SHA-256."""
    known = {"nucleus_threshold": 0.45, "halving_diameters": [33, 80]}
    return json.dumps({"weights_sha256": digest, "settings": known | settings})


def test_predictions_of_images_that_needed_a_channel_are_scored_with_the_others(case):
    truth, predicted = case
    run = {"weights_sha256": "one", "settings": {}}
    describe(predicted, json.dumps(run | {"options": {"channel": None, "diameter": None}}))
    named = json.dumps(run | {"options": {"channel": "2", "diameter": None}})
    save_labels(predicted / "labels/missed.tif", draw().astype(np.uint16), named)
    assert len(Evaluate_model.evaluate(truth, predicted)[0]) == 3


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(provenance(digest="another"), id="weights"),
        pytest.param(provenance(nucleus_threshold=0.5), id="a number"),
        pytest.param(provenance(halving_diameters=[33, 81]), id="a number in a list"),
        pytest.param(provenance(min_area=20), id="one setting more"),
    ],
)
def test_predictions_of_other_weights_or_settings_are_not_scored_together(case, other):
    truth, predicted = case
    describe(predicted, provenance())
    assert len(Evaluate_model.evaluate(truth, predicted)[0]) == 3
    save_labels(predicted / "labels/missed.tif", draw().astype(np.uint16), other)
    with pytest.raises(UserError, match=r"good\.tif and .*missed\.tif are of other weights or settings"):
        Evaluate_model.evaluate(truth, predicted)
    assert len(Evaluate_model.evaluate(truth, predicted, ids=["good", "nothing"])[0]) == 2


def test_labels_of_several_images_are_scored_together(case):
    truth, predicted = case
    describe(predicted, provenance())
    other = json.loads(provenance()) | {"image": {"size": 7, "crc32": 1}}
    save_labels(predicted / "labels/missed.tif", draw().astype(np.uint16), json.dumps(other))
    assert len(Evaluate_model.evaluate(truth, predicted)[0]) == 3


def test_provenance_in_another_order_and_spacing_is_the_same(case):
    truth, predicted = case
    describe(predicted, provenance())
    content = json.loads(provenance())
    settings = dict(reversed(content["settings"].items()))
    turned = {"settings": settings, "weights_sha256": content["weights_sha256"]}
    text = json.dumps(turned, indent=2, separators=(" ,", " : "))
    assert text != provenance()
    save_labels(predicted / "labels/missed.tif", draw().astype(np.uint16), text)
    assert len(Evaluate_model.evaluate(truth, predicted)[0]) == 3


@pytest.mark.parametrize("description", [None, "ImageJ=1.54f\nunit=micron", "[1, 2]", "0.45", '"unet"'])
def test_label_files_of_another_program_say_nothing_of_their_weights(case, tmp_path, description):
    truth, predicted = case
    weights = tmp_path / "unet.keras"
    weights.write_bytes(b"weights")
    describe(predicted, description)
    assert len(Evaluate_model.evaluate(truth, predicted, weights=weights)[0]) == 3


def test_label_files_of_other_tools_may_have_several_sizes(tmp_path):
    """As Cellpose and StarDist write them, by tifffile's own ways: it describes their shape."""
    truths = {"high": draw()[:, :50], "wide": draw()[:40]}
    source = write_truths(tmp_path / "truth", truths)
    predicted = write_predictions(tmp_path / "predicted", truths)
    for name, labels in truths.items():
        tifffile.imwrite(predicted / "labels" / f"{name}.tif", labels.astype(np.uint16))
    rows, skipped = Evaluate_model.evaluate(source, predicted)
    assert ([row["ap"] for row in rows], skipped) == ([1.0, 1.0], [])


def test_predictions_of_other_weights_than_those_named_are_refused(case, tmp_path):
    weights = tmp_path / "unet.keras"
    weights.write_bytes(b"weights")
    describe(case[1], provenance(digest=hashlib.sha256(b"weights").hexdigest()))
    assert len(Evaluate_model.evaluate(*case, weights=weights)[0]) == 3
    weights.write_bytes(b"weights of a later training")
    with pytest.raises(UserError, match="not predicted with .*unet.keras"):
        Evaluate_model.evaluate(*case, weights=weights)


# Predictions that are none.


BROKEN = {
    "0 and 1": ("masks/missed.png", (draw() > 0).astype(np.uint8)),
    "three channels": ("masks/missed.png", np.full((*SHAPE, 3), 255, np.uint8)),
    "broken png": ("masks/missed.png", b"\x89PNG\r\n\x1a\n of which the rest is lost"),
    "not whole numbers": ("labels/missed.tif", np.ones(SHAPE, np.float32)),
    "negative numbers": ("labels/missed.tif", draw().astype(np.int16) - 1),
    "broken tif": ("labels/missed.tif", b"no picture"),
}


def break_prediction(folder, name, content):
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif name.endswith("png"):
        save_mask(folder / name, content)
    else:
        save_labels(folder / name, content)


def read_missed(case):
    return read_predicted(find_predicted(case[1])["missed"], "missed", SHAPE)


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_prediction_is_refused_by_its_file(case, way):
    name, content = BROKEN[way]
    mask, labels = read_missed(case)
    np.testing.assert_array_equal(labels, without(draw(), 3))
    np.testing.assert_array_equal(mask, labels > 0)
    break_prediction(case[1], name, content)
    with pytest.raises(UserError, match=re.escape(str(case[1] / name))):
        read_missed(case)


def test_labels_may_be_signed_where_none_is_negative(case):
    save_labels(case[1] / "labels/missed.tif", draw().astype(np.int16))
    _, labels = read_missed(case)
    np.testing.assert_array_equal(labels, draw())


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_prediction_is_named_and_skipped(case, capsys, way):
    name, content = BROKEN[way]
    break_prediction(case[1], name, content)
    rows, skipped = Evaluate_model.evaluate(*case)
    assert ([row["id"] for row in rows], skipped) == (["good", "nothing"], ["missed"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("skipped missed: ") and str(case[1] / name) in lines[0]
    with pytest.raises(UserError, match="no image to score: 1 chosen, 1 of them broken"):
        Evaluate_model.evaluate(*case, ids=["missed"])


# Predictions of other tools, and Kaggle's table.


def test_label_pictures_of_other_tools_and_kaggles_table_score_the_same(case, tmp_path):
    truth, predicted = case
    expected, _ = Evaluate_model.evaluate(truth, predicted)
    other = tmp_path / "other"
    other.mkdir()
    for name, file in (("good", "good.tif"), ("missed", "missed_cp_masks.png"), ("nothing", "nothing_label.tif")):
        skimage.io.imsave(other / file, 3 * read_image(predicted / f"labels/{name}.tif"), check_contrast=False)
    assert Evaluate_model.evaluate(truth, other) == (expected, [])
    table = save_submission(predicted, ["good", "missed", "nothing"])
    assert Evaluate_model.evaluate(truth, table) == (expected, [])


def test_two_label_pictures_of_one_image_are_refused(tmp_path):
    for file in ("a.tif", "a_masks.png"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"a_masks\.png.*both are labels of a"):
        find_predicted(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ImageId,Pixels\ngood,1 2\n", "expected a table with the columns ImageId,EncodedPixels"),
        (f"ImageId,EncodedPixels\ngood,{80 * 90} 2\n", "nucleus 1 of good: .*leaves the 80x90 image"),
    ],
)
def test_a_table_that_is_wrong_is_named(case, tmp_path, content, message, capsys):
    table = tmp_path / "table.csv"
    table.write_text(content)
    with pytest.raises(UserError) as told:
        Evaluate_model.evaluate(case[0], table, ["good"])
    assert re.search(message, str(told.value) + capsys.readouterr().err)


# Two predictions of the same images.


def test_the_difference_of_two_predictions_is_paired(case, tmp_path, capsys):
    truth, predicted = case
    truths = {name: draw() for name in ("good", "missed", "nothing")}
    perfect = write_predictions(tmp_path / "perfect", truths)
    rows, _ = Evaluate_model.evaluate(truth, perfect)
    others, _ = Evaluate_model.evaluate(truth, predicted)
    mean, low, high = Evaluate_model.compare(rows, others)["all"]["ap50"]
    assert mean == pytest.approx((0 + 1 / 5 + 1) / 3)
    sample = np.array([0, 1 / 5, 1])
    expected = scipy.stats.t.interval(0.95, 2, sample.mean(), scipy.stats.sem(sample))
    assert (low, high) == pytest.approx(expected) and low < 0 < 1 < high
    arguments = ["--truth", str(truth), "--predicted", str(perfect), "--compare"]
    Evaluate_model.main([*arguments, str(predicted)])
    printed = capsys.readouterr().out
    assert "AP is not shown to differ" in printed  # a resample may hold "good" alone
    assert f"\n{predicted}:\n{Evaluate_model.format_table(others)}\n" in printed
    Evaluate_model.main([*arguments, str(perfect)])
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["nowhere", "incomplete"])
def test_another_prediction_that_is_wrong_is_named_before_the_work(case, tmp_path, capsys, other):
    truth, predicted = case
    write_predictions(tmp_path / "incomplete", {"good": draw()})
    arguments = ["--truth", str(truth), "--predicted", str(predicted), "--compare", str(tmp_path / other)]
    with pytest.raises(UserError, match=rf"{other}: no such folder|2 of 3 images have no mask and labels in .*{other}"):
        Evaluate_model.main(arguments)
    assert capsys.readouterr().out == ""


def test_a_difference_that_all_images_share_is_told(tmp_path, capsys):
    truths = {name: draw() for name in "abcd"}
    truth = write_truths(tmp_path / "truth", truths)
    perfect = write_predictions(tmp_path / "perfect", truths)
    worse = write_predictions(tmp_path / "worse", {name: without(draw(), 1 + i) for i, name in enumerate("abcd")})
    Evaluate_model.main(["--truth", str(truth), "--predicted", str(worse), "--compare", str(perfect)])
    assert f"AP is lower than that of {perfect}" in capsys.readouterr().out


def test_a_broken_image_of_the_other_prediction_is_exit_code_1(case, tmp_path, capsys):
    truth, predicted = case
    other = write_predictions(tmp_path / "other", {name: draw() for name in ("good", "missed", "nothing")})
    arguments = ["--truth", str(truth), "--predicted", str(predicted), "--compare", str(other)]
    assert Evaluate_model.main(arguments) == 0
    (other / "masks/good.png").write_bytes(b"no picture")
    assert Evaluate_model.main(arguments) == 1
    assert "skipped good: " in capsys.readouterr().err


def test_predictions_without_an_image_in_common_are_not_compared():
    rows = rows_of(0.8, 0.9)
    others = [row | {"id": f"other {row['id']}"} for row in rows]
    with pytest.raises(UserError, match="no image is scored in both predictions"):
        Evaluate_model.compare(rows, others)


# Five nuclei, one thing wrong at a time.


def test_identical_nuclei_score_one():
    scores = score(draw(), draw())
    assert [scores[name] for name in SCORES] == [1.0] * 6
    assert (scores["nuclei_true"], scores["nuclei_predicted"]) == (5, 5)
    assert (scores["height"], scores["width"]) == SHAPE


def split_in_two():
    labels = draw()
    rows, columns = np.nonzero(labels == 3)
    labels[rows[columns > 40], columns[columns > 40]] = 6
    assert (labels == 3).sum() == (labels == 6).sum()  # so both halves have an IoU of exactly 0.5
    return labels


@pytest.mark.parametrize(
    ("predicted", "tp", "fp", "fn"),
    [
        pytest.param(without(draw(), 3), 4, 0, 1, id="one missing"),
        pytest.param(draw((*CENTRES, (15.5, 38.5))), 5, 1, 0, id="one extra"),
        pytest.param(split_in_two(), 4, 2, 1, id="one split in two"),
        pytest.param(np.where(draw() == 5, 4, draw()), 3, 1, 2, id="two merged in one"),
    ],
)
def test_one_mistake_among_five_nuclei(predicted, tp, fp, fn):
    """A half, and a pair merged in one, have an IoU of exactly 0.5: no match at 0.5."""
    scores = score(draw(), predicted)
    assert scores["ap_curve"] == pytest.approx([tp / (tp + fp + fn)] * 10)
    assert scores["ap"] == pytest.approx(tp / (tp + fp + fn))
    assert scores["ap50"] == pytest.approx(tp / (tp + fp + fn))
    assert scores["f1_50"] == scores["f1_70"] == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_a_shifted_nucleus_is_found_up_to_its_iou():
    predicted = draw((*CENTRES[:4], (65.5, 63.5)))  # the last one 3 pixels to the right
    truth = draw()
    both = ((truth == 5) & (predicted == 5)).sum()
    either = ((truth == 5) | (predicted == 5)).sum()
    assert 0.65 < both / either < 0.70
    scores = score(truth, predicted)
    # 5 of 5 at 0.50, 0.55, 0.60, 0.65; from 0.70 on four found, one invented, one missed.
    assert scores["ap_curve"] == pytest.approx([1.0] * 4 + [4 / 6] * 6)
    assert scores["ap"] == pytest.approx((4 * 1 + 6 * 4 / 6) / 10)
    assert (scores["ap50"], scores["f1_50"]) == (1.0, 1.0)
    assert scores["f1_70"] == pytest.approx(8 / 10)


# Four true nuclei of 20, 25, 20 and 10 pixels in one row. Of the first three 18, 18 and 12 pixels are predicted: IoU
# 0.9, 0.72 and 0.6. Two pieces of 5 pixels are false. The mask also covers the fourth, which has no label.
HAND_TRUTH = np.repeat([[1, 0, 2, 0, 3, 0, 4, 0]], [20, 1, 25, 1, 20, 1, 10, 12], axis=1)
HAND_LABELS = np.repeat([[1, 0, 2, 0, 3, 0, 4, 5]], [18, 3, 18, 8, 12, 21, 5, 5], axis=1)
HAND_SCORES = {
    "dice": 2 * 58 / (75 + 68),
    "iou": 58 / 85,
    "ap": (2 * 3 / 6 + 3 * 2 / 7 + 3 * 1 / 8) / 10,  # 0.6 is not found at 0.60, nor 0.9 at 0.90
    "ap50": 3 / 6,
    "f1_50": 6 / 9,
    "f1_70": 4 / 9,
    "ap75": 1 / 8,
    "precision": 3 / 5,
    "recall": 3 / 4,
    "pq": 0.74 * 6 / 9,
    "sq": (0.9 + 0.72 + 0.6) / 3,
    "rq": 6 / 9,  # is F1 at 0.5, by definition
    "aji": 48 / 85,
    "count_error": 1,
}


def score_hand():
    mask = (HAND_LABELS > 0) | (HAND_TRUTH == 4)
    return Evaluate_model.score_image(HAND_TRUTH, mask, HAND_LABELS)


def test_every_score_of_one_image_counted_by_hand():
    scores = score_hand()
    assert len({round(value, 3) for value in HAND_SCORES.values()}) == len(HAND_SCORES) - 1
    assert {name: scores[name] for name in Evaluate_model.SCORES} == pytest.approx(HAND_SCORES)
    assert [scores[name] for name in Evaluate_model.COUNTS] == [1, 2, 0, 0]


def test_label_numbers_and_order_do_not_matter():
    truth = draw()
    predicted = without(draw((*CENTRES[:4], (65.5, 63.5))), 1)
    other_truth = np.array([0, 31, 2, 17, 5, 900])[truth]
    other_predicted = np.array([0, 4, 77, 1, 3, 2])[predicted]
    plain = score(truth, predicted)
    assert score(other_truth, other_predicted) == plain
    assert 0 < plain["ap"] < 1


def test_empty_images():
    nothing = np.zeros(SHAPE, np.int32)
    for truth, predicted, answer in ((nothing, nothing, 1.0), (draw(), nothing, 0.0), (nothing, draw(), 0.0)):
        scores = score(truth, predicted)
        assert [scores[name] for name in SCORES] == [answer] * 6


# Summing up.


def rows_of(*dice, kind="fluorescence", pixels=(1, 2, 2)):
    """Rows as `evaluate` returns them, with the given Dice."""
    rest = {"height": 8, "width": 9, "nuclei_true": 3, "nuclei_predicted": 2, "iou": 0.25}
    scores = {"ap_curve": [0.5] * 10, "ap": 0.5, "ap50": 0.5, "f1_50": 0.75, "f1_70": 0.625}
    scores |= {"ap75": 0.5, "precision": 0.8, "recall": 0.9, "pq": 0.6, "sq": 0.8, "rq": 0.75, "aji": 0.7}
    scores |= {"count_error": -1, "missed": 1, "false": 0, "merged": 0, "split": 2}
    return [
        {"id": f"{kind}{i}", "kind": kind, "pixels": pixels, "dice": value, **rest, **scores}
        for i, value in enumerate(dice)
    ]


def test_mean_median_and_pooled_are_three_things():
    small = rows_of(1.0, 1.0, pixels=(10, 10, 10))
    large = rows_of(0.1, pixels=(100, 1000, 1000))
    assert Evaluate_model.summarise(small + large)["dice"][0] == pytest.approx(0.7)
    assert Evaluate_model.pooled_dice(small + large) == pytest.approx(2 * 120 / 2040)
    line = Evaluate_model.format_table(small + large).splitlines()[1]
    assert line.split()[-7:] == ["1.000", "0.118", "0.250", "0.500", "0.500", "0.750", "0.625"]


def test_every_score_has_its_interval_on_the_screen_and_in_the_file(tmp_path):
    rows = rows_of(0.8, 0.9, 1.0, 0.8, 0.9) + rows_of(0.6, kind="stained tissue")
    rows[0] |= {"aji": 0.1, "count_error": -9}
    Evaluate_model.save_scores(rows, tmp_path)
    with (tmp_path / "summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["score"] for line in lines] == 3 * Evaluate_model.SCORES
    other_columns = {"height", "width", "nuclei_true", "nuclei_predicted", "pixels", "ap_curve", *Evaluate_model.COUNTS}
    assert score(draw(), draw()).keys() - other_columns == set(Evaluate_model.SCORES)
    told = {(line["kind"], line["score"]): [line[name] for name in ("mean", "low", "high")] for line in lines}
    assert {line["kind"]: line["images"] for line in lines} == {"all": "6", "fluorescence": "5", "stained tissue": "1"}
    for kind, group in (("all", rows), ("fluorescence", rows[:5])):
        for name in ("dice", "aji", "count_error"):
            values = np.array([row[name] for row in group])
            assert list(map(float, told[kind, name])) == [values.mean(), *Evaluate_model.bootstrap_interval(values)]
    assert told["stained tissue", "aji"] == ["0.7", "", ""]
    printed = Evaluate_model.format_table(rows)
    for name in Evaluate_model.SCORES:
        digits = 1 if name == "count_error" else 3
        assert Evaluate_model.format_interval(*map(float, told["all", name]), digits=digits) in printed


def test_no_images_are_an_error_not_a_score():
    for function in (Evaluate_model.summarise, Evaluate_model.format_table):
        with pytest.raises(ValueError, match="no images to score"):
            function([])


def test_table_has_a_row_for_all_and_one_for_each_kind():
    rows = rows_of(0.8, 0.9, 1.0, 0.8, 0.9) + rows_of(0.6, kind="stained tissue")
    pixels, nuclei = Evaluate_model.format_table(rows).split("\n\n")
    lines = pixels.splitlines()
    assert len({len(line) for line in lines}) == 1
    for title in ("mean Dice [95 % interval]", "median Dice", "pooled Dice", "mean IoU"):
        assert title in lines[0]
    assert lines[0].split()[-4:] == ["AP", "AP50", "F1@0.5", "F1@0.7"]
    assert [line[:15].strip() for line in lines[1:]] == ["all", "fluorescence", "stained tissue"]
    assert [line[15:22].strip() for line in lines[1:]] == ["6", "5", "1"]
    low, high = Evaluate_model.bootstrap_interval(np.array([0.8, 0.9, 1.0, 0.8, 0.9, 0.6]))
    scores = "0.850 0.500 0.250 0.500 0.500 0.750 0.625"
    assert lines[1].split()[2:] == ["0.833", f"[{low:.3f},", f"{high:.3f}]", *scores.split()]
    assert "0.600 [few images]" in lines[3]
    lines = nuclei.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 120
    assert lines[0].split()[-4:] == ["all", "fluorescence", "stained", "tissue"]
    titles = "IoU AP AP50 F1@0.5 F1@0.7 AP75 precision recall PQ SQ RQ AJI count_error missed false merged split"
    assert [line.split()[0] for line in lines[1:]] == titles.split()
    assert lines[9].split() == ["PQ", *2 * ["0.600", "[0.600,", "0.600]"], "0.600", "[few", "images]"]
    assert lines[-1].split() == ["split", "12", "10", "2"]  # errors are sums


def test_each_printed_score_stands_in_its_own_column():
    perfect = score(HAND_TRUTH, HAND_TRUTH)
    rows = [{"id": str(i), "kind": "unknown", **scores} for i, scores in enumerate([score_hand(), perfect, perfect])]
    overview, nuclei = Evaluate_model.format_table(rows).split("\n\n")
    titles, line = overview.splitlines()
    means = {name: (value + 2) / 3 for name, value in HAND_SCORES.items()}
    means["count_error"] = 1 / 3
    pooled = 2 * (58 + 75 + 75) / (143 + 150 + 150)
    columns = {"median Dice": 1, "pooled Dice": pooled, "mean IoU": means["iou"], " AP ": means["ap"]}
    columns |= {"AP50": means["ap50"], "F1@0.5": means["f1_50"], "F1@0.7": means["f1_70"]}
    for title, value in columns.items():
        end = titles.index(title) + len(title.rstrip())
        assert line[:end].split()[-1] == f"{value:.3f}", title
    assert line.split()[2] == f"{means['dice']:.3f}"
    printed = dict(line.split()[:2] for line in nuclei.splitlines()[1:-4])
    assert printed == {
        title: f"{means[name]:.{1 if name == 'count_error' else 3}f}"
        for name, title in zip(HAND_SCORES, Evaluate_model.TITLES.values(), strict=True)
        if name != "dice"
    }


def test_scores_are_saved_with_the_worst_first(case, tmp_path, capsys):
    rows, skipped = Evaluate_model.evaluate(str(case[0]), str(case[1]))
    assert ([row["id"] for row in rows], skipped) == (["good", "missed", "nothing"], [])
    image = read_image(case[0] / "good" / "images" / "good.png")
    assert {row["kind"] for row in rows} == {image_kind(image)}
    out = tmp_path / "new" / "scores"
    Evaluate_model.save_scores(rows, out)
    assert sorted(os.listdir(out)) == ["scores.csv", "scores.png", "summary.csv"]
    assert f"summary.csv with the intervals of all scores, and scores.png to {out}\n" in capsys.readouterr().out
    with (out / "scores.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == Evaluate_model.SCORE_COLUMNS
    assert [line["id"] for line in lines] == ["nothing", "missed", "good"]
    # Five disks of the same size, four found: Dice 2 * 4 / (5 + 4), IoU 4 / 5.
    assert float(lines[1]["dice"]) == pytest.approx(8 / 9)
    assert float(lines[1]["iou"]) == float(lines[1]["ap"]) == pytest.approx(4 / 5)
    assert (lines[1]["nuclei_true"], lines[1]["nuclei_predicted"]) == ("5", "4")
    assert (lines[1]["height"], lines[1]["width"]) == ("80", "90")
    picture = skimage.io.imread(out / "scores.png")
    assert picture.shape[1] > 1000 and len(np.unique(picture)) > 50


def test_the_figure_shows_every_image_and_the_mean_curve_of_every_kind():
    rows = rows_of(0.8, 0.9, 1.0, 0.8, 0.9) + rows_of(0.6, kind="stained tissue")
    left, right = Evaluate_model.draw_scores(rows).axes
    drawn = [np.asarray(dots.get_offsets())[:, 0].tolist() for dots in left.collections]
    assert drawn == [[0.8, 0.9, 1.0, 0.8, 0.9, 0.6], [0.8, 0.9, 1.0, 0.8, 0.9], [0.6]]
    assert [line.get_ydata().tolist() for line in right.get_lines()] == [[0.5] * 10] * 3
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["all: 0.500", "fluorescence: 0.500", "stained tissue: 0.500"]


# The command line.


def test_only_the_validation_ids_of_a_record_are_scored(case, tmp_path, capsys):
    record = tmp_path / "training.json"
    record.write_text(json.dumps({"training_ids": ["nothing"], "validation_ids": ["missed", "good"]}))
    command = ["--truth", str(case[0]), "--predicted", str(case[1]), "--ids", str(record)]
    assert Evaluate_model.main(command) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["all", "2", "0.944"]
    assert (case[1] / "scores.csv").read_text().count("\n") == 3
    record.write_text("{}")
    with pytest.raises(UserError, match="training.json: expected"):
        Evaluate_model.main(command)


def test_the_ids_of_a_record_are_scored_with_its_own_weights(case, tmp_path):
    record = tmp_path / "training.json"
    record.write_text(json.dumps({"training_ids": [], "validation_ids": ["good"]}))
    (tmp_path / "unet.keras").write_bytes(b"weights")
    describe(case[1], provenance(digest="another"))
    with pytest.raises(UserError, match="not predicted with .*unet.keras"):
        Evaluate_model.main(["--truth", str(case[0]), "--predicted", str(case[1]), "--ids", str(record)])


def test_mistakes_of_the_command(mistake, tmp_path):
    arguments = "--truth", tmp_path / "none", "--predicted", tmp_path
    assert "none" in mistake("Evaluate_model.py", *arguments)


def test_a_broken_image_is_exit_code_1_and_the_rest_is_scored(case, tmp_path, run):
    (case[1] / "masks" / "good.png").write_bytes(b"no picture")
    folders = ("--truth", case[0], "--predicted", case[1], "--out", tmp_path / "out")
    answer = run("Evaluate_model.py", *folders)
    assert answer.returncode == 1
    assert answer.stderr.startswith("skipped good: ") and answer.stderr.count("\n") == 1
    assert answer.stdout.splitlines()[1].split()[:2] == ["all", "2"]
    assert sorted(os.listdir(tmp_path / "out")) == ["scores.csv", "scores.png", "summary.csv"]


def test_a_report_that_cannot_be_written_is_refused_before_the_work(case, tmp_path, capsys):
    truth, predicted = case
    table = save_submission(predicted, ["good", "missed", "nothing"])
    for source in (predicted, predicted / "labels", table):
        arguments = ["--truth", str(truth), "--predicted", str(source), "--out", str(tmp_path / "out"), "--report"]
        message = re.escape(f"{source}: the report needs the overlay and tables of good, which Predict_masks.py writes")
        with pytest.raises(UserError, match=message):
            Evaluate_model.main(arguments)
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_a_training_without_validation_images_cannot_be_scored_by_its_ids(case, tmp_path):
    record = tmp_path / "training.json"
    record.write_text(json.dumps({"training_ids": ["a"], "validation_ids": []}))
    with pytest.raises(UserError, match="no validation images"):
        Evaluate_model.main(["--truth", str(case[0]), "--predicted", str(case[1]), "--ids", str(record)])
