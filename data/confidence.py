"""How sure a network is of each nucleus, which nuclei are kept, and the calibration that validation images choose.

In:  labels (H, W) and probabilities of nucleus and of border, of whole images or of strips from the top to the bottom.
Out: confidence (K,) float in [0, 1]; labels without the nuclei that are not wanted; a `Calibration`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array

from data.matching import THRESHOLDS, average_precision, dice_score, overlap_table, pair_overlaps, paired_difference
from data.nuclei import Calibration, keep_labels, separate_nuclei
from data.options import Limits
from data.scales import PredictionJob, drop_noise, finish_labels, is_noise

NUCLEUS_THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55)  # tried on validation images
SEED_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MIN_CONFIDENCES = (0.0, 0.1)  # of nuclei below 0.1 nine of ten are wrong; higher ones raise AP, but lower Dice
MAX_MEASURED_HALVINGS = 1  # of the validation images; at smaller sizes, of nuclei wider than 80 pixels, it is too low
MIN_FITTED = 50  # nuclei, of right and of wrong ones each; with fewer all nuclei get the same confidence
DIGITS = 2  # decimals of a confidence; later ones would change with the size of the batches
REGULARIZATION = 100  # inverse strength of the regularization of the logistic regression


class NucleusSums:
    """Sums over the pixels of each nucleus of an image that comes in strips."""

    def __init__(self, height: int):
        self.height = height  # rows of the whole image
        self.rows = 0  # rows added until now
        self.sums = np.zeros((3, 1))  # a column for each label: pixels, sum of nucleus, sum of border
        self.is_at_edge = np.zeros(1, bool)

    def add(self, labels: np.ndarray, nucleus: np.ndarray, border: np.ndarray) -> None:
        """Adds the next rows: labels (rows, W) int, probabilities (rows, W) float."""
        missing = max(int(labels.max(initial=0)) + 1 - len(self.is_at_edge), 0)
        self.sums = np.pad(self.sums, ((0, 0), (0, missing)))
        self.is_at_edge = np.pad(self.is_at_edge, (0, missing))
        numbers = labels.ravel()
        for total, weights in zip(self.sums, (None, nucleus.ravel(), border.ravel()), strict=True):
            total += np.bincount(numbers, weights, len(total))
        edges = [labels[:, 0], labels[:, -1]]
        if self.rows == 0:
            edges.append(labels[0])
        self.rows += len(labels)
        if self.rows == self.height:
            edges.append(labels[-1])
        self.is_at_edge[np.concatenate(edges)] = True

    def watch(self, strips: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yields the labels of pairs of labels (rows, W) and probabilities (2, rows, W), and adds them up."""
        for labels, probabilities in strips:
            self.add(labels, *probabilities)
            yield labels

    def means(self) -> np.ndarray:
        """(K, 2) float: of each nucleus the mean probability of nucleus and of border inside it."""
        return (self.sums[1:, 1:] / np.maximum(self.sums[0, 1:], 1)).T

    def find_kept(self, confidence: np.ndarray, limits: Limits) -> np.ndarray:
        """(K + 1,) bool, whether a number is within the limits; confidence is (K,) float, its limit a number."""
        areas = self.sums[0]
        is_kept = areas >= max(limits.min_area, 1)
        is_kept[1:] &= confidence >= limits.min_confidence
        if limits.max_area is not None:
            is_kept &= areas <= limits.max_area
        if limits.clear_border:
            is_kept &= ~self.is_at_edge
        is_kept[0] = False
        return is_kept


def score_confidence(means: np.ndarray, calibration: Calibration) -> np.ndarray:
    """The chance (K,) that a nucleus overlaps a true one by an IoU above 0.5, from its mean probabilities (K, 2).

    >>> score_confidence(np.array([[0.5, 0.0]]), Calibration(confidence=(-2.0, 4.0, -1.0)))
    array([0.5])
    """
    constant, *slopes = calibration.confidence
    confidence = 1 / (1 + np.exp(-(constant + means @ np.array(slopes))))
    return np.round(confidence, DIGITS)


def finish_nuclei(job: PredictionJob, calibration: Calibration, limits: Limits) -> np.ndarray:
    """Labels (H, W) int32, 1…K, of the nuclei of a job that are within the limits; sets its confidence."""
    return keep_nuclei(job, finish_labels(job), calibration, limits)


def keep_nuclei(job: PredictionJob, labels: np.ndarray, calibration: Calibration, limits: Limits) -> np.ndarray:
    """Labels (H, W) int32, 1…K, that were found for a job, without what is not within the limits; as `choose_kept`."""
    sums = NucleusSums(len(labels))
    sums.add(labels, *job.probabilities)
    return keep_labels(labels, choose_kept(job, sums, calibration, limits))


def choose_kept(job: PredictionJob, sums: NucleusSums, calibration: Calibration, limits: Limits) -> np.ndarray:
    """(K + 1,) bool, whether a number of a job's labels is within the limits; sets its confidence and `left_out_count`.

    Of a large image none is kept where they are noise, as `finish_labels` finds it of others.
    """
    confidence = score_confidence(sums.means(), calibration)
    if limits.min_confidence is None:
        is_measured = max(job.halvings, default=0) <= MAX_MEASURED_HALVINGS
        limits = replace(limits, min_confidence=calibration.min_confidence if is_measured else 0.0)
    is_kept = sums.find_kept(confidence, limits)
    job.left_out_count = int(np.count_nonzero(sums.sums[0, 1:]) - np.count_nonzero(is_kept))
    if job.strip_contrasts and is_noise(float(np.median(job.strip_contrasts)), len(confidence)):
        is_kept[:] = False
        job.left_out_count = 0  # of noise no nucleus counts as left out by a limit
    job.confidence = confidence[is_kept[1:]]
    return is_kept


def calibrate(
    jobs: Sequence[PredictionJob], truths: Sequence[np.ndarray], former: Calibration | None = None
) -> Calibration:
    """Chooses thresholds and fits the confidence, on validation images.

    The confidence of before stays where fewer than MIN_FITTED nuclei are right, or wrong.

    Args:
        jobs: the prediction of each image.
        truths: true labels (H, W) int of each image.
        former: calibration of the weights that a training started from; None: of random ones.
    """
    usual = former or Calibration()
    calibration = replace(usual, min_confidence=0.0)  # the confidence is fitted to all nuclei
    calibration = choose_threshold(jobs, truths, calibration, "nucleus_threshold", NUCLEUS_THRESHOLDS)
    calibration = choose_threshold(jobs, truths, calibration, "seed_threshold", SEED_THRESHOLDS)
    tables, means = match_images(jobs, truths, calibration)
    is_right = np.concatenate([find_right(table) for table in tables])
    if former is None or min(is_right.sum(), (~is_right).sum()) >= MIN_FITTED:
        calibration = replace(calibration, confidence=fit_confidence(np.concatenate(means), is_right))
    calibration = replace(calibration, min_confidence=usual.min_confidence)
    return choose_threshold(jobs, truths, calibration, "min_confidence", MIN_CONFIDENCES)


def choose_threshold(
    jobs: Sequence[PredictionJob], truths: Sequence[np.ndarray], calibration: Calibration, name: str, values: tuple
) -> Calibration:
    """The calibration with another value of one threshold, if that raises the mean AP of the images beyond chance.

    The 95 % interval of the paired difference must lie above 0.

    Args:
        jobs: as `calibrate`.
        truths: as `calibrate`.
        calibration: with the usual value.
        name: of the threshold.
        values: that are tried.
    """
    usual = getattr(calibration, name)
    scores = {}  # value -> AP (images,)
    for value in {*values, usual}:
        tables, _ = match_images(jobs, truths, replace(calibration, **{name: value}))
        scores[value] = np.array([average_precision(table) for table in tables])
    best = max(scores, key=lambda value: (scores[value].mean(), value == usual))
    _, low, _ = paired_difference(scores[best], scores[usual])
    return replace(calibration, **{name: best}) if low > 0 else calibration


def match_images(
    jobs: Sequence[PredictionJob], truths: Sequence[np.ndarray], calibration: Calibration
) -> tuple[list[coo_array], list[np.ndarray]]:
    """The `overlap_table` of each image, and the mean probabilities (K, 2) of its nuclei; arguments as `calibrate`."""
    tables = []
    means = []
    for job, truth in zip(jobs, truths, strict=True):
        labels = separate_job(job, calibration)
        sums = NucleusSums(len(labels))
        sums.add(labels, *job.probabilities)
        tables.append(overlap_table(truth, labels))
        means.append(sums.means())
    return tables, means


def score_jobs(
    jobs: Sequence[PredictionJob], truths: Sequence[np.ndarray], calibration: Calibration
) -> dict[str, np.ndarray]:
    """Dice and AP (images,) of predicted jobs against true labels (H, W): {"dice": …, "ap": …}."""
    dice = []
    precision = []
    for job, truth in zip(jobs, truths, strict=True):
        labels = separate_job(job, calibration)
        dice.append(dice_score(truth > 0, labels > 0))
        precision.append(average_precision(overlap_table(truth, labels)))
    return {"dice": np.array(dice), "ap": np.array(precision)}


def separate_job(job: PredictionJob, calibration: Calibration) -> np.ndarray:
    """Labels (H, W) int32 of a predicted job, as another calibration gives them."""
    labels = separate_nuclei(*job.probabilities, area_scale=job.area_scale, calibration=calibration)
    return keep_nuclei(job, drop_noise(job, labels), calibration, Limits())


def find_right(table: coo_array) -> np.ndarray:
    """(K,) bool: whether each predicted nucleus of an `overlap_table` overlaps a true one by an IoU above 0.5."""
    _, predicted, _, iou = pair_overlaps(table)
    is_right = np.zeros(table.shape[1], bool)
    is_right[predicted[iou > THRESHOLDS[0]]] = True
    return is_right[1:]


def fit_confidence(means: np.ndarray, is_right: np.ndarray) -> tuple[float, float, float]:
    """Coefficients of a logistic regression of `is_right` (K,) on `means` (K, 2).

    Where too few are known, only the first is not 0: each nucleus then gets the share of right ones, by Laplace's rule.
    """
    from sklearn.linear_model import LogisticRegression  # here, as only training fits it

    right = int(is_right.sum())
    wrong = len(is_right) - right
    if min(right, wrong) < MIN_FITTED:
        return math.log((right + 1) / (wrong + 1)), 0.0, 0.0
    fit = LogisticRegression(C=REGULARIZATION).fit(means, is_right)
    return float(fit.intercept_[0]), *fit.coef_[0].tolist()
