"""Opens TIFFs and finds their images: which pages belong together, which are smaller levels, which are no images.

In:  a file that begins as a TIFF does.
Out: series of pages, as tifffile has them: an image each, with its planes; and what OME-XML says of it. No pixel is
     read here.
"""

import re
from types import SimpleNamespace
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile

from data.files import File, UserError, decoding

MIN_REDUCTION = 1.5  # factor of width and height, at least, from a level of a pyramid to the next
THUMBNAIL_REDUCTION = 4  # factor of width from which an unmarked smaller page is a thumbnail
MAX_LEVEL_ERROR = 2  # pixels; levels are rounded
MAX_PLANES = 10**6  # of a recording with positions; a damaged file may claim any number
OVERVIEW = re.compile("(label|macro|overview|thumbnail)([ _-]?image)?", re.IGNORECASE)  # names of no image of its own
UNEXPLAINED = ("generic", "shaped", "uniform")  # kinds of series, of tifffile, of files that do not explain their pages


def open_tiff(stream: BinaryIO, file: File) -> tifffile.TiffFile:
    """Opens a TIFF whose pages are still to be read; of several files of one recording each is an image of its own."""
    name = None if hasattr(stream, "name") else file.name
    with decoding(file):
        tiff = tifffile.TiffFile(stream, name=name, _multifile=False)
        if tiff.is_mmstack:
            # Without a descriptor of the file tifffile does not read the others of Micro-Manager's beside it.
            source = SimpleNamespace(read=stream.read, readinto=stream.readinto, seek=stream.seek, tell=stream.tell)
            stream.seek(0)
            tiff = tifffile.TiffFile(source, name=file.name, _multifile=False)
        if tiff.is_ome and "<UUID" in tiff.ome_metadata:
            tiff.pages.first.description = _describe_own_planes(tiff.ome_metadata, file)
        return tiff


def _describe_own_planes(ome_xml: str, file: File) -> str:
    """The OME-XML of a recording in several files without what lies in others, where planes are named one by one.

    Otherwise tifffile would know nothing of the axes and channels of this file.
    """
    try:
        root = ElementTree.fromstring(ome_xml)
    except ElementTree.ParseError:  # the pages may be whole
        return ome_xml
    for image in root.findall("{*}Image"):
        planes = image.findall("{*}Pixels/{*}TiffData")
        own = [plane for plane in planes if _is_own(plane.find("{*}UUID"), root, file)]
        if len(own) == len(planes):
            continue
        if not own:
            root.remove(image)
            continue
        if any(plane.get("PlaneCount") != "1" for plane in own):
            return ome_xml
        pixels = image.find("{*}Pixels")
        channels = pixels.findall("{*}Channel")
        samples = int(channels[0].get("SamplesPerPixel", 1)) if channels else 1
        foreign = set(planes) - set(own)
        for axis in "CZT":
            indices = [int(plane.get(f"First{axis}", 0)) for plane in own]
            first = min(indices)
            count = max(indices) - first + 1
            pixels.set(f"Size{axis}", str(count * samples if axis == "C" else count))
            for plane, index in zip(own, indices, strict=True):
                plane.set(f"First{axis}", str(index - first))
            if axis == "C":
                foreign.update(channels[:first], channels[first + count :])
        pixels[:] = [child for child in pixels if child not in foreign]
    return ElementTree.tostring(root, encoding="unicode") if root.find("{*}Image") is not None else ome_xml


def _is_own(uuid: ElementTree.Element | None, root: ElementTree.Element, file: File) -> bool:
    """Whether a plane of OME-XML lies in the file itself."""
    if uuid is None or root.get("UUID"):
        return uuid is None or uuid.text == root.get("UUID")
    return uuid.get("FileName", "").lower() == file.name.lower()


def list_images(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The images of a TIFF: one, or those of several positions, or of pages that differ in size.

    Levels of pyramids, thumbnails, masks, and the label and the overview of a slide are no images. Of Leica's .scn the
    overview is the one that shows the whole slide.
    """
    if tiff.is_bif:
        raise UserError(f"{tiff.filename}: it is a slide of Ventana, whose tiles overlap; give it the ending .bif")
    if tiff.series[0].is_multifile:
        raise UserError(f"{tiff.filename}: it is a part of a recording in several files; save that as OME-TIFF")
    if tiff.is_scn:
        views = ElementTree.fromstring(tiff.pages.first.description).findall("{*}collection/{*}image/{*}view")
        areas = [int(view.get("sizeX")) * int(view.get("sizeY")) for view in views]  # on the slide
        scans = [series for series, area in zip(tiff.series, areas, strict=True) if area < max(areas)]
        return scans or tiff.series
    if "R" in tiff.series[0].axes:
        return _split_positions(tiff.series[0])
    images = [series for series in tiff.series if not _is_overview(series)]
    first, *others = images or tiff.series
    is_slide = first.keyframe.is_tiled
    if first.kind != "ome" and (first.kind not in UNEXPLAINED or is_slide):
        return [first]
    may_be_levels = is_slide or first.kind != "ome"
    return [first, *(other for other in others if not (may_be_levels and _is_level(other.keyframe, first.keyframe)))]


def _split_positions(series: tifffile.TiffPageSeries) -> list[tifffile.TiffPageSeries]:
    """A series of Micro-Manager's, with an axis R of positions, as one series for each position that was recorded."""
    if len(series) > MAX_PLANES:
        raise UserError(f"{series.parent.filename}: it claims {len(series):,} planes; replace or remove it")
    place = series.axes.index("R")
    axes = series.axes.replace("R", "")
    shape = (*series.shape[:place], *series.shape[place + 1 :])
    pages = np.array([*series, None], object)[:-1]  # None keeps NumPy from looking into the pages
    pages = np.moveaxis(pages.reshape(series.shape[: series.ndim - series.keyframe.ndim]), place, 0)
    return [
        tifffile.TiffPageSeries(position, shape, series.dtype, axes, parent=series.parent, kind=series.kind)
        for position in pages.reshape(len(pages), -1).tolist()
        if any(page is not None for page in position)
    ]


def _is_overview(series: tifffile.TiffPageSeries) -> bool:
    """Whether a series is marked as a smaller picture, or as a mask, of others."""
    is_named_so = series.kind == "ome" and OVERVIEW.fullmatch(series.name)
    return bool(is_named_so or series.keyframe.is_reduced or series.keyframe.is_mask)


def main_series(tiff: tifffile.TiffFile, scene: int | None = None) -> tifffile.TiffPageSeries:
    """An image of a TIFF, the first where none is named."""
    images = list_images(tiff)
    if (scene or 0) >= len(images):
        raise UserError(f"{tiff.filename}: it was replaced and has no such image now; run the command again")
    return images[scene or 0]


def count_unmarked_levels(tiff: tifffile.TiffFile) -> int:
    """Images of an OME-TIFF, or pages in strips, that count as levels of the first, though nothing marks them so.

    Thumbnails, which many programs put beside each image, are not counted.
    """
    first, *others = list_images(tiff)
    if first.kind != "ome" and (first.kind not in UNEXPLAINED or first.keyframe.is_tiled):
        return 0
    found_by_tifffile = first.levels[1:] if first.kind == "generic" else []
    unmarked = [series for series in (*found_by_tifffile, *tiff.series) if not _is_overview(series)]
    pages = [series.keyframe for series in unmarked if series not in others]
    pages = [page for page in pages if first.keyframe.imagewidth < THUMBNAIL_REDUCTION * page.imagewidth]
    return sum(_is_level(page, first.keyframe) for page in pages)


def pyramid_pages(tiff: tifffile.TiffFile, scene: int | None = None) -> list[tifffile.TiffPage]:
    """The levels of a pyramid, the largest and then smaller and smaller ones; one page where there is no pyramid.

    Not every scanner marks the levels. So every smaller page whose sides have the ratio of the first page is one; the
    label and the overview of a slide have another ratio.
    """
    series = main_series(tiff, scene)
    pages = [level.keyframe for level in series.levels[1:]]  # that are marked; they may lie in sub-IFDs
    if not pages and scene is None:
        pages = [page.keyframe for page in tiff.pages]
    levels = {}
    for page in pages:
        if _is_level(page, series.keyframe):
            levels.setdefault(page.imagewidth, page)
    return [series.keyframe, *(levels[width] for width in sorted(levels, reverse=True))]


def _is_level(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Whether a page is smaller than the first, and its sides have the same ratio."""
    reduction = first.imagewidth / page.imagewidth
    return reduction > MIN_REDUCTION and abs(first.imagelength / reduction - page.imagelength) <= MAX_LEVEL_ERROR


def find_ome_image(tiff: tifffile.TiffFile, scene: int | None = None) -> ElementTree.Element | None:
    """What OME-XML says of an image of a TIFF; None where it says nothing."""
    try:
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:  # the pages may be whole
        return None
    images = root.findall("{*}Image")
    first_page = main_series(tiff, scene).keyframe.index
    for image in images:
        if any(int(plane.get("IFD", 0)) == first_page for plane in image.iterfind("{*}Pixels/{*}TiffData")):
            return image
    return next(iter(images), None)
