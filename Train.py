"""Trains the U-Net on augmented crops and keeps the epoch that is best on whole validation images.

In:  images with their truth (folders or .zip files, see data/layouts.py). Out, in --out (default weights/trained):
     unet.keras     of the last fifth of the epochs the best by mean validation Dice at native size (with
                    --hold-out, or images of one picture only, the last epoch); one file, all that prediction needs
     history.csv    one row per epoch; accuracy.png and loss.png draw it
     examples.png   what the last epoch predicts for validation images
     training.json  options, ids on both sides of the split, versions, data fingerprint, kept epoch, thresholds;
                    with --from the scores before and after
     last.weights.h5  the last epoch with optimizer, for --resume; removed when training ends
On several machines, one process for each GPU has KERAS_BACKEND=jax, KERAS_DISTRIBUTION_JOB_ADDRESSES=HOST:PORT of the
first, KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID, which is 0 for the one that writes the files.

    python Train.py
    python Train.py --data data/stage1_train.zip data/tnbc.zip --epochs 30 --out my_weights
    python Train.py --resume
    python Train.py --from weights/unet.keras --data my_images --out my_weights
"""

from data.options import FINE_TUNING, TrainingOptions, train_parser

if __name__ == "__main__":
    train_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import Model
from data.augment import draw_crop, draw_empty_crop, make_target, vary_stain, whole_image
from data.confidence import calibrate, score_jobs
from data.curves import (
    CURVES,
    EXAMPLE_COUNT,
    EXAMPLES,
    Example,
    choose_examples,
    compare_scores,
    crop_example,
    describe_change,
    read_history,
    save_curves,
    save_examples,
    save_history,
)
from data.files import UserError, hash_file, run_script, write_whole
from data.images import read_image
from data.intensity import optical_density
from data.nuclei import Calibration, common_diameter
from data.pictures import show_pictures
from data.scales import Network, PredictionJob, finish_labels, make_thumbnails, run_jobs
from data.sources import Sample, find_samples
from data.truth import describe_truth, load_samples
from Model import keras
from Preprocessed_data import (
    STAINED_TISSUE,
    TRAINING_RECORD,
    find_record,
    find_training_data,
    hold_out_kind,
    image_kind,
    read_training_record,
    split_sources,
    to_display,
    to_grayscale,
)

FIXED_EDGES_SHARE = 0.2  # of the batches, the last ones, in which neither blur nor gamma moves edges
VARIED_STAIN_SHARE = 0.5  # of the crops of stained tissue; the others are as prediction sees them
EMPTY_SHARE = 0.04  # of the crops have no nuclei and no image
ONE_PICTURE = (
    "all images are of one picture, so none is left to validate on; the scores are of the images that are trained on "
    "and say nothing of others, the last epoch is kept, the thresholds are the usual ones; add an image of another"
)
WIDE_NUCLEI = 33  # pixels; images of wider nuclei are shown at half their size too
# Files in --out.
WEIGHTS = "unet.keras"
HISTORY = "history.csv"
CHECKPOINT = "last.weights.h5"


class Pair(NamedTuple):
    """A whole image as the network sees it, and its nuclei."""

    gray: np.ndarray  # (H, W) float32 in [0, 1]
    labels: np.ndarray  # (H, W) int32
    density: np.ndarray | None = None  # (H, W, 3) of `optical_density`, of stained tissue to train on


def train(
    data: Sequence[str],
    out: str,
    options: TrainingOptions,
    run_id: str,
    resume: bool = False,
    tensorboard: str | None = None,
) -> list[dict]:
    """Trains and writes everything to `out`.

    Args:
        data: sources of images with their truth.
        out: folder to write to.
        options: of the training.
        run_id: names this training in training.json; with `resume` it is that of the interrupted one.
        resume: whether to continue an interrupted training in `out`.
        tensorboard: folder of the scores for TensorBoard; None: they are not written.

    Returns:
        history: one dict per epoch.

    Raises:
        UserError: data that cannot be trained on, or options that do not fit.
    """
    process, processes = join_processes()
    is_writer = process == 0
    options.check(processes)
    loggers = make_loggers(tensorboard if is_writer else None)
    samples = find_samples(*data, with_truth=True)
    out = Path(out)
    if is_writer:
        out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(options.precision)

    pairs, probabilities, record = load_data(samples, options)
    options = options.with_crops(len(record["training_ids"]))
    record |= {"options": dataclasses.asdict(options), "run_id": run_id}
    training = [pairs[name] for name in record["training_ids"]]
    validation = [pairs[name] for name in record["validation_ids"]] or training
    counts = f"{len(training)} images to train on, {len(record['validation_ids'])} to validate"
    print(f"{counts}, {', '.join(map(str, data))}")
    print(f"epochs: {options.epochs}, crops an epoch: {options.crops}")

    model, history = build_model(options, out, record, resume)
    with without_data_parallel():
        network = Model.plain_copy(model)  # predicts whole images
        has_start = options.from_weights and record["validation_ids"]
        start = score_start(network, options.from_weights, validation) if has_start else None
    if is_writer and not resume:
        (out / CHECKPOINT).unlink(missing_ok=True)  # of another training

    done = len(history)
    batches = Crops(training, probabilities, options, epochs_done=done, process=process, processes=processes)
    keeper = KeepEpochs(out, record, history, batches, validation, is_writer)
    shower = ShowEpochs(keeper, network, load_examples(samples, pairs, record) if is_writer else [])
    fit_epochs(model, options, shower, loggers)
    if is_writer:
        with without_data_parallel():
            finish_training(network, out, record, validation, start)
        (out / CHECKPOINT).unlink(missing_ok=True)
    return history


def fit_epochs(model: keras.Model, options: TrainingOptions, shower: "ShowEpochs", loggers: list) -> None:
    """Fits the epochs that are not done, and shows them; the process that writes has a bar in its terminal."""
    keeper = shower.keeper
    done = len(keeper.history)
    with tqdm(total=options.steps_per_epoch, unit="batch", leave=False, disable=keeper.hides_bars) as shower.bar:
        if done < options.epochs:
            model.fit(
                keeper.batches,
                epochs=options.epochs,
                initial_epoch=done,
                steps_per_epoch=options.steps_per_epoch,
                shuffle=False,
                callbacks=[keeper, shower, *loggers],
                verbose=0,
            )
        elif keeper.is_writer:
            shower.draw(model)  # as it may have been stopped before these pictures


def build_model(options: TrainingOptions, out: Path, record: dict, resume: bool) -> tuple[keras.Model, list[dict]]:
    """The compiled network with random weights, with trained ones, or with those of the last epoch.

    Returns:
        model, and the history until now.
    """
    with use_all_gpus():
        model = Model.compile_unet(
            options.depth, options.base_filters, options.learning_rate, options.epochs * options.steps_per_epoch
        )
        if resume:
            return model, load_last_epoch(model, out, record, options.steps_per_epoch)
        if options.from_weights:
            start_from(model, options.from_weights)
        return model, []


def load_data(samples: Sequence[Sample], options: TrainingOptions) -> tuple[dict[str, Pair], np.ndarray, dict]:
    """Reads all images and splits them.

    Returns:
        pairs: id -> gray and labels; with the optical density of the tissue that is trained on.
        probabilities: (N,) of the training ids, how often each is drawn.
        record: what training.json says before the first epoch, with the ids of both sides.
    """
    images, labels = load_samples(samples)
    line, warnings = describe_truth(samples, images, labels)
    print(line)
    for warning in warnings:
        print(f"warning: {warning}")
    ids = [sample.id for sample in samples]
    if options.hold_out:
        split = hold_out_kind(ids, images, options.hold_out)
    else:
        split = split_sources(samples, images, options.seed)
    if not split[1]:
        print(f"warning: {ONE_PICTURE}")
    with ThreadPoolExecutor() as pool:
        grays = list(pool.map(to_grayscale, images))
    pairs = {name: Pair(*pair) for name, *pair in zip(ids, grays, labels, strict=True)}
    training_images = [images[ids.index(name)] for name in split[0]]
    for name, image in zip(split[0], training_images, strict=True):
        if image_kind(image) == STAINED_TISSUE:
            pairs[name] = pairs[name]._replace(density=optical_density(image))
    sources = dict(zip(ids, (sample.source for sample in samples), strict=True))
    probabilities = draw_probabilities(training_images, [sources[name] for name in split[0]])
    record = describe_run(options, ids, images, labels, split)
    if options.from_weights:
        check_validation_is_unseen(options.from_weights, record["validation_ids"])
        record["from_weights_sha256"] = hash_file(options.from_weights)
    return pairs, probabilities, record


def describe_run(options: TrainingOptions, ids: Sequence[str], images, labels, split) -> dict:
    """What training.json says before the first epoch."""
    digest = hashlib.sha256()
    for name, image, image_labels in zip(ids, images, labels, strict=True):
        digest.update(name.encode() + image.tobytes() + image_labels.tobytes())
    return {
        "options": dataclasses.asdict(options),
        "images": len(ids),
        "data_sha256": digest.hexdigest(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            "numpy": np.__version__,
        },
        "training_ids": list(split[0]),
        "validation_ids": list(split[1]),
        "validation_kinds": [image_kind(images[ids.index(name)]) for name in split[1]],
    }


def draw_probabilities(images: Sequence[np.ndarray], sources: Sequence[str]) -> np.ndarray:
    """How often each image is drawn: a kind with n images in a source is drawn in proportion to sqrt(n).

    Within such a kind the same goes for the sizes, for a size often means a microscope. So what is rare
    is seen often enough to be learned, and not so often that its few images are learned by heart.

    Args:
        images: N of (H, W) or (H, W, 3).
        sources: of each image, where it was found.

    Returns:
        (N,) float, sums to 1.
    """
    kinds = np.array([f"{image_kind(image)} in {source}" for image, source in zip(images, sources, strict=True)])
    sizes = np.array([str(image.shape[:2]) for image in images])
    weights = np.zeros(len(images))
    for kind in set(kinds):
        chosen = np.flatnonzero(kinds == kind)
        _, size, count = np.unique(sizes[chosen], return_inverse=True, return_counts=True)
        # The weights of a size add up to sqrt(count) in proportion, those of the kind to sqrt(len(chosen)).
        weights[chosen] = np.sqrt(len(chosen)) / np.sqrt(count).sum() / np.sqrt(count[size])
    return weights / weights.sum()


class Crops(keras.utils.PyDataset):
    """Augmented crops for the whole training, drawn by (seed, batch id) and nothing else.

    A batch holds gray (batch, size, size, 1) and targets (batch, size, size, 3), as in
    `make_target`. Each of several processes draws every n-th batch; the batches of epochs that are
    done are left out. In the last ones, FIXED_EDGES_SHARE, blur and gamma no longer move the edges.
    """

    def __init__(self, pairs, probabilities, options, *, epochs_done=0, process=0, processes=1):
        super().__init__()
        self.pairs = pairs  # of each image
        self.probabilities = probabilities  # of drawing it
        self.options = options
        self.batch_size = options.batch_size // processes
        self.has_wide_nuclei = [common_diameter(pair.labels) > WIDE_NUCLEI for pair in pairs]
        batch_count = options.epochs * options.steps_per_epoch * processes
        self.batch_ids = range(process, batch_count, processes)[epochs_done * options.steps_per_epoch :]
        self.fixed_edges_from = (1 - FIXED_EDGES_SHARE) * batch_count

    def __len__(self):
        return len(self.batch_ids)

    def draw_images(self, index: int) -> tuple[np.ndarray, np.random.Generator]:
        """Indices of the images of a batch, and the generator that also augments them."""
        rng = np.random.default_rng([self.options.seed, self.batch_ids[index]])
        return rng.choice(len(self.pairs), self.batch_size, p=self.probabilities), rng

    def __getitem__(self, index):
        image_indices, rng = self.draw_images(index)
        fixed_edges = self.batch_ids[index] >= self.fixed_edges_from
        grays = []
        targets = []
        for image_index in image_indices:
            gray, labels = self.draw(image_index, rng, fixed_edges)
            grays.append(gray)
            targets.append(make_target(labels))
        return np.stack(grays)[..., None], np.stack(targets)

    def draw(self, image_index: int, rng: np.random.Generator, fixed_edges: bool) -> tuple[np.ndarray, np.ndarray]:
        """Gray and labels of one crop, of the image or of none."""
        size = self.options.crop_size
        if rng.random() < EMPTY_SHARE:
            return draw_empty_crop(size, rng, fixed_edges)
        gray, labels, density = self.pairs[image_index]
        if density is not None and rng.random() < VARIED_STAIN_SHARE:
            gray = vary_stain(density, rng)
        is_wide = self.has_wide_nuclei[image_index]
        return draw_crop(gray, labels, size, rng, has_wide_nuclei=is_wide, fixed_edges=fixed_edges)


class KeepEpochs(keras.callbacks.Callback):
    """After every epoch validates, and writes history, weights and what `--resume` needs."""

    def __init__(self, out, record, history, batches, validation, is_writer=True):
        super().__init__()
        self.out = out
        self.record = record  # of `describe_run`
        self.history = history  # one dict an epoch
        self.batches = batches  # that the model is fitted to
        self.validation = validation  # of each image
        self.is_writer = is_writer  # of several processes one writes
        self.hides_bars = None if is_writer else True  # None: where there is no terminal
        self.batch_count = 0  # in this run

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock of the epoch."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Counts the batch and checks its loss."""
        self.batch_count += 1
        self.check(logs["loss"])

    def check(self, loss: float) -> None:
        """Stops the training where the loss is infinite or NaN; the epoch leaves no trace."""
        if math.isfinite(loss):
            return
        # The step before may have broken the weights without its own loss showing it.
        names = set()
        for index in range(max(self.batch_count - 2, 0), self.batch_count):
            image_indices, _ = self.batches.draw_images(index)
            names |= {self.record["training_ids"][i] for i in image_indices}
        raise UserError(
            f"the loss became NaN or infinite in epoch {len(self.history) + 1}, in the batches of "
            f"{', '.join(sorted(names))}; {self.out} keeps the epochs before it; look at these "
            "images, or train with a smaller --learning-rate"
        )

    def on_epoch_end(self, epoch, logs=None):
        """Validates and writes."""
        logs |= self.validate()  # TensorBoard is given what is in logs
        self.check(logs["val_loss"])  # the last batch may have broken the weights
        row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - self.started, 1)}
        row |= {name: round(float(value), 6) for name, value in sorted(logs.items())}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        # Outlines become those that people draw only in the last epochs, so these compete among themselves.
        fixed_from = (1 - FIXED_EDGES_SHARE) * self.record["options"]["epochs"]
        rivals = [earlier for earlier in self.history if (earlier["epoch"] > fixed_from) == (epoch + 1 > fixed_from)]
        best = max((earlier["val_dice"] for earlier in rivals), default=-1.0)
        self.history.append(row)
        is_kept = row["val_dice"] > best or not can_choose(self.record)
        if self.is_writer:
            with without_data_parallel():
                self.write(row, is_kept)

    def write(self, row: dict, is_kept: bool) -> None:
        """Writes the files of an epoch; the checkpoint last, for it says that the rest is there."""
        if is_kept:
            with write_whole(self.out / WEIGHTS) as file:
                Model.plain_copy(self.model).save(file)
            self.record["kept"] = row
        with write_whole(self.out / HISTORY) as file:
            save_history(self.history, file)
        save_record(self.out, self.record)
        with write_whole(self.out / CHECKPOINT) as file:
            self.model.save_weights(file)

    def validate(self) -> dict[str, float]:
        """Means over whole images, one at a time: fit() takes no batches of changing shape."""
        multiple = 2 ** Model.depth_of(self.model)
        scores = []
        for pair in tqdm(self.validation, "validating", unit="image", leave=False, disable=self.hides_bars):
            self.model.reset_metrics()  # before 2026 test_on_batch went on from the image before
            batch = whole_image(pair.gray, pair.labels, multiple)
            scores.append(self.model.test_on_batch(*batch, return_dict=True))
        return {f"val_{name}": float(np.mean([s[name] for s in scores])) for name in scores[0]}


class ShowEpochs(keras.callbacks.Callback):
    """Shows a training while it runs: a bar for each epoch, after it a line, the curves and examples.

    It stands behind a `KeepEpochs`. The training is the same without it.
    """

    def __init__(self, keeper: KeepEpochs, network: keras.Model, examples: Sequence[Example]):
        super().__init__()
        self.keeper = keeper
        self.network = network  # of `Model.plain_copy`; is given the weights of the epoch
        self.examples = examples
        self.bar = None  # of `fit_epochs`

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the bar anew."""
        self.bar.reset()
        self.bar.set_description(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar; the loss is the mean of the epoch until now."""
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        """Prints a line and draws."""
        if not self.keeper.is_writer:
            return
        row = self.keeper.history[-1]
        kept_epoch = self.keeper.record["kept"]["epoch"]
        kept = "kept" if kept_epoch == row["epoch"] else f"epoch {kept_epoch} stays kept"
        scores = f"loss {row['loss']:.4f}, Dice {row['dice']:.4f}, val_dice {row['val_dice']:.4f}"
        with self.bar.external_write_mode():
            print(f"epoch {row['epoch']}/{self.params['epochs']}: {row['seconds']} s, {scores}, {kept}", flush=True)
        self.draw(self.model)

    def draw(self, model: keras.Model) -> None:
        """Draws the curves, and what the model predicts for the examples."""
        save_curves(self.keeper.history, self.keeper.record["kept"]["epoch"], self.keeper.out)
        with without_data_parallel():
            self.network.set_weights(model.get_weights())
            jobs = predict_grays(self.network, [example.gray for example in self.examples])
        labels = [finish_labels(job) for job in jobs]
        save_examples(self.examples, labels, self.keeper.history[-1]["epoch"], self.keeper.out)


def can_choose(record: dict) -> bool:
    """Whether validation images choose epoch and thresholds: not a kind held out, there to be scored on, and not none.

    Where they do not, the last epoch is kept.
    """
    return bool(record["validation_ids"]) and not record["options"]["hold_out"]


class Start(NamedTuple):
    """What the weights that a training starts from reach on its validation images."""

    scores: dict[str, np.ndarray]  # (images,) of `score_jobs`
    calibration: Calibration


def score_start(network: keras.Model, weights: str, validation: Sequence[Pair]) -> Start:
    """Scores the weights that a training starts from; the network is given them."""
    calibration = Model.read_calibration(weights)
    jobs = predict_validation(network, weights, validation)
    scores = score_jobs(jobs, [pair.labels for pair in validation], calibration)
    print(f"{weights}: Dice {scores['dice'].mean():.4f}, AP {scores['ap'].mean():.4f} on the validation images")
    return Start(scores, calibration)


def finish_training(
    network: keras.Model, out: Path, record: dict, validation: Sequence[Pair], start: Start | None
) -> None:
    """Adds to training.json what the kept weights tell of the validation images.

    That is the calibration, if they may choose it. And where the training started from trained weights, it is the
    scores before and after, both with the thresholds of before.
    """
    has_calibration = can_choose(record)
    if not has_calibration and start is None:
        return
    print("predicting the validation images with the kept weights")
    jobs = predict_validation(network, out / WEIGHTS, validation)
    truths = [pair.labels for pair in validation]
    if has_calibration:
        calibration = calibrate([job.probabilities for job in jobs], [job.scales for job in jobs], truths)
        record["calibration"] = {"weights_sha256": hash_file(out / WEIGHTS)} | dataclasses.asdict(calibration)
    if start is not None:
        record["fine_tuning"] = compare_scores(start.scores, score_jobs(jobs, truths, start.calibration))
    save_record(out, record)


def predict_validation(network: keras.Model, weights: str | Path, validation: Sequence[Pair]) -> list[PredictionJob]:
    """Gives these weights to a network, which predicts the validation images."""
    network.set_weights(Model.load_unet(weights).get_weights())
    return predict_grays(network, [pair.gray for pair in validation])


def predict_grays(network: keras.Model, grays: Sequence[np.ndarray]) -> list[PredictionJob]:
    """Predicts grays (H, W), each at all scales that it asks for."""
    jobs = [PredictionJob(gray, thumbnails=make_thumbnails(gray)) for gray in grays]
    run_jobs(Network(functools.partial(Model.predict_probability, network)), jobs)
    return jobs


def load_examples(samples: Sequence[Sample], pairs: dict[str, Pair], record: dict) -> list[Example]:
    """The images that are predicted after every epoch, as people look at them: validation images, if there are any."""
    files = {sample.id: sample.image for sample in samples}
    examples = []
    chosen = choose_examples(record["validation_ids"], record["validation_kinds"])
    for name in chosen or record["training_ids"][:EXAMPLE_COUNT]:
        picture = to_display(read_image(files[name]))
        examples.append(crop_example(name, picture, pairs[name].gray, pairs[name].labels))
    return examples


def make_loggers(tensorboard: str | None) -> list[keras.callbacks.Callback]:
    """Keras's callback that writes scores for TensorBoard to a folder, if one is named.

    Raises:
        UserError: the package is not installed.
    """
    if tensorboard is None:
        return []
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"--tensorboard {tensorboard} needs the package tensorboard: pip install tensorboard")
    return [keras.callbacks.TensorBoard(tensorboard, write_graph=False)]


def save_record(out: Path, record: dict) -> None:
    """Writes training.json."""
    with write_whole(out / TRAINING_RECORD) as file:
        file.write_text(json.dumps(record, indent=1) + "\n")


def keep_former(out: Path, overwrite: bool) -> None:
    """Copies the files of a finished training in the folder to *.before.

    Raises:
        UserError: there is one, and nobody said that it may be replaced.
    """
    is_finished = (out / TRAINING_RECORD).is_file() and not (out / CHECKPOINT).is_file()
    if not is_finished:
        return
    if not overwrite:
        raise UserError(
            f"{out} holds a finished training; name another --out, or give --overwrite, which keeps it as *.before"
        )
    for name in (WEIGHTS, HISTORY, TRAINING_RECORD):
        if (out / name).is_file():
            shutil.copy2(out / name, out / f"{name}.before")


def check_validation_is_unseen(weights: str, validation_ids: Sequence[str]) -> None:
    """Raises UserError where the weights that a training starts from know images that are to validate it."""
    seen = sorted(set(find_record(weights).get("training_ids", [])) & set(validation_ids))
    if seen:
        raise UserError(
            f"{weights}: it was trained on {len(seen)} of the images to validate on, first {seen[0]}; "
            "give the --seed and --data of its training"
        )


def start_from(model: keras.Model, weights: str) -> None:
    """Copies trained weights into the compiled model; raises UserError where they do not fit."""
    trained = Model.load_unet(weights).get_weights()
    shapes = [array.shape for array in trained]
    if shapes != [array.shape for array in model.get_weights()]:
        raise UserError(f"{weights}: its network has another --depth or --base-filters; give the same")
    model.set_weights(trained)


def load_last_epoch(model: keras.Model, out: Path, record: dict, steps_per_epoch: int) -> list[dict]:
    """Loads the last epoch of an interrupted training into the compiled model.

    Returns:
        The history up to that epoch.

    Raises:
        UserError: no interrupted training in the folder, or its options or data were others.
    """
    if not (out / CHECKPOINT).is_file():
        raise UserError(f"{out}: no interrupted training here; leave out --resume")
    before = read_training_record(out / TRAINING_RECORD)
    other_data = UserError(f"{out}: that training had other data; name the same --data, with the same files in it")
    if before.get("data_sha256") != record["data_sha256"]:
        raise other_data
    if before.get("options") != record["options"]:
        raise UserError(f"{out}: that training had other options: {before.get('options')}; give the same")
    if before.get("from_weights_sha256") != record.get("from_weights_sha256"):
        raise UserError(f"{out}: that training started from other weights; name the same file in --from")
    if before.get("validation_ids") != record["validation_ids"]:
        raise other_data
    record["kept"] = before["kept"]
    model.optimizer.build(model.trainable_variables)
    model.load_weights(out / CHECKPOINT)
    done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // steps_per_epoch
    return read_history(out / HISTORY)[:done]


def can_resume(out: Path, run_id: str) -> bool:
    """Whether the folder holds at least one epoch of this training, and not its end."""
    if not ((out / CHECKPOINT).is_file() and (out / TRAINING_RECORD).is_file()):
        return False
    return read_training_record(out / TRAINING_RECORD).get("run_id") == run_id


def join_processes() -> tuple[int, int]:
    """Joins the training processes that the environment names: (number of this one, of all).

    Keras's own variables say so, and its JAX backend does the work; without them this is all.
    """
    count = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    if count == 1:
        return 0, 1
    if keras.backend.backend() != "jax":
        raise UserError("training in several processes needs KERAS_BACKEND=jax in each of them")
    keras.distribution.initialize()
    devices = len(keras.distribution.list_devices())
    if devices != count:
        raise UserError(
            f"{count} processes see {devices} devices; each needs one: name it in "
            "CUDA_VISIBLE_DEVICES, or start a process for each"
        )
    # Each process draws its own crops, so there is nothing to share out.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return process_number(), count


def process_number() -> int:
    """0 for the process that writes the files, which is the only one unless there are several."""
    return int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))


@contextlib.contextmanager
def without_data_parallel() -> Iterator[None]:
    """Lets one process work without the others: with them, each new array waits for theirs."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def use_all_gpus() -> contextlib.AbstractContextManager:
    """A scope to build the model in: with TensorFlow it puts a copy on each of several GPUs."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow  # Keras has no function of its own for this

    devices = [device.name for device in tensorflow.config.list_logical_devices("GPU")]
    if len(devices) < 2:
        return contextlib.nullcontext()
    print(f"training on {len(devices)} GPUs")
    return tensorflow.distribute.MirroredStrategy(devices).scope()


def report(out: Path, data: Sequence[str]) -> None:
    """Says what a training has reached and how to use its weights, and shows its pictures."""
    record = read_training_record(out / TRAINING_RECORD)
    kept = record["kept"]
    scored = "validation Dice" if record["validation_ids"] else "Dice on the images trained on"
    print(f"kept epoch {kept['epoch']}: {scored} {kept['val_dice']:.4f}")
    for line in describe_change(record.get("fine_tuning", {}), record["options"]["from_weights"]):
        print(line)
    pictures = [out / name for name in (*CURVES, EXAMPLES)]
    print(f"saved the weights to {out / WEIGHTS}, pictures to {', '.join(map(str, pictures))}")
    weights = shlex.quote(str(out / WEIGHTS))
    print(f"use them:     python Predict_masks.py --data IMAGES --weights {weights}")
    print(f"score them:   python Main.py --data {shlex.quote(data[0])} --weights {weights}")
    comparison = "python Evaluate_model.py --truth IMAGES --predicted PREDICTED --compare OTHERS_PREDICTED"
    print(f"compare them, on images that did not choose the epoch: {comparison}")
    print(
        f"ship them:    with {TRAINING_RECORD} beside them, or python Model.py --export bioimageio --weights {weights}"
    )
    show_pictures(*pictures)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return train_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = vars(parse_args(argv))
    args["precision"] = args["precision"] or Model.fastest_precision()
    defaults = FINE_TUNING if args["from_weights"] else vars(TrainingOptions())
    for name in FINE_TUNING:
        if args[name] is None:
            args[name] = defaults[name]
    data = args.pop("data") or find_training_data()
    out = Path(args.pop("out"))
    resume = args.pop("resume")
    overwrite = args.pop("overwrite")
    tensorboard = args.pop("tensorboard")
    if not resume and process_number() == 0:
        keep_former(out, overwrite)
    run_id = uuid.uuid4().hex
    if resume:
        run_id = find_record(out / WEIGHTS).get("run_id")
    try:
        train(data, out, TrainingOptions(**args), run_id, resume, tensorboard)
    except KeyboardInterrupt:
        if not can_resume(out, run_id):
            raise
        words = list(sys.argv[1:] if argv is None else argv)
        if not resume:
            words.append("--resume")
        command = f"python Train.py {shlex.join(words)}"
        raise KeyboardInterrupt(f"{out} keeps the epochs that are done; continue with: {command}") from None
    if process_number() == 0:
        report(out, data)


if __name__ == "__main__":
    run_script(main)
