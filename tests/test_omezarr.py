"""data.omezarr: labels as OME-Zarr, read back by zarr and by models of the format."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr
from conftest import ROOT, draw_disks, load_once, save_image
from ome_zarr_models import open_ome_zarr
from ome_zarr_models.v05.image_label import ImageLabel

import Predict_masks
from data import omezarr
from data.files import UserError
from data.images import read_image
from data.omezarr import write_zarr
from data.outputs import remove_unfinished

KILLED_WRITE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from data import omezarr

class Rows:
    shape = (40, 20)

    def __getitem__(self, rows):
        if rows.start:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones((len(range(*rows.indices(40))), 20), np.int32)

omezarr.CHUNK = 16
omezarr.write_zarr(Path(sys.argv[1]), Rows(), "a")
"""


def draw_labels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 100_000, shape).astype(np.int32)


def read_levels(file):
    """The arrays of each level, and what is said of the image."""
    group = zarr.open_group(file, mode="r")
    return [group[dataset["path"]] for dataset in group.attrs["ome"]["multiscales"][0]["datasets"]], group.attrs["ome"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("pixel_size", "unit", "side"), [(None, None, 1), (0.25, "micrometer", 0.25)])
def test_levels_are_halved_and_lie_on_each_other(tmp_path, pixel_size, unit, side):
    labels = draw_labels((600, 1001))
    write_zarr(tmp_path / "a.zarr", labels, "a", pixel_size)
    levels, metadata = read_levels(tmp_path / "a.zarr")
    assert [level.shape for level in levels] == [(600, 1001), (300, 501), (150, 251)]
    for number, level in enumerate(levels):
        assert (level.dtype, level.chunks, level.metadata.dimension_names) == (np.uint32, (512, 512), ("y", "x"))
        assert len(level.compressors) == 1
        np.testing.assert_array_equal(level[:], labels[:: 2**number, :: 2**number])
    described = open_ome_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))  # raises where the format is not kept
    assert isinstance(described, ImageLabel)
    assert metadata["version"] == metadata["image-label"]["version"] == "0.5"
    (multiscale,) = described.attributes.ome.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
        ("y", "space", unit),
        ("x", "space", unit),
    ]
    scales = [dataset.coordinateTransformations[0].scale for dataset in multiscale.datasets]
    assert scales == [[side * factor] * 2 for factor in (1, 2, 4)]


@pytest.mark.parametrize(("shape", "count"), [((255, 900), 1), ((256, 900), 2), ((1, 1), 1)])
def test_the_last_level_is_the_first_that_is_small(tmp_path, shape, count):
    write_zarr(tmp_path / "a.zarr", draw_labels(shape), "a")
    assert len(read_levels(tmp_path / "a.zarr")[0]) == count


def test_a_large_image_is_read_and_written_strip_by_strip(tmp_path, monkeypatch):
    monkeypatch.setattr(omezarr, "CHUNK", 16)
    monkeypatch.setattr(omezarr, "SMALLEST_SIDE", 16)
    labels = draw_labels((101, 67))
    strips = []

    class Rows:
        shape = labels.shape

        def __getitem__(self, rows):
            strips.append(labels[rows])
            return labels[rows]

    write = zarr.Array.__setitem__

    def write_strip(level, rows, values):
        assert len(values) <= 16
        write(level, rows, values)

    monkeypatch.setattr(zarr.Array, "__setitem__", write_strip)
    write_zarr(tmp_path / "a.zarr", Rows(), "a")
    assert max(len(strip) for strip in strips) == 16
    np.testing.assert_array_equal(np.concatenate(strips), labels)  # each row is read once
    levels, _ = read_levels(tmp_path / "a.zarr")
    assert [level.shape for level in levels] == [(101, 67), (51, 34), (26, 17), (13, 9)]
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(level[:], labels[:: 2**number, :: 2**number])


def test_an_older_one_is_replaced_with_all_its_levels(tmp_path):
    write_zarr(tmp_path / "a.zarr", draw_labels((600, 600)), "a")
    labels = draw_labels((50, 40), seed=1)
    write_zarr(tmp_path / "a.zarr", labels, "a")
    assert names_in(tmp_path) == ["a.zarr"] and names_in(tmp_path / "a.zarr") == ["0", "zarr.json"]
    np.testing.assert_array_equal(read_levels(tmp_path / "a.zarr")[0][0][:], labels)


@pytest.mark.parametrize("has_older", [False, True])
def test_a_killed_write_leaves_nothing_under_the_name(tmp_path, has_older):
    file = tmp_path / "zarr/a.zarr"
    file.parent.mkdir()
    labels = draw_labels((50, 40))
    if has_older:
        write_zarr(file, labels, "a")
    command = [sys.executable, "-c", KILLED_WRITE, str(file)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    assert len(names_in(file.parent)) == 1 + has_older  # what it had begun
    remove_unfinished(tmp_path)
    assert names_in(file.parent) == ["a.zarr"] * has_older
    if has_older:
        np.testing.assert_array_equal(read_levels(file)[0][0][:], labels)


def test_it_is_written_where_it_is_wanted_later_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 10_000)
    monkeypatch.setattr(Predict_masks, "load_unet", load_once)
    for name, shape in (("small", (90, 90)), ("large", (90, 180))):
        nuclei = draw_disks(shape, [(25, 25), (60, 60)], 9)
        save_image(tmp_path / f"images/{name}.png", (15 + 140 * nuclei).astype(np.uint8))
    out = tmp_path / "out"
    command = ["--data", str(tmp_path / "images"), "--out", str(out), "--pixel-size", "0.5"]
    assert Predict_masks.main(command) == 0
    assert not (out / "zarr").exists()
    for _ in range(2):
        assert Predict_masks.main([*command, "--zarr"]) == 0
        assert names_in(out / "zarr") == ["large.zarr", "small.zarr"]
        for name in ("small", "large"):
            (level,), metadata = read_levels(out / f"zarr/{name}.zarr")
            labels = read_image(out / f"labels/{name}.tif")
            assert labels.max() == 2
            np.testing.assert_array_equal(level[:], labels)
            (dataset,) = metadata["multiscales"][0]["datasets"]
            assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [0.5, 0.5]}]
        (out / "zarr/small.zarr/zarr.json").unlink()


def test_a_missing_or_old_package_is_named_before_anything_is_written(tmp_path, mistake, monkeypatch):
    save_image(tmp_path / "images/a.png", np.zeros((20, 20), np.uint8))
    monkeypatch.setattr(zarr, "__version__", "2.18.3")
    with pytest.raises(UserError, match="--zarr needs zarr 3, this is 2.18.3; pip install --upgrade zarr"):
        omezarr.import_zarr()
    monkeypatch.setitem(sys.modules, "zarr", None)  # its import fails
    answer = mistake("Predict_masks.py", "--data", "images", "--out", "out", "--zarr")
    assert answer == "--zarr needs zarr; pip install zarr"
    assert not (tmp_path / "out").exists()
