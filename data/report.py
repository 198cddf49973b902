"""Writes report.html: the images of a folder of predictions on one page, the doubtful or the worst ones first.

In:  what Predict_masks.py wrote (labels, overlays, tables); with a truth also scores.csv of Evaluate_model.py.
Out: one file that needs neither network nor other files; data/report.html is its frame.
"""

import base64
import csv
import io
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
import skimage
from PIL import Image
from tqdm import tqdm

from data.files import UserError, write_whole
from data.images import open_rows, read_image, subsample
from data.outputs import PredictionFiles, prediction_files, provenance_of_run, read_provenance
from data.pictures import OUTCOME_COLOURS, draw_difference, draw_thumbnails

REPORT = "report.html"
FRAME = Path(__file__).with_name(REPORT)
REPORTED_IMAGES = 2000  # at most; a browser opens no page of any size
THUMBNAIL = 320  # pixels, longer side
LABEL_PIXELS = 2048 * 2048  # of the labels of a large image that its thumbnails are made from
WEBP_QUALITY = 72
BINS = 24  # of a histogram
BAR_HEIGHT = 40  # of the fullest bin
ERRORS = tuple(name for name in OUTCOME_COLOURS if name != "found")
SCORES = ("dice", "ap")
CARD = Template("""\
<article tabindex="-1" data-id="$id" data-kind="$kind" data-marks="$marks" data-count="$count" data-rank="$rank"$scores>
<div class="name"><h2>$id</h2><span class="chip">$kind</span>$warnings</div>
<div class="pictures">$pictures</div>
<div><p class="count">$nuclei$truth</p>$outcome<p class="seen">$seen</p>
<div class="histograms">$histograms</div></div>
</article>
""")
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

Truths = Callable[[str], np.ndarray]  # id of an image -> its true labels (H, W)


@dataclass(frozen=True)
class Entry:
    """An image on the page."""

    name: str
    files: PredictionFiles
    row: dict  # of images.csv
    score: dict[str, str]  # of scores.csv; {} without a truth

    def kind(self) -> str:
        """The kind of image where the scores know it, else the background."""
        kind = self.score.get("kind", "unknown")
        return f"{self.row['background']} background" if kind == "unknown" else kind

    def warnings(self) -> list[str]:
        """What is doubtful about it."""
        return self.row["warnings"].split("; ") if self.row["warnings"] else []

    def errors(self) -> dict[str, int]:
        """How many nuclei are missed, false, split or merged; {} without a truth."""
        return {name: int(self.score[name]) for name in ERRORS} if self.score else {}


def write_report(
    out: str | Path, ids: Sequence[str], scores: str | Path | None = None, read_truth: Truths | None = None
) -> Path:
    """Writes report.html into a folder of predictions, from the files that lie there.

    Without scores the doubtful images come first: those with warnings, then those of low confidence, then those of few
    nuclei. With scores it is the images of the lowest Dice. Of very many images only the first are shown.

    Args:
        out: folder of the predictions.
        ids: of the images.
        scores: scores.csv, with a row for each id.
        read_truth: gives the true labels of an id; needed with scores.

    Returns:
        The file.

    Raises:
        UserError: a file of a prediction is missing or cannot be read.
    """
    entries = read_entries(out, ids, read_scores(scores))
    shown = entries[:REPORTED_IMAGES]

    def make_card(numbered: tuple[int, Entry]) -> str:
        """The HTML of an image and its place in the order."""
        return draw_card(*numbered, read_truth)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cards = pool.map(make_card, enumerate(shown))
        cards = list(tqdm(cards, "writing the report", len(shown), unit="image", disable=None))
    frame = Template(FRAME.read_text(encoding="utf-8"))
    page = frame.substitute(describe_page(Path(out), entries, len(shown)), cards="".join(cards))
    file = Path(out, REPORT)
    with write_whole(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def read_scores(file: str | Path | None) -> dict[str, dict[str, str]]:
    """The rows of scores.csv by id; {} without a file."""
    if file is None:
        return {}
    with open(file, newline="", encoding="utf-8") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def read_entries(out: str | Path, ids: Iterable[str], scores: dict[str, dict[str, str]]) -> list[Entry]:
    """The images, the doubtful or the worst ones first; raises UserError where a file is missing."""
    entries = []
    for name in ids:
        files = prediction_files(out, name)
        if not files.are_complete():
            raise UserError(f"{out}: the report needs the overlay and tables of {name}, which Predict_masks.py writes")
        row = json.loads(files.row.read_text(encoding="utf-8"))
        entries.append(Entry(name, files, row, scores.get(name, {})))
    return sorted(entries, key=rank_by_score if scores else rank_by_doubt)


def rank_by_doubt(entry: Entry) -> tuple[float, ...]:
    """Sorts images with more warnings, less confidence, fewer nuclei first."""
    confidence = entry.row.get("mean_confidence")
    return -len(entry.warnings()), 1 if confidence is None else confidence, entry.row["count"]


def rank_by_score(entry: Entry) -> tuple[float, str]:
    """Sorts images as scores.csv does, the worst Dice first."""
    return float(entry.score["dice"]), entry.name


def describe_page(out: Path, entries: Sequence[Entry], shown: int) -> dict[str, str]:
    """What the frame of the page says, as HTML by the names of its places."""
    has_truth = bool(entries[0].score)
    images = "1 image" if len(entries) == 1 else f"{len(entries):,} images"
    heading = f"{count_nuclei(sum(entry.row['count'] for entry in entries))} in {images}"
    folder = out.resolve().name
    first = "the worst Dice first" if has_truth else "with warnings, low confidence or few nuclei first"
    left_out = f"; the first {shown:,} of {len(entries):,} are shown" if shown < len(entries) else ""
    score_filters = ""
    legend = ""
    if has_truth:
        score_filters = "".join(
            f'<label class="narrow">{title} ≤<input type="number" name="{name}" min="0" max="1" step="0.01"></label>'
            for name, title in (("dice", "Dice"), ("ap", "AP"))
        )
        items = "".join(f"<li>{swatch(name)}{name}</li>" for name in OUTCOME_COLOURS)
        legend = f'<ul class="legend" aria-label="Colours of the difference">{items}</ul>'
    meanings = MEANINGS | TRUTH_MEANINGS if has_truth else MEANINGS
    marks = [mark for entry in entries for mark in (*entry.warnings(), *list_errors(entry))]
    orders = {"rank": "worst Dice" if has_truth else "doubtful"}
    orders |= {"ap": "worst AP", "errors": "most errors"} if has_truth else {}
    orders |= {"count": "few nuclei", "id": "id"}
    return {
        "title": escape(f"{heading}: {folder}"),
        "heading": heading,
        "lead": escape(f"Folder {folder}, {first}{left_out}"),
        "totals": "".join(
            f"<div><dt>{swatch(name)}{name}</dt><dd>{value}</dd></div>" for name, value in sum_up(entries).items()
        ),
        "provenance": escape(describe_provenances(entries)),
        "meanings": "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items()),
        "kinds": list_choices({"": "all"}, sorted({entry.kind() for entry in entries})),
        "marks": list_choices({"": "all", "any": "marked", "none": "not marked"}, dict.fromkeys(sorted(marks))),
        "score_filters": score_filters,
        "orders": list_choices(orders, ()),
        "legend": legend,
    }


def sum_up(entries: Sequence[Entry]) -> dict[str, str]:
    """The figures at the top of the page, by their names."""
    totals = {"with warnings": f"{sum(bool(entry.warnings()) for entry in entries):,}"}
    counts = [entry.row["count"] for entry in entries]
    totals["nuclei an image, median"] = f"{np.median(counts):,.0f}"
    if not entries[0].score:
        return totals | {"without nuclei": f"{counts.count(0):,}"}
    for name, title in (("dice", "mean Dice"), ("ap", "mean AP")):
        totals[title] = f"{np.mean([float(entry.score[name]) for entry in entries]):.3f}"
    return totals | {name: f"{sum(entry.errors()[name] for entry in entries):,}" for name in ERRORS}


def describe_provenances(entries: Iterable[Entry]) -> str:
    """Weights, options and versions in one line."""
    runs = []
    for entry in entries:
        run = provenance_of_run(read_provenance(entry.files.labels))
        if run and run not in runs:
            runs.append(run)
    texts = []
    for run in runs:
        options = [f"{name} {value}" for name, value in run.get("options", {}).items() if value]
        options = ", ".join(options) or "default options"
        texts.append(f"Weights with SHA-256 {run['weights_sha256'][:12]}…, {options}.")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-image {skimage.__version__}"
    return " ".join([*(texts or ["Weights unknown."]), f"Report written with {versions}."])


def count_nuclei(count: int) -> str:
    """A number of nuclei in words.

    >>> count_nuclei(1), count_nuclei(1200)
    ('1 nucleus', '1,200 nuclei')
    """
    return f"{count:,} {'nucleus' if count == 1 else 'nuclei'}"


def list_choices(choices: dict[str, str], values: Iterable[str]) -> str:
    """The options of a menu: value -> text, then values that are their own text."""
    choices = choices | {value: value for value in values}
    return "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.items())


def list_errors(entry: Entry) -> list[str]:
    """The kinds of errors that an image has."""
    return [name for name, count in entry.errors().items() if count]


def draw_card(rank: int, entry: Entry, read_truth: Truths | None) -> str:
    """The HTML of one image."""
    row = entry.row
    scores = {name: entry.score[name] for name in SCORES} if entry.score else {}
    if scores:
        scores["errors"] = str(sum(entry.errors().values()))
    return CARD.substitute(
        id=escape(entry.name),
        kind=escape(entry.kind()),
        marks=escape("; ".join([*entry.warnings(), *list_errors(entry)])),
        count=row["count"],
        nuclei=count_nuclei(row["count"]),
        rank=rank,
        scores="".join(f' data-{name}="{escape(value)}"' for name, value in scores.items()),
        warnings="".join(f'<span class="chip warning">{escape(warning)}</span>' for warning in entry.warnings()),
        pictures=draw_pictures(entry, read_truth),
        truth=f" <span>of {escape(entry.score['nuclei_true'])} true</span>" if entry.score else "",
        outcome=describe_outcome(entry),
        seen=escape(describe_seen(row)),
        histograms=draw_histograms(entry),
    )


def draw_pictures(entry: Entry, read_truth: Truths | None) -> str:
    """Overlay, coloured labels and, with a truth, the difference to it."""
    overlay = read_image(entry.files.overlay)
    with open_rows(entry.files.labels) as rows:
        labels = subsample(rows, LABEL_PIXELS)
        outlined, coloured = draw_thumbnails(overlay, labels, THUMBNAIL)
        link = f'<a href="overlays/{quote(entry.files.overlay.name)}">full size</a>'
        figures = [embed(outlined, f"overlay, {link}", "overlay")]
        figures.append(embed(coloured, "labels", "coloured labels", is_flat=True))
        if entry.score:
            difference = draw_difference(outlined, read_truth(entry.name), rows[:])
            figures.append(embed(difference, "difference", "difference to the truth"))
    return "".join(figures)


def embed(picture: np.ndarray, caption: str, text: str, is_flat: bool = False) -> str:
    """A figure that holds its picture.

    Args:
        picture: (H, W, 3) uint8.
        caption: HTML.
        text: what stands for the picture where it cannot be seen.
        is_flat: it has few colours; then it is smaller without loss.
    """
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "webp", quality=WEBP_QUALITY, lossless=is_flat)
    content = base64.b64encode(stream.getvalue()).decode()
    height, width = picture.shape[:2]
    size = f'width="{width}" height="{height}"'
    image = f'<img src="data:image/webp;base64,{content}" {size} alt="{text}" loading="lazy" decoding="async">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def swatch(name: str) -> str:
    """A small square in the colour of an outcome; "" for other names."""
    if name not in OUTCOME_COLOURS:
        return ""
    return f'<i class="swatch" style="background:rgb{OUTCOME_COLOURS[name]}"></i>'


def describe_outcome(entry: Entry) -> str:
    """Scores and errors of an image; "" without a truth."""
    if not entry.score:
        return ""
    dice, ap = (f"{float(entry.score[name]):.3f}" for name in SCORES)
    errors = [f"<span>{swatch(name)}{count} {name}</span>" for name, count in entry.errors().items() if count]
    errors = "".join(errors) or '<span class="none">none missed, false, split or merged</span>'
    return f'<p class="scores">Dice <b>{dice}</b>, AP <b>{ap}</b></p><p class="errors">{errors}</p>'


def describe_seen(row: dict) -> str:
    """How an image was seen, its size, and how much of it nuclei cover."""
    parts = [f"{row['background']} background", f"scale {row['scale'].replace('.0', '')}"]
    if row["channel"]:
        parts.insert(0, row["channel"])
    parts.append(f"{row['width_px']} × {row['height_px']} px")
    if row["pixel_size_um"] is not None:
        parts.append(f"{row['pixel_size_um']:.3g} µm a pixel")
    parts.append(f"{row['covered_fraction']:.0%} covered")
    if row.get("mean_confidence") is not None:
        parts.append(f"confidence {row['mean_confidence']:.2f}")
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def draw_histograms(entry: Entry) -> str:
    """Histograms of area and mean intensity of the nuclei; "" without nuclei."""
    with open(entry.files.nuclei, newline="", encoding="utf-8") as stream:
        table = csv.reader(stream)
        names = next(table)
        rows = list(table)
    if not rows:
        return ""
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    unit = "um2" if "area_um2" in columns else "px"
    area = np.array(columns[f"area_{unit}"], float)
    means = [name for name in names if name.startswith("intensity_mean_")]
    seen = f"intensity_mean_{entry.row['channel']}"
    chosen = [seen] if seen in means else means
    intensity = np.mean([np.array(columns[name], float) for name in chosen], axis=0)
    return draw_histogram(area, f"area, {unit.replace('um2', 'µm²')}") + draw_histogram(intensity, "mean intensity")


def draw_histogram(values: np.ndarray, title: str) -> str:
    """A histogram as inline SVG, with the smallest and the largest of the values (K,) below."""
    low = values.min()
    high = values.max()
    counts, _ = np.histogram(values, BINS, (low, high) if high > low else (low - 0.5, high + 0.5))
    heights = np.ceil(BAR_HEIGHT * counts / counts.max()).astype(int)
    bars = "".join(f"M{x} {BAR_HEIGHT}v{-bar}h.85v{bar}z" for x, bar in enumerate(heights.tolist()) if bar)
    low, middle, high = (format_number(value) for value in (low, np.median(values), high))
    label = escape(f"{title}: median {middle}, from {low} to {high}")
    view = f'viewBox="0 0 {BINS} {BAR_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}"'
    ends = f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
    svg = f'<svg {view}><title>{label}</title><path d="{bars}"/></svg>'
    return f"<figure>{svg}{ends}<figcaption>{escape(title)}<br>median {middle}</figcaption></figure>"


def format_number(value: float) -> str:
    """Three digits, or all of a large number.

    >>> format_number(12345.6), format_number(0.12345)
    ('12,346', '0.123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
