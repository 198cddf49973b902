"""Nuclei that are pasted beside others, on drawn nuclei whose answer is known."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from skimage.draw import disk

from data import crowding

SHAPE = (96, 96)


def draw_disks(*disks, background=0.1, brightness=0.9):
    """gray and labels of disks (row, column, radius), which are numbered from 1."""
    gray = np.full(SHAPE, background, np.float32)
    labels = np.zeros(SHAPE, np.int32)
    for label, (row, column, radius) in enumerate(disks, 1):
        where = disk((row, column), radius, shape=SHAPE)
        gray[where] = brightness
        labels[where] = label
    return gray, labels


def test_pasted_nuclei_are_seen_and_keep_those_that_were_there():
    gray, labels = draw_disks((48, 48, 10), (20, 70, 8))
    before = gray.copy(), labels.copy()
    added = 0
    for seed in range(20):
        new_gray, new_labels = crowding.paste_nuclei(gray, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_labels[labels > 0], labels[labels > 0])
        pasted = new_labels > 2
        assert new_gray.dtype == np.float32
        assert new_labels.dtype == np.int32
        assert set(np.unique(new_labels)) == set(range(new_labels.max() + 1))
        assert 2 <= new_labels.max() <= 2 + crowding.MAX_PASTED
        if pasted.any():
            # Its rim is softened: most of it is brighter than the middle between nucleus and background.
            assert (new_gray[pasted] > 0.5).mean() > 0.85
        np.testing.assert_array_equal(
            new_gray[~binary_dilation(pasted, iterations=4)], gray[~binary_dilation(pasted, iterations=4)]
        )
        added += new_labels.max() - 2
    assert added > 40
    np.testing.assert_array_equal(gray, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_most_pasted_nuclei_touch_their_neighbour():
    gray, labels = draw_disks((48, 48, 12))
    close = 0
    total = 0
    for seed in range(40):
        _, new_labels = crowding.paste_nuclei(gray, labels, np.random.default_rng(seed))
        for label in range(2, new_labels.max() + 1):
            pasted = new_labels == label
            others = (new_labels > 0) & ~pasted
            close += (binary_dilation(pasted, iterations=2) & others).any()
            total += 1
    assert total > 40
    assert close > 0.6 * total


@pytest.mark.parametrize(
    "disks",
    [
        [],  # nothing there
        [(48, 48, 2)],  # too small
        [(2, 48, 10)],  # cut off at the edge
    ],
    ids=["no nucleus", "small", "cut off"],
)
def test_a_crop_without_a_whole_nucleus_stays_as_it_is(disks):
    gray, labels = draw_disks(*disks)
    for seed in range(5):
        new_gray, new_labels = crowding.paste_nuclei(gray, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_gray, gray)
        np.testing.assert_array_equal(new_labels, labels)


def test_nuclei_that_are_not_seen_are_not_pasted():
    gray, labels = draw_disks((48, 48, 10), background=0.5, brightness=0.4)
    for seed in range(10):
        _, new_labels = crowding.paste_nuclei(gray, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_labels, labels)


def test_a_pasted_nucleus_lies_behind_others_and_mostly_on_background():
    gray, labels = draw_disks((48, 48, 10), (48, 70, 10))
    sizes = []
    for seed in range(40):
        _, new_labels = crowding.paste_nuclei(gray, labels, np.random.default_rng(seed))
        sizes += [(new_labels == label).sum() for label in range(3, new_labels.max() + 1)]
    whole = (labels == 1).sum()
    assert min(sizes) >= crowding.MIN_FREE_SHARE * whole
    assert max(sizes) == whole
    assert len(set(sizes)) > 1
