"""A prediction of many images: what they share, what is known of each, and which are written or skipped.

In:  the samples of `data.sources`, and functions that read and write one image.
Out: chunks of images, which threads read ahead of the network; the ids that are written, and those that are skipped.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.channels import Channels
from data.files import UserError
from data.images import SceneRows
from data.layouts import count_of, format_names
from data.options import PredictionOptions
from data.outputs import Provenance, find_unfinished, record_sources, remove_unfinished
from data.scales import Network, PredictionJob
from data.sources import Sample
from data.tiffs import TiffRows


@dataclass(frozen=True)
class Run:
    """What all images of a prediction share."""

    network: Network
    out: Path  # folder to write to
    provenance: Provenance  # weights and settings
    options: PredictionOptions


@dataclass
class ImageWork:
    """An image that has been read and is to be predicted and written."""

    sample: Sample
    checksum: dict  # from `describe_file`, before it was read
    image: np.ndarray | TiffRows | SceneRows | Channels  # as in the file
    narrowed: np.ndarray | TiffRows | SceneRows | Channels  # from `narrow_channels`: what may show the nuclei
    pixel_size: float | None  # micrometres
    jobs: list[PredictionJob] = field(default_factory=list)  # one for each way that the image can be seen


def pick_samples(samples: Sequence[Sample], ids: Sequence[str]) -> list[Sample]:
    """The samples with these ids, in their order; raises UserError where an id is of none."""
    known = [sample.id for sample in samples]
    for image_id in ids:
        if image_id not in known:
            nearest = get_close_matches(image_id, known, n=1)
            raise UserError(
                f"--only {image_id}: no image has this ID" + (f"; is {nearest[0]} meant?" if nearest else "")
            )
    return [sample for sample in samples if sample.id in ids]


def prepare_out(
    samples: Sequence[Sample], out: Path, provenance: Provenance, sources: Sequence[str], overwrite: bool
) -> Sequence[Sample]:
    """Makes the folder of the results, and returns the samples that are to be predicted into it.

    Raises:
        UserError: results of other weights or settings lie there, and are not to be overwritten.
    """
    unfinished = samples if overwrite else find_unfinished(samples, out, provenance)
    record_sources(out, *sources)
    remove_unfinished(out)
    if overwrite:
        return samples
    done = len(samples) - len(unfinished)
    if done == len(samples):
        print(f"all {done} images are done already; --overwrite predicts them anew")
    elif done:
        print(f"{done} of {len(samples)} images are done; --overwrite to redo")
    return unfinished


class RunLog:
    """Notes which images are written and which are skipped, and prints what is worth knowing of each."""

    def __init__(self):
        self.written: list[str] = []
        self.skipped: dict[str, str] = {}  # id -> reason

    def add(self, image_id: str, reading: str) -> None:
        """Notes that an image is written; `reading` is the channel or background that was chosen, "" for the usual."""
        self.written.append(image_id)
        if reading:
            tqdm.write(f"{image_id}: {reading} was chosen; --channel or --background chooses another")

    def skip(self, image_id: str, reason: object) -> None:
        """Notes and prints why an image is skipped."""
        tqdm.write(f"skipped {image_id}: {reason}", file=sys.stderr)
        self.skipped[image_id] = str(reason)

    def wait_for(self, image_id: str, writing: Future) -> None:
        """Waits until the files of an image are written; it is skipped where its channel cannot be chosen."""
        try:
            reading = writing.result()
        except UserError as error:
            self.skip(image_id, error)
        else:
            self.add(image_id, reading)

    def answer(self) -> tuple[list[str], dict[str, str]]:
        """Ids written, sorted; and of those skipped id -> reason."""
        return sorted(self.written), self.skipped


def describe_skipped(ids: Sequence[str]) -> str:
    """A line on the images that were skipped, for the end of a run.

    >>> describe_skipped(["a"]), describe_skipped("abcdefg")
    ('1 image skipped: a (see above)', '7 images skipped: a, b, c, d, e and 2 more (see above)')
    """
    return f"{count_of(len(ids), 'image')} skipped: {format_names(ids)} (see above)"


def read_ahead(
    samples: Sequence[Sample], read: Callable[[Sample], ImageWork | None], pool: Executor, count: int
) -> Iterator[list[tuple[Sample, Future]]]:
    """Yields chunks of samples, each sample with the future of what `read` gives of it; the pool reads a chunk ahead.

    A chunk has `count` samples; the first one has a single sample, so that its files are soon there. An empty chunk
    comes before the first, while the pool reads it, and after the last, for callers that finish a chunk later.
    """
    chunks = [samples[:1]]
    chunks += [samples[start : start + count] for start in range(1, len(samples), count)]
    ahead = []
    for chunk in [*chunks, [], []]:
        submitted = [(sample, pool.submit(read, sample)) for sample in chunk]
        yield ahead
        ahead = submitted


def collect_work(chunk: Sequence[tuple[Sample, Future]], log: RunLog) -> tuple[list[ImageWork], list[Sample]]:
    """Waits for a chunk of `read_ahead`; returns the images, and the samples of large images, which are not read yet.

    An image that cannot be read is skipped.
    """
    works = []
    slides = []
    for sample, future in chunk:
        try:
            work = future.result()
        except (UserError, OSError) as error:
            log.skip(sample.id, error)
            continue
        if work is None:
            slides.append(sample)
        else:
            works.append(work)
    return works, slides
