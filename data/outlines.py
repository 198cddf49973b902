"""Traces the outlines of nuclei, and writes them as ROI sets for Fiji and as detections for QuPath.

In:  labels (H, W) int, 0 background; an array, or rows of a file.
Out: rois/ID.zip and geojson/ID.geojson. The name of an outline is the number of its nucleus.

An outline runs along the edges of pixels, so that its area is the number of pixels. Pixels that touch at a corner
alone are apart.
"""

import csv
import json
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import roifile
from skimage.measure import points_in_poly

from data.files import UserError, write_whole
from data.measure import iterate_windows

MAX_ROI_SIDE = 2**15 - 1  # pixels; ImageJ keeps the box of a ROI in 16 bits
NUCLEUS_CLASS = {"name": "Nucleus", "color": [255, 220, 0]}
NAMESPACE = uuid.UUID("6f0f6a35-6a0b-4a5e-9d0e-0f6d0a2f7c11")  # namespace of the ids of detections
STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # (row, column) of right, down, left, up
STARTS = ((0, 0), (0, 1), (1, 1), (1, 0))  # (row, column) in a pixel, where its edge in the direction of a step begins

Ring = np.ndarray  # (corners, 2) int: row and column, not closed; clockwise where it is the outer one
Polygon = list[Ring]  # the outer ring, then its holes


def trace_outlines(labels: np.ndarray) -> Iterator[tuple[int, list[Polygon]]]:
    """Traces the nuclei of an image strip by strip.

    Args:
        labels: (H, W) int, 0 background, or an object whose slices [a:b] are its rows.

    Yields:
        The number of a nucleus and its pieces, one for each nucleus, from the top to the bottom.
    """
    for numbers, top, stop in iterate_windows(labels):
        window = np.asarray(labels[top:stop])
        window = np.where(np.isin(window, numbers), window, 0)
        for number, rings in group_rings(window):
            yield number, make_polygons([ring + (top, 0) for ring in rings])


def group_rings(labels: np.ndarray) -> Iterator[tuple[int, list[Ring]]]:
    """All rings of each nucleus of labels (H, W) int, the outer ones and those of holes."""
    owners, corners, following = trace_edges(labels)
    rings = {}
    is_done = np.zeros(len(owners), bool)
    following = following.tolist()
    for start in range(len(owners)):
        if is_done[start]:
            continue
        edges = []
        edge = start
        while not is_done[edge]:
            is_done[edge] = True
            edges.append(edge)
            edge = following[edge]
        rings.setdefault(int(owners[start]), []).extend(split_ring(drop_straight(corners[edges])))
    yield from sorted(rings.items())


def trace_edges(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges between pixels of a nucleus and others, with the nucleus at their right.

    Returns:
        owners (E,) int, the nucleus of each edge; starts (E, 2) int, its first corner, row and column; following (E,)
        int, the edge that continues it.

    A nucleus of one pixel has four edges, sorted by their first corners, each followed by the next one clockwise.

    >>> [array.tolist() for array in trace_edges(np.array([[7]]))]
    [[7, 7, 7, 7], [[0, 0], [0, 1], [1, 0], [1, 1]], [1, 3, 0, 2]]
    """
    framed = np.pad(labels, 1)
    height, width = framed.shape
    inside = framed[1:-1, 1:-1]
    edges = []
    # The neighbours in the order of STEPS: above a pixel its edge runs to the right, right of it down, and so on.
    neighbours = (framed[:-2, 1:-1], framed[1:-1, 2:], framed[2:, 1:-1], framed[1:-1, :-2])
    for direction, neighbour in enumerate(neighbours):
        rows, columns = np.nonzero((inside > 0) & (inside != neighbour))
        owners = inside[rows, columns].astype(np.int64)
        row, column = STARTS[direction]
        edges.append(np.stack([owners, rows + row, columns + column, np.full(len(rows), direction)]))
    edges = np.concatenate(edges, axis=1)  # (4, E)
    keys = ((edges[0] * height + edges[1]) * width + edges[2]) * 4 + edges[3]
    order = np.argsort(keys)
    keys = keys[order]
    owners, rows, columns, directions = edges[:, order]
    ends = (owners * height + rows + STEPS[directions, 0]) * width + columns + STEPS[directions, 1]
    following = np.full(len(keys), -1)
    # A turn to the right stays at the same pixel, so that pixels that touch at a corner are apart.
    for turn in (1, 0, 3):
        wanted = ends * 4 + (directions + turn) % 4
        indices = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        is_new = (following < 0) & (keys[indices] == wanted)
        following[is_new] = indices[is_new]
    return owners, np.stack([rows, columns], axis=1), following


def drop_straight(ring: Ring) -> Ring:
    """A ring without the points that lie between their neighbours on one line."""
    before = ring - np.roll(ring, 1, axis=0)
    after = np.roll(ring, -1, axis=0) - ring
    return ring[(before != after).any(axis=1)]


def split_ring(ring: Ring) -> list[Ring]:
    """Splits a ring that touches itself at a corner into rings that do not."""
    points = [tuple(point) for point in ring.tolist()]
    if len(set(points)) == len(points):
        return [ring]
    rings = []
    path = []
    for point in points:
        if point in path:
            start = path.index(point)
            rings.append(np.array(path[start:]))
            path = path[:start]
        path.append(point)
    return [drop_straight(simple_ring) for simple_ring in [*rings, np.array(path)]]


def signed_area(ring: Ring) -> float:
    """Pixels inside of a ring; negative for that of a hole."""
    rows, columns = ring.T
    return float(np.sum(columns * np.roll(rows, -1) - np.roll(columns, -1) * rows)) / 2


def make_polygons(rings: Sequence[Ring]) -> list[Polygon]:
    """Puts each hole into the piece of the nucleus that it lies in."""
    polygons = [[ring] for ring in rings if signed_area(ring) > 0]
    for hole in rings:
        if signed_area(hole) > 0:
            continue
        # The pixel at the left of the first edge, which turns around the hole, lies in the hole.
        step = np.sign(hole[1] - hole[0])
        middle = hole[0] + step / 2 + np.array([-step[1], step[0]]) / 2
        around = [polygon for polygon in polygons if points_in_poly(middle[None], polygon[0])[0]]
        min(around, key=lambda polygon: signed_area(polygon[0])).append(hole)
    return polygons


def write_rois(file: Path, labels: np.ndarray, z: int | None = None, t: int | None = None) -> None:
    """Writes a ROI set of ImageJ: a polygon for each nucleus, its largest piece without holes.

    Args:
        file: a .zip.
        labels: (H, W) int, or rows of it.
        z: plane of a stack that the nuclei are in, from 0; None: no stack.
        t: its time, from 0; None: no time lapse.

    Raises:
        UserError: the image is larger than ImageJ's coordinates.
    """
    if max(labels.shape) > MAX_ROI_SIDE:
        raise UserError(
            f"{file}: ImageJ's ROIs end at {MAX_ROI_SIDE} pixels, the image has {labels.shape}; use --geojson"
        )
    outlines = sorted(trace_outlines(labels), key=lambda outline: outline[0])
    digits = len(str(outlines[-1][0])) if outlines else 1
    with write_whole(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, polygons in outlines:
            ring = max((polygon[0] for polygon in polygons), key=signed_area)
            name = f"{number:0{digits}}"
            roi = roifile.ImagejRoi.frompoints(ring[:, ::-1], name=name, z=z, t=t)
            roi.roitype = roifile.ROI_TYPE.TRACED  # as of Fiji's wand, whose perimeters are right
            archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes())  # without the time: same nuclei, same bytes


def write_geojson(
    file: Path,
    labels: np.ndarray,
    image_id: str,
    nuclei_csv: Path,
    scale: tuple[float, float] = (1.0, 1.0),
    z: int | None = None,
    t: int | None = None,
) -> None:
    """Writes the nuclei as detections of QuPath, one after the other, with what their table says.

    Args:
        file: a .geojson.
        labels: (H, W) int, or rows of it.
        image_id: id of the image; it makes the ids of the detections.
        nuclei_csv: table of its nuclei, from `data.measure.write_table`; its pixels are those of the labels.
        scale: rows and columns of the image that QuPath shows, the largest level of a slide, for one of the labels.
        z: as of `write_rois`.
        t: likewise.
    """
    # Without a plane QuPath shows detections on the first one.
    plane = {} if z is None and t is None else {"plane": {"c": -1, "z": z or 0, "t": t or 0}}
    columns, table = read_measurements(nuclei_csv)
    with write_whole(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for number, polygons in trace_outlines(labels):
            values = zip(columns, table.get(number, ()), strict=False)
            measurements = {column: value for column, value in values if np.isfinite(value)}
            polygons = [[np.rint(ring * scale).astype(int) for ring in polygon] for polygon in polygons]
            detection = describe_detection(number, polygons, image_id, measurements)
            detection["geometry"] |= plane
            stream.write(separator + json.dumps(detection, allow_nan=False))
            separator = ",\n"
        stream.write("\n]}\n")


def read_measurements(nuclei_csv: Path) -> tuple[list[str], dict[int, np.ndarray]]:
    """Names of the columns of numbers of a table of nuclei, and their values by the number of the nucleus."""
    with open(nuclei_csv, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = [name for name in reader.fieldnames if name not in ("image", "label", "touches_border")]
        table = {
            int(row["label"]): np.array([float(row[column] or "nan") for column in columns], np.float64)
            for row in reader
        }
    return columns, table


def describe_detection(number: int, polygons: Sequence[Polygon], image_id: str, measurements: dict[str, float]) -> dict:
    """A feature of GeoJSON: x before y, closed rings along the edges of pixels."""
    coordinates = [[close_ring(ring) for ring in polygon] for polygon in polygons]
    is_one = len(coordinates) == 1
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, f"{image_id}/{number}")),
        "geometry": {
            "type": "Polygon" if is_one else "MultiPolygon",
            "coordinates": coordinates[0] if is_one else coordinates,
        },
        "properties": {
            "objectType": "detection",
            "name": str(number),
            "classification": NUCLEUS_CLASS,
            "measurements": measurements,
        },
    }


def close_ring(ring: Ring) -> list[list[int]]:
    """[x, y] of a ring, the first point also the last."""
    points = ring[:, ::-1].tolist()
    return [*points, points[0]]
