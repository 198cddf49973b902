"""Lists the files of a folder, or of a .zip, which is read in place; an archive that is not safe to read is refused.

In:  the path of a folder or an archive.
Out: pairs of the parts of a file's path below it, and the file.
"""

import os
import stat
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import NoReturn

from data.files import File, UserError
from data.layouts import LEFT_LINKS, PLAIN_ENDINGS, LeftOut, PathParts

SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini")
MAX_ENTRY_BYTES = 2**31  # size of the largest file that is read from an archive


def list_folder(folder: Path, left_out: LeftOut) -> list[tuple[PathParts, File]]:
    """All files below a folder, sorted; adds broken links to `left_out`."""
    files = []
    visited = set()

    def stop(error: OSError) -> NoReturn:
        """Lets a folder that cannot be read end the search, instead of being left out in silence."""
        raise error

    for root, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        if os.path.realpath(root) in visited:  # a link to a folder above it has no end
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in names:
            path = Path(root, name)
            if path.is_file():
                files.append((path.relative_to(folder).parts, path))
            elif path.is_symlink():
                left_out[LEFT_LINKS].append(path)
    return sorted(files)


def list_zip(path: Path) -> list[tuple[PathParts, File]]:
    """All files in an archive, sorted.

    Raises:
        UserError: it is no archive, is damaged, or is not safe to read.
    """
    try:
        archive = zipfile.ZipFile(path)
        entries = sorted(archive.infolist(), key=lambda entry: entry.filename)
        # Making the index of names is slow; it is made once, in root.root, and every entry uses it.
        root = zipfile.Path(archive)
    except MemoryError:
        raise
    except Exception:  # zipfile raises several types for a damaged archive
        expected = f"a folder, a .zip or an image ({', '.join(PLAIN_ENDINGS)})"
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


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is of the system, and nothing of the user's."""
    return name.startswith(".") or name in SYSTEM_FILES
