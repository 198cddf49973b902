"""Reads how large a pixel is, from what microscopes and Fiji write into their files.

In:  a TIFF, on disk or in a .zip, or a file of a microscope.
Out: micrometres, or None where the file does not say.
"""

import math
import re

import tifffile
from tifffile import RESUNIT

from data.files import File, decoding, open_file
from data.microscopes import is_microscope_file, open_scene
from data.options import MAX_PIXEL_SIZE
from data.tiff_series import find_ome_image, pyramid_pages
from data.tiffs import read_tiff_header

MICROMETRES = {
    "Å": 1e-4,
    "nm": 1e-3,
    "um": 1,
    "µm": 1,  # micro sign
    "μm": 1,  # Greek mu
    "\\u00b5m": 1,  # as ImageJ escapes it
    "micron": 1,
    "microns": 1,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25_400,
    RESUNIT.CENTIMETER: 1e4,
    RESUNIT.INCH: 25_400,
}
MAX_ANISOTROPY = 1.01  # ratio of the sides of a pixel that counts as square


def read_pixel_size(file: File, level: int = 0, scene: int | None = None) -> float | None:
    """Micrometres that a square pixel of an image file is wide.

    It is looked for in OME-XML, in ImageJ's description, in that of Aperio's slides, and in the resolution tags; in a
    file of a microscope where its package finds it.

    Args:
        file: an image of any format; only TIFFs and files of microscopes tell.
        level: of a pyramid, 0 the largest.
        scene: of a file with several images; None: its only one.

    Returns:
        None where the file does not say, where pixels are not square, or where it cannot be of a microscope.

    Raises:
        UserError: the file is damaged.
        OSError: it cannot be opened.
    """
    if is_microscope_file(file):
        with open_scene(file, scene) as found:
            sides = found.sides
            widths = [width for _, width in found.levels]
    else:
        sides, widths = _read_tiff_sides(file, scene)
    if sides is None or not all(math.isfinite(side) and 0 < side <= MAX_PIXEL_SIZE for side in sides):
        return None
    if max(sides) > MAX_ANISOTROPY * min(sides):
        return None
    return sides[0] * widths[0] / widths[min(level, len(widths) - 1)]


def _read_tiff_sides(file: File, scene: int | None) -> tuple[tuple[float, float] | None, list[int]]:
    """Width and height of a pixel of a TIFF in micrometres, if known, and the widths of the levels of its pyramid."""
    with open_file(file) as stream:
        tiff = read_tiff_header(stream, file)
        if tiff is None:
            return None, []
        with decoding(file):
            pages = pyramid_pages(tiff, scene)
            sides = _ome_sides(tiff, scene) or _aperio_sides(pages[0]) or _tag_sides(tiff, pages[0])
            return sides, [page.imagewidth for page in pages]


def _ome_sides(tiff: tifffile.TiffFile, scene: int | None) -> tuple[float, float] | None:
    """Width and height of a pixel in micrometres by OME-XML; NaN where it has a unit such as "pixel"."""
    if not tiff.is_ome:
        return None
    try:
        pixels = find_ome_image(tiff, scene).find("{*}Pixels")
        return tuple(
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan)
            for axis in "XY"
        )
    except (AttributeError, KeyError, ValueError):  # nothing said, or nothing known
        return None


def _aperio_sides(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """The same by the description of a slide."""
    found = re.search(r"\|\s*MPP\s*=\s*([\d.]+)", str(page.description))
    return (float(found[1]), float(found[1])) if found else None


def _tag_sides(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, float] | None:
    """The same by the resolution tags, whose unit is ImageJ's where that has one."""
    tags = page.tags
    unit = tags.valueof("ResolutionUnit")
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit", "")).lower()
    resolutions = [tags.valueof(name) for name in ("XResolution", "YResolution")]  # pixels a unit, as fractions
    are_fractions = all(isinstance(resolution, tuple) and len(resolution) == 2 for resolution in resolutions)
    if unit not in MICROMETRES or not are_fractions or not all(numerator for numerator, _ in resolutions):
        return None
    return tuple(MICROMETRES[unit] * denominator / numerator for numerator, denominator in resolutions)
