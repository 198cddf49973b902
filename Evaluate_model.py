"""Scores predicted masks and nuclei against the truth, for each image and over all images.

In: the truth, a folder or .zip in Kaggle's layout (one PNG per nucleus) or Kaggle's solution .csv
(one run-length row per nucleus), and the folder that Predict_masks.py wrote. Dice and IoU are
computed on `masks/ID.png`, AP and F1 on `labels/ID.tif`, at the image's own size.
Out: one table; `scores.csv` (one row per image, worst Dice first) and `scores.png` in --out.
Mean and median are over images; pooled is over all pixels, so that large images weigh more. AP and
F1 are means over images. Exit code 1: broken images were named and skipped.

    python Evaluate_model.py --truth data/sample --predicted predictions
    python Evaluate_model.py --truth data/stage1_train --predicted out --ids weights/training.json
"""

import argparse
import csv
import hashlib
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from tqdm import tqdm

import Preprocessed_data as data

# Kaggle's 0.50, 0.55, ... 0.95. n / 100 is the double nearest to the decimal, as is an IoU of that
# value, so the two are equal; np.linspace(0.5, 0.95, 10) would hold 0.8999999999999999 for 0.9.
THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
RESAMPLES = 2000  # bootstrap resamples of the images
SEED = 2018  # of the bootstrap and of the jitter in the figure: same scores, same interval
UNKNOWN_KIND = "unknown"  # a solution .csv holds no images, so nothing tells their kind
COLUMNS = "id kind height width nuclei_true nuclei_predicted dice iou ap ap50 f1_50 f1_70".split()
COLORS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's


def evaluate(
    truth_source: str | Path,
    predicted_dir: str | Path,
    ids: Iterable[str] | None = None,
    weights: str | Path | None = None,
) -> tuple[list[dict], list[str]]:
    """Scores every image of the truth, or those named in `ids`.

    Raises:
        FileNotFoundError, ValueError: truth and predictions that do not belong together, or
            predictions not of `weights`, where a file is named.

    Returns:
        `(rows, skipped)`: for every scored image a dict of `id`, `kind` and what `score_image`
        returns; and the ids of images with a broken file, each named on stderr.
    """
    truths = open_truth(truth_source)
    ids = check_ids(ids, truths, str(truth_source), Path(predicted_dir))
    check_origins([Path(predicted_dir, "labels", f"{image_id}.tif") for image_id in ids], weights)
    rows, skipped = [], []
    for image_id in tqdm(ids, desc="scoring", unit="image", disable=None):
        try:
            truth, kind = read_truth(truths[image_id])
            mask, labels = read_prediction(Path(predicted_dir), image_id)
        except (OSError, ValueError) as error:
            tqdm.write(f"skipped {image_id}: {error}", file=sys.stderr)
            skipped.append(image_id)
            continue
        check_same_shape(truth, mask, f"masks/{image_id}.png")  # or they are of other images: stop
        check_same_shape(truth, labels, f"labels/{image_id}.tif")
        rows.append({"id": image_id, "kind": kind, **score_image(truth, mask, labels)})
    if not rows:
        raise ValueError(f"no image to score: {len(ids)} chosen, {len(skipped)} of them broken")
    return rows, skipped


def open_truth(source: str | Path) -> dict[str, data.Sample | np.ndarray]:
    """Returns id -> files to read later or, from a solution .csv, id -> labels."""
    if Path(source).suffix.lower() == ".csv":
        return data.read_solution(source)
    truths = {sample.id: sample for sample in data.open_source(source)}
    if not any(sample.masks for sample in truths.values()):
        raise ValueError(f"{source} holds images but no truth; expected ID/masks/*.png")
    return truths


def check_ids(ids: Iterable | None, truths: dict, source: str, predicted_dir: Path) -> list[str]:
    """Returns the ids to score; an error counts those without truth or without prediction."""
    ids = sorted(set(truths if ids is None else ids))
    masks = {f.stem for e in data.MASK_ENDINGS for f in predicted_dir.glob(f"masks/[!.]*{e}")}
    labels = {file.stem for file in predicted_dir.glob("labels/[!.]*.tif")}
    if unknown := [image_id for image_id in ids if image_id not in truths]:
        raise ValueError(f"{len(unknown)} of {len(ids)} ids not in {source}, first {unknown[0]}")
    if missing := [image_id for image_id in ids if image_id not in masks & labels]:
        images = "IMAGES" if source.lower().endswith(".csv") else source
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} images have no mask and labels in {predicted_dir}, "
            f"first {missing[0]}; "
            f"run: python Predict_masks.py --data {images} --out {predicted_dir} "
            "(an image that it cannot read must leave the truth too)"
        )
    if ignored := (masks | labels) - set(truths):
        print(f"ignored {len(ignored)} predictions in {predicted_dir} without truth in {source}")
    return ids


def check_origins(files: list[Path], weights: str | Path | None = None) -> None:
    """Refuses labels of several weights or settings, and of other weights than the ones named.

    Predict_masks.py writes into each file what it is of; of files without a word nothing is known.
    """
    origins = {}
    for file in files:
        try:
            origins.setdefault(data.read_origin(file), file)
        except (OSError, ValueError):
            continue  # named when it is read whole
    origins.pop("", None)
    if len(origins) > 1:
        first, second, *_ = origins.values()
        raise ValueError(
            f"{first} and {second} are of other weights or settings; "
            "predict all with --overwrite, or score them apart"
        )
    if weights and Path(weights).is_file():
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        for origin, file in origins.items():
            if digest not in origin:
                raise ValueError(
                    f"{file} was not predicted with {weights}; predict anew, or name with --ids "
                    "the training.json of the weights that it was predicted with"
                )


def read_truth(truth: data.Sample | np.ndarray) -> tuple[np.ndarray, str]:
    """Returns labels, (H, W) int32, and the kind of image."""
    if isinstance(truth, np.ndarray):
        return truth, UNKNOWN_KIND
    image = data.read_image(truth.image)
    return data.read_labels(truth, image.shape[:2]), data.image_kind(image)


def read_prediction(folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns mask, (H, W) bool, and labels, (H, W) integers; ValueError if a file holds others."""
    masks = [folder / "masks" / f"{image_id}{ending}" for ending in data.MASK_ENDINGS]
    file = next(file for file in masks if file.exists())
    mask = data.read_image(file)
    labels = data.read_image(folder / "labels" / f"{image_id}.tif")
    if mask.ndim != 2 or not np.isin(mask, (0, 255)).all():  # 0/1 would look black elsewhere
        raise ValueError(f"masks/{file.name} should be one channel of 0 and 255 only")
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise ValueError(f"labels/{image_id}.tif should be one channel of whole numbers")
    return mask == 255, labels


def score_image(
    truth_labels: np.ndarray, predicted_mask: np.ndarray, predicted_labels: np.ndarray
) -> dict:
    """Scores one image: its pixels from the mask, its nuclei from the labels.

    Args:
        truth_labels, predicted_labels: (H, W) integers, 0 background, one number per nucleus.
        predicted_mask: (H, W) bool, the thresholded probability.

    Returns:
        Dict of size, counts and scores in [0, 1]; `precision` is a list, one per threshold.
    """
    table = overlap_table(truth_labels, predicted_labels)  # counted once, scored many times
    return {
        "height": truth_labels.shape[0],
        "width": truth_labels.shape[1],
        "nuclei_true": table.shape[0] - 1,
        "nuclei_predicted": table.shape[1] - 1,
        "pixels": count_pixels(truth_labels > 0, predicted_mask),  # for the pooled scores
        "dice": dice_score(truth_labels > 0, predicted_mask),
        "iou": iou_score(truth_labels > 0, predicted_mask),
        "precision": [average_precision(table, (threshold,)) for threshold in THRESHOLDS],
        "ap": average_precision(table),
        "ap50": average_precision(table, (0.5,)),
        "f1_50": f1_score(table, 0.5),
        "f1_70": f1_score(table, 0.7),
    }


def dice_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Sørensen–Dice, `2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())`.

    Of two (H, W) bool masks; in [0, 1]; 1 if both are empty, 0 if one is.

    >>> dice_score(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    both, true, guessed = count_pixels(truth, predicted)
    return ratio(2 * both, true + guessed)


def iou_score(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union, `(truth & predicted).sum() / (truth | predicted).sum()`; as Dice.

    >>> iou_score(np.array([True, True, True, False]), np.array([False, True, True, True]))
    0.5
    """
    both, true, guessed = count_pixels(truth, predicted)
    return ratio(both, true + guessed - both)


def overlap_table(truth_labels: np.ndarray, predicted_labels: np.ndarray) -> coo_array:
    """Counts the pixels of every pair of a true and a predicted nucleus, background included.

    Args:
        truth_labels, predicted_labels: (H, W) integers, 0 background, K and P nuclei in any order.

    Returns:
        (K + 1, P + 1) sparse integers, pixels; row 0 and column 0 are the background.

    >>> overlap_table(np.array([0, 1, 1, 7]), np.array([0, 0, 3, 3])).toarray().tolist()
    [[1, 0], [1, 1], [0, 1]]
    """
    check_same_shape(truth_labels, predicted_labels)
    # The 0 in front makes the background the first also where no pixel is background.
    true_numbers, rows = np.unique(np.append(0, truth_labels), return_inverse=True)
    predicted_numbers, columns = np.unique(np.append(0, predicted_labels), return_inverse=True)
    pixels = np.ones(truth_labels.size, int), (rows[1:], columns[1:])
    table = coo_array(pixels, shape=(len(true_numbers), len(predicted_numbers)))
    table.sum_duplicates()  # most pairs of a large image share no pixel and take no memory
    return table


def count_matches(table: np.ndarray | coo_array, threshold: float) -> tuple[int, int, int]:
    """Returns TP, FP, FN: nuclei found, invented and missed, from an `overlap_table`.

    A pair matches if its IoU is greater than the threshold (Kaggle's rule: exactly 0.5 is no match
    at 0.5). From 0.5 on it shares more than half of both nuclei, so neither has another match.

    >>> count_matches(np.array([[0, 0, 0], [1, 9, 0], [5, 0, 5]]), 0.5)  # IoU 0.9, exactly 0.5
    (1, 1, 1)
    """
    if threshold < 0.5:
        raise ValueError(f"expected an IoU threshold of at least 0.5, got {threshold}")
    table = coo_array(table)
    rows, columns = table.coords
    union = table.sum(axis=1)[rows] + table.sum(axis=0)[columns] - table.data
    nuclei = (rows > 0) & (columns > 0)
    matches = int((nuclei & (table.data / union > threshold)).sum())
    return matches, table.shape[1] - 1 - matches, table.shape[0] - 1 - matches


def average_precision(
    table: np.ndarray | coo_array, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """AP of one image: the mean over IoU thresholds of `TP / (TP + FP + FN)`; 1 without nuclei.

    >>> average_precision(np.array([[0, 0], [3, 7]]))  # IoU 0.7: found at 0.50, 0.55, 0.60, 0.65
    0.4
    """
    counts = [count_matches(table, threshold) for threshold in thresholds]
    return float(np.mean([ratio(tp, tp + fp + fn) for tp, fp, fn in counts]))


def f1_score(table: np.ndarray | coo_array, threshold: float) -> float:
    """F1 of the nuclei of one image, `2 * TP / (2 * TP + FP + FN)`; 1 without any nuclei.

    >>> round(f1_score(np.array([[0, 0], [1, 9], [5, 0]]), 0.5), 3)  # one found, one missed
    0.667
    """
    tp, fp, fn = count_matches(table, threshold)
    return ratio(2 * tp, 2 * tp + fp + fn)


def count_pixels(truth: np.ndarray, predicted: np.ndarray) -> tuple[int, int, int]:
    """Returns the pixels in both masks, in the true one and in the predicted one."""
    check_same_shape(truth, predicted)
    if truth.dtype != bool or predicted.dtype != bool:
        raise ValueError(f"masks should be bool, got {truth.dtype} and {predicted.dtype}")
    return int((truth & predicted).sum()), int(truth.sum()), int(predicted.sum())


def check_same_shape(truth: np.ndarray, predicted: np.ndarray, name: str = "prediction") -> None:
    """Raises a ValueError that names both shapes where they differ."""
    if truth.shape != predicted.shape:
        raise ValueError(f"{name} is {predicted.shape} but the truth is {truth.shape}")


def ratio(part: int, whole: int) -> float:
    """Returns part / whole, and 1 where the whole is 0."""
    return part / whole if whole else 1.0  # nothing was to be found and nothing was


def summarise(rows: Sequence[dict]) -> dict[str, float]:
    """Sums up the rows of `evaluate`: means over images, and of Dice as its names say."""
    if not rows:
        raise ValueError("no images to score: the mean over no images is not a score")
    both, true, guessed = np.sum([row["pixels"] for row in rows], axis=0).tolist()
    dice = np.array([row["dice"] for row in rows])
    stats = {"dice_mean": dice.mean(), "dice_median": np.median(dice)}
    stats["dice_low"], stats["dice_high"] = bootstrap_interval(dice)
    stats["dice_pooled"] = ratio(2 * both, true + guessed)
    means = ("iou", "ap", "ap50", "f1_50", "f1_70")
    return stats | {score: np.mean([row[score] for row in rows]) for score in means}


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of (N,) scores; nan if N is 1."""
    if len(values) < 2:  # one image cannot tell how images differ
        return np.nan, np.nan
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    return tuple(np.percentile(values[draws].mean(axis=1), (2.5, 97.5)))


def group_by_kind(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns "all" -> rows, then every known kind in alphabetical order -> its rows."""
    kinds = sorted({row["kind"] for row in rows} - {UNKNOWN_KIND})
    return {"all": rows, **{kind: [row for row in rows if row["kind"] == kind] for kind in kinds}}


def format_table(rows: Sequence[dict]) -> str:
    """Returns the table to print: one line for all images and one for every kind of image."""
    line = "{:<15}{:>7}{:>27}{:>13}{:>13}{:>10}{:>7}{:>7}{:>8}{:>8}"
    scores = ("dice_median", "dice_pooled", "iou", "ap", "ap50", "f1_50", "f1_70")
    titles = ("median Dice", "pooled Dice", "mean IoU", "AP", "AP50", "F1@0.5", "F1@0.7")
    lines = [line.format("kind", "images", "mean Dice [95 % interval]", *titles)]
    for kind, group in group_by_kind(rows).items():
        stats = summarise(group)
        dice = "{dice_mean:.3f} [{dice_low:.3f}, {dice_high:.3f}]".format_map(stats)
        dice = dice.replace("nan, nan", "one image")
        lines.append(line.format(kind, len(group), dice, *(f"{stats[s]:.3f}" for s in scores)))
    return "\n".join(lines)


def save_scores(rows: Sequence[dict], out: str | Path) -> None:
    """Writes `scores.csv` (worst Dice first) and `scores.png` into the folder `out`."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["dice"], row["id"])))
    Path(out).mkdir(parents=True, exist_ok=True)
    data.write_whole(Path(out, "scores.csv"), lambda f: f.write_bytes(table.getvalue().encode()))
    data.write_whole(Path(out, "scores.png"), lambda f: draw_scores(rows).savefig(f, dpi=110))
    print(f"saved scores.csv and scores.png to {out}")


def draw_scores(rows: Sequence[dict]) -> Figure:
    """Draws Dice of every image (left) and precision at every IoU threshold (right), by kind."""
    groups = group_by_kind(rows)
    figure = Figure(figsize=(11, 3 + 0.45 * len(groups)), layout="constrained")  # opens no window
    left, right = figure.subplots(1, 2)
    jitter = np.random.default_rng(SEED)
    for row, (kind, group) in enumerate(groups.items()):
        dice, color = [scores["dice"] for scores in group], COLORS[row % len(COLORS)]
        left.scatter(dice, row + jitter.uniform(-0.2, 0.2, len(dice)), 14, color, alpha=0.4, lw=0)
        if len(dice) >= 5:  # fewer have no quartiles worth the name
            box = left.boxplot(dice, positions=[row], widths=0.6, sym="", orientation="horizontal")
            box["medians"][0].set(color="black", linewidth=2.5)
        curve = np.mean([scores["precision"] for scores in group], axis=0)
        right.plot(THRESHOLDS, curve, ".-", color=color, label=f"{kind}: {curve.mean():.3f}")
    left.set_yticks(range(len(groups)), [f"{kind}\nn = {len(g)}" for kind, g in groups.items()])
    left.set(xlabel="Dice", title="Every image, quartiles, median", ylim=(len(groups) - 0.5, -0.5))
    right.set(xlabel="IoU threshold", ylabel="TP / (TP + FP + FN)", ylim=(-0.02, 1.02))
    right.set_title("Precision at each IoU threshold, mean over images")
    right.legend(title="AP", frameon=False, alignment="left", loc="lower left")
    for axes, lines in ((left, "x"), (right, "both")):
        axes.grid(axis=lines, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", required=True, help="Kaggle folder or .zip, or solution .csv")
    parser.add_argument("--predicted", required=True, help="folder that Predict_masks.py wrote")
    parser.add_argument("--out", help="folder of scores.csv and scores.png (default: --predicted)")
    parser.add_argument(
        "--ids", help="training.json: only its validation ids, predicted with its own weights"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    ids, weights = None, None
    if args.ids:
        ids = data.read_record(args.ids)["validation_ids"]
        weights = Path(args.ids).with_name("unet.keras")  # what these ids were held out from
    rows, skipped = evaluate(args.truth, args.predicted, ids, weights)
    print(format_table(rows))
    save_scores(rows, args.out or args.predicted)
    return 1 if skipped else 0


if __name__ == "__main__":
    data.run_script(main)
