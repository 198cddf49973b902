"""Predicts the nuclei of images with trained weights, writes them to files, shows the files.

In:  images (folder, Kaggle folder, .zip or one file) and the weights that Train.py saved.
Out, in --out (default data/<source name>_predicted), at each image's own size:
     masks/ID.png     8-bit, 255 nucleus, 0 background
     labels/ID.tif    one number per nucleus, 0 background; uint16, or uint32 for many nuclei
     overlays/ID.png  the image with each nucleus outlined
     predictions.png  with --show: some of them side by side
     submission.csv   with --submission: the nuclei in run lengths, the table that Kaggle takes
An image of more than 4 million pixels is predicted in tiles: its mask is masks/ID.tif, mask and
labels are tiled TIFFs, its overlay is reduced. A rerun predicts what is missing or out of date.
Exit code 1: some images could not be read; they were named and skipped.

    python Predict_masks.py --data data/sample
    python Predict_masks.py --data my_images --weights weights/unet.keras --out my_nuclei
    python Predict_masks.py --data my_images --out my_nuclei --show
    python Predict_masks.py --data my_images --out my_nuclei --scheduler tcp://10.0.0.1:8786
"""

import argparse
import functools
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage
from skimage.morphology import remove_small_holes
from skimage.segmentation import watershed
from tqdm import tqdm

from data.cluster import map_on_cluster
from data.files import Sample, UserError, find_samples, hash_file, run_script, write_whole
from data.images import halve, open_rows, read_image, read_shape, subsample
from data.outputs import (
    FAST_COMPRESSION,
    Provenance,
    default_out,
    find_predictions,
    find_unfinished,
    make_folders,
    mask_of,
    outline_nuclei,
    prediction_files,
    remove_unfinished,
    save_contact_sheet,
    save_png,
    save_submission,
    save_tiles,
    show_pictures,
    write_prediction,
)
from data.slides import STRIP, label_strips, predict_strips, sample_windows
from Model import depth_of, load_unet
from Preprocessed_data import (
    BRIGHT_MEDIAN,
    DATA,
    HIGH_PERCENTILE,
    LOW_PERCENTILE,
    common_diameter,
    measure_normalization,
    to_display,
    to_grayscale,
)

WEIGHTS = "weights/unet.keras"
# From probabilities to nuclei; all chosen on validation images, see weights/README.md.
NUCLEUS_THRESHOLD = 0.45  # probability from which a pixel is nucleus
SEED_THRESHOLD = 0.5  # of nucleus minus border probability, inside a nucleus
MIN_SEED_AREA = 8  # pixels; smaller seeds are noise on the rim of a nucleus
MIN_AREA = 20  # pixels, a disk 5 pixels across; smaller pieces are noise
MAX_HOLE_AREA = 300  # pixels; a hole as large as a common nucleus is background
MAX_AREA_RATIO = 10  # to the common nucleus: a larger piece is a vessel or a fibre
# Scale.
HALVING_DIAMETERS = (33, 80)  # pixels; wider nuclei are predicted at a half, a quarter of the size
HALVED_WEIGHT = 2 / 3  # in the mean of two sizes the smaller one has this weight
MERGED_DIAMETER_RATIO = 2  # nuclei that become so much wider at the smaller size have merged
HALO_PIXELS = 6  # of the deepest feature map on each side; an answer depends on fewer
# Work.
READ_AHEAD = 8  # images
BATCH_PIXELS = 8 * 256 * 256  # in one batch; more is no faster
LARGE_IMAGE = 2048 * 2048  # pixels; a larger image is predicted in tiles
OVERLAY_PIXELS = 2048 * 2048  # of the overlay of a large image
NORMALIZATION_PIXELS = 4_000_000  # of a large image that its normalization is measured on
SHOWN_IMAGES = 8  # in predictions.png

Probabilities = tuple[np.ndarray, np.ndarray]  # of nucleus and of border, (H, W) float32


@dataclass
class PredictionJob:
    """An image on its way from gray to labels."""

    gray: np.ndarray  # (H, W) float32 in [0, 1]
    sample: Sample | None = None
    image: np.ndarray | None = None  # as in the file
    probabilities: Probabilities | None = None  # mean over the scales until now
    labels_future: Future | None = None  # of (H, W) int32
    halvings: int = 0  # of the smallest scale that the labels use


def find_nuclei(model: keras.Model, gray: np.ndarray) -> tuple[np.ndarray, int]:
    """Finds the nuclei of one image, at the scales that their width asks for.

    Args:
        model: from `load_unet`.
        gray: (H, W) float32 in [0, 1], from `to_grayscale`.

    Returns:
        labels (H, W) int32, and how often height and width were halved for the smallest scale used.
    """
    job = PredictionJob(gray)
    with ThreadPoolExecutor(1) as pool:
        predict_jobs(model, [job], pool)
        refine_jobs(model, [job], pool)
        return job.labels_future.result(), job.halvings


def refine_jobs(model: keras.Model, jobs: Sequence[PredictionJob], pool: Executor) -> None:
    """Predicts images of wide nuclei again at a half, and of very wide ones at a quarter.

    The grain inside large nuclei vanishes at a smaller size, but outlines are sharper at full size.
    """
    for halvings, diameter in enumerate(HALVING_DIAMETERS, start=1):
        wide = [job for job in jobs if common_diameter(job.labels_future.result()) > diameter]
        predict_jobs(model, wide, pool, halvings)


def predict_jobs(model: keras.Model, jobs: Iterable[PredictionJob], pool: Executor, halvings: int = 0) -> None:
    """Runs the network at one scale, in batches of one shape; the pool separates the nuclei.

    While the network runs on a batch, the pool works on the batch before.

    Args:
        model: from `load_unet`.
        jobs: get `probabilities` and `labels_future`.
        pool: of threads.
        halvings: how often height and width are halved.
    """
    groups = {}
    for job in jobs:
        groups.setdefault(job.gray.shape, []).append(job)
    for (height, width), group in groups.items():
        batch_size = max(BATCH_PIXELS // (height * width), 1)
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            grays = np.stack([job.gray for job in batch])  # (batch, H, W)
            nucleus, border = predict_probability(model, grays, halvings)
            for job, *probabilities in zip(batch, nucleus, border, strict=True):
                if halvings == 0:
                    job.probabilities = probabilities
                    job.labels_future = pool.submit(separate_nuclei, *probabilities)
                else:
                    job.probabilities = average_scales(job.probabilities, probabilities)
                    job.labels_future = pool.submit(keep_unless_merged, job, job.labels_future, halvings)


def keep_unless_merged(job: PredictionJob, earlier: Future, halvings: int) -> np.ndarray:
    """Labels of a job's new probabilities, or the earlier labels if its nuclei have merged.

    Nothing changes the probabilities before these labels are there.
    """
    labels = separate_nuclei(*job.probabilities)
    before = earlier.result()
    if common_diameter(labels) > MERGED_DIAMETER_RATIO * common_diameter(before):
        return before
    job.halvings = halvings
    return labels


def predict_probability(model: keras.Model, gray: np.ndarray, halvings: int = 0) -> Probabilities:
    """Runs the network on images of one size.

    Args:
        model: from `load_unet`.
        gray: (..., H, W) float32 in [0, 1], one image or a stack, from `to_grayscale`.
        halvings: how often height and width are halved before.

    Returns:
        Probability of nucleus, and of a border between touching nuclei, as gray in shape, float32.
    """
    multiple = 2 ** (depth_of(model) + halvings)
    height, width = gray.shape[-2:]
    padding = [(0, 0), (0, -height % multiple), (0, -width % multiple)]
    padded = np.pad(gray.reshape(-1, height, width), padding, "symmetric")  # (batch, H', W')
    reduced = padded
    for _ in range(halvings):
        reduced = halve(reduced)
    answer = model.predict_on_batch(reduced[..., None])  # (batch, H'', W'', 2)
    if halvings:
        answer = keras.ops.image.resize(answer, padded.shape[1:], "bilinear")
        answer = keras.ops.convert_to_numpy(answer)
    answer = answer[:, :height, :width]
    return answer[..., 0].reshape(gray.shape), answer[..., 1].reshape(gray.shape)


def predict_scales(model: keras.Model, gray: np.ndarray, halvings: int) -> Probabilities:
    """Mean probabilities of one image over its full size and `halvings` smaller ones."""
    probabilities = predict_probability(model, gray)
    for smaller in range(1, halvings + 1):
        probabilities = average_scales(probabilities, predict_probability(model, gray, smaller))
    return probabilities


def average_scales(larger: Probabilities, smaller: Probabilities) -> list[np.ndarray]:
    """Weighted means of the probabilities at a larger and a smaller size of an image."""
    weight = np.float32(HALVED_WEIGHT)
    return [a + weight * (b - a) for a, b in zip(larger, smaller, strict=True)]


def separate_nuclei(nucleus: np.ndarray, border: np.ndarray, max_area: float | None = None) -> np.ndarray:
    """Numbers the nuclei; a watershed from seeds inside the borders separates touching ones.

    Args:
        nucleus: (H, W) float in [0, 1], of `predict_probability`.
        border: (H, W) float in [0, 1], likewise.
        max_area: pixels of a nucleus at most; None: MAX_AREA_RATIO times the common nucleus of these.

    Returns:
        labels: (H, W) int32, 0 background, 1…K; each number is one connected piece of at least
        MIN_AREA pixels.
    """
    mask = nucleus > NUCLEUS_THRESHOLD
    # Small holes are filled, but not small background at the edge of the image, which
    # remove_small_holes takes for a hole and binary_fill_holes does not: both must agree.
    without_holes = ndimage.binary_fill_holes(mask)
    mask = remove_small_holes(mask, max_size=MAX_HOLE_AREA) & without_holes
    seeds = find_seeds(mask, mask & (nucleus - border > SEED_THRESHOLD))
    # The watershed floods from the middle of each nucleus; floods meet on the border between two.
    labels = watershed(border - nucleus, seeds, mask=mask)
    if max_area is None:
        max_area = largest_area(labels)
    return filter_by_area(labels, MIN_AREA, max_area)


def largest_area(labels: np.ndarray) -> float:
    """Pixels that a nucleus among these labels, (H, W) int, may have at most."""
    return MAX_AREA_RATIO * math.pi / 4 * common_diameter(labels) ** 2


def find_seeds(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Numbers one seed for each nucleus.

    Args:
        mask: (H, W) bool, nuclei.
        inside: (H, W) bool, nuclei without the borders between them.

    Returns:
        (H, W) int.
    """
    seeds = filter_by_area(ndimage.label(inside)[0], MIN_SEED_AREA)
    # A piece of the mask without a seed is one small nucleus: it is its own seed.
    pieces, count = ndimage.label(mask)
    has_seed = np.zeros(count + 1, bool)
    has_seed[pieces[seeds > 0]] = True
    own_seeds = pieces + seeds.max()
    seeds = np.where(has_seed[pieces], seeds, own_seeds)
    seeds[~mask] = 0
    return seeds


def filter_by_area(labels: np.ndarray, min_area: int, max_area: float = math.inf) -> np.ndarray:
    """Sets to 0 what has fewer or more pixels; the rest becomes 1…K without gaps, int32.

    >>> filter_by_area(np.array([0, 7, 3, 7, 2, 3, 5, 5, 5]), 2, 2).tolist()
    [0, 2, 1, 2, 0, 1, 0, 0, 0]
    """
    areas = np.bincount(labels.ravel())
    is_kept = (areas >= min_area) & (areas <= max_area)
    is_kept[0] = False
    return np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)[labels]


def describe_provenance(weights: str | Path) -> Provenance:
    """What labels/ID.tif says of its origin: the weights and the settings that labels depend on."""
    settings = {
        "low_percentile": LOW_PERCENTILE,
        "high_percentile": HIGH_PERCENTILE,
        "bright_median": BRIGHT_MEDIAN,
        "nucleus_threshold": NUCLEUS_THRESHOLD,
        "seed_threshold": SEED_THRESHOLD,
        "min_seed_area": MIN_SEED_AREA,
        "min_area": MIN_AREA,
        "max_hole_area": MAX_HOLE_AREA,
        "max_area_ratio": MAX_AREA_RATIO,
        "halving_diameters": list(HALVING_DIAMETERS),
        "halved_weight": HALVED_WEIGHT,
        "merged_diameter_ratio": MERGED_DIAMETER_RATIO,
    }
    return {"weights_sha256": hash_file(weights), "settings": settings}


def predict_samples(
    samples: Sequence[Sample], model: keras.Model, out: str | Path, provenance: Provenance
) -> tuple[list[str], dict[str, str]]:
    """Predicts images and writes their files; an image that cannot be read is named and skipped.

    While the network runs, other threads read the next images and finish the ones before.

    Args:
        samples: from `find_samples`.
        model: from `load_unet`.
        out: folder to write to.
        provenance: of `describe_provenance`, which the label files keep.

    Returns:
        ids written, sorted; and of those skipped id -> reason.
    """
    make_folders(out)
    written = []
    skipped = {}
    writing = deque()  # futures of ids
    progress = tqdm(total=len(samples), desc="predicting", unit="image", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        earlier = []  # jobs that wait for their labels
        for chunk in read_ahead(samples, pool):
            jobs, slides = collect_jobs(chunk, skipped)
            predict_jobs(model, jobs, pool)
            # By now the labels of the list before are there.
            refine_jobs(model, earlier, pool)
            writing += [pool.submit(finish_job, job, out, provenance) for job in earlier]
            earlier = jobs
            for slide in slides:
                try:
                    predict_slide(slide, model, out, provenance)
                    written.append(slide.id)
                except (UserError, OSError) as error:
                    if isinstance(error, OSError) and error.filename != str(slide.image):
                        raise  # it is of a file that is written
                    _skip(slide.id, error, skipped)
            bar.update(len(chunk))
            while len(writing) > READ_AHEAD:
                written.append(writing.popleft().result())
        written += [work.result() for work in writing]
    return sorted(written), skipped


def collect_jobs(
    chunk: Sequence[tuple[Sample, Future]], skipped: dict[str, str]
) -> tuple[list[PredictionJob], list[Sample]]:
    """Sorts what `read_ahead` read into jobs and large images; adds the rest to `skipped`."""
    jobs = []
    slides = []
    for sample, reading in chunk:
        try:
            job = reading.result()
        except (UserError, OSError) as error:
            _skip(sample.id, error, skipped)
            continue
        if job is None:
            slides.append(sample)
        else:
            jobs.append(job)
    return jobs, slides


def _skip(name: str, reason: object, skipped: dict[str, str]) -> None:
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
    skipped[name] = str(reason)


def read_ahead(samples: Sequence[Sample], pool: Executor) -> Iterator[list[tuple[Sample, Future]]]:
    """Yields lists of samples with their `read_job`, while the pool reads the list after.

    The first list is empty, because nothing has been read yet. The last one is empty too, so that the caller can finish
    the list before it.
    """
    # The first list is short, so that the first files are soon there.
    chunks = [samples[:1]]
    chunks += [samples[start : start + READ_AHEAD] for start in range(1, len(samples), READ_AHEAD)]
    ahead = []
    for chunk in [*chunks, [], []]:
        now = ahead
        ahead = [(sample, pool.submit(read_job, sample)) for sample in chunk]
        yield now


def read_job(sample: Sample) -> PredictionJob | None:
    """Reads image and gray of a sample; None for an image that is too large to be read whole."""
    if math.prod(read_shape(sample.image)) > LARGE_IMAGE:
        return None
    image = read_image(sample.image)
    return PredictionJob(to_grayscale(image), sample, image)


def finish_job(job: PredictionJob, out: str | Path, provenance: Provenance) -> str:
    """Writes the files of a job; returns the id."""
    labels = job.labels_future.result()
    job.probabilities = None  # a job that waits for its turn takes memory
    overlay = outline_nuclei(to_display(job.image), labels)
    write_prediction(prediction_files(out, job.sample.id), labels, overlay, provenance)
    return job.sample.id


def predict_slide(sample: Sample, model: keras.Model, out: str | Path, provenance: Provenance) -> None:
    """Predicts a large image in strips, without holding the whole, and writes its files.

    Raises:
        UserError: the image cannot be read.
        OSError: a file cannot be written.
    """
    files = prediction_files(out, sample.id)
    with open_rows(sample.image) as image:
        shape = image.shape[:2]
        normalization = measure_normalization(subsample(image, NORMALIZATION_PIXELS))

        def read_gray(start: int, stop: int) -> np.ndarray:
            return to_grayscale(image[start:stop], normalization)

        # Scale and size of the nuclei are those of nine windows.
        sampled_labels, halvings = find_nuclei(model, sample_windows(shape, read_gray))
        max_area = largest_area(sampled_labels) or None
        predict = functools.partial(predict_scales, model, halvings=halvings)
        separate = functools.partial(separate_nuclei, max_area=max_area)
        halo = HALO_PIXELS * 2 ** (depth_of(model) + halvings)
        strips = label_strips(predict_strips(shape, read_gray, predict, halo, sample.id[:20]), separate)
        # Labels take their name last, for they say that the image is done.
        with write_whole(files.labels) as part:
            save_tiles(part, strips, shape, np.uint32, provenance)
            with open_rows(part) as labels:
                masks = (mask_of(labels[row : row + STRIP]) for row in range(0, shape[0], STRIP))
                with write_whole(files.tiled_mask) as mask:
                    save_tiles(mask, masks, shape, np.uint8, provenance)
                small_labels = subsample(labels, OVERLAY_PIXELS)
            small_image = subsample(image, OVERLAY_PIXELS)
            with write_whole(files.overlay) as overlay:
                outlined = outline_nuclei(to_display(small_image), small_labels)
                save_png(overlay, outlined, FAST_COMPRESSION)
        files.mask.unlink(missing_ok=True)  # of a smaller image of this name


def predict_on_cluster(
    samples: Sequence[Sample], weights: str, out: Path, data: str, address: str
) -> tuple[list[str], dict[str, str]]:
    """As `predict_samples`, by the workers of a running Dask cluster, which write the files.

    All workers need the packages of requirements.txt, and this folder, data, weights and out under
    the same paths.
    """
    run = str(time.time_ns())  # tells this run from others of the same workers
    paths = [str(Path(path).resolve()) for path in (data, weights, out)]
    script = Path(__file__).resolve()
    ids = [sample.id for sample in samples]
    answers = map_on_cluster(ids, READ_AHEAD, script, "predict_on_worker", [run, *paths], address)
    written = []
    skipped = {}
    with tqdm(total=len(ids), desc="predicting", unit="image", disable=None) as bar:
        for done, reasons in answers:
            written += done
            for name, reason in reasons.items():
                _skip(name, reason, skipped)
            bar.update(len(done) + len(reasons))
    remove_unfinished(out)  # of workers that died
    return sorted(written), skipped


def predict_on_worker(
    ids: Sequence[str], run: str, data: str, weights: str, out: str
) -> tuple[list[str], dict[str, str]]:
    """What a Dask worker does; returns as `predict_samples`."""
    samples, model, provenance = prepare_worker(run, data, weights)
    missing = {name: "no longer there" for name in ids if name not in samples}
    present = [samples[name] for name in ids if name in samples]
    written, skipped = predict_samples(present, model, out, provenance)
    return written, missing | skipped


@functools.lru_cache(1)
def prepare_worker(run: str, data: str, weights: str) -> tuple[dict, keras.Model, Provenance]:
    """What a worker needs for all its images of one run: samples by id, network, provenance."""
    samples = {sample.id: sample for sample in find_samples(data)}
    return samples, load_unet(weights), describe_provenance(weights)


def show_predictions(out: str | Path) -> Path:
    """Shows overlays and masks, reading nothing but the files that were written.

    Args:
        out: folder that `predict_samples` wrote to.

    Returns:
        predictions.png in the folder, the same picture, also saved where there is no display.

    Raises:
        UserError: no predictions are there.
    """
    names = find_predictions(out)
    if not names:
        raise UserError(f"{out}: no masks; python Predict_masks.py writes some")
    pictures = []
    titles = []
    for index in np.unique(np.linspace(0, len(names) - 1, SHOWN_IMAGES).astype(int)):
        files = prediction_files(out, names[index])
        with open_rows(files.labels) as labels:
            tops = range(0, labels.shape[0], STRIP)
            nuclei = max(int(labels[top : top + STRIP].max()) for top in tops)
        with open_rows(files.existing_mask()) as rows:
            mask = subsample(rows, OVERLAY_PIXELS)
        pictures += [read_image(files.overlay), np.stack([mask] * 3, -1)]
        titles += [names[index][:24], f"{nuclei} nuclei"]
    picture = Path(out, "predictions.png")
    save_contact_sheet(pictures, titles, picture)
    show_pictures(picture)
    return picture


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--data", default=DATA, help="images (default %(default)s)")
    files.add_argument("--weights", default=WEIGHTS, help="network (default %(default)s)")
    files.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    files.add_argument("--overwrite", action="store_true", help="redo images that are done")
    results = parser.add_argument_group("results")
    results.add_argument("--show", action="store_true", help="show the files afterwards")
    results.add_argument("--submission", action="store_true", help="write Kaggle's table of them")
    machines = parser.add_argument_group("machines")
    machines.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that predicts")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = find_samples(args.data)
    out = Path(args.out or default_out(args.data))
    model = load_unet(args.weights)
    provenance = describe_provenance(args.weights)
    make_folders(out)
    remove_unfinished(out)
    unfinished = samples if args.overwrite else find_unfinished(samples, out, provenance)
    done = len(samples) - len(unfinished)
    if done:
        print(f"{done} of {len(samples)} images are done; --overwrite to redo")
    started = time.perf_counter()
    if args.scheduler and unfinished:
        written, skipped = predict_on_cluster(unfinished, args.weights, out, args.data, args.scheduler)
    else:
        written, skipped = predict_samples(unfinished, model, out, provenance)
    seconds = time.perf_counter() - started
    if len(skipped) == len(samples):
        raise UserError(f"{args.data}: none of its {len(samples)} images can be read")
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
