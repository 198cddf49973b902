"""Reads pixels: whole images of PNG, TIFF, JPEG, BMP and of microscopes, and the rows of large TIFFs and slides.

In:  an image file, on disk or in a .zip.
Out: (H, W) or (H, W, 3) with the dtype of the file; alpha is dropped. A file that cannot be read is
     a `UserError` that names it and says why.
"""

import io
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps
from tifffile import PHOTOMETRIC

from data.files import File, UserError, decoding
from data.microscopes import Scene, is_microscope_file, open_scene

MAX_PIXELS = 178_956_970  # of an image read at once; a file of a kilobyte may claim any size
MAX_CHUNK_BYTES = 2**31  # of one strip or tile of a TIFF when it is decoded
MAX_VALUE = 1e30  # of a pixel; larger values overflow float32 and are no measurement
ROWS_AT_ONCE = 256  # rows of a large image that `subsample` holds
MIN_REDUCTION = 1.5  # of width and height, from a level of a pyramid to the next
MAX_LEVEL_ERROR = 2  # pixels; levels are rounded
ORIENTATION_TAG = 274  # of TIFF and EXIF: 1 as stored, 2 to 4 flipped, 5 to 8 with rows and columns exchanged
TURNED = (5, 6, 7, 8)
TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COLOUR_MODES = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # Pillow modes that become RGB
ROW_CHANNELS = {
    PHOTOMETRIC.MINISBLACK: (1,),
    PHOTOMETRIC.RGB: (3, 4),
    PHOTOMETRIC.YCBCR: (3,),
}  # `TiffRows` reads these
PILLOW_LOCK = threading.Lock()  # held while Pillow's limit of pixels is off


def read_image(file: File, scene: int | None = None, as_imagej: bool = False) -> np.ndarray:
    """Reads one image file.

    Args:
        file: an image of any format.
        scene: of a file of a microscope, see data/microscopes.py; None: its only one.
        as_imagej: whether the values of ImageJ's files are those that ImageJ counts with, not the colours and the
            inverted gray that it shows them in.

    Returns:
        image: (H, W) or (H, W, 3), bool, uint8, uint16 or the dtype of a TIFF.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is no image, is damaged or is of an unsupported kind.
    """
    if is_microscope_file(file):
        with open_scene(file, scene) as found:
            return SceneRows(found, file)[:]
    with decoding(file):
        content = file.read_bytes()
    if content[:4] in TIFF_HEADERS:
        image = _decode_tiff(content, file, as_imagej)
    else:
        image = _decode_with_pillow(content, file)
    return check_image(_drop_alpha(image), file)


def read_shape(file: File, level: int = 0, scene: int | None = None) -> tuple[int, int]:
    """(H, W) of an image file, or of a level of its pyramid, from its header alone; raises as `read_image`."""
    if is_microscope_file(file):
        with open_scene(file, scene) as found:
            return find_level(found.levels, level, file)
    with decoding(file), file.open("rb") as stream:
        if _is_tiff(stream):
            page = open_level(tifffile.TiffFile(stream), level, file)
            shape = (page.imagelength, page.imagewidth)
            orientation = tiff_orientation(page)
        else:
            with _open_picture(stream) as picture:
                shape = picture.size[::-1]
                orientation = picture.getexif().get(ORIENTATION_TAG, 1)
    return shape[::-1] if orientation in TURNED else shape


@contextmanager
def open_rows(file: File, level: int = 0, scene: int | None = None) -> Iterator["TiffRows | SceneRows | np.ndarray"]:
    """Yields an object whose slice [a:b] gives rows a to b of the image, or of a level of its pyramid.

    It is a `TiffRows` or `SceneRows`, which reads no more of a TIFF or slide than the slice needs, or the whole image
    as `read_image` returns it where the file cannot be read so. Raises as `read_image`.
    """
    if is_microscope_file(file):
        with open_scene(file, scene) as found:
            rows = SceneRows(found, file, level)
            yield rows if found.reads_regions else rows[:]
        return
    with decoding(file):
        stream = file.open("rb")
    with stream:
        with decoding(file):
            is_tiff = _is_tiff(stream)
        rows = TiffRows(stream, file, level) if is_tiff else None
        if rows is None or not rows.is_readable():
            if level:
                raise UserError(f"{file}: it has no levels that can be read; leave out --level")
            rows = read_image(file)
        yield rows


class TiffRows:
    """The first page of a TIFF, or a level of it; `rows[a:b]` decodes only the strips or tiles that these cross."""

    def __init__(self, stream: BinaryIO, file: File, level: int = 0):
        self.stream = stream
        self.file = file
        with decoding(file):
            self.tiff = tifffile.TiffFile(stream)
        self.page = open_level(self.tiff, level, file)
        self.shape = self.page.shape
        self.dtype = self.page.dtype

    def is_readable(self) -> bool:
        """Whether the file holds one gray or interleaved RGB image that can be decoded here."""
        with decoding(self.file):
            is_stack = _is_stack(self.tiff)
            is_turned = tiff_orientation(self.page) != 1
        is_planar = self.page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        channels = ROW_CHANNELS.get(self.page.photometric, ())
        if is_stack or is_turned or is_planar or self.page.samplesperpixel not in channels:
            return False
        try:
            self[:1]  # decode one row to see whether it works
        except UserError:
            return False
        return True

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(b - a, W) or (b - a, W, 3) of rows a to b; a slice with a step is not supported."""
        start, stop, _ = rows.indices(self.shape[0])
        return check_image(_drop_alpha(self._decode_rows(start, stop)), self.file)

    def _decode_rows(self, start: int, stop: int) -> np.ndarray:
        tile_height = self.page.chunks[0]
        tiles_across = math.prod(self.page.chunked[1:])
        first = start // tile_height * tiles_across
        end = math.ceil(stop / tile_height) * tiles_across
        rows = np.zeros((stop - start, *self.shape[1:]), self.dtype)
        for index in range(first, end):
            with decoding(self.file):
                self.stream.seek(self.page.dataoffsets[index])
                content = self.stream.read(self.page.databytecounts[index]) or None
                tile, position, size = self.page.decode(content, index, jpegtables=self.page.jpegtables)
            if tile is None:  # a tile that was left out is background
                continue
            _, _, top, left, _ = position
            tile = tile[0, : size[1], : size[2]].reshape(*size[1:3], *self.shape[2:])
            tile = tile[max(start - top, 0) : stop - top, : self.shape[1] - left]
            row = max(top - start, 0)
            rows[row : row + len(tile), left : left + tile.shape[1]] = tile
        return rows


class SceneRows:
    """A scene of a microscope's file that holds one gray or RGB image, or a level of it, by its rows."""

    def __init__(self, scene: Scene, file: File, level: int = 0):
        _check_axes(scene, file)
        if scene.sizes:
            sizes = ", ".join(f"{size} along {axis}" for axis, size in scene.sizes.items())
            raise UserError(f"{file}: it holds planes ({sizes}); save the one that is meant as a file of its own")
        self.scene = scene
        self.file = file
        self.level = level
        self.height, _ = find_level(scene.levels, level, file)
        first = read_scene(scene, file, level, 0, 1)
        self.shape = (self.height, *first.shape[1:])
        self.dtype = first.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(b - a, W) or (b - a, W, 3) of rows a to b; a slice with a step is not supported."""
        start, stop, _ = rows.indices(self.height)
        return read_scene(self.scene, self.file, self.level, start, stop)


def read_scene(
    scene: Scene, file: File, level: int, start: int, stop: int, c: int = 0, z: int = 0, t: int = 0
) -> np.ndarray:
    """Rows of a plane of a microscope's file, (stop - start, W) or (stop - start, W, 3); raises as `read_image`."""
    _check_axes(scene, file)
    shape = (stop - start, find_level(scene.levels, level, file)[1])
    _check_size(shape, file)
    with decoding(file):
        values = scene.read(level, start, stop, c, z, t)
    if values.shape[:2] != shape:
        raise UserError(f"{file}: its planes are not as it describes them; save it as an OME-TIFF")
    return check_image(_drop_alpha(values), file)


def _check_axes(scene: Scene, file: File) -> None:
    unknown = scene.sizes.keys() - set("TZC")
    if unknown:
        raise UserError(f"{file}: its axes {', '.join(sorted(unknown))} are not known; save it as an OME-TIFF")


def find_level(levels: Sequence[tuple[int, int]], level: int, file: File) -> tuple[int, int]:
    """(H, W) of a level of a pyramid. Raises UserError where there is no such level."""
    if level >= len(levels):
        sizes = ", ".join(f"{number} ({height}×{width})" for number, (height, width) in enumerate(levels))
        raise UserError(f"{file}: no level {level}; its levels are {sizes}")
    return levels[level]


def pyramid_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The levels of a pyramid, the first page and then smaller and smaller ones; one page where there is no pyramid.

    Not every scanner marks them, so a level is every page, or page below the first one, with the sides' ratio of the
    first page; labels and overviews of slides have another.
    """
    first = tiff.pages[0]
    pages = [level.pages[0] for level in tiff.series[0].levels[1:]]
    pages += tiff.pages[1:]
    levels = {}
    for page in pages:
        page = page.keyframe
        reduction = first.imagewidth / page.imagewidth
        has_same_ratio = abs(first.imagelength / reduction - page.imagelength) <= MAX_LEVEL_ERROR
        if reduction > MIN_REDUCTION and has_same_ratio:
            levels.setdefault(page.imagewidth, page)
    return [first, *(levels[width] for width in sorted(levels, reverse=True))]


def open_level(tiff: tifffile.TiffFile, level: int, file: File) -> tifffile.TiffPage:
    """The checked page of a level of a TIFF, 0 the largest; raises as `read_image`."""
    with decoding(file):
        page = tiff.pages[0]
    check_page(page, file)
    if level == 0:
        return page
    with decoding(file):
        pages = pyramid_pages(tiff)
    find_level([(page.imagelength, page.imagewidth) for page in pages], level, file)
    check_page(pages[level], file)
    return pages[level]


def subsample(image: np.ndarray | TiffRows | SceneRows, max_pixels: int) -> np.ndarray:
    """Every n-th row and column of an image, about `max_pixels` at most; memory stays small."""
    height, width = image.shape[:2]
    step = math.ceil(math.sqrt(height * width / max_pixels))
    rows_at_once = max(ROWS_AT_ONCE // step, 1) * step
    pieces = []
    for start in range(0, height, rows_at_once):
        rows = image[start : start + rows_at_once]
        pieces.append(rows[::step, ::step].copy())  # a view would keep all rows that were read
    return np.concatenate(pieces)


def halve(gray: np.ndarray) -> np.ndarray:
    """Halves height and width; each new pixel is the mean of four.

    Args:
        gray: (..., H, W) float, H and W at least 1; an odd last row or column is repeated.

    Returns:
        (..., ceil(H / 2), ceil(W / 2)) float32.
    """
    odd = [(0, side % 2) for side in gray.shape[-2:]]
    leading = [(0, 0)] * (gray.ndim - 2)
    gray = np.pad(gray, leading + odd, "edge").astype(np.float32)
    rows = gray[..., ::2, :] + gray[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def read_tiff_header(stream: BinaryIO, file: File) -> tifffile.TiffFile | None:
    """A TIFF whose pages are still to be read, None for other files; raises as `read_image`."""
    if not _is_tiff(stream):
        return None
    with decoding(file):
        tiff = tifffile.TiffFile(stream)
        page = tiff.pages[0]
    check_page(page, file)
    return tiff


def _is_tiff(stream: BinaryIO) -> bool:
    """Tells a TIFF by its first bytes, because a name may have the wrong ending."""
    header = stream.read(4)
    stream.seek(0)
    return header in TIFF_HEADERS


def _check_size(shape: tuple[int, int], file: File) -> None:
    if math.prod(shape) > MAX_PIXELS:
        raise UserError(
            f"{file}: its {shape[0]}×{shape[1]} pixels are too many to read at once; "
            "Predict_masks.py reads a gray or interleaved RGB TIFF in parts; save it as one"
        )


def check_page(page: tifffile.TiffPage, file: File) -> None:
    """Raises UserError where the header of a TIFF claims other data than there is."""
    with decoding(file):
        offsets = page.dataoffsets
        sizes = page.databytecounts
        numbers = (*page.shape, *page.chunks, *page.chunked, *offsets, *sizes)  # or what is damaged
        end = page.parent.filehandle.size
        value_bytes = page.dtype.itemsize
    has_numbers = all(isinstance(number, int) for number in numbers)
    has_known_planes = page.planarconfig in tuple(tifffile.PLANARCONFIG)
    if not (page.shape and has_numbers and has_known_planes):
        raise UserError(f"{file}: its header is damaged; replace or remove it")
    count = math.prod(page.chunked)
    chunk_bytes = math.prod(page.chunks) * value_bytes
    if count == 0 or len(offsets) != count or len(sizes) != count or chunk_bytes > MAX_CHUNK_BYTES:
        raise UserError(f"{file}: its header and its data do not agree; replace or remove it")
    if any(offset + size > end for offset, size in zip(offsets, sizes, strict=True)):
        raise UserError(f"{file}: it is cut off; replace or remove it")


def _is_stack(tiff: tifffile.TiffFile) -> bool:
    """Whether a TIFF holds more than one plane.

    Planes have the shape of the first page. Pages of other shapes are the smaller levels of a pyramid, which not every
    scanner marks as such, or the label, the overview and the thumbnail of a slide.
    """
    shape = tiff.pages[0].shape
    planes = sum(page.keyframe.shape == shape and not page.keyframe.is_reduced for page in tiff.pages)
    return planes > 1 or math.prod(tiff.series[0].shape) != math.prod(shape)


def _decode_tiff(content: bytes, file: File, as_imagej: bool) -> np.ndarray:
    with decoding(file):
        tiff = tifffile.TiffFile(io.BytesIO(content))
        page = tiff.pages[0]
    check_page(page, file)
    _check_size((page.imagelength, page.imagewidth), file)
    with decoding(file):
        is_stack = _is_stack(tiff)
        series = tiff.series[0]
        page_count = len(tiff.pages)
    if is_stack:
        raise UserError(
            f"{file}: it holds {page_count} pages, the first of shape {series.shape}, axes "
            f"{series.axes}; save the plane that is meant as a file of its own"
        )
    with decoding(file):
        image = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and image.ndim == 3:
        image = np.moveaxis(image, 0, -1)
    if not (as_imagej and tiff.is_imagej):
        image = _tiff_colours(image, page, file)
    return turn_image(image, tiff_orientation(page))


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """How the pixels of a TIFF page are turned: see ORIENTATION_TAG."""
    tag = page.tags.get(ORIENTATION_TAG)
    return 1 if tag is None else int(tag.value)


def turn_image(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image as viewers show it, from how a TIFF stores it: see ORIENTATION_TAG."""
    if orientation in TURNED:
        image = np.swapaxes(image, 0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _tiff_colours(image: np.ndarray, page: tifffile.TiffPage, file: File) -> np.ndarray:
    """Gray or RGB(A) of a decoded TIFF page, whichever way the page stores its colours."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        with decoding(file):  # the palette of a damaged file may have any shape
            palette = (page.colormap >> 8).astype(np.uint8)  # (3, 256), 16 bits in the file
            return np.moveaxis(palette[:, image], 0, -1)
    if page.photometric == PHOTOMETRIC.SEPARATED and image.ndim == 3 and image.dtype == np.uint8:
        light = 255 - image[..., :4].astype(np.uint16)  # of cyan, magenta, yellow and black ink
        return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
    channels = image.shape[-1] if image.ndim == 3 else 1
    is_colour_or_alpha = page.photometric == PHOTOMETRIC.RGB or page.extrasamples[-1:] in ((1,), (2,))
    if channels in (2, 4) and not is_colour_or_alpha:
        raise UserError(f"{file}: it holds {channels} channels; save that of the nuclei as its own file")
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        return ~image if image.dtype.kind in "bu" else -image
    return image


def _open_picture(stream: BinaryIO) -> Image.Image:
    """Opens a picture with Pillow, whatever its size; `_check_size` sets the limit."""
    with PILLOW_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None  # Pillow would warn at half of our limit
        try:
            return Image.open(stream)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode_with_pillow(content: bytes, file: File) -> np.ndarray:
    """Pixels of any format that Pillow reads."""
    with decoding(file):
        picture = _open_picture(io.BytesIO(content))
    _check_size(picture.size[::-1], file)
    # Pillow's raw mode, such as "RGB;16B", tells the bits of a PNG; its mode does not, and Pillow cuts colours to 8.
    has_16_bits = picture.format == "PNG" and ";16" in str(picture.tile[:1])
    if has_16_bits and not picture.mode.startswith("I"):
        with decoding(file):
            orientation = picture.getexif().get(ORIENTATION_TAG, 1)
            return turn_image(imagecodecs.png_decode(content), orientation)
    with decoding(file), picture:
        picture = ImageOps.exif_transpose(picture)  # as viewers show it
        if picture.mode in COLOUR_MODES:
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        image = np.asarray(picture)
    return image.view(np.uint8) > 0 if image.dtype == bool else image  # Pillow's True is a byte of 255


def _drop_alpha(image: np.ndarray) -> np.ndarray:
    """Removes the alpha channel; transparent pixels become 0, a flat ground whatever colours they hide."""
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        is_transparent = image[..., -1] == 0
        image = image[..., :-1]
        if is_transparent.any():
            image = np.where(is_transparent[..., None], np.zeros((), image.dtype), image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return image


def check_image(image: np.ndarray, file: File) -> np.ndarray:
    """Returns the image if it is one gray or RGB image of real, finite numbers."""
    is_gray = image.ndim == 2
    is_rgb = image.ndim == 3 and image.shape[-1] == 3
    if not (is_gray or is_rgb) or 0 in image.shape:
        raise UserError(f"{file}: expected one gray or RGB image, this has shape {image.shape}")
    if image.dtype.kind not in "buif":
        raise UserError(f"{file}: expected real numbers, these are {image.dtype}; remake it")
    if image.dtype.kind == "f" and not float(np.abs(image).max()) < MAX_VALUE:
        raise UserError(f"{file}: some of its values are NaN or too large; replace or remove it")
    return image
