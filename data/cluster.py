"""Hands images to the workers of a running Dask cluster.

In:  ids, and a script whose function `predict_on_worker` the workers call with some of them.
Out: what that function returned: ids that are done, and those that were skipped with the reason.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from tqdm import tqdm

from data.files import DISK_FULL_ERRORS, UserError
from data.options import PredictionOptions
from data.runs import RunLog
from data.sources import Sample

CONNECT_SECONDS = 10  # to wait for a scheduler
MAX_CHUNK = 8  # images in one call
CHUNKS_PER_WORKER = 4  # at least, so that all workers end at about the same time

Answer = tuple[list[str], dict[str, str]]  # ids done; id -> why it was skipped


def predict_on_cluster(
    samples: Sequence[Sample], options: PredictionOptions, paths: Sequence[str | Path], script: str, address: str
) -> Answer:
    """Predicts images by the workers of a running Dask cluster, which write the files.

    All workers need the packages of requirements.txt, and the script's folder and the paths under the same names.

    Args:
        samples: the images.
        options: how they are to be seen, and which nuclei are kept.
        paths: of the weights, of the folder to write to, and of the sources.
        script: the file that holds `predict_on_worker`.
        address: of the scheduler.

    Returns:
        ids written, sorted; and of those skipped id -> reason.
    """
    run_id = str(time.time_ns())  # tells this run from others of the same workers
    arguments = [run_id, json.dumps(dataclasses.asdict(options)), *map(os.path.abspath, paths)]
    ids = [sample.id for sample in samples]
    answers = map_on_cluster(ids, Path(script).resolve(), arguments, address)
    return collect_answers(answers, len(ids))


def map_on_cluster(ids: Sequence[str], script: Path, arguments: Sequence[str], address: str) -> Iterator[Answer]:
    """Has the workers call `predict_on_worker(ids, *arguments)` of a script on chunks of the ids.

    A chunk whose worker dies goes to another worker.

    Args:
        ids: of all images.
        script: the file that holds the function, under the same path on every worker.
        arguments: of the function; the files and folders among them must be seen by every worker.
        address: of the scheduler.

    Yields:
        The answer of each call, in the order in which they end.

    Raises:
        UserError: no distributed here, no scheduler there, or workers that cannot work.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise UserError("--scheduler needs Dask; pip install distributed") from error
    folder = str(script.parent)
    paths = [argument for argument in arguments if Path(argument).is_absolute()]
    module = script.stem

    def predict_chunk(chunk: list[str]) -> Answer:
        """Runs on a worker: imports the script and calls its function."""
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(module).predict_on_worker(chunk, *arguments)

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        advice = "no Dask scheduler answers; dask scheduler starts one"
        raise UserError(f"{address}: {advice}") from error
    with client:
        workers = max(len(client.nthreads()), 1)  # those of a queue may come later
        chunk_size = max(min(len(ids) // (CHUNKS_PER_WORKER * workers), MAX_CHUNK), 1)
        chunks = [ids[start : start + chunk_size] for start in range(0, len(ids), chunk_size)]
        for future in as_completed(client.map(predict_chunk, chunks, pure=False)):
            with named_worker_errors(address, [folder, *paths]):
                answer = future.result()
            yield answer


def collect_answers(answers: Iterable[Answer], count: int) -> Answer:
    """The answers of all calls in one, with a progress bar of `count` images; what was skipped is named on stderr."""
    log = RunLog()
    with tqdm(total=count, desc="predicting", unit="image", disable=None) as bar:
        for written, skipped in answers:
            log.written += written
            for image_id, reason in skipped.items():
                log.skip(image_id, reason)
            bar.update(len(written) + len(skipped))
    return log.answer()


@contextlib.contextmanager
def named_worker_errors(address: str, paths: Sequence[str]) -> Iterator[None]:
    """Turns what a worker raises into a `UserError` that names the scheduler and what it needs."""
    from distributed import KilledWorker

    try:
        yield
    except (KilledWorker, CancelledError) as error:
        reason = f"the scheduler or workers die again and again ({error})"
        raise UserError(f"{address}: {reason}") from error
    except (ImportError, OSError, UserError) as error:
        reason = f"a worker failed ({type(error).__name__}: {error})"
        if getattr(error, "errno", None) not in DISK_FULL_ERRORS:
            reason += f"; it needs requirements.txt installed and, as here, {', '.join(paths)}"
        raise UserError(f"{address}: {reason}") from error
