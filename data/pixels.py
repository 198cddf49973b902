"""Checks and turns decoded pixels, whatever file they come from.

In:  arrays as decoders give them, and the size and orientation that headers tell.
Out: (H, W) or (H, W, 3), as viewers show it; what is no such image is a `UserError`.
"""

import math
from collections.abc import Sequence

import numpy as np

from data.files import File, UserError

MAX_PIXELS = 178_956_970  # pixels of the largest image read at once; a file of a kilobyte may claim any size
MAX_VALUE = 1e30  # largest value of a pixel; a larger one overflows float32 and is no measurement
ORIENTATION_TAG = 274  # tag of TIFF and EXIF: 1 as stored, 2 to 4 flipped, 5 to 8 with rows and columns exchanged
TURNED = (5, 6, 7, 8)


def find_level(levels: Sequence[tuple[int, int]], level: int, file: File) -> tuple[int, int]:
    """(H, W) of a level of a pyramid. Raises UserError where there is no such level."""
    if level >= len(levels):
        sizes = ", ".join(f"{number} ({height}×{width})" for number, (height, width) in enumerate(levels))
        raise UserError(f"{file}: no level {level}; its levels are {sizes}")
    return levels[level]


def check_size(shape: tuple[int, int], file: File) -> None:
    """Raises UserError where an image (H, W) is too large to be read at once."""
    if math.prod(shape) > MAX_PIXELS:
        raise UserError(
            f"{file}: its {shape[0]}×{shape[1]} pixels are too many to read at once; "
            "Predict_masks.py reads a gray or interleaved RGB TIFF in parts; save it as one"
        )


def invert(values: np.ndarray) -> np.ndarray:
    """Exchanges bright and dark in values of any shape and real dtype: max - value, -1 - value of signed integers."""
    return ~values if values.dtype.kind in "bui" else -values


def turn_image(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image as viewers show it, from how a TIFF stores it: see ORIENTATION_TAG."""
    if orientation in TURNED:
        image = np.swapaxes(image, 0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def drop_alpha(image: np.ndarray) -> np.ndarray:
    """Removes the alpha channel; transparent pixels become 0, whatever colours they hide."""
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        is_transparent = image[..., -1] == 0
        image = image[..., :-1]
        if is_transparent.any() and not is_transparent.all():  # an empty alpha channel says nothing
            image = np.where(is_transparent[..., None], np.zeros((), image.dtype), image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return image


def is_gray(image: np.ndarray) -> bool:
    """Whether an image is (H, W), or (H, W, 3) with three equal channels."""
    return image.ndim == 2 or bool((image == image[..., :1]).all())


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
