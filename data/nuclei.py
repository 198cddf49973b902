"""Numbers the nuclei of the network's output, and measures them.

In:  probabilities of nucleus and of border, (H, W) float in [0, 1].
Out: labels (H, W) int32, 0 background, 1…K.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image, remove_small_holes
from skimage.segmentation import expand_labels, watershed

# Separation; all chosen on validation images, see weights/EXPERIMENTS.md.
# A network may have its own values of these three, see `Calibration`.
NUCLEUS_THRESHOLD = 0.45  # probability from which a pixel is nucleus
SEED_THRESHOLD = 0.5  # nucleus minus border probability, from which a pixel inside a nucleus is seed
# Logistic regression: intercept, weight of the mean nucleus probability, weight of the mean border probability.
CONFIDENCE_COEFFICIENTS = (-13.54, 17.43, -5.5)
# All networks share these.
MIN_SEED_AREA = 8  # pixels; smaller seeds are noise on the rim of a nucleus
MIN_AREA = 20  # pixels, a disk 5 pixels across; smaller pieces are noise
MAX_HOLE_AREA = 300  # pixels; a hole as large as a common nucleus is background
MAX_AREA_RATIO = 10  # times the area of the common nucleus; a larger piece is a vessel or a fibre
MERGED_AREA_RATIO = 0.8  # times the area of the common nucleus; two touching pieces that are larger stay two
MERGED_SOLIDITY = 0.9  # share of their convex hull from which two touching pieces are one; of two disks it is 0.88
# The ring around a nucleus that is its background.
RING_GAP = 2  # pixels between a nucleus and the ring
MIN_RING = 3  # pixels, width of the ring
MIN_DEVIATION = 1e-3  # least standard deviation of gray in a ring; keeps a flat one from a division by 0


@dataclass(frozen=True)
class Calibration:
    """What is fitted to one network on its validation images; one without uses those of an earlier network."""

    nucleus_threshold: float = NUCLEUS_THRESHOLD
    seed_threshold: float = SEED_THRESHOLD
    confidence: tuple[float, float, float] = CONFIDENCE_COEFFICIENTS
    min_confidence: float = 0.0  # nuclei of less are left out, unless the options say otherwise


def separate_nuclei(
    nucleus: np.ndarray,
    border: np.ndarray,
    max_area: float | None = None,
    area_scale: float = 1,
    calibration: Calibration = Calibration(),
) -> np.ndarray:
    """Numbers the nuclei; a watershed from seeds inside the borders separates touching ones.

    Args:
        nucleus: (H, W) float in [0, 1], of `predict_probability`.
        border: (H, W) float in [0, 1], of the same.
        max_area: largest area of a nucleus in pixels, from `largest_area`; None: it follows from these labels. It also
            limits what may be merged.
        area_scale: pixels of the image for one pixel at the scale of the prediction; limits of area grow with it.
        calibration: of the network.

    Returns:
        labels: (H, W) int32, 0 background, 1…K; each number is one connected piece of at least MIN_AREA pixels of the
        scale that was predicted at.
    """
    mask = nucleus > calibration.nucleus_threshold
    # Small holes are filled, but not small background at the edge of the image, which
    # remove_small_holes takes for a hole and binary_fill_holes does not: both must agree.
    without_holes = ndimage.binary_fill_holes(mask)
    mask = remove_small_holes(mask, max_size=int(MAX_HOLE_AREA * area_scale)) & without_holes
    seeds = find_seeds(mask, mask & (nucleus - border > calibration.seed_threshold), MIN_SEED_AREA * area_scale)
    # The watershed floods from the middle of each nucleus; floods meet on the border between two.
    labels = watershed(border - nucleus, seeds, mask=mask)
    if max_area is None:
        max_area = largest_area(labels)
    common_area = max_area / MAX_AREA_RATIO
    labels = merge_pieces(labels, MERGED_AREA_RATIO * common_area)
    return filter_by_area(labels, MIN_AREA * area_scale, max_area)


def find_seeds(mask: np.ndarray, inside: np.ndarray, min_area: float) -> np.ndarray:
    """Numbers one seed for each nucleus.

    Args:
        mask: (H, W) bool, nuclei.
        inside: (H, W) bool, nuclei without the borders between them.
        min_area: pixels; smaller seeds are noise.

    Returns:
        (H, W) int.
    """
    seeds = filter_by_area(ndimage.label(inside)[0], min_area)
    # A piece of the mask without a seed is one small nucleus: it is its own seed.
    pieces, count = ndimage.label(mask)
    has_seed = np.zeros(count + 1, bool)
    has_seed[pieces[seeds > 0]] = True
    own_seeds = pieces + seeds.max()
    seeds = np.where(has_seed[pieces], seeds, own_seeds)
    seeds[~mask] = 0
    return seeds


def merge_pieces(labels: np.ndarray, max_area: float) -> np.ndarray:
    """Gives two touching pieces one number where together they are small and convex: one nucleus that was parted.

    The network may see a border inside a nucleus of coarse texture. The most convex pairs come first; a piece is merged
    once.

    Args:
        labels: (H, W) int, 0 background, 1…K.
        max_area: pixels of both together at most.

    Returns:
        (H, W) int, with gaps where numbers are gone.
    """
    areas = np.bincount(labels.ravel())
    pairs = find_touching(labels)
    pairs = pairs[areas[pairs].sum(axis=1) <= max_area]
    boxes = ndimage.find_objects(labels) if len(pairs) else []
    convex = []
    for one, other in pairs:
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(boxes[one - 1], boxes[other - 1], strict=True)
        )
        together = np.isin(labels[box], (one, other))
        solidity = together.sum() / convex_hull_image(together).sum()
        if solidity > MERGED_SOLIDITY:
            convex.append((-solidity, one, other))
    numbers = np.arange(len(areas))
    is_merged = np.zeros(len(areas), bool)
    for _, one, other in sorted(convex):
        if not (is_merged[one] or is_merged[other]):
            is_merged[[one, other]] = True
            numbers[other] = one
    return numbers[labels]


def find_touching(labels: np.ndarray) -> np.ndarray:
    """The pairs of labels, (H, W) int, that share an edge of pixels: (N, 2) int, the smaller number first.

    >>> find_touching(np.array([[1, 1, 0], [2, 0, 3], [2, 3, 3]])).tolist()
    [[1, 2], [2, 3]]
    """
    pairs = []
    for before, after in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        is_contact = (before != after) & (before > 0) & (after > 0)
        pairs.append(np.stack([before[is_contact], after[is_contact]], axis=1))
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def filter_by_area(labels: np.ndarray, min_area: float, max_area: float = math.inf) -> np.ndarray:
    """Sets to 0 what has fewer or more pixels; the rest becomes 1…K without gaps, int32.

    >>> filter_by_area(np.array([0, 7, 3, 7, 2, 3, 5, 5, 5]), 2, 2).tolist()
    [0, 2, 1, 2, 0, 1, 0, 0, 0]
    """
    areas = np.bincount(labels.ravel())
    return keep_labels(labels, (areas >= min_area) & (areas <= max_area))


def keep_labels(labels: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """Labels without the numbers that `is_kept`, (largest number + 1,) bool, leaves out; the rest is 1…K, int32."""
    is_kept = is_kept.copy()
    is_kept[0] = False
    return np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)[labels]


def largest_area(labels: np.ndarray) -> float:
    """Pixels that a nucleus among these labels, (H, W) int, may have at most."""
    return MAX_AREA_RATIO * math.pi / 4 * common_diameter(labels) ** 2


def certainty(nucleus: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of the probability of nucleus from 0.5, doubled, inside of nuclei; in [0, 1], 0 without nuclei."""
    # One number for all labels; it is not the `confidence` of nuclei.csv, which each nucleus has of its own.
    inside = labels > 0
    return float(np.abs(2 * nucleus[inside] - 1).mean()) if inside.any() else 0.0


def local_contrast(gray: np.ndarray, labels: np.ndarray) -> float:
    """How far nuclei stand out: the median, over nuclei, of their signal in standard deviations of what is around.

    Args:
        gray: (H, W) float in [0, 1].
        labels: (H, W) int32.
    """
    width = max(common_diameter(labels) / 2, MIN_RING)
    rings = expand_labels(labels, RING_GAP + width)
    rings[expand_labels(labels, RING_GAP) > 0] = 0
    has_ring = np.bincount(rings.ravel()) >= MIN_AREA
    numbers = np.flatnonzero(has_ring[1:]) + 1
    if not len(numbers):
        return 0.0
    signal = ndimage.mean(gray, labels, numbers) - ndimage.mean(gray, rings, numbers)
    # SciPy divides by the pixels of every number up to the largest, so none may be missing.
    deviation = ndimage.standard_deviation(gray, keep_labels(rings, has_ring), np.arange(1, len(numbers) + 1))
    return float(np.median(signal / np.maximum(deviation, MIN_DEVIATION)))


def drop_covered(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Labels without those that mostly lie on a mask, (H, W) bool; the rest is 1…K without gaps."""
    areas = np.bincount(labels.ravel())
    covered = np.bincount(labels[mask], minlength=len(areas))
    return keep_labels(labels, covered <= areas / 2)


def common_diameter(labels: np.ndarray) -> float:
    """Median diameter of the nuclei in pixels, weighted by their area; 0 if there are none.

    The diameter of a nucleus is that of the disk of its area. The weight by area keeps small
    pieces, which are many where a nucleus falls apart, from counting as much as nuclei.

    >>> common_diameter(np.repeat([[0, 1, 2]], 100, axis=0)).__round__(3)
    11.284
    """
    areas = np.bincount(labels.ravel())[1:]
    areas = np.sort(areas[areas > 0])
    if not len(areas):
        return 0.0
    cumulative = np.cumsum(areas)
    median_area = areas[np.searchsorted(cumulative, cumulative[-1] / 2)]
    return diameter_of_disk(median_area)


def diameter_of_disk(area: float) -> float:
    """Diameter of the disk of an area, in pixels for an area in pixels."""
    return float(np.sqrt(4 / np.pi * area))
