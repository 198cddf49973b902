"""Labels from one file: pictures, ROI sets and GeoJSON, and what is none of them."""

import io
import json

import numpy as np
import pytest
import roifile
import tifffile
from conftest import draw_disks, draw_nuclei, save_image
from PIL import Image

from data.files import UserError
from data.label_files import read_label_file
from data.outlines import write_geojson, write_rois
from data.outputs import save_labels
from data.pictures import outline_nuclei

IMAGE, LABELS = draw_nuclei((64, 80))
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 0), (90, 0, 200)], np.uint8)
FIJI = {"description": "ImageJ=1.54f\n", "metadata": None}


def read(file):
    labels = read_label_file(file, LABELS.shape)
    assert labels.dtype == np.int32
    return labels


PICTURES = {
    "8 bits": LABELS.astype(np.uint8),
    "16 bits": LABELS.astype(np.uint16),
    "32 bits, gaps": (LABELS * 900_000_000).astype(np.uint32),
    "float": LABELS.astype(np.float32),
    "global numbers": np.where(LABELS > 0, LABELS + 60_000, 0).astype(np.uint16),
    "three equal channels": np.dstack([LABELS.astype(np.uint8)] * 3),
}


@pytest.mark.parametrize("name", PICTURES)
def test_label_pictures(tmp_path, name):
    tifffile.imwrite(tmp_path / "a.tif", PICTURES[name])
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), LABELS)


def test_every_colour_is_a_nucleus(tmp_path):
    labels = read(save_image(tmp_path / "a.png", COLOURS[LABELS]))
    numbers = [int(labels[LABELS == number][0]) for number in range(5)]
    assert numbers[0] == 0 and sorted(numbers) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(labels, np.array(numbers)[LABELS])


def test_a_number_in_far_pieces_is_one_nucleus(tmp_path):
    labels = np.where(LABELS == 4, 1, LABELS)
    np.testing.assert_array_equal(read(save_image(tmp_path / "a.png", labels.astype(np.uint8))), labels)


@pytest.mark.parametrize("value", [1, 255])
def test_binary_pictures_are_parted(tmp_path, value):
    picture = np.where(LABELS > 0, value, 0).astype(np.uint8)
    picture[0, 0] = value  # touches nothing
    picture[[2, 3], [2, 3]] = value  # fragments that touch at a corner
    picture[50:54, 70:74] = picture[54:58, 74:78] = value  # nuclei that touch at a corner
    picture[49, 69] = value  # a fragment of the first one
    labels = read(save_image(tmp_path / "a.png", picture))
    assert labels.max() == 8 and (labels > 0).sum() == (picture > 0).sum()
    assert labels[2, 2] == labels[3, 3] != labels[0, 0] != 0
    assert labels[49, 69] == labels[50, 70] != labels[57, 77]


@pytest.mark.parametrize("fragment", [([54], [74]), ([54, 54], [74, 75]), ([54, 54, 55], [74, 75, 75])])
def test_a_fragment_belongs_as_a_whole_to_the_nucleus_at_its_corner(tmp_path, fragment):
    picture = np.zeros(LABELS.shape, np.uint8)
    picture[50:54, 70:74] = 1
    picture[fragment] = 1
    picture[10, [20, 21]] = picture[11, 22] = picture[12, 23] = 1  # fragments that touch one another only
    labels = read(save_image(tmp_path / "a.png", picture))
    np.testing.assert_array_equal(labels > 0, picture > 0)
    assert labels.max() == 2
    assert set(labels[fragment]) == {labels[50, 70]}
    assert len(set(labels[[10, 10, 11, 12], [20, 21, 22, 23]])) == 1


def test_fijis_tables_of_colours_and_black_nuclei_are_read_as_numbers(tmp_path):
    colours = np.full((3, 256), 65535, np.uint16)  # white for all
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.uint8), photometric="palette", colormap=colours, **FIJI)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), LABELS)
    mask = np.where(LABELS > 0, 255, 0).astype(np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", mask, photometric="miniswhite", **FIJI)
    np.testing.assert_array_equal(read(tmp_path / "b.tif") > 0, LABELS > 0)


def lose(picture):
    """What JPEG makes of a picture."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "jpeg")
    return np.asarray(Image.open(stream))


MASK = np.where(LABELS > 0, 255, 0).astype(np.uint8)
TOUCHING = draw_disks((64, 80), [(20, 12 + 12 * n) for n in range(5)] + [(32, 12), (44, 12), (56, 24)], 7) > 0
RGB = np.dstack([IMAGE] * 3)
WRONG = {  # picture and what the error says
    "size": (LABELS[:, :70].astype(np.uint8), r"\(64, 70\), their image \(64, 80\)"),
    "photograph": (IMAGE, "photograph"),
    "overlay": (outline_nuclei(RGB, LABELS), "overlay"),
    "JPEG of a mask": (lose(MASK), "JPEG"),
    "JPEG of a mask in colours": (lose(np.dstack([MASK] * 3)), "JPEG"),
    "JPEG of colours": (lose(COLOURS[LABELS]), "JPEG"),
    "inverted": (255 - MASK, "inverted"),
    "another background": (LABELS.astype(np.uint8) + 1, "inverted.*background"),
    "inverted but for a corner": (np.where(np.add(*np.indices(MASK.shape)) < 9, 0, 255 - MASK), "one piece covers"),
    "touching": (TOUCHING.astype(np.uint8), "touch.*a number of its own"),
    "fractions": (LABELS.astype(np.float32) / 3, "whole numbers"),
    "below 0": (LABELS.astype(np.int16) - 1, "whole numbers from 0"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_label_picture_is_refused(tmp_path, fault):
    picture, reason = WRONG[fault]
    tifffile.imwrite(tmp_path / "odd.tif", picture)
    with pytest.raises(UserError, match=rf"odd\.tif: .*{reason}"):
        read(tmp_path / "odd.tif")


def test_labels_that_we_wrote_and_a_person_corrected(tmp_path):
    save_labels(tmp_path / "a.tif", LABELS, {"weights_sha256": "f"}, 0.5)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), LABELS)
    corrected = tifffile.imread(tmp_path / "a.tif")
    corrected[LABELS == 2] = 0
    corrected[:5, :5] = 7
    tifffile.imwrite(tmp_path / "a.tif", corrected, imagej=True)
    expected = np.array([0, 1, 0, 2, 3])[LABELS]
    expected[:5, :5] = 4
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), expected)


# Outlines.


def test_our_roi_sets_there_and_back(tmp_path):
    write_rois(tmp_path / "a.zip", LABELS)
    np.testing.assert_array_equal(read(tmp_path / "a.zip"), LABELS)
    write_rois(tmp_path / "a.zip", np.zeros_like(LABELS))
    assert not read(tmp_path / "a.zip").any()


def test_our_geojson_there_and_back_with_holes_and_pieces(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, LABELS.shape).astype(np.int32)
    (tmp_path / "a.csv").write_text("label\n")
    write_geojson(tmp_path / "a.geojson", labels, "a", tmp_path / "a.csv")
    drawn = read(tmp_path / "a.geojson")
    order = {int(label): int(drawn[labels == label][0]) for label in range(4)}
    np.testing.assert_array_equal(drawn, np.array([order[label] for label in range(4)])[labels])
    assert order[0] == 0 and len(set(order.values())) == 4


SHAPES = {  # a ROI and the pixels inside it
    "rectangle": (
        roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, left=3, top=2, right=8, bottom=5),
        lambda rows, columns: (2 <= rows) & (rows < 5) & (3 <= columns) & (columns < 8),
    ),
    "oval": (
        roifile.ImagejRoi(roitype=roifile.ROI_TYPE.OVAL, left=10, top=10, right=30, bottom=30),
        lambda rows, columns: np.hypot(rows - 19.5, columns - 19.5) < 10,
    ),
    "fractions": (
        roifile.ImagejRoi.frompoints([(2.4, 2.4), (5.6, 2.4), (5.6, 4.6), (2.4, 4.6)]),
        lambda rows, columns: (2 <= rows) & (rows < 5) & (2 <= columns) & (columns < 6) & (rows != 9),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rois_of_other_shapes(tmp_path, name):
    roi, is_inside = SHAPES[name]
    roi.tofile(tmp_path / "a.roi")
    expected = is_inside(*np.indices(LABELS.shape))
    assert np.count_nonzero((read(tmp_path / "a.roi") > 0) != expected) <= (8 if name == "oval" else 0)


def feature(object_type, corner, **more):
    x, y = corner
    ring = [[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4], [x, y]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": object_type}} | more


def write_features(file, *features):
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def test_of_qupath_detections_come_before_annotations_and_nuclei_before_cells(tmp_path):
    file = tmp_path / "a.geojson"
    inner = {"type": "Polygon", "coordinates": [[[21, 1], [23, 1], [23, 3], [21, 3], [21, 1]]]}
    cell = feature("cell", (20, 0), nucleusGeometry=inner)
    labels = read(write_features(file, feature("annotation", (0, 0)), feature("detection", (10, 0)), cell))
    assert labels[2, 12] == 1 and not labels[2, 2]
    assert (labels == 2).sum() == 4
    labels = read(write_features(file, feature("annotation", (0, 0)), feature("annotation", (2, 2))))
    assert labels[0, 0] == 1 and labels[3, 3] == 2  # a pixel of two belongs to the later one


RING = [[1, 2], [7, 2], [7, 8], [1, 2]]
MISNESTED = {  # type and coordinates
    "no corners": ("Polygon", [[]]),
    "two corners": ("Polygon", [RING[:2]]),
    "flat": ("Polygon", RING),
    "too deep": ("Polygon", [[RING]]),
    "too deep, three rings": ("Polygon", [[RING] * 3]),
    "no corners in several": ("MultiPolygon", [[RING], [[]]]),
    "flat in several": ("MultiPolygon", [RING]),
    "too deep in several": ("MultiPolygon", [[[RING] * 3]]),
    "numbers for rings": ("Polygon", [1, 2]),
    "one number a corner": ("Polygon", [[[1], [2], [3]]]),
}


@pytest.mark.parametrize("fault", MISNESTED)
def test_geojson_that_is_nested_wrongly_is_named(tmp_path, fault):
    geometry_type, coordinates = MISNESTED[fault]
    geometry = {"geometry": {"type": geometry_type, "coordinates": coordinates}}
    (tmp_path / "a.geojson").write_text(json.dumps({"features": [geometry]}))
    with pytest.raises(UserError, match=r"a\.geojson: expected GeoJSON with polygons"):
        read(tmp_path / "a.geojson")


def test_outlines_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.geojson: its outline 1 lies outside of the image"):
        read(write_features(tmp_path / "a.geojson", feature("detection", (900, 900))))
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}, "properties": {}}
    for content in ("no json", json.dumps({"features": [point]}), json.dumps({"features": 3}), json.dumps([[]])):
        (tmp_path / "b.geojson").write_text(content)
        with pytest.raises(UserError, match=r"b\.geojson: expected GeoJSON with polygons"):
            read(tmp_path / "b.geojson")
    roifile.ImagejRoi.frompoints([(1, 2)]).tofile(tmp_path / "c.roi")
    with pytest.raises(UserError, match=r"c\.roi: its ROI c\.roi lacks corners"):
        read(tmp_path / "c.roi")
    roi = roifile.ImagejRoi.fromfile(tmp_path / "c.roi")
    roi.roitype = roifile.ROI_TYPE.POINT
    roi.tofile(tmp_path / "c.roi")
    with pytest.raises(UserError, match=r"c\.roi: its ROI c\.roi is a point"):
        read(tmp_path / "c.roi")
    for name in ("d.zip", "d.roi"):
        (tmp_path / name).write_bytes(b"PK, and no more")
        with pytest.raises(UserError, match=r"d\.(zip|roi): not a readable ROI set"):
            read(tmp_path / name)
