"""True nuclei from mask files and label pictures, and what looks wrong about them."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_nuclei, draw_source, save_image, write_source
from skimage.draw import disk

import data.truth
from data.files import UserError
from data.sources import Sample, find_samples
from data.truth import describe_truth, load_samples, read_labels, read_mask, read_sample

GRAY = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)


def only(source):
    (sample,) = find_samples(source)
    return sample


# Images with their labels.


def test_images_and_labels_come_in_the_order_of_the_samples(tmp_path):
    drawn = draw_source(tmp_path)
    samples = find_samples(tmp_path)[::-1]
    images, labels = load_samples(samples)
    for sample, image, image_labels in zip(samples, images, labels, strict=True):
        assert image.shape[:2] == image_labels.shape
        np.testing.assert_array_equal(image_labels, drawn[sample.id][1])


def test_the_first_sample_that_cannot_be_read_is_named(tmp_path, source):
    for name in ("image_03", "image_05"):
        (source / name / "images" / f"{name}.png").write_text("no image")
    with pytest.raises(UserError, match=r"image_03\.png: not an image"):
        load_samples(find_samples(source))


def test_a_fault_of_our_own_in_a_thread_is_raised(source, monkeypatch):
    def fail(file):
        raise AttributeError("ours")

    monkeypatch.setattr(data.truth, "read_image", fail)
    with pytest.raises(AttributeError, match="ours"):
        load_samples(find_samples(source))


def test_an_image_of_three_equal_channels_takes_the_memory_of_one(tmp_path):
    gray, labels = draw_nuclei()
    write_source(tmp_path, {"a": (np.dstack([gray] * 3), labels)})
    image, _ = read_sample(only(tmp_path))
    np.testing.assert_array_equal(image, np.dstack([gray] * 3))
    assert image.base.size == gray.size


# Labels.

TWO = np.zeros((6, 8), np.int32)
TWO[1:3, 1:4] = 1
TWO[4:6, 5:8] = 2
MASKS = {
    "0 and 1": lambda mask: mask.astype(np.uint8),
    "0 and 255": lambda mask: mask.astype(np.uint8) * 255,
    "one bit": lambda mask: mask,
    "16 bit": lambda mask: mask.astype(np.uint16) * 256,
    "RGBA": lambda mask: np.dstack([mask.astype(np.uint8) * 255] * 3 + [np.full_like(mask, 255, np.uint8)]),
}


@pytest.mark.parametrize("values", MASKS)
def test_masks_of_any_value_become_numbers(tmp_path, values):
    save_image(tmp_path / "a" / "images" / "a.png", np.zeros(TWO.shape, np.uint8))
    for number in (1, 2):
        save_image(tmp_path / "a" / "masks" / f"{number}.png", MASKS[values](TWO == number))
    labels = read_labels(only(tmp_path), TWO.shape)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, TWO)


def test_a_pixel_of_two_masks_belongs_to_the_later_one(tmp_path):
    save_image(tmp_path / "a" / "images" / "a.png", np.zeros((1, 3), np.uint8))
    save_image(tmp_path / "a" / "masks" / "1.png", np.array([[9, 9, 0]], np.uint8))
    save_image(tmp_path / "a" / "masks" / "2.png", np.array([[0, 9, 9]], np.uint8))
    assert read_labels(only(tmp_path), (1, 3)).tolist() == [[1, 2, 2]]


def test_an_image_without_masks_is_named(tmp_path):
    save_image(tmp_path / "bare" / "images" / "bare.png", GRAY)
    with pytest.raises(UserError, match=r"bare\.png: it has no masks; expected bare/masks/"):
        read_labels(only(tmp_path), GRAY.shape)


def test_a_mask_of_another_size_is_named(tmp_path):
    write_source(tmp_path, {"a": draw_nuclei()})
    save_image(tmp_path / "a" / "masks" / "odd.png", np.eye(5, 7, dtype=np.uint8))
    with pytest.raises(UserError, match=r"odd\.png.*\(5, 7\).*\(32, 32\)"):
        load_samples(find_samples(tmp_path))


def test_a_mask_is_one_file_of_0_and_another_value(tmp_path):
    mask = read_mask(save_image(tmp_path / "mask.png", np.array([[0, 7, 7], [0, 0, 7]], np.uint8)))
    assert mask.dtype == bool
    assert mask.tolist() == [[False, True, True], [False, False, True]]


WRONG = {  # name -> pixels and what the error says
    "labelled picture": (np.arange(35).reshape(5, 7).astype(np.uint8) // 12, "several"),
    "coloured labels": (np.dstack([TWO == 1, TWO == 2, TWO == 0]).astype(np.uint8) * 200, "several"),
    "photograph": (GRAY, "several"),
    "inverted": (np.where(np.pad(np.ones((2, 2)), 3)[:5, :7], 0, 255).astype(np.uint8), "inverted"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_mask_of_one_nucleus_is_refused(tmp_path, fault):
    pixels, reason = WRONG[fault]
    save_image(tmp_path / "a" / "images" / "a.png", np.zeros(pixels.shape[:2], np.uint8))
    save_image(tmp_path / "a" / "masks" / "odd.png", pixels)
    with pytest.raises(UserError, match=rf"odd\.png.*{reason}"):
        read_labels(only(tmp_path), pixels.shape[:2])


def test_a_mask_as_jpeg_is_refused_by_that_reason(tmp_path):
    image, labels = draw_nuclei()
    save_image(tmp_path / "a" / "images" / "a.png", image)
    save_image(tmp_path / "a" / "masks" / "1.jpg", np.where(labels == 1, 255, 0).astype(np.uint8))
    with pytest.raises(UserError, match=r"1\.jpg: .*JPEG"):
        read_labels(only(tmp_path), labels.shape)


def test_a_sole_mask_of_several_pieces_holds_all_nuclei(tmp_path):
    image, labels = draw_nuclei()
    save_image(tmp_path / "a" / "images" / "a.png", image)
    save_image(tmp_path / "a" / "masks" / "all.png", np.where(labels > 0, 255, 0).astype(np.uint8))
    samples = find_samples(tmp_path, with_truth=True)
    line, _ = describe_truth(samples, [image], [read_labels(samples[0], labels.shape)])
    assert "1 images, black and white pictures, each connected piece taken for one nucleus, 4 nuclei" in line


# What truth is, and where it looks wrong.


def draw_scene(seed):
    """Twelve bright disks on a dark, noisy ground, (96, 96): image and labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((96, 96), np.int32)
    for number, square in enumerate(rng.choice(36, 12, replace=False), start=1):
        corner = np.array(divmod(square, 6)) * 16
        labels[disk(corner + rng.uniform(6, 10, 2), 5, shape=labels.shape)] = number
    return (np.where(labels > 0, 160, 20) + rng.integers(-15, 16, labels.shape)).astype(np.uint8), labels


def draw_truth(change=lambda labels, number: labels):
    """Six samples with masks, their images, and their labels after a change."""
    scenes = [draw_scene(number) for number in range(6)]
    samples = [Sample(f"a{number}", Path("a.png"), masks=(Path("1.png"), Path("2.png"))) for number in range(6)]
    return samples, [image for image, _ in scenes], [change(labels, n) for n, (_, labels) in enumerate(scenes)]


def draw_squares(count, numbers, side, gap=1):
    """Squares in rows, numbered from 1 on, after `numbers` from 1 again: (96, 96)."""
    labels = np.zeros((96, 96), np.int32)
    across = 96 // (side + gap)
    for square in range(count):
        row, column = np.array(divmod(square, across)) * (side + gap)
        labels[row : row + side, column : column + side] = square % numbers + 1
    return labels


def test_truth_is_described_in_a_line():
    samples, images, labels = draw_truth()
    assert describe_truth(samples, images, labels) == (
        "6 images, one file a nucleus, 72 nuclei, median 10 pixels wide",
        [],
    )
    samples[0] = Sample("a0", Path("a.png"), truths=(Path("a.zip"),))
    assert "5 one file a nucleus, 1 ROI sets" in describe_truth(samples, images, labels)[0]


SUSPECT = {  # change of the labels of the n-th image, and what is said
    "other images": (lambda labels, n: draw_scene(n + 9 * (n > 3))[1], "2 of 6 .*another image.: a4, a5$"),
    "empty": (lambda labels, n: labels * (n != 2), "1 of 6 images have no nuclei.*: a2$"),
    "one nucleus": (lambda labels, n: labels * (labels == 1), "6 of 6 images have one nucleus"),
    "classes": (lambda labels, n: labels % 3, "6 of 6 .*classes"),
    "8 bits": (lambda labels, n: draw_squares(360, 255, 4), "6 of 6 images use all 255 numbers of 8 bits"),
    "border": (lambda labels, n: draw_squares(6, 6, 12), "6 of 6 .*at the border"),
}


@pytest.mark.parametrize("suspicion", SUSPECT)
def test_truth_that_looks_wrong_is_named(suspicion):
    change, text = SUSPECT[suspicion]
    _, warnings = describe_truth(*draw_truth(change))
    assert any(re.search(text, warning) for warning in warnings), warnings
