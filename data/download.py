"""Fetches the 2018 Data Science Bowl's nuclei from the Broad's public collection BBBC038.

In:   nothing but a network; the collection is CC0 and asks for no login.
Out:  stage1_train.zip     670 images with one mask per nucleus
      stage1_test.zip      65 images
      stage1_solution.csv  the nuclei of stage1_test, as run lengths
      in data/, the folder of this script, or the one given with --out.

    python data/download.py
    python data/download.py stage1_train.zip
    python data/download.py --out /some/large/disk

A file takes its final name only once it is whole and checked. A run that is killed may leave its
temporary file, tmp and eight random characters, in the same folder; it can be deleted.
"""

import argparse
import logging
import os
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

BASE_URL = "https://data.broadinstitute.org/bbbc/BBBC038/"
BY_HAND = "https://bbbc.broadinstitute.org/BBBC038 or kaggle.com/c/data-science-bowl-2018/data"
DATA_FOLDER = Path(__file__).resolve().parent

SHA256 = {  # None means that no checksum is known.
    "stage1_train.zip": "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
    "stage1_test.zip": None,
    "stage1_solution.csv": None,
}
FIRST_BYTES = {".zip": b"PK\x03\x04", ".csv": b"ImageId,EncodedPixels,Height,Width,Usage"}
TIMEOUT = (10, 60)  # seconds to connect, seconds without a single byte


class DownloadError(Exception):
    """Says what the user can mend; `main` prints it as one line."""


def fetch(name: str, out: Path = DATA_FOLDER, base_url: str = BASE_URL) -> None:
    """Brings one file of the collection into a folder, unless it is there already.

    Args:
        name: A key of `SHA256`.
        out: The folder to write to. It is made if it is missing.
        base_url: The address of the folder that holds the file.

    Raises:
        DownloadError: The file did not come or is not the right one, or the folder cannot be
            written. The message says which, and what to do.
    """
    target = out.resolve() / name  # From a relative path pooch would expand a "~".
    source = f"{base_url.rstrip('/')}/{name}"
    again = "run the same command again"
    advice = f"{again}, or download it by hand from {BY_HAND} and put it at {target}"
    is_there = os.path.exists(target)
    if is_there:  # It may be somebody's only copy, so it is not overwritten.
        source = target
        advice = f"delete it and {again}"
    try:
        if is_there:
            check_content(target, name)
        else:
            retrieve(name, target, source)
        digest = pooch.file_hash(target)
        if SHA256[name] not in (None, digest):
            raise ValueError(f"expected SHA-256 {SHA256[name]}, but got {digest}")
    except (requests.RequestException, ValueError) as error:  # The first is an OSError as well.
        raise DownloadError(f"{source}: {root_cause(error)}; {advice}") from error
    except OSError as error:
        advice = f"make room or choose another folder with --out, and {again}"
        raise DownloadError(f"{target}: {root_cause(error)}; {advice}") from error
    status = "kept" if is_there else "saved"
    note = "" if SHA256[name] else " (no checksum is known for this file)"
    print(f"{status} {target}, {target.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}{note}")


def retrieve(name: str, target: Path, url: str) -> None:
    """Lets pooch download to a temporary name, compare the SHA-256 and move the file."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        downloader = partial(transfer, name=name)
        pooch.retrieve(url, SHA256[name], name, target.parent, downloader=downloader)
    finally:
        logger.setLevel(level)


def transfer(url: str, temporary: str, _pooch: None, name: str) -> None:
    """Writes the file at `url` to pooch's temporary file and checks its content."""
    # pooch makes a file for its owner alone. A new one gets the rights that the user's umask sets.
    os.remove(temporary)
    # pooch sets the total to the announced size. disable=None: no bar outside a terminal.
    with tqdm(total=1, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT)(url, temporary, None)
    check_content(Path(temporary), name)


def check_content(path: Path, name: str) -> None:
    """Raises ValueError if a file begins wrongly or, where no hash is known, its zip is broken."""
    first = FIRST_BYTES[Path(name).suffix]
    with path.open("rb") as file:
        begins = file.read(len(first))
    if begins != first:
        page = " of a web page" if begins.lstrip().startswith(b"<") else ""
        raise ValueError(f"expected {first!r} as first bytes, but got {begins!r}{page}")
    if SHA256[name] is None and name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            broken = root_cause(error)
        if broken:
            raise ValueError(f"expected a whole zip, but it is broken: {broken}")


def root_cause(error: BaseException) -> str:
    """The error at the bottom: "Connection refused" says more than "Max retries exceeded"."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).rstrip(".") or type(error).__name__


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to fetch")
    what.add_argument("names", nargs="*", metavar="NAME", help="files (default: all three)")
    where = parser.add_argument_group("from where to where")
    where.add_argument("--out", type=Path, default=DATA_FOLDER, help="folder to write to (default: %(default)s)")
    where.add_argument("--base-url", default=BASE_URL, help="address of the files (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Fetches what the command line asks for; returns the exit code."""
    args = parse_args(argv)
    try:
        for name in args.names:
            if name not in SHA256:
                raise DownloadError(f"{name}: no such file; choose among {', '.join(SHA256)}")
        for name in args.names or SHA256:
            fetch(name, out=args.out, base_url=args.base_url)
    except KeyboardInterrupt:
        print("error: stopped; run the same command again to start over", file=sys.stderr)
        return 130
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("next, from the repository's root: python Main.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
