"""Scores of pixels and of matched nuclei, against cases counted by hand, plain loops over pixels and scikit-learn."""

import re

import numpy as np
import pytest
from sklearn import metrics

from data import matching

# Dice and IoU.


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_dice_and_iou_equal_scikit_learn(share):
    rng = np.random.default_rng(0)
    truth = rng.random((40, 50)) < share
    predicted = rng.random((40, 50)) < 0.4
    dice = metrics.f1_score(truth.ravel(), predicted.ravel())
    iou = metrics.jaccard_score(truth.ravel(), predicted.ravel())
    assert matching.dice_score(truth, predicted) == pytest.approx(dice)
    assert matching.iou_score(truth, predicted) == pytest.approx(iou)
    assert iou == pytest.approx(dice / (2 - dice))


def test_probabilities_and_other_sizes_are_refused():
    mask = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match="bool, got bool and float64"):
        matching.dice_score(mask, mask * 0.3)
    for shape in ((5, 4), (1, 5)):  # the second would broadcast
        message = re.escape(f"prediction is {shape} but the truth is (4, 5)")
        with pytest.raises(ValueError, match=message):
            matching.iou_score(mask, np.ones(shape, bool))
        with pytest.raises(ValueError, match=message):
            matching.overlap_table(mask.astype(int), np.ones(shape, int))


# The overlap table.


def test_overlap_table_equals_a_double_loop():
    truth = np.random.default_rng(1).integers(0, 7, (30, 40))
    predicted = np.random.default_rng(2).integers(0, 5, (30, 40))
    expected = [[int(((truth == i) & (predicted == j)).sum()) for j in range(5)] for i in range(7)]
    assert matching.overlap_table(truth, predicted).toarray().tolist() == expected


def test_overlap_table_without_background_or_with_gaps():
    truth = np.array([[4, 4, 900]])
    predicted = np.array([[70000, 2, 2]], np.uint32)
    expected = [[0, 0, 0], [0, 1, 1], [0, 1, 0]]
    assert matching.overlap_table(truth, predicted).toarray().tolist() == expected


@pytest.mark.parametrize("percent", range(50, 100, 5))
def test_an_iou_of_exactly_the_threshold_is_no_match(percent):
    table = np.array([[0, 0], [100 - percent, percent]])
    assert matching.count_matches(table, percent / 100) == (0, 1, 1)
    assert matching.average_precision(table) == pytest.approx((percent - 50) / 50)
    table = np.array([[0, 0], [10**6 - percent * 10**4 - 1, percent * 10**4 + 1]])
    assert matching.count_matches(table, percent / 100) == (1, 0, 0)


def test_thresholds_below_one_half_are_refused():
    with pytest.raises(ValueError, match="at least 0.5, got 0.3"):
        matching.count_matches(np.array([[0, 0], [0, 9]]), 0.3)


# Scores of nuclei.


def score(truth, predicted):
    table = matching.overlap_table(np.array(truth), np.array(predicted))
    return matching.panoptic_quality(table), matching.aggregated_jaccard(table), matching.count_errors(table)


def errors(missed=0, false=0, merged=0, split=0):
    return {"missed": missed, "false": false, "merged": merged, "split": split}


@pytest.mark.parametrize(
    ("truth", "predicted", "quality", "jaccard", "counts"),
    [
        ([1, 1, 0, 2, 2], [5, 5, 0, 9, 9], (1, 1, 1), 1, errors()),
        ([0, 0, 0], [0, 0, 0], (1, 1, 1), 1, errors()),
        ([0, 1, 1], [0, 0, 0], (0, 0, 0), 0, errors(missed=1)),
        ([0, 0, 0], [0, 1, 1], (0, 0, 0), 0, errors(false=1)),
        # One of four pixels missing: IoU 3/4; one false nucleus of two pixels.
        ([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 2, 2], (0.5, 0.75, 2 / 3), 3 / 6, errors(false=1)),
        # Two true nuclei in one: IoU 1/2 is no match. AJI takes it twice: (2 + 2) / (4 + 4).
        ([1, 1, 2, 2], [1, 1, 1, 1], (0, 0, 0), 0.5, errors(merged=1)),
        # One true nucleus in two: 2 of 4 pixels, and the other two are of a nucleus that nobody took.
        ([1, 1, 1, 1], [1, 1, 2, 2], (0, 0, 0), 2 / 6, errors(split=1)),
        # Exactly half is covered: neither missed nor false, and nothing is merged or split.
        ([1, 1, 1, 1], [1, 1, 0, 0], (0, 0, 0), 2 / 4, errors()),
        ([1, 1, 0, 0], [1, 1, 1, 1], (0, 0, 0), 2 / 4, errors()),
        ([1, 1, 2, 2], [0, 3, 3, 0], (0, 0, 0), (1 + 1) / (3 + 3), errors()),
        ([0, 3, 3, 0], [1, 1, 2, 2], (0, 0, 0), 1 / (3 + 2), errors()),
    ],
)
def test_cases_counted_by_hand(truth, predicted, quality, jaccard, counts):
    (pq, sq, rq), aji, found = score(truth, predicted)
    assert (pq, sq, rq) == pytest.approx(quality)
    assert aji == pytest.approx(jaccard)
    assert found == counts


def numbers_of(labels):
    return [number for number in np.unique(labels) if number]


def reference(truth, predicted):
    """PQ, AJI and errors by plain loops over masks."""
    true_masks = [truth == number for number in numbers_of(truth)]
    predicted_masks = [predicted == number for number in numbers_of(predicted)]
    iou = np.array([[(t & p).sum() / (t | p).sum() for p in predicted_masks] for t in true_masks])
    matched = iou[iou > 0.5]
    pq = matched.sum() / ((len(true_masks) + len(predicted_masks)) / 2)
    taken = set()
    both = union = 0
    for index, true in enumerate(true_masks):
        best = int(iou[index].argmax())
        if iou[index, best] == 0:
            union += true.sum()
            continue
        taken.add(best)
        both += (true & predicted_masks[best]).sum()
        union += (true | predicted_masks[best]).sum()
    union += sum(mask.sum() for index, mask in enumerate(predicted_masks) if index not in taken)
    counts = errors(
        missed=sum((t & (predicted > 0)).sum() < t.sum() / 2 for t in true_masks),
        false=sum((p & (truth > 0)).sum() < p.sum() / 2 for p in predicted_masks),
        merged=sum(sum((t & p).sum() > t.sum() / 2 for t in true_masks) >= 2 for p in predicted_masks),
        split=sum(sum((t & p).sum() > p.sum() / 2 for p in predicted_masks) >= 2 for t in true_masks),
    )
    return pq, both / union, counts


@pytest.mark.parametrize("seed", range(30))
def test_random_labels_score_as_by_plain_loops(seed):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 7, (4, 5)), np.ones((3, 3), int))
    predicted = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 7, truth.shape), truth)
    predicted = np.array([0, 1, 1, 3, 4, 5, 6])[predicted] if seed % 2 else predicted  # two merged
    (pq, _, _), aji, counts = score(truth, predicted)
    expected_pq, expected_aji, expected_counts = reference(truth, predicted)
    assert pq == pytest.approx(expected_pq)
    assert aji == pytest.approx(expected_aji)
    assert counts == expected_counts


# Intervals.


def test_the_interval_is_reproducible_and_as_wide_as_theory_says():
    values = np.random.default_rng(3).uniform(0.5, 1, 200)
    low, high = matching.bootstrap_interval(values)
    assert (low, high) == matching.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.1)


def test_a_paired_difference_does_not_hold_what_images_have_in_common():
    other = np.random.default_rng(3).uniform(0, 1, 50)
    mean, low, high = matching.paired_difference(list(other + 0.01), list(other))
    assert (mean, low, high) == pytest.approx((0.01, 0.01, 0.01))
    assert np.isnan(matching.paired_difference([0.5], [0.25])).tolist() == [False, True, True]
