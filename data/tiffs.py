"""Reads TIFFs: whole ones, the rows of large ones, and the levels of their pyramids.

In:  a file that begins as a TIFF does.
Out: pixels with the dtype of the file. A TIFF that cannot be read is a `UserError` that names it and says why.
"""

import io
import math
from typing import BinaryIO

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from data.files import File, UserError, decoding
from data.pixels import ORIENTATION_TAG, check_image, check_size, drop_alpha, find_level, invert, turn_image

MAX_CHUNK_BYTES = 2**31  # size of the largest strip or tile of a TIFF when it is decoded
MIN_REDUCTION = 1.5  # factor of width and height, at least, from a level of a pyramid to the next
MAX_LEVEL_ERROR = 2  # pixels; levels are rounded
TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LAB = (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB, PHOTOMETRIC.ITULAB)
JPEGS = (6, 7, 33007, 34892)  # compressions; tifffile makes RGB of YCbCr only where it decodes these
ROW_CHANNELS = {  # photometric interpretation -> numbers of channels, of the pages that `TiffRows` reads
    PHOTOMETRIC.MINISBLACK: (1,),
    PHOTOMETRIC.RGB: (3, 4),
    PHOTOMETRIC.YCBCR: (3,),
}


def decode_tiff(content: bytes, file: File, as_imagej: bool) -> np.ndarray:
    """The image of a TIFF, its alpha included; arguments, and what is raised, as `data.images.read_image`."""
    with decoding(file):
        tiff = tifffile.TiffFile(io.BytesIO(content), _multifile=False)
        page = main_page(tiff)
    check_page(page, file)
    check_size((page.imagelength, page.imagewidth), file)
    with decoding(file):
        is_stack = _is_stack(tiff)
        series = main_series(tiff)
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


class TiffRows:
    """The first page of a TIFF, or a level of it; `rows[a:b]` decodes only the strips or tiles that these cross."""

    def __init__(self, stream: BinaryIO, file: File, level: int = 0):
        self.stream = stream
        self.file = file
        with decoding(file):
            self.tiff = tifffile.TiffFile(stream, _multifile=False)
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
        return check_image(drop_alpha(self._decode_rows(start, stop)), self.file)

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
                # (1, h, w, channels); at the edges of the image only `size` of it is filled
                tile, position, size = self.page.decode(content, index, jpegtables=self.page.jpegtables)
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
    with decoding(file):
        tiff = tifffile.TiffFile(stream, _multifile=False)  # of several files each is an image of its own
        page = main_page(tiff)
    check_page(page, file)
    return tiff


def open_level(tiff: tifffile.TiffFile, level: int, file: File) -> tifffile.TiffPage:
    """The checked page of a level of a TIFF, 0 the largest; raises as `read_image`."""
    with decoding(file):
        page = main_page(tiff)
    check_page(page, file)
    if level == 0:
        return page
    with decoding(file):
        pages = pyramid_pages(tiff)
    find_level([(page.imagelength, page.imagewidth) for page in pages], level, file)
    check_page(pages[level], file)
    return pages[level]


def pyramid_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The levels of a pyramid, the first page and then smaller and smaller ones; one page where there is no pyramid.

    Not every scanner marks the levels. So every smaller page whose sides have the ratio of the first page is one; the
    label and the overview of a slide have another ratio.
    """
    first = main_page(tiff)
    pages = [level.pages[0] for level in main_series(tiff).levels[1:]]  # that are marked; they may lie in sub-IFDs
    if not pages:
        pages = tiff.pages[1:]
    levels = {}
    for page in pages:
        page = page.keyframe
        reduction = first.imagewidth / page.imagewidth
        has_same_ratio = abs(first.imagelength / reduction - page.imagelength) <= MAX_LEVEL_ERROR
        if reduction > MIN_REDUCTION and has_same_ratio:
            levels.setdefault(page.imagewidth, page)
    return [first, *(levels[width] for width in sorted(levels, reverse=True))]


def main_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The image of a TIFF: the first; of Leica's .scn the largest, because the picture of the whole slide is first."""
    if not tiff.is_scn:
        return tiff.series[0]
    return max(tiff.series, key=lambda series: math.prod(series.pages[0].shape))


def main_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The first page of `main_series`."""
    return main_series(tiff).pages[0] if tiff.is_scn else tiff.pages[0]


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
    shape = main_page(tiff).shape
    planes = sum(page.keyframe.shape == shape and not page.keyframe.is_reduced for page in tiff.pages)
    return planes > 1 or math.prod(main_series(tiff).shape) != math.prod(shape)


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """How the pixels of a TIFF page are turned: see ORIENTATION_TAG."""
    value = page.tags.valueof(ORIENTATION_TAG)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last channel of a TIFF page is the opacity of its pixels."""
    return page.extrasamples[-1:] in ((1,), (2,))


def _tiff_colours(image: np.ndarray, page: tifffile.TiffPage, file: File) -> np.ndarray:
    """Gray or RGB(A) of a decoded TIFF page, whichever way the page stores its colours."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        with decoding(file):  # the palette of a damaged file may have any shape
            colours = page.colormap  # (3, 256), 16 bits in the file, but of some programs 8
            palette = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
            return np.moveaxis(palette[:, image], 0, -1)
    if page.photometric == PHOTOMETRIC.SEPARATED and image.ndim == 3 and image.dtype == np.uint8:
        light = 255 - image[..., :4].astype(np.uint16)  # ink of cyan, magenta, yellow and black takes light away
        return (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)
    channels = image.shape[-1] if image.ndim == 3 else 1
    if channels in (2, 4) and not has_alpha(page):
        raise UserError(f"{file}: it holds {channels} channels; save that of the nuclei as its own file")
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        return invert(image)
    return image
