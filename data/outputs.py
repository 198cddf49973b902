"""Writes and finds predictions: labels, masks, overlays, Kaggle's table.

In:  labels (H, W) int32, pictures (H, W, 3) uint8.
Out: files of `prediction_files` in one folder. Every file is written whole or not at all.
"""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from data.files import UNFINISHED, UserError, decoding, describe_file, remove, write_csv, write_whole
from data.images import read_image
from data.layouts import OPTIONAL_FOLDERS, RESULT_FOLDERS, SOURCE_RECORD, Sample
from data.run_lengths import encode_run_lengths
from data.sources import has_wildcard, source_name

IMAGE_KEYS = ("image", "seen")  # keys of a provenance on one image: its size and checksum, and how it was seen
SEEN_OPTIONS = ("channel", "background", "project", "diameter", "level", "pixel_size")  # each image may have its own
PROVENANCE_KEY = "provenance="  # begins its line in ImageJ's description; other descriptions are nothing else
MICROMETRES_PER_CM = 10_000
TIFF_TILE = 512  # pixels, side of a tile in the files of large images
TIFF_BUFFER = 32 * 2**20  # bytes of tiles that wait to be compressed; tifffile's default is 512 MB
FAST_COMPRESSION = 1  # level of zlib; PNGs are a fifth larger and written three times as fast

Provenance = dict  # what labels/ID.tif says of its weights, settings and image; JSON types only


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one image; it has `mask` or, if it is large, `tiled_mask`."""

    image_id: str
    labels: Path
    mask: Path
    tiled_mask: Path
    overlay: Path
    nuclei: Path  # table, a row for each nucleus
    image_row: Path  # what images.csv says of the image, as a .json
    rois: Path
    geojson: Path
    zarr: Path  # a folder

    def existing_mask(self) -> Path:
        """The mask that is there; `mask` where there is none."""
        return self.tiled_mask if self.tiled_mask.exists() else self.mask

    def are_complete(self) -> bool:
        """Whether labels, mask, overlay and tables are there."""
        files = (self.labels, self.existing_mask(), self.overlay, self.nuclei, self.image_row)
        return all(file.exists() for file in files)

    def optional(self) -> dict[str, Path]:
        """The files that an option of Predict_masks.py asks for, by its name."""
        return {"rois": self.rois, "geojson": self.geojson, "zarr": self.zarr}

    def remove_optional(self) -> None:
        """Removes the files that an option asks for, as their labels are about to be replaced."""
        for file in self.optional().values():
            remove(file)

    def read_image_row(self) -> dict:
        """What images.csv says of the image, by the names of the columns; None for an empty cell."""
        return json.loads(self.image_row.read_text(encoding="utf-8"))


def prediction_files(out: str | Path, image_id: str) -> PredictionFiles:
    """Where the predictions of the image with this id lie in the folder `out`."""
    out = Path(out)
    return PredictionFiles(
        image_id,
        labels=out / "labels" / f"{image_id}.tif",
        mask=out / "masks" / f"{image_id}.png",
        tiled_mask=out / "masks" / f"{image_id}.tif",
        overlay=out / "overlays" / f"{image_id}.png",
        nuclei=out / "tables" / f"{image_id}.csv",
        image_row=out / "tables" / f"{image_id}.json",
        rois=out / "rois" / f"{image_id}.zip",
        geojson=out / "geojson" / f"{image_id}.geojson",
        zarr=out / "zarr" / f"{image_id}.zarr",
    )


def default_out(*sources: str | Path) -> Path:
    """The folder for the results of these sources, where nothing of other sources lies.

    It is <source name>_predicted, in data/ if the working directory has that. Where other results are there already,
    it is <parent>_<source name>_predicted or has a number. Several sources are named by the folder that holds them all.
    """
    data = Path("data") if Path("data").is_dir() else Path()
    origins = describe_sources(sources)
    try:
        source = Path(os.path.commonpath(origins))
    except ValueError:  # drives of Windows have no folder in common
        source = Path(origins[0])
    name = source_name(source) or "images"
    parent = source.parent.name
    names = [name, f"{parent}_{name}"] if parent else [name]
    numbered = (f"{names[-1]}_{number}" for number in itertools.count(2))
    folders = (data / f"{candidate}_predicted" for candidate in itertools.chain(names, numbered))
    return next(out for out in folders if _is_free(out, origins))


def _is_free(out: Path, origins: Iterable[str]) -> bool:
    """Whether a folder is not there, is empty, or holds results of these sources."""
    if not out.is_dir():
        return not out.exists()
    return not any(out.iterdir()) or set(origins) <= set(read_sources(out))


def describe_sources(sources: Sequence[str | Path]) -> list[str]:
    """Absolute paths of sources, sorted; wildcards, and files among several sources, count as their folders."""
    origins = set()
    for source in sources:
        path = Path(os.path.abspath(source))
        is_part_of_folder = path.is_file() and len(sources) > 1 and path.suffix.lower() not in (".zip", ".txt")
        if is_part_of_folder:
            path = path.parent
        while has_wildcard(path):
            path = path.parent
        origins.add(str(path))
    return sorted(origins)


def read_sources(out: str | Path) -> list[str]:
    """The sources whose results lie in a folder, by its source.json; [] if it does not say."""
    try:
        return list(json.loads(Path(out, SOURCE_RECORD).read_text(encoding="utf-8"))["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def record_sources(out: str | Path, *sources: str | Path) -> None:
    """Makes a folder for results, says where it is, and adds these sources to its source.json."""
    print(f"writing to {out}")
    make_folders(out)
    known = sorted({*read_sources(out), *describe_sources(sources)})
    with write_whole(Path(out, SOURCE_RECORD)) as temporary:
        temporary.write_text(json.dumps({"sources": known}, indent=2) + "\n", encoding="utf-8")


def find_predictions(out: str | Path) -> list[str]:
    """Ids of the images that have labels and a mask in the folder, sorted."""
    files = Path(out).glob("labels/*.tif")
    ids = sorted(file.stem for file in files if not file.name.startswith((UNFINISHED, "._")))
    return [image_id for image_id in ids if prediction_files(out, image_id).existing_mask().exists()]


def find_complete(out: str | Path) -> list[str]:
    """Ids of the images in the folder of which no file lacks, sorted; only these have a table."""
    return [image_id for image_id in find_predictions(out) if prediction_files(out, image_id).are_complete()]


def find_unfinished(samples: Iterable[Sample], out: str | Path, provenance: Provenance) -> list[Sample]:
    """The samples that lack a file, or whose labels are of another image, by its size and checksum.

    Raises:
        UserError: other weights or settings made the labels that are there, or another program changed them.
    """
    unfinished = []
    for sample in samples:
        files = prediction_files(out, sample.id)
        if not files.are_complete():
            unfinished.append(sample)
            continue
        known = read_provenance(files.labels)
        if not known:
            raise UserError(
                f"{files.labels} was changed by another program; --overwrite would replace it: "
                "move it, or name another --out"
            )
        if not is_of_run(known, provenance):
            raise UserError(
                f"{files.labels} was predicted with {describe_difference(known, provenance)}; "
                "redo it alone or all with --overwrite, or name another --out"
            )
        if known.get("image") != describe_file(sample.image):
            unfinished.append(sample)
    return unfinished


def make_folders(out: str | Path) -> None:
    """Makes the folders that predictions are written to."""
    for folder in RESULT_FOLDERS:
        Path(out, folder).mkdir(parents=True, exist_ok=True)


def remove_unfinished(out: str | Path) -> None:
    """Removes what a killed run left behind; not while another run writes to the folder."""
    for folder in (*RESULT_FOLDERS, *OPTIONAL_FOLDERS):
        for path in Path(out, folder).glob(f"{UNFINISHED}*"):
            remove(path)


def read_provenance(file: Path) -> Provenance:
    """What `write_prediction` wrote into a label file of its weights, settings and image, else {}."""
    with decoding(file), tifffile.TiffFile(file) as tiff:
        description = tiff.pages[0].description
    lines = description.splitlines()
    marked = [line.removeprefix(PROVENANCE_KEY) for line in lines if line.startswith(PROVENANCE_KEY)]
    try:
        provenance = json.loads(marked[0] if marked else description)
    except ValueError:  # another program's description
        return {}
    return provenance if isinstance(provenance, dict) and "weights_sha256" in provenance else {}


def provenance_of_run(provenance: Provenance) -> Provenance:
    """What the labels of one run share: weights and settings, without what is of the image alone."""
    return {key: value for key, value in provenance.items() if key not in IMAGE_KEYS}


def reset_seen_options(provenance: Provenance, wanted: Provenance | None = None) -> Provenance:
    """A provenance with None for SEEN_OPTIONS, as if they were to be found out, but for those that `wanted` gives."""
    options = provenance.get("options")
    if not options:
        return provenance
    asked = (wanted or {}).get("options", {})
    reset = [name for name in SEEN_OPTIONS if name in options and asked.get(name) is None]
    return provenance | {"options": options | dict.fromkeys(reset)}


def is_of_run(known: Provenance, wanted: Provenance) -> bool:
    """Whether labels are of the weights and settings that a run wants; SEEN_OPTIONS that it leaves open may be any."""
    return reset_seen_options(provenance_of_run(known), wanted) == wanted


def describe_difference(known: Provenance, wanted: Provenance) -> str:
    """Which of the weights and settings of labels are not those that a run wants, in words."""
    if known["weights_sha256"] != wanted.get("weights_sha256"):
        return "other weights"
    asked = wanted.get("options", {})
    options = reset_seen_options(known, wanted).get("options", {})
    others = [f"{name} {value}, not {asked.get(name)}" for name, value in options.items() if value != asked.get(name)]
    return f"other options ({'; '.join(others)})" if others else "other thresholds or constants"


def write_prediction(
    files: PredictionFiles,
    labels: np.ndarray,
    overlay: np.ndarray,
    provenance: Provenance,
    pixel_size: float | None = None,
) -> None:
    """Writes overlay, mask and labels of one image; labels last, for they say that it is done.

    Args:
        files: of `prediction_files`; their folders exist.
        labels: (H, W) int32.
        overlay: (H, W, 3) uint8.
        provenance: of the weights and settings, and of the image: see `IMAGE_KEYS`.
        pixel_size: micrometres, which the label file keeps.
    """
    with write_whole(files.overlay) as temporary:
        save_png(temporary, overlay, FAST_COMPRESSION)
    with write_whole(files.mask) as temporary:
        save_png(temporary, mask_of(labels))
    files.tiled_mask.unlink(missing_ok=True)  # a larger image of this name had it
    with write_whole(files.labels) as temporary:
        save_labels(temporary, labels, provenance, pixel_size)


def save_labels(file: Path, labels: np.ndarray, provenance: Provenance, pixel_size: float | None) -> None:
    """Writes labels (H, W) int32 as uint16, with the range that Fiji shows; as uint32 where they are many.

    Fiji measures micrometres where the pixel size is known. ImageJ's format has no uint32.
    """
    count = int(labels.max())
    description = json.dumps(provenance)
    if count > np.iinfo(np.uint16).max:
        labels = labels.astype(np.uint32)
        resolution = describe_resolution(pixel_size)
    else:
        labels = labels.astype(np.uint16)
        unit = "pixel" if pixel_size is None else "um"
        lines = ("ImageJ=1.54f", "images=1", f"unit={unit}", "min=0.0", f"max={max(count, 1)}.0")
        description = "\n".join((*lines, PROVENANCE_KEY + description, ""))
        side = 1 if pixel_size is None else pixel_size
        resolution = {"resolution": (1 / side, 1 / side), "resolutionunit": "NONE"}
    tifffile.imwrite(file, labels, compression="zlib", description=description, metadata=None, **resolution)


def describe_resolution(pixel_size: float | None) -> dict:
    """What `tifffile.imwrite` is told of a pixel's size in micrometres, by the common tags of TIFF."""
    if pixel_size is None:
        return {}
    return {"resolution": (MICROMETRES_PER_CM / pixel_size,) * 2, "resolutionunit": "CENTIMETER"}


def mask_of(labels: np.ndarray) -> np.ndarray:
    """(H, W) uint8: 255 where a nucleus is, else 0."""
    return np.where(labels > 0, 255, 0).astype(np.uint8)


def save_png(file: Path, picture: np.ndarray, compression: int = 6) -> None:
    """Writes (H, W) or (H, W, 3) uint8; `compression` is that of zlib, 0 to 9."""
    Image.fromarray(picture).save(file, compress_level=compression)


def save_tiles(
    file: Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: np.dtype,
    provenance: Provenance,
    pixel_size: float | None = None,
) -> None:
    """Writes strips (rows, W) as one compressed, tiled BigTIFF of this shape, with its pixel size in micrometres.

    The rows of every strip but the last are a multiple of TIFF_TILE.
    """

    def cut_tiles():
        """Yields tiles in the order of rows; those at the edges are filled up with 0."""
        for strip in strips:
            for row in range(0, len(strip), TIFF_TILE):
                for column in range(0, shape[1], TIFF_TILE):
                    pixels = strip[row : row + TIFF_TILE, column : column + TIFF_TILE]
                    tile = np.zeros((TIFF_TILE, TIFF_TILE), dtype)
                    tile[: pixels.shape[0], : pixels.shape[1]] = pixels
                    yield tile

    tifffile.imwrite(
        file,
        cut_tiles(),
        shape=shape,
        dtype=dtype,
        tile=(TIFF_TILE, TIFF_TILE),
        compression="zlib",
        bigtiff=True,
        description=json.dumps(provenance),
        metadata=None,
        buffersize=TIFF_BUFFER,
        **describe_resolution(pixel_size),
    )


def save_submission(out: str | Path, ids: Iterable[str]) -> Path:
    """Writes what Kaggle scores, ImageId,EncodedPixels, one row per nucleus, from the label files.

    Source: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation

    Args:
        out: folder of the predictions.
        ids: of the images; one without nuclei has a row without pixels.

    Returns:
        submission.csv in the folder.
    """
    file = Path(out, "submission.csv")
    rows = (
        {"ImageId": image_id, "EncodedPixels": text}
        for image_id in ids
        for text in encode_run_lengths(read_image(prediction_files(out, image_id).labels)) or [""]
    )
    write_csv(file, ("ImageId", "EncodedPixels"), rows)
    return file
