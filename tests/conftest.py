"""Drawn nuclei in Kaggle's layout, and a way to run the scripts as a user does."""

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.draw import disk

from data.crops import Crops, TrainingImage
from data.files import run_script
from data.options import TrainingOptions
from data.sources import find_samples

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: more threads only take them from one another.
    for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(threads, "1")
STAINED = np.array([[235, 220, 230], [110, 60, 140]])  # background, nucleus
GRAY = np.array([20, 160])
TINY = TrainingOptions(
    epochs=3,
    crops=16,
    batch_size=4,
    crop_size=32,
    learning_rate=0.01,
    base_filters=4,
    depth=1,
    precision="float32",
    seed=3,
)
SMALL = dataclasses.replace(TINY, crops=6, batch_size=2, seed=1)  # nine batches


def draw_nuclei(shape=(32, 32), seed=0, stained=False):
    """Four disks and a little noise: image uint8, (H, W) or (H, W, 3), and labels int32."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for number in range(4):
        corner = np.array([number // 2, number % 2]) * shape / 2
        centre = corner + np.array(shape) / 4 + rng.uniform(-1, 1, 2)
        labels[disk(centre, rng.uniform(4, 6), shape=shape)] = number + 1
    image = (STAINED if stained else GRAY)[(labels > 0).astype(int)]
    return (image + rng.integers(-15, 16, image.shape)).clip(0, 255).astype(np.uint8), labels


def draw_disks(shape, centres, radius):
    nucleus = np.zeros(shape, np.float32)
    for centre in centres:
        nucleus[disk(centre, radius, shape=shape)] = 1
    return nucleus


def draw_texture(seed, side=128):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def cut_tiles(picture):
    rows, columns = (side // 2 for side in picture.shape[:2])
    corners = [(row, column) for row in (0, rows) for column in (0, columns)]
    return [picture[r : r + rows, c : c + columns] for r, c in corners]


def draw_tiled(pictures=3, singles=12):
    """Ids and images: four tiles of each picture, and pictures that are not cut."""
    images = {f"single_{seed:02}": draw_texture(seed, 64) for seed in range(singles)}
    for seed in range(pictures):
        for number, tile in enumerate(cut_tiles(draw_texture(100 + seed))):
            images[f"{number}_of_{seed}"] = tile
    ids = sorted(images)
    return ids, [images[i] for i in ids]


def draw_pair(shape=(64, 80), seed=0):
    image, labels = draw_nuclei(shape, seed)
    return TrainingImage(image / np.float32(255), labels)


def make_crops(options=SMALL, **more):
    """The crops of three drawn images."""
    pairs = [draw_pair((40, 40), seed) for seed in range(3)]
    return Crops(pairs, np.full(3, 1 / 3), options, **more)


def save_image(file, pixels, **options):
    """Writes pixels with Pillow, in a folder that need not be there; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def write_source(folder, images):
    """Writes {id: (image, labels)} as ID/images/ID.png and ID/masks/NUMBER.png."""
    for name, (image, labels) in images.items():
        save_image(folder / name / "images" / f"{name}.png", image)
        (folder / name / "masks").mkdir()
        for number in range(1, labels.max() + 1):
            mask = np.where(labels == number, 255, 0).astype(np.uint8)
            save_image(folder / name / "masks" / f"{number}.png", mask)
    return folder


def draw_source(folder, count=8, shapes=((32, 32), (30, 36))):
    """Draws `count` images into the folder; returns {id: (image, labels)}.

    They are gray, RGBA and stained in turn; the shape changes after every such three.
    """
    images = {}
    for seed in range(count):
        shape = shapes[seed // 3 % len(shapes)]
        image, labels = draw_nuclei(shape, seed, stained=seed % 3 == 2)
        if seed % 3 == 1:
            image = np.dstack([image] * 3 + [np.full(shape, 255, np.uint8)])
        images[f"image_{seed:02}"] = image, labels
    write_source(folder, images)
    return images


def encode_png(pixels):
    """The bytes of a PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_archive(file, entries):
    """Writes a .zip of (name, bytes) pairs; a name may be a ZipInfo."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in entries:
            archive.writestr(name, content)
    return file


def only(source):
    (sample,) = find_samples(source)
    return sample


IMAGE = encode_png(np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8))
MASK = encode_png(np.eye(13, 17, dtype=np.uint8))
KAGGLE = [("a/images/a.png", IMAGE), ("a/masks/1.png", MASK)]  # what `write_archive` may write


class Threshold:
    """Stands for a network that answers the gray value itself, and never a border."""

    layers = ()

    def predict_on_batch(self, batch):
        return np.concatenate([batch, np.zeros_like(batch)], axis=-1)


class Recorder(Threshold):
    """Keeps the shapes of its batches."""

    def __init__(self):
        self.batches = []

    def predict_on_batch(self, batch):
        self.batches.append(batch.shape)
        return super().predict_on_batch(batch)


@functools.cache
def load_once(file=str(ROOT / "weights/unet.keras"), precision="float32"):
    """As `Model.load_unet`; the tests of a process share a network, which takes seconds to load and to trace."""
    import Model  # here, for most tests need none

    return Model.load_unet(file, precision)


@pytest.fixture
def source(tmp_path):
    """A drawn Kaggle folder of eight images."""
    draw_source(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def run(tmp_path):
    """run("Train.py", "--help"): the finished process of its own, which ran in tmp_path."""

    def run(script, *arguments):
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def mistake(tmp_path):
    """mistake("Train.py", "--data", "none"): the text after "error: ", of exit code 2.

    The script's main runs in this process, with tmp_path as the working directory.
    """

    def mistake(script, *arguments):
        main = importlib.import_module(script.removesuffix(".py")).main
        stderr = io.StringIO()
        with contextlib.chdir(tmp_path), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stop:
            run_script(lambda: main([str(argument) for argument in arguments]))
        lines = stderr.getvalue().splitlines()
        assert stop.value.code == 2, stderr.getvalue()
        assert len(lines) == 1 and lines[0].startswith("error: "), stderr.getvalue()
        return lines[0].removeprefix("error: ")

    return mistake


@pytest.fixture
def keep_precision():
    """Undoes what train() sets for the whole process."""
    import keras  # here, for most tests need none

    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
