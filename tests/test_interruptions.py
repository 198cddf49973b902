"""Kills, full disks, locked folders, vanished files: what is there is whole, the rest is said."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import keras
import matplotlib.figure  # noqa: F401  as the scripts do when they draw
import numpy as np
import pytest
from conftest import ROOT, draw_source

import Evaluate_model
import Model
import Predict_masks
import Preprocessed_data
import Train
from data import scales
from data.files import UNFINISHED, run_script
from data.sources import find_samples
from data.truth import load_samples

NOBODY = 65534
IMAGES = 60
LIMIT = 20_000  # bytes of a file, in a process whose disk is to be full


@pytest.fixture(scope="module")
def prepared():
    """A folder that every user may enter, with images and the weights of a tiny network."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    draw_source(folder / "source", IMAGES, shapes=((64, 64), (70, 60)))
    (folder / "images").mkdir()
    for sample in find_samples(folder / "source"):
        shutil.copy(sample.image, folder / "images")
    keras.utils.set_random_seed(1)
    Model.Unet(2, 2).build().save(folder / "unet.keras")
    yield folder
    shutil.rmtree(folder)


def predict_command(prepared, out):
    """Arguments of Predict_masks.py."""
    options = {"--data": prepared / "images", "--weights": prepared / "unet.keras", "--out": out}
    return [str(word) for pair in options.items() for word in pair]


def read_files(folder):
    """Name -> bytes of every file."""
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def start(script, *arguments, **options):
    """A script in a process of its own."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes, **options)


@pytest.fixture
def mistake_of(capsys):
    """mistake_of(work): the one line with which a script's work ends, with exit code 2, in this process."""

    def mistake_of(work):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_script(work)
        answer = capsys.readouterr().err
        lines = [line for line in answer.splitlines() if line.startswith("error: ") or "Traceback" in line]
        assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), answer
        return lines[0]

    return mistake_of


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_while_predicting(prepared, tmp_path, kills):
    undisturbed = tmp_path / "undisturbed"
    out = tmp_path / "out"
    assert Predict_masks.main(predict_command(prepared, undisturbed)) == 0
    expected = read_files(undisturbed)
    rng = np.random.default_rng(0)
    done = 0
    for wanted in np.linspace(0.7 * IMAGES, 1, kills).astype(int):
        process = start("Predict_masks.py", *predict_command(prepared, out))
        while process.poll() is None and len(list(out.glob("labels/[!.]*"))) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was not at its end
        whole = {n: x for n, x in read_files(out).items() if UNFINISHED not in str(n)}
        assert whole.items() <= expected.items()  # each is complete, or not there
        assert len(whole) >= done  # and stays there
        done = len(whole)
    assert 0 < done < len(expected)
    before = {file: file.stat().st_mtime_ns for file in out.glob("labels/[!.]*")}
    assert Predict_masks.main(predict_command(prepared, out)) == 0
    assert read_files(out) == expected
    assert before == {file: file.stat().st_mtime_ns for file in before}  # not done again


@pytest.mark.slow
def test_killed_while_evaluating(prepared, tmp_path):
    predicted = tmp_path / "predicted"
    out = tmp_path / "out"
    Predict_masks.main(predict_command(prepared, predicted))
    command = ["--truth", prepared / "source", "--predicted", predicted, "--out", out]
    assert start("Evaluate_model.py", *command).wait() == 0
    expected = read_files(out)
    rng = np.random.default_rng(0)
    for _ in range(10):
        shutil.rmtree(out)
        process = start("Evaluate_model.py", *command)
        while process.poll() is None and not out.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        found = {n: x for n, x in read_files(out).items() if UNFINISHED not in str(n)}
        assert found.items() <= expected.items()


@contextlib.contextmanager
def full_disk():
    """No file may grow further, as where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("keep_precision")
@pytest.mark.parametrize("script", [Predict_masks, Train, Model, Preprocessed_data], ids=lambda script: script.__name__)
def test_no_room_is_one_line_and_leaves_what_was_there(prepared, source, tmp_path, mistake_of, script):
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    before = {Path(name): b"of an earlier run" for name in ("unet.keras", "overlays/image_00.png", "it.png")}
    for name, content in before.items():
        (out / name).write_bytes(content)
    small = ["--epochs", 1, "--crops", 8, "--crop-size", 64, "--depth", 2, "--base-filters", 8]
    options = {
        Predict_masks: ["--data", ROOT / "data/sample", "--weights", prepared / "unet.keras", "--out", out],
        Train: ["--data", source, "--out", out, *small],
        Model: ["--out", out / "it.png"],
        Preprocessed_data: ["--data", source, "--out", out / "it.png"],
    }
    with full_disk():
        line = mistake_of(lambda: script.main([str(word) for word in options[script]]))
    assert str(out) in line and "File too large after" in line
    after = read_files(out)
    assert all(after[name] == content for name, content in before.items())
    assert not any(UNFINISHED in str(name) for name in after)
    if script is Train:
        assert after == before  # nor a history of an epoch without weights


def test_a_full_disk_is_named_with_what_is_free(prepared, tmp_path, mistake_of):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here; the test above limits the file size")
    try:
        line = mistake_of(lambda: Predict_masks.main(predict_command(prepared, disk / "out")))
        assert str(disk) in line and "No space left on device" in line
        found = read_files(disk)
        assert found and not any(UNFINISHED in str(name) for name in found)
        Predict_masks.main(predict_command(prepared, tmp_path / "out"))
        assert found.items() <= {"out" / n: x for n, x in read_files(tmp_path / "out").items()}.items()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def as_nobody():
    """The test runs without the rights of root, who may write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


@pytest.mark.usefixtures("keep_precision")
def test_a_folder_that_may_not_be_written(prepared, mistake_of, request):
    out = prepared / "locked"
    Predict_masks.main(predict_command(prepared, out))
    (out / "masks/image_07.png").unlink()
    before = read_files(out)
    labels = np.eye(2, dtype=int)
    rows = [{"id": "a", "kind": "fluorescence", **Evaluate_model.score_image(labels, labels > 0, labels)}]
    Evaluate_model.save_scores(rows, prepared / "scores")  # which can be saved, where one may write
    folders = [out, *(folder for folder in out.iterdir() if folder.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    request.getfixturevalue("as_nobody")
    for work in (
        lambda: Predict_masks.main(predict_command(prepared, out)),
        lambda: Predict_masks.main(predict_command(prepared, out / "new")),
        lambda: Train.main(["--data", str(prepared / "source"), "--out", str(out / "new")]),
        lambda: Evaluate_model.save_scores(rows, out),
    ):
        line = mistake_of(work)
        assert str(out) in line and "Permission denied" in line
    assert read_files(out) == before


def test_an_image_that_vanishes_on_the_way_is_named(prepared, tmp_path, capsys):
    shutil.copytree(prepared / "images", tmp_path / "images")
    gone = tmp_path / f"images/image_{IMAGES - 21}.png"
    out = tmp_path / "out"

    def remove():
        while not list(out.glob("labels/*.tif")):
            time.sleep(0.001)
        gone.unlink()

    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    command = ["--data", str(tmp_path / "images"), "--weights", str(prepared / "unet.keras")]
    assert Predict_masks.main([*command, "--out", str(out)]) == 1
    remover.join()
    error = capsys.readouterr().err
    assert gone.name in error and "Traceback" not in error
    assert len(list(out.glob("labels/*.tif"))) == IMAGES - 1


def test_a_mask_that_vanishes_before_training_is_named(source):
    samples = find_samples(source)
    samples[7].masks[0].unlink()
    with pytest.raises(FileNotFoundError, match=samples[7].masks[0].name):
        load_samples(samples)


def test_predictions_are_the_same_whatever_the_batches_and_threads(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name in ("bright_1", "crowded_2", "dim_2"):  # three shapes, one of wide nuclei
        name = f"fluorescence_{name}"
        shutil.copy(ROOT / "data/sample" / name / "images" / f"{name}.png", tmp_path / "images")
    options = ["--data", str(tmp_path / "images"), "--weights", str(ROOT / Predict_masks.WEIGHTS)]
    Predict_masks.main([*options, "--out", str(tmp_path / "usual")])
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "3", "OMP_NUM_THREADS": "3"}
    process = start("Predict_masks.py", *options, "--out", tmp_path / "three threads", env=environment)
    monkeypatch.setattr(scales, "BATCH_PIXELS", 1)
    monkeypatch.setattr(Predict_masks, "READ_AHEAD", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    Predict_masks.main([*options, "--out", str(tmp_path / "one by one")])
    process.communicate()
    usual = read_files(tmp_path / "usual")
    assert len(usual) == 18  # five of each image, two tables and source.json
    assert read_files(tmp_path / "one by one") == read_files(tmp_path / "three threads") == usual
