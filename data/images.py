"""Reads pixels: whole images of PNG, TIFF, JPEG, BMP and of microscopes, and the rows of large TIFFs and slides.

In:  an image file, on disk or in a .zip.
Out: (H, W) or (H, W, 3) with the dtype of the file; alpha is dropped. A file that cannot be read is
     a `UserError` that names it and says why.
"""

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, ImageOps

from data.files import File, UserError, decoding, open_file
from data.microscopes import Scene, is_microscope_file, open_scene
from data.pixels import ORIENTATION_TAG, TURNED, check_image, check_size, drop_alpha, find_level, turn_image
from data.tiff_series import open_tiff
from data.tiffs import TIFF_HEADERS, TiffRows, decode_tiff, is_tiff, open_level, tiff_orientation

ROWS_AT_ONCE = 256  # rows of a large image that `subsample` holds
COLOUR_MODES = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")  # Pillow modes that become RGB
PILLOW_LOCK = threading.Lock()  # held while Pillow's limit of pixels is off


def read_image(file: File, scene: int | None = None, as_imagej: bool = False) -> np.ndarray:
    """Reads one image file.

    Args:
        file: an image of any format.
        scene: of a file with several images, see data/stacks.py; None: its only one.
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
        image = decode_tiff(content, file, scene, as_imagej)
    else:
        image = _decode_with_pillow(content, file)
    return check_image(drop_alpha(image), file)


def read_shape(file: File, level: int = 0, scene: int | None = None) -> tuple[int, int]:
    """(H, W) of an image file, or of a level of its pyramid, from its header alone; raises as `read_image`."""
    if is_microscope_file(file):
        with open_scene(file, scene) as found:
            return find_level(found.levels, level, file)
    with decoding(file), file.open("rb") as stream:
        if is_tiff(stream):
            page = open_level(open_tiff(stream, file), level, file, scene)
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
    with open_file(file) as stream:
        with decoding(file):
            has_rows = is_tiff(stream)
        rows = TiffRows(stream, file, level, scene) if has_rows else None
        if rows is None or not rows.is_readable():
            if level:
                raise UserError(f"{file}: it has no levels that can be read; leave out --level")
            rows = read_image(file, scene)
        yield rows


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
    check_size(shape, file)
    with decoding(file):
        values = scene.read(level, start, stop, c, z, t)
    if values.shape[:2] != shape:
        raise UserError(f"{file}: its planes are not as it describes them; save it as an OME-TIFF")
    return check_image(drop_alpha(values), file)


def _check_axes(scene: Scene, file: File) -> None:
    unknown = scene.sizes.keys() - set("TZC")
    if unknown:
        raise UserError(f"{file}: its axes {', '.join(sorted(unknown))} are not known; save it as an OME-TIFF")


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


def _open_picture(stream: BinaryIO) -> Image.Image:
    """Opens a picture with Pillow, whatever its size; `check_size` sets the limit."""
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
    check_size(picture.size[::-1], file)
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
