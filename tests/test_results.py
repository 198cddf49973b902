"""The files of predicted images: large ones under the rules of Windows, and what one image may not cost the others."""

import argparse
import os

import numpy as np
import pytest
import roifile
import tifffile
from conftest import ROOT, Threshold

import Predict_masks
from data import outputs, results
from data.confidence import Calibration
from data.files import UserError
from data.images import read_image
from data.options import PredictionOptions
from data.runs import ImageWork, Run
from data.scales import Network, PredictionJob
from data.sources import Sample, find_samples
from data.stacks import expand_planes
from data.tables import find_plane


def replace_as_windows(source, target):
    """Refuses to replace a file, or by a file, that is open."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            opened = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # that of the list itself
            continue
        if opened in (os.path.abspath(source), os.path.abspath(target)):
            raise PermissionError(13, "Access is denied", str(source))
    REPLACE(source, target)


REPLACE = os.replace


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux says which files are open")
@pytest.mark.parametrize(("min_area", "count"), [(0, 3), (20, 2)])
def test_files_of_a_large_image_are_closed_before_they_are_replaced(tmp_path, monkeypatch, min_area, count):
    labels = np.zeros((600, 700), np.int32)
    labels[10:40, 10:40] = 1
    labels[100:103, 100:103] = 2
    labels[300:330, 300:340] = 3
    probabilities = np.stack([labels > 0, labels < 0]).astype(np.float32)
    image = (200 * (labels > 0)).astype(np.uint8)
    outputs.make_folders(tmp_path)
    run = Run(Network(None, Calibration()), tmp_path, {}, PredictionOptions(min_area=min_area))
    work = ImageWork(Sample("a", tmp_path / "a.tif"), {}, image, image, None)
    job = PredictionJob(image / np.float32(255), halvings=(0,))
    strips = ((labels[row : row + 512], probabilities[:, row : row + 512]) for row in (0, 512))
    monkeypatch.setattr(os, "replace", replace_as_windows)
    results.write_slide(run, work, job, strips, np.dstack([image] * 3))
    assert len(np.unique(read_image(tmp_path / "labels/a.tif"))) - 1 == count


def test_an_image_too_wide_for_rois_costs_the_others_nothing(tmp_path, capsys):
    outputs.make_folders(tmp_path)
    for name, width in (("wide", 32_800), ("usual", 20)):
        labels = np.zeros((8, width), np.uint16)
        labels[2:6, 3:9] = 1
        tifffile.imwrite(tmp_path / f"labels/{name}.tif", labels)
    results.save_optional(tmp_path, ["wide", "usual"], {"rois": ["wide", "usual"], "geojson": (), "zarr": ()})
    assert [file.name for file in (tmp_path / "rois").iterdir()] == ["usual.zip"]
    assert "no ROIs: " in capsys.readouterr().err


def test_rois_of_a_smaller_level_are_refused():
    asked = {"zarr": False, "level": 1, "rois": True, "geojson": True}
    with pytest.raises(UserError, match="--level 1: --rois fit the largest level alone"):
        results.check_results(argparse.Namespace(**asked))
    for changed in ({"level": 0}, {"rois": False}):
        results.check_results(argparse.Namespace(**asked | changed))


def test_outlines_of_a_stack_know_their_plane(tmp_path):
    image = np.zeros((2, 3, 40, 40), np.uint8)
    image[..., 10:25, 12:26] = 200
    tifffile.imwrite(tmp_path / "a.tif", image, imagej=True, metadata={"axes": "TZYX"})
    samples = expand_planes(find_samples(tmp_path / "a.tif"), None)
    Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", {"weights_sha256": "one"})
    files = outputs.prediction_files(tmp_path / "out", "a_t1_z2")
    assert find_plane(files) == {"z": 2, "t": 1}
    results.save_optional(tmp_path / "out", ["a_t1_z2"], {"rois": ["a_t1_z2"], "geojson": (), "zarr": ()})
    (roi,) = roifile.roiread(files.rois)
    assert (roi.z_position, roi.t_position) == (3, 2)  # Fiji counts from 1


def test_a_name_like_that_of_a_plane_makes_no_plane(tmp_path):
    image = np.zeros((40, 40), np.uint8)
    image[10:25, 12:26] = 200
    for name in ("cell", "cell_t1"):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    out = tmp_path / "out"
    Predict_masks.predict_samples(find_samples(tmp_path), Threshold(), out, {"weights_sha256": "one"})
    assert results.find_counted_twice(out, ["cell", "cell_t1"]) == []
    tifffile.imwrite(tmp_path / "cell.tif", np.stack([image, image]), imagej=True, metadata={"axes": "TYX"})
    samples = expand_planes(find_samples(tmp_path / "cell.tif"), None)
    Predict_masks.predict_samples(samples, Threshold(), out, {"weights_sha256": "one"})
    assert results.find_counted_twice(out, ["cell", "cell_t0", "cell_t1"]) == ["cell"]


def test_labels_of_a_large_image_say_the_background_that_was_used(tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1)
    monkeypatch.setattr("data.slides.WINDOW", 16)
    image = np.full((300, 300), 20, np.uint8)
    image[142:158, 142:158] = 200  # the window in the middle, and most windows at the edges, look bright
    image[:16] = 200
    image[-16:] = 200
    tifffile.imwrite(tmp_path / "a.tif", image)
    Predict_masks.predict_samples(
        find_samples(tmp_path / "a.tif"), Threshold(), tmp_path / "out", {"weights_sha256": "one"}
    )
    assert outputs.read_provenance(tmp_path / "out/labels/a.tif")["seen"]["background"] == "dark"


def test_a_run_that_is_refused_leaves_no_trace(tmp_path):
    source = ROOT / "data/sample/fluorescence_small_1/images/fluorescence_small_1.png"
    samples = find_samples(source)
    Predict_masks.predict_samples(samples, Threshold(), tmp_path, {"weights_sha256": "one"})
    with pytest.raises(UserError, match="other weights"):
        Predict_masks.prepare_out(samples, tmp_path, {"weights_sha256": "another"}, [str(source)], overwrite=False)
    assert not (tmp_path / "source.json").exists()
