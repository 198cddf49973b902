"""data.slides: windows and strips of large images, and the numbering of nuclei across strips."""

import dataclasses
import functools
import json
import math
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from conftest import Threshold, draw_disks, draw_nuclei, load_once
from PIL import Image
from scipy import ndimage

import data.outputs
import Model
import Predict_masks
from data import nuclei, scales, slides
from data.files import UserError
from data.images import read_image
from data.intensity import brightness
from data.options import DATA
from data.sources import find_samples
from Preprocessed_data import to_grayscale

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small_strips(monkeypatch):
    """Strips, tiles, windows and context smaller than usual, so that small images have several."""
    monkeypatch.setattr(slides, "STRIP", 64)
    monkeypatch.setattr(slides, "TILE", 128)
    monkeypatch.setattr(slides, "CONTEXT_ROWS", 32)
    monkeypatch.setattr(slides, "WINDOW", 128)
    monkeypatch.setattr(data.outputs, "TIFF_TILE", 16)


def reader(gray):
    """Reads rows of an array as `read_gray` reads those of a file."""
    return lambda start, stop: gray[start:stop]


# Windows.


def test_windows_lie_at_corners_edges_and_middle(monkeypatch):
    monkeypatch.setattr(slides, "WINDOW", 4)
    gray = np.arange(20 * 30, dtype=np.float32).reshape(20, 30)
    windows = slides.sample_windows(gray.shape, reader(gray))
    rows = np.r_[0:4, 8:12, 16:20]
    columns = np.r_[0:4, 13:17, 26:30]
    np.testing.assert_array_equal(windows, gray[np.ix_(rows, columns)])


@pytest.mark.parametrize("shape", [(3, 12), (12, 3), (3, 3)])
def test_windows_of_an_image_lower_or_narrower_than_a_window_hold_all_of_it_once(monkeypatch, shape):
    monkeypatch.setattr(slides, "WINDOW", 4)
    gray = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    windows = slides.sample_windows(gray.shape, reader(gray))
    np.testing.assert_array_equal(windows, gray)


# Strips.


def pool_and_blur(gray):
    """Stands for a network: an answer depends on 8 pixels around it, in blocks of 4 from the first."""
    padding = [(0, -side % 4) for side in gray.shape]
    padded = np.pad(gray, padding, "symmetric")
    blocks = padded.reshape(padded.shape[0] // 4, 4, padded.shape[1] // 4, 4).max(axis=(1, 3))
    pooled = np.kron(blocks, np.ones((4, 4), np.float32))[: gray.shape[0], : gray.shape[1]]
    return ndimage.maximum_filter(pooled, 17), ndimage.minimum_filter(gray, 17)


@pytest.mark.parametrize("shape", [(200, 300), (64, 128), (65, 129), (1, 1), (130, 40)])
def test_strips_are_predicted_as_the_whole_image(small_strips, shape):
    gray = np.random.default_rng(0).random(shape, np.float32)
    strips = list(slides.predict_strips(shape, reader(gray), pool_and_blur, halo=8, name="a"))
    assert [strip.shape[1] for strip in strips[:-1]] == [64] * (len(strips) - 1)
    assert strips[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(strips, axis=1), pool_and_blur(gray))


@pytest.mark.parametrize("halo", [0, 4, 10])  # too few pixels, or blocks that begin elsewhere
def test_another_halo_would_leave_seams(small_strips, halo):
    gray = np.random.default_rng(0).random((200, 300), np.float32)
    strips = slides.predict_strips(gray.shape, reader(gray), pool_and_blur, halo, name="a")
    assert (np.concatenate(list(strips), axis=1) != pool_and_blur(gray)).any()


@pytest.mark.parametrize("halvings", [0, 1])
def test_the_halo_is_as_wide_as_an_answer_of_the_network_depends_on(small_strips, halvings):
    keras.utils.set_random_seed(1)
    model = Model.Unet(2, 4).build()
    gray = np.random.default_rng(0).random((150, 300), np.float32)
    network = functools.partial(Predict_masks.predict_probability, model)
    predict = functools.partial(scales.predict_scales, network, halvings=range(halvings + 1))
    halo = Predict_masks.HALO_PIXELS * 2 ** (2 + halvings)
    strips = slides.predict_strips(gray.shape, reader(gray), predict, halo, name="a")
    np.testing.assert_allclose(np.concatenate(list(strips), axis=1), predict(gray), atol=1e-5)


def test_no_more_rows_are_read_than_a_strip_and_its_halo(small_strips):
    gray = np.zeros((200, 300), np.float32)
    rows = []

    def read_gray(start, stop):
        rows.append((start, stop))
        return gray[start:stop]

    list(slides.predict_strips(gray.shape, read_gray, pool_and_blur, halo=8, name="a"))
    assert rows == [(0, 72), (56, 136), (120, 200), (184, 200)]


# Numbers.


def label_in_strips(answer, separate=nuclei.separate_nuclei):
    """Labels of probabilities (2, H, W) that come in strips."""
    strips = (answer[:, row : row + slides.STRIP] for row in range(0, answer.shape[1], slides.STRIP))
    return np.concatenate([labels for labels, _ in slides.label_strips(strips, separate)])


def test_the_next_strip_is_made_while_nuclei_are_numbered():
    begun = threading.Event()

    def make():
        yield np.zeros((2, 8, 9), np.float32)
        begun.set()
        yield np.ones((2, 8, 9), np.float32)

    strips = slides.prefetch(make())
    assert next(strips).max() == 0
    assert begun.wait(10)
    assert [strip.min() for strip in strips] == [1]


def test_an_error_of_a_strip_that_is_made_ahead_is_raised():
    def make():
        yield np.zeros((2, 8, 9), np.float32)
        raise UserError("cut")

    strips = slides.prefetch(make())
    next(strips)
    with pytest.raises(UserError, match="cut"):
        next(strips)


def test_one_thread_at_a_time_reads(small_strips):
    gray = np.zeros((640, 90), np.float32)
    gray[10::20, 10::20] = 1
    reading = threading.Lock()

    def read_gray(start, stop):
        assert reading.acquire(blocking=False), "two threads read"
        time.sleep(0.01)
        reading.release()
        return gray[start:stop]

    strips = slides.predict_strips(gray.shape, read_gray, pool_and_blur, halo=8, name="a")
    strips = slides.label_strips(strips, lambda nucleus, border: ndimage.label(nucleus > 0.5)[0].astype(np.int32))
    contrasts = []
    assert len(list(slides.measure_contrast(strips, read_gray, contrasts))) == 10
    assert contrasts


def test_a_nucleus_across_strips_is_one_nucleus(small_strips):
    # Rows 64, 128 and 192 are where strips meet; the last strip is 8 rows.
    centres = [(64, 20), (66, 60), (62, 100), (128, 20), (127, 60), (191, 20), (100, 140), (195, 80)]
    nucleus = draw_disks((200, 160), centres, 9)
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    labels = label_in_strips(answer)
    whole = nuclei.separate_nuclei(*answer)
    assert labels.dtype == np.int32 and labels.max() == whole.max() == 8
    np.testing.assert_array_equal(labels > 0, whole > 0)
    pairs = np.unique(np.stack([labels, whole])[:, whole > 0], axis=1)
    assert pairs.shape == (2, 8)  # each nucleus has one number, and each number one nucleus


def test_a_nucleus_higher_than_strip_and_context_is_one_nucleus(small_strips):
    nucleus = draw_disks((400, 300), [(200, 120)], 110) + draw_disks((400, 300), [(50, 280)], 15)
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    np.testing.assert_array_equal(label_in_strips(answer), nuclei.separate_nuclei(*answer))


def test_a_vessel_across_strips_is_no_nucleus(small_strips):
    disks = [(row, column) for row in range(8, 380, 14) for column in range(8, 90, 14)]
    nucleus = draw_disks((384, 120), disks, 5)
    whole = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    nucleus[:, 100:112] = 1
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    np.testing.assert_array_equal(nuclei.separate_nuclei(*answer), whole)
    max_area = nuclei.largest_area(whole)
    labels = label_in_strips(answer, functools.partial(nuclei.separate_nuclei, max_area=max_area))
    assert labels.max() == whole.max() == len(disks)
    np.testing.assert_array_equal(labels > 0, whole > 0)


def test_strips_without_nuclei_have_none(small_strips):
    labels = label_in_strips(np.zeros((2, 150, 40), np.float32))
    assert labels.shape == (150, 40) and not labels.any()


NOTHING = [0, 0, 0, 0, 0, 0]
# The first rows of a window with their numbers, the labels of the whole window, and the result. The
# strip is rows 2 to 5; 9 nuclei have numbers.
WINDOWS = {
    "one goes on, one is new, one begins below": (
        [[7, 7, 0, 0, 0, 0]] * 2,
        [[1, 1, 0, 0, 0, 0]] * 3 + [[1, 1, 0, 0, 2, 2], [0, 0, 0, 0, 2, 2], NOTHING] + [[3, 3, 0, 0, 0, 0]] * 2,
        [[7, 7, 0, 0, 0, 0]] * 3 + [[7, 7, 0, 0, 10, 10], [0, 0, 0, 0, 10, 10], NOTHING] + [NOTHING] * 2,
    ),
    "both pieces of one that falls apart go on with its number": (
        [[7, 7, 7, 7, 7, 7]] * 2,
        [[1, 1, 1, 1, 2, 2]] * 2 + [[1, 1, 1, 0, 0, 2]] + [NOTHING] * 5,
        [[7, 7, 7, 7, 7, 7]] * 2 + [[7, 7, 7, 0, 0, 7]] + [NOTHING] * 5,
    ),
    "the end of what was background above is background": (
        [NOTHING] * 2,
        [[0, 1, 1, 1, 1, 0]] * 2 + [[0, 0, 1, 1, 0, 0]] + [NOTHING] * 5,
        [NOTHING] * 8,
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_numbers_in_a_window(name):
    labelled, local, expected = (np.array(rows, np.int32) for rows in WINDOWS[name])
    window = np.zeros((2, 8, 6), np.float32)
    labels, count = slides.number_window(window, labelled, 2, 6, 9, lambda nucleus, border: local)
    assert labels.tolist() == expected.tolist()
    assert count == max(expected.max(), 9)


def test_nuclei_are_matched_with_the_numbered_ones_they_lie_on():
    labelled = np.array([[5, 5, 5, 5, 0, 8], [5, 5, 5, 5, 0, 8]])
    local = np.array([[1, 1, 1, 2, 0, 3], [1, 1, 1, 2, 0, 3], [1, 0, 4, 4, 0, 3]])
    numbers, is_same = slides.match_labelled(local, labelled)
    assert numbers.tolist() == [0, 5, 5, 8, 0]  # of the background and of nuclei 1 to 4
    assert is_same.tolist() == [False, True, False, True, False]  # most of 5 lies on nucleus 1


def test_the_first_strip_has_nothing_to_match():
    numbers, is_same = slides.match_labelled(np.array([[0, 1, 2]]), np.zeros((0, 3), np.int32))
    assert numbers.tolist() == [0, 0, 0] and not is_same.any()


# Gray.


def test_the_gray_of_a_large_image_is_that_of_a_small_one(monkeypatch):
    rng = np.random.default_rng(0)
    centres = [(row + rng.uniform(-8, 8), column) for row in range(20, 780, 40) for column in range(20, 780, 40)]
    image = rng.normal(100, 5, (800, 800)) + 150 * draw_disks((800, 800), centres, 5)
    image = image.clip(0, 255).astype(np.uint8)
    monkeypatch.setattr(Predict_masks, "NORMALIZATION_PIXELS", 80 * 80)  # in which a nucleus is one pixel
    read_gray = Predict_masks.prepare_slide(image, Predict_masks.make_job(image, Predict_masks.DEFAULTS))
    inner = slice(1, -1)  # the outermost rows of a part have other neighbours
    np.testing.assert_allclose(read_gray(100, 300)[inner], to_grayscale(image)[100:300][inner], atol=0.05)


def test_white_of_large_float_tissue_is_decided_once():
    image = draw_nuclei((120, 60), stained=True)[0].astype(np.float32)
    image[90:] = np.random.default_rng(0).uniform(0, 1.2, (30, 60, 3))  # so dark that it could be an image from 0 to 1
    read_gray = Predict_masks.prepare_slide(image, Predict_masks.make_job(image, Predict_masks.DEFAULTS))
    np.testing.assert_allclose(read_gray(90, 120)[1:-1], read_gray(0, 120)[91:119], atol=1e-5)


# What the windows do not show.


def draw_between_windows(signal, dtype=np.uint16):
    """Noise with nine nuclei, none of them in a window of 64 pixels."""
    centres = [(row, column) for row in (90, 115, 140) for column in (90, 115, 140)]
    noise = np.random.default_rng(0).normal(100, 5, (400, 400))
    return (noise + signal * draw_disks(noise.shape, centres, 6)).astype(dtype)


def prepare(image):
    """The job of a large image as its windows tell it, and as the whole does."""
    windows = Predict_masks.make_job(slides.read_windows(image), Predict_masks.DEFAULTS)
    whole = dataclasses.replace(windows)
    Predict_masks.prepare_slide(image, whole)
    return windows, whole


def test_nuclei_that_no_window_shows_are_more_than_noise(monkeypatch):
    monkeypatch.setattr(slides, "WINDOW", 64)
    windows, whole = prepare(draw_between_windows(100))
    assert (windows.has_signal, whole.has_signal) == (False, True)
    noise = draw_between_windows(0)
    noise[::60, ::60] = 4000  # hot pixels
    windows, whole = prepare(noise)
    assert (windows.has_signal, whole.has_signal) == (False, False)


def test_few_pieces_of_noise_in_most_strips_do_not_outvote_many_nuclei():
    labels = np.zeros((3, 40, 400), np.int32)
    for number in range(9):
        labels[0, 10:20, 40 * number + 20 : 40 * number + 30] = number + 1
    labels[1:, 10:20, 20:30] = [[[10]], [[11]]]
    gray = np.random.default_rng(0).normal(0.3, 0.02, labels.shape) + np.where(labels > 9, 0.02, 0.2) * (labels > 0)
    contrasts = []
    strips = ((strip, np.zeros((2, *strip.shape))) for strip in labels)
    passed_on = slides.measure_contrast(strips, reader(gray.reshape(-1, 400)), contrasts)
    np.testing.assert_array_equal(np.stack([strip for strip, _ in passed_on]), labels)
    assert len(contrasts) == 11 and min(contrasts) < 3 and np.median(contrasts) > 8


def test_debris_that_no_window_shows_is_told(tmp_path, monkeypatch, small_strips):
    monkeypatch.setattr(slides, "WINDOW", 64)
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1000)
    image = draw_between_windows(100)
    image[280:310, 280:310] = 30_000
    windows, whole = prepare(image)
    assert windows.debris is None and whole.debris.sum() == 900
    tifffile.imwrite(tmp_path / "a.tif", image)
    Predict_masks.predict_samples(find_samples(tmp_path / "a.tif"), Threshold(), tmp_path / "out", {})
    assert tifffile.imread(tmp_path / "out/labels/a.tif").max() == 9
    row = json.loads((tmp_path / "out/tables/a.json").read_text())
    assert row["warnings"] == "very bright debris was left out"


# From file to files.


@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_a_large_image_in_tiles_is_as_it_is_whole(tmp_path, small_strips, monkeypatch, halvings):
    model = load_once()
    files = [sample.image for sample in find_samples(ROOT / DATA) if "fluorescence" in sample.id]
    images = [brightness(read_image(file))[:200, :200] for file in files[:4]]
    image = np.block([images[:2], images[2:]])[:370, :390]
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/big.tif", image, tile=(64, 64), compression="zlib")
    diameters = [(1000, 1000), (1, 1000), (1, 1)][halvings]
    monkeypatch.setattr(scales, "HALVING_DIAMETERS", diameters)
    monkeypatch.setattr(scales, "MERGED_DIAMETER_RATIO", 1000)
    monkeypatch.setattr(scales, "MIN_REMAINING_SHARE", 0)
    samples = find_samples(tmp_path / "images")
    Predict_masks.predict_samples(samples, model, tmp_path / "whole", {})
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1000)
    monkeypatch.setattr(slides, "STRIP", 128)  # three of them
    monkeypatch.setattr(slides, "TILE", 256)  # two in each
    written, skipped = Predict_masks.predict_samples(samples, model, tmp_path / "tiles", {})
    assert (written, skipped) == (["big"], {})
    whole = tifffile.imread(tmp_path / "whole/labels/big.tif")
    with tifffile.TiffFile(tmp_path / "tiles/labels/big.tif") as file:
        assert file.is_bigtiff and file.pages[0].is_tiled
        tiles = file.asarray()
    assert tiles.dtype == np.uint32 and len(np.unique(tiles)) - 1 == tiles.max() == whole.max() > 20
    both = (whole > 0) & (tiles > 0)
    assert 2 * both.sum() / ((whole > 0).sum() + (tiles > 0).sum()) > 0.999
    pairs = np.unique(np.stack([whole, tiles])[:, both], axis=1)
    assert pairs.shape[1] < whole.max() + 3
    mask = tifffile.imread(tmp_path / "tiles/masks/big.tif")
    np.testing.assert_array_equal(mask, np.where(tiles > 0, 255, 0))
    assert Image.open(tmp_path / "tiles/overlays/big.png").size == (390, 370)
    assert Predict_masks.show_predictions(tmp_path / "tiles").is_file()
