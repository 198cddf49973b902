"""Pastes nuclei of a crop again beside others, so that the network learns to separate nuclei that touch.

In:  gray (H, W) float32 in [0, 1] and labels (H, W) int32 of a crop, nuclei bright.
Out: the same with more nuclei; what was a nucleus stays that nucleus.
"""

import numpy as np
from scipy.ndimage import find_objects, gaussian_filter

MAX_PASTED = 8  # nuclei in a crop
MIN_PASTED_AREA = 40  # pixels; smaller nuclei are not pasted
MARGIN = 2  # pixels around a nucleus that are pasted with it, for its soft edge
EDGE_WIDTH = 0.7  # pixels, standard deviation of the filter that softens what is pasted
DISTANCES = (0.8, 1.15)  # distance of the two middles, times the sum of the two radii
MIN_FREE_SHARE = 0.7  # share of a pasted nucleus that lies on background; the rest lies behind others


def paste_nuclei(gray: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pastes up to MAX_PASTED nuclei again, turned, each at a place where it touches another or nearly so.

    Args:
        gray: (H, W) float32 in [0, 1].
        labels: (H, W) int32.
        rng: the only source of chance.

    Returns:
        gray (H, W) float32 and labels (H, W) int32; the new nuclei have the highest labels.
    """
    areas = np.bincount(labels.ravel())
    boxes = find_objects(labels)
    chosen = [
        label for label, box in enumerate(boxes, 1) if areas[label] >= MIN_PASTED_AREA and _is_inside(box, labels.shape)
    ]
    if not chosen:
        return gray, labels
    radii = np.sqrt(areas / np.pi)
    new_gray = gray.copy()
    new_labels = labels.copy()
    for _ in range(rng.integers(1, MAX_PASTED + 1)):
        label, neighbour = rng.choice(chosen, 2)
        patch, mask = _cut_out(gray, labels, boxes[label - 1], label, rng)
        direction = rng.uniform(0, 2 * np.pi)
        distance = (radii[label] + radii[neighbour]) * rng.uniform(*DISTANCES)
        middle = np.array([(side.start + side.stop) / 2 for side in boxes[neighbour - 1]])  # row, column
        centre = middle + distance * np.array([np.sin(direction), np.cos(direction)])
        if patch[mask].mean() > np.median(patch[~mask]):  # a nucleus darker than its margin would not be seen
            _paste(new_gray, new_labels, patch, mask, centre)
    return new_gray, new_labels


def _is_inside(box: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    """Whether a nucleus lies off the edge of the crop; at the edge it may be cut off."""
    return all(side.start > 0 and side.stop < length for side, length in zip(box, shape, strict=True))


def _cut_out(
    gray: np.ndarray, labels: np.ndarray, box: tuple[slice, slice], label: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gray float32 and mask bool of a nucleus with its margin, both (h, w), turned by quarters and perhaps flipped."""
    window = tuple(slice(max(side.start - MARGIN, 0), side.stop + MARGIN) for side in box)
    quarters = rng.integers(4)
    patch = np.rot90(gray[window], quarters)
    mask = np.rot90(labels[window] == label, quarters)
    if rng.random() < 0.5:
        return patch[::-1], mask[::-1]
    return patch, mask


def _paste(gray: np.ndarray, labels: np.ndarray, patch: np.ndarray, mask: np.ndarray, centre: np.ndarray) -> None:
    """Adds a nucleus, the patch and mask of `_cut_out`, to gray and labels around a centre (row, column).

    Nothing is added where it would reach beyond the crop, or less than MIN_FREE_SHARE of it lies on background.
    """
    start = np.round(centre - np.array(mask.shape) / 2).astype(int)
    stop = start + mask.shape
    if (start < 0).any() or (stop > labels.shape).any():
        return
    window = (slice(start[0], stop[0]), slice(start[1], stop[1]))
    is_free = mask & (labels[window] == 0)
    if is_free.sum() < MIN_FREE_SHARE * mask.sum():
        return
    opacity = gaussian_filter(mask.astype(np.float32), EDGE_WIDTH)
    before = gray[window]
    gray[window] = np.maximum(before, before + opacity * (patch - before))
    labels[window][is_free] = labels.max() + 1
