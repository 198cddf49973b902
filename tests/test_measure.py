"""The tables of nuclei and images: against scikit-image and CellProfiler, known shapes, strips, empty images, files."""

import csv
import math
import warnings

import numpy as np
import pytest
import tifffile
from conftest import draw_nuclei
from cp_measure.core.measureobjectintensity import get_intensity
from cp_measure.core.measureobjectsizeshape import get_sizeshape
from skimage.draw import ellipse
from skimage.measure import regionprops_table
from skimage.segmentation import relabel_sequential

from data import measure
from data.images import open_rows
from data.outputs import make_folders, prediction_files
from data.tables import save_image_row, save_tables

LABELLED = {  # property of scikit-image -> column
    "label": "label",
    "area": "area_px",
    "centroid-0": "centroid_row_px",
    "centroid-1": "centroid_column_px",
    "bbox-0": "bbox_min_row_px",
    "bbox-1": "bbox_min_column_px",
    "bbox-2": "bbox_max_row_px",
    "bbox-3": "bbox_max_column_px",
    "equivalent_diameter_area": "equivalent_diameter_area_px",
    "axis_major_length": "axis_major_length_px",
    "axis_minor_length": "axis_minor_length_px",
    "perimeter": "perimeter_px",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
    "orientation": "orientation_rad",
}
STATISTICS = ("mean", "median", "std", "min", "max")
CELLPROFILER = {  # feature of CellProfiler -> column
    "Area": "area_px",
    "Center_Y": "centroid_row_px",
    "Center_X": "centroid_column_px",
    "BoundingBoxMinimum_Y": "bbox_min_row_px",
    "BoundingBoxMinimum_X": "bbox_min_column_px",
    "BoundingBoxMaximum_Y": "bbox_max_row_px",
    "BoundingBoxMaximum_X": "bbox_max_column_px",
    "EquivalentDiameter": "equivalent_diameter_area_px",
    "MajorAxisLength": "axis_major_length_px",
    "MinorAxisLength": "axis_minor_length_px",
    "Perimeter": "perimeter_px",
    "FormFactor": "form_factor",
    "Eccentricity": "eccentricity",
    "Solidity": "solidity",
    "Intensity_MeanIntensity": "intensity_mean_gray",
    "Intensity_MedianIntensity": "intensity_median_gray",
    "Intensity_StdIntensity": "intensity_std_gray",
    "Intensity_MinIntensity": "intensity_min_gray",
    "Intensity_MaxIntensity": "intensity_max_gray",
    "Intensity_IntegratedIntensity": "intensity_integrated_gray",
}
SHAPE = (150, 190)


def draw_ellipses(seed=0, shape=SHAPE, count=40):
    """Ellipses on top of each other, some cut by the edges: labels int32 with gaps between numbers."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        centre = rng.uniform((0, 0), shape)
        rows, columns = ellipse(*centre, *rng.uniform(2, 16, 2), shape=shape, rotation=rng.uniform(0, math.pi))
        labels[rows, columns] = 3 * number
    return labels


def draw_ragged(seed=0):
    """Ellipses with holes and ragged edges, many of them in pieces."""
    labels = draw_ellipses(seed)
    labels[np.random.default_rng(seed).random(SHAPE) < 0.4] = 0
    return labels


def draw_lines():
    """Lines, rings, a cross and other shapes that are not round; none is a square or a single pixel."""
    labels = np.zeros(SHAPE, np.int32)
    labels[2, 3:30] = 1
    labels[5:40, 3] = 2
    labels[6:8, 10:12] = 3
    labels[7, 12] = 3
    labels[np.arange(50, 80), np.arange(5, 35)] = 4
    labels[50:80, 40:70] = 5
    labels[54:76, 44:60] = 0
    labels[60:65, 50:53] = 6  # inside of the hole of 5
    labels[100:103, 20:60] = 7
    labels[90:115, 38:41] = 7
    labels[90:92, 80:85] = 8
    labels[110:114, 120:131] = 8  # two pieces and empty rows between them
    labels[140:, 180:] = 9
    labels[145, 186] = 0
    return labels


DRAWN = {"ellipses": draw_ellipses, "ragged": draw_ragged, "lines": draw_lines}


def draw_image(dtype, shape=SHAPE):
    values = np.random.default_rng(5).random(shape)
    return (values * (60_000 if dtype == np.uint16 else 255)).astype(dtype)


@pytest.fixture
def small_strips(monkeypatch):
    monkeypatch.setattr(measure, "STRIP", 16)


# Against scikit-image.


@pytest.mark.parametrize("name", DRAWN)
def test_shapes_are_measured_as_scikit_image_does(name):
    labels = DRAWN[name]()
    columns = measure.measure_nuclei(labels, draw_image(np.uint8))
    wanted = sorted({prop.split("-")[0] for prop in LABELLED})
    expected = regionprops_table(labels, properties=wanted)
    assert len(expected["label"]) >= 9
    for prop, column in LABELLED.items():
        np.testing.assert_allclose(columns[column], expected[prop], rtol=1e-9, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("seed", range(5))
def test_pixels_of_the_hull_are_counted_as_scikit_image_does(seed):
    labels = draw_ragged(seed)
    solidity = measure.measure_nuclei(labels, draw_image(np.uint8))["solidity"]
    np.testing.assert_array_equal(solidity, regionprops_table(labels, properties=["solidity"])["solidity"])
    assert solidity.min() < 0.7


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("names", [("gray",), ("red", "green", "blue"), ("channel 1", "channel 2")])
def test_intensities_are_measured_as_scikit_image_does(dtype, names):
    labels = draw_ellipses()
    image = draw_image(dtype, SHAPE if len(names) == 1 else (*SHAPE, len(names)))
    columns = measure.measure_nuclei(labels, image)
    planes = image.reshape(*SHAPE, -1).astype(np.float64)  # scikit-image takes means of float32 in float32
    for index, name in enumerate(names):
        wanted = [f"intensity_{key}" for key in STATISTICS]
        expected = regionprops_table(labels, planes[..., index], properties=wanted)
        for key in STATISTICS:
            np.testing.assert_allclose(columns[f"intensity_{key}_{name}"], expected[f"intensity_{key}"], rtol=1e-9)
        total = [planes[..., index][labels == number].sum() for number in columns["label"]]
        np.testing.assert_allclose(columns[f"intensity_integrated_{name}"], total, rtol=1e-9)
    assert len([key for key in columns if key.startswith("intensity_mean")]) == len(names)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int64])
def test_labels_may_be_of_any_integer_type(dtype):
    labels = draw_ellipses()
    expected = measure.measure_nuclei(labels, labels)
    for key, column in measure.measure_nuclei(labels.astype(dtype), labels).items():
        assert column.dtype == expected[key].dtype
        np.testing.assert_array_equal(column, expected[key], err_msg=key)


@pytest.mark.parametrize("shape", [(20, 15), (300, 250)])  # more nuclei than 8 and 16 bits can number
def test_many_nuclei_keep_their_own_pixels(shape):
    count = shape[0] * shape[1]
    labels = np.arange(1, count + 1)[::-1].reshape(shape).repeat(3, axis=1)  # three pixels wide
    image = np.random.default_rng(0).random(labels.shape)
    columns = measure.measure_nuclei(labels, image)
    np.testing.assert_array_equal(columns["label"], np.arange(1, count + 1))
    expected = np.median(image.reshape(count, 3), axis=1)[::-1]
    np.testing.assert_array_equal(columns["intensity_median_gray"], expected)


# Against CellProfiler.


def test_shapes_and_intensities_are_those_of_cellprofiler():
    labels, _, _ = relabel_sequential(draw_ellipses())
    image = np.random.default_rng(5).random(SHAPE)
    columns = measure.measure_nuclei(labels, image)
    expected = get_sizeshape(labels, image) | get_intensity(labels, image)
    assert len(expected["Area"]) == labels.max() > 30
    for feature, column in CELLPROFILER.items():
        np.testing.assert_allclose(columns[column], expected[feature], rtol=1e-9, atol=1e-9, err_msg=column)
    np.testing.assert_allclose(np.degrees(columns["orientation_rad"]), expected["Orientation"], rtol=1e-9)


# Known shapes.


def test_a_rectangle_by_hand():
    labels = np.zeros((30, 40), np.int32)
    labels[10:16, 20:32] = 1  # 6 rows, 12 columns
    labels[2:4, 2:4] = 2
    image = np.zeros((30, 40), np.uint8)
    image[10:16, 20:26] = 10
    image[10:16, 26:32] = 30
    columns = measure.measure_nuclei(labels, image, "a", [0.75, 0.5], pixel_size=0.5, channel_names=["DAPI"])
    rectangle = {key: column.tolist()[0] for key, column in columns.items()}
    distance = math.hypot(12.5 - 2.5, 25.5 - 2.5)
    perimeter = 2 * (5 + 11)  # between the centres of pixels
    expected = {
        "image": "a",
        "label": 1,
        "area_px": 72,
        "centroid_row_px": 12.5,
        "centroid_column_px": 25.5,
        "axis_major_length_px": 4 * math.sqrt((12**2 - 1) / 12),
        "axis_minor_length_px": 4 * math.sqrt((6**2 - 1) / 12),
        "eccentricity": math.sqrt(1 - (6**2 - 1) / (12**2 - 1)),
        "orientation_rad": math.pi / 2,
        "equivalent_diameter_area_px": 2 * math.sqrt(72 / math.pi),
        "perimeter_px": perimeter,
        "solidity": 1,
        "form_factor": 4 * math.pi * 72 / perimeter**2,
        "bbox_min_row_px": 10,
        "bbox_min_column_px": 20,
        "bbox_max_row_px": 16,
        "bbox_max_column_px": 32,
        "touches_border": False,
        "intensity_mean_DAPI": 20,
        "intensity_median_DAPI": 20,
        "intensity_std_DAPI": 10,
        "intensity_min_DAPI": 10,
        "intensity_max_DAPI": 30,
        "intensity_integrated_DAPI": 1440,
        "nearest_neighbor_distance_px": distance,
        "confidence": 0.75,
        "area_um2": 18,
        "centroid_row_um": 6.25,
        "centroid_column_um": 12.75,
        "equivalent_diameter_area_um": math.sqrt(72 / math.pi),
        "axis_major_length_um": 2 * math.sqrt((12**2 - 1) / 12),
        "axis_minor_length_um": 2 * math.sqrt((6**2 - 1) / 12),
        "perimeter_um": perimeter / 2,
        "nearest_neighbor_distance_um": distance / 2,
    }
    assert list(rectangle) == list(expected)
    numbers = {key: value for key, value in expected.items() if key != "image"}
    assert {key: rectangle[key] for key in numbers} == pytest.approx(numbers, rel=1e-12)
    assert rectangle["image"] == "a"


def test_the_hull_of_a_corner_by_hand():
    labels = np.zeros((20, 20), np.int32)
    labels[3:8, 4] = 1
    labels[7, 4:9] = 1
    # Its arms have 5 pixels each; 6 more pixels fill the triangle between them.
    assert measure.measure_nuclei(labels, labels)["solidity"].tolist() == [9 / 15]


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ((0, 3), (5, 8), True),
        ((5, 8), (0, 3), True),
        ((17, 20), (5, 8), True),
        ((5, 8), (27, 30), True),
        ((1, 19), (1, 29), False),
    ],
)
def test_nuclei_that_touch_the_border_are_marked(rows, columns, expected):
    labels = np.zeros((20, 30), np.int32)
    labels[slice(*rows), slice(*columns)] = 1
    assert measure.measure_nuclei(labels, labels)["touches_border"].tolist() == [expected]


def test_a_nucleus_of_one_pixel_has_all_its_figures():
    labels = np.zeros((9, 9), np.int32)
    labels[4, 5] = 1
    labels[1, 1] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        columns = measure.measure_nuclei(labels, np.full((9, 9), 7, np.uint8))
    pixel = {key: column.tolist()[0] for key, column in columns.items()}
    assert (pixel["area_px"], pixel["solidity"], pixel["nearest_neighbor_distance_px"]) == (1, 1, 5)
    zeros = ("perimeter_px", "form_factor", "eccentricity", "axis_major_length_px", "axis_minor_length_px")
    assert [pixel[key] for key in (*zeros, "intensity_std_gray")] == [0] * 6
    assert pixel["orientation_rad"] == -math.pi / 4  # as scikit-image has it
    assert [pixel[f"intensity_{key}_gray"] for key in ("mean", "median", "min", "max", "integrated")] == [7] * 5


def test_a_single_nucleus_has_no_neighbour():
    labels = np.zeros((9, 9), np.int32)
    labels[4:7, 5] = 8
    distance = measure.measure_nuclei(labels, labels, pixel_size=2)
    assert np.isnan(distance["nearest_neighbor_distance_px"]).tolist() == [True]
    assert np.isnan(distance["nearest_neighbor_distance_um"]).tolist() == [True]


def test_the_nearest_neighbour_may_be_any_nucleus():
    labels = np.zeros((40, 90), np.int32)
    for number, column in enumerate((10, 20, 60, 73), start=1):
        labels[9:12, column - 1 : column + 2] = 5 - number
    distances = measure.measure_nuclei(labels, labels)["nearest_neighbor_distance_px"]
    assert distances.tolist() == [13, 13, 10, 10]  # in the order of numbers


def test_labels_and_image_must_be_of_one_size():
    with pytest.raises(ValueError, match=r"labels are \(4, 6\), the image is \(6, 4\)"):
        measure.measure_nuclei(np.zeros((4, 6), int), np.zeros((6, 4)))


# Strips.


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("strip", [1, 16, 37, 149])
def test_strips_give_the_table_of_the_whole_image(monkeypatch, name, strip):
    labels = DRAWN[name]()
    image = draw_image(np.float32, (*SHAPE, 3))
    numbers = np.unique(labels[labels > 0])
    confidence = numbers / 1000
    whole = measure.measure_window(labels, image, numbers, 0, SHAPE[0])
    monkeypatch.setattr(measure, "STRIP", strip)
    columns = measure.measure_nuclei(labels, image, "a", confidence)
    assert columns.keys() == {"image", *whole, "nearest_neighbor_distance_px", "confidence"}
    for key, column in whole.items():
        assert columns[key].dtype == column.dtype
        np.testing.assert_array_equal(columns[key], column, err_msg=key)  # to the last bit
    np.testing.assert_array_equal(columns["confidence"] * 1000, columns["label"])


def test_a_window_measures_the_nuclei_that_are_asked_for():
    labels = draw_ellipses()
    image = draw_image(np.uint8)
    whole = measure.measure_nuclei(labels, image)
    inside = np.flatnonzero((whole["bbox_min_row_px"] >= 40) & (whole["bbox_max_row_px"] <= 110))
    assert 5 < len(inside) < len(whole["label"]) - 5
    window = measure.measure_window(labels[40:110], image[40:110], whole["label"][inside], 40, SHAPE[0])
    for key, column in window.items():
        np.testing.assert_array_equal(column, whole[key][inside], err_msg=key)
    assert not window["touches_border"].all()


def test_rows_of_files_are_measured_as_arrays_are(tmp_path, small_strips):
    labels = draw_ellipses()
    image = draw_image(np.uint16)
    for name, pixels in (("labels", labels.astype(np.uint32)), ("image", image)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, tile=(16, 16))
    with open_rows(tmp_path / "labels.tif") as label_rows, open_rows(tmp_path / "image.tif") as image_rows:
        columns = measure.measure_nuclei(label_rows, image_rows)
    for key, column in measure.measure_nuclei(labels, image).items():
        np.testing.assert_array_equal(columns[key], column, err_msg=key)


def test_no_more_rows_are_read_than_nuclei_need(small_strips):
    labels = np.zeros((64, 20), np.int32)
    labels[3:9, 2:5] = 1
    labels[12:20, 2:5] = 2  # ends in the second strip
    labels[50:53, 2:5] = 3

    class Rows:
        shape = labels.shape
        read = []

        def __getitem__(self, rows):
            self.read.append((rows.start, rows.stop))
            return labels[rows]

    rows = Rows()
    columns = measure.measure_nuclei(labels, rows)
    assert columns["label"].tolist() == [1, 2, 3]
    assert rows.read == [(0, 16), (12, 32), (32, 48), (48, 64)]


# Images.


def test_the_row_of_an_image():
    labels = np.zeros((100, 200), np.int32)
    labels[10:20, 10:20] = 1
    labels[50:60, 50:80] = 2
    labels[80:82, 90:95] = 3
    nuclei = measure.measure_nuclei(labels, labels, "a", [0.5, 0.75, 1], pixel_size=0.5)
    row = measure.measure_image(nuclei, labels.shape, "a", 0.5, "DAPI", "1/2", "dark", ["few nuclei", "out of focus"])
    assert row == {
        "image": "a",
        "width_px": 200,
        "height_px": 100,
        "pixel_size_um": 0.5,
        "channel": "DAPI",
        "scale": "1/2",
        "background": "dark",
        "count": 3,
        "covered_fraction": 410 / 20_000,
        "median_area_px": 100,
        "median_area_um2": 25,
        "density_per_megapixel": 150,
        "density_per_mm2": pytest.approx(3 / 0.005),  # 0.1 mm times 0.05 mm
        "mean_confidence": 0.75,
        "warnings": "few nuclei; out of focus",
    }


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 3)])
def test_an_image_without_nuclei_has_columns_without_rows(shape):
    nothing = np.zeros((40, 30), np.int32)
    labels = draw_nuclei((40, 30))[1]
    image = np.zeros(shape, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        columns = measure.measure_nuclei(nothing, image, "a", [], pixel_size=0.5)
        row = measure.measure_image(columns, nothing.shape, "a", 0.5)
    some = measure.measure_nuclei(labels, image, "a", np.ones(4), pixel_size=0.5)
    assert list(columns) == list(some)
    assert {len(column) for column in columns.values()} == {0} and {len(column) for column in some.values()} == {4}
    assert (row["count"], row["covered_fraction"], row["density_per_mm2"]) == (0, 0, 0)
    assert math.isnan(row["median_area_px"]) and math.isnan(row["mean_confidence"])


# Files.


def read_csv(file):
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def test_a_table_is_written_with_eight_digits(tmp_path):
    table = {
        "image": np.array(["a,b", "ß"]),
        "label": np.array([1, 123456789012]),
        "area_um2": np.array([2 / 3, -0.0]),
        "touches_border": np.array([True, False]),
        "distance": np.array([np.nan, 123456.789]),
    }
    measure.write_table(tmp_path / "nuclei.csv", table)
    assert read_csv(tmp_path / "nuclei.csv") == [
        ["image", "label", "area_um2", "touches_border", "distance"],
        ["a,b", "1", "0.66666667", "True", ""],
        ["ß", "123456789012", "0", "False", "123456.79"],
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["nuclei.csv"]


def save_tables_of(out, nuclei_of_images, shape):
    """Writes the tables of images, id -> columns, and puts them together."""
    make_folders(out)
    for name, nuclei in nuclei_of_images.items():
        files = prediction_files(out, name)
        measure.write_table(files.nuclei, nuclei)
        save_image_row(files.image_row, measure.measure_image(nuclei, shape, name))
    return save_tables(out, list(nuclei_of_images))


def test_images_with_other_channels_share_a_table(tmp_path):
    labels = np.zeros((9, 9), np.int32)
    labels[2:4, 2:4] = 1
    labels[7, 3:6] = 2
    gray = measure.measure_nuclei(labels, np.full((9, 9), 5, np.uint8), "gray")
    coloured = measure.measure_nuclei(labels, np.full((9, 9, 3), 7, np.uint8), "coloured", pixel_size=0.5)
    save_tables_of(tmp_path, {"gray": gray, "coloured": coloured}, (9, 9))
    header, *rows = read_csv(tmp_path / "nuclei.csv")
    assert len(set(header)) == len(header) == len(rows[0])
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    columns = ("image", "intensity_mean_gray", "intensity_mean_blue", "area_um2")
    assert [[cell[key] for key in columns] for cell in cells] == [
        ["gray", "5", "", ""],
        ["gray", "5", "", ""],
        ["coloured", "", "7", "1"],
        ["coloured", "", "7", "0.75"],
    ]


def test_a_table_of_an_empty_image_is_its_header(tmp_path):
    nothing = np.zeros((9, 9), np.int32)
    columns = measure.measure_nuclei(nothing, nothing, "a")
    measure.write_table(tmp_path / "nuclei.csv", columns)
    assert read_csv(tmp_path / "nuclei.csv") == [list(columns)]


def test_the_rows_of_images_are_written_below_each_other(tmp_path):
    nothing = np.zeros((9, 18), np.int32)
    columns = measure.measure_nuclei(nothing, nothing)
    rows = save_tables_of(tmp_path, {"a": columns, "b": columns}, nothing.shape)
    assert [(image_id, row["count"]) for image_id, row in rows.items()] == [("a", 0), ("b", 0)]
    header, *cells = read_csv(tmp_path / "images.csv")
    assert header[:3] == ["image", "width_px", "height_px"]
    assert [row[:4] for row in cells] == [["a", "18", "9", ""], ["b", "18", "9", ""]]


def test_the_same_nuclei_make_the_same_file(tmp_path, monkeypatch):
    labels = draw_ellipses()
    image = draw_image(np.float32)
    for strip in (16, 512):
        monkeypatch.setattr(measure, "STRIP", strip)
        measure.write_table(tmp_path / f"{strip}.csv", measure.measure_nuclei(labels, image, "a"))
    content = (tmp_path / "16.csv").read_bytes()
    assert content == (tmp_path / "512.csv").read_bytes() and len(content) > 5000
