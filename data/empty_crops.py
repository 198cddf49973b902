"""Draws crops without nuclei from chance alone: smoothed noise, fibres, walls of cells.

In:  the side of the crop and a generator of random numbers; no image.
Out: gray (size, size) float32 in [0, 1] and labels (size, size) int32, all 0.
"""

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from data.augment import Crop, change_intensity, draw_log_uniform
from data.intensity import normalize, percentile_range

NOISE_WIDTHS = (0.3, 12)  # standard deviation in pixels of the filter that smooths noise
FIBRE_WIDTHS = (1, 4)  # standard deviation in pixels across a fibre
FIBRE_LENGTH = 12  # times its width
CELL_DISTANCES = (20, 120)  # pixels between the middles of cells
WALL_WIDTHS = (1, 4)  # pixels, half the width of a cell's wall
SOFTNESS = 0.7  # pixels, standard deviation of the filter that softens fibres and walls


def draw_empty_crop(size: int, rng: np.random.Generator, fixed_edges: bool = False) -> Crop:
    """Draws a crop without nuclei: smoothed noise, fibres, or the walls of fat cells.

    Args:
        size: side of the crop in pixels.
        rng: the only source of chance.
        fixed_edges: of `draw_crop`.

    Returns:
        gray (size, size) float32 in [0, 1] and labels (size, size) int32, all 0.
    """
    draw = (draw_noise, draw_fibres, draw_walls)[rng.integers(3)]
    gray = draw(size, rng)
    gray = normalize(gray, *percentile_range(gray))
    labels = np.zeros((size, size), np.int32)
    return change_intensity(gray, labels, rng, fixed_edges), labels


def draw_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of one width, (size, size) float32; coarse noise looks like haze, fine noise like grain."""
    return gaussian_filter(rng.standard_normal((size, size), np.float32), draw_log_uniform(rng, NOISE_WIDTHS))


def draw_fibres(size: int, rng: np.random.Generator) -> np.ndarray:
    """Fibres of about one direction that wind, as in connective tissue, (size, size) float32."""
    width = draw_log_uniform(rng, FIBRE_WIDTHS)
    side = 2 * size  # so that turning and winding leave no gap
    fibres = gaussian_filter(rng.standard_normal((side, side), np.float32), (width, FIBRE_LENGTH * width))
    fibres /= fibres.std()
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:size, :size] - size / 2
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    wave_length = rng.uniform(size / 3, 2 * size)
    across += rng.uniform(0, wave_length / 12) * np.sin(2 * np.pi * along / wave_length)
    row_indices = np.clip(across + size, 0, side - 1).astype(int)
    column_indices = np.clip(along + size, 0, side - 1).astype(int)
    density = fibres[row_indices, column_indices] - rng.uniform(-1, 1)  # above 0 where there is a fibre
    return gaussian_filter(np.maximum(density, 0), SOFTNESS)


def draw_walls(size: int, rng: np.random.Generator) -> np.ndarray:
    """Thin walls between large empty cells, as in fat, (size, size) float32."""
    distance = draw_log_uniform(rng, CELL_DISTANCES)
    # Cells lie in a square half as wide again as the crop, so that its edges look like its middle.
    count = max(int((1.5 * size / distance) ** 2), 4)
    cells = KDTree(rng.uniform(-size / 4, 1.25 * size, (count, 2)))
    pixels = np.indices((size, size)).reshape(2, -1).T  # (size * size, 2)
    distances, _ = cells.query(pixels, 2)  # from each pixel to the two nearest cells
    to_wall = (distances[:, 1] - distances[:, 0]).reshape(size, size).astype(np.float32) / 2
    walls = np.exp(-((to_wall / rng.uniform(*WALL_WIDTHS)) ** 2))
    return gaussian_filter(walls, SOFTNESS)
