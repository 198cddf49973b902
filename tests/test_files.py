"""Checksums of files, files written whole, and how a script ends."""

import errno
import hashlib
import logging
import re
import resource
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, encode_png, only, write_archive

from data import files
from data.files import UNFINISHED, UserError, describe_file, hash_file, run_script, write_whole

GRAY = np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8)
IMAGE = encode_png(GRAY)
MASK = encode_png(np.eye(13, 17, dtype=np.uint8))
KAGGLE = [("a/images/a.png", IMAGE), ("a/masks/1.png", MASK)]


# Checksums.


def test_a_file_and_an_entry_of_an_archive_are_described_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHECKSUM_BYTES", 50)
    image = tmp_path / "a.png"
    image.write_bytes(IMAGE)
    expected = {"size": len(IMAGE), "crc32": zlib.crc32(IMAGE)}
    assert describe_file(image) == expected
    assert describe_file(only(write_archive(tmp_path / "b.zip", KAGGLE)).image) == expected


def test_the_hash_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a.bin").write_bytes(content)
    assert hash_file(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


# Files written whole.


def test_a_file_appears_when_it_is_written(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with write_whole(file) as part:
        assert part.parent == tmp_path and part.suffix == ".csv" and part.name.startswith(UNFINISHED)
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for text in ("old", "new"):
        with write_whole(tmp_path / "a.zarr") as part:
            part.mkdir()
            (part / text).touch()
    with pytest.raises(KeyboardInterrupt), write_whole(tmp_path / "a.zarr") as part:
        part.mkdir()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a.zarr", "a.zarr/new"]


@pytest.mark.parametrize("fault", [AttributeError, MemoryError, KeyboardInterrupt])
def test_a_fault_on_the_way_leaves_what_was_there(tmp_path, fault):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with pytest.raises(fault), write_whole(file) as part:
        part.write_text("half")
        raise fault
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_named_with_what_was_written(tmp_path):
    file = tmp_path / "large.bin"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk
    try:
        with pytest.raises(OSError) as error, write_whole(file) as part:
            part.write_bytes(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(file))
    assert re.match(r"File too large after 4,096 bytes, [\d,]+ are free; ", error.value.strerror)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path):
    file = tmp_path / "nowhere" / "a.bin"
    with pytest.raises(FileNotFoundError, match="No such file or directory; ") as error:
        with write_whole(file) as part:
            part.write_bytes(b"")
    assert error.value.filename == str(file)


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error, write_whole(tmp_path / "a.bin"):
        (tmp_path / "other.bin").read_bytes()
    assert error.value.filename == str(tmp_path / "other.bin")
    assert error.value.strerror == "No such file or directory"


# How a script ends.


def raising(error):
    """A main that raises this."""

    def main():
        raise error

    return main


@pytest.mark.parametrize("code", [None, 0, 1])
def test_the_exit_code_is_that_of_main(capsys, code):
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: code)
    assert stop.value.code == code
    assert capsys.readouterr().err == ""


MISTAKES = {
    "error: a.png: it is\n broken": UserError("a.png: it is\n\n broken"),
    "error: a.png: No such file": FileNotFoundError(errno.ENOENT, "No such file", "a.png"),
    "error: out: Permission denied": PermissionError(errno.EACCES, "Permission denied", "out"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_of_the_user_is_one_line(capsys, line):
    with pytest.raises(SystemExit) as stop:
        run_script(raising(MISTAKES[line]))
    assert stop.value.code == 2
    assert capsys.readouterr().err == line.replace("\n", "") + "\n"


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("operands could not be broadcast"),
        AttributeError("no attribute"),
        KeyError("missing"),
        MemoryError(),
        OSError("no name of a file"),
    ],
    ids=repr,
)
def test_a_fault_of_the_program_keeps_its_traceback(capsys, fault):
    with pytest.raises(type(fault)) as raised:
        run_script(raising(fault))
    assert raised.value is fault
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_fault():
    code = "from data.files import run_script; run_script(lambda: [print('line' * 99) for _ in range(9999)] and 0)"
    script = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    script.stdout.readline()
    script.stdout.close()
    assert script.wait(timeout=60) == 1
    assert script.stderr.read() == b""
    script.stderr.close()


def test_ctrl_c_ends_with_130(capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(raising(KeyboardInterrupt("go on with --resume")))
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; go on with --resume\n"


@pytest.mark.parametrize(
    "error",
    [None, UserError("a"), FileNotFoundError(2, "b", "c"), OSError("d"), AttributeError("e"), KeyboardInterrupt()],
    ids=repr,
)
def test_the_log_level_of_tifffile_is_restored(error):
    log = logging.getLogger("tifffile")
    before = log.level
    levels = []

    def main():
        levels.append(log.level)
        if error:
            raise error

    log.setLevel(logging.ERROR)
    try:
        with pytest.raises((SystemExit, OSError, AttributeError)):
            run_script(main)
        assert (levels, log.level) == ([logging.CRITICAL], logging.ERROR)
    finally:
        log.setLevel(before)


def test_a_name_that_the_terminal_cannot_show_is_no_fault():
    code = "from data.files import run_script; run_script(lambda: print('\u56f3'))"
    environment = {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, r"\u56f3")
