"""Reads the true nuclei of one image from one file.

In:  a label picture (gray or in colours), a binary picture, a ROI set of ImageJ, or GeoJSON of QuPath.
Out: labels (H, W) int32, 0 background, 1…K without gaps. A file that holds no labels is a `UserError`.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import roifile
from roifile import ROI_TYPE
from scipy import ndimage
from skimage.draw import polygon
from skimage.measure import label, regionprops
from skimage.segmentation import expand_labels

from data.files import File, UserError, decoding
from data.images import read_image
from data.pixels import is_gray

MIN_BACKGROUND = 0.5  # share of a picture; what covers more of it, and all corners, is its background
# A picture is no label picture where much of it is fragments: pieces of one value that are smaller than any nucleus.
# Labels that people drew have 0.1 % of these at most; photographs, JPEGs and resized labels have at least 2 %.
MIN_NUCLEUS_AREA = 4  # pixels
CORNER_DISTANCE = 1.5  # pixels, from a pixel to those around it
MAX_FRAGMENT_SHARE = 0.01  # share of the pixels above 0 that may be fragments
NEAR = 0.15  # share of the highest value; a value this near to 0 or to the highest is nearly black or white
# A piece of a binary picture is several nuclei where it is so much larger than the largest disk in it, and not convex.
CLUMP_DISKS = 3
CLUMP_SOLIDITY = 0.85  # area to that of the convex hull
CLUMPED_SHARE = 0.5  # share of the pixels of nuclei; where clumps have more, the picture is refused
LARGEST_PIECE = 0.5  # share of the picture; no nucleus covers more
MAX_ROI_BYTES = 2**26
AREA_ROIS = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)

# The rings of one nucleus, outer ones and those of holes: (N, 2) float: x, y; whole numbers are corners of pixels.
Outline = list[np.ndarray]


def read_label_file(file: File, shape: tuple[int, int]) -> np.ndarray:
    """Reads the labels of an image of this shape, (H, W) int32, 1…K without gaps.

    Raises:
        UserError: the file holds no labels, or they are of an image of another size.
    """
    name = file.name.lower()
    if name.endswith((".zip", ".roi")):
        return draw_outlines(read_rois(file), shape, file)
    if name.endswith(".geojson"):
        return draw_outlines(read_geojson(file), shape, file)
    values = read_values(file)
    if values.shape != shape:
        raise UserError(f"{file}: the labels are {values.shape}, their image {shape}; remake them")
    return number_pieces(values != 0, file) if is_binary(values) else remove_gaps(values)


def remove_gaps(labels: np.ndarray) -> np.ndarray:
    """Numbers the values above 0 of (H, W) from 1 on, in their order, int32."""
    values, numbers = np.unique(labels, return_inverse=True)
    # The numbers are from 0 on; where no 0 is among the values, the lowest value must become 1.
    return (numbers.reshape(labels.shape) + (values[0] > 0)).astype(np.int32)


def read_values(file: File) -> np.ndarray:
    """The values of a label picture, (H, W) int64, 0 background; every colour becomes a value.

    Raises:
        UserError: it is a photograph, an overlay, a mask as JPEG, or inverted.
    """
    image = read_image(file, as_imagej=True)
    if image.dtype.kind == "f" and (image != np.rint(image)).any():
        raise UserError(f"{file}: expected whole numbers, one for each nucleus")
    image = image.astype(np.int64)
    if image.min() < 0:
        raise UserError(f"{file}: expected whole numbers from 0 on, one for each nucleus; it has {image.min()}")
    values = image
    if image.ndim == 3:
        values = image[..., 0] if is_gray(image) else (image << (0, 16, 32)).sum(axis=-1)
    if has_fragments(values) and not is_binary(values):
        check_jpeg(image, file)
        raise UserError(
            f"{file}: expected one number or colour for each nucleus on a background of 0, but it has several within a "
            "nucleus, as a photograph, an overlay or a resized picture has; save the labels themselves"
        )
    check_background(values, file)
    return values


def is_binary(values: np.ndarray) -> bool:
    """Whether (H, W) holds 0 and one other value."""
    inside = values[values != 0]
    return inside.size > 0 and bool((inside == inside[0]).all())


def has_fragments(values: np.ndarray) -> bool:
    """Whether many pixels of (H, W) have other values than those around them."""
    areas = np.bincount(label(values, background=0, connectivity=1).ravel())[1:]
    return bool(areas[areas < MIN_NUCLEUS_AREA].sum() > MAX_FRAGMENT_SHARE * areas.sum())


def check_jpeg(image: np.ndarray, file: File) -> None:
    """Raises UserError where a picture (H, W) or (H, W, 3) is mostly near black or near white.

    Between these it has values at edges, as JPEG and resizing leave them.
    """
    gray = image if image.ndim == 2 else image.max(axis=-1)
    white = np.count_nonzero(gray >= (1 - NEAR) * gray.max())
    black = np.count_nonzero(gray <= NEAR * gray.max())
    if min(white, black) > gray.size - black - white and has_fragments(gray):
        raise UserError(
            f"{file}: expected 0 and one other value, or one number for each nucleus, but several are near 0 and "
            f"{gray.max()}, as JPEG and resizing make them; save it as PNG or TIFF at the size of the image"
        )


def is_background(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) bool covers most of a picture and all its corners; then it is no mask of nuclei."""
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.all() and mask.mean() > MIN_BACKGROUND)


def check_background(values: np.ndarray, file: File) -> None:
    """Raises UserError where the background of a label picture (H, W) is not 0."""
    corner = values[0, 0]
    if corner and is_background(values == corner):
        raise UserError(
            f"{file}: most of it and all corners are {'nucleus' if is_binary(values) else 'one number'}; "
            "is it inverted? the background must be 0 or black"
        )


def number_pieces(mask: np.ndarray, file: File) -> np.ndarray:
    """Numbers the pieces of a mask (H, W) bool; pieces that touch only at a corner are apart, unless one is a fragment.

    Raises:
        UserError: a piece covers more than half of the picture, or most pieces are plainly several nuclei: larger than
            CLUMP_DISKS of the largest disk in them, and not convex.
    """
    pieces = _join_fragments(mask)
    areas = np.bincount(pieces.ravel())[1:]
    if areas.size and areas.max() > LARGEST_PIECE * mask.size:
        raise UserError(
            f"{file}: one piece covers {areas.max() / mask.size:.0%} of this black and white picture; is it inverted, "
            "or do its nuclei touch? give each nucleus a number of its own"
        )
    if clumped_area(pieces) > CLUMPED_SHARE * areas.sum():
        raise UserError(
            f"{file}: the nuclei in this black and white picture touch, most pieces are several; "
            "give each nucleus a number of its own"
        )
    return pieces


def _join_fragments(mask: np.ndarray) -> np.ndarray:
    """Numbers the pieces of a mask (H, W) bool, int32: nuclei with the fragments at their corners, and other fragments.

    A fragment belongs as a whole to a nucleus whose corner it touches. Others that touch one another are one piece.
    """
    pieces = label(mask, connectivity=1)
    is_nucleus = np.bincount(pieces.ravel()) >= MIN_NUCLEUS_AREA
    is_nucleus[0] = False
    owners = np.where(is_nucleus, np.arange(is_nucleus.size), 0)  # piece -> its nucleus; 0: none is known
    nuclei = owners[pieces]
    in_fragment = mask & (nuclei == 0)
    touched = expand_labels(nuclei, CORNER_DISTANCE)[in_fragment]  # 0 where a pixel touches no nucleus
    np.maximum.at(owners, pieces[in_fragment], touched)
    nuclei = owners[pieces]
    fragments = label(mask & (nuclei == 0), connectivity=2)
    return remove_gaps(np.where(fragments > 0, fragments + nuclei.max(), nuclei))


def clumped_area(pieces: np.ndarray) -> int:
    """Pixels of the pieces (H, W) int that are plainly several nuclei."""
    regions = regionprops(pieces)
    distance = ndimage.distance_transform_edt(np.pad(pieces > 0, 1))[1:-1, 1:-1]  # as if it ended at the border
    radii = ndimage.maximum(distance, pieces, [region.label for region in regions])
    area = 0
    for region, radius in zip(regions, radii, strict=True):
        is_large = region.area > CLUMP_DISKS * math.pi * radius**2
        if is_large and region.solidity < CLUMP_SOLIDITY:
            area += int(region.area)
    return area


def read_rois(file: File) -> list[Outline]:
    """The outlines in a .roi or .zip of ImageJ, in the order of the file.

    Raises:
        UserError: the file is damaged, or a ROI is no area or lacks corners.
    """
    with decoding(file, "ROI set"):
        content = file.read_bytes()
    if file.name.lower().endswith(".roi"):
        contents = [(file.name, content)]
    else:
        contents = _unpack_rois(content, file)
    outlines = []
    for name, roi_content in contents:
        with decoding(file, "ROI set"):
            roi = roifile.ImagejRoi.frombytes(roi_content)
            rings = roi.coordinates(multi=True)
        if roi.roitype not in AREA_ROIS:
            raise UserError(f"{file}: its ROI {name} is a {roi.roitype.name.lower()}; expected the areas of nuclei")
        if not rings or not all(map(_is_area, rings)):
            raise UserError(f"{file}: its ROI {name} lacks corners; an area has three or more")
        outlines.append([np.asarray(ring, np.float64) for ring in rings])
    return outlines


def _unpack_rois(content: bytes, file: File) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the ROIs in a .zip."""
    with decoding(file, "ROI set"):
        archive = zipfile.ZipFile(io.BytesIO(content))
    entries = archive.infolist()
    rois = [entry for entry in entries if entry.filename.lower().endswith(".roi")]
    if entries and not rois:
        raise UserError(f"{file}: expected the ROI set of the image of this name, but no .roi is in it; move it away")
    for entry in rois:
        if entry.file_size > MAX_ROI_BYTES:
            raise UserError(f"{file}: its entry {entry.filename} is too large for a ROI")
        with decoding(file, "ROI set"):
            roi = archive.read(entry)
        yield entry.filename, roi


def read_geojson(file: File) -> list[Outline]:
    """The outlines in GeoJSON of QuPath: its detections, of cells the nuclei, or its annotations where there are none.

    Raises:
        UserError: it is no GeoJSON, or a shape in it is no polygon.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        features = content if isinstance(content, list) else content.get("features", [content])
        detections = [feature for feature in features if not _is_annotation(feature)]
        features = detections or features  # an annotation around detections is a region, and no nucleus
        return [_read_geometry(feature.get("nucleusGeometry") or feature["geometry"]) for feature in features]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: expected GeoJSON with polygons, as QuPath exports it ({reason})") from None


def _is_annotation(feature: dict) -> bool:
    properties = feature.get("properties") or {}
    object_type = properties.get("objectType") or properties.get("object_type") or feature.get("id", "")
    return str(object_type).lower() not in ("detection", "cell", "pathdetectionobject", "pathcellobject")


def _read_geometry(geometry: dict) -> Outline:
    polygons = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
    rings = [np.array(ring, np.float64) for rings in polygons[geometry["type"]] for ring in rings]
    if not rings or not all(map(_is_area, rings)):
        raise ValueError("a polygon without corners, or not nested as a polygon is")
    return [ring[:, :2] for ring in rings]  # a corner may have a height too


def _is_area(ring: np.ndarray) -> bool:
    """Whether numbers are a ring of three corners or more, each of x and y, and perhaps more."""
    is_ring = ring.ndim == 2 and ring.shape[0] > 2 and ring.shape[1] >= 2
    return is_ring and bool(np.isfinite(ring[:, :2]).all())


def draw_outlines(outlines: Sequence[Outline], shape: tuple[int, int], file: File) -> np.ndarray:
    """Labels (H, W) int32 of nuclei from their outlines; a pixel of two belongs to the later one.

    A pixel is inside where its centre lies inside an odd number of the rings of a nucleus, so that rings in a ring are
    holes.

    Raises:
        UserError: an outline lies outside of the image.
    """
    labels = np.zeros(shape, np.int32)
    for number, rings in enumerate(outlines, start=1):
        corners = np.concatenate(rings)[:, ::-1]  # row, column
        top, left = np.clip(np.floor(corners.min(axis=0)), 0, shape).astype(int)
        bottom, right = np.clip(np.ceil(corners.max(axis=0)), 0, shape).astype(int)
        if top >= bottom or left >= right:
            raise UserError(f"{file}: its outline {number} lies outside of the image, {shape}; is it of another image?")
        inside = np.zeros((bottom - top, right - left), bool)
        for ring in rings:
            rows, columns = polygon(ring[:, 1] - 0.5 - top, ring[:, 0] - 0.5 - left, inside.shape)
            inside[rows, columns] ^= True
        labels[top:bottom, left:right][inside] = number
    return remove_gaps(labels)
