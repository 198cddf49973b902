"""Scores predicted pixels, and matches true and predicted nuclei and scores the matches.

In:  masks (H, W) bool or labels (H, W) of the truth and of a prediction.
Out: Dice and IoU; an overlap table, counted once, and the scores of nuclei that are taken from it; intervals.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.stats import t
from skimage.metrics import contingency_table
from skimage.segmentation import relabel_sequential

# Kaggle's 0.50, 0.55, ... 0.95. n / 100 is the double nearest to the decimal, as is an IoU of that
# value, so the two are equal; np.linspace(0.5, 0.95, 10) would hold 0.8999999999999999 for 0.9.
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
SCORE_NAMES = {"dice": "Dice", "ap": "AP"}  # of the scores that a training and a report show
RESAMPLES = 2000  # bootstrap resamples of the images
MIN_RESAMPLED = 5  # images; the interval of a bootstrap of fewer is far too narrow
BOOTSTRAP_SEED = 2018  # same scores, same interval


def dice_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Sørensen–Dice, `2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())`.

    Of two (H, W) bool masks; in [0, 1]; 1 if both are empty, 0 if one is.

    >>> dice_score(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    both, true, predicted_pixels = count_pixels(truth, predicted)
    return ratio(2 * both, true + predicted_pixels)


def iou_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union, `(truth & predicted).sum() / (truth | predicted).sum()`; as Dice.

    >>> iou_score(np.array([True, True, True, False]), np.array([False, True, True, True]))
    0.5
    """
    both, true, predicted_pixels = count_pixels(truth, predicted)
    return ratio(both, true + predicted_pixels - both)


def count_pixels(truth: np.ndarray, predicted: np.ndarray) -> tuple[int, int, int]:
    """Returns the pixels in both masks, in the true one and in the predicted one."""
    check_same_shape(truth, predicted)
    if truth.dtype != bool or predicted.dtype != bool:
        raise ValueError(f"masks should be bool, got {truth.dtype} and {predicted.dtype}")
    return int((truth & predicted).sum()), int(truth.sum()), int(predicted.sum())


def overlap_table(truth_labels: np.ndarray, predicted_labels: np.ndarray) -> coo_array:
    """Counts the pixels of every pair of a true and a predicted nucleus, background included.

    Args:
        truth_labels: (H, W) integers, 0 background, K nuclei in any order.
        predicted_labels: (H, W) integers, P nuclei likewise.

    Returns:
        (K + 1, P + 1) sparse integers, pixels; row 0 and column 0 are the background.

    >>> overlap_table(np.array([0, 1, 1, 7]), np.array([0, 0, 3, 3])).toarray().tolist()
    [[1, 0], [1, 1], [0, 1]]
    """
    check_same_shape(truth_labels, predicted_labels)
    truth = relabel_sequential(truth_labels)[0]  # gaps would make rows of nothing
    predicted = relabel_sequential(predicted_labels)[0]
    return coo_array(contingency_table(truth, predicted, sparse_type="array").astype(int))


def count_matches(table: np.ndarray | coo_array, threshold: float) -> tuple[int, int, int]:
    """Returns TP, FP, FN: nuclei found, invented and missed, from an `overlap_table`.

    A pair matches if its IoU is greater than the threshold (Kaggle's rule: exactly 0.5 is no match
    at 0.5). From 0.5 on it shares more than half of both nuclei, so neither has another match.

    >>> count_matches(np.array([[0, 0, 0], [1, 9, 0], [5, 0, 5]]), 0.5)  # IoU 0.9, exactly 0.5
    (1, 1, 1)
    """
    if threshold < 0.5:
        raise ValueError(f"expected an IoU threshold of at least 0.5, got {threshold}")
    matches = int((pair_overlaps(table)[-1] > threshold).sum())
    return matches, table.shape[1] - 1 - matches, table.shape[0] - 1 - matches


def average_precision(table: np.ndarray | coo_array, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """AP of one image: the mean over IoU thresholds of `TP / (TP + FP + FN)`; 1 without nuclei.

    >>> average_precision(np.array([[0, 0], [3, 7]]))  # IoU 0.7: found at 0.50, 0.55, 0.60, 0.65
    0.4
    """
    counts = [count_matches(table, threshold) for threshold in thresholds]
    return float(np.mean([ratio(tp, tp + fp + fn) for tp, fp, fn in counts]))


def f1_score(table: np.ndarray | coo_array, threshold: float) -> float:
    """F1 of the nuclei of one image, `2 * TP / (2 * TP + FP + FN)`; 1 without any nuclei.

    >>> round(f1_score(np.array([[0, 0], [1, 9], [5, 0]]), 0.5), 3)  # one found, one missed
    0.667
    """
    tp, fp, fn = count_matches(table, threshold)
    return ratio(2 * tp, 2 * tp + fp + fn)


def panoptic_quality(table: np.ndarray | coo_array) -> tuple[float, float, float]:
    """PQ, SQ and RQ of one image, each 1 without any nuclei.

    SQ is the mean IoU of the matches at 0.5, RQ the F1 there, PQ their product. Source: Kirillov et al., "Panoptic
    Segmentation", 2019.

    >>> panoptic_quality(np.array([[0, 0, 4], [1, 9, 0]]))  # IoU 0.9 and one false
    (0.6, 0.9, 0.6666666666666666)
    """
    *_, iou = pair_overlaps(table)
    matched = iou[iou > THRESHOLDS[0]]
    recognition = f1_score(table, THRESHOLDS[0])
    if not len(matched):
        return recognition, recognition, recognition  # 1 where nothing is, else 0
    segmentation = float(matched.mean())
    return segmentation * recognition, segmentation, recognition


def aggregated_jaccard(table: np.ndarray | coo_array) -> float:
    """AJI of one image, in [0, 1]; 1 without any nuclei.

    Each true nucleus is taken with the predicted one of the highest IoU; predicted ones that are taken by none count as
    false. Source: Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational
    Pathology", 2017.

    >>> aggregated_jaccard(np.array([[0, 0, 4], [1, 9, 0]]))  # 9 of 10 pixels, and 4 that are false
    0.6428571428571429
    """
    true_areas = table.sum(axis=1)
    predicted_areas = table.sum(axis=0)
    true, predicted, shared, iou = pair_overlaps(table)
    order = np.lexsort((predicted, -iou, true))
    _, starts = np.unique(true[order], return_index=True)
    best = order[starts]  # of each true nucleus with an overlap
    is_taken = np.zeros(len(predicted_areas), bool)
    is_taken[predicted[best]] = True
    is_overlapped = np.zeros(len(true_areas), bool)
    is_overlapped[true[best]] = True
    both = shared[best].sum()
    union = (true_areas[true[best]] + predicted_areas[predicted[best]]).sum() - both
    union += true_areas[1:][~is_overlapped[1:]].sum() + predicted_areas[1:][~is_taken[1:]].sum()
    return float(ratio(both, union))


def count_errors(table: np.ndarray | coo_array) -> dict[str, int]:
    """How many nuclei of one image are missed, false, merged or split.

    Missed: true nuclei of which predicted ones cover less than half. False: predicted ones, likewise. Merged: predicted
    ones that hold more than half of two true ones or more. Split: true ones that hold more than half of two or more.

    >>> count_errors(np.array([[0, 0, 5], [0, 9, 0], [0, 8, 0], [6, 0, 0]]))
    {'missed': 1, 'false': 1, 'merged': 1, 'split': 0}
    """
    return {name: int(is_error.sum()) for name, is_error in find_errors(table).items()}


def find_errors(table: np.ndarray | coo_array) -> dict[str, np.ndarray]:
    """Which nuclei `count_errors` counts.

    Returns:
        "missed" and "split" are (K + 1,) bool, by the rows of the table; "false" and "merged" (P + 1,), by its columns.
    """
    true_areas = table.sum(axis=1)
    predicted_areas = table.sum(axis=0)
    true, predicted, shared, _ = pair_overlaps(table)
    covered_of_true = np.bincount(true, shared, len(true_areas))  # pixels
    covered_of_predicted = np.bincount(predicted, shared, len(predicted_areas))
    # How many true nuclei each predicted one holds more than half of, and the other way round.
    true_held = np.bincount(predicted[shared > true_areas[true] / 2], minlength=len(predicted_areas))
    predicted_held = np.bincount(true[shared > predicted_areas[predicted] / 2], minlength=len(true_areas))
    errors = {
        "missed": covered_of_true < true_areas / 2,
        "false": covered_of_predicted < predicted_areas / 2,
        "merged": true_held >= 2,
        "split": predicted_held >= 2,
    }
    for is_error in errors.values():
        is_error[0] = False  # the background
    return errors


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of (N,) scores; nan if N is below MIN_RESAMPLED."""
    if len(values) < MIN_RESAMPLED:
        return np.nan, np.nan
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(len(values), size=(RESAMPLES, len(values)))
    return tuple(np.percentile(values[draws].mean(axis=1), (2.5, 97.5)))


def paired_difference(scores: Sequence[float], other_scores: Sequence[float]) -> tuple[float, float, float]:
    """The mean of scores minus other scores, both (N,) of the same N images, and its 95 % interval.

    It is the `bootstrap_interval`; of fewer images that of Student's t, which is wide; nan if N is 1.

    >>> mean, low, high = paired_difference([0.5, 0.7], [0.4, 0.5])
    >>> f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    '0.15 [-0.49, 0.79]'
    """
    differences = np.array(scores) - np.array(other_scores)
    count = len(differences)
    mean = differences.mean()
    if 1 < count < MIN_RESAMPLED:
        half_width = t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
        return mean, mean - half_width, mean + half_width
    return mean, *bootstrap_interval(differences)


def pair_overlaps(table: np.ndarray | coo_array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a true and a predicted nucleus that share pixels.

    Returns:
        row of the true one, column of the predicted one, pixels in common, and IoU of each pair, all (pairs,).
    """
    table = coo_array(table)
    true, predicted = table.coords
    is_pair = (true > 0) & (predicted > 0) & (table.data > 0)
    union = table.sum(axis=1)[true] + table.sum(axis=0)[predicted] - table.data
    return true[is_pair], predicted[is_pair], table.data[is_pair], table.data[is_pair] / union[is_pair]


def check_same_shape(truth: np.ndarray, predicted: np.ndarray) -> None:
    """Raises a ValueError that names both shapes where they differ."""
    if truth.shape != predicted.shape:
        raise ValueError(f"prediction is {predicted.shape} but the truth is {truth.shape}")


def ratio(part: int, whole: int) -> float:
    """Returns part / whole, and 1 where the whole is 0."""
    return part / whole if whole else 1.0  # nothing was to be found and nothing was
