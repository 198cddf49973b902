"""Keeps the promises of data/download.py against a small server on this machine; no network.

pytest tests/test_download.py
"""

import gzip
import hashlib
import importlib.util
import io
import random
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "download.py"
TRAIN, TEST, SOLUTION = "stage1_train.zip", "stage1_test.zip", "stage1_solution.csv"
CSV = b"ImageId,EncodedPixels,Height,Width,Usage\nab12,1 3 9 2,256,256,Public\n"
CUT = 150_000  # bytes sent before the connection breaks, about half of a zip below
ANOTHER = random.Random(2).randbytes(1000)


def make_zip(seed: int) -> bytes:
    """A zip of about 300 kB, several chunks of the transfer; stored, so its middle is the image."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("ab12/images/ab12.png", random.Random(seed).randbytes(300_000))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` with the faults that a test has switched on."""

    def do_GET(self):
        server, name = self.server, self.path.rsplit("/")[-1]
        asked = self.headers.get("Range")
        server.requests.append((name, asked))
        if server.stall.is_set():
            server.stop.wait(5)
        if server.redirect and name != "login":
            return self.answer(302, Location="/login")
        if name == "login":
            return self.answer(200, b"<html>log in</html>", **{"Content-Type": "text/html"})
        if server.status:
            return self.answer(server.status, b"sorry")
        body, status, headers = server.files[name], 200, {}
        if server.etag:
            headers["ETag"] = server.etag
        if asked and not server.ignore_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.answer(416, **{"Content-Range": f"bytes */{len(body)}"})
            first = start + server.wrong_start
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        if "gzip" in self.headers["Accept-Encoding"]:  # then no byte count would fit the file
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        if server.announce:
            headers["Content-Length"] = str(len(body))
        if server.change_body:  # in chunks, which need not add up to the length announced above
            body = server.change_body(body)
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        self.answer(status, body[: server.cut], **headers)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Keeps the server's log out of what the tests read from stderr."""


@pytest.fixture
def server(monkeypatch):
    """A server whose faults are attributes, all switched off."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {TRAIN: make_zip(0), TEST: make_zip(1), SOLUTION: CSV}
    server.requests = []  # (name, Range header or None)
    server.etag, server.announce, server.change_body, server.wrong_start = '"v1"', True, None, 0
    server.cut = server.status = server.redirect = server.ignore_range = None
    server.stall, server.stop = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def download(server, monkeypatch):
    """The script as a module; `data/` is no package. It expects the server's training zip."""
    spec = importlib.util.spec_from_file_location("download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = hashlib.sha256(server.files[TRAIN]).hexdigest()
    monkeypatch.setitem(module.SHA256, TRAIN, known)
    return module


@pytest.fixture
def run(download, server, tmp_path, capsys):
    """Runs the script's `main`; returns exit code, stdout and the lines of stderr."""

    def run(*names, out=tmp_path, url=server.url):
        code = download.main([*names, "--out", str(out), "--base-url", url])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err.splitlines())

    return run


def refused(result, *words):
    """Whether a run ended as a user's error does: exit code 2, one line, with these words."""
    one_line = result.code == 2 and len(result.err) == 1
    return one_line and all(word in result.err[0] for word in words)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetches_the_three_files_and_says_what_comes_next(run, server, tmp_path):
    result = run()
    assert result.code == 0 and result.err == []
    assert names_in(tmp_path) == sorted(server.files)
    for name, body in server.files.items():
        assert (tmp_path / name).read_bytes() == body
        saved = f"to {tmp_path / name}, SHA-256 {hashlib.sha256(body).hexdigest()}"
        assert saved in result.out
    assert result.out.splitlines()[-1].endswith("python Main.py")


def test_fetches_only_what_is_named(run, server, tmp_path):
    assert run(SOLUTION).code == 0
    assert names_in(tmp_path) == [SOLUTION]
    assert server.requests == [(SOLUTION, None)]


def test_cut_transfer_goes_on_from_its_last_byte(run, server, tmp_path):
    server.cut = CUT
    result = run(TRAIN)
    part = tmp_path / f"{TRAIN}.part"
    kept = part.stat().st_size
    assert 0 < kept <= CUT
    assert refused(result, f"go on from byte {kept}")
    assert part.read_bytes() == server.files[TRAIN][:kept]
    assert not (tmp_path / TRAIN).exists()

    server.cut = None
    assert run(TRAIN).code == 0
    assert server.requests == [(TRAIN, None), (TRAIN, f"bytes={kept}-")]
    assert (tmp_path / TRAIN).read_bytes() == server.files[TRAIN]
    assert names_in(tmp_path) == [TRAIN]


def test_what_was_whole_but_not_yet_checked_is_not_fetched_again(run, server, tmp_path):
    server.cut = CUT
    run(TRAIN)
    server.cut = None
    (tmp_path / f"{TRAIN}.part").write_bytes(server.files[TRAIN])  # then it was killed
    assert run(TRAIN).code == 0
    assert len(server.requests) == 1
    assert (tmp_path / TRAIN).read_bytes() == server.files[TRAIN] and names_in(tmp_path) == [TRAIN]


def test_transfer_cut_twice_goes_on_twice(run, server, tmp_path):
    sizes = []
    server.cut = 100_000
    for _ in range(2):
        assert run(TEST).code == 2
        sizes.append((tmp_path / f"{TEST}.part").stat().st_size)
    server.cut = None
    assert run(TEST).code == 0
    assert 0 < sizes[0] < sizes[1]
    assert [asked for _, asked in server.requests] == [None, *(f"bytes={n}-" for n in sizes)]
    assert (tmp_path / TEST).read_bytes() == server.files[TEST]


def test_server_that_ignores_range_sends_it_all_again(run, server, tmp_path):
    server.cut = CUT
    run(TRAIN)
    server.cut, server.ignore_range = None, True
    assert run(TRAIN).code == 0
    assert server.requests[1][1] is not None
    assert (tmp_path / TRAIN).read_bytes() == server.files[TRAIN]


@pytest.mark.parametrize("change", ["etag", "size", "shorter than what is kept", "no record"])
def test_stale_part_starts_over(run, server, tmp_path, change):
    server.cut = CUT
    run(TEST)
    server.cut = None
    if change == "etag":
        server.etag, server.files[TEST] = '"v2"', make_zip(3)
    elif change == "size":
        server.files[TEST] = repack(make_zip(3))
    elif change == "no record":
        (tmp_path / f"{TEST}.info").unlink()
        server.files[TEST] = make_zip(3)
    else:  # answered with 416
        server.files[TEST] = repack(ANOTHER)
    assert run(TEST).code == 0
    assert server.requests[-1] == (TEST, None)
    assert (tmp_path / TEST).read_bytes() == server.files[TEST]
    assert names_in(tmp_path) == [TEST]


def repack(content: bytes) -> bytes:
    """A zip with one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("content", content)
    return buffer.getvalue()


def test_size_that_is_not_announced(run, server, tmp_path):
    server.announce = False
    assert run(TEST).code == 0
    assert (tmp_path / TEST).read_bytes() == server.files[TEST]


def damage(body: bytes) -> bytes:
    """The same bytes but one, in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (TRAIN, damage, "SHA-256"),
        (TEST, damage, "whole zip"),
        (TEST, lambda body: body[:-30], "whole zip"),
        (TEST, lambda body: b"<html>sorry</html>", "begins with b'<htm'"),
        (SOLUTION, lambda body: body[1:], "begins with b'mageId"),
        (SOLUTION, lambda body: b"", "begins with b''"),
    ],
)
def test_wrong_bytes_leave_nothing(run, server, tmp_path, name, spoil, words):
    right, server.files[name] = server.files[name], spoil(server.files[name])
    assert refused(run(name), words, "by hand", str(tmp_path / name))
    assert not (tmp_path / name).exists()
    assert not (tmp_path / f"{name}.part").exists()

    server.files[name] = right
    assert run(name).code == 0
    assert server.requests[-1] == (name, None)
    assert names_in(tmp_path) == [name]


def test_more_bytes_than_announced_are_refused(run, server, tmp_path):
    server.change_body = lambda body: body + b"!"
    size = len(server.files[TRAIN])
    assert refused(run(TRAIN), f"expected {size} bytes", "more came")
    assert not (tmp_path / TRAIN).exists()
    assert not (tmp_path / f"{TRAIN}.part").exists()


def test_fewer_bytes_than_announced_wait_for_the_rest(run, server, tmp_path):
    server.change_body = lambda body: body[:-1]
    size = len(server.files[TRAIN])
    assert refused(run(TRAIN), f"only {size - 1} of {size} bytes", f"from byte {size - 1}")
    assert names_in(tmp_path) == [f"{TRAIN}.info", f"{TRAIN}.part"]


def test_web_page_is_refused(run, server, tmp_path):
    server.redirect = True
    assert refused(run(SOLUTION), "a web page came", f"{server.url}login", "by hand")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("fault", "value"), [("redirect", True), ("status", 503)])
def test_passing_trouble_keeps_what_came(run, server, tmp_path, fault, value):
    server.cut = CUT
    run(TRAIN)
    kept = (tmp_path / f"{TRAIN}.part").read_bytes()
    server.cut = None
    setattr(server, fault, value)
    assert refused(run(TRAIN), f"go on from byte {len(kept)}")
    assert (tmp_path / f"{TRAIN}.part").read_bytes() == kept


def test_server_that_answers_another_range_starts_over(run, server, tmp_path):
    server.cut = CUT
    run(TRAIN)
    server.cut, server.wrong_start = None, 7
    assert run(TRAIN).code == 0
    assert server.requests[-1] == (TRAIN, None)
    assert (tmp_path / TRAIN).read_bytes() == server.files[TRAIN]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_error_status(run, server, tmp_path, status):
    server.status = status
    assert refused(run(TEST), f"answered {status}", f"{server.url}{TEST}", str(tmp_path / TEST))
    assert names_in(tmp_path) == []


def test_server_that_says_nothing(run, server, download, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (0.2, 0.2))
    server.stall.set()
    assert refused(run(TEST), "timed out", "same command again")


@pytest.mark.parametrize("url", ["no-scheme/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/"])
def test_address_that_is_none(run, url):
    assert refused(run(TEST, url=url), url)


def test_right_file_is_not_fetched_again(run, server, tmp_path):
    for name, body in server.files.items():
        (tmp_path / name).write_bytes(body)
    result = run()
    assert result.code == 0
    assert result.out.count("already there") == 3
    assert server.requests == []


@pytest.mark.parametrize("name", [TRAIN, TEST, SOLUTION])
def test_wrong_file_is_reported_and_not_overwritten(run, server, tmp_path, name):
    (tmp_path / name).write_bytes(b"my notes")
    assert refused(run(name), str(tmp_path / name), "delete")
    assert (tmp_path / name).read_bytes() == b"my notes"
    assert server.requests == []


def test_full_disk_is_told_before_the_transfer(run, server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert refused(run(TRAIN), f"{len(server.files[TRAIN])} bytes", "1000 are free", "--out")
    assert not (tmp_path / TRAIN).exists()


def test_folder_that_cannot_be_written(run, server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert refused(run(TRAIN, out=tmp_path / "file"), str(tmp_path / "file"), "--out")
    assert server.requests == []


def test_interrupt_is_no_traceback(run, download, monkeypatch):
    def interrupted(url, part):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "transfer", interrupted)
    assert refused(run(TRAIN), "stopped", "same command again")


def command_line(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_help_names_the_files():
    result = command_line("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in (TRAIN, TEST, SOLUTION))


def test_unknown_name_is_refused_with_the_known_ones():
    result = command_line("stage3.zip")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert all(name in result.stderr for name in ("stage3.zip", TRAIN, TEST, SOLUTION))


def test_unknown_option_is_refused():
    result = command_line("--no-such-option")
    assert result.returncode == 2
    assert "--no-such-option" in result.stderr and "Traceback" not in result.stderr


def test_refused_connection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound but not listening: nobody answers at this port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        result = command_line(TEST, "--out", str(tmp_path), "--base-url", url)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "refused" in result.stderr and f"{url}{TEST}" in result.stderr
    assert names_in(tmp_path) == []
