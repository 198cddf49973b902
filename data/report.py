"""Writes report.html: the images of a folder of predictions on one page, the doubtful or the worst ones first.

In:  what Predict_masks.py wrote (labels, overlays, tables); with a truth also scores.csv of Evaluate_model.py.
Out: one file that needs neither network nor other files; data/report.html is its frame.
"""

import itertools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import skimage
from tqdm import tqdm

from data.files import UserError, read_csv, write_whole
from data.layouts import count_of
from data.matching import SCORE_NAMES
from data.options import PredictionOptions
from data.outputs import prediction_files, provenance_of_run, read_provenance
from data.pictures import OUTCOME_COLOURS
from data.report_cards import ERRORS, Entry, ReadTruth, draw_card, swatch
from data.tables import WARNINGS

REPORT = "report.html"
FRAME = Path(__file__).with_name(REPORT)
REPORTED_IMAGES = 2000  # at most; a browser opens no page of any size
MEANINGS = {
    "overlay": "the image with each nucleus outlined in yellow",
    "labels": "the nuclei in colours that mean nothing but that neighbours are apart",
    "warnings": "what is doubtful about the answer to an image",
    "seen": "on which background, in which channel and at which scale of the image the nuclei were found; "
    "scale 0.5 is half its height and width, and 1+0.5 both",
    "covered": "share of the image that nuclei cover",
    "area": "of each nucleus, from the smallest to the largest of the image",
    "intensity": "mean of each nucleus in the channel that was seen, or else in all; values of the file",
    "confidence": "mean confidence of the nuclei, from 0 to 1, where it is known",
}
TRUTH_MEANINGS = {
    "difference": "the image in gray with what is right and wrong in colours",
    "found": "predicted and none of the following",
    "missed": "true, and predicted nuclei cover less than half of it",
    "false": "predicted, and true nuclei cover less than half of it",
    "split": "true, and holds more than half of two predicted ones or more",
    "merged": "predicted, and holds more than half of two true ones or more; lines show where it should be parted",
    "Dice": "agreement of the pixels, 1 at best",
    "AP": "average precision of the nuclei: TP / (TP + FP + FN), mean over IoU thresholds from 0.5 to 0.95",
}


def write_report(
    out: str | Path,
    ids: Sequence[str],
    scores_csv: str | Path | None = None,
    read_truth: ReadTruth | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Path:
    """Writes report.html into a folder of predictions, from the files that lie there.

    Without scores the doubtful images come first: those with warnings, then those of low confidence, then those of few
    nuclei. With scores it is the images of the lowest Dice. Of very many images only the first are shown.

    Args:
        out: folder of the predictions.
        ids: of the images.
        scores_csv: with a row for each id.
        read_truth: gives the true labels of an id; needed with scores.
        skipped: id -> reason of images without a prediction, which are named at the top.

    Returns:
        The file.

    Raises:
        UserError: a file of a prediction is missing or cannot be read.
    """
    score_rows = {} if scores_csv is None else {row["id"]: row for row in read_csv(scores_csv)}
    entries = read_entries(out, ids, score_rows)
    shown = entries[:REPORTED_IMAGES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cards = pool.map(draw_card, itertools.count(), shown, itertools.repeat(read_truth))
        cards = list(tqdm(cards, "writing the report", len(shown), unit="image", disable=None))
    frame = Template(FRAME.read_text(encoding="utf-8"))
    fields = describe_page(Path(out), entries, len(shown))
    page = frame.substitute(fields, skipped=list_skipped(skipped or {}), cards="".join(cards))
    file = Path(out, REPORT)
    with write_whole(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def check_complete(out: str | Path, ids: Iterable[str]) -> None:
    """Raises UserError where `out` lacks files of an image, as a table and the folder of another tool do."""
    absent = [image_id for image_id in ids if not prediction_files(out, image_id).are_complete()]
    if absent:
        raise UserError(f"{out}: the report needs the overlay and tables of {absent[0]}, which Predict_masks.py writes")


def read_entries(out: str | Path, ids: Sequence[str], score_rows: dict[str, dict[str, str]]) -> list[Entry]:
    """The images, the doubtful or the worst ones first; raises UserError where a file is missing."""
    check_complete(out, ids)
    all_files = [prediction_files(out, image_id) for image_id in ids]
    entries = [Entry(files, files.read_image_row(), score_rows.get(files.image_id, {})) for files in all_files]
    return sorted(entries, key=rank_by_score if score_rows else rank_by_doubt)


def rank_by_doubt(entry: Entry) -> tuple[float, ...]:
    """Sorts images with more warnings, less confidence, fewer nuclei first."""
    confidence = entry.image_row.get("mean_confidence")
    return -len(entry.warnings()), 1 if confidence is None else confidence, entry.image_row["count"]


def rank_by_score(entry: Entry) -> tuple[float, str]:
    """Sorts images as scores.csv does, the worst Dice first."""
    return float(entry.score_row["dice"]), entry.files.image_id


def describe_page(out: Path, entries: Sequence[Entry], shown: int) -> dict[str, str]:
    """What fills the frame of the page: name in the frame -> HTML; only the first `shown` entries have cards."""
    has_truth = bool(entries[0].score_row)
    total = sum(entry.image_row["count"] for entry in entries)
    heading = f"{count_of(total, 'nucleus', 'nuclei')} in {count_of(len(entries), 'image')}"
    folder = out.resolve().name
    ranking = "the worst Dice first" if has_truth else "with warnings, low confidence or few nuclei first"
    left_out = f"; the first {shown:,} of {len(entries):,} are shown" if shown < len(entries) else ""
    score_filters = ""
    legend = ""
    if has_truth:
        score_filters = "".join(
            f'<label class="narrow">{title} ≤<input type="number" name="{name}" min="0" max="1" step="0.01"></label>'
            for name, title in SCORE_NAMES.items()
        )
        items = "".join(f"<li>{swatch(name)}{name}</li>" for name in OUTCOME_COLOURS)
        legend = f'<ul class="legend" aria-label="Colours of the difference">{items}</ul>'
    meanings = MEANINGS | (TRUTH_MEANINGS if has_truth else {})
    marks = {mark for entry in entries for mark in (*entry.warnings(), *entry.error_names())}
    meanings |= {warning: advice for warning, advice in WARNINGS.items() if warning in marks}
    orders = {"rank": "worst Dice" if has_truth else "doubtful"}
    orders |= {"ap": "worst AP", "errors": "most errors"} if has_truth else {}
    orders |= {"count": "few nuclei", "id": "id"}
    return {
        "title": escape(f"{heading}: {folder}"),
        "heading": heading,
        "lead": escape(f"Folder {folder}, {ranking}{left_out}"),
        "totals": "".join(
            f"<div><dt>{swatch(name)}{name}</dt><dd>{value}</dd></div>" for name, value in sum_up(entries).items()
        ),
        "provenance": escape(describe_provenances(entries)),
        "meanings": "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items()),
        "kinds": list_choices({"": "all"}, sorted({entry.kind() for entry in entries})),
        "marks": list_choices({"": "all", "any": "marked", "none": "not marked"}, sorted(marks)),
        "score_filters": score_filters,
        "orders": list_choices(orders),
        "legend": legend,
    }


def list_skipped(skipped: Mapping[str, str]) -> str:
    """The images without a prediction and the reasons, as HTML; "" where there are none."""
    if not skipped:
        return ""
    items = "".join(f"<li><b>{escape(image_id)}</b>: {escape(text)}</li>" for image_id, text in skipped.items())
    count = "1 image was" if len(skipped) == 1 else f"{len(skipped):,} images were"
    return f'<section class="skipped"><p>{count} skipped:</p><ul>{items}</ul></section>'


def sum_up(entries: Sequence[Entry]) -> dict[str, str]:
    """The figures at the top of the page, by their names."""
    totals = {"with warnings": f"{sum(bool(entry.warnings()) for entry in entries):,}"}
    counts = [entry.image_row["count"] for entry in entries]
    totals["nuclei an image, median"] = f"{np.median(counts):,.0f}"
    if not entries[0].score_row:
        return totals | {"without nuclei": f"{counts.count(0):,}"}
    for name, title in SCORE_NAMES.items():
        totals[f"mean {title}"] = f"{np.mean([float(entry.score_row[name]) for entry in entries]):.3f}"
    return totals | {name: f"{sum(entry.errors()[name] for entry in entries):,}" for name in ERRORS}


def describe_provenances(entries: Iterable[Entry]) -> str:
    """Weights, options and versions in one line."""
    provenances = []
    for entry in entries:
        provenance = provenance_of_run(read_provenance(entry.files.labels))
        if provenance and provenance not in provenances:
            provenances.append(provenance)
    texts = []
    usual = asdict(PredictionOptions())
    for provenance in provenances:
        others = {name: value for name, value in provenance.get("options", {}).items() if value != usual.get(name)}
        options = ", ".join(f"{name} {value}" for name, value in others.items())
        texts.append(f"Weights with SHA-256 {provenance['weights_sha256'][:12]}…, {options or 'default options'}.")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-image {skimage.__version__}"
    return " ".join([*(texts or ["Weights unknown."]), f"Report written with {versions}."])


def list_choices(choices: dict[str, str], values: Iterable[str] = ()) -> str:
    """The options of a menu as HTML: those of `choices`, value -> text, then values that are shown as they are."""
    choices = choices | {value: value for value in values}
    return "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.items())
