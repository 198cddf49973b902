"""Makes pictures of nuclei: outlines, coloured labels, the difference to the truth, contact sheets.

In:  pictures (H, W, 3) uint8 as people look at them, labels (H, W) int, 0 background.
Out: such pictures, and sheets of them as files.
The colours are those of Okabe and Ito, which the colour-blind tell apart.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.segmentation import expand_labels, find_boundaries, relabel_sequential

from data.files import UserError, figure_format, write_whole
from data.images import open_rows, read_image, subsample
from data.matching import find_errors, overlap_table, pair_overlaps
from data.nuclei import common_diameter, find_touching
from data.outputs import find_predictions, prediction_files
from data.slides import iterate_strips

OUTLINE_COLOUR = (255, 220, 0)  # yellow, which no common stain has
LABEL_COLOURS = np.array(  # pale, so that nobody takes them for those of OUTCOME_COLOURS
    [
        (141, 211, 199),
        (255, 237, 160),
        (190, 186, 218),
        (251, 154, 140),
        (128, 177, 211),
        (253, 192, 134),
        (199, 233, 140),
    ],
    np.uint8,
)
MIN_OUTLINED = 6  # pixels; lines around narrower nuclei would hide them
NEIGHBOUR_DISTANCE = 2  # pixels; nuclei whose gap is up to twice this wide are neighbours
OUTCOME_COLOURS = {  # colours of nuclei in the difference to the truth; where two meet, the later one is drawn
    "found": (0, 158, 115),
    "missed": (213, 94, 0),
    "false": (240, 228, 66),
    "split": (86, 180, 233),
    "merged": (204, 121, 167),
}
FOUND, MISSED, FALSE, SPLIT, MERGED = range(1, 1 + len(OUTCOME_COLOURS))  # their numbers; 0 is background
DIMMED = 0.5  # brightness of the image below the difference
FILL_OPACITY = 0.55  # opacity of a nucleus that is wrong
FOUND_OPACITY = 0.12
# Contact sheets, in pixels.
CELL = 360  # longer side of a picture
CELL_GAP = 10
TITLE_HEIGHT = 24
LEGEND_HEIGHT = 44
CELL_GRAY = 36  # gray beside a picture of another shape
SHEET_DPI = 110
LABEL_PIXELS = 2048 * 2048  # pixels of the reduced labels that the thumbnail of a large image is made from
COMPARED_IMAGES = 5  # in comparison.png
SHOWN_PREDICTIONS = 8  # in predictions.png
TITLE_LENGTH = 32  # characters of an id
DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY")  # set where Linux has a screen


def outline_nuclei(picture: np.ndarray, labels: np.ndarray, is_thick: bool = False) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 with each nucleus of labels (H, W) outlined.

    The line is one pixel wide, inside the nucleus; if `is_thick`, two, the second one outside.
    """
    outlined = picture.copy()
    outlined[find_boundaries(labels, mode="thick" if is_thick else "inner")] = OUTLINE_COLOUR
    return outlined


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 of labels (H, W) on black; neighbours differ in colour.

    The same labels have the same colours. Nuclei with more neighbours than there are colours are coloured first.
    """
    labels = relabel_sequential(labels)[0]
    neighbours = find_neighbours(labels)
    numbers = range(1, len(neighbours))
    colours = np.zeros(len(neighbours), int)  # colour of each number; 0 as long as it has none
    for number in sorted(numbers, key=lambda number: -len(neighbours[number])):
        taken = {colours[other] for other in neighbours[number]}
        free = [colour for colour in range(1, 1 + len(LABEL_COLOURS)) if colour not in taken]
        free = free or [1]
        colours[number] = free[number % len(free)]
    return np.concatenate([np.zeros((1, 3), np.uint8), LABEL_COLOURS])[colours[labels]]


def find_neighbours(labels: np.ndarray) -> list[set[int]]:
    """For each number of labels (H, W) without gaps, from 0, the numbers of the nuclei close to it."""
    neighbours = [set() for _ in range(int(labels.max(initial=0)) + 1)]
    for one, other in find_touching(expand_labels(labels, NEIGHBOUR_DISTANCE)).tolist():
        neighbours[one].add(other)
        neighbours[other].add(one)
    return neighbours


def draw_difference(picture: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws what is right and wrong in a prediction over the dimmed gray of a picture, in OUTCOME_COLOURS.

    The nuclei are those that `data.matching.count_errors` counts; of two errors of a nucleus, such as false and merged,
    the later of OUTCOME_COLOURS is drawn.

    Args:
        picture: (h, w, 3) uint8; it may be smaller or larger than the labels.
        truth: (H, W) int, true nuclei.
        labels: (H, W) int, predicted ones.

    Returns:
        (h, w, 3) uint8.
    """
    truth = relabel_sequential(truth)[0]
    labels = relabel_sequential(labels)[0]
    true_outcomes, predicted_outcomes = find_outcomes(truth, labels)
    truth = fit_labels(truth, picture.shape[:2])
    labels = fit_labels(labels, picture.shape[:2])
    outcomes = predicted_outcomes[labels]
    is_missed = (outcomes == 0) & (true_outcomes[truth] == MISSED)  # elsewhere a predicted nucleus covers it
    outcomes[is_missed] = MISSED
    outcomes[true_outcomes[truth] == SPLIT] = SPLIT
    # Each nucleus is outlined; inside of a merged one the outlines of the true ones are drawn too.
    lines = find_boundaries(np.where(is_missed, labels.max() + truth, labels), mode="thick")
    lines |= find_boundaries(truth, mode="inner") & (outcomes == MERGED)
    gray = np.repeat(DIMMED * picture.mean(axis=-1, keepdims=True), 3, axis=-1)
    colours = np.array([(0, 0, 0), *OUTCOME_COLOURS.values()])
    opacity = np.array([0, *[FILL_OPACITY] * len(OUTCOME_COLOURS)])
    is_outlined = max(common_diameter(labels), common_diameter(truth)) >= MIN_OUTLINED
    if is_outlined:
        opacity[FOUND] = FOUND_OPACITY
    drawn = gray + opacity[outcomes][..., None] * (colours[outcomes] - gray)
    lines &= is_outlined
    drawn[lines] = colours[ndimage.maximum_filter(outcomes, 3)[lines]]
    return drawn.astype(np.uint8)


def find_outcomes(truth: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What became of the nuclei of the truth and of a prediction, both (H, W) int without gaps.

    Returns:
        (K + 1,) of the true nuclei: MISSED, SPLIT or 0; (P + 1,) of the predicted ones: FOUND, FALSE, SPLIT (a piece
        of a true one that is split) or MERGED; each with a 0 for the background.
    """
    table = overlap_table(truth, labels)
    errors = find_errors(table)
    true, predicted, shared, _ = pair_overlaps(table)
    is_piece = errors["split"][true] & (shared > table.sum(axis=0)[predicted] / 2)
    true_outcomes = np.zeros(table.shape[0], np.uint8)
    true_outcomes[errors["missed"]] = MISSED
    true_outcomes[errors["split"]] = SPLIT
    predicted_outcomes = np.full(table.shape[1], FOUND, np.uint8)
    predicted_outcomes[0] = 0
    predicted_outcomes[errors["false"]] = FALSE
    predicted_outcomes[predicted[is_piece]] = SPLIT
    predicted_outcomes[errors["merged"]] = MERGED
    return true_outcomes, predicted_outcomes


def fit_picture(picture: np.ndarray, side: int = CELL) -> np.ndarray:
    """A picture (H, W, 3) uint8 with its longer side made `side` pixels long."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(round(scale * width), 1), max(round(scale * height), 1))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def fit_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) of another shape (h, w); each pixel has the number of the one at its middle."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, shape, strict=True))
    return labels[rows[:, None], columns]


def draw_thumbnails(overlay: np.ndarray, labels: np.ndarray, side: int = CELL) -> tuple[np.ndarray, np.ndarray]:
    """An overlay (H, W, 3) uint8 with its longer side made `side` pixels long, and the coloured labels beside it.

    The outlines of the labels (h, w), which may be subsampled, are drawn once more, so that they stay two pixels wide;
    not where the nuclei are narrower than MIN_OUTLINED.
    """
    picture = fit_picture(overlay, side)
    labels = fit_labels(labels, picture.shape[:2])
    if common_diameter(labels) >= MIN_OUTLINED:
        picture = outline_nuclei(picture, labels, is_thick=True)
    return picture, colour_labels(labels)


def save_contact_sheet(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    out: str | Path,
    columns: int = 4,
    legend: Mapping[str, Sequence[int]] | None = None,
    font_size: float = 8,
) -> None:
    """Saves pictures side by side, with titles, as one file.

    Args:
        pictures: (H, W, 3) uint8 of any shapes; each is put into a cell of one shape.
        titles: one for each picture.
        out: the file, of a format of `figure_format`.
        columns: pictures in a row.
        legend: what the colours, (3,) of 0 to 255, mean.
        font_size: of the titles, points; a wide sheet that is shown reduced needs a larger one.
    """
    from matplotlib.figure import Figure  # here, so that reading images does not wait for it
    from matplotlib.patches import Patch

    fitted = [fit_picture(picture) for picture in pictures]
    height, width = np.max([picture.shape[:2] for picture in fitted], axis=0)
    title_height = math.ceil(TITLE_HEIGHT * font_size / 8)
    row_height = title_height + height + CELL_GAP // 2
    rows = math.ceil(len(pictures) / columns)
    sheet_width = columns * (width + CELL_GAP)
    sheet_height = rows * row_height + (LEGEND_HEIGHT if legend else 0)
    figure = Figure(figsize=(sheet_width / SHEET_DPI, sheet_height / SHEET_DPI), dpi=SHEET_DPI)
    for index, (picture, title) in enumerate(zip(fitted, titles, strict=True)):
        left = index % columns * (width + CELL_GAP) + CELL_GAP / 2
        bottom = sheet_height - (index // columns + 1) * row_height + CELL_GAP // 2
        box = (left / sheet_width, bottom / sheet_height, width / sheet_width, height / sheet_height)
        axes = figure.add_axes(box)
        axes.imshow(centre_picture(picture, (height, width)), aspect="auto")
        axes.set_title(title, fontsize=font_size, pad=font_size / 2, parse_math=False)  # an id may hold $
        axes.set_axis_off()
    if legend:
        handles = [Patch(facecolor=np.array(colour) / 255, label=name) for name, colour in legend.items()]
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=font_size + 1)
    with write_whole(out) as temporary:
        figure.savefig(temporary, dpi=SHEET_DPI, format=figure_format(out))


def centre_picture(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture (h, w, 3) uint8 in the middle of a gray cell of this shape."""
    height, width = picture.shape[:2]
    cell = np.full((*shape, 3), CELL_GRAY, np.uint8)
    top = (shape[0] - height) // 2
    left = (shape[1] - width) // 2
    cell[top : top + height, left : left + width] = picture
    return cell


def save_comparison(
    score_rows: Sequence[dict], read: Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]], file: Path
) -> None:
    """Draws a few images, their predicted nuclei, and the difference to the truth.

    Args:
        score_rows: scores of `Evaluate_model.evaluate`.
        read: id -> picture (H, W, 3) uint8, truth (H, W) int, predicted labels (H, W) int.
        file: the picture to write.
    """
    pictures = []
    titles = []
    for row in choose_rows(score_rows):
        picture, truth, labels = read(row["id"])
        picture = fit_picture(picture)
        coloured = colour_labels(fit_labels(labels, picture.shape[:2]))
        pictures += [picture, coloured, draw_difference(picture, truth, labels)]
        titles.append(f"{row['id'][:TITLE_LENGTH]} ({row['kind']})")
        titles.append(f"prediction: {row['nuclei_predicted']} nuclei")
        titles.append(f"truth: {row['nuclei_true']} nuclei, Dice {row['dice']:.2f}, AP {row['ap']:.2f}")
    save_contact_sheet(pictures, titles, file, columns=3, legend=OUTCOME_COLOURS)


def choose_rows(score_rows: Sequence[dict]) -> list[dict]:
    """The worst image of every kind, then others from the worst Dice to the best, COMPARED_IMAGES in all."""
    score_rows = sorted(score_rows, key=lambda row: row["dice"])
    kinds = sorted({row["kind"] for row in score_rows})
    chosen = [next(row for row in score_rows if row["kind"] == kind) for kind in kinds]
    others = [row for row in score_rows if row not in chosen]
    count = max(COMPARED_IMAGES - len(chosen), 0)
    indices = np.unique(np.linspace(0, len(others) - 1, count).astype(int)) if others else ()
    return chosen + [others[index] for index in indices]


def show_predictions(out: str | Path) -> Path:
    """Shows overlays and coloured labels, reading nothing but the files that were written.

    Args:
        out: folder of predictions.

    Returns:
        predictions.png in the folder, the same picture, also saved where there is no display.

    Raises:
        UserError: no predictions are there.
    """
    ids = find_predictions(out)
    if not ids:
        raise UserError(f"{out}: no masks; python Predict_masks.py writes some")
    pictures = []
    titles = []
    for index in np.unique(np.linspace(0, len(ids) - 1, SHOWN_PREDICTIONS).astype(int)):
        files = prediction_files(out, ids[index])
        with open_rows(files.labels) as labels:
            nuclei = max(int(strip.max()) for strip in iterate_strips(labels))
            small_labels = subsample(labels, LABEL_PIXELS)
        pictures += draw_thumbnails(read_image(files.overlay), small_labels)
        titles += [ids[index][:24], f"{nuclei} nuclei"]
    picture = Path(out, "predictions.png")
    save_contact_sheet(pictures, titles, picture)
    show_pictures(picture)
    return picture


def show_pictures(*files: str | Path) -> None:
    """Opens a window for each picture file where there is a display; else does nothing."""
    has_display = sys.platform in ("win32", "darwin") or any(name in os.environ for name in DISPLAY_VARIABLES)
    if not has_display or os.environ.get("MPLBACKEND", "").lower() == "agg":
        return
    import matplotlib.pyplot as plt

    for file in files:
        _, axes = plt.subplots(num=str(file), figsize=(11, 8), layout="constrained")
        axes.imshow(read_image(Path(file)))
        axes.set_axis_off()
    plt.show()
