"""Scores of matched nuclei, against cases counted by hand and against plain loops over pixels."""

import numpy as np
import pytest

from data import matching


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
