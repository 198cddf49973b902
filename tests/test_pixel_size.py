"""The pixel size that microscopes and Fiji write into TIFFs."""

import numpy as np
import pytest
import tifffile

from data.files import UserError
from data.pixel_size import read_pixel_size

IMAGE = np.zeros((40, 60), np.uint8)


def write(file, **options):
    tifffile.imwrite(file, IMAGE, **options)
    return file


@pytest.mark.parametrize(("unit", "size"), [("um", 0.25), ("micron", 0.25), ("nm", 0.00025), ("\\u00B5m", 0.25)])
def test_imagej_says_it_in_its_unit(tmp_path, unit, size):
    file = write(tmp_path / "a.tif", imagej=True, resolution=(4, 4), metadata={"unit": unit})
    assert read_pixel_size(file) == pytest.approx(size)


@pytest.mark.parametrize("unit", ["pixel", "lightyear"])
def test_a_unit_that_is_no_length_of_a_microscope_says_nothing(tmp_path, unit):
    file = write(tmp_path / "a.tif", imagej=True, resolution=(4, 4), metadata={"unit": unit})
    assert read_pixel_size(file) is None


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1000), ("Å", 1e4), ("mm", 0.001), ("m", 1e-6)])
def test_ome_says_it_with_its_unit(tmp_path, unit, factor):
    metadata = {"axes": "YX"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": 0.32 * factor, f"PhysicalSize{axis}Unit": unit}
    file = write(tmp_path / "a.ome.tif", metadata=metadata)
    assert read_pixel_size(file) == pytest.approx(0.32)


@pytest.mark.parametrize("unit", ["pixel", "reference frame"])
def test_resolution_tags_do_not_count_where_ome_says_that_there_is_no_scale(tmp_path, unit):
    metadata = {"axes": "YX"} | {f"PhysicalSize{axis}": 1.0 for axis in "XY"}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    options = {"resolution": (4000, 4000), "resolutionunit": "CENTIMETER"}
    assert read_pixel_size(write(tmp_path / "a.ome.tif", metadata=metadata, **options)) is None
    assert read_pixel_size(write(tmp_path / "b.ome.tif", metadata={"axes": "YX"}, **options)) == 2.5


def test_resolution_tags_count_where_they_can_be_of_a_microscope(tmp_path):
    file = write(tmp_path / "a.tif", resolution=(20_000, 20_000), resolutionunit="CENTIMETER", metadata=None)
    assert read_pixel_size(file) == pytest.approx(0.5)
    screen = write(tmp_path / "b.tif", resolution=(72, 72), resolutionunit="INCH", metadata=None)
    assert read_pixel_size(screen) is None


def test_aperio_says_it_and_a_level_has_larger_pixels(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(IMAGE, description="Aperio Image Library|AppMag = 20|MPP = 0.5020", metadata=None)
        tiff.write(IMAGE[::4, ::4], description="Aperio", metadata=None)
    assert read_pixel_size(tmp_path / "a.svs") == 0.502
    assert read_pixel_size(tmp_path / "a.svs", level=1) == pytest.approx(4 * 0.502)


def test_pixels_that_are_not_square_have_no_size(tmp_path):
    file = write(tmp_path / "a.tif", imagej=True, resolution=(4, 5), metadata={"unit": "um"})
    assert read_pixel_size(file) is None


def test_other_files_say_nothing_and_damaged_ones_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG and more")
    assert read_pixel_size(tmp_path / "a.png") is None
    (tmp_path / "b.tif").write_bytes(b"II*\0 and more")
    with pytest.raises(UserError, match=r"b\.tif"):
        read_pixel_size(tmp_path / "b.tif")


def test_resolutions_that_are_no_fractions_say_nothing(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, resolution=(4000, 4000), resolutionunit="CENTIMETER")
    assert read_pixel_size(tmp_path / "a.tif") == pytest.approx(2.5)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        for name in ("XResolution", "YResolution"):
            tiff.pages[0].tags[name].overwrite(4000.0, dtype="f")
    assert read_pixel_size(tmp_path / "a.tif") is None
