"""Outlines of nuclei: rings on the edges of pixels, ROI sets of ImageJ, GeoJSON of QuPath."""

import json

import numpy as np
import pytest
import roifile
import shapely
import shapely.geometry
from conftest import draw_disks
from scipy import ndimage
from skimage.draw import polygon2mask

from data.files import UserError
from data.measure import measure_nuclei, write_table
from data.outlines import trace_outlines, write_geojson, write_rois


def to_shape(polygons):
    """The pieces of a nucleus as one shape of shapely."""
    return shapely.MultiPolygon([(polygon[0], polygon[1:]) for polygon in polygons])


def draw_random(seed, count=4):
    """Ragged labels with holes, pieces and touching corners."""
    return np.random.default_rng(seed).integers(0, count, (20, 25)).astype(np.int32)


def redraw(shape, polygons):
    """The pixels whose middles lie in the pieces of a nucleus."""
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        outside, *holes = (polygon2mask(shape, ring - 0.5) for ring in polygon)
        for hole in holes:
            outside &= ~hole
        mask |= outside
    return mask


def test_a_rectangle_has_four_corners_clockwise():
    labels = np.zeros((9, 9), np.int32)
    labels[2:5, 3:8] = 7
    ((number, ((ring,),)),) = trace_outlines(labels)
    assert number == 7
    assert ring.tolist() == [[2, 3], [2, 8], [5, 8], [5, 3]]


@pytest.mark.parametrize("seed", range(20))
def test_rings_enclose_exactly_the_pixels_of_their_nucleus(seed):
    labels = draw_random(seed)
    outlines = dict(trace_outlines(labels))
    assert sorted(outlines) == [1, 2, 3]
    for number, polygons in outlines.items():
        shape = to_shape(polygons)
        assert all(part.is_valid for part in shape.geoms)  # closed, no crossing, holes inside
        assert shape.area == np.count_nonzero(labels == number)
        np.testing.assert_array_equal(redraw(labels.shape, polygons), labels == number)


def test_pixels_that_touch_at_a_corner_are_two_pieces():
    ((_, polygons),) = trace_outlines(np.eye(2, dtype=np.int32))
    assert sorted(len(polygon[0]) for polygon in polygons) == [4, 4]


def test_a_hole_is_kept_and_one_that_touches_itself_is_parted():
    labels = np.ones((6, 6), np.int32)
    labels[2, 2] = labels[3, 3] = 0
    ((_, (polygon,)),) = trace_outlines(labels)
    assert len(polygon) == 3
    assert to_shape([polygon]).is_valid
    assert to_shape([polygon]).area == 34


def test_no_nuclei_have_no_outlines():
    assert list(trace_outlines(np.zeros((5, 5), np.int32))) == []


def test_strips_give_the_outlines_of_the_whole(monkeypatch):
    labels, _ = ndimage.label(draw_disks((60, 40), [(8, 8), (30, 20), (50, 10)], 7))
    whole = {number: [ring.tolist() for ring in polygon] for number, (polygon,) in trace_outlines(labels)}
    monkeypatch.setattr("data.measure.STRIP", 11)
    strips = {number: [ring.tolist() for ring in polygon] for number, (polygon,) in trace_outlines(labels)}
    assert whole == strips and len(whole) == 3


def test_rois_draw_the_labels_again(tmp_path):
    labels = np.zeros((40, 300), np.int32)
    for number in range(12):
        labels[5 : 15 + number, 20 * number : 20 * number + 11] = number + 1
    write_rois(tmp_path / "a.zip", labels)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [roi.name for roi in rois] == [f"{number:02}" for number in range(1, 13)]
    for roi in rois:
        assert roi.roitype == roifile.ROI_TYPE.TRACED  # of a freehand ROI ImageJ smooths the perimeter
        ring = np.asarray(roi.coordinates())[:, ::-1]
        np.testing.assert_array_equal(redraw(labels.shape, [[ring]]), labels == int(roi.name))
    before = (tmp_path / "a.zip").read_bytes()
    write_rois(tmp_path / "a.zip", labels)
    assert (tmp_path / "a.zip").read_bytes() == before


def test_rois_beyond_the_coordinates_of_imagej_are_refused(tmp_path):
    with pytest.raises(UserError, match="32767 pixels.*--geojson"):
        write_rois(tmp_path / "a.zip", np.zeros((1, 40_000), np.int8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_geojson_holds_valid_detections_with_measurements(tmp_path, seed):
    labels = draw_random(seed)
    nuclei = measure_nuclei(labels, labels, "a")
    write_table(tmp_path / "a.csv", nuclei)
    write_geojson(tmp_path / "a.geojson", labels, "a", tmp_path / "a.csv")
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len({feature["id"] for feature in collection["features"]}) == 3
    for feature in collection["features"]:
        properties = feature["properties"]
        shape = shapely.geometry.shape(feature["geometry"])
        inside = labels == int(properties["name"])
        assert properties["objectType"] == "detection"
        assert shape.area == properties["measurements"]["area_px"] == inside.sum()
        centre = shape.centroid
        rows, columns = np.nonzero(inside)
        assert (centre.x, centre.y) == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))


def test_geojson_keeps_the_holes_of_all_pieces(tmp_path):
    labels = np.zeros((20, 40), np.int32)
    labels[1:12, 1:12] = labels[1:9, 20:30] = 1  # two pieces
    labels[3:6, 3:6] = labels[8, 8] = 0  # two holes in one of them
    labels[3:7, 22:28] = 2  # a nucleus in the hole of the other
    write_table(tmp_path / "a.csv", measure_nuclei(labels, labels, "a"))
    write_geojson(tmp_path / "a.geojson", labels, "a", tmp_path / "a.csv")
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    around, within = (shapely.geometry.shape(feature["geometry"]) for feature in features)
    assert sorted(len(piece.interiors) for piece in around.geoms) == [1, 2]
    assert (around.is_valid, around.area) == (True, np.count_nonzero(labels == 1))
    assert (within.area, around.intersection(within).area) == (24, 0)


def test_geojson_without_nuclei_is_empty(tmp_path):
    labels = np.zeros((5, 5), np.int32)
    write_table(tmp_path / "a.csv", measure_nuclei(labels, labels, "a"))
    write_geojson(tmp_path / "a.geojson", labels, "a", tmp_path / "a.csv")
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_outlines_of_a_plane_lie_on_it(tmp_path):
    labels = np.zeros((8, 9), np.int32)
    labels[2:5, 3:7] = 1
    write_table(tmp_path / "a.csv", measure_nuclei(labels, labels, "a"))
    for plane, position in (({}, (0, 0)), ({"z": 3}, (4, 0)), ({"z": 2, "t": 5}, (3, 6))):
        write_rois(tmp_path / "a.zip", labels, **plane)
        (roi,) = roifile.roiread(tmp_path / "a.zip")
        assert (roi.z_position, roi.t_position) == position
        write_geojson(tmp_path / "a.geojson", labels, "a", tmp_path / "a.csv", **plane)
        geometry = json.loads((tmp_path / "a.geojson").read_text())["features"][0]["geometry"]
        expected = {"c": -1, "z": plane["z"], "t": plane.get("t", 0)} if plane else None
        assert geometry.get("plane") == expected
