"""Writes labels as OME-Zarr, which napari and other viewers open at any zoom, from a disk or from the web.

In:  labels/ID.tif, row by row.
Out: zarr/ID.zarr, a folder: the labels and smaller and smaller levels of them, each half as high and wide.

Source: https://ngff.openmicroscopy.org/0.5
"""

from pathlib import Path
from types import ModuleType

import numpy as np

from data.files import UserError, import_optional, write_whole
from data.images import open_rows
from data.outputs import PredictionFiles
from data.tiffs import TiffRows

OME_ZARR_VERSION = "0.5"
AXES = ("y", "x")
CHUNK = 512  # pixels, side of a chunk; so many rows are in memory at once
SMALLEST_SIDE = 256  # pixels; levels are halved until their shorter side is below it


def import_zarr() -> ModuleType:
    """The package that reads and writes Zarr. Raises UserError where it is missing or too old."""
    zarr = import_optional("zarr", "zarr", "--zarr")
    if int(zarr.__version__.split(".")[0]) < 3:
        raise UserError(f"--zarr needs zarr 3, this is {zarr.__version__}; pip install --upgrade zarr")
    return zarr


def save_zarr(files: PredictionFiles) -> None:
    """Writes the labels of an image as OME-Zarr, from its label file and tables."""
    with open_rows(files.labels) as labels:
        write_zarr(files.zarr, labels, files.image_id, files.read_image_row()["pixel_size_um"])


def write_zarr(file: Path, labels: np.ndarray | TiffRows, image_id: str, pixel_size: float | None = None) -> None:
    """Writes labels as a folder of OME-Zarr, uint32, CHUNK rows at a time.

    Args:
        file: a .zarr; an older one is replaced.
        labels: (H, W) int, 0 background, or rows of it.
        image_id: id of the image.
        pixel_size: micrometres; None where it is not known.
    """
    zarr = import_zarr()
    compressor = zarr.codecs.BloscCodec(cname="zstd", shuffle="noshuffle")  # shuffled labels take half as much again
    shapes = list_shapes(labels.shape)
    metadata = {"ome": describe_labels(image_id, len(shapes), pixel_size)}
    with write_whole(file) as temporary:
        group = zarr.create_group(temporary, zarr_format=3, attributes=metadata)
        finer = None
        for level_index, (height, width) in enumerate(shapes):
            level = group.create_array(
                str(level_index),
                shape=(height, width),
                chunks=(CHUNK, CHUNK),
                dtype=np.uint32,
                compressors=compressor,
                dimension_names=AXES,
            )
            for row in range(0, height, CHUNK):
                if finer is None:
                    rows = labels[row : row + CHUNK].astype(np.uint32)
                else:
                    rows = finer[2 * row : 2 * (row + CHUNK) : 2, ::2]
                level[row : row + CHUNK] = rows
            finer = level


def list_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(H, W) of each level, the largest first.

    >>> list_shapes((600, 1001))
    [(600, 1001), (300, 501), (150, 251)]
    """
    shapes = [shape]
    while min(shapes[-1]) >= SMALLEST_SIDE:
        height, width = shapes[-1]
        shapes.append(((height + 1) // 2, (width + 1) // 2))
    return shapes


def describe_labels(image_id: str, level_count: int, pixel_size: float | None) -> dict:
    """What OME-Zarr says of a label image: its axes, the scale of each level, and that its numbers are labels."""
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    datasets = []
    for level_index in range(level_count):
        side = 2**level_index * (1.0 if pixel_size is None else pixel_size)
        scale = {"type": "scale", "scale": [side, side]}
        datasets.append({"path": str(level_index), "coordinateTransformations": [scale]})
    multiscale = {
        "name": image_id,
        "axes": [{"name": axis, "type": "space"} | unit for axis in AXES],
        "datasets": datasets,
        "type": "nearest",
        "metadata": {"description": "each level holds every second row and column of the level before"},
    }
    return {"version": OME_ZARR_VERSION, "multiscales": [multiscale], "image-label": {"version": OME_ZARR_VERSION}}
