"""Scores the network against the diameter of nuclei, drawn and real ones rescaled; draws weights/scale.png.

Drawn: soft disks apart, of 4 to 400 pixels, as a camera of 16 bits writes them. Real: a part of each of 16 validation
images, 8 common nuclei wide and high, enlarged or reduced so that the common nucleus has the diameter. It is the same
part at every diameter, so that only the scale differs.

    python tests/tools/scale_curve.py --data data/stage1_train.zip
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.draw import disk
from skimage.transform import resize

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Model
import Predict_masks
from data.files import run_script, write_whole
from data.matching import count_matches, dice_score, overlap_table
from data.nuclei import common_diameter
from data.options import DATA
from data.truth import read_sample
from Main import choose_samples

OUT = Path(__file__).resolve().parents[2] / "weights" / "scale.png"
DIAMETERS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300, 400)  # pixels
ACROSS = 8  # common nuclei that a part of a real image is wide and high
IMAGES = 16  # real ones
SEED = 2018

Pair = tuple[np.ndarray, np.ndarray]  # image and labels


def draw_disks(diameter: int) -> Pair:
    """A camera image of 9 soft disks (4 from 128 pixels on), and their labels."""
    rng = np.random.default_rng([SEED, diameter])
    across = 3 if diameter < 128 else 2
    pitch = int(1.7 * diameter) + 8
    labels = np.zeros((across * pitch, across * pitch), np.int32)
    for number in range(across**2):
        centre = (np.array(divmod(number, across)) + 0.5) * pitch + rng.uniform(-0.1, 0.1, 2) * diameter
        labels[disk(centre, diameter / 2, shape=labels.shape)] = number + 1
    signal = ndimage.gaussian_filter((labels > 0).astype(float), max(diameter / 20, 0.7))
    image = 420 + 600 * signal + 12 * rng.standard_normal(labels.shape)
    return image.astype(np.uint16), labels


def cut_part(image: np.ndarray, labels: np.ndarray) -> Pair:
    """The part of an image around the nucleus that is nearest to its middle."""
    inside = np.argwhere(labels)
    middle = inside[np.linalg.norm(inside - np.array(labels.shape) / 2, axis=1).argmin()]
    side = round(ACROSS * common_diameter(labels))
    corner = [
        min(max(centre - side // 2, 0), max(length - side, 0))
        for centre, length in zip(middle, labels.shape, strict=True)
    ]
    box = tuple(slice(start, start + side) for start in corner)
    return image[box], labels[box]


def rescale(image: np.ndarray, labels: np.ndarray, factor: float) -> Pair:
    """Enlarges or reduces both; reduced images are averaged, enlarged ones interpolated."""
    shape = [max(round(factor * side), 1) for side in labels.shape]
    resized = resize(image, (*shape, *image.shape[2:]), order=1, preserve_range=True, anti_aliasing=factor < 1)
    numbers = resize(labels, shape, order=0, preserve_range=True, anti_aliasing=False)
    return resized.round().astype(image.dtype), numbers.astype(labels.dtype)


def score(model, pairs: list[Pair]) -> tuple[float, float]:
    """Mean Dice of images, and AP50 of the nuclei of all together: a part of an image may hold one alone."""
    dice = []
    matches = []
    for image, truth in pairs:
        labels, _ = Predict_masks.segment_image(model, image)
        dice.append(dice_score(truth > 0, labels > 0))
        matches.append(count_matches(overlap_table(truth, labels), 0.5))
    true_positives, false_positives, false_negatives = np.sum(matches, axis=0)
    return float(np.mean(dice)), true_positives / (true_positives + false_positives + false_negatives)


def draw_curves(curves: dict[str, np.ndarray], file: Path) -> None:
    """Draws Dice and AP50 against the diameter, (len(DIAMETERS), 2) for each name."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for column, (axes, title) in enumerate(zip(figure.subplots(1, 2), ("Dice", "AP50"), strict=True)):
        for name, scores in curves.items():
            axes.plot(DIAMETERS, scores[:, column], ".-", label=name)
        axes.set(xscale="log", xlabel="diameter of nuclei, pixels", title=title, ylim=(0, 1.02))
        axes.set_xticks(DIAMETERS[::2], [str(diameter) for diameter in DIAMETERS[::2]], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    with write_whole(file) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="default %(default)s")
    parser.add_argument("--weights", default=Predict_masks.WEIGHTS, help="default %(default)s")
    args = parser.parse_args()
    model = Model.load_unet(args.weights)
    samples = choose_samples(args.data, args.weights)
    chosen = np.unique(np.linspace(0, len(samples) - 1, IMAGES).astype(int))
    real = [read_sample(samples[index]) for index in chosen]
    widths = [common_diameter(labels) for _, labels in real]
    parts = [cut_part(*pair) for pair in real]
    curves = {"drawn": [], "real, rescaled": []}
    print(f"{'diameter':>8}{'drawn Dice':>12}{'AP50':>8}{'real Dice':>12}{'AP50':>8}")
    for diameter in DIAMETERS:
        curves["drawn"].append(score(model, [draw_disks(diameter)]))
        rescaled = [rescale(*part, diameter / width) for part, width in zip(parts, widths, strict=True)]
        curves["real, rescaled"].append(score(model, rescaled))
        drawn_dice, drawn_ap = curves["drawn"][-1]
        real_dice, real_ap = curves["real, rescaled"][-1]
        print(f"{diameter:>8}{drawn_dice:>12.3f}{drawn_ap:>8.3f}{real_dice:>12.3f}{real_ap:>8.3f}", flush=True)
    draw_curves({name: np.array(scores) for name, scores in curves.items()}, OUT)
    print(f"saved the curves to {OUT}")
    return 0


if __name__ == "__main__":
    run_script(main)
