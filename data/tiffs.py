"""Reads TIFFs: whole ones, the rows of large ones, and the levels of their pyramids.

In:  a file that begins as a TIFF does.
Out: pixels with the dtype of the file. A TIFF that cannot be read is a `UserError` that names it and says why.
"""

import functools
import io
import math
from typing import BinaryIO

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from data.files import File, UserError, decoding
from data.pixels import ORIENTATION_TAG, check_image, check_size, drop_alpha, find_level, invert, turn_image
from data.tiff_series import list_images, main_series, open_tiff, pyramid_pages

MAX_CHUNK_BYTES = 2**31  # size of the largest strip or tile of a TIFF when it is decoded
ROWS_AT_ONCE = 256  # that are searched for a pixel that is not transparent
TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LAB = (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB, PHOTOMETRIC.ITULAB)
JPEGS = (6, 7, 33007, 34892)  # compressions; tifffile makes RGB of YCbCr only where it decodes these
APERIO_YCBCR = 33003  # compression: JPEG 2000 with the colours YCbCr, whatever the file says
FIRST_CHROMA = 46  # byte of such a tile that tells the subsampling of Cb; imagecodecs makes RGB only where it is not 1
ROW_CHANNELS = {  # photometric interpretation -> numbers of channels, of the pages that `TiffRows` reads
    PHOTOMETRIC.MINISBLACK: (1,),
    PHOTOMETRIC.RGB: (3, 4),
    PHOTOMETRIC.YCBCR: (3,),
}


def decode_tiff(content: bytes, file: File, scene: int | None, as_imagej: bool) -> np.ndarray:
    """The image of a TIFF, its alpha included; arguments, and what is raised, as `data.images.read_image`."""
    tiff = open_tiff(io.BytesIO(content), file)
    page = open_level(tiff, 0, file, scene)
    check_size((page.imagelength, page.imagewidth), file)
    with decoding(file):
        image_count = len(list_images(tiff))
        is_stack = _is_stack(tiff, scene)
        series = main_series(tiff, scene)
        page_count = len(tiff.pages)
    if scene is None and image_count > 1:
        raise UserError(f"{file}: it holds {image_count} images; save the one that is meant as a file of its own")
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
        image = convert_colours(image, page, file)
    return turn_image(image, tiff_orientation(page))


class TiffRows:
    """An image of a TIFF, or a level of it; `rows[a:b]` decodes only the strips or tiles that these cross."""

    def __init__(self, stream: BinaryIO, file: File, level: int = 0, scene: int | None = None):
        self.stream = stream
        self.file = file
        self.scene = scene
        self.tiff = open_tiff(stream, file)
        self.page = open_level(self.tiff, level, file, scene)
        self.shape = self.page.shape
        self.dtype = self.page.dtype
        # Hamamatsu's tiles lack the header of a JPEG.
        self.decode_options = {"jpegtables": self.page.jpegtables, "jpegheader": self.page.jpegheader}

    def is_readable(self) -> bool:
        """Whether the file holds one gray or interleaved RGB image that can be decoded here."""
        with decoding(self.file):
            is_other = _is_stack(self.tiff, self.scene) or (self.scene is None and len(list_images(self.tiff)) > 1)
            is_turned = tiff_orientation(self.page) != 1
        is_planar = self.page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        channels = ROW_CHANNELS.get(self.page.photometric, ())
        if is_other or is_turned or is_planar or self.page.samplesperpixel not in channels:
            return False
        if self.page.samplesperpixel == 4 and not has_alpha(self.page):
            return False  # `decode_tiff` says what it is
        try:
            self[:1]  # decode one row to see whether it works
        except UserError:
            return False
        return True

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(b - a, W) or (b - a, W, 3) of rows a to b; a slice with a step is not supported."""
        start, stop, _ = rows.indices(self.shape[0])
        values = self._decode_rows(start, stop)
        if self.shape[2:] == (4,) and not values[..., 3].any() and self._has_opaque_pixels:
            values[:] = 0  # `drop_alpha` would take the alpha channel of these rows for an empty one
        return check_image(drop_alpha(values), self.file)

    @functools.cached_property
    def _has_opaque_pixels(self) -> bool:
        """Whether the alpha channel of the whole image is not empty."""
        starts = range(0, self.shape[0], ROWS_AT_ONCE)
        return any(self._decode_rows(row, min(row + ROWS_AT_ONCE, self.shape[0]))[..., 3].any() for row in starts)

    def _decode_rows(self, start: int, stop: int) -> np.ndarray:
        if is_stored_whole(self.page):
            row_values = math.prod(self.shape[1:])
            offset = self.page.dataoffsets[0] + start * row_values * self.dtype.itemsize
            dtype = self.dtype.newbyteorder(self.tiff.byteorder)
            with decoding(self.file):
                values = self.tiff.filehandle.read_array(dtype, (stop - start) * row_values, offset)
            return values.reshape(stop - start, *self.shape[1:]).astype(self.dtype)
        tile_height = self.page.chunks[0]
        tiles_across = math.prod(self.page.chunked[1:])
        first = start // tile_height * tiles_across
        end = math.ceil(stop / tile_height) * tiles_across
        rows = np.zeros((stop - start, *self.shape[1:]), self.dtype)
        for index in range(first, end):
            with decoding(self.file):
                self.stream.seek(self.page.dataoffsets[index])
                content = self.stream.read(self.page.databytecounts[index]) or None
                # (1, h, w, channels); at the edges of the image only `size` of it is filled
                tile, position, size = self.page.decode(content, index, **self.decode_options)
            if tile is None:  # a tile that was left out is background
                continue
            _, _, top, left, _ = position
            tile = tile[0, : size[1], : size[2]].reshape(*size[1:3], *self.shape[2:])
            tile = tile[max(start - top, 0) : stop - top, : self.shape[1] - left]
            row = max(top - start, 0)
            rows[row : row + len(tile), left : left + tile.shape[1]] = tile
        return rows


def read_tiff_header(stream: BinaryIO, file: File) -> tifffile.TiffFile | None:
    """A TIFF whose pages are still to be read, None for other files; raises as `read_image`."""
    if not is_tiff(stream):
        return None
    tiff = open_tiff(stream, file)
    open_level(tiff, 0, file)
    return tiff


def open_level(tiff: tifffile.TiffFile, level: int, file: File, scene: int | None = None) -> tifffile.TiffPage:
    """The checked page of a level of an image of a TIFF, 0 the largest; raises as `read_image`."""
    with decoding(file):
        first = tiff.pages[0]
    check_page(first, file)
    with decoding(file):
        pages = [main_series(tiff, scene).keyframe] if level == 0 else pyramid_pages(tiff, scene)
    find_level([(page.imagelength, page.imagewidth) for page in pages], level, file)
    check_page(pages[level], file)
    return pages[level]


def is_tiff(stream: BinaryIO) -> bool:
    """Whether a file is a TIFF, by its first bytes, because a name may have the wrong ending."""
    header = stream.read(4)
    stream.seek(0)
    return header in TIFF_HEADERS


def check_page(page: tifffile.TiffPage, file: File) -> None:
    """Raises UserError where the header of a TIFF claims other data than there is."""
    with decoding(file):
        offsets = page.dataoffsets
        sizes = page.databytecounts
        numbers = (*page.shape, *page.chunks, *page.chunked, *offsets, *sizes)  # if they are not damaged
        end = page.parent.filehandle.size
        value_bytes = page.dtype.itemsize
    is_converted = page.photometric != PHOTOMETRIC.YCBCR or page.compression in JPEGS
    if page.photometric in LAB or not is_converted:
        raise UserError(f"{file}: its colours are {page.photometric.name}, which is not read; save it as RGB")
    has_numbers = all(isinstance(number, int) for number in numbers)
    has_known_planes = page.planarconfig in tuple(tifffile.PLANARCONFIG)
    if not (page.shape and has_numbers and has_known_planes):
        raise UserError(f"{file}: its header is damaged; replace or remove it")
    count = math.prod(page.chunked)
    if count == 0 or len(offsets) != count or len(sizes) != count:
        raise UserError(f"{file}: its header and its data do not agree; replace or remove it")
    if any(offset + size > end for offset, size in zip(offsets, sizes, strict=True)):
        raise UserError(f"{file}: it is cut off; replace or remove it")
    chunk_bytes = math.prod(page.chunks) * value_bytes
    if chunk_bytes > MAX_CHUNK_BYTES and not is_stored_whole(page):
        raise UserError(
            f"{file}: it says that {chunk_bytes:,} bytes are one piece, which is too large to be decoded; "
            "save it in tiles, or without compression"
        )
    if page.compression == APERIO_YCBCR:
        page.parent.filehandle.seek(next((offset for offset in offsets if offset), 0))
        if page.parent.filehandle.read(FIRST_CHROMA + 1)[FIRST_CHROMA:] == b"\1":
            raise UserError(
                f"{file}: its colours are YCbCr in JPEG 2000, which is not read; save it as RGB, or give it the ending "
                ".svslide, for OpenSlide to read it"
            )


def is_stored_whole(page: tifffile.TiffPage) -> bool:
    """Whether the values of a page lie in the file one after the other, as they are."""
    return page.is_final and sum(page.databytecounts) >= math.prod(page.shape) * page.dtype.itemsize


def _is_stack(tiff: tifffile.TiffFile, scene: int | None) -> bool:
    """Whether an image of a TIFF has more than one plane: of a file with one image, pages of the shape of the first.

    Pages of other shapes are the smaller levels of a pyramid, which not every scanner marks as such, or the label, the
    overview and the thumbnail of a slide.
    """
    series = main_series(tiff, scene)
    shape = series.keyframe.shape
    planes = sum(page.keyframe.shape == shape and not page.keyframe.is_reduced for page in tiff.pages)
    return (planes > 1 and scene is None) or math.prod(series.shape) != math.prod(shape)


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """How the pixels of a TIFF page are turned: see ORIENTATION_TAG."""
    value = page.tags.valueof(ORIENTATION_TAG)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last channel of a TIFF page is the opacity of its pixels."""
    return page.extrasamples[-1:] in ((1,), (2,))


def convert_colours(image: np.ndarray, page: tifffile.TiffPage, file: File) -> np.ndarray:
    """Gray or RGB(A) of a decoded TIFF page, whichever way the page stores its colours."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        with decoding(file):  # the palette of a damaged file may have any shape
            colours = page.colormap  # (3, 256), 16 bits in the file, but of some programs 8
            palette = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
            return np.moveaxis(np.take(palette, image, axis=1), 0, -1)  # indices of 1 bit are bool
    if page.photometric == PHOTOMETRIC.SEPARATED and image.ndim == 3 and image.dtype == np.uint8:
        light = 255 - image[..., :4].astype(np.uint16)  # ink of cyan, magenta, yellow and black takes light away
        return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
    channels = image.shape[-1] if image.ndim == 3 else 1
    if channels in (2, 4) and not has_alpha(page):
        raise UserError(f"{file}: it holds {channels} channels; save that of the nuclei as its own file")
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        inverted = invert(image)
        if channels in (2, 4):
            inverted[..., -1] = image[..., -1]  # the alpha channel
        return inverted
    return image
