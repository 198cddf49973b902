"""Pixels of whole images, smaller copies, and whose fault a failed reading is."""

import errno
import logging
import threading
import time
import tracemalloc
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import save_image
from PIL import Image
from skimage.transform import downscale_local_mean

import data.images
import data.tiffs
from data.files import UserError
from data.images import halve, open_rows, read_image, read_shape, subsample
from data.sources import find_samples

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read_rows(file):
    with open_rows(file) as rows:
        return rows[0:5]


def fail_with(error):
    """A function that raises this, whatever it is called with."""

    def fail(*arguments, **options):
        raise error

    return fail


@pytest.fixture
def gray_png(tmp_path):
    return save_image(tmp_path / "gray.png", GRAY)


@pytest.fixture
def gray_tif(tmp_path):
    tifffile.imwrite(tmp_path / "gray.tif", GRAY, compression="zlib")
    return tmp_path / "gray.tif"


each_reader = pytest.mark.parametrize("read", [read_image, read_shape, read_rows])


# Whole images; test_broken_files.py reads every kind of file.


@pytest.mark.parametrize("name", ["photo.jpg", "photo.JPEG"])
def test_jpeg_is_about_the_image(tmp_path, name):
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    for pixels in (smooth, np.dstack([smooth] * 3)):
        image = read_image(save_image(tmp_path / name, pixels, quality=95))
        assert image.shape == pixels.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - pixels).max() <= 4


def test_an_image_that_is_no_tiff_has_rows_too(tmp_path):
    with open_rows(save_image(tmp_path / "a.png", RGB)) as rows:
        np.testing.assert_array_equal(rows[1:3], RGB[1:3])


# Smaller copies of images.


@pytest.mark.parametrize("pixels", [1, 50, 5000, 10**6])
def test_a_subsample_is_every_nth_row_and_column(pixels):
    image = RNG.integers(0, 256, (700, 90), np.uint8)
    step = next(n for n in range(1, 1000) if 700 * 90 / n**2 <= pixels)
    np.testing.assert_array_equal(subsample(image, pixels), image[::step, ::step])


def test_subsampling_keeps_no_more_than_the_rows_at_hand():
    class Rows:
        shape = 20_000, 1000

        def __getitem__(self, rows):
            return np.zeros((len(range(*rows.indices(20_000))), 1000), np.uint8)

    tracemalloc.start()
    try:
        subsample(Rows(), 40_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 20,000,000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 1), (3, 4, 9)])
def test_halving_is_the_mean_of_four(shape):
    gray = np.random.default_rng(0).random(shape, np.float32)
    stack = gray.reshape(-1, *shape[-2:])
    odd = [(0, side % 2) for side in shape[-2:]]
    even = np.pad(stack, [(0, 0), *odd], "edge")
    halved_shape = (*shape[:-2], even.shape[1] // 2, even.shape[2] // 2)
    expected = downscale_local_mean(even, (1, 2, 2)).reshape(halved_shape)
    halved = halve(gray)
    assert halved.dtype == np.float32
    np.testing.assert_allclose(halved, expected, rtol=1e-6)


# What is wrong with a file is the user's; what the operating system refuses keeps its number.


@each_reader
def test_an_image_that_is_gone_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError) as error:
        read(tmp_path / "gone.png")
    assert str(error.value.filename) == str(tmp_path / "gone.png")


@each_reader
def test_a_file_that_may_not_be_opened_keeps_its_number_and_its_name(gray_png, read):
    file = gray_png / "below_a_file.png"  # root may open all else
    with pytest.raises(NotADirectoryError) as error:
        read(file)
    assert error.value.errno == errno.ENOTDIR
    assert str(error.value.filename) == str(file)


def test_a_disk_that_fails_on_the_way_is_no_broken_image(gray_tif, monkeypatch):
    fault = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(Path, "read_bytes", fail_with(fault))
    with pytest.raises(OSError) as error:
        read_image(gray_tif)
    assert (error.value.errno, error.value.strerror) == (errno.EIO, "Input/output error")
    assert error.value.filename == str(gray_tif)


@each_reader
def test_an_image_that_an_archive_lost_is_named(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/images/a.png", b"")
    with pytest.raises(UserError, match=r"a\.zip.gone\.png"):
        read(zipfile.Path(tmp_path / "a.zip", "gone.png"))


@each_reader
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_image_in_a_damaged_archive_is_named(tmp_path, gray_tif, compression, read):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.write(gray_tif, "gray.tif")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[60:90] = bytes(30)  # within the entry
    (tmp_path / "a.zip").write_bytes(content)
    (sample,) = find_samples(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"a\.zip.gray\.tif: not a readable image"):
        read(sample.image)


@pytest.mark.parametrize("error_type", [ValueError, KeyError, IndexError, AttributeError, TypeError, OSError])
def test_what_a_decoder_raises_is_a_mistake_of_the_user(gray_png, gray_tif, monkeypatch, error_type):
    fault = error_type("strange\nfile")
    monkeypatch.setattr(Image, "open", fail_with(fault))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail_with(fault))
    for file in (gray_png, gray_tif):
        with pytest.raises(UserError, match=rf"{file.name}: not a readable image \(.*strange") as error:
            read_image(file)
        assert error.value.__cause__ is fault


@pytest.mark.parametrize("function", ["drop_alpha", "check_image", "check_size"])
def test_a_fault_of_our_own_is_no_mistake_of_the_user(gray_png, gray_tif, monkeypatch, function):
    fault = AttributeError("ours")
    monkeypatch.setattr(data.images, function, fail_with(fault))
    monkeypatch.setattr(data.tiffs, function, fail_with(fault))
    for file in (gray_png, gray_tif):
        with pytest.raises(AttributeError) as error:
            read_image(file)
        assert error.value is fault


@pytest.mark.parametrize("function", ["drop_alpha", "check_image"])
def test_a_fault_of_our_own_in_the_rows_is_no_mistake_of_the_user(gray_tif, monkeypatch, function):
    fault = ValueError("operands could not be broadcast")
    monkeypatch.setattr(data.tiffs, function, fail_with(fault))
    with pytest.raises(ValueError) as error, open_rows(gray_tif):
        pass
    assert error.value is fault


def test_a_decoder_without_memory_is_no_mistake_of_the_user(gray_png, gray_tif, monkeypatch):
    monkeypatch.setattr(Image, "open", fail_with(MemoryError()))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail_with(MemoryError()))
    monkeypatch.setattr(tifffile.TiffPage, "decode", fail_with(MemoryError()))
    for read, file in ((read_image, gray_png), (read_image, gray_tif), (read_shape, gray_png), (read_rows, gray_tif)):
        with pytest.raises(MemoryError):
            read(file)


# Settings of the libraries.


@pytest.fixture
def pillow_limit(monkeypatch):
    """A limit of Pillow's that every image of the tests exceeds."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    return 3


@pytest.fixture
def broken_png(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path / "broken.png"


def test_the_limit_of_pillow_is_off_while_we_read_and_then_restored(gray_png, pillow_limit):
    with warnings.catch_warnings(action="error"):  # Pillow warns above its limit
        np.testing.assert_array_equal(read_image(gray_png), GRAY)
        assert Image.MAX_IMAGE_PIXELS == pillow_limit
        assert read_shape(gray_png) == GRAY.shape
        assert Image.MAX_IMAGE_PIXELS == pillow_limit


@each_reader
def test_the_limit_of_pillow_is_restored_after_a_failed_reading(broken_png, pillow_limit, read):
    with pytest.raises(UserError, match=r"broken\.png"):
        read(broken_png)
    assert Image.MAX_IMAGE_PIXELS == pillow_limit


def test_the_limit_of_pillow_is_restored_by_many_threads(gray_png, broken_png, pillow_limit, monkeypatch):
    threads = 8
    together = threading.Barrier(threads)
    open_image = Image.open

    def open_slowly(stream):
        time.sleep(0.001)  # time for the other threads to come between
        return open_image(stream)

    def read(number):
        together.wait()
        for _ in range(10):
            if number % 2:
                np.testing.assert_array_equal(read_image(gray_png), GRAY)
            else:
                with pytest.raises(UserError):
                    read_image(broken_png)

    monkeypatch.setattr(Image, "open", open_slowly)
    with warnings.catch_warnings(action="error"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    assert Image.MAX_IMAGE_PIXELS == pillow_limit


def test_the_log_of_tifffile_is_left_as_it_is(tmp_path, gray_tif):
    log = logging.getLogger("tifffile")
    before = (log.level, log.disabled, list(log.handlers), list(log.filters))
    read_image(gray_tif)
    gray_tif.write_bytes(gray_tif.read_bytes()[:-5])
    (sample,) = find_samples(gray_tif)
    with pytest.raises(UserError):
        read_image(sample.image)
    assert (log.level, log.disabled, list(log.handlers), list(log.filters)) == before
