"""Scores predicted masks and nuclei against the truth, for each image and over all images.

In: the truth, a folder or .zip of images with masks or labels (see data/layouts.py) or Kaggle's solution .csv (one
run-length row per nucleus), and predictions: the folder that Predict_masks.py wrote, a folder of another tool's label
pictures (ID.tif, ID_cp_masks.png or the like), or Kaggle's table. Dice and IoU are computed on `masks/ID.png`, AP and
F1 on `labels/ID.tif`, at the image's own size; other tools' masks are where their labels are.
Out: two tables, an overview and each score with its interval; in --out `scores.csv` (a row for each image, worst
Dice first), `summary.csv` (a row for each kind and score: mean, low, high) and `scores.png`.
With --report also report.html in --predicted: the images on one page, the worst first.
Scores are means over images, with 95 % intervals by bootstrap over images; pooled is over all pixels, so that large
images weigh more. Numbers of missed, false, merged and split nuclei are summed over images.
Exit code 1: broken images were named and skipped.

    python Evaluate_model.py --truth data/sample --predicted predictions
    python Evaluate_model.py --truth data/stage1_train --predicted out --ids weights/training.json
    python Evaluate_model.py --truth data/sample --predicted mine --compare predictions
    python Evaluate_model.py --truth stage1_solution.csv --predicted submission.csv
"""

from data.options import SEED, UNKNOWN_KIND, evaluate_model_parser

if __name__ == "__main__":
    evaluate_model_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from data.channels import likely_channel
from data.files import UserError, hash_file, run_script, write_csv, write_whole
from data.matching import (
    THRESHOLDS,
    aggregated_jaccard,
    average_precision,
    bootstrap_interval,
    count_errors,
    count_matches,
    count_pixels,
    dice_score,
    f1_score,
    iou_score,
    overlap_table,
    paired_difference,
    panoptic_quality,
    ratio,
)
from data.outputs import provenance_of_run, read_provenance, reset_seen_options
from data.predictions import Predicted, find_predicted, read_predicted
from data.records import KEPT_WEIGHTS, read_training_record
from data.report import check_complete, write_report
from data.run_lengths import read_solution
from data.sources import Sample, find_samples
from data.stacks import find_channels, read_sample_image
from data.truth import describe_formats, read_labels
from Preprocessed_data import image_kind

TITLES = (
    {"dice": "Dice", "iou": "IoU", "ap": "AP", "ap50": "AP50", "f1_50": "F1@0.5", "f1_70": "F1@0.7", "ap75": "AP75"}
    | {"precision": "precision", "recall": "recall", "pq": "PQ", "sq": "SQ", "rq": "RQ", "aji": "AJI"}
    | {"count_error": "count_error"}  # nuclei, and no share
)
SCORES = list(TITLES)
COUNTS = ("missed", "false", "merged", "split")
SUMMARY_COLUMNS = ("kind", "images", "score", "mean", "low", "high")
SCORE_COLUMNS = ("id", "kind", "height", "width", "nuclei_true", "nuclei_predicted", *SCORES, *COUNTS)
COMPARED_SCORES = ("dice", "ap", "ap50", "f1_50", "pq")
KIND_COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's
MIN_BOX = 5  # images; fewer are drawn as points only


def evaluate(
    truth_source: str | Path,
    predicted_source: str | Path,
    ids: Iterable[str] | None = None,
    weights: str | Path | None = None,
) -> tuple[list[dict], list[str]]:
    """Scores every image of the truth, or those named in `ids`.

    Args:
        truth_source: for `open_truth`.
        predicted_source: for `find_predicted`.
        ids: of the images to score; None: all of the truth.
        weights: file that the predictions must be of; None: any.

    Returns:
        score_rows: for every scored image a dict of `id`, `kind` and what `score_image` returns.
        skipped: ids of images with a broken file, each named on stderr.

    Raises:
        UserError: truth and predictions that do not belong together, or predictions of other weights than `weights`.
    """
    ids, truths, predictions = open_sources(truth_source, predicted_source, ids)
    ignored = predictions.keys() - truths.keys()
    if ignored:
        print(f"ignored {len(ignored)} predictions in {predicted_source} without truth in {truth_source}")
    label_files = [predictions[image_id].file for image_id in ids if predictions[image_id].run_lengths is None]
    check_provenance(label_files, weights)
    score_rows = []
    skipped = []
    for image_id in tqdm(ids, desc="scoring", unit="image", disable=None):
        try:
            truth, kind = read_truth(truths[image_id])
            mask, labels = read_predicted(predictions[image_id], image_id, truth.shape)
        except (OSError, UserError) as error:
            tqdm.write(f"skipped {image_id}: {error}", file=sys.stderr)
            skipped.append(image_id)
            continue
        # Of one file mask and labels have one shape; a table has none of its own.
        for file, shape in zip(predictions[image_id].files(), (mask.shape, labels.shape), strict=False):
            if shape != truth.shape:  # the files are of other images: stop
                raise UserError(f"{file} is {shape} but the truth is {truth.shape}")
        score_rows.append({"id": image_id, "kind": kind, **score_image(truth, mask, labels)})
    samples = [truths[row["id"]] for row in score_rows if isinstance(truths[row["id"]], Sample)]
    if any(sample.truths for sample in samples):
        print(f"truth: {describe_formats(samples)}")
    if not score_rows:
        raise UserError(f"no image to score: {len(ids)} chosen, {len(skipped)} of them broken")
    return score_rows, skipped


def open_truth(source: str | Path) -> dict[str, Sample | np.ndarray]:
    """Returns id -> files to read later or, from a solution .csv, id -> labels."""
    if Path(source).suffix.lower() == ".csv":
        return read_solution(source)
    truths = {sample.id: sample for sample in find_channels(find_samples(source, with_truth=True))}
    if not any(sample.has_truth for sample in truths.values()):
        raise UserError(
            f"{source} holds images but no truth; expected ID/masks/*.png, or a folder with images/ and masks/ in it"
        )
    return truths


def open_sources(
    truth_source: str | Path, predicted_source: str | Path, ids: Iterable[str] | None
) -> tuple[list[str], dict[str, Sample | np.ndarray], dict[str, Predicted]]:
    """Returns the ids to score, sorted, the truths of `open_truth` and the predictions of `find_predicted`.

    Raises:
        UserError: an id of `ids`, or of all the truth where that is None, lacks truth or a prediction.
    """
    truths = open_truth(truth_source)
    predictions = find_predicted(predicted_source)
    ids = sorted(set(truths if ids is None else ids))
    unknown = [image_id for image_id in ids if image_id not in truths]
    if unknown:
        raise UserError(f"{len(unknown)} of {len(ids)} ids not in {truth_source}, first {unknown[0]}")
    missing = [image_id for image_id in ids if image_id not in predictions]
    if missing:
        data = "IMAGES" if str(truth_source).lower().endswith(".csv") else truth_source
        raise UserError(
            f"{len(missing)} of {len(ids)} images have no mask and labels in {predicted_source}, "
            f"first {missing[0]}; run: python Predict_masks.py --data {data} --out "
            f"{predicted_source} (an image that it cannot read must leave the truth too)"
        )
    return ids, truths, predictions


def check_provenance(files: Iterable[Path], weights: str | Path | None = None) -> None:
    """Refuses labels of several weights or settings, and of other weights than the ones named.

    Predict_masks.py writes into each file what it is of; of other files nothing is known.
    """
    known = []  # pairs of a provenance and the first file that has it
    for file in files:
        try:
            # Images of one run may have been seen in several ways.
            provenance = reset_seen_options(provenance_of_run(read_provenance(file)))
        except (OSError, UserError):
            continue  # named when it is read whole
        if provenance and provenance not in [other for other, _ in known]:
            known.append((provenance, file))
    if len(known) > 1:
        raise UserError(
            f"{known[0][1]} and {known[1][1]} are of other weights or settings; "
            "predict all with --overwrite, or score them apart"
        )
    if known and weights and Path(weights).is_file():
        provenance, file = known[0]
        if provenance.get("weights_sha256") != hash_file(weights):
            raise UserError(
                f"{file} was not predicted with {weights}; predict anew, or name with --ids "
                "the training.json of the weights that it was predicted with"
            )


def read_truth(truth: Sample | np.ndarray) -> tuple[np.ndarray, str]:
    """Returns labels, (H, W) int32, and the kind of image."""
    if isinstance(truth, np.ndarray):
        return truth, UNKNOWN_KIND
    image = read_sample_image(truth)
    return read_labels(truth, image.shape[:2]), image_kind(likely_channel(image))


def score_image(truth_labels: np.ndarray, predicted_mask: np.ndarray, predicted_labels: np.ndarray) -> dict:
    """Scores one image: its pixels from the mask, its nuclei from the labels.

    Args:
        truth_labels: (H, W) integers, 0 background, one number per nucleus.
        predicted_mask: (H, W) bool, the thresholded probability.
        predicted_labels: (H, W) integers, as the truth.

    Returns:
        Dict of size, counts and scores in [0, 1]; `ap_curve` is a list, one per threshold; `precision` and
        `recall` are of nuclei at 0.5, 1 where there are none to be right or wrong.
    """
    table = overlap_table(truth_labels, predicted_labels)  # counted once, scored many times
    found, false, missed = count_matches(table, THRESHOLDS[0])
    quality, segmentation_quality, recognition_quality = panoptic_quality(table)
    return {
        "height": truth_labels.shape[0],
        "width": truth_labels.shape[1],
        "nuclei_true": table.shape[0] - 1,
        "nuclei_predicted": table.shape[1] - 1,
        "pixels": count_pixels(truth_labels > 0, predicted_mask),  # for the pooled scores
        "dice": dice_score(truth_labels > 0, predicted_mask),
        "iou": iou_score(truth_labels > 0, predicted_mask),
        "ap_curve": [average_precision(table, (threshold,)) for threshold in THRESHOLDS],
        "ap": average_precision(table),
        "ap50": average_precision(table, (0.5,)),
        "f1_50": f1_score(table, 0.5),
        "f1_70": f1_score(table, 0.7),
        "ap75": average_precision(table, (0.75,)),
        "precision": ratio(found, found + false),
        "recall": ratio(found, found + missed),
        "pq": quality,
        "sq": segmentation_quality,
        "rq": recognition_quality,
        "aji": aggregated_jaccard(table),
        "count_error": table.shape[1] - table.shape[0],
        **count_errors(table),
    }


def summarise(score_rows: Sequence[dict]) -> dict[str, tuple[float, float, float]]:
    """The mean of each of `SCORES` over the rows of `evaluate`, and its 95 % interval by bootstrap over images."""
    if not score_rows:
        raise ValueError("no images to score: the mean over no images is not a score")
    summary = {}
    for score in SCORES:
        values = np.array([row[score] for row in score_rows])
        summary[score] = (float(values.mean()), *bootstrap_interval(values))
    return summary


def pooled_dice(score_rows: Sequence[dict]) -> float:
    """Dice of the pixels of all images together."""
    both, true, predicted = np.sum([row["pixels"] for row in score_rows], axis=0).tolist()
    return ratio(2 * both, true + predicted)


def group_by_kind(score_rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns "all" -> rows, then every known kind in alphabetical order -> its rows."""
    groups = {"all": list(score_rows)}
    for kind in sorted({row["kind"] for row in score_rows} - {UNKNOWN_KIND}):
        groups[kind] = [row for row in score_rows if row["kind"] == kind]
    return groups


def format_table(score_rows: Sequence[dict]) -> str:
    """Returns the tables to print: an overview with a line for each kind, and all intervals, a column for each."""
    overview_line = "{:<15}{:>7}{:>27}{:>13}{:>13}{:>10}{:>7}{:>7}{:>8}{:>8}"
    means = ("iou", "ap", "ap50", "f1_50", "f1_70")
    titles = ("median Dice", "pooled Dice", "mean IoU", *(TITLES[score] for score in means[1:]))
    overview = [overview_line.format("kind", "images", "mean Dice [95 % interval]", *titles)]
    others = [score for score in SCORES if score != "dice"]  # which has its interval in the overview
    columns = [["mean [95 % interval]", *(TITLES[score] for score in others), *COUNTS]]
    for kind, group in group_by_kind(score_rows).items():
        summary = summarise(group)
        dice = format_interval(*summary["dice"])
        values = [np.median([row["dice"] for row in group]), pooled_dice(group)]
        values += [summary[score][0] for score in means]
        overview.append(overview_line.format(kind, len(group), dice, *(f"{value:.3f}" for value in values)))
        cells = [format_interval(*summary[score], digits=1 if score == "count_error" else 3) for score in others]
        columns.append([kind, *cells, *(sum(row[count] for row in group) for count in COUNTS)])
    score_line = "{:<21}" + "{:>24}" * (len(columns) - 1)
    return "\n".join([*overview, "", *(score_line.format(*cells) for cells in zip(*columns, strict=True))])


def format_interval(mean: float, low: float, high: float, sign: str = "", digits: int = 3) -> str:
    """A mean with its interval, which few images do not have; sign "+" is for differences.

    >>> format_interval(0.5, 0.25, 1), format_interval(0.5, 0.25, 1, "+")
    ('0.500 [0.250, 1.000]', '+0.500 [+0.250, +1.000]')
    """
    spec = f"{sign}.{digits}f"
    interval = "few images" if math.isnan(low) else f"{low:{spec}}, {high:{spec}}"
    return f"{mean:{spec}} [{interval}]"


def compare(score_rows: Sequence[dict], other_rows: Sequence[dict]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Compares two predictions of the same images, image by image.

    Args:
        score_rows: of `evaluate`.
        other_rows: of `evaluate`, of the same truth.

    Returns:
        kind -> score -> mean difference, rows minus other rows, and its 95 % interval by bootstrap over images.

    Raises:
        UserError: no image has a row in both.
    """
    others = {row["id"]: row for row in other_rows}
    shared = [row for row in score_rows if row["id"] in others]
    if not shared:
        raise UserError("no image is scored in both predictions")
    differences = {}
    for kind, group in group_by_kind(shared).items():
        differences[kind] = {}
        for score in COMPARED_SCORES:
            scores = [row[score] for row in group]
            other_scores = [others[row["id"]][score] for row in group]
            differences[kind][score] = paired_difference(scores, other_scores)
    return differences


def format_comparison(differences: dict, other: str) -> str:
    """The table of `compare` to print, and what it says."""
    line = "{:<15}" + "{:>25}" * len(COMPARED_SCORES)
    lines = [f"difference to {other}, image by image, with its 95 % interval", ""]
    lines.append(line.format("kind", *(TITLES[score] for score in COMPARED_SCORES)))
    for kind, scores in differences.items():
        cells = [format_interval(*interval, sign="+") for interval in scores.values()]
        lines.append(line.format(kind, *cells))
    mean, low, high = differences["all"]["ap"]
    if low > 0 or high < 0:
        lines.append(f"AP is {'higher' if mean > 0 else 'lower'} than that of {other}; the interval does not hold 0")
    else:
        lines.append(f"AP is not shown to differ from that of {other}; the interval holds 0, or there is one image")
    return "\n".join(lines)


def save_scores(score_rows: Sequence[dict], out: str | Path) -> Path:
    """Writes `scores.csv` (worst Dice first), `summary.csv` and `scores.png` into a folder; returns the first."""
    file = Path(out, "scores.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(score_rows, key=lambda row: (row["dice"], row["id"]))
    scores = [{column: row[column] for column in SCORE_COLUMNS} for row in ordered]
    write_csv(file, SCORE_COLUMNS, scores)
    summaries = []
    for kind, group in group_by_kind(score_rows).items():
        for score, means in summarise(group).items():
            cells = ["" if math.isnan(value) else value for value in means]
            summaries.append(dict(zip(SUMMARY_COLUMNS, (kind, len(group), score, *cells), strict=True)))
    write_csv(Path(out, "summary.csv"), SUMMARY_COLUMNS, summaries)
    with write_whole(Path(out, "scores.png")) as temporary:
        draw_scores(score_rows).savefig(temporary, dpi=110)
    print(f"saved scores.csv, summary.csv with the intervals of all scores, and scores.png to {out}")
    return file


def report_scores(truth_source: str | Path, out: str | Path, score_rows: Sequence[dict], scores_csv: Path) -> None:
    """Writes report.html of the scored images into the folder of the predictions; `scores_csv` is scores.csv."""
    truths = open_truth(truth_source)
    ids = [row["id"] for row in score_rows]
    report = write_report(out, ids, scores_csv, lambda image_id: read_truth(truths[image_id])[0])
    print(f"saved the report to {report}; open it in a browser")


def draw_scores(score_rows: Sequence[dict]) -> Figure:
    """Draws Dice of every image (left) and precision at every IoU threshold (right), by kind."""
    groups = group_by_kind(score_rows)
    figure = Figure(figsize=(11, 3 + 0.45 * len(groups)), layout="constrained")  # opens no window
    left, right = figure.subplots(1, 2)
    rng = np.random.default_rng(SEED)
    for position, (kind, group) in enumerate(groups.items()):
        colour = KIND_COLOURS[position % len(KIND_COLOURS)]
        dice = [row["dice"] for row in group]
        jitter = rng.uniform(-0.2, 0.2, len(dice))
        left.scatter(dice, position + jitter, 14, colour, alpha=0.4, lw=0)
        if len(dice) >= MIN_BOX:
            box = left.boxplot(dice, positions=[position], widths=0.6, sym="", orientation="horizontal")
            box["medians"][0].set(color="black", linewidth=2.5)
        curve = np.mean([row["ap_curve"] for row in group], axis=0)
        right.plot(THRESHOLDS, curve, ".-", color=colour, label=f"{kind}: {curve.mean():.3f}")
    left.set_yticks(range(len(groups)), [f"{kind}\nn = {len(group)}" for kind, group in groups.items()])
    left.set(xlabel="Dice", ylim=(len(groups) - 0.5, -0.5))
    left.set_title("Every image; box: quartiles, median; whiskers: 1.5 boxes")
    right.set(xlabel="IoU threshold", ylabel="TP / (TP + FP + FN)", ylim=(-0.02, 1.02))
    right.set_title("AP at each IoU threshold, mean over images")
    right.legend(title="AP", frameon=False, alignment="left", loc="lower left")
    left.grid(axis="x", alpha=0.3)
    right.grid(alpha=0.3)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def validation_ids(record_file: str, source: str) -> list[str]:
    """The validation ids of a training.json that are in this one of its sources; all of them where none is."""
    ids = read_training_record(record_file)["validation_ids"]
    if not ids:
        raise UserError(f"{record_file}: that training had no validation images; score others, without --ids")
    truths = open_truth(source)
    here = [image_id for image_id in ids if image_id in truths]
    if 0 < len(here) < len(ids):
        print(f"{len(here)} of {len(ids)} validation ids are in {source}")
    return here or ids


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return evaluate_model_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    ids = None
    weights = None
    if args.ids:
        ids = validation_ids(args.ids, args.truth)
        weights = Path(args.ids).with_name(KEPT_WEIGHTS)  # what these ids were held out from
    if args.compare:  # says now that it is wrong, not after the tables
        open_sources(args.truth, args.compare, ids)
    if args.report:  # likewise
        check_complete(args.predicted, open_sources(args.truth, args.predicted, ids)[0])
    score_rows, skipped = evaluate(args.truth, args.predicted, ids, weights)
    print(format_table(score_rows))
    other_skipped = []
    if args.compare:
        other_rows, other_skipped = evaluate(args.truth, args.compare, ids)
        print(f"\n{args.compare}:\n{format_table(other_rows)}")
        print(f"\n{format_comparison(compare(score_rows, other_rows), args.compare)}\n")
    predicted = Path(args.predicted)
    out = Path(args.out or (predicted if predicted.is_dir() else predicted.parent))
    scores_csv = save_scores(score_rows, out)
    if args.report:
        report_scores(args.truth, predicted, score_rows, scores_csv)
    return 1 if skipped or other_skipped else 0


if __name__ == "__main__":
    run_script(main)
