"""Predicts the nuclei of images with trained weights, writes them to files, shows the files.

In:  images (folders with their sub-folders, Kaggle folders, .zips, files, wildcards, or a .txt that lists paths) and
     the weights that Train.py saved. DAY/NAME.png gets the ID DAY__NAME.
Out, in --out (default data/<source name>_predicted, without data/ where the working directory has none), at each
     image's own size:
     masks/ID.png     8-bit, 255 nucleus, 0 background
     labels/ID.tif    one number per nucleus, 0 background; uint16, or uint32 for many nuclei
     overlays/ID.png  the image with each nucleus outlined
     nuclei.csv       a row for each nucleus of all images in --out: place, size, shape, intensity of every channel
     images.csv       a row for each image in --out: count, density, how it was seen, warnings
     tables/          the same for each image, from which these two are made
     predictions.png  with --show: overlays and coloured labels of some of them
     rois/ID.zip      with --rois: outlines for Fiji's ROI manager
     geojson/ID.geojson  with --geojson: detections for QuPath, with their measurements
     zarr/ID.zarr     with --zarr: the labels as OME-Zarr, in several resolutions
     report.html      with --report: all images on one page, the doubtful ones first
     submission.csv   with --submission: the nuclei in run lengths, the table that Kaggle takes
     source.json      the absolute paths of the images' sources
An image larger than 2048×2048 pixels is predicted in strips: its mask is masks/ID.tif, mask and
labels are tiled TIFFs, its overlay is reduced. A rerun predicts what is missing and images that changed.
Exit code 1: some images could not be read; they were named and skipped.

    python Predict_masks.py --data data/sample
    python Predict_masks.py --data day1 day2 "more/*.tif"
    python Predict_masks.py --data my_images --weights weights/unet.keras --out my_nuclei
    python Predict_masks.py --data my_images --out my_nuclei --scheduler tcp://10.0.0.1:8786
"""

from data.options import WEIGHTS, PredictionOptions, predict_masks_parser

if __name__ == "__main__":
    predict_masks_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import dataclasses
import functools
import json
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import Preprocessed_data
from data import artifacts, intensity, nuclei, results, scales
from data.artifacts import find_ground
from data.channels import COLOURS, Channels, narrow_channels, pick_channels, take_channel
from data.cluster import predict_on_cluster
from data.confidence import finish_nuclei
from data.files import UserError, describe_file, find_beside_scripts, hash_file, run_script
from data.images import SceneRows, read_shape, subsample
from data.intensity import brightness
from data.layouts import count_of
from data.nuclei import Calibration, largest_area, separate_nuclei
from data.outputs import Provenance, default_out, make_folders, remove_unfinished
from data.pictures import show_predictions
from data.pixel_size import read_pixel_size
from data.pixels import check_image, check_size, is_gray
from data.runs import ImageWork, Run, RunLog, collect_work, pick_samples, prepare_out, read_ahead
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
from data.slides import ReadGray, label_strips, measure_contrast, predict_strips, read_windows, sample_windows
from data.sources import Sample, find_samples
from data.stacks import expand_planes, open_sample, read_whole
from data.tiffs import TiffRows
from Model import HALO_PIXELS, depth_of, fastest_precision, keras, load_unet, predict_probability, read_calibration
from Preprocessed_data import find_colours, measure_normalization, prepare_image, to_display

DEFAULTS = PredictionOptions()
READ_AHEAD = 8  # images
LARGE_IMAGE = 2048 * 2048  # pixels; a larger image is predicted in strips
NORMALIZATION_PIXELS = 4_000_000  # pixels of a large image, reduced, that its normalization is measured on
GRAY_SETTINGS = ("BRIGHT_MEDIAN", "COLOUR_DIFFERENCE", "DEBRIS_RATIO", "MAX_CORRELATION", "MIN_COLOUR")


# Read an image, and make a job of each way that it can be seen.


def read_work(sample: Sample, options: PredictionOptions) -> ImageWork | None:
    """Reads an image and makes its jobs; None for an image that is too large to be read whole."""
    if math.prod(read_shape(sample.image, options.level or 0, sample.scene)) > LARGE_IMAGE:
        return None
    checksum = describe_file(sample.image)  # before it is read, so that a later change shows
    image = read_whole(sample, options)
    narrowed = narrow_channels(image, options.channel)
    pixel_size = find_pixel_size(sample, options)
    return ImageWork(sample, checksum, image, narrowed, pixel_size, make_jobs(narrowed, options))


def find_pixel_size(sample: Sample, options: PredictionOptions) -> float | None:
    """Micrometres that a pixel of an image is wide, as given or as its file says."""
    own = read_pixel_size(sample.image, options.level or 0, sample.scene)
    if options.pixel_size and own and not math.isclose(own, options.pixel_size, rel_tol=0.01):
        tqdm.write(f"{sample.id}: --pixel-size {options.pixel_size:g} is used; the file says {own:.4g} micrometres")
    return options.pixel_size or own


def make_jobs(image: np.ndarray | Channels, options: PredictionOptions) -> list[PredictionJob]:
    """Prepares an image, (H, W), (H, W, 3) or several channels, for the network; one job for each way to see it.

    A gray image has one channel, whatever is wanted. Raises UserError where another has no such channel.
    """
    if isinstance(image, Channels):
        pairs = enumerate(zip(image.names, image.planes, strict=True))
        return [job for index, (name, plane) in pairs for job in see_channel(plane, options, name, index)]
    if image.ndim == 3 and options.channel and is_gray(image):
        image = image[..., 0]
    if image.ndim == 3 and options.channel not in (None, "max"):
        index = pick_channels(COLOURS, options.channel)[0]
        return see_channel(image[..., index], options, "", index)
    colours = [] if options.channel else find_colours(image)
    if colours:
        on_dark = dataclasses.replace(options, background=options.background or "dark")
        return [make_job(image[..., i], on_dark, name, i) for i, name in enumerate(COLOURS) if name in colours]
    return see_channel(image, options)


def see_channel(
    image: np.ndarray, options: PredictionOptions, reading: str = "", channel_index: int | None = None
) -> list[PredictionJob]:
    """One job for each way that an image, or one of its channels, can be seen; arguments as `make_job`."""
    job = make_job(image, options, reading, channel_index)
    if options.background or not job.has_bright_background or job.is_stained:
        return [job]
    # A dark background that bright nuclei nearly cover, or of which little stands out, looks like a bright one.
    other = make_job(image, dataclasses.replace(options, background="dark"), reading, channel_index)
    other.must_be_confluent = True
    return [job, other]


def make_job(
    image: np.ndarray, options: PredictionOptions, reading: str = "", channel_index: int | None = None
) -> PredictionJob:
    """The job of an image (H, W) or (H, W, 3), or of one of its channels, which `reading` names, seen in one way."""
    gray, normalization, debris = prepare_image(image, options.background)
    return PredictionJob(
        gray,
        has_bright_background=normalization.has_bright_background,
        is_stained=normalization.is_stained,
        has_signal=normalization.has_signal,
        debris=debris,
        reading=reading,
        channel_index=channel_index,
        background=options.background,
        thumbnails=make_thumbnails(gray),
        diameter=options.diameter,
    )


# Find its nuclei.


def segment(
    image: np.ndarray | str | Path, model: keras.Model | None = None, details: bool = False, **options
) -> np.ndarray | tuple[np.ndarray, dict]:
    """Finds the nuclei of one image, which is read and checked here.

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
        UserError: it is no gray or RGB image, is too large to be read whole, or has several channels or planes.

    >>> segment(np.zeros((64, 64), np.uint8)).max()
    np.int32(0)
    """
    options = PredictionOptions(**{"precision": fastest_precision()} | options)
    options.check()
    if isinstance(image, str | Path):
        samples = expand_planes(find_samples(image), options.project)
        if len(samples) > 1:
            raise UserError(f"{image}: {len(samples)} images; segment takes one of them")
        check_size(read_shape(samples[0].image, options.level or 0, samples[0].scene), samples[0].image)
        image = narrow_channels(read_whole(samples[0], options), options.channel)
    else:
        image = check_image(np.asarray(image), Path("the array"))
    labels, job = segment_image(model or load(precision=options.precision), image, options)
    if not details:
        return labels
    nucleus, border = job.probabilities
    return labels, {"nucleus": nucleus, "border": border, "confidence": job.confidence, **describe_job(job)}


@functools.lru_cache(2)
def load(weights: str | None = None, precision: str = "float32") -> keras.Model:
    """Loads a network for `segment`; without a file that beside the scripts. Raises UserError where there is none."""
    return load_unet(weights or find_beside_scripts(WEIGHTS), precision)


def segment_image(
    model: keras.Model, image: np.ndarray, options: PredictionOptions = DEFAULTS
) -> tuple[np.ndarray, PredictionJob]:
    """Finds the nuclei of a checked image, seen as the options say.

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


def find_nuclei(
    model: keras.Model, gray: np.ndarray, diameter: float | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Finds the nuclei of the gray of an image, at the scales that their width asks for; all are kept.

    Args:
        model: from `load_unet`.
        gray: (H, W) float32 in [0, 1], from `to_grayscale`.
        diameter: of the nuclei in pixels; None: it is found out.

    Returns:
        labels (H, W) int32; and how often height and width are halved for each scale that they are predicted at;
        negative: doubled.
    """
    job = PredictionJob(gray, diameter=diameter, thumbnails=make_thumbnails(gray))
    run_jobs(network_of(model), [job])
    return job.labels_future.result(), job.halvings


def network_of(model: keras.Model) -> Network:
    """A network as `data.scales` sees it; one that does not come from a file has the usual calibration."""
    return Network(functools.partial(predict_probability, model), getattr(model, "calibration", Calibration()))


# Write its files.


def finish_work(work: ImageWork, run: Run) -> str:
    """Writes the files of an image; returns the channel or background that was chosen, "" for the usual one or none."""
    job = choose_job(work.jobs)
    labels = finish_nuclei(job, run.network.calibration, run.options)
    work.jobs = []  # an image that waits for its turn takes memory
    results.write_image(run, work, job, labels, to_display(take_channel(work.narrowed, job.channel_index)))
    return job.choice if labels.any() else ""


def describe_provenance(weights: str | Path, options: PredictionOptions = DEFAULTS) -> Provenance:
    """What labels/ID.tif says of its origin: the weights, the options, and constants that labels depend on.

    These are GRAY_SETTINGS and all of artifacts, intensity, nuclei and scales, whose names differ. After a change of
    other constants only --overwrite predicts anew.
    """
    settings = {name.lower(): getattr(Preprocessed_data, name) for name in GRAY_SETTINGS}
    for module in (artifacts, intensity, nuclei, scales):
        settings |= {name.lower(): value for name, value in vars(module).items() if name.isupper()}
    settings.pop("batch_pixels")  # changes the speed, not the labels
    provenance = {
        "weights_sha256": hash_file(weights),
        "calibration": dataclasses.asdict(read_calibration(weights)),
        "options": dataclasses.asdict(options),
        "settings": settings,
    }
    return json.loads(json.dumps(provenance))  # as it is read again: tuples become lists


# Many images.


def predict_samples(
    samples: Sequence[Sample],
    model: keras.Model,
    out: str | Path,
    provenance: Provenance,
    options: PredictionOptions = DEFAULTS,
) -> tuple[list[str], dict[str, str]]:
    """Predicts images and writes their files; an image that cannot be read is named and skipped.

    While the network runs, other threads read the next images and finish the ones before.

    Args:
        samples: from `find_samples`.
        model: from `load_unet`.
        out: folder to write to.
        provenance: of `describe_provenance`, which the label files keep.
        options: how they are to be seen, and which nuclei are kept.

    Returns:
        ids written, sorted; and of those skipped id -> reason.
    """
    make_folders(out)
    run = Run(network_of(model), Path(out), provenance, options)
    read = functools.partial(read_work, options=options)
    log = RunLog()
    writing = deque()  # pairs of an id and the future of its files
    progress = tqdm(total=len(samples), desc="predicting", unit="image", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        earlier = []  # images that wait for their labels
        for chunk in read_ahead(samples, read, pool, READ_AHEAD):
            works, slides = collect_work(chunk, log)
            start_jobs(run.network, [job for work in works for job in work.jobs], pool)
            # By now the labels of the chunk before are there.
            refine_jobs(run.network, [job for work in earlier for job in work.jobs], pool)
            writing += [(work.sample.id, pool.submit(finish_work, work, run)) for work in earlier]
            earlier = works
            predict_slides(slides, model, run, log)
            bar.update(len(chunk))
            while len(writing) > READ_AHEAD:
                log.wait_for(*writing.popleft())
        for image_id, future in writing:
            log.wait_for(image_id, future)
    return log.answer()


# Large images: the same in strips. Debris is black for the network; of other images what lies on it is dropped.


def predict_slides(slides: Sequence[Sample], model: keras.Model, run: Run, log: RunLog) -> None:
    """Predicts large images one after the other; one that cannot be read is skipped."""
    for slide in slides:
        try:
            log.add(slide.id, predict_slide(slide, model, run))
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and error.filename != str(slide.image):
                raise  # a result cannot be written, so it is no use to go on
            log.skip(slide.id, error)


def predict_slide(sample: Sample, model: keras.Model, run: Run) -> str:
    """Predicts a large image in strips, without holding the whole, and writes its files.

    Returns:
        The channel or background that was chosen, "" for the usual one or no nuclei.

    Raises:
        UserError: the image cannot be read.
        OSError: a file cannot be written.
    """
    checksum = describe_file(sample.image)
    with open_sample(sample, run.options) as image:
        narrowed = narrow_channels(image, run.options.channel)
        work = ImageWork(sample, checksum, image, narrowed, find_pixel_size(sample, run.options))
        job = choose_slide_job(run.network, narrowed, run.options)
        chosen = take_channel(narrowed, job.channel_index)
        shape = chosen.shape[:2]
        read_gray = prepare_slide(chosen, job)
        # Scale and size of the nuclei are those of nine windows.
        windows = sample_windows(shape, read_gray)
        sampled_labels, job.halvings = find_nuclei(model, windows, run.options.diameter)
        predict = functools.partial(predict_scales, run.network.predict, halvings=job.halvings)
        # The network sees HALO_PIXELS of its deepest stage around; at the smallest scale these are the widest.
        halo = HALO_PIXELS * 2 ** (depth_of(model) + job.halvings[-1])
        probabilities = predict_strips(shape, read_gray, predict, halo, sample.id[:20])
        separate = functools.partial(
            separate_nuclei,
            max_area=largest_area(sampled_labels) or None,  # None where the windows show no nuclei
            area_scale=job.area_scale,
            calibration=run.network.calibration,
        )
        strips = label_strips(probabilities, separate)
        if not job.has_signal:
            strips = measure_contrast(strips, read_gray, job.strip_contrasts)
        results.write_slide(run, work, job, strips, to_display(subsample(chosen, results.OVERLAY_PIXELS)))
    return job.choice if len(job.confidence) else ""


def choose_slide_job(
    network: Network, image: np.ndarray | TiffRows | SceneRows | Channels, options: PredictionOptions
) -> PredictionJob:
    """Finds out on windows of a large image how it is to be seen. Raises UserError as `choose_job`."""
    jobs = make_jobs(read_windows(image), options)
    if len(jobs) > 1:
        run_jobs(network, jobs)
    return choose_job(jobs)


def prepare_slide(image: np.ndarray | TiffRows | SceneRows, job: PredictionJob) -> ReadGray:
    """Measures the normalization of a large image; returns what reads the gray of its rows, seen as the job sees it.

    Background, signal and debris are measured on the whole image; the job, which knew those of windows, is told.
    """
    has_one_colour = len(image.shape) == 3 and job.channel_index is not None
    seen = (..., job.channel_index) if has_one_colour else ...  # the colour that the job sees, or all
    small = subsample(image, NORMALIZATION_PIXELS)[seen]
    ground = find_ground(brightness(small))
    normalization = measure_normalization(small, ground, job.background, is_reduced=True)
    job.has_bright_background = normalization.has_bright_background
    # Hot pixels do not count here. Neither do nuclei that are one pixel of the reduced image, but windows show them.
    job.has_signal = job.has_signal or measure_normalization(small, ground, job.background).has_signal
    job.debris = None if np.isinf(normalization.debris) else brightness(small) > normalization.debris
    step = math.ceil(image.shape[1] / small.shape[1])  # that of `subsample`, so that of the pixels of `ground`

    def read_gray(start: int, stop: int) -> np.ndarray:
        """The gray of rows `start` to `stop`, as `to_grayscale` would make it of the whole image."""
        strip = image[start:stop][seen]
        gray = normalization.apply(strip)
        gray[brightness(strip) > normalization.debris] = 0  # as if it were background
        if ground is not None:
            rows = np.arange(start, stop) // step
            columns = np.arange(gray.shape[1]) // step
            gray[ground[rows[:, None], columns]] = 0
        return gray

    return read_gray


# Many machines: what a worker of a cluster does.


def predict_on_worker(
    ids: Sequence[str], run_id: str, options_json: str, weights: str, out: str, *data: str
) -> tuple[list[str], dict[str, str]]:
    """What a Dask worker does; returns as `predict_samples`."""
    options = PredictionOptions(**json.loads(options_json))
    samples, model, provenance = prepare_worker(run_id, options, weights, *data)
    missing = {image_id: "no longer there" for image_id in ids if image_id not in samples}
    present = [samples[image_id] for image_id in ids if image_id in samples]
    written, skipped = predict_samples(present, model, out, provenance, options)
    return written, missing | skipped


@functools.lru_cache(1)
def prepare_worker(
    run_id: str, options: PredictionOptions, weights: str, *data: str
) -> tuple[dict, keras.Model, Provenance]:
    """What a worker needs for all its images of one run: samples by id, network, provenance; kept for the run."""
    samples = {sample.id: sample for sample in expand_planes(find_samples(*data), options.project)}
    return samples, load_unet(weights, options.precision), describe_provenance(weights, options)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return predict_masks_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = expand_planes(find_samples(*args.data), args.project)
    if args.only:
        samples = pick_samples(samples, args.only)
    out = Path(args.out or default_out(*args.data))
    args.precision = args.precision or fastest_precision()
    names = [field.name for field in dataclasses.fields(PredictionOptions)]
    options = PredictionOptions(**{name: getattr(args, name) for name in names})
    options.check()
    results.check_results(args)
    model = load_unet(args.weights, args.precision)
    provenance = describe_provenance(args.weights, options)
    unfinished = prepare_out(samples, out, provenance, args.data, args.overwrite)
    former = results.find_optional(out, unfinished)  # before the prediction, which removes them
    started = time.perf_counter()
    if args.scheduler and unfinished:
        paths = [args.weights, out, *args.data]
        written, skipped = predict_on_cluster(unfinished, options, paths, __file__, args.scheduler)
        remove_unfinished(out)  # files of workers that died
    else:
        written, skipped = predict_samples(unfinished, model, out, provenance, options)
    seconds = time.perf_counter() - started
    if len(skipped) == len(samples):
        raise UserError(f"{', '.join(args.data)}: none of its {len(samples)} images can be predicted")
    if written:
        print(f"{count_of(len(written), 'image')} in {seconds:.1f} s, {len(written) / seconds:.1f} a second")
    ids = [sample.id for sample in samples if sample.id not in skipped]
    results.write_results(out, ids, skipped, args, former)
    if args.show:
        print(f"saved a picture of some of them to {show_predictions(out)}")
    results.say_what_next(out, skipped, argv, args.report)
    return 1 if skipped else 0


if __name__ == "__main__":
    run_script(main)
