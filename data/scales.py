"""Predicts images at the scales that the width of their nuclei asks for, and chooses among the ways to see an image.

In:  jobs, one for each way that an image can be seen, and a function that runs the network at one scale.
Out: labels (H, W) int32, 0 background, 1…K.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from skimage.measure import regionprops

from data.files import UserError
from data.images import halve
from data.nuclei import Calibration, certainty, common_diameter, drop_covered, local_contrast, separate_nuclei

# What looks like nuclei.
MIN_CONTRAST = 5  # standard deviations that nuclei must stand out by, in an image that looks like noise
MIN_CONTRAST_OF_MANY = 4  # the same where there are MANY_NUCLEI nuclei or more
MAX_CONTRAST = 10  # standard deviations; nuclei that stand out more are not better
SURE_CHANNEL = 1.5  # times the score of the next channel, for a channel to be chosen
SCORED_NUCLEI = 200  # largest number of nuclei scored per image
MIN_CONFLUENT_SHARE = 1 / 3  # share of an image that nuclei must cover, if its many bright pixels are nuclei
# Scale.
HALVING_DIAMETERS = (33, 80)  # pixels, at the first size; wider nuclei are predicted at half of it, a quarter too
HALVED_WEIGHT = 2 / 3  # weight of the smaller size in the mean of two sizes
MERGED_DIAMETER_RATIO = 2  # nuclei that become so much wider at the smaller size have merged
MIN_REMAINING_SHARE = 0.5  # share of the area of nuclei that must be nucleus at the smaller size too, or they are lost
NARROW_DIAMETER = 10  # pixels; images of narrower nuclei are doubled, once unless the diameter was given
MAX_DIAMETER = 100  # pixels; an image of wider nuclei is halved until they are narrower
THUMBNAIL_HALVINGS = (5, 4, 3, 2)  # how often an image is halved for each thumbnail, the smallest first
MIN_THUMBNAIL = 24  # pixels, shorter side of the smallest thumbnail
MIN_THUMBNAIL_DIAMETER = 12  # pixels, in the thumbnail; narrower nuclei are looked for in the next one
MIN_CERTAINTY = 0.7  # least `certainty` of labels that are believed
MAX_COVERED_SHARE = 0.9  # share of a thumbnail that nuclei may cover
MANY_NUCLEI = 10  # so many sure, narrow nuclei at full size contradict wide ones in thumbnails; noise seldom has them
MIN_HALF_SIZE_SHARE = 0.75  # share of the area of such nuclei that is nucleus at half size too; for grain it is less
# Work.
BATCH_PIXELS = 8 * 256 * 256  # pixels in one batch; more is no faster

Probabilities = tuple[np.ndarray, np.ndarray]  # nucleus and border, (H, W) float32
PredictAtScale = Callable[[np.ndarray, int], Probabilities]  # gray (..., H, W), halvings -> as gray in shape


@dataclass(frozen=True)
class Network:
    """A trained network: what runs it at one scale, and its calibration."""

    predict: PredictAtScale
    calibration: Calibration = Calibration()


@dataclass
class PredictionJob:
    """An image, seen in one way, from its gray to its labels."""

    gray: np.ndarray  # (H, W) float32 in [0, 1]
    probabilities: Probabilities | None = None  # mean over the scales until now
    labels_future: Future | None = None  # becomes (H, W) int32
    has_bright_background: bool = False
    is_stained: bool = False
    has_signal: bool = True  # False: the values look like noise, and nuclei must stand out locally
    debris: np.ndarray | None = None  # (H, W) bool, what is no nucleus
    reading: str = ""  # name of the channel, where no option names it
    channel_index: int | None = None  # the one that is seen: of `narrow_channels`, or red, green, blue; None: all
    background: str | None = None  # "dark" or "bright", where it was given or tried
    must_be_confluent: bool = False  # True: it counts only if `is_confluent`, or if the usual job finds nothing
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)  # from `make_thumbnails`
    diameter: float | None = None  # pixels, diameter of the nuclei where it was given
    wide_diameter: float = 0  # pixels, diameter of nuclei that thumbnails show; 0 where they show none
    confidence: np.ndarray | None = None  # (K,) float in [0, 1], of the nuclei that are kept
    left_out_count: int = 0  # nuclei that are not kept, because of the limits of `data.options.Limits`
    strip_contrasts: list[float] = field(default_factory=list)  # of a large image like noise, one for each nucleus
    halvings: tuple[int, ...] = ()  # how often the image is halved, for each scale predicted; -1: doubled

    @property
    def area_scale(self) -> float:
        """Pixels of the image for one pixel of the largest size that the labels are predicted at."""
        return 4.0 ** self.halvings[0]

    @property
    def choice(self) -> str:
        """The channel and the background that were chosen, where there was a choice; "" for the usual ones."""
        if not self.must_be_confluent:
            return self.reading
        return f"{self.reading} on a dark background" if self.reading else "dark background"


def choose_job(jobs: Sequence[PredictionJob]) -> PredictionJob:
    """The job of an image whose answer looks most like nuclei.

    Raises:
        UserError: several channels do.
    """
    if len(jobs) == 1:
        return jobs[0]  # which need not have been predicted
    found = {job.channel_index for job in jobs if not job.must_be_confluent and job.labels_future.result().any()}
    jobs = [job for job in jobs if not job.must_be_confluent or job.channel_index not in found or is_confluent(job)]
    ranked = sorted([(score_nuclei(job), job) for job in jobs], key=lambda pair: -pair[0])
    score, best = ranked[0]
    others = [pair for pair in ranked if pair[1].channel_index != best.channel_index]
    if others and others[0][0] * SURE_CHANNEL > score:
        likely = [best, others[0][1]]
        names = " and ".join(f"{job.reading} ({job.labels_future.result().max()} found)" for job in likely)
        raise UserError(f"its channels {names} both look like nuclei; choose one with --channel")
    return best


def is_confluent(job: PredictionJob) -> bool:
    """Whether the nuclei of a job cover much of the image."""
    return bool(np.mean(job.labels_future.result() > 0) >= MIN_CONFLUENT_SHARE)


def describe_job(job: PredictionJob) -> dict:
    """How an image was seen, as labels/ID.tif says it."""
    background = "bright" if job.has_bright_background else "dark"
    return {"reading": job.choice, "background": background, "scales": list(job.halvings)}


def score_nuclei(job: PredictionJob) -> float:
    """How much the labels of a job look like nuclei: sure, round, and apart from what is around them; 0 for none."""
    labels = job.labels_future.result()
    if not labels.any():
        return 0.0
    solidity = np.mean([region.solidity for region in regionprops(labels)[:SCORED_NUCLEI]])
    contrast = min(local_contrast(job.gray, labels), MAX_CONTRAST)
    return certainty(job.probabilities[0], labels) * contrast * float(solidity) ** 4


def run_jobs(network: Network, jobs: Sequence[PredictionJob]) -> None:
    """Predicts jobs at all scales that they ask for."""
    with ThreadPoolExecutor(1) as pool:
        start_jobs(network, jobs, pool)
        refine_jobs(network, jobs, pool)


def finish_labels(job: PredictionJob) -> np.ndarray:
    """The labels of a job, (H, W) int32, without what is noise or debris."""
    return drop_noise(job, job.labels_future.result())


def drop_noise(job: PredictionJob, labels: np.ndarray) -> np.ndarray:
    """Labels that were found for a job, (H, W) int32, without what is noise or debris."""
    if not labels.any():
        return labels
    if not job.has_signal and is_noise(local_contrast(job.gray, labels), labels.max()):
        return np.zeros_like(labels)
    if job.debris is not None:
        return drop_covered(labels, job.debris)
    return labels


def is_noise(contrast: float, count: int) -> bool:
    """Whether so many pieces, found in an image that looks like noise, stand out too little to be nuclei."""
    return contrast < (MIN_CONTRAST if count < MANY_NUCLEI else MIN_CONTRAST_OF_MANY)


def start_jobs(network: Network, jobs: Sequence[PredictionJob], pool: Executor) -> None:
    """Predicts images at their first scale, which is full size but for very wide nuclei or a given diameter."""
    estimate_diameters(network, [job for job in jobs if job.diameter is None])
    for halvings, group in sorted(_group_by([first_halvings(job) for job in jobs], jobs).items()):
        if halvings > 0:  # for very wide nuclei
            group = drop_sure_narrow(network, group, pool)
        predict_jobs(network, group, pool, halvings)


def _group_by(keys: Sequence, jobs: Sequence[PredictionJob]) -> dict[Any, list[PredictionJob]]:
    """Key -> the jobs that have it, in their order."""
    groups = {}
    for key, job in zip(keys, jobs, strict=True):
        groups.setdefault(key, []).append(job)
    return groups


def drop_sure_narrow(network: Network, jobs: Sequence[PredictionJob], pool: Executor) -> list[PredictionJob]:
    """The jobs of very wide nuclei without those that full size contradicts, which keep their labels of full size.

    Colonies of small nuclei, or cells, may look like one wide nucleus in a thumbnail. Grain of a much enlarged image
    looks like small nuclei at full size.
    """
    wide = []
    for job in jobs:
        if job.diameter is None:
            predict_jobs(network, [job], pool, 0)
            if has_sure_narrow_nuclei(job) and remain_at_half_size(network, job):
                job.wide_diameter = 0.0
                continue
            job.labels_future = None
        wide.append(job)
    return wide


def first_halvings(job: PredictionJob) -> int:
    """How often the image of a job is halved at first; negative: doubled."""
    return count_halvings(job.wide_diameter if job.diameter is None else job.diameter)


def has_sure_narrow_nuclei(job: PredictionJob) -> bool:
    """Whether the labels of a job at full size are many nuclei of a width that the network knows, and sure."""
    labels = job.labels_future.result()
    is_narrow = MIN_THUMBNAIL_DIAMETER <= common_diameter(labels) <= HALVING_DIAMETERS[0]
    return labels.max() >= MANY_NUCLEI and is_narrow and certainty(job.probabilities[0], labels) >= MIN_CERTAINTY


def remain_at_half_size(network: Network, job: PredictionJob) -> bool:
    """Whether most of the nuclei that a job has at full size are there at half size too.

    True nuclei are. Grain has no width of its own: at another size of the image other grain looks like nuclei.
    """
    is_nucleus = network.predict(job.gray, 1)[0] > network.calibration.nucleus_threshold
    return bool(is_nucleus[job.labels_future.result() > 0].mean() >= MIN_HALF_SIZE_SHARE)


def refine_jobs(network: Network, jobs: Sequence[PredictionJob], pool: Executor) -> None:
    """Predicts jobs of `start_jobs` again: those of narrow nuclei at double size, in place of full size.

    Those of nuclei wider than HALVING_DIAMETERS are predicted at a half and a quarter of the first size too. The grain
    inside large nuclei vanishes at a smaller size, but outlines are sharper at a larger one: the mean counts.
    """
    narrow = [job for job in jobs if job.diameter is None and 0 < find_width(job) < NARROW_DIAMETER]
    for job in narrow:
        job.labels_future = None
    predict_jobs(network, narrow, pool, -1)
    for step, diameter in enumerate(HALVING_DIAMETERS, start=1):
        # The diameter counts at the first size. Where that is half of the image's, nuclei 70 pixels wide are 35 there,
        # more than 33: so the image is predicted at a quarter of its size too.
        wide = [job for job in jobs if find_width(job) > diameter * 2 ** max(first_halvings(job), 0)]
        for halvings, group in sorted(_group_by([first_halvings(job) for job in wide], wide).items()):
            predict_jobs(network, group, pool, halvings + step)


def find_width(job: PredictionJob) -> float:
    """Diameter of the nuclei of a job in pixels: as given, as thumbnails show it, or that of its labels."""
    if job.diameter is not None:
        return job.diameter
    width = common_diameter(job.labels_future.result())
    if job.wide_diameter and not has_sure_narrow_nuclei(job):
        return max(width, job.wide_diameter)
    return width


def count_halvings(diameter: float) -> int:
    """How often an image is halved until nuclei of this diameter are at most MAX_DIAMETER wide.

    Negative: how often it is doubled until they are at least NARROW_DIAMETER wide; 0 where the diameter is 0, that is,
    unknown.
    """
    if diameter <= 0:
        return 0
    if diameter < NARROW_DIAMETER:
        return -math.ceil(math.log2(NARROW_DIAMETER / diameter))
    return max(math.ceil(math.log2(diameter / MAX_DIAMETER)), 0)


def estimate_diameters(network: Network, jobs: Sequence[PredictionJob]) -> None:
    """Looks for wide nuclei in thumbnails, from the smallest to the largest, and sets `wide_diameter`.

    The network knows nuclei 10 to 40 pixels wide. Wider ones fall to pieces at full size, but in some thumbnail they
    have a width that it knows, and in all smaller ones they are too narrow to be found: so the first thumbnail with
    nuclei of a known width tells their size, whatever the answers at larger sizes are.
    """
    undecided = list(jobs)
    for halvings in THUMBNAIL_HALVINGS:
        large = [job for job in undecided if halvings in job.thumbnails]
        for group in _group_by([job.thumbnails[halvings].shape for job in large], large).values():
            probabilities = network.predict(np.stack([job.thumbnails[halvings] for job in group]), 0)
            for job, nucleus, border in zip(group, *probabilities, strict=True):
                job.wide_diameter = measure_thumbnail(nucleus, border, network.calibration) * 2**halvings
        undecided = [job for job in undecided if job.wide_diameter == 0]


def make_thumbnails(gray: np.ndarray) -> dict[int, np.ndarray]:
    """How often the gray of an image is halved -> the thumbnail, for those that are large enough."""
    thumbnails = {}
    for halvings in range(1, max(THUMBNAIL_HALVINGS) + 1):
        gray = halve(gray)
        if halvings in THUMBNAIL_HALVINGS and min(gray.shape) >= MIN_THUMBNAIL:
            thumbnails[halvings] = gray
    return thumbnails


def measure_thumbnail(nucleus: np.ndarray, border: np.ndarray, calibration: Calibration) -> float:
    """Common diameter of the nuclei of a thumbnail, in its pixels; 0 if they are too narrow or unsure.

    Args:
        nucleus: (h, w) float in [0, 1], of `predict_probability`.
        border: (h, w) float in [0, 1], of the same.
        calibration: of the network.
    """
    if not (nucleus > calibration.nucleus_threshold).any():
        return 0.0
    labels = separate_nuclei(nucleus, border, calibration=calibration)
    diameter = common_diameter(labels)
    is_sure = certainty(nucleus, labels) >= MIN_CERTAINTY
    is_picture_of_nuclei = np.mean(labels > 0) <= MAX_COVERED_SHARE
    return diameter if is_sure and is_picture_of_nuclei and diameter >= MIN_THUMBNAIL_DIAMETER else 0.0


def predict_jobs(network: Network, jobs: Sequence[PredictionJob], pool: Executor, halvings: int) -> None:
    """Runs the network at one scale, in batches of one shape; the pool separates the nuclei.

    While the network runs on a batch, the pool works on the batch before.

    Args:
        network: runs on their gray.
        jobs: get `probabilities` and `labels_future`.
        pool: of threads.
        halvings: how often height and width are halved; negative: doubled.
    """
    separate = functools.partial(separate_nuclei, calibration=network.calibration)
    for (height, width), group in _group_by([job.gray.shape for job in jobs], jobs).items():
        batch_size = max(int(BATCH_PIXELS * 4.0**halvings) // (height * width), 1)
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            grays = np.stack([job.gray for job in batch])  # (batch, H, W)
            probabilities = network.predict(grays, halvings)
            for job, nucleus, border in zip(batch, *probabilities, strict=True):
                if job.labels_future is None:
                    job.probabilities = (nucleus, border)
                    job.halvings = (halvings,)
                    job.labels_future = pool.submit(separate, nucleus, border, area_scale=job.area_scale)
                else:
                    earlier = job.labels_future  # `choose_labels` waits for it in the pool, which has started it before
                    job.labels_future = pool.submit(choose_labels, job, earlier, (nucleus, border), halvings, separate)


def choose_labels(
    job: PredictionJob, earlier: Future, smaller: Probabilities, halvings: int, separate: Callable
) -> np.ndarray:
    """Labels of the mean with a smaller size, or the earlier labels if nuclei have merged or most of them are lost.

    Nuclei that are as wide as was given, or very wide ones as wide as thumbnails show, have not merged: the earlier
    labels were pieces of them. It runs in a thread; nothing else changes the job until it is done.

    Args:
        job: gets the mean, if its labels are returned.
        earlier: the labels (H, W) int32 of the job until now.
        smaller: probabilities at the smaller size.
        halvings: how often that is halved.
        separate: of `separate_nuclei`.
    """
    before = earlier.result()
    mean = average_scales(job.probabilities, smaller)
    labels = separate(*mean, area_scale=job.area_scale)
    # The earlier labels may be pieces of wide nuclei, so a width that is known without them counts too; 0 for none.
    expected_diameter = job.diameter or 0.0
    if not expected_diameter and first_halvings(job) > 0:
        expected_diameter = job.wide_diameter
    if before.any():
        least_width = max(common_diameter(before), expected_diameter)
        have_merged = common_diameter(labels) > MERGED_DIAMETER_RATIO * least_width
        are_lost = not expected_diameter and labels[before > 0].astype(bool).mean() < MIN_REMAINING_SHARE
        if have_merged or are_lost:
            return before
    job.probabilities = mean
    job.halvings += (halvings,)
    return labels


def predict_scales(predict: PredictAtScale, gray: np.ndarray, halvings: Sequence[int]) -> Probabilities:
    """Mean probabilities of one image over several scales, each halved so often, the largest first."""
    probabilities = predict(gray, halvings[0])
    for count in halvings[1:]:
        probabilities = average_scales(probabilities, predict(gray, count))
    return probabilities


def average_scales(larger: Probabilities, smaller: Probabilities) -> Probabilities:
    """Weighted means of the probabilities at a larger and a smaller size of an image."""
    weight = np.float32(HALVED_WEIGHT)
    nucleus, border = (a + weight * (b - a) for a, b in zip(larger, smaller, strict=True))
    return nucleus, border
