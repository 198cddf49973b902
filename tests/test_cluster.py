"""Training on several devices and in several processes; prediction by a Dask cluster."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import distributed
import keras
import numpy as np
import pytest
from conftest import ROOT

import Model
import Predict_masks
import Preprocessed_data
import Train

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
    assert set(found) == set(expected)  # nor is anything left of the killed worker
    assert all(found[name] == expected[name] for name in expected)

    (shared / "masks" / "007.png").unlink()
    before = {file: file.stat().st_mtime_ns for file in shared.glob("*/*.*")}
    capsys.readouterr()
    assert Predict_masks.main(command) == 0
    assert f"{IMAGES - 1} of {IMAGES} images are done" in capsys.readouterr().out
    assert read_files(shared) == expected
    assert sum(file.stat().st_mtime_ns == before.get(file) for file in before if file.exists()) == (
        3 * (IMAGES - 1)
    )


def test_workers_do_not_keep_the_weights_of_an_earlier_run(cluster, options, tmp_path):
    for seed in (1, 2):  # trained anew, saved under the same name
        keras.utils.set_random_seed(seed)
        Model.Unet(2, 2).build().save(tmp_path / "unet.keras")
        for folder, more in ("alone", []), ("shared", ["--scheduler", cluster.scheduler_address]):
            out = tmp_path / f"{folder}{seed}"
            assert Predict_masks.main([*options, "--out", str(out), *more]) == 0
        assert read_files(tmp_path / f"shared{seed}") == read_files(tmp_path / f"alone{seed}")
    assert read_files(tmp_path / "alone1") != read_files(tmp_path / "alone2")


def test_workers_that_cannot_work_are_one_line(cluster, options, tmp_path, monkeypatch):
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", cluster.scheduler_address]

    def hide_keras():
        sys.modules["keras"] = None
        for name in ("Predict_masks", "Model"):
            sys.modules.pop(name, None)

    def show_keras():
        del sys.modules["keras"]

    with distributed.Client(cluster, set_as_default=False) as client:
        client.run(hide_keras)
        with pytest.raises(ValueError, match="(?s)worker.*keras.*requirements.txt"):
            Predict_masks.main(command)
        client.run(show_keras)


def test_a_scheduler_that_does_not_answer(options, tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "CONNECT_SECONDS", 1)
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ValueError, match="tcp://127.0.0.1:9: no Dask scheduler"):
        Predict_masks.main(command)


def test_without_dask_there_is_a_clear_message(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    command = [*options, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(ValueError, match="pip install distributed"):
        Predict_masks.main(command)


TRAIN_AND_TELL = """
import hashlib, os, sys
import Train
models, build = [], Train.compile_unet
Train.compile_unet = lambda *options: models.append(build(*options)) or models[-1]
{before}
Train.main(sys.argv[1:])
weights = b"".join(weight.tobytes() for weight in models[0].get_weights())
print("digest", hashlib.sha256(weights).hexdigest())
"""
OPTIONS = "--epochs 1 --crops 16 --batch-size 4 --image-size 32 --depth 1 --base-filters 2".split()


def start_training(source, out, before="", more=(), **environment):
    """Starts a small training that ends with a line on its weights."""
    command = [sys.executable, "-c", TRAIN_AND_TELL.format(before=before)]
    command += ["--data", str(source), "--out", str(out), "--precision", "float32", *OPTIONS, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=source.parent, env=environment, **pipes)


def finish(process):
    """(the digest that it printed, all that it printed) of a training that went well."""
    try:
        answer, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return re.search("digest (.*)", answer)[1], answer


def test_two_processes_train_in_step_and_one_writes(source, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = "JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"
    outs, processes = [tmp_path / "first", tmp_path / "second"], []
    for number, out in enumerate(outs):
        values = address, "2", str(number)
        environment = {f"KERAS_DISTRIBUTION_{n}": v for n, v in zip(names, values, strict=True)}
        processes.append(start_training(source, out, KERAS_BACKEND="jax", **environment))
    (first, printed), (second, silence) = map(finish, processes)
    assert first == second
    assert "kept epoch" in printed and "kept epoch" not in silence
    written = {"unet.keras", "history.csv", "training.json", "accuracy.png", "loss.png"}
    assert {file.name for file in outs[0].iterdir()} == written and not outs[1].exists()


def test_several_gpus_train_copies_of_the_network_and_go_on(source, tmp_path):
    before = """
import tensorflow as tf
parts = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
seen = tf.config.list_logical_devices
tf.config.list_logical_devices = lambda kind=None: seen("CPU" if kind == "GPU" else kind)
"""
    out = tmp_path / "out"
    cut = start_training(source, out, before + "Train.save_curves = None")  # stops after the epoch
    assert "'NoneType' object is not callable" in cut.communicate()[1]
    _, printed = finish(start_training(source, out, before, ["--resume"]))
    assert "training on 2 GPUs" in printed and "kept epoch 1" in printed
    assert len(Train.read_history(out / "history.csv")) == 1
    gray = np.zeros((32, 32), np.float32)
    nucleus, _ = Predict_masks.predict_probability(Model.load_unet(out / "unet.keras"), gray)
    assert np.isfinite(nucleus).all()


def test_several_processes_need_jax(source, mistake, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert "KERAS_BACKEND=jax" in mistake("Train.py", "--data", source)


def test_each_of_several_processes_needs_one_device(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "initialize", lambda: None)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"] * 4)
    with pytest.raises(ValueError, match="2 processes see 4 devices.*CUDA_VISIBLE_DEVICES"):
        Train.join_processes()
