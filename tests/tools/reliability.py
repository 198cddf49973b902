"""Compares the confidence of nuclei with the share of them that is right: weights/confidence.png and a table.

In:  validation images of one source or several. The confidence of an image's nuclei is fitted on the other images, in
     ten parts, so that no nucleus is measured on what it was fitted to.
Out: the reliability diagram, and a table to print: bins of confidence; nuclei, their mean confidence, the share that is
     right; and this share in each source.

    python tests/tools/reliability.py --data data/stage1_train.zip data/tnbc.zip
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from anywhere

import Model
import Predict_masks
from data.confidence import NucleusSums, find_right, fit_confidence, score_confidence
from data.files import run_script, write_whole
from data.matching import overlap_table
from data.nuclei import Calibration
from data.options import DATA, WEIGHTS, PredictionOptions
from data.truth import read_sample
from Main import choose_samples

ROOT = Path(__file__).resolve().parents[2]
PARTS = 10  # parts of the images, for cross-validation
ALL_NUCLEI = PredictionOptions(min_confidence=0.0)
EDGES = np.array([0, 10, 40, 60, 70, 80, 90, 100])  # hundredths; few nuclei are unsure


def measure_nuclei(model, samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probabilities (K, 2) of all nuclei, whether each is right (K,), and the index of its image (K,)."""
    means = []
    is_right = []
    for sample in tqdm(samples, "predicting", unit="image", disable=None):
        image, truth = read_sample(sample)
        labels, job = Predict_masks.segment_image(model, image, ALL_NUCLEI)
        sums = NucleusSums(len(labels))
        sums.add(labels, *job.probabilities)
        means.append(sums.means())
        is_right.append(find_right(overlap_table(truth, labels)))
    images = np.repeat(np.arange(len(samples)), [len(part) for part in is_right])
    return np.concatenate(means), np.concatenate(is_right), images


def cross_validate(means: np.ndarray, is_right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Confidence (K,) of the nuclei of each image, fitted on those of others."""
    confidence = np.zeros(len(means))
    for others, chosen in GroupKFold(PARTS).split(means, groups=images):
        coefficients = fit_confidence(means[others], is_right[others])
        confidence[chosen] = score_confidence(means[chosen], Calibration(confidence=coefficients))
    return confidence


def average_bins(bins: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the values (K,) in each bin; NaN where it is empty."""
    counts = np.bincount(bins, minlength=len(EDGES) - 1)
    with np.errstate(invalid="ignore"):
        return np.bincount(bins, values, len(EDGES) - 1) / counts


def draw_reliability(confidences: np.ndarray, shares: np.ndarray, counts: np.ndarray, file: Path) -> None:
    """Draws the share of right nuclei of each bin against its mean confidence, and how many nuclei there are."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    middles = (EDGES[1:] + EDGES[:-1]) / 200
    widths = np.diff(EDGES) / 100 - 0.01
    axes.bar(middles, counts / counts.sum(), widths, color="#CCCCCC", label="share of all nuclei")
    axes.plot([0, 1], [0, 1], "--", color="#333333", lw=1, label="perfect")
    axes.plot(confidences, shares, "o-", color="#0072B2", label="share that is right")
    axes.set(xlabel="confidence", ylabel="share", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    with write_whole(file) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[str(ROOT / DATA)], help="images with masks")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/confidence.png", help="default %(default)s")
    args = parser.parse_args()
    weights = str(ROOT / WEIGHTS)
    samples = [sample for source in args.data for sample in choose_samples(source, weights)]
    source_of_image = np.array([sample.source for sample in samples])
    means, is_right, images = measure_nuclei(Model.load_unet(weights), samples)
    confidence = cross_validate(means, is_right, images)
    # Confidence has two digits; as whole numbers they fall on the right side of an edge.
    bins = np.clip(np.digitize(np.rint(100 * confidence).astype(int), EDGES) - 1, 0, len(EDGES) - 2)
    counts = np.bincount(bins, minlength=len(EDGES) - 1)
    columns = [average_bins(bins, confidence), average_bins(bins, is_right)]
    for source in dict.fromkeys(source_of_image):
        is_here = source_of_image[images] == source
        columns.append(average_bins(bins[is_here], is_right[is_here]))
    for low, high, count, values in zip(EDGES[:-1], EDGES[1:], counts, zip(*columns, strict=True), strict=True):
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {low / 100:.1f}–{high / 100:.1f} | {count:,} | {cells} |")
    draw_reliability(*columns[:2], counts, args.out)
    print(f"saved the diagram to {args.out}")


if __name__ == "__main__":
    run_script(main)
