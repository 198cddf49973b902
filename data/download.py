"""Fetches the 2018 Data Science Bowl's nuclei and those of stained breast tissue, two public collections.

In:   nothing but a network; neither collection asks for a login.
Out:  stage1_train.zip     670 images with one mask per nucleus
      stage1_test.zip      65 images
      stage1_solution.csv  the nuclei of stage1_test, as run lengths
      TNBC_NucleiSegmentation.zip  50 images of 11 patients, and the masks of all nuclei of each
      tnbc.zip             the same in the layout of stage1_train.zip, made from it
      in data/, the folder of this script, or the one given with --out.

    python data/download.py
    python data/download.py stage1_train.zip
    python data/download.py TNBC_NucleiSegmentation.zip
    python data/download.py --out /some/large/disk

The first three are the Broad's collection BBBC038, CC0. The tissue is Zenodo's record 3552674, CC BY 4.0: Naylor et
al., "Segmentation of Nuclei in Histopathology Images by deep regression of the distance map", 2018.

A file takes its final name only once it is whole and checked. A run that is killed may leave its
temporary file or folder, tmp and eight random characters, in the same folder; it can be deleted.
"""

import argparse
import io
import logging
import os
import re
import sys
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import requests
from PIL import Image
from scipy.ndimage import label
from tqdm import tqdm

BASE_URL = "https://data.broadinstitute.org/bbbc/BBBC038/"
BY_HAND = "https://bbbc.broadinstitute.org/BBBC038 or kaggle.com/c/data-science-bowl-2018/data"
TISSUE = "TNBC_NucleiSegmentation.zip"
TISSUE_URL = "https://zenodo.org/records/3552674/files/"
TISSUE_BY_HAND = "https://zenodo.org/record/3552674"
CONVERTED_TISSUE = "tnbc.zip"
TISSUE_IMAGE = re.compile(r"(?:.*/)?Slide_(\d+)/(\1_\d+)\.png")  # its mask is GT_01/01_1.png
DATA_FOLDER = Path(__file__).resolve().parent

SHA256 = {  # None means that no checksum is known.
    "stage1_train.zip": "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
    "stage1_test.zip": None,
    "stage1_solution.csv": None,
    TISSUE: None,  # its MD5 is on Zenodo and not known here
}
FIRST_BYTES = {".zip": b"PK\x03\x04", ".csv": b"ImageId,EncodedPixels,Height,Width,Usage"}
TIMEOUT = (10, 60)  # seconds to connect, seconds without a single byte


class DownloadError(Exception):
    """Says what the user can mend; `main` prints it as one line."""


def fetch(name: str, out: Path = DATA_FOLDER, base_url: str | None = None) -> None:
    """Brings one file of the collections into a folder, unless it is there already.

    Args:
        name: A key of `SHA256`.
        out: The folder to write to. It is made if it is missing.
        base_url: The address of the folder that holds the file; None is its public place.

    Raises:
        DownloadError: The file did not come or is not the right one, or the folder cannot be
            written. The message says which, and what to do.
    """
    target = out.resolve() / name  # From a relative path pooch would expand a "~".
    public_url, by_hand = (TISSUE_URL, TISSUE_BY_HAND) if name == TISSUE else (BASE_URL, BY_HAND)
    source = f"{(base_url or public_url).rstrip('/')}/{name}"
    again = "run the same command again"
    advice = f"{again}, or download it by hand from {by_hand} and put it at {target}"
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


def convert_tissue(out: Path = DATA_FOLDER) -> None:
    """Makes CONVERTED_TISSUE from TISSUE in the same folder, unless it is there already.

    Raises:
        DownloadError: TISSUE is another archive, or the folder cannot be written.
    """
    source = out.resolve() / TISSUE
    target = source.with_name(CONVERTED_TISSUE)
    is_there = os.path.exists(target)
    try:
        if not is_there:
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                whole = Path(folder, target.name)
                write_kaggle_layout(source, whole)
                os.replace(whole, target)
    except ValueError as error:
        raise DownloadError(f"{source}: {error}; delete it and run the same command again") from error
    except OSError as error:
        advice = "make room or choose another folder with --out, and run the same command again"
        raise DownloadError(f"{target}: {root_cause(error)}; {advice}") from error
    print(f"{'kept' if is_there else 'saved'} {target}, {target.stat().st_size / 1e6:.1f} MB")


def write_kaggle_layout(source: Path, target: Path) -> None:
    """Writes Slide_01/01_1.png and GT_01/01_1.png as 01_1/images/01_1.png and 01_1/masks/0001.png and so on.

    A nucleus is a connected piece of the mask GT_01/01_1.png; pixels that touch by a corner are connected.

    Raises:
        ValueError: `source` holds no such images, or an image without its mask.
    """
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as converted:
        names = set(archive.namelist())
        images = [name for name in sorted(names) if TISSUE_IMAGE.fullmatch(name) and "__MACOSX" not in name]
        if not images:
            raise ValueError("expected Slide_01/01_1.png and more in it, but there is none")
        for image in tqdm(images, CONVERTED_TISSUE, unit="image", leave=False, disable=None):
            mask = image.replace("Slide_", "GT_")
            if mask not in names:
                raise ValueError(f"expected {mask} in it, the mask of {image}")
            stem = TISSUE_IMAGE.fullmatch(image)[2]
            # ZipInfo has a fixed date, so that the same images give the same archive.
            converted.writestr(zipfile.ZipInfo(f"{stem}/images/{stem}.png"), archive.read(image))
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(mask))).convert("L"))
            nuclei, count = label(pixels, np.ones((3, 3)))
            for number in range(1, count + 1):
                entry = zipfile.ZipInfo(f"{stem}/masks/{number:04}.png")
                with converted.open(entry, "w") as file:
                    Image.fromarray(np.where(nuclei == number, 255, 0).astype(np.uint8)).save(file, "png")


def retrieve(name: str, target: Path, url: str) -> None:
    """Lets pooch download to a temporary name, compare the SHA-256 and move the file."""
    logger = pooch.get_logger()
    log_level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        downloader = partial(transfer, name=name)
        pooch.retrieve(url, SHA256[name], name, target.parent, downloader=downloader)
    finally:
        logger.setLevel(log_level)


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
    expected = FIRST_BYTES[Path(name).suffix]
    with path.open("rb") as file:
        begins = file.read(len(expected))
    if begins != expected:
        page = " of a web page" if begins.lstrip().startswith(b"<") else ""
        raise ValueError(f"expected {expected!r} as first bytes, but got {begins!r}{page}")
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
    what.add_argument("names", nargs="*", metavar="NAME", help="files (default: all four)")
    where = parser.add_argument_group("from where to where")
    where.add_argument("--out", type=Path, default=DATA_FOLDER, help="folder to write to (default: %(default)s)")
    urls = f"{BASE_URL} and {TISSUE_URL}"
    where.add_argument("--base-url", help=f"address of a folder with the files (default: {urls})")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Fetches what the command line asks for; returns the exit code."""
    args = parse_args(argv)
    try:
        for name in args.names:
            if name not in SHA256:
                raise DownloadError(f"{name}: no such file; choose among {', '.join(SHA256)}")
        for name in args.names or SHA256:
            if name != TISSUE or not (args.out / CONVERTED_TISSUE).exists():
                fetch(name, out=args.out, base_url=args.base_url)
            if name == TISSUE:
                convert_tissue(args.out)
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
