"""The scripts of tools/ that make the figures and pictures of the documents: each runs, and measures what it says."""

import numpy as np
import pytest
from conftest import draw_nuclei
from scipy import ndimage

from data import make_sample
from data.matching import count_matches, dice_score, overlap_table
from data.nuclei import common_diameter
from tests.tools import benchmark, draw_pictures, learning_curve, reliability, robustness, scale_curve


@pytest.fixture
def nuclei():
    """A gray image of 8 bits and its labels: many nuclei."""
    rng = np.random.default_rng(make_sample.SEED)
    shapes = make_sample.place_nuclei(rng, (256, 256), 40, 8, aspect=1.2, clumping=0)
    filled = make_sample.fill_nuclei(rng, *shapes, texture=0.1, grain=1.5)
    image = make_sample.fluoresce(rng, filled, peak=90, background=6, blur=1.2)
    return image.round().clip(0, 255).astype(np.uint8), shapes[0]


@pytest.mark.parametrize("name", draw_pictures.FAILINGS)
def test_every_kind_that_fails_can_be_drawn(name):
    image, labels = draw_pictures.FAILINGS[name](np.random.default_rng(make_sample.SEED))
    assert image.shape[:2] == labels.shape == draw_pictures.SIZE and labels.max() > 3
    nuclei = image[labels > 0].mean()
    assert abs(nuclei - image[labels == 0].mean()) > 10  # gray levels: they can be seen


def test_confidence_is_cross_validated_over_images():
    rng = np.random.default_rng(0)
    means = np.stack([rng.uniform(0.5, 1, 4000), rng.uniform(0, 0.5, 4000)], axis=1)
    chance = 1 / (1 + np.exp(-(20 * means[:, 0] - 15 - 4 * means[:, 1])))
    confidence = reliability.cross_validate(means, rng.random(4000) < chance, np.arange(4000) // 100)
    assert np.abs(confidence - chance).mean() < 0.02


def test_the_part_of_an_image_is_the_same_at_every_diameter(nuclei):
    image, labels = nuclei
    part = scale_curve.cut_part(image, labels)
    side = round(scale_curve.ACROSS * common_diameter(labels))
    assert part[0].shape == part[1].shape == (min(side, 256),) * 2
    middle = (np.array(part[1].shape) - 1) // 2
    near = part[1][middle[0] - 8 : middle[0] + 8, middle[1] - 8 : middle[1] + 8]
    assert near.any()
    enlarged = scale_curve.rescale(*part, 3)
    assert set(np.unique(enlarged[1])) == set(np.unique(part[1]))
    assert common_diameter(enlarged[1]) == pytest.approx(3 * common_diameter(part[1]), rel=0.02)


def test_drawn_disks_have_the_diameter():
    for diameter, count in ((6, 9), (48, 9), (128, 4)):
        image, labels = scale_curve.draw_disks(diameter)
        assert labels.max() == count and image.dtype == np.uint16
        assert common_diameter(labels) == pytest.approx(diameter, rel=0.05)


def test_disturbances_leave_the_nuclei_where_they_are(nuclei):
    image, labels = nuclei
    for disturbed, is_picture in robustness.disturb(image, labels, 0).values():
        picture = np.ones(labels.shape, bool) if is_picture is None else is_picture
        assert disturbed.shape[:2] == labels.shape and picture.mean() > 0.5
        gray = ndimage.median_filter(disturbed if disturbed.ndim == 2 else disturbed[..., 2], 5).astype(float)
        assert np.median(gray[picture & (labels > 0)]) > np.median(gray[picture & (labels == 0)]) + 20  # gray levels
        assert robustness.count_inside(labels, is_picture) <= labels.max()


def test_images_of_few_pictures_are_split_and_ordered_by_picture():
    groups = np.repeat(np.arange(12), 4)
    test, others = learning_curve.split_test(groups)
    assert test and not set(groups[test]) & set(groups[others])
    ordered = learning_curve.order_images(others, groups, seed=1)
    pictures = len(set(groups[others]))
    assert sorted(ordered) == others and len(set(groups[ordered[:pictures]])) == pictures
    assert ordered != learning_curve.order_images(others, groups, seed=2)


def test_the_classical_baseline_finds_disks_apart():
    image, labels = draw_nuclei((64, 64))
    found = benchmark.segment_classically(image)
    assert count_matches(overlap_table(labels, found), 0.5) == (4, 0, 0)
    assert dice_score(labels > 0, found > 0) > 0.9
