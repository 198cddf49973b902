"""Finds which images are tiles that were cut from one larger image.

In:  images (H, W) or (H, W, 3).
Out: a number for each image, the same for the tiles of one picture, which must not be split between
     training and validation.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.intensity import brightness

EDGE_DIFFERENCE = 0.5  # share of their standard deviation; facing edges of neighbouring tiles differ less
FLAT_VARIANCE = 1e-12  # an edge of less variance is constant, which proves nothing


def group_tiles(images: Sequence[np.ndarray]) -> np.ndarray:
    """Finds which images are tiles of one larger image, from the pixels of their facing edges.

    Equal images belong together. Two images of one size are neighbours where the last column (or row) of one and the
    first of the other are each other's best match, and their root mean square difference is less than EDGE_DIFFERENCE
    of their standard deviation: the facing edges of tiles that were cut from one image are one pixel apart.

    Args:
        images: N images, (H, W) or (H, W, 3).

    Returns:
        (N,) int, one number per group.
    """
    pairs = _find_copies(images)
    shapes = {}
    for index, image in enumerate(images):
        shapes.setdefault(image.shape[:2], []).append(index)
    for members in shapes.values():
        for axis in (0, 1):
            turned = [np.moveaxis(images[index], axis, 0) for index in members]
            last_lines = np.stack([brightness(image[[-1]]).ravel() for image in turned])  # (members, length)
            first_lines = np.stack([brightness(image[[0]]).ravel() for image in turned])
            for a, b in _match_edges(last_lines, first_lines):
                pairs.append((members[a], members[b]))
    links = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), tuple(links)), shape=(len(images), len(images)))
    return connected_components(graph, directed=False)[1]


def _find_copies(images: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs each image with the first one of the same brightness, often itself."""
    originals = {}
    pairs = []
    for index, image in enumerate(images):
        digest = hashlib.sha256(brightness(image).tobytes()).digest()
        original = originals.setdefault((image.shape[:2], digest), index)
        pairs.append((original, index))
    return pairs


def _match_edges(last_lines: np.ndarray, first_lines: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (a, b) where last line a and first line b, both (N, L), are each other's best match."""
    lasts = gaussian_filter1d(last_lines.astype(np.float64), 1, axis=1)  # less noise
    firsts = gaussian_filter1d(first_lines.astype(np.float64), 1, axis=1)
    # mean((a - b)²) = mean(a²) + mean(b²) - 2 mean(a b), of all pairs at once, (N, N)
    squares = (lasts**2).mean(axis=1)[:, None] + (firsts**2).mean(axis=1)
    squared_difference = squares - 2 * lasts @ firsts.T / lasts.shape[1]
    variance = np.outer(lasts.std(axis=1), firsts.std(axis=1))
    relative_square = np.maximum(squared_difference, 0) / np.maximum(variance, FLAT_VARIANCE)
    difference = np.sqrt(relative_square)  # in standard deviations
    difference[variance < FLAT_VARIANCE] = np.inf  # black on black proves nothing
    np.fill_diagonal(difference, np.inf)
    best_first = difference.argmin(axis=1)
    best_last = difference.argmin(axis=0)
    pairs = []
    for a, b in enumerate(best_first):
        if best_last[b] == a and difference[a, b] < EDGE_DIFFERENCE:
            pairs.append((a, b))
    return pairs
