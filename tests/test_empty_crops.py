"""Crops without nuclei: noise, fibres and walls are what they are called."""

import numpy as np
import pytest
from scipy.ndimage import label
from skimage.feature import structure_tensor

from data import empty_crops

EMPTY_KINDS = ("draw_noise", "draw_fibres", "draw_walls")


def test_empty_crops_are_gray_without_nuclei_and_of_every_kind(monkeypatch):
    drawn = []

    def note(name):
        draw = getattr(empty_crops, name)
        monkeypatch.setattr(empty_crops, name, lambda size, rng: drawn.append(name) or draw(size, rng))

    for name in EMPTY_KINDS:
        note(name)
    for seed in range(60):
        gray, labels = empty_crops.draw_empty_crop(64, np.random.default_rng(seed))
        assert gray.shape == labels.shape == (64, 64)
        assert (gray.dtype, labels.dtype) == (np.float32, np.int32)
        assert not labels.any()
        assert 0 <= gray.min() < gray.max() - 0.3 and gray.max() <= 1
    assert len(drawn) == 60
    assert all(drawn.count(name) > 10 for name in EMPTY_KINDS)


def test_empty_crops_follow_from_the_generator_and_nothing_else():
    grays = [empty_crops.draw_empty_crop(64, np.random.default_rng(seed))[0] for seed in (*range(6), *range(6))]
    for first, again in zip(grays[:6], grays[6:], strict=True):
        np.testing.assert_array_equal(first, again)
    assert len({gray.tobytes() for gray in grays}) == 6


@pytest.mark.parametrize("fixed_edges", [False, True])
def test_an_empty_crop_is_normalized_and_then_changed_as_asked_for(monkeypatch, fixed_edges):
    calls = []
    monkeypatch.setattr(empty_crops, "change_intensity", lambda *arguments: calls.append(arguments) or "changed")
    rng = np.random.default_rng(0)
    gray, labels = empty_crops.draw_empty_crop(64, rng, fixed_edges)
    assert gray == "changed"
    ((normalized, *others),) = calls
    assert (normalized.min(), normalized.max()) == (0, 1)
    assert others[0] is labels and others[1:] == [rng, fixed_edges]


def measure_direction(gray):
    """The direction of the structure of a gray (H, W): 1 where all edges are parallel, 0 where none; and its angle."""
    rows, mixed, columns = (element.mean() for element in structure_tensor(gray, sigma=1, order="rc"))
    strength = np.hypot(rows - columns, 2 * mixed) / (rows + columns)
    return strength, np.arctan2(2 * mixed, rows - columns)  # twice the angle, for there is no forward


def test_fibres_have_one_direction_and_noise_has_none():
    strengths = {}
    angles = {}
    for draw in (empty_crops.draw_fibres, empty_crops.draw_noise):
        grays = [draw(256, np.random.default_rng(seed)) for seed in range(12)]
        assert all(gray.shape == (256, 256) and gray.dtype == np.float32 for gray in grays)
        strengths[draw], angles[draw] = np.transpose([measure_direction(gray) for gray in grays])
    # Measured of 30: from 0.72, and up to 0.13.
    assert strengths[empty_crops.draw_fibres].min() > 0.6
    assert strengths[empty_crops.draw_noise].max() < 0.3
    assert abs(np.exp(1j * angles[empty_crops.draw_fibres]).mean()) < 0.7  # which differs from draw to draw


def count_cells(walls):
    """How many pieces between the walls do not reach the edge of the crop."""
    cells, _ = label(walls < 0.3 * walls.max())
    edges = np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]])
    sizes = np.bincount(cells.ravel())
    sizes[0] = 0
    sizes[edges] = 0
    return int((sizes > 30).sum())


def test_walls_enclose_many_cells_and_more_where_they_are_small(monkeypatch):
    counts = {}
    for distance in (20, 60):
        monkeypatch.setattr(empty_crops, "CELL_DISTANCES", (distance, distance))
        walls = [empty_crops.draw_walls(256, np.random.default_rng(seed)) for seed in range(6)]
        assert all(gray.shape == (256, 256) and gray.dtype == np.float32 for gray in walls)
        counts[distance] = [count_cells(gray) for gray in walls]
    assert min(counts[20]) > 30
    assert np.mean(counts[20]) > 5 * np.mean(counts[60]) > 5
