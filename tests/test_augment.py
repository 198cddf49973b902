"""Augmented crops, on drawn nuclei whose answer is known."""

import numpy as np
import pytest
from conftest import draw_nuclei
from scipy.ndimage import gaussian_filter

from data import augment
from data.intensity import haematoxylin, normalize, optical_density, percentile_range
from data.matching import dice_score
from Preprocessed_data import to_grayscale


def draw_pair(shape=(64, 80), seed=0):
    """gray (H, W) float32 in [0, 1] and labels (H, W) int32 of four nuclei."""
    image, labels = draw_nuclei(shape, seed)
    return image / np.float32(255), labels


# Whole crops.


@pytest.mark.parametrize("shape", [(64, 80), (20, 200), (16, 16)])
def test_crops_are_gray_and_labels_also_of_small_images(shape):
    gray, labels = draw_pair(shape)
    gray_before = gray.copy()
    labels_before = labels.copy()
    for seed in range(30):
        crop, crop_labels = augment.draw_crop(gray, labels, 32, np.random.default_rng(seed))
        assert crop.shape == crop_labels.shape == (32, 32)
        assert crop.dtype == np.float32
        assert crop_labels.dtype == np.int32
        assert 0 <= crop.min() <= crop.max() <= 1
    np.testing.assert_array_equal(gray, gray_before)
    np.testing.assert_array_equal(labels, labels_before)


def test_crops_follow_from_the_generator_and_nothing_else():
    gray, labels = draw_pair()
    first, again, other = (augment.draw_crop(gray, labels, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("has_wide_nuclei", [False, True])
@pytest.mark.parametrize("fixed_edges", [False, True])
@pytest.mark.parametrize("is_crowded", [False, True])
def test_a_crop_is_warped_and_then_changed_as_asked_for(monkeypatch, has_wide_nuclei, fixed_edges, is_crowded):
    calls = []
    monkeypatch.setattr(augment, "warp", lambda *arguments: calls.append(arguments) or ("warped", "labels"))
    monkeypatch.setattr(augment, "change_intensity", lambda *arguments: calls.append(arguments) or "changed")
    monkeypatch.setattr(augment, "paste_nuclei", lambda *arguments: calls.append(arguments) or ("pasted", "labels"))
    monkeypatch.setattr(augment, "CROWDED_SHARE", 1 if is_crowded else 0)
    options = {"has_wide_nuclei": has_wide_nuclei, "fixed_edges": fixed_edges}
    rng = np.random.default_rng(0)
    assert augment.draw_crop("gray", "labels", 32, rng, **options) == ("changed", "labels")
    expected = [("gray", "labels", 32, rng, has_wide_nuclei), ("warped", "labels", rng, fixed_edges)]
    if is_crowded:
        expected[1:] = [("warped", "labels", rng), ("pasted", "labels", rng, fixed_edges)]
    assert calls == expected


# Stains.


class Shares:
    """A generator that draws these shares of green and blue."""

    def __init__(self, green=0.0, blue=0.0):
        self.shares = [blue, green]

    def uniform(self, low, high):
        return self.shares.pop()


def draw_stained():
    """Stained nuclei that are a little blurred: no pixel is hot or dead."""
    image, _ = draw_nuclei((64, 80), stained=True)
    return gaussian_filter(image, (1.5, 1.5, 0))


@pytest.mark.parametrize("factor", [1, 257])
def test_without_shares_the_stain_is_that_of_prediction(factor):
    dtype = np.uint8 if factor == 1 else np.uint16
    image = draw_stained().astype(dtype) * dtype(factor)
    gray = augment.vary_stain(optical_density(image), Shares())
    assert gray.dtype == np.float32
    np.testing.assert_allclose(gray, to_grayscale(image), atol=1e-5)
    noise = np.random.default_rng(1).integers(1, 256, (40, 50, 3)).astype(dtype) * dtype(factor)
    channel = haematoxylin(noise)
    expected = normalize(channel, *percentile_range(channel))
    np.testing.assert_allclose(augment.vary_stain(optical_density(noise), Shares()), expected, atol=1e-5)


def test_stains_differ_from_draw_to_draw_and_keep_the_density():
    density = optical_density(draw_nuclei((64, 80), stained=True)[0])
    before = density.copy()
    drawn = [augment.vary_stain(density, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    for gray in drawn:
        assert gray.shape == (64, 80) and gray.dtype == np.float32
        assert (gray.min(), gray.max()) == (0, 1)
    for one, other in ((0, 2), (0, 3), (2, 3)):
        assert abs(drawn[one] - drawn[other]).mean() > 0.01
    np.testing.assert_array_equal(density, before)


def test_eosin_becomes_brighter_with_the_share_of_green():
    tissue = np.full((40, 40, 3), (245, 240, 245), np.uint8)  # white
    tissue[:20, :] = (240, 90, 150)  # eosin
    tissue[10:14, 10:14] = (90, 60, 150)  # haematoxylin
    density = optical_density(tissue)
    eosin = []
    for green in (0, 0.5, 1, 1.5):
        gray = augment.vary_stain(density, Shares(green=green))
        assert gray[12, 12] == 1  # haematoxylin stays the brightest
        eosin.append(gray[5, 5])
    assert eosin[0] < 0.05
    assert (np.diff(eosin) > 0).all()
    assert eosin[-1] > 0.3


# Geometry.


def test_image_and_labels_move_together():
    _, labels = draw_nuclei((96, 80))
    labels *= 70_001  # more than 16 bits hold
    mask = (labels > 0).astype(np.float32)
    moved = 0
    for seed in range(30):
        gray, warped = augment.warp(mask, labels, 64, np.random.default_rng(seed), seed % 2 > 0)
        assert gray.shape == warped.shape == (64, 64)
        assert gray.dtype == np.float32
        assert warped.dtype == np.int32
        assert np.mean((gray > 0.5) == (warped > 0)) > 0.96  # the two round differently on rims
        moved += np.mean((gray > 0.5) != (mask[:64, :64] > 0)) > 0.01
    assert moved >= 28


@pytest.mark.parametrize("side", [24, 33, 64, 256])
@pytest.mark.parametrize("has_wide_nuclei", [False, True])
def test_image_and_labels_are_mirrored_alike_outside_the_image(side, has_wide_nuclei):
    _, labels = draw_nuclei((24, 24))
    factor = -(-side // 24) + 1
    labels = np.kron(labels, np.ones((factor, factor), np.int32))[:side, : side + 1]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gray, warped = augment.warp((labels > 0).astype(np.float32), labels, 128, rng, has_wide_nuclei)
        assert dice_score(gray > 0.5, warped > 0) > 0.9


def test_a_mirrored_nucleus_is_another_one():
    labels = np.zeros((40, 40), np.int32)
    labels[4:12, 14:26] = 1
    counts = [augment.warp(labels.astype(np.float32), labels, 240, np.random.default_rng(n))[1].max() for n in range(9)]
    assert min(counts) > 1  # the crop is wider than the image at any scale


def test_half_of_the_crops_are_centred_on_nuclei():
    labels = np.zeros((400, 400), np.int32)
    labels[100:200, 100:200] = 1  # a sixteenth of the image
    gray = labels.astype(np.float32)
    rng = np.random.default_rng(0)
    centres = [augment.warp(gray, labels, 32, rng)[1][16, 16] for _ in range(200)]
    # Half of the crops try ten places: 0.5 / 16 + 0.5 * (1 - (15 / 16) ** 10) = 0.27
    assert 0.18 < np.mean(centres) < 0.36


def test_a_crop_larger_than_its_image_lies_in_its_middle(monkeypatch):
    monkeypatch.setattr(augment, "MAGNIFICATIONS", (0.5, 0.5))
    gray, labels = draw_pair((64, 64))
    gray = (gray + gray[::-1, ::-1]) / 2  # is its own turn by 180 degrees
    for seed in range(10):
        crop, _ = augment.warp(gray, labels, 64, np.random.default_rng(seed))
        np.testing.assert_allclose(crop, crop[::-1, ::-1], atol=1e-4)


@pytest.mark.parametrize(("scale", "noise"), [(0.9, 1), (0.5, 1 / 2), (0.3, 1 / 4), (0.2, 1 / 4)])
def test_a_smaller_scale_averages_the_noise(scale, noise, monkeypatch):
    monkeypatch.setattr(augment, "MAGNIFICATIONS", (scale, scale))
    gray = np.random.default_rng(0).normal(0.5, 0.1, (800, 800)).astype(np.float32)
    labels = np.zeros(gray.shape, np.int32)
    for seed in range(5):
        crop, _ = augment.warp(gray, labels, 64, np.random.default_rng(seed))
        # Interpolation averages once more, to two thirds of the noise on average.
        assert 0.055 * noise < crop.std() < 0.105 * noise


@pytest.mark.parametrize(("has_wide_nuclei", "expected"), [(False, 0.25), (True, 0.5)])
def test_images_of_wide_nuclei_are_shown_small_more_often(has_wide_nuclei, expected):
    noise = np.random.default_rng(0).normal(0.5, 0.1, (400, 400)).astype(np.float32)
    labels = np.zeros(noise.shape, np.int32)
    crops = [augment.warp(noise, labels, 64, np.random.default_rng(seed), has_wide_nuclei) for seed in range(200)]
    # The mean of four pixels has half the noise. Scales below 0.71 are averaged: of scales from 0.5 to 2 one in
    # four, of 0.25 to 1 three in four, and the latter are half of the crops of wide nuclei.
    averaged = np.mean([gray.std() < 0.05 for gray, _ in crops])
    assert abs(averaged - expected) < 0.1


# Intensity.


class OneStep:
    """A generator that lets all steps of `change_intensity` be left out, but that of number `step`."""

    def __init__(self, step=None):
        self.step = step
        self.asked = 0

    def random(self, size=None, dtype=float):
        if size is not None:
            return np.full(size, 0.99, dtype)
        self.asked += 1
        return 0.0 if self.asked - 1 == self.step else 0.99

    def uniform(self, low, high, size=None):
        return np.full(size or (), low + 0.25 * (high - low))[()]

    def standard_normal(self, size, dtype):
        return np.random.default_rng(0).standard_normal(size, dtype)


STEPS = ("nuclei", "haze", "illumination", "blur", "photons", "contrast", "noise")


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_every_step_of_change_intensity_changes_pixels(step):
    gray, labels = draw_pair((32, 32))
    nothing = OneStep()
    plain = augment.change_intensity(gray, labels, nothing)
    changed = augment.change_intensity(gray, labels, OneStep(step))
    assert nothing.asked == len(STEPS)
    difference = abs(changed - plain)
    assert np.mean(difference > 1e-3) > 0.05
    if STEPS[step] == "nuclei":  # the background far from nuclei stays
        assert difference[labels > 0].mean() > 5 * difference[:3].mean()


def test_gamma_changes_pixels(monkeypatch):
    gray, labels = draw_pair((32, 32))
    monkeypatch.setattr(augment, "GAMMAS", (1, 1))
    assert abs(augment.change_intensity(gray, labels, OneStep()) - gray).max() < 1e-6
    monkeypatch.setattr(augment, "GAMMAS", (2, 2))
    assert abs(augment.change_intensity(gray, labels, OneStep()) - gray).mean() > 0.01


def test_fixed_edges_are_moved_by_neither_blur_nor_gamma(monkeypatch):
    gray = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    gray[:, 40:] = 1
    labels = (gray > 0.5).astype(np.int32)
    nothing = OneStep()
    kept = augment.change_intensity(gray, labels, nothing, fixed_edges=True)
    np.testing.assert_array_equal(kept, gray)
    assert nothing.asked == len(STEPS) - 1  # the blur is not asked for
    monkeypatch.setattr(augment, "GAMMAS", (1, 1))  # so that only the blur moves edges
    blurred = augment.change_intensity(gray, labels, OneStep(STEPS.index("blur")))
    assert abs(blurred - gray).max() > 0.01


class OnlyContrast(OneStep):
    """Lets only the contrast be changed, by a random amount."""

    def __init__(self, seed):
        super().__init__(STEPS.index("contrast"))
        self.rng = np.random.default_rng(seed)

    def uniform(self, low, high, size=None):
        # The gamma, whose lower limit has a logarithm below 0, becomes 1.
        return 0.0 if low < 0 else self.rng.uniform(low, high, size)


def test_contrast_keeps_dim_rims_from_the_background():
    gray = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    for seed in range(100):
        changed = augment.change_intensity(gray, np.zeros((64, 64), np.int32), OnlyContrast(seed))
        assert 0 <= changed.min()
        assert changed.max() <= 1
        assert np.diff(changed[0]).min() > 0.5 / 63  # every step is still a step


class Dimmest:
    """A generator that lets every nucleus be dimmed as far as it goes."""

    def random(self, size):
        return np.full(size, 0.99)

    def uniform(self, low, high, size):
        return np.full(size, 0.0)


def test_dimmed_nuclei_fade_into_their_own_surroundings():
    gray = np.zeros((60, 90), np.float32)
    gray[:, 30:] = 0.5  # a cell, wider than the surroundings of its nucleus
    labels = np.zeros(gray.shape, np.int32)
    labels[25:35, 70:80] = 1
    gray[labels == 1] = 1
    dimmed = augment.dim_nuclei(gray, labels, Dimmest())
    assert dimmed[labels == 1].min() > 0.45
    assert dimmed[30, 75] < 0.55


@pytest.mark.parametrize("label", [0, 1])
def test_nothing_is_dimmed_without_nuclei_or_without_background(label):
    gray, _ = draw_pair((32, 32))
    labels = np.full(gray.shape, label, np.int32)
    np.testing.assert_array_equal(augment.dim_nuclei(gray, labels, Dimmest()), gray)


def test_haze_takes_the_same_share_of_the_light_from_nuclei_and_background():
    dark = np.zeros((48, 64), np.float32)
    light = np.full((48, 64), 0.5, np.float32)
    thickest = set()
    for seed in range(50):
        haze = augment.add_haze(dark, np.random.default_rng(seed))
        hazy = augment.add_haze(light, np.random.default_rng(seed))
        np.testing.assert_allclose(1 - hazy, (1 - light) * (1 - haze), atol=1e-6)
        assert haze.min() == 0
        assert augment.HAZE[0] < haze.max() < augment.HAZE[1]
        assert max(abs(np.diff(haze, axis=axis)).max() for axis in (0, 1)) < 0.2  # no edges
        thickest.add(haze.max())
    assert len(thickest) == 50


def test_photon_noise_is_the_root_of_the_count(monkeypatch):
    monkeypatch.setattr(augment, "PHOTONS", (100, 100))
    gray = np.zeros((200, 200), np.float32)
    gray[100:] = 0.5  # 50 photons, give or take 7
    noisy = augment.add_photon_noise(gray, np.random.default_rng(0))
    assert not noisy[:100].any()
    assert noisy[100:].mean() == pytest.approx(0.5, abs=0.005)
    assert noisy[100:].std() == pytest.approx(0.5 / 50**0.5, rel=0.05)
