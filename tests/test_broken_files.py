"""Broken and unusual image files: each gives its own pixels, or one line that names the file."""

import io
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.files import UserError
from data.images import open_rows, read_image, read_shape
from data.sources import Sample
from data.stacks import expand_planes, read_sample_image
from Preprocessed_data import brightness, to_grayscale

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (13, 17), np.uint8)
RGB = RNG.integers(0, 256, (13, 17, 3), np.uint8)
ALPHA = np.full((13, 17), 255, np.uint8)
PALETTE = Image.fromarray(RGB).quantize(16)
MAX_SECONDS = 5  # for one file
MAX_GIGABYTES = 1


def encode(pixels, ending, **options):
    """The bytes that Pillow writes."""
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(stream, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending), **options)
    return stream.getvalue()


def encode_tiff(pixels, **options):
    """The bytes that tifffile writes."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def read_rows(file):
    with open_rows(file) as rows:
        return rows[0:5]


def interlace(gray):
    """An interlaced PNG, which Pillow reads but does not write: the seven passes of Adam7."""
    lines = b""
    for row, column, down, across in zip(
        (0, 0, 4, 0, 2, 0, 1), (0, 4, 0, 2, 0, 1, 0), (8, 8, 8, 4, 4, 2, 2), (8, 8, 4, 4, 2, 2, 1), strict=True
    ):
        for line in gray[row::down, column::across]:
            lines += b"\0" + line.tobytes() if line.size else b""
    return make_png(*gray.shape, lines, interlaced=1)


def make_png16(pixels):
    """A PNG of 16 bits and colours, with or without alpha, which Pillow does not write."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    return make_png(*pixels.shape[:2], lines, bits=16, colour={2: 4, 3: 2, 4: 6}[pixels.shape[-1]])


def make_png(height, width, lines, interlaced=0, bits=8, colour=0):
    """A PNG with this header and these lines, whatever they are; gray unless it has a colour."""

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    pieces = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


RGB16 = RGB.astype(np.uint16) * 257 - GRAY[..., None]  # its low bytes differ from its high ones
RIGHT = {  # name -> the file's bytes and the pixels that it holds
    "gray.png": (encode(GRAY, "png"), GRAY),
    "gray16.png": (encode(GRAY.astype(np.uint16) * 200, "png"), GRAY.astype(np.uint16) * 200),
    "bit.png": (encode(GRAY > 127, "png"), GRAY > 127),
    "rgb.png": (encode(RGB, "png"), RGB),
    "rgb16.png": (make_png16(RGB16), RGB16),
    "rgb16_alpha.png": (make_png16(np.dstack([RGB16, ALPHA])), RGB16),
    "gray16_alpha.png": (make_png16(np.dstack([RGB16[..., 0], ALPHA])), RGB16[..., 0]),
    "gray_alpha.png": (encode(np.dstack([GRAY, ALPHA]), "png"), GRAY),
    "rgb_alpha.png": (encode(np.dstack([RGB, ALPHA]), "png"), RGB),
    "palette.png": (encode(PALETTE, "png"), np.asarray(PALETTE.convert("RGB"))),
    "transparent.png": (
        encode(PALETTE, "png", transparency=3),
        np.where((np.asarray(PALETTE) == 3)[..., None], 0, np.asarray(PALETTE.convert("RGB"))),
    ),
    "interlaced.png": (interlace(GRAY), GRAY),
    "gray.bmp": (encode(GRAY, "bmp"), GRAY),
    "rgb.bmp": (encode(RGB, "bmp"), RGB),
    "palette.tif": (encode(PALETTE, "tif"), np.asarray(PALETTE.convert("RGB"))),
    "bit.tif": (encode(GRAY > 127, "tif"), GRAY > 127),
    "fax.tif": (encode(GRAY > 127, "tif", compression="group4"), GRAY > 127),
    "lzw.tif": (encode(RGB, "tif", compression="tiff_lzw"), RGB),
    "deflate.tif": (encode(RGB, "tif", compression="tiff_deflate"), RGB),
    "packbits.tif": (encode(RGB, "tif", compression="packbits"), RGB),
    "zlib.tif": (encode_tiff(RGB, compression="zlib", tile=(16, 16)), RGB),
    "zstd.tif": (encode_tiff(RGB, compression="zstd"), RGB),
    "jpeg2000.tif": (encode_tiff(RGB, compression="jpeg2000"), RGB),  # without loss
    "bigtiff.tif": (encode_tiff(GRAY, bigtiff=True), GRAY),
    "big_endian.tif": (encode_tiff(GRAY.astype(">u2"), byteorder=">"), GRAY.astype(np.uint16)),
    "planar.tif": (encode_tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"), RGB),
    "rgb16.tif": (encode_tiff(RGB.astype(np.uint16) * 201, photometric="rgb"), RGB.astype(np.uint16) * 201),
    "inverted.tif": (encode_tiff(GRAY, photometric="miniswhite"), 255 - GRAY),
    "int16.tif": (encode_tiff(GRAY.astype(np.int16) - 50), GRAY.astype(np.int16) - 50),
    "uint32.tif": (encode_tiff(GRAY.astype(np.uint32) * 70_000), GRAY.astype(np.uint32) * 70_000),
    "float16.tif": (encode_tiff(GRAY.astype(np.float16)), GRAY.astype(np.float16)),
    "float64.tif": (encode_tiff(GRAY / 255.0), GRAY / 255.0),
    "really.tif": (encode(GRAY, "png"), GRAY),
    "really.png": (encode_tiff(GRAY), GRAY),
    "really.jpg": (encode(GRAY, "png"), GRAY),
    "point.png": (encode(GRAY[:1, :1], "png"), GRAY[:1, :1]),
    "line.png": (encode(np.resize(GRAY, (1, 5000)), "png"), np.resize(GRAY, (1, 5000))),
    "column.tif": (encode_tiff(np.resize(GRAY, (5000, 1))), np.resize(GRAY, (5000, 1))),
    "black.png": (encode(0 * GRAY, "png"), 0 * GRAY),
    "white.png": (encode(0 * GRAY + 255, "png"), 0 * GRAY + 255),
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_variant_gives_its_own_pixels(tmp_path, name):
    content, pixels = RIGHT[name]
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image, pixels)
    assert image.dtype.newbyteorder("=") == pixels.dtype
    assert read_shape(tmp_path / name) == pixels.shape[:2]
    with open_rows(tmp_path / name) as rows:
        np.testing.assert_array_equal(rows[0:9], pixels[0:9])
    gray = to_grayscale(image)
    assert gray.dtype == np.float32 and 0 <= gray.min() <= gray.max() <= 1


@pytest.mark.parametrize("ending", ["jpg", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_lossy_images_are_nearly_right(tmp_path, ending, mode):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    picture = Image.fromarray(np.dstack([smooth] * 3)).convert(mode)
    compression = {"compression": "jpeg"} if ending == "tif" and mode != "CMYK" else {}
    (tmp_path / f"a.{ending}").write_bytes(encode(picture, ending, **compression))
    image = brightness(read_image(tmp_path / f"a.{ending}"))
    assert image.shape == smooth.shape and abs(image.astype(int) - smooth).mean() < 6


STACK = np.stack([GRAY] * 5)
WRONG = {  # name -> the file's bytes and what its error says
    "stack.tif": (encode_tiff(STACK, photometric="minisblack"), r"5 pages.*\(5, 13, 17\)"),
    "volume.tif": (encode_tiff(STACK, volumetric=True, tile=(5, 16, 16)), "pages|shape"),
    "hyperstack.tif": (encode_tiff(np.stack([STACK] * 2), imagej=True), "axes ZCYX|axes TZYX|pages"),
    "channels.tif": (encode_tiff(np.dstack([GRAY] * 2), photometric="minisblack", planarconfig="contig"), "2 channels"),
    "four.tif": (encode_tiff(np.dstack([GRAY] * 4), photometric="minisblack", planarconfig="contig"), "4 channels"),
    "cut16.png": (make_png16(RGB16)[:-200], "not a readable image"),
    "five.tif": (encode_tiff(np.dstack([GRAY] * 5), photometric="minisblack", planarconfig="contig"), r"\(13, 17, 5\)"),
    "complex.tif": (encode_tiff(GRAY.astype(np.complex64)), "real numbers"),
    "nan.tif": (encode_tiff(np.where(GRAY > 9, GRAY, np.nan).astype(np.float32)), "NaN"),
    "infinite.tif": (encode_tiff(np.where(GRAY > 9, GRAY, np.inf).astype(np.float32)), "NaN"),
    "text.png": (b"no picture", "known format"),
    "empty.png": (b"", "known format"),
    "web.jpg": (b"<!doctype html><title>404</title>", "known format"),
    "huge.png": (make_png(100_000, 100_000, b"\0" * 1000), "too many"),
    "line.png": (make_png(1, 2**31 - 1, b"\0" * 1000), "too many"),
    "promised.png": (make_png(12_000, 12_000, b"\0" * 1000), "truncated"),
    "flat.png": (make_png(0, 5, b""), "known format"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, name):
    content, reason = WRONG[name]
    (tmp_path / name).write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(UserError, match=rf"{name}.*({reason})") as error:
        read_image(tmp_path / name)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)  # an address in memory
    assert time.perf_counter() - started < MAX_SECONDS


def test_a_tiff_that_claims_to_be_huge(tmp_path):
    content = bytearray(encode_tiff(GRAY))
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        offsets = [tiff.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for offset in offsets:
        content[offset : offset + 4] = struct.pack("<I", 100_000)
    (tmp_path / "huge.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"huge\.tif"):
        read_image(tmp_path / "huge.tif")
    with pytest.raises(UserError, match=r"huge\.tif"), open_rows(tmp_path / "huge.tif"):
        pass


TILES = encode_tiff(RGB, compression="zlib", tile=(16, 16))
CLAIMS = {  # name -> a TIFF, one of its tags, where in the tag's 12 bytes and what is written there
    "tile of 200 GB": (TILES, "TileLength", 8, struct.pack("<I", 2**32 - 16)),
    "row of 100 GB": (encode_tiff(RGB / 255, photometric="rgb"), "ImageWidth", 8, struct.pack("<I", 2**32 - 1)),
    "several widths": (TILES, "ImageWidth", 4, struct.pack("<I", 99)),
    "text for sizes": (encode_tiff(RGB), "StripByteCounts", 2, struct.pack("<H", 2)),
    "unknown planes": (encode_tiff(RGB), "PlanarConfiguration", 8, struct.pack("<H", 9473)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_that_cannot_be_true_is_named(tmp_path, claim):
    content, tag, offset, value = CLAIMS[claim]
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        start = tiff.pages[0].tags[tag].offset + offset
    (tmp_path / "a.tif").write_bytes(content[:start] + value + content[start + len(value) :])
    for read in (read_image, read_rows):
        with pytest.raises(UserError, match=r"a\.tif"):
            read(tmp_path / "a.tif")


DAMAGED = {
    "a.png": encode(RGB, "png"),
    "a.jpg": encode(RGB, "jpg"),
    "a.bmp": encode(RGB, "bmp"),
    "plain.tif": encode_tiff(RGB),
    "tiles.tif": encode_tiff(RGB, compression="zlib", tile=(16, 16)),
    "lzw.tif": encode(RGB, "tif", compression="tiff_lzw"),
}


def damage(content, count, rng):
    """The file cut at every length; and `count` times with one to three other bytes."""
    yield from (content[:length] for length in range(len(content)))
    for _ in range(count):
        changed = bytearray(content)
        end = len(content)
        if rng.random() < 0.5:
            end = min(200, end)  # the header is there
        for index in rng.integers(0, end, rng.integers(1, 4)):
            changed[index] = rng.integers(256)
        yield bytes(changed)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_named(tmp_path, name, count):
    file = tmp_path / name
    outcomes = []
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = read_memory("VmRSS")
    for content in damage(DAMAGED[name], count, np.random.default_rng(1)):
        file.write_bytes(content)
        started = time.perf_counter()
        for read in read_image, read_rows:
            try:
                with warnings.catch_warnings(action="ignore"):
                    outcomes.append(read(file).ndim in (2, 3))
            except UserError as error:
                assert name in str(error) and "\n" not in str(error)
                outcomes.append(False)
        assert time.perf_counter() - started < MAX_SECONDS
    assert 0 < sum(outcomes) < len(outcomes)
    assert read_memory("VmHWM") - before < MAX_GIGABYTES


CHANNELS = np.random.default_rng(1).integers(0, 255, (3, 2, 6, 7), np.uint8)
STACKS = {
    "imagej.tif": encode_tiff(CHANNELS, imagej=True, metadata={"axes": "ZCYX"}),
    "ome.tif": encode_tiff(CHANNELS, photometric="minisblack", ome=True, metadata={"axes": "ZCYX"}),
    "pages.tif": encode_tiff(CHANNELS[:, 0], photometric="minisblack", metadata=None),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_planes_of_damaged_stacks_are_read_or_named(tmp_path, name, count):
    outcomes = []
    for content in damage(STACKS[name], count, np.random.default_rng(1)):
        (tmp_path / name).write_bytes(content)
        started = time.perf_counter()
        try:
            with warnings.catch_warnings(action="ignore"):
                samples = expand_planes([Sample(name, tmp_path / name)], None)
                outcomes.append(all(len(read_sample_image(sample).shape) == 2 for sample in samples))
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)
            outcomes.append(False)
        assert time.perf_counter() - started < MAX_SECONDS
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("height", [5, 2**30])
def test_a_page_of_a_stack_that_claims_another_shape(tmp_path, height):
    content = bytearray(STACKS["imagej.tif"])
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        offset = tiff.pages[2].aspage().tags["ImageLength"].valueoffset
    content[offset : offset + 4] = struct.pack(">I", height)
    (tmp_path / "a.tif").write_bytes(content)
    first, damaged, last = expand_planes([Sample("a", tmp_path / "a.tif")], None)
    with pytest.raises(UserError, match=r"a\.tif: its (header and its data|pages differ)"):
        read_sample_image(damaged)
    for z, sample in ((0, first), (2, last)):
        np.testing.assert_array_equal(read_sample_image(sample).planes, CHANNELS[z])


def read_memory(what):
    """A line of what Linux says of this process's memory, in GB; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(what)) / 1e6
