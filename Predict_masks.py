"""Predicts the nuclei of images with trained weights, writes them to files, shows the files.

In:  images (folder, Kaggle folder, .zip or one file) and the weights that Train.py saved.
Out, in --out (default data/<source name>_predicted), at each image's own size:
     masks/ID.png     8-bit, 255 nucleus, 0 background
     labels/ID.tif    one number per nucleus, 0 background; uint16, uint32 past 65,535 nuclei
     overlays/ID.png  the image with each nucleus outlined
     predictions.png  with --show: some of them side by side
     submission.csv   with --submission: the nuclei in run lengths, the table that Kaggle takes
An image of more than 4 million pixels goes through in pieces: its mask is masks/ID.tif, mask and
labels are tiled TIFFs, its overlay is reduced. A rerun does what is missing or out of date.
Exit code 1: some images could not be read; they were named and skipped.

    python Predict_masks.py --data data/sample
    python Predict_masks.py --data my_images --weights weights/unet.keras --out my_nuclei
    python Predict_masks.py --data my_images --out my_nuclei --show
    python Predict_masks.py --data my_images --out my_nuclei --scheduler tcp://10.0.0.1:8786
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.metrics import contingency_table
from skimage.morphology import remove_small_holes
from skimage.segmentation import watershed
from tqdm import tqdm

from Model import depth_of, load_unet
from Preprocessed_data import (
    DATA,
    MASK_ENDINGS,
    NO_ROOM,
    UNFINISHED,
    WIDE_NUCLEI,
    Sample,
    common_diameter,
    find_levels,
    halve,
    image_shape,
    modified,
    open_rows,
    open_source,
    outline_nuclei,
    read_image,
    read_origin,
    rle_encode,
    run_script,
    save_contact_sheet,
    show_pictures,
    thin,
    to_grayscale,
    write_whole,
)

WEIGHTS = "weights/unet.keras"
FOLDERS = ("masks", "labels", "overlays")  # of what is written
NUCLEUS_THRESHOLD = 0.45  # probability from which a pixel is nucleus; chosen in weights/README.md
SEED_THRESHOLD = 0.5  # of nucleus minus border probability: above it two nuclei do not touch
MIN_SEED_AREA = 8  # pixels; smaller seeds are noise on the rim of a nucleus
MIN_AREA = 20  # pixels; a disk 5 pixels across: smaller pieces are taken for noise
HALVE_ABOVE = (WIDE_NUCLEI, 80)  # pixels; nuclei wider than these are seen at a half, a quarter
FAR_SHARE = 2 / 3  # of what is seen from afar; the rest, from near, keeps outlines sharp
MERGED = 2  # times as wide from afar: those are nuclei that ran together, not one seen better
GIANT = 10  # times the area of a common nucleus: a vessel or a fibre, no nucleus of stage1_train is
CONNECT_SECONDS = 10  # to wait for a Dask scheduler
SHOWN = 8  # images in predictions.png
MAX_HOLE = 300  # pixels; a hole as large as a common nucleus is not a hole but background
READ_AHEAD = 8  # images
BATCH_PIXELS = 8 * 256 * 256  # in one batch: more is no faster
LARGE_IMAGE = 2048 * 2048  # pixels; larger ones go through in strips and tiles
STRIP = 512  # rows of a strip, a multiple of TIFF_TILE
TILE = 1024  # columns of a strip that go through the network at once
MARGIN = 128  # rows above and below a strip that are in view when its nuclei are parted
TIFF_TILE = 512  # pixels, side of a tile in the files of large images
TIFF_BUFFER = 32 * 2**20  # bytes of tiles that wait to be compressed; tifffile's default is 512 MB
SHOWN_PIXELS = 2048 * 2048  # of the overlay of a large image
LEVEL_PIXELS = 4_000_000  # of a large image, to find its levels from
WINDOW = 384  # pixels, side of the nine parts of a large image that its nuclei are measured in


def predict_probability(
    model: keras.Model, gray: np.ndarray, halvings: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the network on images of any one size.

    Args:
        model: from `load_unet`.
        gray: (..., H, W) float32 in [0, 1], one image or a stack, from `to_grayscale`.
        halvings: how often height and width are halved before; for wide nuclei.

    Returns:
        probability of nucleus, and of a border between touching nuclei, as gray in shape, float32.
    """
    multiple = 2 ** (depth_of(model) + halvings)
    height, width = gray.shape[-2:]
    pad = [(0, 0), (0, -height % multiple), (0, -width % multiple)]
    seen = padded = np.pad(gray.reshape(-1, height, width), pad, "symmetric")
    for _ in range(halvings):
        seen = halve(seen)
    answer = model.predict_on_batch(seen[..., None])
    if halvings:
        answer = keras.ops.image.resize(answer, padded.shape[1:], "bilinear")
        answer = keras.ops.convert_to_numpy(answer)
    answer = answer[:, :height, :width]
    return answer[..., 0].reshape(gray.shape), answer[..., 1].reshape(gray.shape)


def blend(near: Sequence[np.ndarray], far: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Means of probabilities seen from near and from afar, of nucleus and of border."""
    return [n + np.float32(FAR_SHARE) * (f - n) for n, f in zip(near, far, strict=True)]


def separate_nuclei(nucleus: np.ndarray, border: np.ndarray, largest: float = 0) -> np.ndarray:
    """Numbers the nuclei; touching ones are parted by a watershed from seeds inside the borders.

    Args:
        nucleus, border: (H, W) float in [0, 1], from `predict_probability`.
        largest: pixels of a nucleus at most; 0: GIANT times the common nucleus of these.

    Returns:
        labels: (H, W) int32, 0 background, 1…K; each number is one connected piece of at least
        MIN_AREA pixels.
    """
    mask = nucleus > NUCLEUS_THRESHOLD
    # Background that reaches the edge of the image is no hole.
    mask = remove_small_holes(mask, max_size=MAX_HOLE) & ndimage.binary_fill_holes(mask)
    seeds = find_seeds(mask, mask & (nucleus - border > SEED_THRESHOLD))
    # Water rises from the middle of each nucleus and meets on the border between two.
    labels = watershed(border - nucleus, seeds, mask=mask)
    return keep_sizes(labels, MIN_AREA, largest or giant_area(labels))


def giant_area(labels: np.ndarray) -> float:
    """Pixels that a nucleus among these, (H, W) int, may have at most."""
    return GIANT * math.pi / 4 * common_diameter(labels) ** 2


def find_seeds(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """One number for each nucleus, from (H, W) bool: of nuclei, and of them without borders."""
    seeds = keep_sizes(ndimage.label(inside)[0], MIN_SEED_AREA)
    # A piece of the mask that no seed fell into is one small nucleus: it is its own seed.
    pieces, count = ndimage.label(mask)
    seeded = np.zeros(count + 1, bool)
    seeded[pieces[seeds > 0]] = True
    return np.where(mask, np.where(seeded[pieces], seeds, pieces + seeds.max()), 0)


def find_nuclei(model: keras.Model, gray: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the nuclei of one image; where they are wide, as they are seen from afar too.

    What is smooth from afar is grained from near, but from near outlines are sharp.

    Args:
        model: from `load_unet`.
        gray: (H, W) float32 in [0, 1].

    Returns:
        labels, (H, W) int32, and how often height and width were halved for them.
    """
    seen = predict_probability(model, gray)
    labels, found = separate_nuclei(*seen), 0
    for halvings, width in enumerate(HALVE_ABOVE, start=1):
        if common_diameter(labels) > width:
            before, seen = labels, blend(seen, predict_probability(model, gray, halvings))
            labels = look_again(before, *seen)
            found = found if labels is before else halvings
    return labels, found


def look_again(before: np.ndarray, nucleus: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Labels of probabilities seen from farther, or those before where the nuclei ran together."""
    labels = separate_nuclei(nucleus, border)
    return before if common_diameter(labels) > MERGED * common_diameter(before) else labels


def keep_sizes(labels: np.ndarray, smallest: int, largest: float = math.inf) -> np.ndarray:
    """Sets to 0 what has fewer or more pixels; the rest becomes 1…K without gaps, int32.

    >>> keep_sizes(np.array([0, 7, 3, 7, 2, 3, 5, 5, 5]), 2, 2).tolist()
    [0, 2, 1, 2, 0, 1, 0, 0, 0]
    """
    areas = np.bincount(labels.ravel())
    kept = (areas >= smallest) & (areas <= largest)
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def make_folders(out: Path) -> None:
    """Makes the folders that predictions are written to."""
    for kind in FOLDERS:
        (out / kind).mkdir(parents=True, exist_ok=True)


def clean_folders(out: Path) -> None:
    """Makes the folders and removes what a killed run left; not while another is writing."""
    make_folders(out)
    for kind in FOLDERS:
        for file in (out / kind).glob(f"{UNFINISHED}*"):
            file.unlink()


def describe_origin(weights: str | Path) -> str:
    """What labels/ID.tif says of its origin: the weights' SHA-256 and the settings, as JSON."""
    settings = NUCLEUS_THRESHOLD, SEED_THRESHOLD, MIN_SEED_AREA, MIN_AREA, MAX_HOLE
    settings += *HALVE_ABOVE, FAR_SHARE, MERGED, GIANT
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return json.dumps({"weights_sha256": digest, "settings": settings})


def find_unfinished(samples: Iterable[Sample], out: Path, origin: str) -> list[Sample]:
    """The samples that lack a file, or whose image is younger than its labels.

    Raises:
        ValueError: other weights or settings made the labels that are there.
    """
    unfinished = []
    for sample in samples:
        labels, overlay = out / f"labels/{sample.id}.tif", out / f"overlays/{sample.id}.png"
        masks = [out / f"masks/{sample.id}{ending}" for ending in MASK_ENDINGS]
        if not (labels.exists() and overlay.exists() and any(mask.exists() for mask in masks)):
            unfinished.append(sample)
            continue
        if read_origin(labels) != origin:
            raise ValueError(
                f"{labels} was predicted with other weights or settings; "
                "redo all with --overwrite, or name another --out"
            )
        if modified(sample.image) > labels.stat().st_mtime:
            unfinished.append(sample)
    return unfinished


def write_prediction(
    out: Path, name: str, image: np.ndarray, labels: np.ndarray, origin: str = ""
) -> None:
    """Writes mask, labels and overlay of one image, each whole or not at all.

    Args:
        out: folder, with masks, labels and overlays in it.
        name: id of the image.
        image: (H, W) or (H, W, 3) as read.
        labels: (H, W) int32.
        origin: of `describe_origin`.
    """
    mask = np.where(labels > 0, 255, 0).astype(np.uint8)
    numbers = labels.astype(np.uint16 if labels.max() <= 65535 else np.uint32)
    overlay = outline_nuclei(image, labels)
    options = {"compression": "zlib", "description": origin, "metadata": None}
    # Overlays are for the eye: a fifth larger, but written three times as fast.
    write_whole(out / "overlays" / f"{name}.png", lambda f: save_png(f, overlay, compress_level=1))
    write_whole(out / "masks" / f"{name}.png", lambda f: save_png(f, mask))
    (out / "masks" / f"{name}.tif").unlink(missing_ok=True)  # of a larger image of this name
    write_whole(out / "labels" / f"{name}.tif", lambda f: tifffile.imwrite(f, numbers, **options))


def save_png(file: Path, picture: np.ndarray, compress_level: int = 6) -> None:
    """Writes (H, W) or (H, W, 3) uint8."""
    Image.fromarray(picture).save(file, compress_level=compress_level)


def predict_samples(
    samples: Iterable[Sample], model: keras.Model, out: str | Path, origin: str = ""
) -> tuple[list[str], dict[str, str]]:
    """Predicts images and writes their files; one that cannot be read is named and skipped.

    While the network runs, other threads read the next images and finish the ones before.

    Args:
        samples: from `open_source`.
        model: from `load_unet`.
        out: folder to write to.
        origin: of `describe_origin`, which the labels' files keep.

    Returns:
        ids written, sorted; and of those skipped id -> reason.
    """
    out, samples = Path(out), list(samples)
    make_folders(out)
    written, skipped, unfinished = [], {}, deque()
    progress = tqdm(total=len(samples), desc="predicting", unit="image", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        done = []
        for chunk in read_ahead(samples, pool):
            # While the network runs on these the pool makes the labels of those before.
            before, done = done, predict_chunk(chunk, model, pool)
            for halvings, width in enumerate(HALVE_ABOVE, start=1):  # as `find_nuclei`
                wide = [x for x in before if common_diameter(x.labels.result()) > width]
                predict_chunk(wide, model, pool, halvings)
            for picture in before:
                picture.seen = ()  # what waits for its turn takes memory
                unfinished.append(pool.submit(finish_image, out, picture, origin))
            for picture in chunk:
                name, reason = picture.sample.id, picture.reason
                if picture.large:
                    reason = predict_large(picture.sample, model, out, origin)
                    written += [] if reason else [name]
                if reason:
                    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
                    skipped[name] = reason
            bar.update(len(chunk))
            while len(unfinished) > READ_AHEAD:
                written.append(unfinished.popleft().result())
        written += [work.result() for work in unfinished]
    return sorted(written), skipped


@dataclass
class Picture:
    """An image on its way from file to files."""

    sample: Sample
    large: bool = False  # not read as a whole
    reason: str = ""  # why it cannot be read
    image: np.ndarray | None = None
    gray: np.ndarray | None = None
    seen: Sequence[np.ndarray] = ()  # probabilities, kept for a look from afar
    labels: Future | None = None


def read_ahead(samples: list[Sample], pool: ThreadPoolExecutor):
    """Yields lists of pictures while the pool reads the list after; at last an empty one."""
    # The first list is short, so that the first files are soon there.
    starts = range(1, len(samples), READ_AHEAD)
    parts = [samples[:1], *(samples[start : start + READ_AHEAD] for start in starts)]
    ahead = []
    for part in [*parts, [], []]:
        now, ahead = ahead, [pool.submit(read, sample) for sample in part]
        yield [work.result() for work in now]


def read(sample: Sample) -> Picture:
    """Image and gray of a sample, or why there is none."""
    try:
        if math.prod(image_shape(sample.image)) > LARGE_IMAGE:
            return Picture(sample, large=True)
        image = read_image(sample.image)
        return Picture(sample, image=image, gray=to_grayscale(image))
    except (OSError, ValueError) as error:
        return Picture(sample, reason=str(error))


def predict_chunk(chunk: list[Picture], model, pool, halvings: int = 0) -> list[Picture]:
    """Sends batches of one shape through the network; the pool makes labels of the answers.

    Returns:
        The pictures that have a gray, each now with a future of its labels.
    """
    groups = {}
    for picture in chunk:
        if picture.gray is not None:
            groups.setdefault(picture.gray.shape, []).append(picture)
    for (height, width), group in groups.items():
        count = max(BATCH_PIXELS // (height * width), 1)
        for start in range(0, len(group), count):
            batch = group[start : start + count]
            answers = predict_probability(model, np.stack([x.gray for x in batch]), halvings)
            for picture, *answer in zip(batch, *answers, strict=True):
                picture.seen = blend(picture.seen, answer) if halvings else answer
                work = (look_again, picture.labels.result()) if halvings else (separate_nuclei,)
                picture.labels = pool.submit(*work, *picture.seen)
    return [picture for group in groups.values() for picture in group]


def finish_image(out: Path, picture: Picture, origin: str) -> str:
    """Writes the files; returns the id."""
    name = picture.sample.id
    write_prediction(out, name, picture.image, picture.labels.result(), origin)
    return name


def predict_large(sample: Sample, model: keras.Model, out: Path, origin: str) -> str:
    """Predicts an image in strips, never holding the whole; returns why it cannot be read."""
    name = sample.id

    def save(file: Path) -> None:
        """The labels; from them, before they have their name, the others."""
        levels = find_levels(thin(image, LEVEL_PIXELS))
        common, halvings = find_nuclei(model, take_windows(image, levels))
        strips = probability_strips(model, image, levels, halvings, name[:20])
        strips = label_strips(strips, giant_area(common))
        save_tiles(file, strips, image.shape[:2], np.uint32, origin)
        with open_rows(file) as labels:
            overlay = outline_nuclei(thin(image, SHOWN_PIXELS), thin(labels, SHOWN_PIXELS))
            rows = range(0, labels.shape[0], STRIP)
            mask = (np.where(labels[row : row + STRIP] > 0, 255, 0) for row in rows)
            options = labels.shape, np.uint8, origin
            write_whole(out / f"masks/{name}.tif", lambda f: save_tiles(f, mask, *options))
        write_whole(out / f"overlays/{name}.png", lambda f: save_png(f, overlay, 1))

    try:
        with open_rows(sample.image) as image:
            write_whole(out / f"labels/{name}.tif", save)
            (out / f"masks/{name}.png").unlink(missing_ok=True)  # of a smaller image of this name
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename != str(sample.image):
            raise  # it is of a file that is written
        return str(error)
    return ""


def probability_strips(model: keras.Model, image, levels, halvings: int, name: str):
    """Yields (2, rows, W) float32 of STRIP rows each, nucleus and border, as of the whole image.

    What goes through the network is larger than what is kept of its answer, by as much as an answer
    depends on its surroundings, and starts where the poolings of the whole image have an edge: so
    nothing tells where a tile ended.
    """
    height, width = image.shape[:2]
    halo = 6 * 2 ** (depth_of(model) + halvings)  # pixels; 4 convolutions a level, 2 at the bottom
    tiles = [(row, column) for row in range(0, height, STRIP) for column in range(0, width, TILE)]
    for row, column in tqdm(tiles, desc=name, unit="tile", disable=None, leave=False):
        if column == 0:
            top, bottom = max(row - halo, 0), min(row + STRIP + halo, height)
            gray = to_grayscale(image[top:bottom], levels)
            strip = np.empty((2, min(STRIP, height - row), width), np.float32)
        left, right = max(column - halo, 0), min(column + TILE + halo, width)
        answers = predict_probability(model, gray[:, left:right])
        for farther in range(1, halvings + 1):
            answers = blend(answers, predict_probability(model, gray[:, left:right], farther))
        for kept, answer in zip(strip, answers, strict=True):
            answer = answer[row - top :][: len(kept), column - left :][:, :TILE]
            kept[:, column : column + TILE] = answer
        if column + TILE >= width:
            yield strip


def take_windows(image, levels) -> np.ndarray:
    """The gray of nine windows of a large image, put together as if they were one image."""
    columns = np.linspace(0, max(image.shape[1] - WINDOW, 0), 3).astype(int)
    windows = []
    for row in np.linspace(0, max(image.shape[0] - WINDOW, 0), 3).astype(int):
        gray = to_grayscale(image[row : row + WINDOW], levels)
        windows.append(np.hstack([gray[:, column : column + WINDOW] for column in columns]))
    return np.vstack(windows)


def label_strips(strips: Iterator[np.ndarray], largest: float = 0):
    """Numbers the nuclei of a whole image, strip by strip.

    A nucleus is found in the strip where it begins, with MARGIN rows of the strips above and below
    in view, and keeps its number in the strips below.

    Args:
        strips: of `probability_strips`.
        largest: of `separate_nuclei`.

    Yields:
        (rows, W) int32, for each strip.
    """
    here, count = next(strips), 0
    above, known = here[:, :0], np.zeros((0, here.shape[2]), np.int32)
    while here is not None:
        below = next(strips, None)
        start, stop = above.shape[1], above.shape[1] + here.shape[1]
        parts = [above, here] if below is None else [above, here, below[:, :MARGIN]]
        window = np.concatenate(parts, axis=1)
        del parts, above, here  # of a wide image they are large
        labels, count = number_window(window, known, start, stop, count, largest)
        above, known = window[:, stop - MARGIN : stop].copy(), labels[stop - MARGIN :].copy()
        here = below
        del window
        yield labels[start:stop]
        del labels


def number_window(
    window: np.ndarray, known: np.ndarray, start: int, stop: int, count: int, largest: float = 0
) -> tuple[np.ndarray, int]:
    """Numbers the nuclei of a strip and of what is in view above and below it.

    Args:
        window: (2, rows, W) float32, nucleus and border.
        known: (fewer rows, W) int32, the first of these rows as they were numbered before.
        start, stop: the rows of the strip.
        count: nuclei until now.
        largest: of `separate_nuclei`.

    Returns:
        labels, (rows, W) int32, and the count with those that begin in the strip.
    """
    found = separate_nuclei(*window, largest)
    labels = np.zeros_like(found)
    labels[: len(known)] = known
    fresh = np.where(labels == 0, found, 0)
    fresh[:start] = 0
    # What is fresh of a nucleus that is known goes on with it, however high it is.
    numbers, same = match_known(found, known)
    areas = np.bincount(fresh.ravel(), minlength=len(numbers))
    ours = ~same & (areas > np.bincount(found.ravel()) / 2)
    ours &= np.bincount(found[:stop].ravel(), minlength=len(ours)) > 0  # else it begins below
    ours[0] = False
    numbers[ours] = count + np.arange(1, ours.sum() + 1)
    return labels + numbers[fresh], int(numbers.max(initial=count))


def match_known(found: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which nucleus that is known each found one lies on.

    Args:
        found: (rows, W) int32, up to K nuclei.
        known: (fewer rows, W) int32, the first of these rows as they were numbered before.

    Returns:
        (K + 1,) int32, the known number that most of it has, 0 for none; and (K + 1,) bool, whether
        most of that one also lies on it: then the two are the same nucleus.
    """
    numbers = np.zeros(found.max() + 1, np.int32)
    same = np.zeros(len(numbers), bool)
    if len(known):
        options = {"ignore_labels": (0,), "sparse_type": "array"}
        shared = contingency_table(found[: len(known)], known, **options)
        numbers[: shared.shape[0]] = shared.argmax(axis=1)
        same = shared.argmax(axis=0)[numbers] == np.arange(len(numbers))
    return numbers, (numbers > 0) & same


def save_tiles(file: Path, strips: Iterable[np.ndarray], shape, dtype, origin: str) -> None:
    """Writes strips (rows, W) as one compressed, tiled BigTIFF of this shape."""

    def tiles():
        """Yields them row by row, those at the edges filled up with 0."""
        for strip in strips:
            for row in range(0, len(strip), TIFF_TILE):
                for column in range(0, shape[1], TIFF_TILE):
                    part = strip[row : row + TIFF_TILE, column : column + TIFF_TILE]
                    tile = np.zeros((TIFF_TILE, TIFF_TILE), dtype)
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile

    options = {"tile": (TIFF_TILE, TIFF_TILE), "compression": "zlib", "bigtiff": True}
    options |= {"description": origin, "metadata": None, "buffersize": TIFF_BUFFER}
    tifffile.imwrite(file, tiles(), shape=shape, dtype=dtype, **options)


def predict_on_cluster(
    samples: Sequence[Sample], weights: str, out: Path, data: str, address: str
) -> tuple[list[str], dict[str, str]]:
    """As `predict_samples`, by the workers of a running Dask cluster, which write the files.

    All workers need the packages of requirements.txt, and this folder, data, weights and out under
    the same paths. The images of a worker that dies are done by another.

    Raises:
        ValueError: no distributed here, no scheduler there, or workers that cannot work.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ValueError("--scheduler needs Dask; pip install distributed") from error
    paths = [str(Path(path).resolve()) for path in (Path(__file__).parent, data, weights, out)]

    run = time.time_ns()

    def work(ids):
        """Travels to the workers as it stands, and there finds this script."""
        sys.path.insert(0, paths[0])
        return importlib.import_module("Predict_masks").predict_on_worker(ids, run, *paths[1:])

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{address}: no Dask scheduler answers; dask scheduler starts one"
        ) from error
    written, skipped, ids = [], {}, [sample.id for sample in samples]
    with client, tqdm(total=len(ids), desc="predicting", unit="image", disable=None) as bar:
        size = max(min(len(samples) // (4 * max(len(client.nthreads()), 1)), READ_AHEAD), 1)
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        for future in as_completed(client.map(work, parts, pure=False)):
            with named_worker_errors(address, paths):
                done, reasons = future.result()
            written += done
            skipped |= reasons
            for name, reason in reasons.items():
                tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
            bar.update(len(done) + len(reasons))
    clean_folders(out)  # of workers that died
    return sorted(written), skipped


@contextlib.contextmanager
def named_worker_errors(address: str, paths: Iterable[str]):
    """Errors of workers become a ValueError that says of which scheduler and what they need."""
    from distributed import KilledWorker

    try:
        yield
    except (KilledWorker, CancelledError) as error:
        what = f"the scheduler or workers die again and again ({error})"
        raise ValueError(f"{address}: {what}") from error
    except (ImportError, OSError, ValueError) as error:
        what = f"a worker failed ({type(error).__name__}: {error})"
        if getattr(error, "errno", None) not in NO_ROOM:
            what += f"; it needs requirements.txt installed and, as here, {', '.join(paths)}"
        raise ValueError(f"{address}: {what}") from error


def predict_on_worker(ids, run: int, data: str, weights: str, out):
    """What a Dask worker does; returns as `predict_samples`."""
    samples, model, origin = prepare_worker(run, data, weights)
    gone = {name: "no longer there" for name in ids if name not in samples}
    here = [samples[name] for name in ids if name in samples]
    written, skipped = predict_samples(here, model, out, origin)
    return written, gone | skipped


@functools.lru_cache(1)
def prepare_worker(run: int, data: str, weights: str) -> tuple[dict, keras.Model, str]:
    """What a worker needs for all its images of one run: samples by id, network, origin."""
    samples = {sample.id: sample for sample in open_source(data)}
    return samples, load_unet(weights), describe_origin(weights)


def show_predictions(folder: str | Path) -> Path:
    """Shows overlays and masks, reading nothing but the files that were written.

    Args:
        folder: what `predict_samples` wrote to.

    Returns:
        predictions.png in the folder, the same picture, also saved where there is no display.

    Raises:
        FileNotFoundError: no predictions are there.
    """
    folder = Path(folder)
    masks = sorted(file for e in MASK_ENDINGS for file in folder.glob(f"masks/[!.]*{e}"))
    if not masks:
        raise FileNotFoundError(f"{folder}: no masks; python Predict_masks.py writes some")
    pictures, titles = [], []
    for i in np.unique(np.linspace(0, len(masks) - 1, SHOWN).astype(int)):
        name = masks[i].stem
        with open_rows(masks[i]) as mask, open_rows(folder / "labels" / f"{name}.tif") as labels:
            rows = range(0, labels.shape[0], STRIP)
            nuclei = max(int(labels[row : row + STRIP].max()) for row in rows)
            mask = thin(mask, SHOWN_PIXELS)
        pictures += [read_image(folder / "overlays" / f"{name}.png"), np.stack([mask] * 3, -1)]
        titles += [name[:24], f"{nuclei} nuclei"]
    file = folder / "predictions.png"
    save_contact_sheet(pictures, titles, file)
    show_pictures(file)
    return file


def save_submission(folder: str | Path, ids: Iterable[str]) -> Path:
    """Writes what Kaggle scores, ImageId,EncodedPixels, a row a nucleus, from the label files.

    Source: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation

    Args:
        folder: what `predict_samples` wrote to.
        ids: of the images; one without nuclei has a row without pixels.

    Returns:
        submission.csv in the folder.
    """

    def write(part: Path) -> None:
        """Reads one label file at a time."""
        with open(part, "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(("ImageId", "EncodedPixels"))
            for name in ids:
                runs = rle_encode(read_image(folder / "labels" / f"{name}.tif"))
                table.writerows((name, run) for run in runs or [""])

    folder = Path(folder)
    write_whole(folder / "submission.csv", write)
    return folder / "submission.csv"


def default_out(data: str | Path) -> Path:
    """data/<source name>_predicted."""
    return Path("data") / f"{Path(data).resolve().stem}_predicted"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=DATA, help=f"images (default {DATA})")
    parser.add_argument("--weights", default=WEIGHTS, help=f"default {WEIGHTS}")
    parser.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    parser.add_argument("--show", action="store_true", help="show the files afterwards")
    parser.add_argument("--submission", action="store_true", help="write Kaggle's table of them")
    parser.add_argument("--overwrite", action="store_true", help="redo images that are done")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that predicts")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = open_source(args.data)
    out = Path(args.out or default_out(args.data))
    model, origin = load_unet(args.weights), describe_origin(args.weights)
    clean_folders(out)
    todo = samples if args.overwrite else find_unfinished(samples, out, origin)
    if len(todo) < len(samples):
        print(f"{len(samples) - len(todo)} of {len(samples)} images are done; --overwrite to redo")
    started = time.perf_counter()
    if args.scheduler and todo:
        written, skipped = predict_on_cluster(todo, args.weights, out, args.data, args.scheduler)
    else:
        written, skipped = predict_samples(todo, model, out, origin)
    seconds = time.perf_counter() - started
    if len(skipped) == len(samples):
        raise ValueError(f"{args.data}: none of its {len(samples)} images can be read")
    print(f"{len(written)} images in {seconds:.1f} s, {len(written) / seconds:.1f} a second")
    print(f"saved masks, labels and overlays to {out}")
    if args.submission:
        ids = [sample.id for sample in samples if sample.id not in skipped]
        print(f"saved Kaggle's table to {save_submission(out, ids)}")
    if args.show:
        print(f"saved the picture of them to {show_predictions(out)}")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_script(main)
