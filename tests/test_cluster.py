"""Training on several devices and in several processes; prediction by a Dask cluster."""

import concurrent.futures
import errno
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
import tifffile
from conftest import ROOT, draw_nuclei, draw_source, save_image
from distributed.core import Status

import data.outputs
import Model
import Predict_masks
import Train
from data import cluster
from data.files import UserError

IMAGES = 32


@pytest.fixture(scope="module")
def workers():
    """A cluster of two worker processes of one thread each; the first test kills one."""
    options = {"dashboard_address": None, "memory_limit": 0, "host": "127.0.0.1"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as workers:
        yield workers


@pytest.fixture
def command(tmp_path):
    """The command's --data and --weights: drawn images, a tiny network."""
    for number in range(IMAGES):
        save_image(tmp_path / "images" / f"{number:03}.png", draw_nuclei((64, 80), number)[0])
    keras.utils.set_random_seed(1)
    Model.Unet(2, 2).build().save(tmp_path / "unet.keras")
    return ["--data", str(tmp_path / "images"), "--weights", str(tmp_path / "unet.keras")]


def read_files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.glob("*/*")}


# Prediction.


def test_the_images_of_a_killed_worker_are_predicted_by_another(workers, command, tmp_path, capsys):
    here = tmp_path / "here"
    shared = tmp_path / "shared"
    assert Predict_masks.main([*command, "--out", str(here)]) == 0
    written = []  # labels when the worker was killed

    def kill_one():
        while len(list((shared / "labels").glob("0*.tif"))) < 4:
            time.sleep(0.02)
        worker = next(iter(workers.workers.values()))
        written.append(len(list((shared / "labels").glob("0*.tif"))))
        worker.status = Status.closing_gracefully  # nothing starts it again, which takes as long as all the rest
        os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    on_cluster = [*command, "--out", str(shared), "--scheduler", workers.scheduler_address]
    assert Predict_masks.main(on_cluster) == 0
    killer.join()
    assert written[0] < IMAGES  # it was killed in the middle
    expected = read_files(here)
    assert len(expected) == 5 * IMAGES
    assert read_files(shared) == expected  # nor is anything left of the killed worker

    (shared / "masks" / "007.png").unlink()
    before = {file: file.stat().st_mtime_ns for file in shared.glob("*/*.*")}
    capsys.readouterr()
    assert Predict_masks.main(on_cluster) == 0
    assert f"{IMAGES - 1} of {IMAGES} images are done" in capsys.readouterr().out
    assert read_files(shared) == expected
    untouched = [file for file, changed in before.items() if file.stat().st_mtime_ns == changed]
    assert len(untouched) == 5 * (IMAGES - 1)


def test_workers_do_not_keep_the_weights_of_an_earlier_run(workers, command, tmp_path):
    for file in sorted((tmp_path / "images").iterdir())[4:]:
        file.unlink()
    for seed in (1, 2):  # trained anew, saved under the same name
        keras.utils.set_random_seed(seed)
        Model.Unet(2, 2).build().save(tmp_path / "unet.keras")
        for folder, more in (("here", []), ("shared", ["--scheduler", workers.scheduler_address])):
            out = tmp_path / f"{folder}{seed}"
            assert Predict_masks.main([*command, "--out", str(out), *more]) == 0
        assert read_files(tmp_path / f"shared{seed}") == read_files(tmp_path / f"here{seed}")
    assert read_files(tmp_path / "here1") != read_files(tmp_path / "here2")


def test_workers_find_the_images_of_several_sources(workers, command, tmp_path, monkeypatch):
    files = sorted((tmp_path / "images").iterdir())
    for number, file in enumerate(files[:6]):
        folder = tmp_path / f"day{number % 2}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / f"{number // 2}.png")
    monkeypatch.chdir(tmp_path)
    weights = command[2:]
    data = ["--data", "day0/images", "day1/images/*.png"]
    assert Predict_masks.main([*data, *weights, "--out", "here"]) == 0
    assert Predict_masks.main([*data, *weights, "--out", "shared", "--scheduler", workers.scheduler_address]) == 0
    ids = {f"day{day}__{number}" for day in range(2) for number in range(3)}
    assert {file.stem for file in (tmp_path / "here/labels").iterdir()} == ids
    assert read_files(tmp_path / "shared") == read_files(tmp_path / "here")


def test_workers_see_stacks_as_the_options_say(workers, command, tmp_path):
    channels = np.random.default_rng(0).integers(0, 255, (2, 3, 2, 40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", channels, imagej=True, metadata={"axes": "TZCYX"})
    options = ["--data", str(tmp_path / "a.tif"), *command[2:], "--project", "max", "--channel", "2"]
    assert Predict_masks.main([*options, "--out", str(tmp_path / "here")]) == 0
    scheduler = ["--scheduler", workers.scheduler_address]
    assert Predict_masks.main([*options, "--out", str(tmp_path / "shared"), *scheduler]) == 0
    assert {file.stem for file in (tmp_path / "shared/labels").iterdir()} == {"a_t0", "a_t1"}
    assert read_files(tmp_path / "shared") == read_files(tmp_path / "here")
    known = data.outputs.read_provenance(tmp_path / "shared/labels/a_t0.tif")["options"]
    assert (known["channel"], known["background"], known["project"]) == ("2", None, "max")


def test_workers_that_cannot_work_are_one_line(workers, command, tmp_path):
    address = workers.scheduler_address

    def hide_keras():
        sys.modules["keras"] = None
        for name in ("Predict_masks", "Model"):
            sys.modules.pop(name, None)

    def show_keras():
        del sys.modules["keras"]

    with distributed.Client(workers, set_as_default=False) as client:
        client.run(hide_keras)
        with pytest.raises(UserError, match="(?s)worker.*keras.*requirements.txt") as caught:
            Predict_masks.main([*command, "--out", str(tmp_path / "out"), "--scheduler", address])
        client.run(show_keras)
    assert str(caught.value).startswith(f"{address}: ")
    assert str(tmp_path / "images") in str(caught.value)  # what every worker must see


class LastWorker:
    """What Dask says of a worker that was killed."""

    address = "tcp://10.0.0.2:1"


ADDRESS = "tcp://10.0.0.1:8786"
FAILURES = {
    "the packages are missing": ImportError("No module named 'keras'"),
    "the folder is not there": FileNotFoundError(errno.ENOENT, "No such file or directory", "data/mine"),
    "the weights are not there": UserError("weights/unet.keras: no such weights"),
    "the worker was killed": distributed.KilledWorker("work", LastWorker, 3),
    "the scheduler went away": concurrent.futures.CancelledError("work"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_worker_is_one_mistake_that_names_the_scheduler(failure):
    with pytest.raises(UserError, match=f"^{re.escape(ADDRESS)}: ") as caught:
        with cluster.named_worker_errors(ADDRESS, ["/data/mine", "/weights"]):
            raise FAILURES[failure]
    assert caught.value.__cause__ is FAILURES[failure]
    is_of_the_worker = failure in list(FAILURES)[:3]
    assert ("it needs requirements.txt installed and, as here, /data/mine, /weights" in str(caught.value)) == (
        is_of_the_worker
    )


def test_a_full_disk_of_a_worker_is_not_blamed_on_its_folders():
    full = OSError(errno.ENOSPC, "No space left on device", "out/labels/a.tif")
    with pytest.raises(UserError, match=f"^{re.escape(ADDRESS)}: .*No space left.*a.tif") as caught:
        with cluster.named_worker_errors(ADDRESS, ["/data/mine"]):
            raise full
    assert "requirements.txt" not in str(caught.value)


@pytest.mark.parametrize("fault", [ValueError("operands could not be broadcast"), MemoryError()])
def test_a_fault_of_the_program_on_a_worker_stays_what_it_is(fault):
    with pytest.raises(type(fault)) as caught:
        with cluster.named_worker_errors(ADDRESS, ["/data/mine"]):
            raise fault
    assert caught.value is fault


def test_a_scheduler_that_does_not_answer(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="tcp://127.0.0.1:9: no Dask scheduler"):
        Predict_masks.main([*command, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"])


def test_without_dask_there_is_a_clear_message(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match="pip install distributed"):
        Predict_masks.main([*command, "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"])


# Training.

TRAIN_AND_TELL = """
import hashlib, os, sys
import Model, Train
models, compile_unet = [], Model.compile_unet
Model.compile_unet = lambda *options: models.append(compile_unet(*options)) or models[-1]
{before}
Train.main(sys.argv[1:])
weights = b"".join(weight.tobytes() for weight in models[0].get_weights())
print("digest", hashlib.sha256(weights).hexdigest())
"""
OPTIONS = "--epochs 1 --crops 16 --batch-size 4 --crop-size 32 --depth 1 --base-filters 2 --precision float32".split()


def start_training(source, out, before="", more=(), **environment):
    """Starts a small training that ends with a line on its weights."""
    command = [sys.executable, "-c", TRAIN_AND_TELL.format(before=before)]
    command += ["--data", str(source), "--out", str(out), *OPTIONS, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=source.parent, env=environment, **pipes)


def finish(process):
    """The digest that a training printed, and all that it printed; it must have gone well."""
    try:
        answer, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return re.search("digest (.*)", answer)[1], answer


def test_two_processes_train_in_step_and_one_writes(tmp_path):
    source = tmp_path / "source"
    draw_source(source, 4, shapes=((32, 32),))  # of one shape, for JAX compiles the network for each
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    outs = [tmp_path / "first", tmp_path / "second"]
    processes = []
    for number, out in enumerate(outs):
        environment = {
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half of the time
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
        }
        processes.append(start_training(source, out, **environment))
    first, printed = finish(processes[0])
    second, silence = finish(processes[1])
    assert first == second
    assert "kept epoch" in printed
    assert "kept epoch" not in silence
    written = {"unet.keras", "history.csv", "training.json", "accuracy.png", "loss.png", "examples.png"}
    assert {file.name for file in outs[0].iterdir()} == written
    assert not outs[1].exists()


@pytest.mark.slow
def test_several_gpus_train_copies_of_the_network_and_resume(source, tmp_path):
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
    assert "training on 2 GPUs" in printed
    assert "kept epoch 1" in printed
    assert len(Train.read_history(out / "history.csv")) == 1
    gray = np.zeros((32, 32), np.float32)
    nucleus, _ = Predict_masks.predict_probability(Model.load_unet(out / "unet.keras"), gray)
    assert np.isfinite(nucleus).all()


def test_several_processes_need_jax(source, mistake, monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert "KERAS_BACKEND=jax" in mistake("Train.py", "--data", source)


def test_each_of_several_processes_needs_one_device(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "initialize", lambda: None)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"] * 4)
    with pytest.raises(UserError, match="2 processes see 4 devices.*CUDA_VISIBLE_DEVICES"):
        Train.join_processes()
