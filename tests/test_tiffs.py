"""Rows of large TIFFs, and their pyramids."""

import io
import re

import imagecodecs
import numpy as np
import pytest
import tifffile
from conftest import only, write_archive
from PIL import Image

import data.tiffs
from data.files import UserError
from data.images import open_rows, read_image, read_shape, subsample
from data.sources import find_samples
from data.stacks import expand_planes, read_sample_image
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


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("shape", [(50, 70), (50, 70, 3), (50, 70, 4)])
def test_a_single_strip_of_any_size_is_read_by_region(tmp_path, monkeypatch, shape, order):
    monkeypatch.setattr(data.tiffs, "MAX_CHUNK_BYTES", 1000)
    pixels = RNG.integers(1, 2**16, shape, np.uint16)
    colour = {"photometric": "rgb"} if len(shape) == 3 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, rowsperstrip=50, **colour)
    visible = pixels[..., :3] if len(shape) == 3 else pixels
    write_archive(tmp_path / "a.zip", [("a.tif", (tmp_path / "a.tif").read_bytes())])
    for file in (tmp_path / "a.tif", only(tmp_path / "a.zip").image):
        with open_rows(file) as rows:
            assert isinstance(rows, TiffRows)
            # No strip is decoded, so that memory holds only the rows.
            monkeypatch.setattr(rows.page, "decode", None)
            np.testing.assert_array_equal(rows[13:21], visible[13:21], strict=True)
            assert rows[40:90].shape[0] == 10


def test_a_strip_that_is_too_large_to_be_decoded_is_named_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(data.tiffs, "MAX_CHUNK_BYTES", 1000)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 70), np.uint8), rowsperstrip=50, compression="zlib")
    for read in (read_image, read_shape):
        with pytest.raises(UserError, match=r"a\.tif: .*3,500 bytes are one piece.* save it in tiles"):
            read(tmp_path / "a.tif")


def test_rows_that_are_all_transparent_are_black_beside_others_that_are_not(tmp_path):
    pixels = RNG.integers(1, 255, (50, 70, 4), np.uint8)
    pixels[:20, :, 3] = 0  # as a picture on a transparent ground has it, whose hidden colours may be any
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "rowsperstrip": 7}
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", **options)
    with open_rows(tmp_path / "a.tif") as rows:
        assert isinstance(rows, TiffRows) and not rows[:7].any() and not rows[5:20].any()
        np.testing.assert_array_equal(rows[:], read_image(tmp_path / "a.tif"))


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


def write_hamamatsu(file, pixels):
    """A page as in .ndpi: one JPEG, whose parts between restart markers serve as tiles."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=95, subsampling=0, restart_marker_blocks=4)
    jpeg = stream.getvalue()
    scan = jpeg.index(b"\xff\xda") + 2
    start = scan + int.from_bytes(jpeg[scan : scan + 2], "big")
    starts = [start, *(match.end() for match in re.finditer(rb"\xff[\xd0-\xd7]", jpeg[start:]))]
    starts[1:] = [start + offset for offset in starts[1:]]
    tags = [(65420, 4, 1, 1, True), (271, 2, 0, "Hamamatsu", True), (65426, 4, len(starts), starts, True)]
    options = {"photometric": "ycbcr", "compression": "jpeg", "rowsperstrip": len(pixels), "metadata": None}
    tifffile.imwrite(file, iter([jpeg]), shape=pixels.shape, dtype=np.uint8, extratags=tags, **options)


def test_slides_of_hamamatsu_are_read_by_rows(tmp_path):
    smooth = np.kron(RNG.integers(40, 220, (8, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    write_hamamatsu(tmp_path / "a.tif", smooth)
    with open_rows(tmp_path / "a.tif") as rows:
        assert isinstance(rows, TiffRows) and rows.page.is_ndpi
        assert np.abs(rows[10:30].astype(int) - smooth[10:30]).max() < 8
        np.testing.assert_array_equal(rows[10:30], read_image(tmp_path / "a.tif")[10:30])


# What the file says of its pixels, and may say wrongly.


def write_leica(file, macro, *scans):
    """A slide of Leica's: the picture of the whole slide, then the scans, each with a smaller level."""
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c">'
        '<image name="macro"><pixels sizeX="48" sizeY="64"><dimension sizeX="48" sizeY="64" r="0" ifd="0"/></pixels>'
        '<view sizeX="1000" sizeY="1000" offsetX="0" offsetY="0"/></image>'
    )
    for number, scan in enumerate(scans):
        height, width = scan.shape[:2]
        dimensions = "".join(
            f'<dimension sizeX="{width >> r}" sizeY="{height >> r}" r="{r}" ifd="{1 + 2 * number + r}"/>'
            for r in (0, 1)
        )
        description += (
            f'<image name="scan"><pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
            f'<view sizeX="{width}" sizeY="{height}" offsetX="10" offsetY="10"/></image>'
        )
    with tifffile.TiffWriter(file, bigtiff=True) as tiff:
        description += "</collection></scn>"
        tiff.write(macro, photometric="rgb", description=description, metadata=None, tile=(16, 16))
        for level in (level for scan in scans for level in (scan, scan[::2, ::2])):
            tiff.write(level, photometric="rgb", metadata=None, tile=(16, 16))


def test_the_scan_of_a_leica_slide_is_read_not_the_picture_of_the_slide(tmp_path):
    macro = RNG.integers(200, 255, (64, 48, 3), np.uint8)
    scan = RNG.integers(0, 100, (128, 96, 3), np.uint8)
    write_leica(tmp_path / "a.scn", macro, scan)
    np.testing.assert_array_equal(read_image(tmp_path / "a.scn"), scan)
    assert read_shape(tmp_path / "a.scn") == (128, 96) and read_shape(tmp_path / "a.scn", 1) == (64, 48)
    for level, expected in enumerate((scan, scan[::2, ::2])):
        with open_rows(tmp_path / "a.scn", level) as rows:
            np.testing.assert_array_equal(rows[:], expected)


def test_each_scan_of_a_leica_slide_is_an_image_of_its_own(tmp_path):
    macro = RNG.integers(200, 255, (64, 48, 3), np.uint8)
    scans = [RNG.integers(0, 100, shape, np.uint8) for shape in ((128, 96, 3), (32, 48, 3))]
    write_leica(tmp_path / "a.scn", macro, *scans)
    samples = expand_planes([only(tmp_path / "a.scn")], None)
    assert [sample.id for sample in samples] == ["a_s0", "a_s1"]
    for sample, scan in zip(samples, scans, strict=True):
        np.testing.assert_array_equal(read_sample_image(sample), scan)
        for level, expected in enumerate((scan, scan[::2, ::2])):
            with open_rows(sample.image, level, sample.scene) as rows:
                assert isinstance(rows, TiffRows)
                np.testing.assert_array_equal(rows[:], expected)


def test_a_slide_of_ventana_is_refused_by_its_name_for_its_first_page_is_its_label(tmp_path):
    options = {"photometric": "rgb", "metadata": None, "software": "ScanOutputManager 1.1"}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        label = RNG.integers(0, 255, (40, 20, 3), np.uint8)
        tiff.write(label, description="Label_Image", extratags=[(700, 7, 0, b"<iScan/>", True)], **options)
        tiff.write(RNG.integers(0, 255, (64, 96, 3), np.uint8), tile=(16, 16), description="level=0", **options)
    for read in (read_image, read_shape):
        with pytest.raises(UserError, match=r"a\.tif: it is a slide of Ventana.* the ending \.bif"):
            read(tmp_path / "a.tif")


def test_the_thumbnail_of_an_aperio_slide_is_no_level(tmp_path):
    scan = RNG.integers(0, 255, (768, 768, 3), np.uint8)
    options = {"photometric": "rgb", "metadata": None, "software": False, "description": "Aperio Image Library v1"}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        tiff.write(scan, tile=(64, 64), **options)
        tiff.write(scan[::3, ::3], **options)  # the thumbnail, in one piece
        tiff.write(scan[::2, ::2], tile=(64, 64), **options)
        tiff.write(scan[::8, ::8], tile=(32, 32), **options)
    assert [read_shape(tmp_path / "a.svs", level) for level in range(3)] == [(768, 768), (384, 384), (96, 96)]


@pytest.mark.parametrize(("photometric", "compression"), [("ycbcr", "lzw"), ("cielab", None)])
def test_colours_that_are_not_converted_are_refused(tmp_path, photometric, compression):
    pixels = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, compression=compression)
    for read in (read_image, read_shape):
        with pytest.raises(UserError, match=f"its colours are {photometric.upper()}, which is not read"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [33003, 33005])
def test_jpeg_2000_of_aperio_is_refused_where_its_colours_would_be_wrong(tmp_path, compression):
    pixels = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    tile = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", mct=False)
    options = {"photometric": "rgb", "compression": compression, "tile": (32, 32)}
    tifffile.imwrite(tmp_path / "a.svs", iter([tile]), shape=pixels.shape, dtype=np.uint8, **options)
    if compression == 33005:
        np.testing.assert_array_equal(read_image(tmp_path / "a.svs"), pixels)
    else:
        with pytest.raises(UserError, match=r"a\.svs: its colours are YCbCr in JPEG 2000.*\.svslide"):
            read_image(tmp_path / "a.svs")


def test_an_empty_alpha_channel_says_nothing(tmp_path):
    pixels = np.dstack([RNG.integers(1, 255, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels[..., :3])
    with open_rows(tmp_path / "a.tif") as rows:
        np.testing.assert_array_equal(rows[:], pixels[..., :3])


def test_a_fourth_channel_that_is_no_alpha_is_refused(tmp_path):
    pixels = RNG.integers(0, 255, (32, 32, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(UserError, match="it holds 4 channels"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(UserError, match="it holds 4 channels"), open_rows(tmp_path / "a.tif") as rows:
        rows[:]


def test_a_palette_of_8_bits_is_not_black(tmp_path):
    palette = np.tile(np.arange(256, dtype=np.uint16), (3, 1))
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="palette", colormap=palette)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.repeat(GRAY[..., None], 3, axis=2))


def test_a_palette_may_have_two_colours(tmp_path):
    pixels = GRAY > 99
    palette = (320, 3, 6, (0, 65535, 65535, 0, 0, 0), True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", extratags=[palette], metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(3)
    expected = np.dstack([255 * pixels, 255 * ~pixels, 0 * pixels])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("tag", [("H", 2, (6, 1)), ("s", 0, "abc"), ("H", 1, 9)])
def test_an_orientation_that_is_none_is_none(tmp_path, tag):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, extratags=[(274, *tag, False)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), GRAY)
    assert read_shape(tmp_path / "a.tif") == GRAY.shape


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_of_inverted_gray_with_alpha_only_the_gray_is_inverted(tmp_path, planar):
    alpha = np.where(GRAY < 99, 0, 255).astype(np.uint8)
    pixels = np.stack([GRAY, alpha], axis=-1 if planar == "contig" else 0)
    options = {"photometric": "miniswhite", "extrasamples": ["unassalpha"], "planarconfig": planar}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    expected = np.where(alpha > 0, 255 - GRAY, 0)  # transparent pixels are black
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
