"""Tests data/download.py against a small server on this machine, without the network.

pytest tests/test_download.py
"""

import hashlib
import importlib.util
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from conftest import draw_nuclei
from PIL import Image

from data.sources import find_samples
from data.truth import read_sample

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "download.py"
TRAIN = "stage1_train.zip"  # Its hash is known, those of the others are not.
TEST = "stage1_test.zip"
SOLUTION = "stage1_solution.csv"
TISSUE = "TNBC_NucleiSegmentation.zip"
CONVERTED = "tnbc.zip"


def make_zip(seed):
    """A zip of about 300 kB without compression, so that its middle is the image."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        image = zipfile.ZipInfo("ab12/images/ab12.png")  # with a fixed date
        archive.writestr(image, random.Random(seed).randbytes(300_000))
    return buffer.getvalue()


def damage(body):
    """The same bytes but one, in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def encode_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def draw_tissue(count=3):
    """{id: (image, labels)} of stained nuclei, two of which touch by a corner and are one."""
    tissue = {}
    for seed in range(count):
        image, labels = draw_nuclei((40, 44), seed, stained=True)
        labels[:2, :2] = 5
        labels[2:4, 2:4] = 5
        tissue[f"{seed // 2 + 1:02}_{seed % 2 + 1}"] = image, labels
    return tissue


def make_tissue_zip(tissue, without=()):
    """The archive as Zenodo has it, with what a Mac adds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (image, labels) in tissue.items():
            patient = name.split("_")[0]
            mask = np.where(labels > 0, 255, 0).astype(np.uint8)
            for folder, pixels in ((f"Slide_{patient}", image), (f"GT_{patient}", mask)):
                file = f"TNBC_NucleiSegmentation/{folder}/{name}.png"
                if folder not in without:
                    archive.writestr(zipfile.ZipInfo(file), encode_png(pixels))
                archive.writestr(
                    zipfile.ZipInfo(f"__MACOSX/TNBC_NucleiSegmentation/{folder}/._{name}.png"), b"Mac OS X"
                )
                archive.writestr(zipfile.ZipInfo(f"__MACOSX/TNBC_NucleiSegmentation/{folder}/{name}.png"), b"Mac OS X")
    return buffer.getvalue()


TISSUE_IMAGES = draw_tissue()
FILES = {
    TRAIN: make_zip(0),
    TEST: make_zip(1),
    SOLUTION: b"ImageId,EncodedPixels,Height,Width,Usage\nab12,1 3 9 2,256,256,Public\n",
    TISSUE: make_tissue_zip(TISSUE_IMAGES),
}
TRAIN_HASH = hashlib.sha256(FILES[TRAIN]).hexdigest()
HTML = b"\n<!DOCTYPE html><title>Welcome to our hotel</title>" + 50 * b" "
WRONG = {  # what it is: name, bytes, words of the message
    "another train": (TRAIN, make_zip(1), TRAIN_HASH),
    "damaged train": (TRAIN, damage(FILES[TRAIN]), TRAIN_HASH),
    "train is a page": (TRAIN, HTML, "web page"),
    "damaged test": (TEST, damage(FILES[TEST]), "it is broken"),
    "cut test": (TEST, FILES[TEST][:-30], "it is broken"),
    "test is a page": (TEST, HTML, "web page"),
    "solution is a page": (SOLUTION, HTML, "web page"),
    "empty solution": (SOLUTION, b"", "first bytes"),
    "damaged tissue": (TISSUE, damage(FILES[TISSUE]), "it is broken"),
}
each_wrong_file = pytest.mark.parametrize(
    ("name", "body", "words"), [pytest.param(*wrong, id=what) for what, wrong in WRONG.items()]
)


class Handler(BaseHTTPRequestHandler):
    """Announces a file of `server.files` in full and sends the first `server.sent` bytes of it."""

    def do_GET(self):
        name = self.path.removeprefix("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[name])))
        self.end_headers()
        self.wfile.write(self.server.files[name][: self.server.sent])
        self.server.has_sent.set()
        self.server.may_end.wait(60)

    def log_message(self, *args):
        """Keeps the server's log out of what the tests read from stderr."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}/"
    server.files = dict(FILES)
    server.requests = []
    server.sent = None  # None means all bytes.
    server.has_sent = threading.Event()
    server.may_end = threading.Event()
    server.may_end.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.may_end.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def download(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    download = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(download)
    monkeypatch.setitem(download.SHA256, TRAIN, TRAIN_HASH)
    return download


@pytest.fixture
def run(server, download, tmp_path, capsys):
    """Runs the script's `main`; returns exit code, stdout and stderr."""

    def run(*names, out=tmp_path, url=server.url):
        code = download.main([*names, "--out", str(out), "--base-url", url])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def start(server, tmp_path):
    """Starts the script as its own process, with that server and an empty folder."""

    def start(*arguments, **options):
        command = [sys.executable, SCRIPT, "--out", tmp_path, "--base-url", server.url, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes, **options)

    return start


def assert_refused(result, *words):
    """A failed run ends with exit code 2 and prints nothing but one line with these words."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert [word for word in words if str(word) not in err] == []


def test_fetches_the_four_files(run, tmp_path):
    level = pooch.get_logger().level
    folder = tmp_path / "new" / "folder"
    code, out, err = run(out=folder)
    assert (code, err) == (0, "")  # Outside a terminal there is no bar.
    assert pooch.get_logger().level == level
    *lines, converted, last = out.splitlines()
    assert converted.startswith(f"saved {folder / CONVERTED},")
    assert last == "next, from the repository's root: python Main.py"
    for line, (name, body) in zip(lines, FILES.items(), strict=True):
        assert (folder / name).read_bytes() == body
        assert f"saved {folder / name}," in line and hashlib.sha256(body).hexdigest() in line
        assert ("no checksum is known" in line) == (name != TRAIN)
    assert sorted(os.listdir(folder)) == sorted([*FILES, CONVERTED])
    (tmp_path / "plain").touch()
    for name in (TRAIN, CONVERTED):
        assert (folder / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_right_file_is_kept_and_not_fetched_again(run, server, tmp_path):
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    code, out, err = run()
    assert (code, err, server.requests) == (0, "", [])
    assert out.count("kept ") == 4


# The tissue.


def test_the_tissue_becomes_an_archive_in_the_layout_of_the_others(run, server, tmp_path):
    code, _, err = run(TISSUE)
    assert (code, err, server.requests) == (0, "", [TISSUE])
    samples = find_samples(tmp_path / CONVERTED)
    assert [sample.id for sample in samples] == sorted(TISSUE_IMAGES)
    for sample in samples:
        expected_image, expected_labels = TISSUE_IMAGES[sample.id]
        image, labels = read_sample(sample)
        np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_array_equal(labels > 0, expected_labels > 0)
        assert labels.max() == len(sample.masks) == 5
        pairs = np.unique(np.stack([labels, expected_labels]).reshape(2, -1), axis=1)
        assert pairs.shape[1] == 6  # each piece is one nucleus, and the background


def test_the_same_tissue_gives_the_same_archive(run, tmp_path):
    archives = []
    for _ in range(2):
        assert run(TISSUE)[0] == 0
        archives.append((tmp_path / CONVERTED).read_bytes())
        (tmp_path / CONVERTED).unlink()
    assert archives[0] == archives[1]


def test_tissue_that_is_converted_is_neither_fetched_nor_converted_again(run, server, tmp_path):
    (tmp_path / CONVERTED).write_bytes(b"converted before")
    code, out, err = run(TISSUE)
    assert (code, err, server.requests) == (0, "", [])
    assert out.startswith(f"kept {tmp_path / CONVERTED},")
    assert (tmp_path / CONVERTED).read_bytes() == b"converted before"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (FILES[TEST], "expected Slide_01/01_1.png"),
        (make_tissue_zip(TISSUE_IMAGES, without=["GT_02"]), "expected TNBC_NucleiSegmentation/GT_02/02_1.png"),
    ],
    ids=["another archive", "a mask is missing"],
)
def test_an_archive_that_is_not_the_tissue_is_named_and_nothing_is_converted(run, tmp_path, body, words):
    (tmp_path / TISSUE).write_bytes(body)
    code, out, err = run(TISSUE)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err and str(tmp_path / TISSUE) in err and "delete it" in err
    assert os.listdir(tmp_path) == [TISSUE]


def test_a_disk_that_is_full_during_the_conversion_leaves_nothing_converted(start, tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / TISSUE).write_bytes(FILES[TISSUE])
    process = start(TISSUE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert str(tmp_path / CONVERTED) in err and "make room" in err
    assert os.listdir(tmp_path) == [TISSUE]


def test_each_file_has_its_public_place(download, monkeypatch, tmp_path):
    urls = []

    def note(name, target, url):
        urls.append(url)
        target.write_bytes(FILES[name])

    monkeypatch.setattr(download, "retrieve", note)
    assert download.main(["--out", str(tmp_path)]) == 0
    assert urls[0] == "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip"
    assert urls[-1] == "https://zenodo.org/records/3552674/files/TNBC_NucleiSegmentation.zip"


# What goes wrong.


@each_wrong_file
def test_wrong_file_is_named_and_left_alone(run, server, tmp_path, name, body, words):
    (tmp_path / name).write_bytes(body)
    assert_refused(run(name), words, tmp_path / name, "delete it")
    assert (tmp_path / name).read_bytes() == body
    assert server.requests == []


@each_wrong_file
def test_wrong_bytes_leave_nothing(run, server, tmp_path, name, body, words):
    server.files[name] = body
    assert_refused(run(name), words, server.url + name, "again", "by hand", tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", FILES)
def test_transfer_that_is_cut_off_leaves_nothing(run, server, tmp_path, name):
    server.sent = len(FILES[name]) - 1
    assert_refused(run(name), name, "1 more expected", "run the same command again", "by hand")
    assert os.listdir(tmp_path) == []


def test_file_that_the_server_lacks(run, server, tmp_path):
    del server.files[TEST]
    assert_refused(run(TEST), server.url + TEST, "404", "by hand")
    assert os.listdir(tmp_path) == []


def test_server_that_cannot_be_reached(run, tmp_path):
    with socket.socket() as bound:  # It does not listen, so it refuses.
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        assert_refused(run(TEST, url=url), url + TEST, "refused", "run the same command again")
    for url in ("no-scheme/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/"):
        assert_refused(run(TEST, url=url), url + TEST, "by hand")
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_written(run, server, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(run(TEST, out=tmp_path / "file"), tmp_path / "file" / TEST, "--out")
    assert server.requests == []


def test_full_disk_leaves_nothing(start, tmp_path):
    resource = pytest.importorskip("resource")
    process = start(TEST, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    out, err = process.communicate(timeout=60)
    assert_refused((process.returncode, out, err), tmp_path / TEST, "make room")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("sent_signal", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_run_leaves_no_file_of_that_name(start, server, tmp_path, sent_signal, code):
    server.sent = len(FILES[TEST]) - 1
    server.may_end.clear()
    # A shell that runs the tests in the background lets them, and what they start, ignore Ctrl-C.
    process = start(TEST, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert server.has_sent.wait(60)
    process.send_signal(sent_signal)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert not (tmp_path / TEST).exists()
    if code == 130:
        assert err.startswith("error: stopped") and err.count("\n") == 1
        assert os.listdir(tmp_path) == []


def test_unknown_name_is_refused_before_any_transfer(run, server):
    assert_refused(run(TRAIN, "stage3.zip"), "stage3.zip", TRAIN, TEST, SOLUTION)
    assert server.requests == []


def test_help_shows_a_command_and_every_default(start):
    out, err = start("--help").communicate(timeout=60)
    assert "python data/download.py stage1_train.zip" in out and err == ""
    assert out.count("default:") == 3
