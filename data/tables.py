"""Writes the tables and the outlines of predicted nuclei.

In:  labels of an image, and how it was seen.
Out: tables/ID.csv and tables/ID.json of each image, nuclei.csv and images.csv of all, rois/ID.zip, geojson/ID.geojson.
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.channels import COLOURS, Channels, pick_channels
from data.confidence import MAX_MEASURED_HALVINGS
from data.files import UserError, read_csv, write_csv, write_whole
from data.images import SceneRows, open_rows
from data.measure import Columns, format_column, measure_image, measure_nuclei, write_table
from data.outlines import write_geojson, write_rois
from data.outputs import PredictionFiles, prediction_files, read_provenance
from data.pixel_size import read_pixel_size
from data.scales import PredictionJob, describe_job
from data.sources import Sample
from data.stacks import read_sample_image
from data.tiffs import TiffRows
from data.truth import read_labels

NUCLEI_TABLE = "nuclei.csv"
IMAGES_TABLE = "images.csv"
NO_NUCLEI = "no nuclei"
NO_SIGNAL = "hardly more than noise"
DEBRIS = "very bright debris was left out"
VERY_WIDE = "very wide nuclei"
WARNINGS = {  # warning about an image -> what to do
    NO_NUCLEI: "Right for an empty field, or where an option such as --min-area leaves out all nuclei. "
    "If you see nuclei, predict it with --channel, --background or --diameter.",
    NO_SIGNAL: "Only what stands out from the noise is looked for: do not count very dim nuclei here.",
    DEBRIS: "Objects far brighter than all others are no nuclei. If one is, cut it out and predict it alone.",
    VERY_WIDE: "Their confidence is not reliable: look at the overlay. Where it is wrong, predict with --diameter.",
}


def save_measurements(
    files: PredictionFiles,
    labels: np.ndarray | TiffRows,
    image: np.ndarray | TiffRows | SceneRows | Channels,
    pixel_size: float | None,
    job: PredictionJob,
    wanted_channel: str | None = None,
) -> None:
    """Writes the table of the nuclei of an image, and what images.csv says of it.

    Args:
        files: of `prediction_files`.
        labels: (H, W) int, or rows of it.
        image: as in the file, or rows of it; all its channels are measured.
        pixel_size: micrometres; None where it is not known.
        job: how the image was seen, and the confidence of its nuclei.
        wanted_channel: of the options; None: it was found out.
    """
    channel = seen_channel(image, job, wanted_channel)
    image, names = stack_channels(image)
    nuclei = measure_nuclei(labels, image, files.image_id, job.confidence, pixel_size, names)
    scale = "+".join(str(2.0**-halvings) for halvings in job.halvings)  # factors of the image's size
    warnings = list_warnings(nuclei, job)
    background = describe_job(job)["background"]
    image_row = measure_image(nuclei, labels.shape, files.image_id, pixel_size, channel, scale, background, warnings)
    image_row["left_out"] = job.left_out_count
    write_table(files.nuclei, nuclei)
    save_image_row(files.image_row, image_row)


def stack_channels(
    image: np.ndarray | TiffRows | SceneRows | Channels,
) -> tuple[np.ndarray | TiffRows | SceneRows, Sequence[str]]:
    """An image as `measure_nuclei` takes it, (H, W) or (H, W, C), and the names of its channels, () for colours."""
    if isinstance(image, Channels):
        return np.moveaxis(image.planes, 0, -1), image.names
    return image, ()


def save_true_nuclei(samples: Sequence[Sample], file: str | Path, pixel_size: float | None = None) -> int:
    """Measures the true nuclei of images, as nuclei.csv holds predicted ones, and returns how many these are.

    Args:
        samples: of `find_channels`, with truth.
        file: the table to write.
        pixel_size: micrometres; None: as the files say.

    Raises:
        UserError, OSError: an image or its truth cannot be read.
    """
    rows = []
    for sample in samples:
        image, names = stack_channels(read_sample_image(sample))
        labels = read_labels(sample, image.shape[:2])
        own_size = pixel_size or read_pixel_size(sample.image, 0, sample.scene)
        columns = measure_nuclei(labels, image, sample.id, None, own_size, names)
        cells = [format_column(column) for column in columns.values()]
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]
    write_csv(file, dict.fromkeys(name for row in rows for name in row), rows)
    return len(rows)


def seen_channel(image: np.ndarray | TiffRows | SceneRows | Channels, job: PredictionJob, wanted: str | None) -> str:
    """The channel in which nuclei were sought; "" for a gray image, and for colours that were seen together."""
    if isinstance(image, Channels) and wanted not in (None, "max"):
        return image.names[pick_channels(image.names, wanted)[0]]
    if job.channel_index is not None:
        return job.reading or COLOURS[job.channel_index]
    return "max" if wanted == "max" else ""


def list_warnings(nuclei: Columns, job: PredictionJob) -> list[str]:
    """What is doubtful about the answer to an image, as WARNINGS has it."""
    warnings = []
    if not len(nuclei["label"]):
        warnings.append(NO_NUCLEI)
    if not job.has_signal:
        warnings.append(NO_SIGNAL)
    if job.debris is not None:
        warnings.append(DEBRIS)
    if max(job.halvings, default=0) > MAX_MEASURED_HALVINGS:
        warnings.append(VERY_WIDE)
    return warnings


def save_image_row(file: Path, image_row: dict[str, object]) -> None:
    """Writes what images.csv says of an image, as a .json; NaN becomes null."""
    values = {name: None if value != value else value for name, value in image_row.items()}  # NaN is not itself
    with write_whole(file) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=float) + "\n", encoding="utf-8")


def save_tables(out: str | Path, ids: Sequence[str], skipped: Mapping[str, str] | None = None) -> dict[str, dict]:
    """Puts the tables of images together as nuclei.csv and images.csv.

    Args:
        out: folder of the predictions.
        ids: of the images.
        skipped: id -> reason of images without a prediction, which images.csv names too.

    Returns:
        id -> its row of images.csv.
    """
    files = [prediction_files(out, image_id) for image_id in ids]
    image_rows = [file.read_image_row() for file in files]
    # Images differ in their columns: in the names of channels, and an older version may have written fewer.
    image_columns = dict.fromkeys(name for row in image_rows for name in row)
    skipped_rows = [{"image": image_id, "warnings": f"skipped: {text}"} for image_id, text in (skipped or {}).items()]
    write_csv(Path(out, IMAGES_TABLE), image_columns, image_rows + skipped_rows)
    nuclei_columns = {}
    for file in files:
        with open(file.nuclei, newline="", encoding="utf-8") as stream:
            nuclei_columns |= dict.fromkeys(next(csv.reader(stream)))
    write_csv(Path(out, NUCLEI_TABLE), nuclei_columns, (row for file in files for row in read_csv(file.nuclei)))
    return dict(zip(ids, image_rows, strict=True))


def report_tables(
    out: str | Path, ids: Sequence[str], run_ids: Sequence[str] | None = None, skipped: Mapping[str, str] | None = None
) -> None:
    """Puts the tables of these images together, and says how many nuclei they hold, and those of this run if fewer."""
    image_rows = save_tables(out, ids, skipped)
    line = f"{sum(row['count'] for row in image_rows.values())} nuclei in {len(ids)} images"
    if run_ids is not None and len(run_ids) < len(ids):
        count_of_run = sum(image_rows[image_id]["count"] for image_id in run_ids)
        line += f", {count_of_run} of them in the {len(run_ids)} of this run"
    left_out = sum(row.get("left_out", 0) for row in image_rows.values())
    if left_out:
        line += f"; {left_out} more were left out by --min-confidence or another limit"
    print(f"{line}; {Path(out, NUCLEI_TABLE)} and {IMAGES_TABLE} measure them")


def save_rois(files: PredictionFiles) -> None:
    """Writes the ROI set of an image, from its labels; an image that is too large for ImageJ's ROIs is named."""
    try:
        with open_rows(files.labels) as labels:
            write_rois(files.rois, labels, **find_plane(files))
    except UserError as error:
        print(f"no ROIs: {error}", file=sys.stderr)


def save_geojson(files: PredictionFiles) -> None:
    """Writes the GeoJSON of an image, from its labels and table."""
    with open_rows(files.labels) as labels:
        write_geojson(files.geojson, labels, files.image_id, files.nuclei, find_scale(files), **find_plane(files))


def find_plane(files: PredictionFiles) -> dict[str, int | None]:
    """The plane of a stack that labels are of: {"z": …, "t": …}, as labels/ID.tif says it; {} of other images."""
    return (read_provenance(files.labels).get("seen") or {}).get("plane") or {}


def find_scale(files: PredictionFiles) -> tuple[float, float]:
    """Rows and columns of the largest level of a pyramid for one of the level that was predicted."""
    row_scale, column_scale = (read_provenance(files.labels).get("seen") or {}).get("level_scale", (1.0, 1.0))
    return row_scale, column_scale
