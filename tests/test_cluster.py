"""Prediction by the workers of a Dask cluster, one of which is killed."""

import os
import signal
import threading
import time

import distributed
import keras
import pytest
from conftest import ROOT

import Model
import Predict_masks
import Preprocessed_data

IMAGES = 48


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each."""
    options = {"dashboard_address": None, "memory_limit": 0, "host": "127.0.0.1"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        yield cluster


@pytest.fixture
def options(tmp_path):
    """The command's --data and --weights: the sample's images under new names, a tiny network."""
    samples = Preprocessed_data.open_source(ROOT / Preprocessed_data.DATA)
    (tmp_path / "images").mkdir()
    for number in range(IMAGES):
        content = samples[number % len(samples)].image.read_bytes()
        (tmp_path / "images" / f"{number:03}.png").write_bytes(content)
    keras.utils.set_random_seed(1)
    Model.Unet(2, 2).build().save(tmp_path / "unet.keras")
    return ["--data", str(tmp_path / "images"), "--weights", str(tmp_path / "unet.keras")]


def read_files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.glob("*/*")}


def test_what_a_killed_worker_had_to_do_is_done_by_another(cluster, options, tmp_path, capsys):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert Predict_masks.main([*options, "--out", str(alone)]) == 0
    killed = []

    def kill_one():
        while len(list((shared / "labels").glob("0*.tif"))) < 4:
            time.sleep(0.02)
        worker = next(iter(cluster.workers.values()))
        killed.append((worker.pid, len(list((shared / "labels").glob("0*.tif")))))
        os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    command = [*options, "--out", str(shared), "--scheduler", cluster.scheduler_address]
    assert Predict_masks.main(command) == 0
    killer.join()
    assert killed[0][1] < IMAGES  # it was in the middle
    expected, found = read_files(alone), read_files(shared)
    assert len(expected) == 3 * IMAGES
    assert {name for name in found if "part-" not in name.name} == set(expected)
    assert all(found[name] == expected[name] for name in expected)

    (shared / "masks" / "007.png").unlink()
    before = {file: file.stat().st_mtime_ns for file in shared.glob("*/*.*")}
    capsys.readouterr()
    assert Predict_masks.main(command) == 0
    assert f"{IMAGES - 1} of {IMAGES} images are done" in capsys.readouterr().out
    assert read_files(shared) == expected  # nor is anything left of the killed worker
    assert sum(file.stat().st_mtime_ns == before.get(file) for file in before if file.exists()) == (
        3 * (IMAGES - 1)
    )


def test_workers_that_cannot_work_are_one_line(cluster, options, tmp_path, monkeypatch):
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", cluster.scheduler_address]

    def hide_keras():
        import sys

        sys.modules["keras"] = None
        for name in ("Predict_masks", "Model"):
            sys.modules.pop(name, None)

    with distributed.Client(cluster, set_as_default=False) as client:
        client.run(hide_keras)
        with pytest.raises(ValueError, match="(?s)worker.*keras.*requirements.txt"):
            Predict_masks.main(command)


def test_a_scheduler_that_does_not_answer(options, tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "CONNECT_SECONDS", 1)
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ValueError, match="tcp://127.0.0.1:9: no Dask scheduler"):
        Predict_masks.main(command)


def test_without_dask_there_is_a_clear_message(options, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ValueError, match="pip install distributed"):
        Predict_masks.main(command)
