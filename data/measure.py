"""Measures nuclei and images, and writes the table of nuclei.

In:  labels (H, W) int, 0 background, and the image (H, W) or (H, W, C) as in the file; arrays, or rows of a file.
Out: the columns of nuclei.csv, as arrays or as a file; the row of an image in images.csv.

Names and definitions are those of scikit-image's `regionprops_table`, with the unit at the end: px, um, um2, rad.
The columns of a box are half open: `bbox_max_row_px` is the row after the last. Beyond scikit-image there are

    form_factor                    4 pi area / perimeter ** 2; 0 where the perimeter is 0, as of a single pixel;
                                   over 1 for some small nuclei, whose perimeter runs between pixel centres
    intensity_integrated_CHANNEL   sum over the pixels of the nucleus
    nearest_neighbor_distance      from centroid to centroid; none where the image has one nucleus
"""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from data.channels import COLOURS, fill_channel_names
from data.files import write_whole
from data.shapes import count_hull_pixels, measure_ellipses, measure_perimeters
from data.slides import STRIP

WARNING_SEPARATOR = "; "  # between the warnings of an image, which share a cell
NUMBER_FORMAT = ".8g"  # a hundredth of a pixel in a slide of 100,000 pixels
LENGTHS = (
    "centroid_row",
    "centroid_column",
    "equivalent_diameter_area",
    "axis_major_length",
    "axis_minor_length",
    "perimeter",
    "nearest_neighbor_distance",
)

Columns = dict[str, np.ndarray]  # name of a column -> (K,), a value for each nucleus


def measure_nuclei(
    labels: np.ndarray,
    image: np.ndarray,
    image_id: str = "",
    confidence: np.ndarray | None = None,
    pixel_size: float | None = None,
    channel_names: Sequence[str] = (),
) -> Columns:
    """Measures all nuclei of an image, strip by strip; the figures are those of the whole image.

    Args:
        labels: (H, W) int, 0 background; gaps between numbers are allowed. It and `image` are only asked for their
            shape and for rows `[start:stop]`, as `data.images.open_rows` offers them.
        image: (H, W) or (H, W, C), any real dtype; of `Channels`, `np.moveaxis(planes, 0, -1)`.
        image_id: id of the image.
        confidence: (K,) float, of each nucleus in the order of its number.
        pixel_size: micrometres per pixel; None where it is not known.
        channel_names: of the C channels; () for gray, or red, green and blue.

    Returns:
        The columns of nuclei.csv, sorted by label. NaN stands for what there is not.

    Raises:
        ValueError: labels and image differ in height or width.
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels are {labels.shape}, the image is {image.shape[:2]}")
    height = labels.shape[0]
    tables = [
        measure_window(labels[top:stop], image[top:stop], numbers, top, height, channel_names)
        for numbers, top, stop in iterate_windows(labels)
    ]
    columns = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    order = np.argsort(columns["label"])
    columns = {"image": np.full(len(order), image_id)} | {key: column[order] for key, column in columns.items()}
    columns["nearest_neighbor_distance_px"] = find_neighbour_distances(columns)
    if confidence is not None:
        columns["confidence"] = np.asarray(confidence)
    if pixel_size is not None:
        columns["area_um2"] = columns["area_px"] * pixel_size**2
        columns |= {f"{key}_um": columns[f"{key}_px"] * pixel_size for key in LENGTHS}
    return columns


def iterate_windows(labels: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields windows of rows, and the nuclei that lie wholly in each; every nucleus comes once.

    A nucleus belongs to the strip where it ends, with all the rows above that it needs.

    Args:
        labels: as in `measure_nuclei`.

    Yields:
        numbers (K,) int, ascending; the first row, and the row after the last.
    """
    height = labels.shape[0]
    first_rows, last_rows = find_rows(labels)
    for start in range(0, height, STRIP):
        stop = min(start + STRIP, height)
        numbers = np.flatnonzero((start <= last_rows) & (last_rows < stop))
        yield numbers, int(first_rows[numbers].min(initial=start)), stop


def find_rows(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last row of each number from 0 in labels (H, W), read strip by strip; the last is -1 for no row."""
    height, width = labels.shape
    first_rows = np.zeros(1, np.int64)
    last_rows = np.full(1, -1)
    for start in range(0, height, STRIP):
        strip = np.asarray(labels[start : start + STRIP]).ravel()
        positions = np.flatnonzero(strip)
        numbers = strip[positions]
        rows = start + positions // width
        missing = max(int(numbers.max(initial=0)) + 1 - len(first_rows), 0)
        first_rows = np.pad(first_rows, (0, missing), constant_values=height)
        last_rows = np.pad(last_rows, (0, missing), constant_values=-1)
        np.minimum.at(first_rows, numbers, rows)
        last_rows[numbers] = rows  # where several pixels have one number, the last counts
    return first_rows, last_rows


def measure_window(
    labels: np.ndarray, image: np.ndarray, numbers: np.ndarray, top: int, height: int, channel_names: Sequence[str] = ()
) -> Columns:
    """Measures some nuclei that lie wholly in a window of rows.

    Args:
        labels: (rows, W) int.
        image: (rows, W) or (rows, W, C).
        numbers: (K,) int, ascending; the labels to measure. Each has pixels in the window, and none outside.
        top: row of the image where the window begins.
        height: rows of the image.
        channel_names: as in `measure_nuclei`.

    Returns:
        columns of K values, without those that need the other nuclei or the pixel size.
    """
    width = labels.shape[1]
    indices = np.zeros(max(int(labels.max(initial=0)), int(numbers.max(initial=0))) + 1, np.int32)
    indices[numbers] = np.arange(1, len(numbers) + 1)
    framed = np.pad(indices[labels], 1)  # (rows + 2, W + 2), nucleus 1…K or 0
    positions = np.flatnonzero(framed)  # flat positions of the pixels, row by row
    nuclei = framed.ravel()[positions] - 1
    rows = positions // (width + 2) - 1
    columns = positions % (width + 2) - 1
    area = np.bincount(nuclei, minlength=len(numbers))
    slices = ndimage.find_objects(framed[1:-1, 1:-1])
    box = np.array([(y.start, x.start, y.stop, x.stop) for y, x in slices], np.int64).reshape(-1, 4).T  # (4, K)
    perimeter = measure_perimeters(framed, positions, len(numbers))
    table = {"label": np.asarray(numbers, np.int64), "area_px": area}
    table |= measure_ellipses(nuclei, rows, columns, area, box, top)
    table["equivalent_diameter_area_px"] = np.sqrt(4 * area / math.pi)
    table["perimeter_px"] = perimeter
    table["solidity"] = area / count_hull_pixels(nuclei, rows, columns, box)
    table["form_factor"] = np.zeros(len(numbers))
    np.divide(4 * math.pi * area, perimeter**2, out=table["form_factor"], where=perimeter > 0)
    edges = [box[0] + top, box[1], box[2] + top, box[3]]
    names = ("bbox_min_row_px", "bbox_min_column_px", "bbox_max_row_px", "bbox_max_column_px")
    table |= dict(zip(names, edges, strict=True))
    table["touches_border"] = (edges[0] == 0) | (edges[1] == 0) | (edges[2] == height) | (edges[3] == width)
    pixels = image[rows, columns].reshape(len(rows), math.prod(image.shape[2:]))  # (pixels, C)
    for channel, values in zip(name_channels(image.shape, channel_names), pixels.T, strict=True):
        measured = measure_intensities(nuclei, values.astype(np.float64), area)
        table |= {f"intensity_{key}_{channel}": column for key, column in measured.items()}
    return table


def name_channels(shape: tuple[int, ...], names: Sequence[str] = ()) -> Sequence[str]:
    """Names of the channels of an image (H, W) or (H, W, C).

    >>> name_channels((9, 9)), name_channels((9, 9, 2))
    (('gray',), ('channel 1', 'channel 2'))
    """
    if names:
        return names
    if len(shape) == 2 or shape[2] == 1:
        return ("gray",)
    return COLOURS if shape[2] == 3 else fill_channel_names((), shape[2])


def measure_intensities(nuclei: np.ndarray, values: np.ndarray, area: np.ndarray) -> Columns:
    """Statistics of one channel: values (pixels,) float64 of the pixels that `nuclei` assigns."""
    total = np.bincount(nuclei, values, len(area))
    mean = total / area
    variance = np.bincount(nuclei, (values - mean[nuclei]) ** 2, len(area)) / area
    small = nuclei.astype(np.uint16) if len(area) < 2**16 else nuclei  # numpy sorts 16 bits much faster
    grouped = values[np.argsort(small, kind="stable")]
    stops = np.cumsum(area)
    starts = stops - area
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        grouped[start:stop].sort()
    return {
        "mean": mean,
        "median": (grouped[starts + (area - 1) // 2] + grouped[starts + area // 2]) / 2,
        "std": np.sqrt(variance),
        "min": grouped[starts],
        "max": grouped[stops - 1],
        "integrated": total,
    }


def find_neighbour_distances(columns: Columns) -> np.ndarray:
    """Distance (K,) from each centroid to the nearest other one, in pixels; NaN where there is no other."""
    centroids = np.stack([columns["centroid_row_px"], columns["centroid_column_px"]], axis=1)
    if len(centroids) < 2:
        return np.full(len(centroids), np.nan)
    return cKDTree(centroids).query(centroids, k=2)[0][:, 1]


def measure_image(
    nuclei: Columns,
    shape: tuple[int, int],
    image_id: str,
    pixel_size: float | None = None,
    channel: str = "",
    scale: str = "",
    background: str = "",
    warnings: Sequence[str] = (),
) -> dict[str, object]:
    """The row of an image in images.csv.

    Args:
        nuclei: from `measure_nuclei`.
        shape: (H, W) of the image.
        image_id: id of the image.
        pixel_size: micrometres per pixel; None where it is not known.
        channel: in which the nuclei were found.
        scale: at which they were found.
        background: "dark" or "bright".
        warnings: what is doubtful about the image.

    Returns:
        Names of columns with one value each; NaN stands for what there is not.
    """
    area = nuclei["area_px"]
    count = len(area)
    pixels = shape[0] * shape[1]
    side = math.nan if pixel_size is None else pixel_size  # micrometres; what is computed from NaN is NaN
    median_area = np.median(area) if count else math.nan
    confidence = nuclei.get("confidence", ())
    return {
        "image": image_id,
        "width_px": shape[1],
        "height_px": shape[0],
        "pixel_size_um": side,
        "channel": channel,
        "scale": scale,
        "background": background,
        "count": count,
        "covered_fraction": area.sum() / pixels,
        "median_area_px": median_area,
        "median_area_um2": median_area * side**2,
        "density_per_megapixel": count / (pixels / 1e6),
        "density_per_mm2": count / (pixels * side**2 / 1e6),
        "mean_confidence": np.mean(confidence) if len(confidence) else math.nan,
        "warnings": WARNING_SEPARATOR.join(warnings),
    }


def write_table(file: str | Path, columns: Columns) -> None:
    """Writes the columns of `measure_nuclei` as a .csv; NaN is an empty cell."""
    with write_whole(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*map(format_column, columns.values()), strict=True))


def format_column(column: np.ndarray) -> list[str]:
    """The cells of a column.

    >>> format_column(np.array([2 / 3, np.nan, -0.0])), format_column(np.array([True]))
    (['0.66666667', '', '0'], ['True'])
    """
    if column.dtype.kind != "f":
        return [str(value) for value in column.tolist()]
    column = column + 0.0  # -0.0 becomes 0.0
    return ["" if math.isnan(value) else format(value, NUMBER_FORMAT) for value in column.tolist()]
