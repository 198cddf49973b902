"""Measures the shapes of many nuclei at once: ellipses, perimeters, convex hulls, as scikit-image does one by one.

In:  the pixels of nuclei: to which nucleus each belongs, its row and its column.
Out: (K,) for K nuclei, in pixels.
"""

import math

import numpy as np

# Length of the perimeter at a border pixel -> values of 1 + 2 * border pixels at its sides + 10 * those at its corners.
PERIMETER_CODES = {1: (5, 7, 15, 17, 25, 27), math.sqrt(2): (21, 33), (1 + math.sqrt(2)) / 2: (13, 23)}
FAR = 2**40  # a column beyond all images


def measure_ellipses(
    nuclei: np.ndarray, rows: np.ndarray, columns: np.ndarray, area: np.ndarray, box: np.ndarray, top: int
) -> dict[str, np.ndarray]:
    """Centroid, and the ellipse with the same second moments, of each nucleus: name of a column -> (K,) float.

    Args:
        nuclei, rows, columns: (pixels,) int.
        area: (K,) int, pixels.
        box: (4, K) int, of `count_hull_pixels`.
        top: row of the image where the rows are counted from.
    """
    # Within the box of a nucleus the sums of coordinates are exact in float64.
    y = (rows - box[0, nuclei]).astype(np.float64)
    x = (columns - box[1, nuclei]).astype(np.float64)
    sum_y = np.bincount(nuclei, y, len(area))
    sum_x = np.bincount(nuclei, x, len(area))
    sum_yy = np.bincount(nuclei, y * y, len(area))
    sum_xx = np.bincount(nuclei, x * x, len(area))
    sum_xy = np.bincount(nuclei, x * y, len(area))
    # Central second moments times area ** 2, which are whole numbers.
    yy = area * sum_yy - sum_y**2
    xx = area * sum_xx - sum_x**2
    xy = area * sum_xy - sum_y * sum_x
    root = np.hypot(yy - xx, 2 * xy)
    major = (yy + xx + root) / 2
    # As the determinant over the major one, the minor moment of a straight line is 0.
    minor = np.maximum(yy * xx - xy**2, 0) / np.maximum(major, 1)
    orientation = 0.5 * np.arctan2(2 * xy, yy - xx)
    orientation[yy == xx] = np.where(xy > 0, math.pi / 4, -math.pi / 4)[yy == xx]  # as scikit-image has it
    return {
        "centroid_row_px": sum_y / area + (box[0] + top),
        "centroid_column_px": sum_x / area + box[1],
        "axis_major_length_px": 4 * np.sqrt(major) / area,
        "axis_minor_length_px": 4 * np.sqrt(minor) / area,
        "eccentricity": np.sqrt(np.maximum(1 - minor / np.maximum(major, 1), 0) * (major > 0)),
        "orientation_rad": orientation,
    }


def measure_perimeters(framed: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """Perimeters (count,) in pixels, of labels (H, W) with a frame of 0, and the flat positions of their pixels.

    Source: K. Benkrid, D. Crookes, Design and FPGA Implementation of a Perimeter Estimator, with the weights of
    `skimage.measure.perimeter`.
    """
    line = framed.shape[1]
    sides = (-line, -1, 1, line)
    corners = (-line - 1, -line + 1, line - 1, line + 1)
    labels = framed.ravel()
    is_border = np.zeros(len(positions), bool)
    for step in sides:
        is_border |= labels[positions + step] != labels[positions]
    positions = positions[is_border]
    nuclei = labels[positions]
    borders = np.zeros_like(labels)
    borders[positions] = nuclei
    codes = 1 + 2 * sum(borders[positions + step] == nuclei for step in sides)
    codes += 10 * sum(borders[positions + step] == nuclei for step in corners)
    perimeters = np.zeros(count)
    for length, chosen in PERIMETER_CODES.items():
        perimeters += length * np.bincount(nuclei[np.isin(codes, chosen)] - 1, minlength=count)
    return perimeters


def count_hull_pixels(nuclei: np.ndarray, rows: np.ndarray, columns: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Pixels (K,) in the convex hull of each nucleus, as `area_convex` of scikit-image.

    The hull is that of the middles of the four sides of each pixel. All hulls are found at once, in whole numbers: the
    left and the right side of a hull are each a chain of corners from its top to its bottom.

    Args:
        nuclei, rows, columns: (pixels,) int, row by row.
        box: (4, K) int, first row and column, and those after the last.
    """
    heights = box[2] - box[0]
    starts = np.cumsum(heights) - heights
    rows = starts[nuclei] + rows - box[0, nuclei]  # rows of all nuclei below each other
    left = np.full(heights.sum(), FAR)
    left[rows[::-1]] = columns[::-1]  # where several pixels lie in a row, the last that is assigned counts
    right = np.full(heights.sum(), -FAR)
    right[rows] = columns
    # The last column of the hull is minus the first one of its mirror image.
    pixels = 1 - find_chains(left, heights) - find_chains(-right, heights)
    owners = np.repeat(np.arange(len(heights)), heights)
    return np.bincount(owners, pixels, len(heights)).astype(np.int64)


def find_chains(left: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The first column (rows,) int of the hull in each row of each nucleus.

    Args:
        left: (rows,) int, first column of the nucleus; FAR in a row without pixels, between its pieces.
        heights: (K,) int, rows of each nucleus.

    The rows of a nucleus begin at the columns 3, 3 and 0. The hull runs straight from 2.5, the left side of the first
    pixel, to -0.5, that of the last: in the second row it begins at column 1.

    >>> find_chains(np.array([3, 3, 0]), np.array([3])).tolist()
    [3, 1, 0]
    """
    owners = np.repeat(np.arange(len(heights)), heights)
    # Points in half pixels. A chain has a point above, in and below each row; the one between two rows is shared.
    middle = 2 * np.arange(len(left)) + owners + 1
    x = np.full(2 * len(left) + len(heights), FAR)
    x[middle] = 2 * left - 1
    for end in (middle - 1, middle + 1):
        x[end] = np.minimum(x[end], 2 * left)
    points = np.stack([x, np.arange(len(x)), np.repeat(np.arange(len(heights)), 2 * heights + 1)])
    is_corner = x < FAR
    count = -1
    while count != is_corner.sum():  # a point that is left out may make its neighbours no corners
        points = points[:, is_corner]
        count = points.shape[1]
        x, y, nuclei = points
        # A point that is not left of the line between its neighbours is no corner of the hull.
        turns = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) - (x[2:] - x[:-2]) * (y[1:-1] - y[:-2])
        is_corner = np.ones(count, bool)
        is_corner[1:-1] = (turns < 0) | (nuclei[:-2] != nuclei[2:])
    # In the middle of a row the chain runs at x = crossing / length, in half pixels.
    before = np.searchsorted(y, middle, side="right") - 1
    after = before + 1
    length = y[after] - y[before]
    crossing = x[before] * length + (x[after] - x[before]) * (middle - y[before])
    return -(-crossing // (2 * length))  # in pixels, rounded up
