"""Draws one image of report.html: its pictures, how it was seen, its scores, and histograms of its nuclei.

In:  the files of a prediction, its row of images.csv, and with a truth its row of scores.csv.
Out: HTML that needs no other file.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from string import Template
from urllib.parse import quote

import numpy as np
from PIL import Image

from data.files import read_csv
from data.images import open_rows, read_image, subsample
from data.layouts import count_of
from data.matching import SCORE_NAMES
from data.measure import WARNING_SEPARATOR
from data.options import UNKNOWN_KIND
from data.outputs import PredictionFiles
from data.pictures import LABEL_PIXELS, OUTCOME_COLOURS, draw_difference, draw_thumbnails

THUMBNAIL = 320  # pixels, longer side
WEBP_QUALITY = 72
BINS = 24  # bars of a histogram
BAR_HEIGHT = 40  # pixels, height of the fullest bar
ERRORS = tuple(name for name in OUTCOME_COLOURS if name != "found")
CARD = Template("""\
<article tabindex="-1" data-id="$id" data-kind="$kind" data-marks="$marks" data-count="$count" data-rank="$rank"$scores>
<div class="name"><h2>$id</h2><span class="chip">$kind</span>$warnings</div>
<div class="pictures">$pictures</div>
<div><p class="count">$nuclei$truth</p>$outcome<p class="seen">$seen</p>
<div class="histograms">$histograms</div></div>
</article>
""")

ReadTruth = Callable[[str], np.ndarray]  # id of an image -> its true labels (H, W)


@dataclass(frozen=True)
class Entry:
    """An image on the page."""

    files: PredictionFiles
    image_row: dict  # its row in images.csv
    score_row: dict[str, str]  # its row in scores.csv; {} without a truth

    def kind(self) -> str:
        """The kind of image where the scores know it, else the background."""
        kind = self.score_row.get("kind", UNKNOWN_KIND)
        return f"{self.image_row['background']} background" if kind == UNKNOWN_KIND else kind

    def warnings(self) -> list[str]:
        """What is doubtful about it."""
        return self.image_row["warnings"].split(WARNING_SEPARATOR) if self.image_row["warnings"] else []

    def errors(self) -> dict[str, int]:
        """How many nuclei are missed, false, split or merged; {} without a truth."""
        return {name: int(self.score_row[name]) for name in ERRORS} if self.score_row else {}

    def error_names(self) -> list[str]:
        """The names of the errors that it has."""
        return [name for name, count in self.errors().items() if count]


def draw_card(rank: int, entry: Entry, read_truth: ReadTruth | None) -> str:
    """The HTML of one image; `rank` is its place in the order of the page."""
    image_row = entry.image_row
    scores = {name: entry.score_row[name] for name in SCORE_NAMES} if entry.score_row else {}
    if scores:
        scores["errors"] = str(sum(entry.errors().values()))
    return CARD.substitute(
        id=escape(entry.files.image_id),
        kind=escape(entry.kind()),
        marks=escape("; ".join([*entry.warnings(), *entry.error_names()])),
        count=image_row["count"],
        nuclei=count_of(image_row["count"], "nucleus", "nuclei"),
        rank=rank,
        scores="".join(f' data-{name}="{escape(value)}"' for name, value in scores.items()),
        warnings="".join(f'<span class="chip warning">{escape(warning)}</span>' for warning in entry.warnings()),
        pictures=draw_pictures(entry, read_truth),
        truth=f" <span>of {escape(entry.score_row['nuclei_true'])} true</span>" if entry.score_row else "",
        outcome=describe_outcome(entry),
        seen=escape(describe_seen(image_row)),
        histograms=draw_histograms(entry),
    )


def draw_pictures(entry: Entry, read_truth: ReadTruth | None) -> str:
    """Overlay, coloured labels and, with a truth, the difference to it."""
    overlay = read_image(entry.files.overlay)
    with open_rows(entry.files.labels) as labels:
        small_labels = subsample(labels, LABEL_PIXELS)
        outlined, coloured = draw_thumbnails(overlay, small_labels, THUMBNAIL)
        link = f'<a href="overlays/{quote(entry.files.overlay.name)}">full size</a>'
        figures = [embed(outlined, f"overlay, {link}", "overlay")]
        figures.append(embed(coloured, "labels", "coloured labels", is_flat=True))
        if entry.score_row:
            difference = draw_difference(outlined, read_truth(entry.files.image_id), labels[:])
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
    tag = f'<img src="data:image/webp;base64,{content}" {size} alt="{text}" loading="lazy" decoding="async">'
    return f"<figure>{tag}<figcaption>{caption}</figcaption></figure>"


def describe_outcome(entry: Entry) -> str:
    """Scores and errors of an image; "" without a truth."""
    if not entry.score_row:
        return ""
    dice, ap = (f"{float(entry.score_row[name]):.3f}" for name in SCORE_NAMES)
    errors = [f"<span>{swatch(name)}{count} {name}</span>" for name, count in entry.errors().items() if count]
    errors = "".join(errors) or '<span class="none">none missed, false, split or merged</span>'
    return f'<p class="scores">Dice <b>{dice}</b>, AP <b>{ap}</b></p><p class="errors">{errors}</p>'


def swatch(name: str) -> str:
    """A small square in the colour of an outcome; "" for other names."""
    if name not in OUTCOME_COLOURS:
        return ""
    return f'<i class="swatch" style="background:rgb{OUTCOME_COLOURS[name]}"></i>'


def describe_seen(image_row: dict) -> str:
    """How an image was seen, its size, and how much of it nuclei cover."""
    scale = "+".join(text.removesuffix(".0") for text in image_row["scale"].split("+"))
    texts = [f"{image_row['background']} background", f"scale {scale}"]
    if image_row["channel"]:
        texts.insert(0, image_row["channel"])
    texts.append(f"{image_row['width_px']} × {image_row['height_px']} px")
    if image_row["pixel_size_um"] is not None:
        texts.append(f"{image_row['pixel_size_um']:.3g} µm a pixel")
    texts.append(f"{image_row['covered_fraction']:.0%} covered")
    if image_row.get("mean_confidence") is not None:
        texts.append(f"confidence {image_row['mean_confidence']:.2f}")
    return " · ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts)


def draw_histograms(entry: Entry) -> str:
    """Histograms of area and mean intensity of the nuclei; "" without nuclei."""
    # Of a large image there are many: only these columns are held.
    nucleus_rows = [
        {name: float(value) for name, value in row.items() if name.startswith(("area_", "intensity_mean_"))}
        for row in read_csv(entry.files.nuclei)
    ]
    if not nucleus_rows:
        return ""
    unit = "um2" if "area_um2" in nucleus_rows[0] else "px"
    area = np.array([row[f"area_{unit}"] for row in nucleus_rows])
    means = [name for name in nucleus_rows[0] if name.startswith("intensity_mean_")]
    predicted = f"intensity_mean_{entry.image_row['channel']}"
    chosen = [predicted] if predicted in means else means  # all channels, unless nuclei were found in one alone
    intensity = np.mean([[row[name] for row in nucleus_rows] for name in chosen], axis=0)
    return draw_histogram(area, f"area, {unit.replace('um2', 'µm²')}") + draw_histogram(intensity, "mean intensity")


def draw_histogram(values: np.ndarray, title: str) -> str:
    """A histogram as inline SVG, with the smallest and the largest of the values (K,) below."""
    low = values.min()
    high = values.max()
    counts, _ = np.histogram(values, BINS, (low, high) if high > low else (low - 0.5, high + 0.5))
    heights = np.ceil(BAR_HEIGHT * counts / counts.max()).astype(int)
    # Each bar goes up from the axis, to the right by less than 1, so that a gap is left, and down again.
    bars = "".join(f"M{x} {BAR_HEIGHT}v{-bar}h.85v{bar}z" for x, bar in enumerate(heights.tolist()) if bar)
    smallest, median, largest = (format_number(value) for value in (low, np.median(values), high))
    label = escape(f"{title}: median {median}, from {smallest} to {largest}")
    view = f'viewBox="0 0 {BINS} {BAR_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}"'
    ends = f'<div class="ends"><span>{smallest}</span><span>{largest}</span></div>'
    svg = f'<svg {view}><title>{label}</title><path d="{bars}"/></svg>'
    return f"<figure>{svg}{ends}<figcaption>{escape(title)}<br>median {median}</figcaption></figure>"


def format_number(value: float) -> str:
    """A number with three digits, or from 100 on without decimals.

    >>> format_number(12345.6), format_number(0.12345)
    ('12,346', '0.123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
