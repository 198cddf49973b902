"""Confidence of nuclei, the filters of nuclei, and what is fitted on validation images."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT, Threshold, draw_disks, save_image
from sklearn.metrics import brier_score_loss

import Predict_masks
from data import nuclei
from data.confidence import NucleusSums, calibrate, fit_confidence, keep_nuclei, score_confidence, score_jobs
from data.files import UserError, hash_file
from data.images import read_image
from data.nuclei import Calibration
from data.options import Limits
from data.scales import PredictionJob
from data.tables import list_warnings
from Model import read_calibration

LABELS = np.array([[1, 1, 0, 0, 2], [0, 0, 0, 3, 0], [0, 0, 0, 3, 0], [0, 4, 0, 0, 0]])


def sum_in_strips(labels, nucleus, border, rows):
    sums = NucleusSums(len(labels))
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        sums.add(labels[part], nucleus[part], border[part])
    return sums


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_sums_of_strips_are_those_of_the_whole(rows):
    nucleus = LABELS / 10
    sums = sum_in_strips(LABELS, nucleus, 1 - nucleus, rows)
    np.testing.assert_allclose(sums.means(), [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    assert sums.sums[0].tolist() == [14, 2, 1, 2, 1]
    assert sums.is_at_edge[1:].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [1, 2, 3, 4]),
        ({"min_area": 2}, [1, 3]),
        ({"max_area": 1}, [2, 4]),
        ({"clear_border": True}, [3]),
        ({"min_confidence": 0.5}, [1, 4]),
    ],
)
def test_nuclei_outside_of_the_limits_are_left_out(limits, kept):
    sums = sum_in_strips(LABELS, LABELS, LABELS, 4)
    is_kept = sums.find_kept(np.array([0.5, 0.4, 0.1, 0.9]), Limits(**{"min_confidence": 0.0} | limits))
    assert np.flatnonzero(is_kept).tolist() == kept


def test_confidence_is_the_share_of_right_nuclei():
    rng = np.random.default_rng(0)
    means = rng.uniform(0, 1, (20_000, 2))
    chance = 1 / (1 + np.exp(-(-4 + 9 * means[:, 0] - 3 * means[:, 1])))
    is_right = rng.uniform(size=len(means)) < chance
    calibration = Calibration(confidence=fit_confidence(means, is_right))
    confidence = score_confidence(means, calibration)
    np.testing.assert_allclose(confidence, chance, atol=0.03)
    assert brier_score_loss(is_right, confidence) < brier_score_loss(is_right, np.full(len(means), is_right.mean()))


def test_with_few_nuclei_each_has_the_share_of_right_ones():
    calibration = Calibration(confidence=fit_confidence(np.zeros((58, 2)), np.arange(58) >= 11))
    assert score_confidence(np.array([[0.9, 0], [0.1, 0.8]]), calibration).tolist() == [0.8, 0.8]  # 48 of 60
    assert fit_confidence(np.zeros((0, 2)), np.zeros(0, bool)) == (0, 0, 0)  # 0.5


def answer_at(level):
    """Jobs of images whose nuclei have a probability of `level`, on a ground of 0.42, and their truths."""
    centres = [(20, 20), (20, 60), (60, 20), (60, 60)]
    truth = nuclei.separate_nuclei(draw_disks((80, 80), centres, 9), np.zeros((80, 80)))
    return [make_job(np.where(truth > 0, level, 0.42))] * 6, [truth] * 6


def make_job(nucleus):
    """A job at full size with these probabilities of nucleus, and no borders."""
    return PredictionJob(nucleus, probabilities=(nucleus, np.zeros_like(nucleus)), halvings=(0,))


def test_a_threshold_that_separates_better_is_chosen():
    assert calibrate(*answer_at(0.44)).nucleus_threshold == 0.45  # none of those tried lies between
    assert calibrate(*answer_at(0.54)).nucleus_threshold == 0.45  # the usual one is right
    jobs, truths = answer_at(0.6)
    bright_ground = make_job(np.where(jobs[0].gray == 0.42, 0.47, jobs[0].gray))
    assert calibrate([bright_ground] * 6, truths).nucleus_threshold in (0.5, 0.55)
    former = Calibration(nucleus_threshold=0.55, seed_threshold=0.6)
    chosen = calibrate([bright_ground] * 6, truths, former)
    assert (chosen.nucleus_threshold, chosen.seed_threshold) == (0.55, 0.6)


def test_a_threshold_that_is_better_by_chance_is_not_chosen():
    jobs, truths = answer_at(0.6)
    bright_ground = make_job(np.where(truths[0] > 0, 0.6, 0.47))
    assert calibrate([bright_ground] * 6, truths).nucleus_threshold > 0.45
    # Better on one image of six, the same on the others: the interval of the difference begins at 0.
    assert calibrate([bright_ground, *jobs[1:]], truths).nucleus_threshold == 0.45
    # Better on both of two images, by other amounts: two images tell nothing.
    half_ground = make_job(np.where(np.arange(80) < 40, jobs[0].gray, bright_ground.gray))
    assert calibrate([bright_ground, half_ground], truths[:2]).nucleus_threshold == 0.45


def test_too_few_nuclei_leave_the_confidence_of_before():
    jobs, truths = answer_at(0.6)  # 24 nuclei, all right
    former = Calibration(confidence=(-1.0, 2.0, -3.0))
    assert calibrate(jobs, truths, former).confidence == former.confidence
    assert calibrate(jobs, truths).confidence[1:] == (0, 0)


def test_nuclei_of_little_confidence_are_left_out_where_that_helps():
    centres = [(20, 20), (20, 60), (60, 20), (60, 60)]
    truth = nuclei.separate_nuclei(draw_disks((80, 80), centres, 9), np.zeros((80, 80)))
    fibres = draw_disks((80, 80), [(5, 40), (40, 5), (40, 75), (75, 40)], 3)
    jobs = [make_job(np.where(truth > 0, 0.9, np.where(fibres > 0, 0.6, 0.1)))] * 20
    calibration = calibrate(jobs, [truth] * 20)
    assert calibration.min_confidence == 0.1
    assert calibrate([make_job(np.where(truth > 0, 0.9, 0.1))] * 20, [truth] * 20).min_confidence == 0
    # Prediction leaves out what calibration left out, unless the options keep it.
    counts = [keep_nuclei(jobs[0], separate_all(jobs[0]), calibration, Limits(least)).max() for least in (None, 0.0, 1)]
    assert counts == [4, 8, 0]
    # The confidence of very wide nuclei is not known: it leaves none out.
    jobs[0].halvings = (0, 1, 2)
    assert keep_nuclei(jobs[0], separate_all(jobs[0]), calibration, Limits()).max() == 8
    assert list_warnings({"label": [1]}, jobs[0]) == ["very wide nuclei"]
    jobs[0].halvings = (0, 1)
    assert list_warnings({"label": [1]}, jobs[0]) == []
    assert score_jobs(jobs[:1], [truth], calibration)["ap"].tolist() == [1]
    # A training that starts from such weights keeps what it cannot judge.
    assert calibrate(jobs[:1], [truth], calibration) == calibration


def test_of_noise_no_nucleus_counts_as_left_out():
    job = make_job(draw_disks((80, 80), [(20, 20), (60, 60)], 9))
    job.strip_contrasts.append(0.1)
    assert keep_nuclei(job, separate_all(job), Calibration(), Limits(min_area=1000)).max() == 0
    assert job.left_out_count == 0
    job.strip_contrasts.clear()
    keep_nuclei(job, separate_all(job), Calibration(), Limits(min_area=1000))
    assert job.left_out_count == 2


def separate_all(job):
    """Labels of a job before any is left out."""
    return nuclei.separate_nuclei(*job.probabilities)


def test_weights_bring_their_calibration(tmp_path):
    weights = tmp_path / "unet.keras"
    shutil.copy(ROOT / "weights/unet.keras", weights)
    assert read_calibration(weights) == Calibration()
    record = {"training_ids": [], "validation_ids": []}
    fitted = {"nucleus_threshold": 0.55, "seed_threshold": 0.6, "confidence": [0, 1, 2], "min_confidence": 0.3}
    record["calibration"] = fitted | {"weights_sha256": hash_file(weights)}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert read_calibration(weights) == Calibration(0.55, 0.6, (0, 1, 2), 0.3)
    assert Predict_masks.load_unet(weights).calibration == Calibration(0.55, 0.6, (0, 1, 2), 0.3)
    assert Predict_masks.describe_provenance(weights)["calibration"] == fitted
    record["calibration"]["weights_sha256"] = "of other weights"
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert read_calibration(weights) == Calibration()


def test_the_network_separates_with_its_own_threshold():
    gray = draw_disks((80, 80), [(40, 40)], 15) * np.float32(0.5)
    network = Threshold()
    assert Predict_masks.find_nuclei(network, gray)[0].max() == 1
    network.calibration = Calibration(nucleus_threshold=0.55)
    assert Predict_masks.find_nuclei(network, gray)[0].max() == 0


def test_a_large_image_is_filtered_like_a_small_one(tmp_path, monkeypatch):
    centres = [(40, 3), (60, 60), (700, 90), (1100, 100), (560, 40)]
    image = np.maximum(draw_disks((1150, 160), centres, 11), draw_disks((1150, 160), [(300, 80)], 5))
    save_image(tmp_path / "images/a.png", np.uint8(255 * image))
    options = Predict_masks.PredictionOptions(min_area=150, clear_border=True)
    samples = Predict_masks.find_samples(tmp_path / "images")
    found = []
    for limit in (2**30, 1):
        monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", limit)
        out = tmp_path / str(limit)
        Predict_masks.predict_samples(samples, Threshold(), out, {"weights_sha256": "0"}, options)
        labels = read_image(out / "labels/a.tif")
        table = np.genfromtxt(out / "tables/a.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
        assert table["label"].tolist() == [1, 2, 3, 4]
        found.append((labels, table["confidence"]))
        mask = read_image(next((out / "masks").iterdir()))
        np.testing.assert_array_equal(mask > 0, labels > 0)
        assert json.loads((out / "tables/a.json").read_text())["left_out"] == 2
    assert found[0][0].max() == found[1][0].max() == 4
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize(
    "words", [("--min-confidence", "1.5"), ("--min-area", "-1"), ("--max-area", "5", "--min-area", "9")]
)
def test_limits_that_make_no_sense_are_refused(tmp_path, words):
    with pytest.raises(UserError, match="must be"):
        Predict_masks.main(["--data", str(ROOT / "data/sample"), "--out", str(tmp_path), *words])
