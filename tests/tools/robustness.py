"""Disturbs validation images as microscopes and people do, and counts the nuclei again. Not collected by pytest.

Each row of the table is one disturbance of the same fluorescence images: nuclei found, as a share of the undisturbed
answer, and the mean Dice to that answer, where the picture is left.

    python tests/tools/robustness.py --data data/stage1_train.zip
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Evaluate_model
import Model
import Predict_masks
import Preprocessed_data
from data.files import run_script
from data.nuclei import MIN_AREA, filter_by_area
from data.options import DATA, WEIGHTS
from data.truth import read_sample
from Main import choose_samples

SEED = 2018
IMAGES = 12
OFFSET = 420  # gray levels of the camera, in 16 bits
GAIN = 12  # gray levels of 16 bits for one of 8
WHITE = 65535
ENLARGED = 6  # times

Disturbed = tuple[np.ndarray, np.ndarray | None]  # the image, and where the undisturbed answer counts


def to_16_bits(gray: np.ndarray) -> np.ndarray:
    """A gray image of 8 bits as a camera with an offset writes it."""
    return OFFSET + GAIN * gray.astype(np.uint16)


def add_border(gray: np.ndarray, width: int, value: int) -> Disturbed:
    """A border of one value over the outermost pixels."""
    is_picture = np.zeros(gray.shape, bool)
    is_picture[width:-width, width:-width] = True
    return np.where(is_picture, gray, np.array(value, gray.dtype)), is_picture


def add_hot_pixels(gray: np.ndarray, share: float, value: int, rng: np.random.Generator) -> Disturbed:
    """Pixels of one value, strewn at random."""
    return np.where(rng.random(gray.shape) < share, np.array(value, gray.dtype), gray), None


def add_debris(gray: np.ndarray, labels: np.ndarray, share: float, ratio: float, rng) -> Disturbed:
    """A bright disk of a share of the area, `ratio` times as bright as the nuclei."""
    radius = np.sqrt(share * gray.size / np.pi)
    row, column = (rng.uniform(radius, side - radius) for side in gray.shape)
    rows, columns = np.ogrid[: gray.shape[0], : gray.shape[1]]
    disk = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    background = np.median(gray[labels == 0])
    value = background + ratio * (np.median(gray[labels > 0]) - background)
    value = min(value, np.iinfo(gray.dtype).max)
    covered = np.isin(labels, np.unique(labels[disk])[1:]) | ndimage.binary_dilation(disk, iterations=4)
    return np.where(disk, np.array(value, gray.dtype), gray), ~covered


def add_white_edge(gray: np.ndarray, share: float) -> Disturbed:
    """A white margin at the right, of a share of the width."""
    width = max(round(share * gray.shape[1]), 1)
    is_picture = np.ones(gray.shape, bool)
    is_picture[:, -width:] = False
    return np.where(is_picture, gray, np.array(np.iinfo(gray.dtype).max, gray.dtype)), is_picture


def merge_cytoplasm(gray: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Disturbed:
    """An RGB merge: the nuclei are blue, cytoplasm around them is green and as bright."""
    near = np.exp(-ndimage.distance_transform_edt(labels == 0) / 12) * (labels == 0)
    grain = ndimage.gaussian_filter(rng.standard_normal(gray.shape), 2)
    green = near * (1 + 0.3 * grain / grain.std()) * np.percentile(gray, 99)
    green = np.clip(green, 0, 255).astype(np.uint8)
    return np.dstack([np.zeros_like(gray), green, gray]), None


def enlarge(gray: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of an image with most nuclei, a third of its sides, enlarged; its labels, and where they count.

    Where the cut leaves less than MIN_AREA pixels of a nucleus, neither finding nor missing it counts.
    """
    height, width = (max(side // 3, 40) for side in gray.shape)
    best = max(
        (
            (row, column)
            for row in range(0, gray.shape[0] - height + 1, 16)
            for column in range(0, gray.shape[1] - width + 1, 16)
        ),
        key=lambda corner: len(np.unique(labels[corner[0] : corner[0] + height, corner[1] : corner[1] + width])),
    )
    part = np.s_[best[0] : best[0] + height, best[1] : best[1] + width]
    gray = ndimage.zoom(gray[part].astype(np.float32), ENLARGED, order=1).clip(0, 255).astype(np.uint8)
    labels = labels[part]
    is_picture = (labels == 0) | (filter_by_area(labels, MIN_AREA) > 0)
    return gray, ndimage.zoom(labels, ENLARGED, order=0), ndimage.zoom(is_picture, ENLARGED, order=0)


def disturb(gray: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Disturbed]:
    """All disturbances of one gray image of 8 bits, by their names in the table."""
    rng = np.random.default_rng([SEED, seed])
    deep = to_16_bits(gray)
    return {
        "16 bits, camera offset": (deep, None),
        "and a border of zeros, 1 pixel": add_border(deep, 1, 0),
        "and a border of zeros, 4 pixels": add_border(deep, 4, 0),
        "and 0.25 % hot pixels": add_hot_pixels(deep, 0.0025, WHITE, rng),
        "and 5 % hot pixels": add_hot_pixels(deep, 0.05, WHITE, rng),
        "and 1 % dead pixels": add_hot_pixels(deep, 0.01, 0, rng),
        "and a disk of 0.3 %, 20 times as bright": add_debris(deep, labels, 0.003, 20, rng),
        "and a disk of 3 %, 20 times as bright": add_debris(deep, labels, 0.03, 20, rng),
        "green cytoplasm, as bright (RGB merge)": merge_cytoplasm(gray, labels, rng),
        "a white edge of 5 %": add_white_edge(gray, 0.05),
    }


def count_inside(labels: np.ndarray, is_picture: np.ndarray | None) -> int:
    """Nuclei whose pixels mostly lie where the answer counts."""
    if is_picture is None:
        return len(np.unique(labels)) - 1
    inside = np.bincount(labels[is_picture], minlength=labels.max() + 1)
    return int((inside[1:] > np.bincount(labels.ravel())[1:] / 2).sum())


def measure(segment: Callable[[np.ndarray], np.ndarray], images: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """For each disturbance: nuclei of the undisturbed answer, nuclei found, and the Dice of every image."""
    rows = {}
    for seed, (image, truth) in enumerate(images):
        gray = Preprocessed_data.brightness(image)
        expected = segment(gray)
        for name, (disturbed, is_picture) in disturb(gray, truth, seed).items():
            add_row(rows, name, expected, segment(disturbed), is_picture)
        part, labels, is_picture = enlarge(gray, expected)
        add_row(rows, "a part enlarged six times", labels, segment(part), is_picture)
    return rows


def add_row(rows: dict, name: str, expected: np.ndarray, labels: np.ndarray, is_picture: np.ndarray | None) -> None:
    """Adds one image to the counts of a disturbance."""
    counts = rows.setdefault(name, {"expected": 0, "found": 0, "dice": []})
    counts["expected"] += count_inside(expected, is_picture)
    counts["found"] += count_inside(labels, is_picture)
    picture = np.ones(labels.shape, bool) if is_picture is None else is_picture
    counts["dice"].append(Evaluate_model.dice_score((expected > 0)[picture], (labels > 0)[picture]))


def choose_images(data: str, weights: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fluorescence images that the weights were not trained on, evenly chosen, with their true labels."""
    pairs = [read_sample(sample) for sample in choose_samples(data, weights)]
    pairs = [pair for pair in pairs if Preprocessed_data.image_kind(pair[0]) == Preprocessed_data.FLUORESCENCE]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, IMAGES).astype(int))
    return [pairs[index] for index in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="default %(default)s")
    parser.add_argument("--weights", default=WEIGHTS, help="default %(default)s")
    args = parser.parse_args()
    model = Model.load_unet(args.weights)

    def segment(image: np.ndarray) -> np.ndarray:
        return Predict_masks.segment_image(model, image)[0]

    print(f"{'disturbance':<42}{'nuclei':>8}{'found':>8}{'share':>8}{'Dice':>8}")
    for name, row in measure(segment, choose_images(args.data, args.weights)).items():
        share = row["found"] / max(row["expected"], 1)
        print(f"{name:<42}{row['expected']:>8}{row['found']:>8}{share:>8.3f}{np.mean(row['dice']):>8.3f}")
    return 0


if __name__ == "__main__":
    run_script(main)
