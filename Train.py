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

from data.options import TrainingOptions, choose_options, repeat_command, train_parser

if __name__ == "__main__":
    train_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import dataclasses
import functools
import math
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import Model
from data.confidence import calibrate, score_jobs
from data.crops import Crops, TrainingImage, draw_probabilities, whole_image
from data.curves import (
    EXAMPLE_COUNT,
    Example,
    choose_examples,
    compare_scores,
    crop_example,
    describe_epoch,
    find_rivals,
    report_training,
    save_curves,
    save_examples,
)
from data.files import UserError, hash_file, import_optional, run_script, write_whole
from data.intensity import optical_density
from data.layouts import format_names
from data.nuclei import Calibration
from data.records import (
    CHECKPOINT,
    HISTORY,
    KEPT_WEIGHTS,
    ONE_PICTURE,
    back_up_training,
    can_choose,
    can_resume,
    check_interrupted,
    check_validation_is_unseen,
    describe_run,
    find_record,
    read_history,
    read_interrupted,
    save_history,
    save_record,
)
from data.scales import Network, PredictionJob, finish_labels, make_thumbnails, run_jobs
from data.sources import Sample, find_samples
from data.stacks import find_channels
from data.truth import describe_truth, load_samples, read_prediction_row, read_true_image
from Model import keras
from Preprocessed_data import (
    find_colours,
    find_training_data,
    hold_out_kind,
    image_kind,
    prepare_image,
    split_sources,
    to_display,
)

Start = tuple[dict[str, np.ndarray], Calibration]  # scores of `score_jobs`, and the calibration they are made with


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
    # Everything that can be wrong with the options is said before the data are read.
    process, processes = join_processes()
    is_writer = process == 0
    options.check(processes)
    loggers = prepare_keras(options, tensorboard if is_writer else None)
    out = Path(out)
    samples = find_channels(find_samples(*data, with_truth=True))
    if is_writer:
        out.mkdir(parents=True, exist_ok=True)
    # The images, and on which side of the split they are.
    pairs, probabilities, record = load_data(samples, options)
    options = options.with_crops(len(record["training_ids"]))
    record |= {"options": dataclasses.asdict(options), "run_id": run_id}
    training = [pairs[image_id] for image_id in record["training_ids"]]
    validation = [pairs[image_id] for image_id in record["validation_ids"]]  # none where all are of one picture
    print(f"{len(training)} images to train on, {len(record['validation_ids'])} to validate, {', '.join(data)}")
    print(f"epochs: {options.epochs}, crops an epoch: {options.crops}")
    # The network, and the scores of the weights that it starts from.
    model, history = build_model(options, out, record, resume)
    with Model.without_data_parallel():
        plain_model = Model.plain_copy(model)  # predicts whole images
        start = score_start(plain_model, record, validation)
    if is_writer and not resume:
        (out / CHECKPOINT).unlink(missing_ok=True)  # another training left it
    # The epochs that are not done, and then the scores of the weights that are kept.
    crops = Crops(training, probabilities, options, epochs_done=len(history), process=process, processes=processes)
    keeper = KeepEpochs(out, record, history, crops, validation or training, is_writer)
    shower = ShowEpochs(keeper, plain_model, load_examples(samples, pairs, record) if is_writer else [])
    fit_epochs(model, options, shower, loggers)
    if is_writer:
        with Model.without_data_parallel():
            finish_training(plain_model, out, record, validation, start)
        (out / CHECKPOINT).unlink(missing_ok=True)
    return history


def prepare_keras(options: TrainingOptions, tensorboard: str | None) -> list[keras.callbacks.Callback]:
    """Sets seed and precision; returns the callbacks that write for TensorBoard, none without a folder for it."""
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(options.precision)
    if tensorboard is None:
        return []
    import_optional("tensorboard", "tensorboard", f"--tensorboard {tensorboard}")
    return [keras.callbacks.TensorBoard(tensorboard, write_graph=False)]


def load_data(samples: Sequence[Sample], options: TrainingOptions) -> tuple[dict[str, TrainingImage], np.ndarray, dict]:
    """Reads all images and splits them.

    Returns:
        pairs: id -> gray and labels; with the optical density of the tissue that is trained on.
        probabilities: (N,) of the training ids, how often each is drawn.
        record: what training.json says before the first epoch, with the ids of both sides.
    """
    images, labels = load_samples(samples, options.channel)
    line, warnings = describe_truth(samples, images, labels)
    merges = [sample.id for sample, image in zip(samples, images, strict=True) if find_colours(image)]
    if merges and options.channel is None:
        warnings.append(f"colours of {format_names(merges)} show different things; --channel names that of the nuclei")
    # The split.
    ids = [sample.id for sample in samples]
    if options.hold_out:
        training_ids, validation_ids = hold_out_kind(ids, images, options.hold_out)
    else:
        training_ids, validation_ids = split_sources(samples, images, options.split_seed)
    warnings += [] if validation_ids else [ONE_PICTURE]
    print("\n".join([line, *(f"warning: {warning}" for warning in warnings)]))
    if options.from_weights:
        validation = {name: image for name, image in zip(ids, images, strict=True) if name in validation_ids}
        check_validation_is_unseen(options.from_weights, validation, options.hold_out)
    # What the network sees of each image, and how often each is drawn.
    kinds = {name: image_kind(image) for name, image in zip(ids, images, strict=True)}
    with ThreadPoolExecutor() as pool:
        backgrounds = [None if options.channel else read_prediction_row(sample).get("background") for sample in samples]
        prepared = list(pool.map(prepare_image, images, backgrounds))
    pairs = {}
    for name, image, (gray, normalization, debris), image_labels in zip(ids, images, prepared, labels, strict=True):
        varies_stain = normalization.is_stained and name in training_ids
        density = optical_density(image) if varies_stain else None
        pairs[name] = TrainingImage(gray, image_labels, density, normalization.has_signal, debris)
    sources = {sample.id: sample.source for sample in samples}
    groups = [f"{kinds[name]} in {sources[name]}" for name in training_ids]
    probabilities = draw_probabilities(groups, [pairs[name].gray.shape for name in training_ids])
    split = (training_ids, validation_ids)
    return pairs, probabilities, describe_run(options, keras.backend.backend(), kinds, images, labels, split)


def load_examples(samples: Sequence[Sample], pairs: dict[str, TrainingImage], record: dict) -> list[Example]:
    """The images that are predicted after every epoch, as people look at them: validation images, if there are any."""
    samples = {sample.id: sample for sample in samples}
    validation = choose_examples(record["validation_ids"], record["validation_kinds"])
    chosen = validation or record["training_ids"][:EXAMPLE_COUNT]
    images = [to_display(read_true_image(samples[image_id], record["options"]["channel"])) for image_id in chosen]
    return [crop_example(image_id, image, *pairs[image_id][:2]) for image_id, image in zip(chosen, images, strict=True)]


def build_model(options: TrainingOptions, out: Path, record: dict, resume: bool) -> tuple[keras.Model, list[dict]]:
    """The compiled network, random, trained or of the last epoch of an interrupted training; and the history."""
    steps = options.epochs * options.steps_per_epoch
    with Model.use_all_gpus():
        model = Model.compile_unet(options.depth, options.base_filters, options.learning_rate, steps)
        if resume:
            return model, load_last_epoch(model, out, record, options.steps_per_epoch)
        if options.from_weights:
            start_from(model, options.from_weights)
        return model, []


def start_from(model: keras.Model, weights: str) -> None:
    """Copies trained weights into the compiled model; raises UserError where they do not fit."""
    trained = Model.load_unet(weights).get_weights()
    shapes = [array.shape for array in trained]
    if shapes != [array.shape for array in model.get_weights()]:
        raise UserError(f"{weights}: its network has another --depth or --base-filters; give the same")
    model.set_weights(trained)


def load_last_epoch(model: keras.Model, out: Path, record: dict, steps_per_epoch: int) -> list[dict]:
    """Loads the last epoch of an interrupted training into the compiled model; returns the history up to it."""
    record["kept"] = read_interrupted(out, record)["kept"]
    model.optimizer.build(model.trainable_variables)
    model.load_weights(out / CHECKPOINT)
    done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // steps_per_epoch
    return read_history(out / HISTORY)[:done]


class Batches(keras.utils.PyDataset):
    """The batches of `Crops`, as Keras takes them."""

    def __init__(self, crops: Crops):
        super().__init__()
        self.crops = crops

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        return self.crops[index]


class KeepEpochs(keras.callbacks.Callback):
    """After every epoch validates, and writes history, weights and what `--resume` needs."""

    def __init__(self, out, record, history, crops, validation, is_writer=True):
        super().__init__()
        self.out = out
        self.record = record  # what `load_data` returned
        self.history = history  # one dict an epoch
        self.crops = crops  # what the model is fitted to
        self.validation = validation  # pairs of gray and labels
        self.is_writer = is_writer  # only one of several processes is
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
        ids = set()
        for batch in range(max(self.batch_count - 2, 0), self.batch_count):
            image_indices, _ = self.crops.draw_images(batch)
            ids |= {self.record["training_ids"][index] for index in image_indices}
        raise UserError(
            f"the loss became NaN or infinite in epoch {len(self.history) + 1}, in the batches of "
            f"{', '.join(sorted(ids))}; {self.out} keeps the epochs before it, if there are any; look at these "
            "images, or train with a smaller --learning-rate"
        )

    def on_epoch_end(self, epoch, logs=None):
        """Validates and writes."""
        logs |= self.validate()  # TensorBoard is given what is in logs
        self.check(logs["val_loss"])  # the last batch may have broken the weights
        row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - self.started, 1)}
        row |= {name: round(float(value), 6) for name, value in sorted(logs.items())}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        rivals = find_rivals(self.history, epoch + 1, self.record["options"]["epochs"])
        best = max((earlier["val_dice"] for earlier in rivals), default=-1.0)
        self.history.append(row)
        is_kept = row["val_dice"] > best or not can_choose(self.record)
        if self.is_writer:
            with Model.without_data_parallel():
                self.write(row, is_kept)

    def write(self, row: dict, is_kept: bool) -> None:
        """Writes the files of an epoch; the checkpoint last, for it says that the rest is there."""
        if is_kept:
            with write_whole(self.out / KEPT_WEIGHTS) as file:
                Model.plain_copy(self.model).save(file)
            self.record["kept"] = row
        save_history(self.history, self.out / HISTORY)
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
        return {f"val_{name}": float(np.mean([of_image[name] for of_image in scores])) for name in scores[0]}


class ShowEpochs(keras.callbacks.Callback):
    """Behind a `KeepEpochs` shows the training: a bar for each epoch, after it a line, the curves and examples."""

    def __init__(self, keeper: KeepEpochs, plain_model: keras.Model, examples: Sequence[Example]):
        super().__init__()
        self.keeper = keeper
        self.plain_model = plain_model  # a `Model.plain_copy`, which is given the weights of each epoch
        self.examples = examples
        self.bar: tqdm | None = None  # `fit_epochs` opens it

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
        with self.bar.external_write_mode():
            print(describe_epoch(self.keeper.history, self.keeper.record), flush=True)
        self.draw(self.model)

    def draw(self, model: keras.Model) -> None:
        """Draws the curves, and what the model predicts for the examples."""
        save_curves(self.keeper.history, self.keeper.record["kept"]["epoch"], self.keeper.out)
        with Model.without_data_parallel():
            pairs = [TrainingImage(example.gray, example.truth) for example in self.examples]
            jobs = predict_images(self.plain_model, model.get_weights(), pairs, Calibration())
        labels = [finish_labels(job) for job in jobs]
        save_examples(self.examples, labels, self.keeper.history[-1]["epoch"], self.keeper.out)


def fit_epochs(model: keras.Model, options: TrainingOptions, shower: ShowEpochs, loggers: list) -> None:
    """Fits the epochs that are not done, and shows them; the process that writes has a bar in its terminal."""
    keeper = shower.keeper
    with tqdm(total=options.steps_per_epoch, unit="batch", leave=False, disable=keeper.hides_bars) as bar:
        shower.bar = bar
        if len(keeper.history) < options.epochs:
            model.fit(
                Batches(keeper.crops),
                epochs=options.epochs,
                initial_epoch=len(keeper.history),
                steps_per_epoch=options.steps_per_epoch,
                shuffle=False,
                callbacks=[keeper, shower, *loggers],
                verbose=0,
            )
        elif keeper.is_writer:
            shower.draw(model)  # as it may have been stopped before these pictures


def score_start(plain_model: keras.Model, record: dict, validation: list[TrainingImage]) -> Start | None:
    """Scores the weights that a training starts from; None for random ones, and where nothing is left to validate."""
    weights = record["options"]["from_weights"]
    if not (weights and record["validation_ids"]):
        return None
    trained = Model.load_unet(weights)
    jobs = predict_images(plain_model, trained.get_weights(), validation, trained.calibration)
    scores = score_jobs(jobs, [pair.labels for pair in validation], trained.calibration)
    means = f"Dice {scores['dice'].mean():.4f}, AP {scores['ap'].mean():.4f}"
    print(f"{weights}: {means} of whole predictions of the validation images")
    return scores, trained.calibration


def finish_training(
    plain_model: keras.Model, out: Path, record: dict, validation: list[TrainingImage], start: Start | None
) -> None:
    """Predicts the validation images with the kept weights, and adds to training.json what that tells.

    It is the calibration: chosen, if these images may do so, or that of the weights that the training started from. Of
    such a training also the scores before and after, both with the thresholds of before.
    """
    from_weights = record["options"]["from_weights"]
    if not can_choose(record) and not from_weights:
        return
    print(f"predicting the {len(validation)} validation images with the kept weights")
    former_scores, former = start or (None, None)
    arrays = Model.load_unet(out / KEPT_WEIGHTS).get_weights()
    jobs = predict_images(plain_model, arrays, validation, former or Calibration())
    truths = [pair.labels for pair in validation]
    if can_choose(record):
        calibration = calibrate(jobs, truths, former)
    else:
        calibration = Model.read_calibration(from_weights)  # nothing may choose another
    record["calibration"] = {"weights_sha256": hash_file(out / KEPT_WEIGHTS)} | dataclasses.asdict(calibration)
    if former is not None:
        record["fine_tuning"] = compare_scores(former_scores, score_jobs(jobs, truths, former))
    save_record(out, record)


def predict_images(
    plain_model: keras.Model, arrays: list[np.ndarray], pairs: Sequence[TrainingImage], calibration: Calibration
) -> list[PredictionJob]:
    """Predicts images, each at all scales that it asks for; the model is given these arrays of weights."""
    plain_model.set_weights(arrays)
    jobs = [
        PredictionJob(pair.gray, has_signal=pair.has_signal, debris=pair.debris, thumbnails=make_thumbnails(pair.gray))
        for pair in pairs
    ]
    run_jobs(Network(functools.partial(Model.predict_probability, plain_model), calibration), jobs)
    return jobs


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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return train_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    args.precision = args.precision or Model.fastest_precision()
    data = args.data or find_training_data()
    out = Path(args.out)
    run_id = uuid.uuid4().hex
    if args.resume:
        check_interrupted(out)
        run_id = find_record(out / KEPT_WEIGHTS).get("run_id")
    elif process_number() == 0:
        back_up_training(out, args.overwrite, args.from_weights)
    try:
        train(data, out, choose_options(args), run_id, args.resume, args.tensorboard)
    except KeyboardInterrupt:
        if not can_resume(out, run_id):
            raise
        command = repeat_command("Train.py", argv, "--resume", without=["--resume", "--overwrite"])
        raise KeyboardInterrupt(f"{out} keeps the epochs that are done; continue with: {command}") from None
    if process_number() == 0:
        report_training(out, data)


if __name__ == "__main__":
    run_script(main)
