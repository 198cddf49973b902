"""Rows of large TIFFs, and their pyramids."""

import numpy as np
import pytest
import tifffile

from data.files import UserError
from data.images import open_rows, read_image, read_shape, subsample
from data.sources import find_samples
from data.tiffs import TiffRows

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


# Rows of large images.


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 70), "u1"), ((50, 70), "u2"), ((50, 70), "f4"), ((50, 70, 3), "u1"), ((50, 70, 4), "u1")]
)
def test_rows_of_a_tiff_are_those_of_the_image(tmp_path, shape, dtype, order, compression, tile):
    pixels = np.random.default_rng(0).integers(1, 200, shape).astype(dtype)
    layout = {"tile": tile} if tile else {"rowsperstrip": 7}
    colour = {"photometric": "rgb"} if len(shape) == 3 else {}
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, pixels, byteorder=order, compression=compression, **colour, **layout)
    image = read_image(file)
    np.testing.assert_array_equal(image, pixels[..., :3] if len(shape) == 3 else pixels)
    assert read_shape(file) == (50, 70)
    with open_rows(file) as rows:
        assert isinstance(rows, TiffRows)
        for start, stop in ((0, 50), (0, 1), (13, 15), (6, 8), (20, 47), (49, 60)):
            np.testing.assert_array_equal(rows[start:stop], image[start:stop])
        np.testing.assert_array_equal(subsample(rows, 400), image[::3, ::3])


def test_tiles_left_out_of_a_tiff_are_background(tmp_path):
    first = GRAY[:1, :1].repeat(16, 0).repeat(16, 1)
    tiles = iter([first, None, None, None])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(32, 32), dtype=np.uint8, tile=(16, 16))
    whole = read_image(tmp_path / "a.tif")
    assert whole[0, 0] == GRAY[0, 0] and whole[20, 20] == 0
    with open_rows(tmp_path / "a.tif") as rows:
        np.testing.assert_array_equal(np.concatenate([rows[:7], rows[7:32]]), whole)


def test_rows_of_a_stack_are_refused(tmp_path):
    stack = np.zeros((4, 30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    with pytest.raises(UserError, match=r"stack\.tif.*\(4, 30, 40\)"), open_rows(tmp_path / "stack.tif"):
        pass


def test_rows_of_a_cut_file_are_refused(tmp_path):
    pixels = RNG.integers(0, 255, (60, 70), np.uint8)
    tifffile.imwrite(tmp_path / "cut.tif", pixels, tile=(16, 16), compression="zlib")
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:-1000])
    with pytest.raises(UserError, match=r"cut\.tif.*cut off"), open_rows(tmp_path / "cut.tif"):
        pass


# Pyramids.


@pytest.mark.parametrize("ending", ["tif", "svs"])
@pytest.mark.parametrize("flag", [0, 1], ids=["levels without a flag", "levels with the flag"])
def test_of_a_pyramid_the_full_resolution_is_read_by_rows(tmp_path, ending, flag):
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(40, 220, (32, 48, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # (256, 384, 3)
    file = tmp_path / f"slide.{ending}"
    with tifffile.TiffWriter(file) as tiff:
        for step in (1, 4, 16):
            level = smooth[::step, ::step]
            options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}}
            tiff.write(level, tile=(64, 64), subfiletype=flag if step > 1 else 0, **options)
        tiff.write(rng.integers(0, 255, (60, 50, 3), np.uint8), photometric="rgb")  # the label of the slide
    image = read_image(file)
    assert read_shape(file) == image.shape[:2] == (256, 384)
    assert np.abs(image.astype(int) - smooth).mean() < 8  # JPEG halves the colours of sharp edges
    with open_rows(file) as rows:
        assert isinstance(rows, TiffRows)
        np.testing.assert_array_equal(rows[50:140], image[50:140])
    assert [sample.id for sample in find_samples(tmp_path)] == ["slide"]
