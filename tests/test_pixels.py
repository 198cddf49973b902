"""Orientation and transparency of images."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from data.images import open_rows, read_image, read_shape
from data.pixels import invert, is_gray


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_an_image_is_read_as_viewers_show_it(tmp_path, ending, orientation):
    gray = np.add.outer(3 * np.arange(40), np.arange(64)).astype(np.uint8)
    file = tmp_path / f"turned.{ending}"
    if ending == "jpg":
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(gray).save(file, exif=exif, quality=95)
    else:
        tifffile.imwrite(file, gray, extratags=[(274, 3, 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(gray)
    stored.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    image = read_image(file)
    assert read_shape(file) == image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= (4 if ending == "jpg" else 0)
    with open_rows(file) as rows:
        np.testing.assert_array_equal(rows[3:7], image[3:7])


def test_transparent_pixels_are_a_flat_ground(tmp_path):
    image = np.random.default_rng(0).integers(1, 255, (20, 30, 4), np.uint8)
    image[..., 3] = 255
    image[:, :10, 3] = 0
    Image.fromarray(image).save(tmp_path / "cut.png")
    pixels = read_image(tmp_path / "cut.png")
    assert not pixels[:, :10].any()
    np.testing.assert_array_equal(pixels[:, 10:], image[:, 10:, :3])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, bool])
def test_inverted_values_have_the_opposite_order(dtype):
    values = np.array([0, 1], bool) if dtype is bool else np.array([0, 1, 100], dtype)
    if np.dtype(dtype).kind == "i":
        values = np.array([np.iinfo(dtype).min, -1, 0, np.iinfo(dtype).max], dtype)
    inverted = invert(values)
    assert inverted.dtype == values.dtype and (np.diff(inverted.astype(float)) < 0).all()


def test_an_image_of_three_equal_channels_is_gray():
    gray = np.arange(12, dtype=np.uint16).reshape(3, 4)
    colours = np.dstack([gray] * 3)
    assert is_gray(gray) and is_gray(colours)
    colours[2, 3, 1] += 1
    assert not is_gray(colours)
