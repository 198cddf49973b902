"""Trains the U-Net on augmented crops and keeps the epoch that is best on whole validation images.

In:  images with masks (Kaggle folder or .zip). Out, in --out (default weights/):
     unet.keras     the best epoch by mean validation Dice at native size (with --hold-out the
                    last epoch); one file, enough alone
     history.csv    a row an epoch; accuracy.png and loss.png draw it
     training.json  options, ids on both sides of the split, versions, data fingerprint, kept epoch
     last.weights.h5  the last epoch with optimizer, for --resume; removed when training ends

    python Train.py
    python Train.py --data data/stage1_train.zip --epochs 30 --out weights
    python Train.py --resume
"""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import keras
import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage import transform

import Model
from Preprocessed_data import (
    CACHE,
    SEED,
    WIDE_NUCLEI,
    Sample,
    common_diameter,
    find_data,
    halve,
    hold_out_kind,
    image_kind,
    load_samples,
    open_source,
    read_record,
    run_script,
    show_pictures,
    split_data,
    to_grayscale,
    write_whole,
)

EPOCHS = 30
CROPS = 2560  # crops an epoch
BATCH_SIZE = 8
IMAGE_SIZE = 256  # pixels, side of a crop
LEARNING_RATE = 2e-3
PRECISION = "mixed_bfloat16"  # faster than float32 where the processor has bfloat16 instructions
OUT = "weights"
SCALES = (0.5, 2.0)  # of the magnification
GAMMAS = (0.5, 1.5)  # above 1 dim rims fade
AS_SEEN = 0.2  # share of the batches, the last ones, whose edges are as people saw them
CONTRASTS = (0.6, 1.0)  # share of the range from black to white that is used
SURROUNDINGS = 41  # pixels, side of the square around a pixel; twice the width of a common nucleus
HAZE = (0.1, 0.7)  # share of the light that the thickest cloud takes
CLOUDS = (6, 64)  # pixels from one to the next
PHOTONS = (15, 500)  # counted in a pixel as bright as can be: few make large nuclei look grained
BORDER_WIDTH = 5  # pixels; nuclei closer than this have a border between them
NUCLEUS_SHARE = 0.5  # of the crops, centred on a nucleus: large images are mostly background


class Crops(keras.utils.PyDataset):
    """Augmented crops for the whole training, drawn by (seed, batch number) and nothing else.

    A batch holds gray (batch, size, size, 1) and truth (batch, size, size, 3), as in
    `make_truth`. Their numbers go on where an interrupted run stopped; each of several processes
    has its own. From the number `as_seen_from` on, blur and gamma no longer move the edges.
    """

    def __init__(
        self, pairs, weights, *, size, batch_size, seed, numbers: range, as_seen_from=math.inf
    ):
        super().__init__()
        self.pairs, self.weights = pairs, weights  # gray and labels of each image; shares
        self.wide = [common_diameter(labels) > WIDE_NUCLEI for _, labels in pairs]
        self.size, self.batch_size, self.seed, self.numbers = size, batch_size, seed, numbers
        self.as_seen_from = as_seen_from

    def __len__(self):
        return len(self.numbers)

    def choose(self, index):
        """The images of a batch, and the generator that goes on to augment them."""
        rng = np.random.default_rng([self.seed, self.numbers[index]])
        return rng.choice(len(self.pairs), self.batch_size, p=self.weights), rng

    def __getitem__(self, index):
        chosen, rng = self.choose(index)
        as_seen = self.numbers[index] >= self.as_seen_from
        crops = [augment(*self.pairs[i], self.size, rng, self.wide[i], as_seen) for i in chosen]
        gray = np.stack([gray for gray, _ in crops])[..., None]
        return gray, np.stack([make_truth(labels) for _, labels in crops])


def whole_image(gray: np.ndarray, labels: np.ndarray, multiple: int):
    """A validation image at its own size as a batch of one, padded to what the network takes.

    Returns:
        gray (1, H', W', 1) and truth (1, H', W', 3), H' and W' the next multiples.
    """
    pad = [(0, -side % multiple) for side in gray.shape]
    # Padding looks as if the image went on, and has 0 in the channel of pixels that count.
    truth = np.pad(make_truth(labels), [*pad, (0, 0)])
    return np.pad(gray, pad, "symmetric")[None, ..., None], truth[None]


def make_truth(labels: np.ndarray) -> np.ndarray:
    """What the network should answer.

    Args:
        labels: (H, W) int32.

    Returns:
        (H, W, 3) float32 of 0 and 1: nucleus; border, where two nuclei lie within BORDER_WIDTH
        pixels; and whether the pixel counts (1 everywhere).
    """
    highest = extremes(np.maximum, labels)
    lowest = extremes(np.minimum, np.where(labels, labels, np.iinfo(np.int32).max))
    border = (highest > 0) & (lowest < highest)
    truth = np.ones((*labels.shape, 3), np.float32)
    truth[..., 0], truth[..., 1] = labels > 0, border
    return truth


def extremes(pick: np.ufunc, labels: np.ndarray) -> np.ndarray:
    """`scipy.ndimage.maximum_filter` (or minimum) of BORDER_WIDTH, in a third of its time."""
    labels = np.pad(labels, BORDER_WIDTH // 2, "edge")
    for _ in range(2):  # down the rows, and, turned over, along them
        count = len(labels) - BORDER_WIDTH + 1
        labels = reduce(pick, (labels[i : i + count] for i in range(BORDER_WIDTH))).T
    return labels


def augment(
    gray: np.ndarray,
    labels: np.ndarray,
    size: int,
    rng: np.random.Generator,
    wide: bool = False,
    as_seen: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one crop: moved, turned, flipped and scaled together, then changed in brightness.

    Args:
        gray: (H, W) float32 in [0, 1].
        labels: (H, W) int32.
        size: side of the crop in pixels.
        wide: the nuclei are wider than WIDE_NUCLEI: half of the crops show them at half size.
        as_seen: leave out what moves the edge of a nucleus away from where it was drawn.

    Returns:
        gray (size, size) float32 in [0, 1] and labels (size, size) int32.
    """
    gray, labels = warp(gray, labels, size, rng, wide)
    return change_intensity(gray, labels, rng, as_seen), labels


def warp(gray, labels, size, rng, wide=False):
    """Flip, quarter turn, rotation, scale and stretch of image and labels by one matrix."""
    scale = 0.5 if wide and rng.random() < 0.5 else 1.0
    angle = rng.integers(4) * np.pi / 2
    if rng.random() < 0.5:
        angle += rng.uniform(0, np.pi / 2)
    scale *= np.exp(rng.uniform(*np.log(SCALES)))
    stretch = np.exp(rng.uniform(-0.15, 0.15, 2)) * (rng.choice([-1, 1]), 1)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) * stretch / scale
    # The window, as far as it fits, lies inside the image; what is outside is mirrored.
    reach = np.minimum(np.abs(matrix).sum(axis=1) * size / 2, np.array(gray.shape) / 2)
    on_nucleus = rng.random() < NUCLEUS_SHARE
    for _ in range(10):
        centre = rng.uniform(reach, np.array(gray.shape) - reach)
        if not on_nucleus or labels[tuple(centre.astype(int))]:
            break
    # Places are counted from the corner of the image, pixels from the middle of the first.
    offset = centre - 0.5 - matrix @ np.full(2, (size - 1) / 2)
    shape = size, size
    labels = look_up(labels, matrix, offset, size)
    while scale < 2**-0.5:  # seen from afar, the noise of neighbouring pixels is averaged
        # Pixel i of the halved image lies at 2 i + 0.5 of the image.
        gray, matrix, offset, scale = halve(gray), matrix / 2, (offset - 0.5) / 2, 2 * scale
    place = np.eye(3)  # of (column, row, 1): for order 1 scikit-image takes half of scipy's time
    place[:2] = np.column_stack([matrix[::-1, ::-1], offset[::-1]])
    return transform.warp(gray, place, output_shape=shape, mode="reflect", clip=False), labels


def look_up(labels, matrix, offset, size):
    """`scipy.ndimage.affine_transform` of order 0, mode "mirror", in half of its time."""
    steps, places = np.arange(size, dtype=np.float32), []
    for side, (down, across), start in zip(labels.shape, matrix, offset, strict=True):
        down, across, start = np.float32(down), np.float32(across), np.float32(start)
        place = np.rint(down * steps[:, None] + (across * steps + start)).astype(np.int32)
        period = max(2 * side - 2, 1)  # there and back
        place -= place // period * period  # faster than %
        places.append(np.minimum(place, period - place))
    return labels.take(places[0] * labels.shape[1] + places[1])


def change_intensity(gray, labels, rng, as_seen=False):
    """Dimmed nuclei, haze, illumination, blur, gamma, contrast and noise of two sorts.

    A sharp nucleus that is blurred keeps its outline at half of its brightness, but soft nuclei
    people outline wider on the average. To learn where, `as_seen` leaves out blur and gamma.
    """
    if rng.random() < 0.4:
        gray = dim_nuclei(gray, labels, rng)
    if rng.random() < 0.5:
        gray = add_haze(gray, rng)
    if rng.random() < 0.3:  # light falls off from one side to the other
        rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in gray.shape)
        slope = np.float32(rng.uniform(-0.3, 0.3, 2))
        gray = gray * (1 + slope[0] * rows[:, None] + slope[1] * columns)
    if not as_seen and rng.random() < 0.3:
        gray = gaussian_filter(gray, rng.uniform(0.3, 1.5))
    gray = np.clip(gray, 0, 1)
    if not as_seen:
        gray = gray ** np.float32(np.exp(rng.uniform(*np.log(GAMMAS))))
    if rng.random() < 0.5:
        # Counts scatter by their root; the normal distribution takes a quarter of poisson's time.
        photons = np.float32(np.exp(rng.uniform(*np.log(PHOTONS))))
        noise = rng.standard_normal(gray.shape, np.float32)
        gray = np.maximum(gray + np.sqrt(gray / photons) * noise, 0)
    if rng.random() < 0.5:
        # Nothing is cut off at black or white: the dim rim of a nucleus belongs to it.
        contrast = rng.uniform(*CONTRASTS)
        gray = gray * contrast + rng.uniform(0, 1 - contrast)
    if rng.random() < 0.5:
        gray = gray + rng.uniform(0, 0.06) * rng.standard_normal(gray.shape, np.float32)
    return np.clip(gray, 0, 1).astype(np.float32)


def dim_nuclei(gray, labels, rng):
    """Draws some nuclei towards what is around them, as dim ones beside bright ones really are."""
    if not labels.any() or labels.all():
        return gray
    # The mean of the background nearby: in a stained cell that is its cytoplasm, not the slide.
    outside = (labels == 0).astype(np.float32)
    share = uniform_filter(outside, SURROUNDINGS) + 1e-3
    middle = np.median(gray[labels == 0])
    background = (uniform_filter(gray * outside, SURROUNDINGS) + 1e-3 * middle) / share
    count = labels.max() + 1
    factors = np.where(rng.random(count) < 0.5, 1, rng.uniform(0.2, 1, count))
    factors[0] = 1
    factor = gaussian_filter(factors[labels].astype(np.float32), 1.5)  # no edge of its own
    return background + (gray - background) * factor


def add_haze(gray, rng):
    """Lays soft clouds over the crop, as of cytoplasm that takes stain or of what is out of focus.

    They absorb (or glow, in fluorescence) before the nuclei, so that what is light stays apart
    from what is dark by its edges, and not by one brightness for the whole crop.
    """
    size = np.exp(rng.uniform(*np.log(CLOUDS)))
    count = int(max(gray.shape) / size) + 2
    rows, columns = (
        np.exp(-2 * (np.arange(side) / size - np.arange(count)[:, None]) ** 2, dtype=np.float32)
        for side in gray.shape
    )
    # Not by @, whose threads would go on spinning on the cores that the network trains on.
    cloud = np.einsum("ar,ab->rb", rows, rng.random((count, count), np.float32))
    cloud = np.einsum("rb,bc->rc", cloud, columns)
    cloud -= cloud.min()
    haze = np.float32(rng.uniform(*HAZE)) * cloud / cloud.max()
    return 1 - (1 - np.clip(gray, 0, 1)) * (1 - haze)


def sampling_weights(images: Sequence[np.ndarray]) -> np.ndarray:
    """How often each image is drawn: a kind of n images sqrt(n) times as often as one of one.

    Within a kind the same goes for the sizes, for a size often means a microscope. So what is rare
    is seen often enough to be learned, and not so often that its few images are learned by heart.

    Returns:
        (N,) float, sums to 1.
    """
    kinds = np.array([image_kind(image) for image in images])
    sizes = np.array([str(image.shape[:2]) for image in images])
    weights = np.zeros(len(images))
    for kind in set(kinds):
        chosen = np.flatnonzero(kinds == kind)
        _, size, count = np.unique(sizes[chosen], return_inverse=True, return_counts=True)
        weights[chosen] = np.sqrt(len(chosen)) / np.sqrt(count).sum() / np.sqrt(count[size])
    return weights / weights.sum()


class KeepEpochs(keras.callbacks.Callback):
    """After every epoch validates, and writes history, weights and what `--resume` needs."""

    def __init__(self, out, record: dict, history: list[dict], batches, validation, writes=True):
        super().__init__()
        self.out, self.record, self.history = out, record, history
        self.batches = batches  # that the model is fitted to
        self.validation = validation  # gray and labels of each image
        self.writes = writes  # one of several processes does
        self.count = 0  # batches in this run

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock of the epoch."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Counts the batch and checks its loss."""
        self.count += 1
        self.check(logs["loss"])

    def check(self, loss: float) -> None:
        """Stops where the loss is infinite or NaN; the epoch leaves no trace."""
        if not math.isfinite(loss):
            # The step before may have broken the weights without its own loss showing it.
            numbers = range(max(self.count - 2, 0), self.count)
            last = {
                self.record["training_ids"][i] for n in numbers for i in self.batches.choose(n)[0]
            }
            raise ValueError(
                f"the loss became NaN or infinite in epoch {len(self.history) + 1}, in the batches "
                f"of {', '.join(sorted(last))}; {self.out} keeps the epochs "
                "before it; look at these images, or train with a smaller --learning-rate"
            )

    def on_epoch_end(self, epoch, logs=None):
        """Validates and writes."""
        logs |= self.validate()  # Keras prints what is in logs
        self.check(logs["val_loss"])  # the last batch may have broken the weights
        row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - self.started, 1)}
        row |= {name: round(float(value), 6) for name, value in sorted(logs.items())}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        best = max((r["val_dice"] for r in self.history), default=-1.0)
        self.history.append(row)
        if not self.writes:
            return
        with alone():
            # A kind held out is there to be scored on, so it chooses nothing.
            if row["val_dice"] > best or self.record["options"]["hold_out"]:
                write_whole(self.out / "unet.keras", plain_copy(self.model).save)
                self.record["kept"] = row
            write_whole(self.out / "history.csv", lambda file: save_history(self.history, file))
            write_whole(self.out / "training.json", lambda file: save_json(self.record, file))
            # Last, so that what it says is done is done.
            write_whole(self.out / "last.weights.h5", self.model.save_weights)

    def validate(self) -> dict[str, float]:
        """Means over whole images, one at a time: fit() takes no batches of changing shape."""
        multiple = 2 ** Model.depth_of(self.model)
        scores = []
        for gray, labels in self.validation:
            self.model.reset_metrics()  # before 2026 test_on_batch went on from the image before
            batch = whole_image(gray, labels, multiple)
            scores.append(self.model.test_on_batch(*batch, return_dict=True))
        return {f"val_{name}": float(np.mean([s[name] for s in scores])) for name in scores[0]}


def save_history(history: list[dict], file: Path) -> None:
    """Writes a row an epoch, as `read_history` reads them."""
    with open(file, "w", newline="") as stream:
        table = csv.DictWriter(stream, history[0])
        table.writeheader()
        table.writerows(history)


def read_history(file: Path) -> list[dict]:
    """The rows that `save_history` wrote, as numbers."""
    with open(file, newline="") as stream:
        rows = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)
        ]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def save_json(record: dict, file: Path) -> None:
    """Writes training.json, as `Preprocessed_data.read_record` reads it."""
    file.write_text(json.dumps(record, indent=1) + "\n")


def training_record(weights: str | Path) -> dict:
    """What training.json beside a weights file says of its training; {} if it is not there."""
    file = Path(weights).parent / "training.json"
    return read_record(file) if file.is_file() else {}


def plain_copy(model: keras.Model) -> keras.Model:
    """The same network in float32 and without optimizer: a third of the size, runs anywhere."""
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    copy = Model.Unet(Model.depth_of(model), model.layers[1].filters).build()
    keras.config.set_dtype_policy(with_policy)
    copy.set_weights(model.get_weights())
    return copy


def save_curves(history: list[dict], out: Path) -> None:
    """Draws accuracy.png (accuracy and Dice) and loss.png, training beside validation."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    for name, panels in {"accuracy": ("accuracy", "dice"), "loss": ("loss",)}.items():
        figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            axes.plot(epochs, [row[panel] for row in history], label="training, augmented crops")
            validation = [row[f"val_{panel}"] for row in history]
            axes.plot(epochs, validation, label="validation, whole images")
            axes.set(xlabel="epoch", title={"dice": "Sørensen–Dice"}.get(panel, panel))
            axes.grid(alpha=0.3)
            axes.legend()
        write_whole(out / f"{name}.png", lambda file, figure=figure: figure.savefig(file, dpi=110))


def describe_run(options: dict, ids: Sequence[str], images, labels, split) -> dict:
    """What training.json says before the first epoch."""
    digest = hashlib.sha256()
    for name, image, numbers in zip(ids, images, labels, strict=True):
        digest.update(name.encode() + image.tobytes() + numbers.tobytes())
    return {
        "options": options,
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
    }


def load_data(
    samples: Sequence[Sample], cache: Path, options: dict
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, dict]:
    """Reads all images and splits them.

    Returns:
        id -> gray and labels; how often each of the training ids is drawn; what training.json says
        before the first epoch, with the ids of both sides.
    """
    images, labels = load_samples(samples, cache)
    ids, kind = [sample.id for sample in samples], options["hold_out"]
    if kind:
        split = hold_out_kind(ids, images, kind)
    else:
        split = split_data(ids, images, seed=options["seed"])
    with ThreadPoolExecutor() as pool:
        grays = pool.map(to_grayscale, images)
        pairs = {name: (gray, x) for name, gray, x in zip(ids, grays, labels, strict=True)}
    weights = sampling_weights([images[ids.index(name)] for name in split[0]])
    return pairs, weights, describe_run(options, ids, images, labels, split)


def resume(model: keras.Model, out: Path, record: dict, steps: int) -> list[dict]:
    """Loads the last epoch into the compiled model; returns the history up to it.

    Raises:
        FileNotFoundError: no interrupted training in the folder.
        ValueError: its options or data were others.
    """
    if not (out / "last.weights.h5").is_file():
        raise FileNotFoundError(f"{out}: no interrupted training here; leave out --resume")
    before = read_record(out / "training.json")
    for key in ("options", "data_sha256", "validation_ids"):
        if before[key] != record[key]:
            raise ValueError(f"{out}: that training had other {key}: {before[key]}; give the same")
    record["kept"] = before["kept"]
    model.optimizer.build(model.trainable_variables)
    model.load_weights(out / "last.weights.h5")
    done = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) // steps
    return read_history(out / "history.csv")[:done]


class FusedNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by TensorFlow's one kernel for it, where training runs on TensorFlow.

    Keras has no spelling of it, and takes several passes in float32: half as long a step again.
    """

    def call(self, x, training=None, mask=None):
        """Normalises x, (batch, H, W, C), by its own statistics while training, as Keras does."""
        if not training or keras.backend.backend() != "tensorflow":
            return super().call(x, training=training, mask=mask)
        from tensorflow import raw_ops

        x, mean, variance, *_ = raw_ops.FusedBatchNormV3(
            x=x,
            scale=keras.ops.cast(self.gamma, "float32"),
            offset=keras.ops.cast(self.beta, "float32"),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, batch in (self.moving_mean, mean), (self.moving_variance, variance):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return x


def fuse_normalisations(model: keras.Model) -> keras.Model:
    """The same network for training; its weights fit the plain one, which is what is saved."""

    def swap(layer):
        """The same layer anew, a normalisation as a fused one."""
        plain = isinstance(layer, keras.layers.BatchNormalization)
        return (FusedNormalization if plain else type(layer)).from_config(layer.get_config())

    fused = keras.models.clone_model(model, clone_function=swap)
    fused.set_weights(model.get_weights())
    return fused


def compile_unet(depth: int, base_filters: int, learning_rate: float, steps: int) -> keras.Model:
    """The network with its loss, and AdamW whose rate warms up, then falls along a cosine."""
    warm_up = max(steps // 30, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 20,
        max(steps - warm_up, 1),
        alpha=0.01,
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )
    model = fuse_normalisations(Model.Unet(depth, base_filters).build())
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-4, clipnorm=1.0),
        Model.segmentation_loss,
        metrics=[Model.accuracy, Model.dice],
    )
    return model


def join_processes() -> tuple[int, int]:
    """Joins the training processes that the environment names: (number of this one, of all).

    Keras's own variables say so, and its JAX backend does the work; without them this is all.
    """
    count = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    if count == 1:
        return 0, 1
    if keras.backend.backend() != "jax":
        raise ValueError("training in several processes needs KERAS_BACKEND=jax in each of them")
    keras.distribution.initialize()
    if (devices := len(keras.distribution.list_devices())) != count:
        raise ValueError(
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
def alone():
    """What one process does without the others: with them, each new array waits for theirs."""
    together = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(together)


def use_all_gpus():
    """A scope to build the model in: with TensorFlow it puts a copy on each of several GPUs."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow  # Keras has no spelling of its own for this

    devices = [device.name for device in tensorflow.config.list_logical_devices("GPU")]
    if len(devices) < 2:
        return contextlib.nullcontext()
    print(f"training on {len(devices)} GPUs")
    return tensorflow.distribute.MirroredStrategy(devices).scope()


def check_options(options: dict, processes: int) -> None:
    """Raises ValueError where the options of `train` do not fit."""
    multiple = 2 ** options["depth"]
    if options["image_size"] % multiple:
        raise ValueError(
            f"--image-size must be a multiple of {multiple}, not {options['image_size']}"
        )
    if min(options[name] for name in ("epochs", "crops", "batch_size", "image_size")) < 1:
        raise ValueError("--epochs, --crops, --batch-size and --image-size must be above 0")
    if options["learning_rate"] <= 0:
        raise ValueError(f"--learning-rate must be above 0, not {options['learning_rate']}")
    if options["batch_size"] % processes:
        raise ValueError(f"--batch-size must be a multiple of {processes}, the processes")


def train(
    data: str,
    out: str = OUT,
    *,
    epochs: int = EPOCHS,
    crops: int = CROPS,
    batch_size: int = BATCH_SIZE,
    image_size: int = IMAGE_SIZE,
    learning_rate: float = LEARNING_RATE,
    base_filters: int = Model.BASE_FILTERS,
    depth: int = Model.DEPTH,
    precision: str = PRECISION,
    seed: int = SEED,
    hold_out: str | None = None,
    go_on: bool = False,
) -> list[dict]:
    """Trains and writes everything to `out`.

    Returns:
        history: one dict an epoch.

    Raises:
        FileNotFoundError, ValueError: data that cannot be trained on, or options that do not fit.
    """
    options = {k: v for k, v in locals().items() if k not in ("data", "out", "go_on")}
    process, processes = join_processes()
    check_options(options, processes)
    samples, out = open_source(data), Path(out)
    if process == 0:
        out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)

    cache = Path(CACHE, f"{Path(data).resolve().stem}.npy")
    pairs, weights, record = load_data(samples, cache, options)
    training, validation = (
        [pairs[name] for name in record[f"{side}_ids"]] for side in ("training", "validation")
    )
    print(f"{len(training)} images to train on, {len(validation)} to validate, {data}")

    steps = math.ceil(crops / batch_size)
    with use_all_gpus():
        model = compile_unet(depth, base_filters, learning_rate, steps * epochs)
        history = resume(model, out, record, steps) if go_on else []
    if process == 0 and not go_on:
        (out / "last.weights.h5").unlink(missing_ok=True)  # of another training
    # Each of n processes draws every n-th batch; those of epochs that are done are left out.
    count = epochs * steps * processes
    numbers = range(process, count, processes)[len(history) * steps :]
    sizes = {"size": image_size, "batch_size": batch_size // processes}
    sizes["as_seen_from"] = (1 - AS_SEEN) * count
    batches = Crops(training, weights, **sizes, seed=seed, numbers=numbers)
    keeper = KeepEpochs(out, record, history, batches, validation, process == 0)
    if len(history) < epochs:
        model.fit(
            batches,
            epochs=epochs,
            initial_epoch=len(history),
            steps_per_epoch=steps,
            shuffle=False,
            callbacks=[keeper],
            verbose=2 if process == 0 else 0,
        )
    if process == 0:
        save_curves(history, out)
        (out / "last.weights.h5").unlink(missing_ok=True)
    return history


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="images with masks (default data/stage1_train or data/stage1_train.zip)")
    add("--out", default=OUT, help=f"folder to write to (default {OUT})")
    add("--epochs", type=int, default=EPOCHS, help=f"default {EPOCHS}")
    add("--crops", type=int, default=CROPS, help=f"crops an epoch (default {CROPS})")
    add("--batch-size", type=int, default=BATCH_SIZE, help=f"default {BATCH_SIZE}")
    add("--image-size", type=int, default=IMAGE_SIZE, help=f"crop, pixels (default {IMAGE_SIZE})")
    add("--learning-rate", type=float, default=LEARNING_RATE, help=f"default {LEARNING_RATE}")
    add(
        "--base-filters", type=int, default=Model.BASE_FILTERS, help=f"default {Model.BASE_FILTERS}"
    )
    add("--depth", type=int, default=Model.DEPTH, help=f"poolings (default {Model.DEPTH})")
    precisions = "float32", "mixed_bfloat16"
    add("--precision", choices=precisions, default=PRECISION, help=f"default {PRECISION}")
    add("--seed", type=int, default=SEED, help=f"default {SEED}")
    add("--hold-out", metavar="KIND", help="score on all images of this kind, train on the rest")
    add("--resume", action="store_true", help="go on with an interrupted training in --out")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(parse_args(argv))
    out = Path(options["out"])
    options["data"] = options["data"] or find_data()
    go_on, last = options.pop("resume"), out / "last.weights.h5"
    # What lies there before is of another training, until the first epoch of this one ends.
    other = None if go_on or not last.is_file() else last.stat().st_mtime_ns
    try:
        train(go_on=go_on, **options)
    except KeyboardInterrupt:
        if not last.is_file() or last.stat().st_mtime_ns == other:
            raise
        words = list(sys.argv[1:] if argv is None else argv)
        words += [] if "--resume" in words else ["--resume"]
        raise KeyboardInterrupt(
            f"{out} keeps the epochs that are done; go on with: python Train.py {shlex.join(words)}"
        ) from None
    if process_number():
        return
    files = out / "accuracy.png", out / "loss.png"
    kept = read_record(out / "training.json")["kept"]
    print(f"kept epoch {kept['epoch']}: validation Dice {kept['val_dice']:.4f}")
    print(f"saved the weights to {out / 'unet.keras'}, curves to {', '.join(map(str, files))}")
    show_pictures(*files)


if __name__ == "__main__":
    run_script(main)
