"""Predicts the nuclei of images with trained weights, writes them to files, shows the files.

In:  images (folders with their sub-folders, Kaggle folders, .zips, files, wildcards, or a .txt that lists paths) and
     the weights that Train.py saved. DAY/NAME.png gets the ID DAY__NAME.
Out, in --out (default data/<source name>_predicted, without data/ where the working directory has none), at each
     image's own size:
     masks/ID.png     8-bit, 255 nucleus, 0 background
     labels/ID.tif    one number per nucleus, 0 background; uint16, or uint32 for many nuclei
     overlays/ID.png  the image with each nucleus outlined
     nuclei.csv       a row for each nucleus: place, size, shape, intensity of every channel
     images.csv       a row for each image: count, density, how it was seen, warnings
     tables/          the same for each image, from which these two are made
     predictions.png  with --show: overlays and coloured labels of some of them
     rois/ID.zip      with --rois: outlines for Fiji's ROI manager
     geojson/ID.geojson  with --geojson: detections for QuPath, with their measurements
     zarr/ID.zarr     with --zarr: the labels as OME-Zarr, in several resolutions
     report.html      with --report: all images on one page, the doubtful ones first
     submission.csv   with --submission: the nuclei in run lengths, the table that Kaggle takes
     source.json      the absolute paths of the images' sources
An image of more than 4 million pixels is predicted in tiles: its mask is masks/ID.tif, mask and
labels are tiled TIFFs, its overlay is reduced. A rerun predicts what is missing and images that changed.
Exit code 1: some images could not be read; they were named and skipped.

    python Predict_masks.py --data data/sample
    python Predict_masks.py --data day1 day2 "more/*.tif"
    python Predict_masks.py --data my_images --weights weights/unet.keras --out my_nuclei
    python Predict_masks.py --data my_images --out my_nuclei --show
    python Predict_masks.py --data my_images --out my_nuclei --scheduler tcp://10.0.0.1:8786
"""

from data.options import PRECISIONS, WEIGHTS, predict_masks_parser

if __name__ == "__main__":
    predict_masks_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import artifacts, intensity, nuclei, scales
from data.artifacts import find_ground
from data.calibration import read_pixel_size
from data.cluster import map_on_cluster
from data.confidence import Limits, NucleusSums, finish_nuclei, score_confidence
from data.files import UserError, describe_file, find_beside_scripts, hash_file, run_script, write_whole
from data.images import SceneRows, TiffRows, check_image, open_rows, read_image, read_shape, subsample
from data.intensity import brightness
from data.nuclei import Calibration, keep_labels, largest_area, separate_nuclei
from data.omezarr import import_zarr, save_zarr
from data.outputs import (
    FAST_COMPRESSION,
    Provenance,
    add_image,
    claim_out,
    default_out,
    find_predictions,
    find_unfinished,
    make_folders,
    mask_of,
    prediction_files,
    remove_unfinished,
    save_png,
    save_submission,
    save_tiles,
    write_prediction,
)
from data.pictures import draw_thumbnails, outline_nuclei, save_contact_sheet, show_pictures
from data.report import write_report
from data.scales import (
    Network,
    PredictionJob,
    choose_job,
    describe_job,
    make_thumbnails,
    predict_scales,
    refine_jobs,
    run_jobs,
    start_jobs,
)
from data.slides import STRIP, ReadGray, label_strips, predict_strips, sample_windows
from data.sources import Sample, find_samples
from data.stacks import Channels, expand_planes, narrow_channels, pick_channels, read_sample_image
from data.tables import report_tables, save_measurements, save_outlines
from Model import HALO_PIXELS, depth_of, fastest_precision, keras, load_unet, predict_probability, read_calibration
from Preprocessed_data import (
    BRIGHT_MEDIAN,
    COLOUR_DIFFERENCE,
    COLOURS,
    DEBRIS_RATIO,
    MAX_CORRELATION,
    MIN_COLOUR,
    find_colours,
    is_stained,
    measure_normalization,
    prepare_image,
    to_display,
    to_grayscale,
)

# Work.
READ_AHEAD = 8  # images
LARGE_IMAGE = 2048 * 2048  # pixels; a larger image is predicted in tiles
OVERLAY_PIXELS = 2048 * 2048  # of the overlay of a large image
NORMALIZATION_PIXELS = 4_000_000  # of a large image that its normalization is measured on
SHOWN_IMAGES = 8  # in predictions.png


@dataclass(frozen=True)
class PredictionOptions(Limits):
    """How images are to be seen, where None means that it is found out for each image, and which nuclei are kept."""

    channel: str | None = None  # its name, its number from 1, or "max", the brightest of all at each pixel
    background: str | None = None  # "dark" or "bright"
    project: str | None = None  # "max", "mean" or "sum" along z
    diameter: float | None = None  # of nuclei, in pixels
    level: int | None = None  # of pyramids, 0 the largest
    pixel_size: float | None = None  # micrometres; of labels and tables, the scale does not depend on it
    precision: str = "float32"  # that the network computes in

    def check(self) -> None:
        """Raises UserError where a number does not make sense."""
        for name, value in (("--diameter", self.diameter), ("--pixel-size", self.pixel_size)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0, not {value}")
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"--min-confidence must be from 0 to 1, not {self.min_confidence}")
        if not self.min_area >= 0:
            raise UserError(f"--min-area must be 0 or more, not {self.min_area}")
        if self.max_area is not None and not self.max_area > self.min_area:
            raise UserError(f"--max-area must be above --min-area, not {self.max_area} and {self.min_area}")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision must be {' or '.join(PRECISIONS)}, not {self.precision}")
        if self.level is not None and self.level < 0:
            raise UserError(f"--level must be 0, the largest, or more, not {self.level}")


def find_nuclei(
    model: keras.Model, gray: np.ndarray, diameter: float | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Finds the nuclei of one image, at the scales that their width asks for.

    Args:
        model: from `load_unet`.
        gray: (H, W) float32 in [0, 1], from `to_grayscale`.
        diameter: of the nuclei in pixels; None: it is found out.

    Returns:
        labels (H, W) int32, and the scales that they are predicted at: how often height and width are halved; negative:
        doubled.
    """
    job = PredictionJob(gray, diameter=diameter, thumbnails=make_thumbnails(gray))
    run_jobs(network_of(model), [job])
    return job.labels_future.result(), job.scales


def network_of(model: keras.Model) -> Network:
    """A network as `data.scales` sees it; one that does not come from a file has the usual calibration."""
    return Network(functools.partial(predict_probability, model), getattr(model, "calibration", Calibration()))


@functools.lru_cache(2)
def load(weights: str | None = None, precision: str = "float32") -> keras.Model:
    """Loads a network for `segment`; without a file that beside the scripts. Raises UserError where there is none."""
    return load_unet(weights or find_beside_scripts(WEIGHTS), precision)


def segment(
    image: np.ndarray | str | Path, model: keras.Model | None = None, details: bool = False, **options
) -> np.ndarray | tuple[np.ndarray, dict]:
    """Finds the nuclei of one image, in five lines of Python.

    Args:
        image: (H, W) or (H, W, 3), any real dtype, as in the file; or the path of such an image.
        model: from `load`; None: the one beside the scripts, in the precision of the options.
        details: whether to tell how the labels were found.
        **options: of `PredictionOptions`, such as diameter=12 or background="bright".

    Returns:
        labels: (H, W) int32, 0 background, 1…K. With `details` also a dict: the probabilities of "nucleus" and
            "border", (H, W) float32 in [0, 1]; the "confidence" of each nucleus, (K,) float in [0, 1]; "reading",
            "background" and "scales", as the label files say them.

    Raises:
        UserError: no image of this kind, or several channels or planes.

    >>> segment(np.zeros((64, 64), np.uint8)).max()
    np.int32(0)
    """
    options = PredictionOptions(**{"precision": fastest_precision()} | options)
    options.check()
    if isinstance(image, str | Path):
        samples = expand_planes(find_samples(image), options.project)
        if len(samples) > 1:
            raise UserError(f"{image}: {len(samples)} images; segment takes one of them")
        with open_sample(samples[0], options) as rows:
            image = narrow_channels(rows if isinstance(rows, Channels) else rows[:], options.channel)
    else:
        image = check_image(np.asarray(image), Path("the array"))
    labels, job = segment_image(model or load(precision=options.precision), image, options)
    if not details:
        return labels
    nucleus, border = job.probabilities
    return labels, {"nucleus": nucleus, "border": border, "confidence": job.confidence, **describe_job(job)}


@dataclass
class ImageWork:
    """An image of a source on its way from its file to its files."""

    sample: Sample
    checksum: dict  # of the file, before it was read
    image: np.ndarray | Channels  # as in the file
    seen: np.ndarray | Channels  # the channels of it that may show the nuclei
    pixel_size: float | None  # micrometres
    jobs: list[PredictionJob]  # one for each way that the image can be seen


def segment_image(
    model: keras.Model, image: np.ndarray, options: PredictionOptions = PredictionOptions()
) -> tuple[np.ndarray, PredictionJob]:
    """Finds the nuclei of one image.

    Args:
        model: from `load_unet`.
        image: (H, W) or (H, W, 3), any real dtype.
        options: how it is to be seen, and which nuclei are kept.

    Returns:
        labels (H, W) int32, 1…K, and the job, which tells how they were found, and how sure.

    Raises:
        UserError: several channels look like nuclei.
    """
    jobs = make_jobs(image, options)
    network = network_of(model)
    run_jobs(network, jobs)
    job = choose_job(jobs)
    return finish_nuclei(job, network.calibration, options), job


def make_jobs(image: np.ndarray | Channels, options: PredictionOptions) -> list[PredictionJob]:
    """Prepares an image for the network; one job for each way that it can be seen.

    Args:
        image: (H, W), (H, W, 3), or several channels.
        options: how it is to be seen. A gray image has one channel, whatever is wanted.

    Raises:
        UserError: it has no such channel.
    """
    jobs = list_jobs(image, options)
    for job in jobs:
        job.diameter = options.diameter
    return jobs


def list_jobs(image: np.ndarray | Channels, options: PredictionOptions) -> list[PredictionJob]:
    """The jobs of `make_jobs`, before they know the diameter of nuclei."""
    background = options.background
    if isinstance(image, Channels):
        pairs = zip(image.names, image.planes, strict=True)
        return [make_job(plane, name, background, index) for index, (name, plane) in enumerate(pairs)]
    if image.ndim == 3 and options.channel and (image == image[..., :1]).all():
        image = image[..., 0]  # a gray image in three equal channels
    if image.ndim == 3 and options.channel not in (None, "max"):
        index = pick_channels(COLOURS, options.channel)[0]
        return [make_job(image[..., index], "", background, index)]
    colours = [] if options.channel else find_colours(image)
    if colours:
        indices = [COLOURS.index(colour) for colour in colours]
        return [make_job(image[..., index], COLOURS[index], background or "dark", index) for index in indices]
    job = make_job(image, "", background)
    if background is None and job.has_bright_background and not is_stained(image):
        # A dark background that bright nuclei nearly cover looks like a bright one.
        return [job, make_job(image, "dark background", "dark")]
    return [job]


def make_job(image: np.ndarray, reading: str, background: str | None, channel: int | None = None) -> PredictionJob:
    """The job of an image (H, W) or (H, W, 3), or of one of its channels, seen in one way, which `reading` names."""
    gray, normalization, debris = prepare_image(image, background)
    return PredictionJob(
        gray,
        has_bright_background=normalization.has_bright_background,
        has_signal=normalization.has_signal,
        debris=debris,
        reading=reading,
        channel=channel,
        background=background,
        thumbnails=make_thumbnails(gray),
    )


def describe_provenance(weights: str | Path, options: PredictionOptions = PredictionOptions()) -> Provenance:
    """What labels/ID.tif says of its origin: the weights, the options, and the constants that labels depend on."""
    constants = {
        "bright_median": BRIGHT_MEDIAN,
        "colour_difference": COLOUR_DIFFERENCE,
        "debris_ratio": DEBRIS_RATIO,
        "max_correlation": MAX_CORRELATION,
        "min_colour": MIN_COLOUR,
    }
    for module in (artifacts, intensity, nuclei, scales):
        numbers = {name.lower(): value for name, value in vars(module).items() if name.isupper()}
        numbers.pop("batch_pixels", None)  # changes the speed, not the labels
        constants |= {name: list(value) if isinstance(value, tuple) else value for name, value in numbers.items()}
    calibration = dataclasses.asdict(read_calibration(weights))
    return {
        "weights_sha256": hash_file(weights),
        "calibration": calibration | {"confidence": list(calibration["confidence"])},
        "options": dataclasses.asdict(options),
        "settings": constants,
    }


def predict_samples(
    samples: Sequence[Sample],
    model: keras.Model,
    out: str | Path,
    provenance: Provenance,
    options: PredictionOptions = PredictionOptions(),
) -> tuple[list[str], dict[str, str]]:
    """Predicts images and writes their files; an image that cannot be read is named and skipped.

    While the network runs, other threads read the next images and finish the ones before.

    Args:
        samples: from `find_samples`.
        model: from `load_unet`.
        out: folder to write to.
        provenance: of `describe_provenance`, which the label files keep.
        options: channel and background.

    Returns:
        ids written, sorted; and of those skipped id -> reason.
    """
    make_folders(out)
    network = network_of(model)
    finish = functools.partial(finish_work, calibration=network.calibration, options=options)
    written = []
    skipped = {}
    writing = deque()  # pairs of an id and the future of its files
    progress = tqdm(total=len(samples), desc="predicting", unit="image", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        earlier = []  # images that wait for their labels
        for chunk in read_ahead(samples, pool, options):
            images, slides = collect_work(chunk, skipped)
            start_jobs(network, [job for work in images for job in work.jobs], pool)
            # By now the labels of the list before are there.
            refine_jobs(network, [job for work in earlier for job in work.jobs], pool)
            writing += [(work.sample.id, pool.submit(finish, work, out, provenance)) for work in earlier]
            earlier = images
            for slide in slides:
                try:
                    reading = predict_slide(slide, model, out, provenance, options)
                    say_reading(slide.id, reading)
                    written.append(slide.id)
                except (UserError, OSError) as error:
                    if isinstance(error, OSError) and error.filename != str(slide.image):
                        raise  # it is of a file that is written
                    _skip(slide.id, error, skipped)
            bar.update(len(chunk))
            while len(writing) > READ_AHEAD:
                collect_written(*writing.popleft(), written, skipped)
        for name, future in writing:
            collect_written(name, future, written, skipped)
    return sorted(written), skipped


def collect_written(name: str, future: Future, written: list[str], skipped: dict[str, str]) -> None:
    """Waits until the files of an image are written; an image that cannot be decided on is skipped."""
    try:
        reading = future.result()
    except UserError as error:
        _skip(name, error, skipped)
        return
    written.append(name)
    say_reading(name, reading)


def say_reading(name: str, reading: str) -> None:
    """Says which channel or background of an image was chosen, if one was."""
    if reading:
        tqdm.write(f"{name}: {reading} was chosen; --channel or --background chooses another")


def collect_work(
    chunk: Sequence[tuple[Sample, Future]], skipped: dict[str, str]
) -> tuple[list[ImageWork], list[Sample]]:
    """Sorts what `read_ahead` read into images and large images; adds the rest to `skipped`."""
    images = []
    slides = []
    for sample, reading in chunk:
        try:
            work = reading.result()
        except (UserError, OSError) as error:
            _skip(sample.id, error, skipped)
            continue
        if work is None:
            slides.append(sample)
        else:
            images.append(work)
    return images, slides


def _skip(name: str, reason: object, skipped: dict[str, str]) -> None:
    tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
    skipped[name] = str(reason)


def read_ahead(
    samples: Sequence[Sample], pool: Executor, options: PredictionOptions
) -> Iterator[list[tuple[Sample, Future]]]:
    """Yields lists of samples with their `read_work`, while the pool reads the list after.

    The first list is empty, because nothing has been read yet. The last one is empty too, so that the caller can finish
    the list before it.
    """
    # The first list is short, so that the first files are soon there.
    chunks = [samples[:1]]
    chunks += [samples[start : start + READ_AHEAD] for start in range(1, len(samples), READ_AHEAD)]
    ahead = []
    for chunk in [*chunks, [], []]:
        now = ahead
        ahead = [(sample, pool.submit(read_work, sample, options)) for sample in chunk]
        yield now


def read_work(sample: Sample, options: PredictionOptions) -> ImageWork | None:
    """Reads an image and makes its jobs; None for an image that is too large to be read whole."""
    if math.prod(read_shape(sample.image, options.level or 0, sample.scene)) > LARGE_IMAGE:
        return None
    checksum = describe_file(sample.image)
    with open_sample(sample, options) as rows:
        image = rows if isinstance(rows, Channels) else rows[:]
    seen = narrow_channels(image, options.channel)
    return ImageWork(sample, checksum, image, seen, find_pixel_size(sample, options), make_jobs(seen, options))


def find_pixel_size(sample: Sample, options: PredictionOptions) -> float | None:
    """Micrometres that a pixel of an image is wide, as given or as its file says."""
    return options.pixel_size or read_pixel_size(sample.image, options.level or 0, sample.scene)


def finish_work(
    work: ImageWork, out: str | Path, provenance: Provenance, calibration: Calibration, options: PredictionOptions
) -> str:
    """Writes the files of an image; returns the channel or background that was chosen, "" for the usual one or none."""
    job = choose_job(work.jobs)
    labels = finish_nuclei(job, calibration, options)
    work.jobs = []  # an image that waits for its turn takes memory
    overlay = outline_nuclei(to_display(shown_image(work.seen, job)), labels)
    provenance = provenance | {"image": work.checksum, "seen": describe_job(job)}
    files = prediction_files(out, work.sample.id)
    save_measurements(files, labels, work.image, work.sample.id, work.pixel_size, job)
    write_prediction(files, labels, overlay, provenance, work.pixel_size)
    return job.reading if labels.any() else ""


def shown_image(image: np.ndarray | Channels, job: PredictionJob) -> np.ndarray:
    """What people look at: an image (H, W) or (H, W, 3), or that one of several channels that the job sees."""
    return image.planes[job.channel] if isinstance(image, Channels) else image


def predict_slide(
    sample: Sample, model: keras.Model, out: str | Path, provenance: Provenance, options: PredictionOptions
) -> str:
    """Predicts a large image in strips, without holding the whole, and writes its files.

    Returns:
        The channel or background that was chosen, "" for the usual one.

    Raises:
        UserError: the image cannot be read.
        OSError: a file cannot be written.
    """
    files = prediction_files(out, sample.id)
    provenance = add_image(provenance, sample.image)
    pixel_size = find_pixel_size(sample, options)
    with open_sample(sample, options) as image:
        shape = image.shape[:2]
        whole = image  # with all its channels
        image = narrow_channels(image, options.channel)
        job = choose_slide_job(model, image, options)
        image = shown_image(image, job)
        read_gray = prepare_slide(image, job)
        # Scale and size of the nuclei are those of nine windows.
        sampled_labels, scales = find_nuclei(model, sample_windows(shape, read_gray), options.diameter)
        job.scales = scales
        provenance["seen"] = describe_job(job)
        max_area = largest_area(sampled_labels) or None
        network = network_of(model)
        predict = functools.partial(predict_scales, network.predict, scales=scales)
        limits = {"max_area": max_area, "area_scale": 4.0 ** scales[0]}
        separate = functools.partial(separate_nuclei, calibration=network.calibration, **limits)
        halo = HALO_PIXELS * 2 ** (depth_of(model) + scales[-1])
        strips = label_strips(predict_strips(shape, read_gray, predict, halo, sample.id[:20]), separate)
        sums = NucleusSums(shape[0])
        # Labels take their name last, for they say that the image is done.
        with write_whole(files.labels) as part:
            save_tiles(part, sums.watch(strips), shape, np.uint32, provenance, pixel_size)
            confidence = score_confidence(sums.means(), network.calibration)
            is_kept = sums.find_kept(confidence, options)
            job.confidence = confidence[is_kept[1:]]
            if not is_kept[1:].all():
                with open_rows(part) as labels, write_whole(part) as rest:
                    kept = (keep_labels(labels[row : row + STRIP], is_kept) for row in range(0, shape[0], STRIP))
                    save_tiles(rest, kept, shape, np.uint32, provenance, pixel_size)
            with open_rows(part) as labels:
                masks = (mask_of(labels[row : row + STRIP]) for row in range(0, shape[0], STRIP))
                with write_whole(files.tiled_mask) as mask:
                    save_tiles(mask, masks, shape, np.uint8, provenance, pixel_size)
                small_labels = subsample(labels, OVERLAY_PIXELS)
                save_measurements(files, labels, whole, sample.id, pixel_size, job)
            small_image = subsample(image, OVERLAY_PIXELS)
            with write_whole(files.overlay) as overlay:
                outlined = outline_nuclei(to_display(small_image), small_labels)
                save_png(overlay, outlined, FAST_COMPRESSION)
        files.mask.unlink(missing_ok=True)  # of a smaller image of this name
    return job.reading


@contextlib.contextmanager
def open_sample(sample: Sample, options: PredictionOptions) -> Iterator[np.ndarray | TiffRows | SceneRows | Channels]:
    """Yields the rows of an image, as `open_rows`; a plane of a stack is read whole.

    Raises:
        UserError: the image cannot be read, or has no such channel or level.
        OSError: it cannot be opened.
    """
    if sample.plane is None:
        with open_rows(sample.image, options.level or 0, sample.scene) as rows:
            yield rows
    else:
        yield read_sample_image(sample, options.project, options.level or 0)


def choose_slide_job(
    model: keras.Model, image: np.ndarray | TiffRows | SceneRows | Channels, options: PredictionOptions
) -> PredictionJob:
    """Finds out on parts of a large image how it is to be seen.

    Raises:
        UserError: several channels look like nuclei.
    """
    if isinstance(image, Channels):
        planes = [
            sample_windows(image.shape, lambda start, stop, plane=plane: plane[start:stop]) for plane in image.planes
        ]
        windows = Channels(image.names, np.stack(planes))
    else:
        windows = sample_windows(image.shape[:2], lambda start, stop: image[start:stop])
    jobs = make_jobs(windows, options)
    if len(jobs) > 1:
        run_jobs(network_of(model), jobs)
    return choose_job(jobs)


def prepare_slide(image: np.ndarray | TiffRows | SceneRows, job: PredictionJob) -> ReadGray:
    """Measures the normalization of a large image; returns what reads the gray of its rows, seen as the job sees it."""
    has_colours = len(image.shape) == 3
    channel = job.channel if has_colours and job.channel is not None else slice(None)
    small = subsample(image, NORMALIZATION_PIXELS)
    if has_colours:
        small = small[..., channel]
    ground = find_ground(brightness(small))
    normalization = measure_normalization(small, ground, job.background)
    step = math.ceil(image.shape[1] / small.shape[1])

    def read_gray(start: int, stop: int) -> np.ndarray:
        """The gray of rows `start` to `stop`, as `to_grayscale` would make it of the whole image."""
        strip = image[start:stop]
        if has_colours:
            strip = strip[..., channel]
        gray = to_grayscale(strip, normalization)
        gray[brightness(strip) > normalization.debris] = 0  # as if it were background
        if ground is not None:
            rows = np.arange(start, stop) // step
            columns = np.arange(gray.shape[1]) // step
            gray[ground[rows[:, None], columns]] = 0
        return gray

    return read_gray


def predict_on_cluster(
    samples: Sequence[Sample], weights: str, out: Path, data: Sequence[str], address: str, options: PredictionOptions
) -> tuple[list[str], dict[str, str]]:
    """As `predict_samples`, by the workers of a running Dask cluster, which write the files.

    All workers need the packages of requirements.txt, and this folder, data, weights and out under
    the same paths.
    """
    run = str(time.time_ns())  # tells this run from others of the same workers
    paths = [os.path.abspath(path) for path in (weights, out, *data)]
    script = Path(__file__).resolve()
    ids = [sample.id for sample in samples]
    arguments = [run, json.dumps(dataclasses.asdict(options)), *paths]
    answers = map_on_cluster(ids, READ_AHEAD, script, "predict_on_worker", arguments, address)
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
    ids: Sequence[str], run: str, options_json: str, weights: str, out: str, *data: str
) -> tuple[list[str], dict[str, str]]:
    """What a Dask worker does; returns as `predict_samples`."""
    options = PredictionOptions(**json.loads(options_json))
    samples, model, provenance = prepare_worker(run, options, weights, *data)
    missing = {name: "no longer there" for name in ids if name not in samples}
    present = [samples[name] for name in ids if name in samples]
    written, skipped = predict_samples(present, model, out, provenance, options)
    return written, missing | skipped


@functools.lru_cache(1)
def prepare_worker(
    run: str, options: PredictionOptions, weights: str, *data: str
) -> tuple[dict, keras.Model, Provenance]:
    """What a worker needs for all its images of one run: samples by id, network, provenance."""
    samples = {sample.id: sample for sample in expand_planes(find_samples(*data), options.project)}
    return samples, load_unet(weights, options.precision), describe_provenance(weights, options)


def show_predictions(out: str | Path) -> Path:
    """Shows overlays and coloured labels, reading nothing but the files that were written.

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
            small_labels = subsample(labels, OVERLAY_PIXELS)
        pictures += draw_thumbnails(read_image(files.overlay), small_labels)
        titles += [names[index][:24], f"{nuclei} nuclei"]
    picture = Path(out, "predictions.png")
    save_contact_sheet(pictures, titles, picture)
    show_pictures(picture)
    return picture


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return predict_masks_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = expand_planes(find_samples(*args.data), args.project)
    out = Path(args.out or default_out(*args.data))
    args.precision = args.precision or fastest_precision()
    model = load_unet(args.weights, args.precision)
    names = [field.name for field in dataclasses.fields(PredictionOptions)]
    options = PredictionOptions(**{name: getattr(args, name) for name in names})
    options.check()
    if args.zarr:
        import_zarr()  # says now that it is missing, not after the prediction
    provenance = describe_provenance(args.weights, options)
    claim_out(out, *args.data)
    remove_unfinished(out)
    unfinished = samples if args.overwrite else find_unfinished(samples, out, provenance)
    done = len(samples) - len(unfinished)
    if done == len(samples):
        print(f"all {done} images are done already; --overwrite predicts them anew")
    elif done:
        print(f"{done} of {len(samples)} images are done; --overwrite to redo")
    started = time.perf_counter()
    if args.scheduler and unfinished:
        written, skipped = predict_on_cluster(unfinished, args.weights, out, args.data, args.scheduler, options)
    else:
        written, skipped = predict_samples(unfinished, model, out, provenance, options)
    seconds = time.perf_counter() - started
    if len(skipped) == len(samples):
        raise UserError(f"{', '.join(args.data)}: none of its {len(samples)} images can be predicted")
    if unfinished:
        print(f"{len(written)} images in {seconds:.1f} s, {len(written) / seconds:.1f} a second")
    ids = [sample.id for sample in samples if sample.id not in skipped]
    print(f"saved masks, labels and overlays to {out}")
    report_tables(out, ids)
    if args.rois or args.geojson:
        save_outlines(out, ids, args.rois, args.geojson)
        print(f"saved the outlines of nuclei to {out}, in rois/ or geojson/")
    if args.zarr:
        save_zarr(out, ids)
        print(f"saved the labels as OME-Zarr to {out / 'zarr'}")
    if args.submission:
        print(f"saved Kaggle's table to {save_submission(out, ids)}")
    if args.report:
        print(f"saved the report to {write_report(out, ids)}")
    if args.show:
        print(f"saved the picture of them to {show_predictions(out)}")
    if not args.report:
        command = shlex.join(["python", "Predict_masks.py", "--data", *args.data, "--out", str(out), "--report"])
        print(f"look at {out / 'overlays'}, or at all on one page: {command}")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_script(main)
