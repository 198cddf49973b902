"""Finds files of the project, describes files, writes them whole, and says which mistakes are the user's."""

import csv
import errno
import hashlib
import importlib
import logging
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NoReturn

from PIL import UnidentifiedImageError

CHECKSUM_BYTES = 2**24  # so many are read at once
FIGURE_FORMATS = ("png", "svg", "pdf", "jpg")
UNFINISHED = ".unfinished-"  # begins the name of a file that is being written
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, file too large

File = Path | zipfile.Path


class UserError(ValueError):
    """A mistake that the user can correct; `run_script` shows its text as one line."""


@contextmanager
def decoding(file: File, expected: str = "image") -> Iterator[None]:
    """Turns what a library raises while it decodes a file into a `UserError` with the file's name.

    Only calls of such libraries stand inside, so that faults of this program stay visible.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text is an address in memory
        raise UserError(f"{file}: not an image in a known format; replace or remove it") from error
    except Exception as error:  # the decoders raise a dozen types for a damaged file
        if isinstance(error, OSError) and error.errno:  # the operating system raised it, not Pillow
            raise OSError(error.errno, error.strerror, str(file)) from error
        if isinstance(error, KeyError) and not file.exists():  # an archive that was replaced
            raise UserError(f"{file}: no longer in the archive; run the command again") from error
        reason = (str(error) or type(error).__name__).split("\n")[0]
        advice = "replace or remove it"
        raise UserError(f"{file}: not a readable {expected} ({reason}); {advice}") from error


@contextmanager
def open_file(file: File) -> Iterator[BinaryIO]:
    """Opens a file for reading; what is wrong with its archive names the file."""
    with decoding(file):
        stream = file.open("rb")
    with stream:
        yield stream


def import_optional(module: str, package: str, option: str) -> ModuleType:
    """Imports a module that is not among the requirements.

    Raises:
        UserError: it is not installed; `option` needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{option} needs {package}; pip install {package}") from error


def find_beside_scripts(path: str) -> str:
    """A file of the project: the one in the working directory, else the one beside the scripts."""
    beside = Path(__file__).resolve().parents[1] / path
    return str(beside) if beside.exists() and not Path(path).exists() else path


def describe_file(file: File) -> dict[str, int]:
    """The `size` in bytes and the `crc32` of a file's bytes, by which a replaced image is recognised."""
    if isinstance(file, zipfile.Path):
        entry = file.root.getinfo(file.at)
        return {"size": entry.file_size, "crc32": entry.CRC}
    size = 0
    crc32 = 0
    with open(file, "rb") as stream:
        while content := stream.read(CHECKSUM_BYTES):
            size += len(content)
            crc32 = zlib.crc32(content, crc32)
    return {"size": size, "crc32": crc32}


def hash_file(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write_whole(file: str | Path) -> Iterator[Path]:
    """Yields a path to write to, and renames it to `file` at the end: never half a file.

    The path keeps the ending of `file`, from which most libraries take the format. A folder may be made there as well;
    it takes the place of an older file or folder.

    Raises:
        OSError: with the name of `file`; where the disk is full, how far the writing came.
    """
    file = Path(file)
    temporary = file.with_name(f"{UNFINISHED}{os.getpid()}-{file.name}")
    old = file.with_name(f"{UNFINISHED}{os.getpid()}-old-{file.name}")
    try:
        yield temporary
        if temporary.is_dir() and file.exists():  # no folder can be renamed to one that is there
            os.replace(file, old)
        os.replace(temporary, file)
    except OSError as error:
        if error.filename and UNFINISHED not in str(error.filename):  # it is of another file
            raise
        raise OSError(error.errno, _explain_write_error(error, temporary), str(file)) from error
    finally:
        remove(temporary)
        remove(old)


def write_csv(file: str | Path, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """Writes rows, which are dicts by the names of the columns, as a .csv; what a row lacks is an empty cell."""
    with write_whole(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(columns))
        table.writeheader()
        table.writerows(rows)


def read_csv(file: str | Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a .csv as `write_csv` takes them; every cell is a text."""
    with open(file, newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that it holds, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # after Ctrl-C threads of a library may still write into it
    else:
        path.unlink(missing_ok=True)


def _explain_write_error(error: OSError, temporary: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL_ERRORS:
        written = sum(file.stat().st_size for file in (temporary, *temporary.rglob("*")) if file.is_file())
        free = shutil.disk_usage(temporary.parent).free
        reason = f"{os.strerror(error.errno)} after {written:,} bytes, {free:,} are free"
    return f"{reason}; choose another folder or make room there"


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Ends the process with main's exit code.

    A UserError, or an OSError that names a file, is one line on stderr and exit code 2. Ctrl-C is 130. Any other
    exception is a fault of the program and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal or file cannot show
    tiff_log = logging.getLogger("tifffile")
    log_level = tiff_log.level
    tiff_log.setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by our own error
    try:
        sys.exit(main())
    except UserError as error:
        _print_error(str(error))
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        sys.exit(1)
    except OSError as error:
        if not error.filename:
            raise
        _print_error(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt as stop:
        advice = f"; {stop}" if str(stop) else ""
        print(f"stopped by Ctrl-C{advice}", file=sys.stderr)
        sys.exit(130)
    finally:
        tiff_log.setLevel(log_level)


def figure_format(file: str | Path) -> str:
    """The format of a figure by the ending of its name, png without one.

    Raises:
        UserError: matplotlib cannot write this format.
    """
    ending = Path(file).suffix[1:].lower() or "png"
    if ending not in FIGURE_FORMATS:
        raise UserError(f"{file}: expected a name that ends in .{', .'.join(FIGURE_FORMATS)}")
    return ending


def _print_error(reason: str) -> NoReturn:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(2)
