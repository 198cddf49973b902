"""Finds the images of a source, writes files whole, and ends a script at a user's mistake.

In:  a folder of images, one image file, or the layout of the 2018 Data Science Bowl
     (ID/images/ID.png, ID/masks/*.png) as a folder or as a .zip, which is read in place.
Out: a list of `Sample`: ids with their files. No pixel is read here.
"""

import errno
import hashlib
import logging
import os
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

IMAGE_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
MAX_ENTRY_BYTES = 2**31  # of one file in an archive
FIGURE_FORMATS = ("png", "svg", "pdf", "jpg")
UNFINISHED = ".unfinished-"  # begins the name of a file that is being written
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, file too large

File = Path | zipfile.Path
Parts = tuple[str, ...]  # the folders of a file below the source, and its name


class UserError(ValueError):
    """A mistake that the user can correct; `run_script` shows its text as one line."""


@dataclass(frozen=True)
class Sample:
    """One image of a source, with one mask file per nucleus where the source has masks."""

    id: str
    image: File
    masks: tuple[File, ...] = ()


def find_samples(source: str | Path) -> list[Sample]:
    """Finds the images of a source without reading them.

    Args:
        source: Kaggle folder, Kaggle .zip, folder of images, or one image file.

    Returns:
        At least one sample, sorted by id.

    Raises:
        UserError: nothing is there, no image is in it, two images share one id, or the archive is not safe to read.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; python data/download.py fetches the public data")
    if path.is_file() and path.suffix.lower() in IMAGE_ENDINGS:
        return [Sample(path.stem, path)]
    files = _list_zip(path) if path.is_file() else _list_folder(path)
    samples = _group_files(files, path)
    if not samples:
        endings = ", ".join(IMAGE_ENDINGS)
        raise UserError(f"{path}: no images in it, nor in ID/images/ within it ({endings})")
    return samples


def _list_folder(folder: Path) -> list[tuple[Parts, File]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).parts, path) for path in files]


def _list_zip(path: Path) -> list[tuple[Parts, File]]:
    try:
        archive = zipfile.ZipFile(path)
        entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
        # Making the index of names is slow; it is made once, in root.root, and every entry uses it.
        root = zipfile.Path(archive)
    except MemoryError:
        raise
    except Exception:  # zipfile raises several kinds for a damaged archive
        expected = f"a folder, a .zip or an image ({', '.join(IMAGE_ENDINGS)})"
        raise UserError(f"{path}: expected {expected}; this is neither, or it is damaged") from None
    files = {}
    for entry in entries:
        if entry.is_dir():
            continue
        fault = _find_fault(entry, files)
        if fault:
            raise UserError(f"{path}: its entry {entry.filename!r} {fault}; make a new archive without it")
        files[entry.filename] = zipfile.Path(root.root, entry.filename)
    return [(tuple(name.split("/")), file) for name, file in files.items()]


def _find_fault(entry: zipfile.ZipInfo, earlier: Container[str]) -> str:
    """Says why an entry of an archive may not be read; an empty text where it may."""
    name = entry.filename
    if name.startswith("/") or ".." in name.split("/"):
        return "points outside of it"
    if ":" in name or "\\" in name:  # a drive of Windows, or folders in its spelling
        return "points outside of it, or has a colon or a backslash in its name"
    if name in earlier:
        return "is there twice"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MAX_ENTRY_BYTES:
        return "is too large"
    return ""


def _group_files(files: list[tuple[Parts, File]], source: Path) -> list[Sample]:
    """Makes samples of the image files below a source, in Kaggle's layout or side by side."""
    files = [(parts, file) for parts, file in files if _is_visible_image(parts)]
    folders = {parts[:-1] for parts, _ in files}
    if folders == {("images",), ("masks",)}:  # the folder of one id was named
        files = [((source.stem, *parts), file) for parts, file in files]
    images = [(parts[-3], file) for parts, file in files if _is_in(parts, "images")]
    masks = {}
    if images:
        for parts, file in files:
            if _is_in(parts, "masks"):
                masks.setdefault(parts[-3], []).append(file)
    else:
        # The images lie in one folder, or those directly in the source count.
        if len(folders) > 1:
            files = [(parts, file) for parts, file in files if len(parts) == 1]
        images = [(Path(parts[-1]).stem, file) for parts, file in files]
    _check_ids([name for name, _ in images], source)
    return [Sample(name, file, tuple(masks.get(name, ()))) for name, file in sorted(images)]


def _is_visible_image(parts: Parts) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return parts[-1].lower().endswith(IMAGE_ENDINGS) and not hidden


def _is_in(parts: Parts, folder: str) -> bool:
    """Whether a file lies in ID/images/ or ID/masks/."""
    return len(parts) >= 3 and parts[-2] == folder


def _check_ids(ids: list[str], source: Path) -> None:
    seen = set()
    for name in ids:
        if name.lower() in seen:  # on many disks a.png and A.png are one file
            raise UserError(f"{source}: two images have the id {name}; rename or move one")
        seen.add(name.lower())


def modification_time(file: File) -> float:
    """Seconds since 1970 when the file, or the .zip that holds it, was last changed."""
    path = file.root.filename if isinstance(file, zipfile.Path) else file
    return Path(path).stat().st_mtime


def hash_file(file: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write_whole(file: str | Path) -> Iterator[Path]:
    """Yields a path to write to, and renames it to `file` at the end: never half a file.

    The path keeps the ending of `file`, from which most libraries take the format.

    Raises:
        OSError: with the name of `file`; where the disk is full, how far the writing came.
    """
    file = Path(file)
    part = file.with_name(f"{UNFINISHED}{os.getpid()}-{file.name}")
    try:
        yield part
        os.replace(part, file)
    except OSError as error:
        if error.filename and UNFINISHED not in str(error.filename):  # it is of another file
            raise
        raise OSError(error.errno, _explain_write_error(error, part), str(file)) from error
    finally:
        part.unlink(missing_ok=True)


def _explain_write_error(error: OSError, part: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL_ERRORS:
        written = part.stat().st_size if part.exists() else 0
        free = shutil.disk_usage(part.parent).free
        reason = f"{os.strerror(error.errno)} after {written:,} bytes, {free:,} are free"
    return f"{reason}; choose another folder or make room there"


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Ends the process with main's exit code.

    A UserError, or an OSError that names a file, is one line on stderr and exit code 2. Ctrl-C is 130. Any other
    exception is a fault of the program and keeps its traceback.
    """
    tiff_log = logging.getLogger("tifffile")
    level = tiff_log.level
    tiff_log.setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by our own error
    try:
        sys.exit(main())
    except UserError as error:
        _print_error(str(error))
    except OSError as error:
        if not error.filename:
            raise
        _print_error(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt as stop:
        advice = f"; {stop}" if str(stop) else ""
        print(f"stopped by Ctrl-C{advice}", file=sys.stderr)
        sys.exit(130)
    finally:
        tiff_log.setLevel(level)


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
