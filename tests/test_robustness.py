"""What people bring: borders, hot pixels, debris, noise, any scale, merges, stains; each case has its own answer."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import load_once
from scipy import ndimage
from skimage.color import combine_stains, rgb_from_hed
from skimage.draw import disk
from skimage.transform import resize

import Evaluate_model
import Predict_masks
import Preprocessed_data
from data import artifacts
from data.channels import Channels, narrow_channels
from data.files import UserError
from data.images import read_image
from data.sources import find_samples

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample"
OFFSET = 420  # gray levels of a camera


@pytest.fixture(scope="module")
def unet():
    """The committed network."""
    return load_once()


def draw_nuclei(diameter, count=12, seed=0, blur=None):
    """Apart, soft nuclei of one diameter: signal (H, W) float in [0, 1] and labels (H, W) int32."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count)))
    pitch = int(1.8 * diameter) + 8
    labels = np.zeros((across * pitch, across * pitch), np.int32)
    for number in range(count):
        row, column = number // across, number % across
        centre = np.array([row + 0.5, column + 0.5]) * pitch + rng.uniform(-0.1, 0.1, 2) * diameter
        labels[disk(centre, diameter / 2, shape=labels.shape)] = number + 1
    signal = ndimage.gaussian_filter((labels > 0).astype(float), blur or max(diameter / 20, 0.7))
    return signal, labels


def draw_camera(signal, seed=0, height=600, noise=12):
    """A signal as a camera of 16 bits writes it."""
    rng = np.random.default_rng([seed, 1])
    return (OFFSET + height * signal + noise * rng.standard_normal(signal.shape)).astype(np.uint16)


def segment(unet, image, **options):
    labels, _ = Predict_masks.segment_image(unet, image, Predict_masks.PredictionOptions(**options))
    return labels


def compare_nuclei(labels, expected, is_picture=slice(None)):
    """The difference of the two counts, as a share, and the Dice."""
    found = len(np.unique(labels[is_picture])) - 1
    wanted = len(np.unique(expected[is_picture])) - 1
    return abs(found - wanted) / wanted, Evaluate_model.dice_score(labels[is_picture] > 0, expected[is_picture] > 0)


# Levels and background.


@pytest.fixture(scope="module")
def camera(unet):
    """A dim camera image of 49 nuclei and its answer."""
    signal, _ = draw_nuclei(18, 49)
    image = draw_camera(signal)
    labels = segment(unet, image)
    assert labels.max() == 49
    return image, labels


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("value", [0, 300, 2000, 65535])
def test_a_flat_border_does_not_count(unet, camera, width, value):
    image, expected = camera
    disturbed = image.copy()
    inside = np.zeros(image.shape, bool)
    inside[width:-width, width:-width] = True
    disturbed[~inside] = value
    difference, dice = compare_nuclei(segment(unet, disturbed), expected, inside)
    assert difference <= 0.02 and dice >= 0.97


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("value", [0, 900, 65535])
def test_hot_and_dead_pixels_do_not_count(unet, camera, share, value):
    image, expected = camera
    is_hit = np.random.default_rng(0).random(image.shape) < share
    disturbed = np.where(is_hit, value, image).astype(np.uint16)
    difference, dice = compare_nuclei(segment(unet, disturbed), expected)
    assert difference <= 0.02 and dice >= 0.97


@pytest.mark.parametrize("share", [0.002, 0.01, 0.04])
@pytest.mark.parametrize("ratio", [15, 40, 100])
def test_one_very_bright_object_hides_no_nuclei(unet, camera, share, ratio):
    image, expected = camera
    radius = np.sqrt(share * image.size / np.pi)
    bright = np.zeros(image.shape, bool)
    bright[disk((100, 120), radius, shape=image.shape)] = True
    disturbed = np.where(bright, min(OFFSET + ratio * 600, 65535), image).astype(np.uint16)
    near = ndimage.binary_dilation(bright, iterations=5)
    hidden = np.unique(expected[near])
    away = ~np.isin(expected, hidden[hidden > 0]) & ~near
    labels = segment(unet, disturbed)
    of_object = np.isin(labels, np.setdiff1d(labels[near], 0)) & away
    assert not expected[of_object].any()  # it is larger than it was drawn, but reaches no other nucleus
    difference, dice = compare_nuclei(np.where(of_object, 0, labels), expected, away)
    assert difference <= 0.02 and dice >= 0.97


@pytest.mark.parametrize("value", [0, 255])
def test_ground_beside_tissue_is_no_picture(unet, value):
    image = read_image(SAMPLE / "tissue_white_1/images/tissue_white_1.png")
    expected = segment(unet, image)
    disturbed = image.copy()
    disturbed[:, :100] = value
    inside = np.zeros(expected.shape, bool)
    inside[:, 115:] = True
    labels = segment(unet, disturbed)
    assert not labels[:, :98].any()
    assert Evaluate_model.dice_score(labels[inside] > 0, expected[inside] > 0) >= 0.97


def test_a_clipped_black_background_is_part_of_the_picture():
    signal, _ = draw_nuclei(18, 16)
    noise = np.random.default_rng(0).standard_normal(signal.shape)
    image = np.clip(100 * signal + 2 * noise - 2, 0, 255).astype(np.uint8)
    assert (image == 0).mean() > 0.5
    assert artifacts.find_ground(image) is None


def test_the_median_of_neighbours_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16, np.float32):
        channel = rng.integers(0, 250, (40, 31)).astype(dtype)
        expected = ndimage.median_filter(channel, 3, mode="mirror")
        np.testing.assert_array_equal(artifacts.median_of_neighbours(channel), expected)


def draw_confluent():
    """16 bright nuclei that cover more than half of a dark picture."""
    _, labels = draw_nuclei(30, 16)
    is_near = (ndimage.distance_transform_edt(labels == 0) < 9).astype(float)
    grown = ndimage.gaussian_filter(is_near, 1.5)[12:-12, 12:-12]
    return (20 + 130 * grown + 3 * np.random.default_rng(0).standard_normal(grown.shape)).astype(np.uint8)


def test_nuclei_that_cover_most_of_a_picture_are_told_from_a_bright_background(unet):
    confluent = draw_confluent()
    assert Preprocessed_data.detect_bright_background(confluent)
    found, job = Predict_masks.segment_image(unet, confluent)
    assert job.choice == "dark background" and 14 <= found.max() <= 18
    # Pale nuclei on a bright background stay what they are, and an option decides.
    signal, _ = draw_nuclei(30, 16)
    pale = (220 - 120 * signal + 3 * np.random.default_rng(0).standard_normal(signal.shape)).astype(np.uint8)
    found, job = Predict_masks.segment_image(unet, pale)
    assert job.choice == "" and found.max() == 16
    assert segment(unet, confluent, background="dark").max() >= 14


def test_nuclei_that_cover_most_of_a_channel_are_found_as_they_are_in_a_picture_alone(unet):
    confluent = draw_confluent()
    expected = segment(unet, confluent)
    empty = np.random.default_rng(1).integers(15, 35, confluent.shape, np.uint8)
    planes = np.stack([empty, confluent])
    for image, channel, choice in (
        (narrow_channels(Channels(("GFP", "DAPI"), planes), None), None, "DAPI on a dark background"),
        (narrow_channels(Channels(("GFP", "DAPI"), planes), "dapi"), "dapi", "dark background"),
        (Channels(("channel 1", "channel 2"), planes), None, "channel 2 on a dark background"),
        (np.dstack([empty, empty // 2, confluent]), "blue", "dark background"),
    ):
        labels, job = Predict_masks.segment_image(unet, image, Predict_masks.PredictionOptions(channel=channel))
        np.testing.assert_array_equal(labels, expected)
        assert (job.choice, job.has_bright_background) == (choice, False)
    # Two ways to see one channel are no two channels; two channels of nuclei are.
    both = Channels(("channel 1", "channel 2"), np.stack([confluent[::-1], confluent]))
    with pytest.raises(UserError, match=r"channel [12] \(\d+ found\) and channel [12] \(\d+ found\) both look like"):
        segment(unet, both)


# Emptiness.


def draw_noise():
    """Pictures of 8 and 16 bits in which there is nothing."""
    shape = (256, 256)
    rng = np.random.default_rng(0)
    white = rng.standard_normal(shape)
    pictures = {"white": white, "poisson": rng.poisson(3, shape) - 3.0}
    for width in (0.7, 1, 1.5, 2, 3, 5, 8):
        smooth = ndimage.gaussian_filter(white, width)
        pictures[f"smooth {width}"] = smooth / smooth.std()
    for size in (3, 5):
        pictures[f"median {size}"] = ndimage.median_filter(white, size)
    for factor in (3, 8):
        small = rng.standard_normal((256 // factor + 1, 256 // factor + 1))
        pictures[f"resized {factor}"] = resize(small, shape, order=1)
    rows, columns = np.mgrid[-1:1:256j, -1:1:256j]
    radius = np.hypot(rows, columns)
    pictures["haze"] = 4 * np.exp(-2 * radius**2) + white / 2
    pictures["vignette"] = 3 - 3 * radius**2 + white / 4
    return pictures


@pytest.mark.parametrize("name", draw_noise())
def test_noise_and_haze_hold_no_nuclei(unet, name):
    noise = draw_noise()[name]
    for image in (np.clip(60 + 8 * noise, 0, 255).astype(np.uint8), (2000 + 60 * noise).astype(np.uint16)):
        assert segment(unet, image).max() == 0


def test_a_large_image_of_noise_holds_no_nuclei_but_a_dim_one_does(unet, tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((300, 320)), 6)
    tifffile.imwrite(tmp_path / "noise.tif", (1000 + 150 * smooth / smooth.std()).astype(np.uint16))
    dim = draw_camera(draw_nuclei(20, 25)[0], height=54)
    assert not Preprocessed_data.measure_normalization(dim).has_signal  # it might be noise
    tifffile.imwrite(tmp_path / "dim.tif", dim)
    Predict_masks.predict_samples(find_samples(tmp_path), unet, tmp_path / "out", {})
    assert read_image(tmp_path / "out/labels/noise.tif").max() == 0
    assert read_image(tmp_path / "out/labels/dim.tif").max() == 25


def test_one_nucleus_in_an_empty_field_is_found(unet):
    signal, _ = draw_nuclei(18, 1)
    field = np.zeros((400, 400))
    field[200 : 200 + signal.shape[0], 150 : 150 + signal.shape[1]] = signal
    assert segment(unet, draw_camera(field, height=200)).max() == 1


# Scale.


@pytest.mark.parametrize("diameter", [8, 14, 30, 60, 100, 150, 220, 300])
def test_nuclei_of_any_size_are_found(unet, diameter):
    signal, truth = draw_nuclei(diameter, 12 if diameter < 100 else 4)
    labels = segment(unet, draw_camera(signal))
    assert labels.max() == truth.max()
    assert Evaluate_model.dice_score(labels > 0, truth > 0) > (0.9 if diameter > 10 else 0.8)


# Channels and stains.


def draw_merge(colour, other_height=1.0):
    """An RGB merge with nuclei in one colour and a mesh of membranes in green; and the labels."""
    signal, labels = draw_nuclei(18, 25)
    distance = ndimage.distance_transform_edt(labels == 0)
    mesh = np.exp(-((distance - 5) ** 2) / 4)
    rng = np.random.default_rng(0)
    merge = 4 * rng.standard_normal((*labels.shape, 3)) + 12
    merge[..., Preprocessed_data.COLOURS.index(colour)] += 120 * signal
    merge[..., 1] += 150 * other_height * mesh
    return np.clip(merge, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("colour", ["blue", "red"])
def test_the_channel_that_looks_like_nuclei_is_chosen_and_said(unet, colour):
    merge, truth = draw_merge(colour)
    labels, job = Predict_masks.segment_image(unet, merge)
    assert job.reading == colour and labels.max() == truth.max()
    assert Evaluate_model.dice_score(labels > 0, truth > 0) > 0.9
    np.testing.assert_array_equal(segment(unet, merge, channel=colour), labels)


def test_two_channels_of_nuclei_are_refused_with_the_option(unet):
    signal, _ = draw_nuclei(18, 25)
    other, _ = draw_nuclei(18, 25, seed=5)
    noise = 4 * np.random.default_rng(0).standard_normal((*signal.shape, 3)) + 12
    noise[..., 0] += 120 * np.roll(other, 15, axis=(0, 1))
    noise[..., 2] += 120 * signal
    merge = np.clip(noise, 0, 255).astype(np.uint8)
    with pytest.raises(UserError, match="both look like nuclei; choose one with --channel"):
        segment(unet, merge)
    assert segment(unet, merge, channel="blue").max() == 25


def test_gray_in_any_one_colour_is_no_merge():
    signal, _ = draw_nuclei(18, 16)
    gray = (10 + 100 * signal).astype(np.uint8)
    zero = np.zeros_like(gray)
    for image in (gray, np.dstack([gray] * 3), np.dstack([zero, gray, zero]), np.dstack([zero, gray, gray])):
        assert Preprocessed_data.find_colours(image) == []


def test_a_hot_pixel_shows_no_channel_and_hides_none():
    signal, _ = draw_nuclei(18, 16)
    gray = (10 + 15 * signal).astype(np.uint8)
    empty = np.zeros_like(gray)
    empty[50, 50] = 255
    merge = np.dstack([gray, np.roll(gray, 15, axis=0), empty])
    assert Preprocessed_data.find_colours(merge) == ["red", "green"]
    assert Preprocessed_data.find_colours(np.dstack([gray, gray, empty])) == []


@pytest.mark.parametrize("marker", ["nuclear", "membrane"])
def test_a_brown_marker_hides_no_nuclei(unet, marker):
    signal, truth = draw_nuclei(18, 16)
    distance = ndimage.distance_transform_edt(truth == 0)
    dab = signal * (truth % 2) if marker == "nuclear" else np.exp(-((distance - 5) ** 2) / 6)
    stains = np.dstack([0.05 + 0.25 * signal, np.zeros_like(signal), 0.35 * dab])
    image = (255 * combine_stains(stains, rgb_from_hed)).clip(0, 255).astype(np.uint8)
    labels = segment(unet, image)
    assert labels.max() == truth.max()
    assert Evaluate_model.dice_score(labels > 0, truth > 0) > 0.9


# All of it at once.


def draw_combination(seed):
    """A random picture, its labels, and where the labels count; and its description."""
    rng = np.random.default_rng([seed, 2018])
    diameter = float(np.exp(rng.uniform(np.log(10), np.log(220))))
    signal, labels = draw_nuclei(diameter, int(rng.integers(5, 17)) if diameter < 90 else 4, seed)
    kind = rng.choice(["camera", "8 bits", "bright background", "merge", "stained"])
    disturbance = rng.choice(["none", "border", "hot pixels", "debris", "ground"])
    noise = rng.standard_normal(signal.shape)
    if kind == "camera":
        image = np.clip(OFFSET + 600 * signal + 12 * noise, 0, 65535).astype(np.uint16)
    elif kind == "8 bits":
        image = np.clip(12 + rng.uniform(60, 200) * signal + 2 * noise, 0, 255).astype(np.uint8)
    elif kind == "bright background":
        image = np.clip(225 - rng.uniform(80, 180) * signal + 2 * noise, 0, 255).astype(np.uint8)
    elif kind == "merge":
        mesh = np.exp(-((ndimage.distance_transform_edt(labels == 0) - 5) ** 2) / 4)
        channels = [8 + 3 * noise, 8 + 120 * mesh + 3 * noise, 8 + 140 * signal + 3 * noise]
        image = np.clip(np.dstack(channels), 0, 255).astype(np.uint8)
    else:
        stains = np.dstack([0.04 + 0.25 * signal, 0.05 + 0.01 * noise, 0 * signal])
        image = np.clip(255 * combine_stains(stains, rgb_from_hed), 0, 255).astype(np.uint8)
    counts = np.ones(labels.shape, bool)
    white = np.iinfo(image.dtype).max
    if disturbance == "border":
        width = int(rng.integers(1, 6))
        counts[:] = False
        counts[width:-width, width:-width] = True
        image[~counts] = rng.choice([0, white])
    elif disturbance == "hot pixels":
        image[rng.random(labels.shape) < rng.uniform(0.001, 0.03)] = rng.choice([0, white])
    elif disturbance == "debris" and kind == "camera":
        bright = np.zeros(labels.shape, bool)
        centre = rng.uniform(0.2, 0.8, 2) * labels.shape
        bright[disk(centre, np.sqrt(0.01 * labels.size / np.pi), shape=labels.shape)] = True
        hidden = np.unique(labels[ndimage.binary_dilation(bright, iterations=5)])
        counts = ~np.isin(labels, hidden[hidden > 0]) & ~ndimage.binary_dilation(bright, iterations=5)
        image[bright] = 30_000
    elif disturbance == "ground":
        width = labels.shape[1] // 4
        counts[:, : width + 4] = False
        image[:, :width] = rng.choice([0, white])
    return image, labels, counts, f"{kind}, {disturbance}, {diameter:.0f} pixels wide"


@pytest.mark.slow
def test_two_hundred_random_combinations(unet):
    wrong = []
    refused = []
    for seed in range(200):
        image, truth, counts, description = draw_combination(seed)
        try:
            labels = segment(unet, image)
        except UserError as error:
            refused.append(f"{seed}: {description}: {error}")
            continue
        dice = Evaluate_model.dice_score(labels[counts] > 0, truth[counts] > 0)
        difference = abs(len(np.unique(labels[counts])) - len(np.unique(truth[counts])))
        if dice < 0.85 or difference > max(1, 0.1 * truth.max()):
            wrong.append(f"{seed}: {description}: {difference} nuclei more or less, Dice {dice:.2f}")
    assert len(wrong) <= 2, "\n".join(wrong)  # 1 %
    assert len(refused) <= 6, "\n".join(refused)  # 3 %; a run says so and names the option
