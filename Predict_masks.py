"""Predicts the nuclei of images with trained weights, writes them to files, shows the files.

In:  images (folder, Kaggle folder, .zip or one file) and the weights that Train.py saved.
Out, in --out (default data/<source name>_predicted), at each image's own size:
     masks/ID.png     8-bit, 255 nucleus, 0 background
     labels/ID.tif    one number per nucleus, 0 background; uint16, uint32 past 65,535 nuclei
     overlays/ID.png  the image with each nucleus outlined
     predictions.png  some of them side by side
Exit code 1: some images could not be read; they were named and skipped.

    python Predict_masks.py --data data/sample
    python Predict_masks.py --data my_images --weights weights/unet.keras --out my_nuclei
    python Predict_masks.py --data my_images --out my_nuclei --show
"""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.segmentation import watershed
from tqdm import tqdm

from Model import depth_of, load_unet
from Preprocessed_data import (
    DATA,
    Sample,
    open_source,
    outline_nuclei,
    read_image,
    run_script,
    save_contact_sheet,
    show_pictures,
    to_grayscale,
    write_whole,
)

WEIGHTS = "weights/unet.keras"
NUCLEUS_THRESHOLD = 0.5  # probability from which a pixel is nucleus; best validation Dice
SEED_THRESHOLD = 0.5  # of nucleus minus border probability: above it two nuclei do not touch
MIN_SEED_AREA = 8  # pixels; smaller seeds are noise on the rim of a nucleus
MIN_AREA = 20  # pixels; a disk 5 pixels across: smaller pieces are taken for noise
SHOWN = 8  # images in predictions.png
READ_AHEAD = 16  # images
BATCH_PIXELS = 8 * 256 * 256  # what goes through the network at once takes some 100 bytes a pixel


def predict_probability(model: keras.Model, gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs the network on images of any one size.

    Args:
        model: from `load_unet`.
        gray: (..., H, W) float32 in [0, 1], one image or a stack, from `to_grayscale`.

    Returns:
        probability of nucleus, and of a border between touching nuclei, as gray in shape, float32.
    """
    multiple = 2 ** depth_of(model)
    height, width = gray.shape[-2:]
    pad = [(0, 0), (0, -height % multiple), (0, -width % multiple)]
    padded = np.pad(gray.reshape(-1, height, width), pad, "symmetric")
    answer = model.predict_on_batch(padded[..., None])[:, :height, :width]
    return answer[..., 0].reshape(gray.shape), answer[..., 1].reshape(gray.shape)


def separate_nuclei(nucleus: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Numbers the nuclei; touching ones are parted by a watershed from seeds inside the borders.

    Args:
        nucleus, border: (H, W) float in [0, 1], from `predict_probability`.

    Returns:
        labels: (H, W) int32, 0 background, 1…K; each number is one connected piece of at least
        MIN_AREA pixels without holes.
    """
    mask = ndimage.binary_fill_holes(nucleus > NUCLEUS_THRESHOLD)
    inside = mask & (nucleus - border > SEED_THRESHOLD)
    seeds = keep_large(ndimage.label(inside)[0], MIN_SEED_AREA)
    # A piece of the mask that no seed fell into is one small nucleus: it is its own seed.
    pieces, count = ndimage.label(mask)
    seeded = np.zeros(count + 1, bool)
    seeded[pieces[seeds > 0]] = True
    seeds = np.where(seeded[pieces], seeds, pieces + seeds.max())
    seeds[~mask] = 0
    # Water rises from the middle of each nucleus and meets on the border between two.
    labels = watershed(border - nucleus, seeds, mask=mask)
    return number_in_order(keep_large(labels, MIN_AREA))


def keep_large(labels: np.ndarray, area: int) -> np.ndarray:
    """Sets to 0 what has fewer than `area` pixels."""
    large = np.bincount(labels.ravel()) >= area
    large[0] = False
    return np.where(large[labels], labels, 0)


def number_in_order(labels: np.ndarray) -> np.ndarray:
    """Renumbers to 1…K without gaps, int32.

    >>> number_in_order(np.array([0, 7, 3, 7])).tolist()
    [0, 2, 1, 2]
    """
    used = np.bincount(labels.ravel()) > 0
    used[0] = False
    return np.cumsum(used, dtype=np.int32)[labels]


def make_folders(out: Path) -> None:
    """Makes the folders that `write_prediction` writes to."""
    for kind in ("masks", "labels", "overlays"):
        (out / kind).mkdir(parents=True, exist_ok=True)


def write_prediction(out: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Writes mask, labels and overlay of one image, each whole or not at all.

    Args:
        out: folder, with masks, labels and overlays in it.
        name: id of the image.
        image: (H, W) or (H, W, 3) as read.
        labels: (H, W) int32.
    """
    mask = np.where(labels > 0, 255, 0).astype(np.uint8)
    numbers = labels.astype(np.uint16 if labels.max() <= 65535 else np.uint32)
    overlay = outline_nuclei(image, labels)
    # Overlays are for the eye: a fifth larger, but written three times as fast.
    write_whole(out / "overlays" / f"{name}.png", lambda f: save_png(f, overlay, compress_level=1))
    write_whole(
        out / "labels" / f"{name}.tif", lambda f: tifffile.imwrite(f, numbers, compression="zlib")
    )
    write_whole(out / "masks" / f"{name}.png", lambda f: save_png(f, mask))


def save_png(file: Path, picture: np.ndarray, compress_level: int = 6) -> None:
    """Writes (H, W) or (H, W, 3) uint8."""
    Image.fromarray(picture).save(file, compress_level=compress_level)


def predict_samples(
    samples: Iterable[Sample], model: keras.Model, out: str | Path
) -> tuple[list[str], list[str]]:
    """Predicts images and writes their files; one that cannot be read is named and skipped.

    While the network runs, other threads read the next images and finish the ones before.

    Returns:
        ids written and ids skipped, both sorted.
    """
    out, samples = Path(out), list(samples)
    make_folders(out)
    written, skipped, unfinished = [], [], deque()
    progress = tqdm(total=len(samples), desc="predicting", unit="image", disable=None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress as bar:
        for chunk in read_ahead(samples, pool):
            skipped += [sample.id for sample, image, _ in chunk if image is None]
            for group in group_by_shape(chunk):
                answers = predict_probability(model, np.stack([gray for *_, gray in group]))
                for (sample, image, _), nucleus, border in zip(group, *answers, strict=True):
                    work = pool.submit(finish_image, out, sample.id, image, nucleus, border)
                    unfinished.append(work)
            bar.update(len(chunk))
            while len(unfinished) > READ_AHEAD:  # what waits for its turn takes memory
                written.append(unfinished.popleft().result())
        written += [work.result() for work in unfinished]
    return sorted(written), sorted(skipped)


def read_ahead(samples: list[Sample], pool: ThreadPoolExecutor):
    """Yields lists of (sample, image, gray) while the pool reads the list after; None: skipped."""
    ahead = []
    for start in range(0, len(samples) + READ_AHEAD, READ_AHEAD):
        now, ahead = ahead, [pool.submit(read, s) for s in samples[start : start + READ_AHEAD]]
        yield [work.result() for work in now]


def read(sample: Sample) -> tuple[Sample, np.ndarray | None, np.ndarray | None]:
    """The sample, its image and its gray; None where it cannot be read, which is said."""
    try:
        image = read_image(sample.image)
        return sample, image, to_grayscale(image)
    except (OSError, ValueError) as error:
        tqdm.write(f"skipped {sample.id}: {error}", file=sys.stderr)
        return sample, None, None


def group_by_shape(chunk: list[tuple]):
    """Yields lists of (sample, image, gray) of one shape, small enough for one batch."""
    groups = {}
    for item in chunk:
        if item[2] is not None:
            groups.setdefault(item[2].shape, []).append(item)
    for (height, width), group in groups.items():
        count = max(BATCH_PIXELS // (height * width), 1)
        yield from (group[i : i + count] for i in range(0, len(group), count))


def finish_image(out: Path, name: str, image, nucleus, border) -> str:
    """Numbers the nuclei and writes the files; returns the id."""
    write_prediction(out, name, image, separate_nuclei(nucleus, border))
    return name


def show_predictions(folder: str | Path) -> Path:
    """Shows overlays and masks, reading nothing but the files that were written.

    Args:
        folder: what `predict_samples` wrote to.

    Returns:
        predictions.png in the folder, the same picture, also saved where there is no display.

    Raises:
        FileNotFoundError: no predictions are there.
    """
    folder = Path(folder)
    names = sorted(file.stem for file in (folder / "masks").glob("*.png"))
    if not names:
        raise FileNotFoundError(f"{folder}: no masks/*.png; python Predict_masks.py writes some")
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, SHOWN).astype(int))]
    pictures, titles = [], []
    for name in chosen:
        mask = read_image(folder / "masks" / f"{name}.png")
        nuclei = np.count_nonzero(np.unique(read_image(folder / "labels" / f"{name}.tif")))
        pictures += [read_image(folder / "overlays" / f"{name}.png"), np.stack([mask] * 3, -1)]
        titles += [name[:24], f"{nuclei} nuclei"]
    file = folder / "predictions.png"
    save_contact_sheet(pictures, titles, file)
    show_pictures(file)
    return file


def default_out(data: str | Path) -> Path:
    """data/<source name>_predicted."""
    return Path("data") / f"{Path(data).resolve().stem}_predicted"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=DATA, help=f"images (default {DATA})")
    parser.add_argument("--weights", default=WEIGHTS, help=f"default {WEIGHTS}")
    parser.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    parser.add_argument("--show", action="store_true", help="show the files afterwards")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = open_source(args.data)
    out = Path(args.out or default_out(args.data))
    model = load_unet(args.weights)
    started = time.perf_counter()
    written, skipped = predict_samples(samples, model, out)
    seconds = time.perf_counter() - started
    if not written:
        raise ValueError(f"{args.data}: none of its {len(samples)} images can be read")
    print(f"{len(written)} images in {seconds:.1f} s, {len(written) / seconds:.1f} a second")
    print(f"saved masks, labels and overlays to {out}")
    if args.show:
        print(f"saved the picture of them to {show_predictions(out)}")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_script(main)
