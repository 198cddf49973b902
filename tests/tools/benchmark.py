"""Scores and times the project beside what is usually done. Not collected by pytest.

Without --speed: a table of scores of two baselines and of the shipped weights, on the validation images of one source
or several, with 95 % intervals over images. It is Markdown, as in the README. The weights compute in float32.

Otsu + watershed: Otsu's threshold on the same gray image, then a watershed on the distance to the background; it needs
no training. Plain recipe (--plain; trains 30 epochs, minutes): what this kind of project usually does: luminance and
masks resized to 128×128, no augmentation, Adam, binary cross-entropy, a U-Net of 16 to 256 filters, masks resized back.

    python tests/tools/benchmark.py --data data/stage1_train.zip data/tnbc.zip
    python tests/tools/benchmark.py --data data/stage1_train.zip --plain

With --speed: a table of reading, training, prediction and large images, beside the plain recipe (every mask by
skimage.io.imread, resized to 128×128, their maximum; predict at 128×128). Every piece runs in a process of its own,
which tells its peak memory; what is compared runs in turns, and the medians over the turns are printed, of the ratio
too.

    python tests/tools/benchmark.py --speed --data data/stage1_train.zip --images data/stage1_test.zip
"""

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2gray
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.io import imread
from skimage.segmentation import watershed
from skimage.transform import resize
from skimage.util import img_as_float
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Evaluate_model
import Main
import Model
import Predict_masks
import Preprocessed_data
import Train
from data import nuclei
from data.files import File, UserError, run_script
from data.images import read_image
from data.options import DATA, PRECISIONS, WEIGHTS
from data.outputs import save_tiles
from data.sources import Sample, find_samples, source_name
from data.truth import load_samples, read_sample
from Model import keras

ROOT = Path(__file__).resolve().parents[2]
PLAIN_SIZE = 128  # pixels
PEAK_DISTANCE = 7  # pixels; half the width of a common nucleus, so that each has one peak
TURNS = 3  # runs of each of two things compared
READ_BY_BOTH = 40  # images; the plain recipe needs minutes for all
STEPS, EPOCHS = 16, 5  # of training, timed
TABLE_SCORES = ("dice", "ap", "ap50", "precision", "recall")
LARGE = 5_000, 10_000, 20_000  # pixels, sides of the drawn images


def segment_classically(image: np.ndarray) -> np.ndarray:
    """Otsu + watershed; (H, W) or (H, W, 3) as read -> labels (H, W) int32."""
    smooth = gaussian(Preprocessed_data.to_grayscale(image), 1)
    # Of a constant image nothing is above the threshold.
    mask = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    distance = gaussian(ndimage.distance_transform_edt(mask), 1)
    peaks = peak_local_max(distance, min_distance=PEAK_DISTANCE, labels=ndimage.label(mask)[0])
    seeds = np.zeros(smooth.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    return nuclei.filter_by_area(labels, nuclei.MIN_AREA)


def build_plain_unet() -> keras.Model:
    """Two 3×3 convolutions a level, 16 to 256 filters, no normalisation, one sigmoid."""

    def convolve(x, filters):
        for _ in range(2):
            x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    x = gray = keras.Input((PLAIN_SIZE, PLAIN_SIZE, 1))
    skips = []
    for filters in (16, 32, 64, 128):
        skips.append(convolve(x, filters))
        x = keras.layers.MaxPooling2D()(skips[-1])
    x = convolve(x, 256)
    for filters in (128, 64, 32, 16):
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolve(keras.layers.Concatenate()([skips.pop(), x]), filters)
    return keras.Model(gray, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


def train_plain(samples: list[Sample]) -> keras.Model:
    """Trains the plain recipe on these images: 30 epochs, batches of 16, Adam at 0.001."""
    keras.utils.set_random_seed(Preprocessed_data.SEED)
    images, labels = load_samples(samples)
    gray = np.stack([shrink(image) for image in images])
    size = (PLAIN_SIZE, PLAIN_SIZE)
    masks = np.stack([resize((x > 0).astype(np.float32), size) > 0.5 for x in labels])
    model = build_plain_unet()
    model.compile("adam", "binary_crossentropy")
    model.fit(gray[..., None], masks[..., None].astype(np.float32), 16, epochs=30, verbose=2)
    return model


def shrink(image: np.ndarray) -> np.ndarray:
    """Luminance at 128×128, float in [0, 1] of the full scale."""
    luminance = rgb2gray(image) if image.ndim == 3 else img_as_float(image)
    return resize(luminance, (PLAIN_SIZE, PLAIN_SIZE))


def segment_plainly(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Predicts at 128×128, resizes back; connected pieces of the mask are the nuclei."""
    answer = model.predict_on_batch(shrink(image)[None, ..., None])[0, ..., 0]
    probability = resize(answer, image.shape[:2])
    return ndimage.label(probability > 0.5)[0].astype(np.int32)


def build_methods(sources: Sequence[str], samples: Sequence[Sample], weights: str, with_plain: bool) -> dict:
    """Name -> function from an image, as read, to labels (H, W); the plain recipe learns from all but the samples."""
    methods = {"Otsu + watershed": segment_classically}
    if with_plain:
        scored = {sample.id for sample in samples}
        rest = [sample for source in sources for sample in find_samples(source) if sample.id not in scored]
        if not rest:
            raise UserError(f"{', '.join(sources)}: no image is left to train the plain recipe on")
        plain = train_plain(rest)
        methods["plain recipe"] = lambda image: segment_plainly(plain, image)
    unet = Model.load_unet(weights)
    methods["this U-Net"] = lambda image: Predict_masks.segment_image(unet, image)[0]
    return methods


def score_methods(samples: Sequence[Sample], methods: dict[str, Callable]) -> dict[str, list[dict]]:
    """Name of a method -> a row of scores for each image, as `Evaluate_model.evaluate` returns them."""
    rows = {name: [] for name in methods}
    for sample in tqdm(samples, "scoring", unit="image", disable=None):
        image, truth = read_sample(sample)
        kind = Preprocessed_data.image_kind(image)
        for name, segment in methods.items():
            labels = segment(image)
            scores = Evaluate_model.score_image(truth, labels > 0, labels)
            rows[name].append({"id": sample.id, "kind": kind, **scores})
    return rows


def compare_methods(sources: Sequence[str], weights: str, with_plain: bool) -> None:
    """Prints the table of scores: a line for each source, kind of image and method."""
    samples = {source: Main.choose_samples(source, weights) for source in sources}
    methods = build_methods(sources, [sample for chosen in samples.values() for sample in chosen], weights, with_plain)
    row = ("| {:<33} | {:<16} |" + " {:<20} |" * len(TABLE_SCORES) + " {:>6} |").format
    titles = Evaluate_model.TITLES
    lines = [row("images", "method", *(titles[score] for score in TABLE_SCORES), "false"), "|---" * 8 + "|"]
    for source, chosen in samples.items():
        groups = {name: Evaluate_model.group_by_kind(rows) for name, rows in score_methods(chosen, methods).items()}
        for kind in groups["this U-Net"]:
            for name, kinds in groups.items():
                summary = Evaluate_model.summarise(kinds[kind])
                cells = [Evaluate_model.format_interval(*summary[score]) for score in TABLE_SCORES]
                false = sum(scores["false"] for scores in kinds[kind])
                lines.append(row(f"{source_name(source)}, {kind} ({len(kinds[kind])})", name, *cells, false))
    print("\n".join(lines))


def measure(work, *arguments) -> tuple:
    """What `work` returns, in a new process, and the peak memory of that process in GB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *arguments))


def _measured(work, *arguments) -> tuple:
    answer = work(*arguments)
    return answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux


def time_in_turns(*works) -> np.ndarray:
    """Seconds, (works, TURNS), after a first run of each that does not count."""
    seconds = np.zeros((len(works), TURNS + 1))
    for turn in range(TURNS + 1):
        for number, work in enumerate(works):
            started = time.perf_counter()
            work()
            seconds[number, turn] = time.perf_counter() - started
    return seconds[:, 1:]


def read_plainly(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask at 128×128, every mask resized before the maximum is taken."""
    size = (PLAIN_SIZE, PLAIN_SIZE)
    mask = 0
    for file in sample.masks:
        with file.open("rb") as stream:
            mask = np.maximum(mask, resize(imread(stream), size, preserve_range=True))
    with sample.image.open("rb") as stream:
        return resize(imread(stream), size, preserve_range=True), mask


def decode_only(file: File) -> None:
    """Inflates a PNG and does nothing with it."""
    with file.open("rb") as stream, Image.open(stream) as picture:
        picture.load()


def time_reading(data: Sequence[str]) -> np.ndarray:
    """Seconds for some images: plain recipe, this project, decoding alone in as many threads."""
    samples = find_samples(*data)
    rng = np.random.default_rng(Preprocessed_data.SEED)
    some = [samples[i] for i in rng.permutation(len(samples))[:READ_BY_BOTH]]
    files = [file for sample in some for file in (sample.image, *sample.masks)]

    def decode():
        with ThreadPoolExecutor() as pool:
            list(pool.map(decode_only, files, chunksize=64))

    return time_in_turns(lambda: [read_plainly(sample) for sample in some], lambda: load_samples(some), decode)


def read_all(data: Sequence[str]) -> float:
    """Seconds until the whole training set is in memory."""
    started = time.perf_counter()
    load_samples(find_samples(*data))
    return time.perf_counter() - started


def time_training(data: Sequence[str], precision: str) -> np.ndarray:
    """Milliseconds a crop: of epochs, and of epochs of one batch over and over, in turns."""
    keras.config.set_dtype_policy(precision)
    options = Train.TrainingOptions(epochs=1, seed=0)
    options = dataclasses.replace(options, crops=STEPS * options.batch_size)
    pairs, probabilities, record = Train.load_data(find_samples(*data), options)
    batches = Train.Batches(Train.Crops([pairs[name] for name in record["training_ids"]], probabilities, options))
    model = Model.compile_unet(options.depth, options.base_filters, options.learning_rate, STEPS)
    same = Same(batches[0], STEPS)
    clock = Clock()
    for _ in range(EPOCHS + 1):  # the first does not count
        for source in batches, same:
            model.fit(source, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    return 1000 * np.reshape(clock.seconds, (-1, 2))[1:].T / STEPS / options.batch_size


class Same(keras.utils.PyDataset):
    """One batch, as often as asked for."""

    def __init__(self, batch, count):
        super().__init__()
        self.batch = batch
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.batch


class Clock(keras.callbacks.Callback):
    """Seconds of every epoch; after the last, `fit` waits for seconds for a thread of its own."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.started)


def time_prediction(images: str, weights: str) -> np.ndarray:
    """Seconds for a folder of images, files to files: this project; its network alone; plainly."""
    samples = find_samples(images)
    model = Model.load_unet(weights, Model.fastest_precision())
    plain = build_plain_unet()
    predict = model.predict_on_batch
    seen = []  # batches
    with tempfile.TemporaryDirectory() as out:
        model.predict_on_batch = lambda batch: seen.append(batch) or predict(batch)
        Predict_masks.predict_samples(samples, model, out, {})
        model.predict_on_batch = predict

        def predict_plainly():
            for sample in samples:
                with sample.image.open("rb") as stream:
                    image = imread(stream)
                labels = segment_plainly(plain, image[..., :3] if image.ndim == 3 else image)
                Image.fromarray((255 * (labels > 0)).astype(np.uint8)).save(f"{out}/mask.png")

        return time_in_turns(
            lambda: Predict_masks.predict_samples(samples, model, out, {}),
            lambda: [predict(batch) for batch in seen],
            predict_plainly,
        )


def time_batch(weights: str) -> np.ndarray:
    """Milliseconds of the network for an image of 256×256, in batches of 8."""
    model = Model.load_unet(weights, Model.fastest_precision())
    batch = np.random.default_rng(0).random((8, 256, 256, 1)).astype(np.float32)
    (seconds,) = time_in_turns(lambda: model.predict_on_batch(batch))
    return 1000 * seconds / 8


def draw_large(side: int, file: str) -> None:
    """Writes the sample's brightest image, repeated, as a tiled 8-bit TIFF, strip by strip."""
    samples = find_samples(DATA)
    image = read_image(samples[1].image)
    image = Preprocessed_data.brightness(image)
    across = np.tile(image, (1, -(-side // image.shape[1])))[:, :side]
    rows = (across[np.arange(top, min(top + 512, side)) % len(across)] for top in range(0, side, 512))
    save_tiles(Path(file), rows, (side, side), np.uint8, {})


def predict_file(file: str, weights: str, out: str) -> list[float]:
    """Seconds from loading the weights to the last file; and the number of nuclei."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        Predict_masks.main(["--data", file, "--weights", weights, "--out", out])
    with tifffile.TiffFile(next(Path(out, "labels").iterdir())) as labels:
        nuclei = max(int(part[0].max()) for part in labels.pages[0].segments())
    return time.perf_counter() - started, nuclei


def time_start(script: str, options: list[str], begun) -> float:
    """Seconds from the start of a command until `begun(folder it writes to)`; then it is killed."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / script), *options, "--out", out]
        started = time.perf_counter()
        with open(f"{out}/log", "w") as log:
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # its lines come at once
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            while not begun(Path(out)) and process.poll() is None:
                time.sleep(0.05)
        seconds = time.perf_counter() - started
        process.kill()
        process.wait()
    return seconds


def compare_speeds(data: Sequence[str], images: str, weights: str, sides: list[int]) -> None:
    """Prints the table of speeds, a row at a time."""
    row = "| {:<52} | {:>12} | {:>12} | {:>8} | {:>11} |".format
    print(row("", "this project", "beside it", "ratio", "peak memory"))
    print(row(*["---"] * 5))

    def show(what, ours, other=None, memory=None, unit="s", digits=2):
        medians = [value if value is None else np.median(value) for value in (ours, other)]
        texts = [f"{value:.{digits}f} {unit}" if value else "" for value in medians]
        ratio = "" if other is None else f"{np.median(other / ours):.2f}"
        peak = f"{memory:.1f} GB" if memory else ""
        print(row(what, *texts, ratio, peak), flush=True)

    (plain, ours, decoding), _ = measure(time_reading, data)
    show(f"read {READ_BY_BOTH} images; plain recipe", ours, plain)
    show(f"read {READ_BY_BOTH} images; decoding alone", ours, decoding)
    seconds, memory = measure(read_all, data)
    show("read all images", seconds, memory=memory)
    for precision in PRECISIONS:
        (epoch, step), memory = measure(time_training, data, precision)
        show(f"train a crop, {precision}; the step alone", epoch, step, memory, "ms", 0)
    begun = lambda out: "crops an epoch" in (out / "log").read_text()  # noqa: E731
    seconds = time_start("Train.py", ["--data", *data], begun)
    show("python Train.py, until the images are read", seconds)
    if images:
        begun = lambda out: any(out.glob("labels/*.tif"))  # noqa: E731
        options = ["--data", images, "--weights", weights]
        show("python Predict_masks.py, until the first file", time_start("Predict_masks.py", options, begun))
        (ours, network, plain), memory = measure(time_prediction, images, weights)
        show("predict a folder of images; the network alone", ours, network, memory)
        show("predict a folder of images; plain recipe", ours, plain)
    show("network, 256×256, batch of 8", *measure(time_batch, weights)[:1], unit="ms", digits=0)
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            draw_large(side, f"{folder}/large.tif")
            (seconds, nuclei), memory = measure(predict_file, f"{folder}/large.tif", weights, folder)
        rate = f"{seconds / side**2 * 1e6:.2f} s a megapixel"
        show(f"{side:,}×{side:,} pixels, {nuclei:,} nuclei, {rate}", seconds, memory=memory, digits=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[DATA], help=f"images with truth (default {DATA})")
    parser.add_argument("--weights", default=WEIGHTS, help="default %(default)s")
    parser.add_argument("--plain", action="store_true", help="train and score the plain recipe too")
    parser.add_argument("--speed", action="store_true", help="time instead of scoring")
    parser.add_argument("--images", help="with --speed: images to predict")
    parser.add_argument("--large", type=int, nargs="*", default=LARGE, help="with --speed: sides")
    args = parser.parse_args()
    if args.speed:
        compare_speeds(args.data, args.images, args.weights, args.large)
        return 0
    compare_methods(args.data, args.weights, args.plain)
    return 0


if __name__ == "__main__":
    run_script(main)
