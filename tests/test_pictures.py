"""data.pictures: outlines, coloured labels, the difference to the truth, contact sheets and windows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from data import outputs, pictures
from data.files import UserError
from data.images import read_image
from data.matching import count_errors, overlap_table

COLOURS = {name: np.array(colour) for name, colour in pictures.OUTCOME_COLOURS.items()}


def draw_tiles(shape, side):
    """Labels of squares that touch one another in all directions."""
    rows, columns = np.indices(shape) // side
    return (rows * (columns.max() + 1) + columns + 1).astype(np.int32)


def shows(picture, colour, place):
    """Whether a filled nucleus at a place (row, column) leans to this colour more than to any other."""
    pixel = picture[place].astype(float)
    distances = {name: np.abs(pixel - pictures.FILL_OPACITY * other).sum() for name, other in COLOURS.items()}
    return min(distances, key=distances.get) == colour


# Outlines.


def test_outlines_are_drawn_on_the_rims_of_nuclei_only():
    picture = np.random.default_rng(0).integers(0, 200, (20, 30, 3), np.uint8)
    labels = np.zeros((20, 30), np.int32)
    labels[4:12, 5:15] = 1
    labels[4:12, 15:22] = 2  # touches the first
    before = picture.copy()
    outlined = pictures.outline_nuclei(picture, labels)
    is_outline = (outlined == pictures.OUTLINE_COLOUR).all(axis=-1)
    expected = labels > 0
    expected[5:11, 6:14] = False
    expected[5:11, 16:21] = False
    np.testing.assert_array_equal(is_outline, expected)
    np.testing.assert_array_equal(outlined[~is_outline], before[~is_outline])
    np.testing.assert_array_equal(picture, before)


def test_a_picture_without_nuclei_has_no_outlines():
    picture = np.random.default_rng(0).integers(0, 200, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(pictures.outline_nuclei(picture, np.zeros((20, 30), np.int32)), picture)


# Coloured labels.


def test_neighbours_differ_in_colour():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 120, (150, 2))
    distances = ((np.indices((120, 120))[..., None] - centres.T[:, None, None]) ** 2).sum(axis=0)
    labels = np.sort(rng.choice(1000, 150, replace=False) + 1)[distances.argmin(axis=-1)]  # numbers with gaps
    labels[55:65] = 1001  # a long one with more neighbours than there are colours
    coloured = pictures.colour_labels(labels).astype(int)
    for axis in (0, 1):
        differ = np.diff(labels, axis=axis) != 0
        assert differ.any() and (np.abs(np.diff(coloured, axis=axis)).sum(axis=-1)[differ] > 0).all()
    for number in np.unique(labels):
        assert len(np.unique(coloured[labels == number], axis=0)) == 1


def test_the_ground_of_coloured_labels_is_black_and_nuclei_are_not():
    labels = np.zeros((9, 9), np.uint16)
    np.testing.assert_array_equal(pictures.colour_labels(labels), 0)
    labels[2:5, 2:5] = 7
    np.testing.assert_array_equal(pictures.colour_labels(labels).any(axis=-1), labels > 0)


# The difference to the truth.


def draw_case():
    """Truth and prediction with a found, a missed, a false, two merged and a split nucleus, and their middles."""
    truth = np.zeros((40, 120), np.int32)
    predicted = np.zeros((40, 120), np.int32)
    truth[5:35, 4:16] = predicted[5:35, 4:16] = 3  # found
    truth[5:35, 24:36] = 9  # missed
    predicted[5:35, 44:56] = 8  # false
    truth[5:35, 64:76] = 2  # two in one
    truth[5:35, 76:88] = 4
    predicted[5:35, 64:88] = 5
    truth[5:35, 94:116] = 6  # one in two
    predicted[5:35, 94:105] = 1
    predicted[5:35, 105:116] = 2
    middles = {"missed": [30], "false": [50], "merged": [70, 82], "split": [99, 111]}
    return truth, predicted, middles


@pytest.mark.parametrize("scale", [1, 2])
def test_every_error_has_its_colour(scale):
    truth, predicted, middles = draw_case()
    black = np.zeros((40 * scale, 120 * scale, 3), np.uint8)
    drawn = pictures.draw_difference(black, truth, predicted)
    for name, columns in middles.items():
        assert all(shows(drawn, name, (20 * scale, column * scale)) for column in columns), name
    outline = (drawn[20 * scale] == COLOURS["found"]).all(axis=-1)
    assert outline.sum() == 4  # two pixels at each side, at any size of the picture
    assert not drawn[:, 18 * scale : 22 * scale].any()


def test_nuclei_too_narrow_for_lines_are_filled():
    truth, predicted, _ = draw_case()
    drawn = pictures.draw_difference(np.zeros((10, 30, 3), np.uint8), truth, predicted)  # a quarter of the size
    assert shows(drawn, "found", (5, 2)) and not (drawn == COLOURS["found"]).all(axis=-1).any()
    picture = np.full((40, 120, 3), 90, np.uint8)
    assert not (pictures.draw_thumbnails(picture, predicted, 30)[0] == pictures.OUTLINE_COLOUR).all(axis=-1).any()
    assert (pictures.draw_thumbnails(picture, predicted, 120)[0] == pictures.OUTLINE_COLOUR).all(axis=-1).any()


def test_as_many_nuclei_have_a_colour_as_are_counted():
    rng = np.random.default_rng(1)
    truth = draw_tiles((120, 120), 12) * (rng.random(101)[draw_tiles((120, 120), 12)] < 0.7)
    predicted = draw_tiles((120, 120), 12) * (rng.random(101)[draw_tiles((120, 120), 12)] < 0.7)
    framed = np.ones((12, 12), bool)
    framed[2:-2, 2:-2] = False  # a gap between nuclei
    gaps = np.tile(framed, (10, 10))
    truth[gaps] = predicted[gaps] = 0
    drawn = pictures.draw_difference(np.zeros((120, 120, 3), np.uint8), truth, predicted)
    errors = count_errors(overlap_table(truth, predicted))
    for name in ("missed", "false"):
        assert errors[name] == label((drawn == COLOURS[name]).all(axis=-1))[1] > 10


def test_a_nucleus_of_two_errors_has_the_colour_of_the_merge():
    truth = np.zeros((30, 60), np.int32)
    truth[10:14, 10:14] = 1
    truth[10:14, 30:34] = 2
    predicted = np.zeros_like(truth)
    predicted[2:28, 2:58] = 1  # holds both, and is background for its most part
    errors = count_errors(overlap_table(truth, predicted))
    assert errors == {"missed": 0, "false": 1, "merged": 1, "split": 0}
    assert shows(pictures.draw_difference(np.zeros((30, 60, 3), np.uint8), truth, predicted), "merged", (20, 20))


# Which images are compared.


def test_the_comparison_begins_with_every_kind_and_goes_on_from_worst_to_best():
    kinds = ["a"] * 8 + ["b"] * 2
    rows = [{"id": str(number), "kind": kind, "dice": number / 10} for number, kind in enumerate(kinds)]
    assert [row["id"] for row in pictures.choose_rows(rows[::-1])] == ["0", "8", "1", "4", "9"]
    assert [row["id"] for row in pictures.choose_rows(rows[:1])] == ["0"]


# Sheets.


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_contact_sheet_shows_every_picture(tmp_path, name):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 0, 250), (0, 250, 250)]
    drawn = [np.full((20, 30, 3), colour, np.uint8) for colour in colours]
    pictures.save_contact_sheet(drawn, list("abcde"), str(tmp_path / name))
    assert Image.open(tmp_path / name).format == {"sheet.png": "PNG", "sheet.jpg": "JPEG"}[name]
    sheet = read_image(tmp_path / name)
    for colour in colours:
        assert (abs(sheet.astype(int) - colour) < 5).all(axis=-1).sum() > 1000


def test_pictures_lie_in_rows_of_the_columns_asked_for(tmp_path):
    drawn = [np.full((20, 20, 3), 90, np.uint8)] * 4
    pictures.save_contact_sheet(drawn, list("abcd"), tmp_path / "wide.png")
    pictures.save_contact_sheet(drawn, list("abcd"), tmp_path / "high.png", columns=1)
    wide = read_image(tmp_path / "wide.png")
    high = read_image(tmp_path / "high.png")
    assert wide.shape[1] == 4 * high.shape[1] and high.shape[0] == 4 * wide.shape[0]


# What was written is shown.


def write_prediction(out, name, labels):
    outputs.make_folders(out)
    overlay = np.zeros((*labels.shape, 3), np.uint8)
    outputs.write_prediction(outputs.prediction_files(out, name), labels, overlay, {})


def test_show_predictions_reads_only_the_files(tmp_path):
    write_prediction(tmp_path, "a", np.pad(np.ones((10, 10), np.int32), 10))
    before = read_image(pictures.show_predictions(tmp_path))
    write_prediction(tmp_path, "a", np.pad(np.ones((12, 12), np.int32), 9))
    after = read_image(pictures.show_predictions(tmp_path))
    assert (before != after).any()


def test_the_picture_shows_some_of_many_predictions(tmp_path, monkeypatch):
    shown = []

    def keep(drawn, titles, out):
        shown.extend(titles)
        out.touch()

    monkeypatch.setattr(pictures, "save_contact_sheet", keep)
    monkeypatch.setattr(pictures, "show_pictures", shown.append)
    for number in range(20):
        labels = np.zeros((4, 30), np.int32)
        labels[0, :number] = np.arange(number) + 1
        write_prediction(tmp_path, f"image_{number:02}", labels)
    file = pictures.show_predictions(tmp_path)
    assert shown[::2][:-1] == [f"image_{number:02}" for number in (0, 2, 5, 8, 10, 13, 16, 19)]
    assert shown[1::2] == [f"{number} nuclei" for number in (0, 2, 5, 8, 10, 13, 16, 19)]
    assert shown[-1] == file == tmp_path / "predictions.png"


def test_show_predictions_of_nothing_is_an_error(tmp_path):
    with pytest.raises(UserError, match="Predict_masks.py"):
        pictures.show_predictions(tmp_path)


# Windows.


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The names of the windows that were opened; a.png and b.png are there to be shown."""
    names = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.setattr(plt, "show", lambda: names.extend(plt.get_figlabels()))
    monkeypatch.setattr(pictures.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    yield names
    plt.close("all")


def test_a_window_a_picture_opens_where_there_is_a_display(tmp_path, shown):
    pictures.show_pictures(tmp_path / "a.png", tmp_path / "b.png")
    assert shown == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_no_window_opens_without_a_display(tmp_path, shown, monkeypatch):
    monkeypatch.delenv("DISPLAY")
    pictures.show_pictures(tmp_path / "a.png")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pictures.show_pictures(tmp_path / "a.png")
    assert shown == []
    monkeypatch.delenv("MPLBACKEND")
    pictures.show_pictures(tmp_path / "a.png")
    assert shown == [str(tmp_path / "a.png")]


def test_a_title_is_text_and_no_formula(tmp_path):
    file = tmp_path / "sheet.png"
    pictures.save_contact_sheet([np.zeros((20, 20, 3), np.uint8)], ["cost$5_$"], file)
    assert read_image(file).ndim == 3
