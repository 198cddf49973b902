"""Fetches the 2018 Data Science Bowl's nuclei from the Broad's public collection BBBC038.

In:   nothing but a network; the collection is CC0 and asks for no login.
Out:  stage1_train.zip     670 images with one mask per nucleus
      stage1_test.zip      65 images
      stage1_solution.csv  the nuclei of stage1_test, as run lengths
      in data/, the folder of this script, or the one given with --out.

    python data/download.py
    python data/download.py stage1_train.zip
    python data/download.py --out /some/large/disk

A transfer that broke off waits in NAME.part (NAME.info says of which version), and the next run
goes on from its last byte. A file takes its final name only once it is whole and checked.

`requests`, which comes with tensorflow, does the transfer: redirects, certificates, proxies,
timeouts. pooch, scikit-image's own fetcher, would begin a broken transfer from its first byte.
"""

import argparse
import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

BASE_URL = "https://data.broadinstitute.org/bbbc/BBBC038/"
BY_HAND = "https://bbbc.broadinstitute.org/BBBC038 or kaggle.com/c/data-science-bowl-2018/data"
DATA_FOLDER = Path(__file__).resolve().parent
SHA256 = {  # None: no checksum is known, `check_file` then looks at what it can
    "stage1_train.zip": "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
    "stage1_test.zip": None,
    "stage1_solution.csv": None,
}
FIRST_BYTES = {".zip": b"PK\x03\x04", ".csv": b"ImageId,EncodedPixels,Height,Width,Usage"}
TIMEOUT = (10, 60)  # seconds to connect, seconds without a single byte
CHUNK = 2**16  # bytes; also the most that a broken connection can lose


def fetch(name: str, out: Path = DATA_FOLDER, base_url: str = BASE_URL) -> None:
    """Brings one file of the collection into a folder, unless it is there already.

    Args:
        name: a key of `SHA256`.
        out: folder to write to, made if missing.
        base_url: address of the folder that holds the file.

    Raises:
        ConnectionError: the file did not come, or not all of it; what came is kept.
        ValueError: what came, or what was there already, is not the right file.
        OSError: no room on the disk, or no right to write there.
    """
    if name not in SHA256:
        raise ValueError(f"expected a name among {', '.join(SHA256)}, but got {name}")
    target, part = out / name, out / f"{name}.part"
    url = f"{base_url.rstrip('/')}/{name}"
    by_hand = f"or download {name} by hand from {BY_HAND} and put it at {target}"
    out.mkdir(parents=True, exist_ok=True)
    if target.exists():
        try:
            print(f"{target} is already there, SHA-256 {check_file(target, name)}")
        except ValueError as error:  # it may be somebody's only copy, so it is not overwritten
            raise ValueError(f"{error}; delete {target} and run the same command again") from error
        return
    try:
        transfer(url, part)
        digest = check_file(part, name)
    except (requests.RequestException, ConnectionError) as error:
        go_on = f" to go on from byte {bytes_kept(part)}" if bytes_kept(part) else ""
        raise ConnectionError(
            f"expected {name} from {url}, but the transfer failed: {root_cause(error)}; "
            f"run the same command again{go_on}, {by_hand}"
        ) from error
    except ValueError as error:
        part.unlink(missing_ok=True)  # going on from wrong bytes could never mend them
        raise ValueError(f"{error}; run the same command again to start over, {by_hand}") from error
    os.replace(part, target)
    part.with_suffix(".info").unlink(missing_ok=True)
    print(f"saved {target.stat().st_size / 1e6:.1f} MB to {target}, SHA-256 {digest}")


def transfer(url: str, part: Path) -> None:
    """Writes what `part` still lacks of the file at `url`, after what it already holds."""
    if kept := bytes_kept(part):
        announced, *_ = part.with_suffix(".info").read_text(encoding="utf-8").split(" ")
        if announced == str(kept):  # it was whole, but not yet checked
            return
    response, start = ask_for_the_rest(url, part)
    with response, part.open("ab" if start else "wb") as file:
        # Written once `part` is empty, so that no new record stands beside old bytes.
        part.with_suffix(".info").write_text(version(response), encoding="utf-8")
        announced = version(response).split(" ")[0]
        size = int(announced) if announced.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if size is not None and size - start > free:
            raise OSError(f"{part.name} needs {size - start} bytes more and {free} are free")
        # disable=None: no bar where stderr is not a terminal
        look = {"desc": part.stem, "unit": "B", "unit_scale": True, "disable": None}
        with tqdm(total=size, initial=start, **look) as bar:
            for chunk in response.iter_content(CHUNK):
                if size is not None and file.tell() + len(chunk) > size:
                    raise ValueError(f"expected {size} bytes from {url}, but more came")
                file.write(chunk)
                bar.update(len(chunk))
        if size is not None and file.tell() < size:
            raise ConnectionError(f"only {file.tell()} of {size} bytes came")


def ask_for_the_rest(url: str, part: Path) -> tuple[requests.Response, int]:
    """Asks for the bytes that `part` lacks; returns the answer and the byte it starts at."""
    start = bytes_kept(part)
    begun = part.with_suffix(".info").read_text(encoding="utf-8") if start else None
    response = ask(url, start)
    goes_on = (
        response.status_code == 206
        and version(response) == begun
        and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    )
    if not goes_on:
        if start and response.status_code in (206, 416):  # not the file that `part` began
            response.close()
            response = ask(url, 0)
        start = 0  # the whole file comes, even where only the rest was asked for
        if response.status_code != 200:
            response.close()
            raise ConnectionError(f"the server answered {response.status_code} {response.reason}")
    if "html" in response.headers.get("Content-Type", ""):  # a login page, a hotel's portal
        response.close()
        raise ConnectionError(f"a web page came from {response.url}")
    return response, start


def ask(url: str, start: int) -> requests.Response:
    """Requests the file from byte `start` on, not gzipped on its way."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)


def version(response: requests.Response) -> str:
    """What tells the server's file from another: "SIZE TAG", both empty where it does not say."""
    headers = response.headers  # Content-Length: 1000 or, from byte 9 on, bytes 9-999/1000
    size = headers.get("Content-Range", headers.get("Content-Length", "")).split("/")[-1]
    return f"{size} {headers.get('ETag', headers.get('Last-Modified', ''))}"


def bytes_kept(part: Path) -> int:
    """How many bytes an earlier run left to go on from."""
    return part.stat().st_size if part.exists() and part.with_suffix(".info").exists() else 0


def check_file(path: Path, name: str) -> str:
    """Checks that a file is what `name` should be; returns its SHA-256 in hexadecimal.

    Raises:
        ValueError: it begins otherwise than a zip or the csv does, its checksum is not the known
            one, or, where none is known, a file inside the zip fails its own checksum (CRC).
    """
    first = FIRST_BYTES[Path(name).suffix]
    with path.open("rb") as file:
        begins = file.read(len(first))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if begins != first:
        raise ValueError(f"expected {name} to begin with {first!r}, but it begins with {begins!r}")
    if SHA256[name] not in (None, digest):
        raise ValueError(f"expected {name} with SHA-256 {SHA256[name]}, but got {digest}")
    if SHA256[name] is None and name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            broken = root_cause(error)
        if broken:
            raise ValueError(f"expected {name} to be a whole zip, but it is broken: {broken}")
    return digest


def root_cause(error: BaseException) -> str:
    """The error at the bottom: "Connection refused" says more than "Max retries exceeded"."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all three")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help="default: %(default)s")
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Fetches what the command line asks for; returns the exit code."""
    args = parse_args(argv)
    try:
        for name in args.names or SHA256:
            fetch(name, out=args.out, base_url=args.base_url)
    except KeyboardInterrupt:
        message = "stopped; run the same command again to go on"
    except (ConnectionError, ValueError) as error:
        message = str(error)
    except OSError as error:
        message = (
            f"expected to write in {args.out}, but {error}; make room there or choose another "
            "folder with --out, then run the same command again"
        )
    else:
        print("next, from the repository's root: python Main.py")
        return 0
    print(f"download.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
