"""Turns files into grayscale images and labels, and splits them for training and validation.

In:  a Kaggle folder (ID/images/ID.png, ID/masks/*.png), the same as a .zip, a plain folder of
     images, or one image file.
Out: gray (H, W) float32 in [0, 1] and labels (H, W) int32 with one number per nucleus.
Run alone it reads everything once, prints a table by kind of image, and saves a contact sheet.

    python Preprocessed_data.py
    python Preprocessed_data.py --data data/stage1_train.zip --out contact_sheet.png
"""

import argparse
import csv
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
import stat
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import find_boundaries
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

DATA = "data/sample"
TRAINING_DATA = ("data/stage1_train", "data/stage1_train.zip")
CACHE = "data/cache"  # of decoded training sets
CACHED_MASKS = 2000  # fewer mask files than this are read in a second or two
IMAGE_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SEED = 2018
CORNERS = [0, 0, -1, -1], [0, -1, 0, -1]  # rows and columns
VALIDATION_FRACTION = 0.15
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.8  # gray 0 and 1; nuclei may fill only 1 % of an image
COLOUR_DIFFERENCE = 0.02  # mean largest difference of channels, of white, above which: stained
BRIGHT_BACKGROUND = 0.4  # between low and high; a median above it is a bright background
WIDE_NUCLEI = 33  # pixels; images of wider nuclei are seen at half size, their grain averaged
TILE_DIFFERENCE = 0.5  # facing edges of neighbouring tiles differ by less, in their own std
MAX_PIXELS = 178_956_970  # of an image read at once, as a bomb of a kilobyte may be large
MAX_VALUE = 1e30  # of a pixel; what is larger overflows float32, and is no measurement
MAX_ENTRY = 2**31  # bytes of a file in an archive
TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, file too large
UNFINISHED = ".unfinished-"  # begins the name of a file that is being written
MASK_ENDINGS = (".png", ".tif")  # of masks/ID; the second of large images
READER = 5  # of the cache: another number whenever reading gives other arrays

File = Path | zipfile.Path


@dataclass(frozen=True)
class Sample:
    """One image of a source, with the file of each of its nuclei where the source has them."""

    id: str
    image: File
    masks: tuple[File, ...] = ()


def open_source(source: str | Path) -> list[Sample]:
    """Finds the images of a source without reading them.

    Args:
        source: Kaggle folder, Kaggle .zip (read in place), folder of images, or one image file.

    Returns:
        Samples sorted by id, at least one.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no image is in it, or two images share one id.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; python data/download.py fetches the public data"
        )
    if path.is_file() and path.suffix.lower() in IMAGE_ENDINGS:
        return [Sample(path.stem, path)]
    samples = _group_files(_list_zip(path) if path.is_file() else _list_folder(path), path)
    if not samples:
        endings = ", ".join(IMAGE_ENDINGS)
        raise ValueError(f"{path}: no images in it, nor in ID/images/ within it ({endings})")
    return samples


def _list_folder(folder: Path) -> list[tuple[tuple[str, ...], File]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [(p.relative_to(folder).parts, p) for p in files]


def _list_zip(path: Path) -> list[tuple[tuple[str, ...], File]]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception:  # of a damaged one zipfile raises several kinds
        wanted = f"a folder, a .zip or an image ({', '.join(IMAGE_ENDINGS)})"
        raise ValueError(f"{path}: expected {wanted}, this is none or is damaged") from None
    root = zipfile.Path(archive)  # its lookup of names is made once and shared by all entries
    files = {}
    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        if entry.is_dir():
            continue
        if reason := _refuse_entry(entry, files):
            raise ValueError(f"{path}: its entry {entry.filename!r} {reason}; make it anew without")
        files[entry.filename] = zipfile.Path(root.root, entry.filename)
    return [(tuple(name.split("/")), file) for name, file in files.items()]


def _refuse_entry(entry: zipfile.ZipInfo, before: Container[str]) -> str:
    """What is wrong with an entry of an archive; an empty text where it may be read."""
    name = entry.filename
    if name.startswith("/") or ":" in name or "\\" in name or ".." in name.split("/"):
        return "points outside of it"
    if name in before:
        return "is there twice"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    return "is too large" if entry.file_size > MAX_ENTRY else ""


def _group_files(files: list[tuple[tuple[str, ...], File]], source: Path) -> list[Sample]:
    """Joins …/ID/images/* with …/ID/masks/*; where there is no such folder, a file is an image."""
    files = [
        (parts, file)
        for parts, file in files
        if parts[-1].lower().endswith(IMAGE_ENDINGS)
        and not any(part.startswith(".") or part == "__MACOSX" for part in parts)
    ]
    if {parts[:-1] for parts, _ in files} == {("images",), ("masks",)}:  # one ID/ itself
        files = [((source.stem, *parts), file) for parts, file in files]
    kaggle = any(len(parts) >= 3 and parts[-2] == "images" for parts, _ in files)
    # Images side by side, be it in a folder within the folder or archive that was named.
    beside = len({parts[:-1] for parts, _ in files}) == 1
    images, masks, ids = {}, {}, set()
    for parts, file in files:
        if kaggle and len(parts) >= 3 and parts[-2] == "masks":
            masks.setdefault(parts[-3], []).append(file)
        elif len(parts) >= 3 and parts[-2] == "images" if kaggle else beside or len(parts) == 1:
            name = parts[-3] if kaggle else Path(parts[-1]).stem
            if name.lower() in ids:  # on many disks a.png and A.png are one file
                raise ValueError(f"{source}: two images have the id {name}; rename or move one")
            ids.add(name.lower())
            images[name] = file
    return [Sample(i, images[i], tuple(masks.get(i, ()))) for i in sorted(images)]


def read_image(file: File) -> np.ndarray:
    """Reads one image file.

    Returns:
        image: (H, W) or (H, W, 3), bool, uint8, uint16 or what a TIFF holds; alpha is dropped.

    Raises:
        FileNotFoundError, ValueError: with the file's name and what is wrong with it.
    """
    with _named_errors(file):
        content = file.read_bytes()
        image = _decode_tiff(content) if content[:4] in TIFF_HEADERS else _decode(content)
        return _drop_alpha(image, file)


def image_shape(file: File) -> tuple[int, int]:
    """(H, W) of an image file, from its header alone; raises as `read_image`."""
    with _named_errors(file), file.open("rb") as stream:
        if _is_tiff(stream):
            page = tifffile.TiffFile(stream).pages[0]
            return page.imagelength, page.imagewidth
        with _open_picture(stream) as picture:
            return picture.size[::-1]


def read_origin(labels: Path) -> str:
    """What Predict_masks.py wrote into labels/ID.tif of weights and settings, else empty."""
    with _named_errors(labels), tifffile.TiffFile(labels) as tiff:
        description = tiff.pages[0].description
        return description if "weights_sha256" in description else ""


def modified(file: File) -> float:
    """When the file, or the .zip that holds it, was last changed; seconds since 1970."""
    path = file.root.filename if isinstance(file, zipfile.Path) else file
    return Path(path).stat().st_mtime


@contextmanager
def open_rows(file: File):
    """Yields what gives rows [a:b] of an image: of a TIFF it reads no more than asked for.

    Yields:
        `TiffRows`, or the whole image as `read_image` returns it where the format is no such TIFF.
    """
    with file.open("rb") as stream:
        with _named_errors(file):  # what goes wrong with the rows later is not the file's fault
            rows = TiffRows(stream, file) if _is_tiff(stream) else None
            rows = rows if rows and rows.readable() else read_image(file)
        yield rows


class TiffRows:
    """The first page of a TIFF; `rows[a:b]` decodes just the strips or tiles that these cross."""

    def __init__(self, stream, file: File):
        self.stream, self.file = stream, file
        self.tiff = tifffile.TiffFile(stream)
        self.page = self.tiff.pages[0]
        _check_page(self.page)
        self.shape, self.dtype = self.page.shape, self.page.dtype

    def readable(self) -> bool:
        """Whether it is one gray or interleaved image, and compressed as can be decoded here."""
        colours = {tifffile.PHOTOMETRIC.MINISBLACK: (1,), tifffile.PHOTOMETRIC.RGB: (3, 4)}
        if (
            _is_stack(self.tiff)
            or self.page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            or self.page.samplesperpixel not in colours.get(self.page.photometric, ())
        ):
            return False
        try:
            return self[:1].ndim in (2, 3)
        except ValueError:
            return False

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(b - a, W) or (b - a, W, 3) of rows a to b; steps are not for it."""
        with _named_errors(self.file):
            return _drop_alpha(self._decode_rows(*rows.indices(self.shape[0])[:2]), self.file)

    def _decode_rows(self, start: int, stop: int) -> np.ndarray:
        height, across = self.page.chunks[0], math.prod(self.page.chunked[1:])
        found = np.zeros((stop - start, *self.shape[1:]), self.dtype)
        for index in range(start // height * across, -(-stop // height) * across):
            self.stream.seek(self.page.dataoffsets[index])
            content = self.stream.read(self.page.databytecounts[index]) or None
            part, (*_, top, left, _), size = self.page.decode(content, index)
            if part is None:  # a tile left out is all background
                continue
            part = part[0, : size[1], : size[2]].reshape(*size[1:3], *self.shape[2:])
            part = part[max(start - top, 0) : stop - top, : self.shape[1] - left]
            row = max(top - start, 0)
            found[row : row + len(part), left : left + part.shape[1]] = part
        return found


def thin(image, pixels: int) -> np.ndarray:
    """Every n-th row and column of an image or `TiffRows`, at most about `pixels` in all."""
    step = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / pixels))
    rows = max(256 // step, 1) * step  # read at once
    starts = range(0, image.shape[0], rows)
    # Copies, for a view would keep all that was read.
    return np.concatenate([image[start : start + rows][::step, ::step].copy() for start in starts])


def _is_tiff(stream) -> bool:
    header = stream.read(4)  # endings lie
    stream.seek(0)
    return header in TIFF_HEADERS


def _check_size(size: tuple[int, int]) -> None:
    if math.prod(size) > MAX_PIXELS:
        raise ValueError(
            f"its {size[0]}×{size[1]} pixels are too many to read at once; Predict_masks.py "
            "reads a TIFF without compression or with zlib's in parts"
        )


def _check_page(page: tifffile.TiffPage) -> None:
    """Raises ValueError where the header claims other data than there is."""
    parts = len(page.dataoffsets)
    if not page.shape or parts != math.prod(page.chunked) or parts != len(page.databytecounts):
        raise ValueError("its header and its data do not agree; it is damaged")
    end = page.parent.filehandle.size
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if start + count > end:
            raise ValueError("it is cut off")


def _is_stack(tiff: tifffile.TiffFile) -> bool:
    """Whether there is more than one image, smaller copies of it aside."""
    pages = [page for page in tiff.pages if not page.is_reduced]
    return len(pages) > 1 or math.prod(tiff.series[0].shape) != math.prod(tiff.pages[0].shape)


@contextmanager
def _named_errors(file: File):
    """Errors of reading say which file it was and what to do."""
    try:
        yield
    except UnidentifiedImageError as error:  # its own text is an address in memory
        raise ValueError(f"{file}: not an image in a known format; replace or remove it") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged file the decoders raise a dozen kinds
        reason = (str(error) or type(error).__name__).split("\n")[0]
        if str(file) in reason:  # named already
            raise
        raise ValueError(
            f"{file}: not a readable image ({reason}); replace or remove it"
        ) from error


def _drop_alpha(image: np.ndarray, file: File) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        image = image[..., : image.shape[-1] - 1]
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3) or image.ndim == 3 and image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"{file}: expected one gray or RGB image, this has shape {image.shape}")
    if image.dtype.kind not in "buif":
        raise ValueError(f"{file}: expected real numbers, these are {image.dtype}; remake it")
    if image.dtype.kind == "f" and not float(np.abs(image).max()) < MAX_VALUE:
        raise ValueError(f"{file}: some of its values are NaN or too large; replace or remove it")
    return image


def _open_picture(stream) -> Image.Image:
    """Reads the header; `image_shape` of what is too large is still an answer."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow would warn at a half of it
    return Image.open(stream)


def _decode(content: bytes) -> np.ndarray:
    with _open_picture(io.BytesIO(content)) as picture:
        _check_size(picture.size[::-1])
        if ";16" in str(picture.tile[:1]) and not picture.mode.startswith("I"):
            raise ValueError(
                "of the 16 bits of its colours 8 would be lost; save it as a TIFF, not compressed"
            )
        if picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):  # colours, not numbers
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        return np.asarray(picture)


def _decode_tiff(content: bytes) -> np.ndarray:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said once, below
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page, kind = tiff.pages[0], tiff.pages[0].photometric
        _check_page(page)
        _check_size((page.imagelength, page.imagewidth))
        if _is_stack(tiff):
            shape, axes = tiff.series[0].shape, tiff.series[0].axes
            raise ValueError(
                f"it holds {len(tiff.pages)} pages, the first of shape {shape}, axes {axes}; save "
                "the plane that is meant as a file of its own"
            )
        if kind in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.SEPARATED):
            return _decode(content)  # colours, not numbers
        try:
            image = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode(content)  # Pillow has its own LZW and JPEG, but fewer types of numbers
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and image.ndim == 3:
        image = np.moveaxis(image, 0, -1)
    channels = image.shape[-1] if image.ndim == 3 else 1
    alpha = kind == tifffile.PHOTOMETRIC.RGB or page.extrasamples[-1:] in ((1,), (2,))
    if channels in (2, 4) and not alpha:
        raise ValueError(f"it holds {channels} channels; save that of the nuclei as its own file")
    if kind == tifffile.PHOTOMETRIC.MINISWHITE:
        image = ~image if image.dtype.kind in "bu" else -image
    return image


def read_labels(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """Numbers the nuclei of one image from its mask files, in the order of their names.

    Args:
        sample: a sample with masks; a mask file has 0 and one other value, which is nucleus.
        shape: (H, W) of its image; masks are never resized to make them fit.

    Returns:
        labels: (H, W) int32, 0 background, 1…K.

    Raises:
        ValueError: a mask is unreadable or of another size, or there is none.
    """
    if not sample.masks:
        raise ValueError(f"{sample.image}: it has no masks; expected {sample.id}/masks/*.png")
    labels = np.zeros(shape, np.int32)
    for number, file in enumerate(sample.masks, start=1):
        size, box, nucleus = read_mask(file)
        if size != shape:
            raise ValueError(f"{file}: the mask is {size}, its image {shape}; remake it")
        labels[box][nucleus] = number
    return labels


def read_mask(file: File) -> tuple[tuple[int, int], tuple[slice, slice], np.ndarray]:
    """Reads the mask of one nucleus, of which only the box around it is worth a second look.

    Returns:
        size: (H, W) of the mask.
        box: rows and columns within which everything nonzero lies.
        nucleus: (h, w) bool, the mask within the box.
    """
    found = None
    if file.name.lower().endswith(".png"):
        with _named_errors(file):
            found = _decode_box(file.read_bytes())
    if found is None:
        mask = read_image(file)
        found = mask.shape[:2], np.s_[:, :], mask
    size, box, values = found
    nucleus = values.any(axis=-1) if values.ndim == 3 else values != 0
    inside = values[nucleus]
    if (inside != inside[:1]).any():
        raise ValueError(
            f"{file}: expected the mask of one nucleus, 0 and one other value, but it has several, "
            "as a labelled picture or a photograph has; write one file for each nucleus"
        )
    if nucleus.shape == size and nucleus.mean() > 0.5 and nucleus[CORNERS].all():
        raise ValueError(
            f"{file}: most of it and all corners are nucleus; is it inverted? remake it"
        )
    return size, box, nucleus


def _decode_box(content: bytes):
    with _open_picture(io.BytesIO(content)) as picture:
        _check_size(picture.size[::-1])
        if picture.mode not in ("1", "L"):  # colour and alpha need another look
            return None
        left, top, right, bottom = picture.getbbox() or (0, 0, 0, 0)
        values = np.asarray(picture.crop((left, top, right, bottom)).convert("L"))
        return picture.size[::-1], np.s_[top:bottom, left:right], values


def to_grayscale(image: np.ndarray, levels: tuple[bool, float, float] | None = None) -> np.ndarray:
    """Makes the single channel that the network sees, in which nuclei are bright.

    On a dark background (fluorescence) it is the brightness. On a bright one, where nuclei absorb
    the light, it is the inverted red channel: haematoxylin is blue and absorbs red, eosin and
    blood are red and do not, so that little but nuclei is left (Ruifrok & Johnston, "Quantification
    of histochemical staining by color deconvolution", 2001).

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        levels: of `find_levels`, where the image is a part of a larger one.

    Returns:
        gray: (H, W) float32 in [0, 1], as from `stretch`; all 0 where the image is constant.

    >>> to_grayscale(np.array([[0, 0, 100], [0, 200, 200]], np.uint16)).round(2).tolist()
    [[0.0, 0.0, 0.5], [0.0, 1.0, 1.0]]
    """
    bright, low, high = levels or find_levels(image)
    gray = stretch(nuclear_channel(image, bright), low, high)
    return 1 - gray if bright else gray


def find_levels(image: np.ndarray) -> tuple[bool, float, float]:
    """Whether the background is bright; and the values between which the channel is stretched."""
    bright = has_bright_background(image)
    shares = LOW_PERCENTILE, HIGH_PERCENTILE
    if bright:
        shares = 100 - HIGH_PERCENTILE, 100 - LOW_PERCENTILE
    return bright, *find_range(nuclear_channel(image, bright), *shares)


def nuclear_channel(image: np.ndarray, bright: bool) -> np.ndarray:
    """(H, W): red where nuclei are dark on a bright background, else the brightness."""
    return brightness(image[..., 0] if bright and image.ndim == 3 else image)


def brightness(image: np.ndarray) -> np.ndarray:
    """The brightest channel, (H, W): a fluorescent stain may be shown in any one colour."""
    image = image.astype(np.uint8) if image.dtype == bool else image
    if image.ndim == 2:
        return image
    red, green, blue = np.moveaxis(image, -1, 0)
    return np.maximum(np.maximum(red, green), blue)  # ten times as fast as max(axis=-1)


def find_range(
    channel: np.ndarray, low: float = LOW_PERCENTILE, high: float = HIGH_PERCENTILE
) -> tuple[float, float]:
    """Values at two percentiles, [0, 100]; the extremes where the percentiles are one value."""
    low, high = percentiles(channel, (low, high))
    if high <= low:  # fewer bright pixels than the percentile lets through, or a constant image
        low, high = channel.min(), channel.max()
    return float(low), float(high)


def percentiles(channel: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """`np.percentile`; of 8 bits by counting, in a fraction of the time.

    Args:
        channel: (H, W), any real dtype.
        shares: N percentiles, each in [0, 100].

    Returns:
        (N,) float.

    >>> percentiles(np.array([[7, 0], [200, 100]], np.uint8), (0, 50, 90)).tolist()
    [0.0, 53.5, 170.0]
    """
    if channel.dtype != np.uint8:
        return np.percentile(channel, shares)
    ends = np.cumsum(np.bincount(channel.ravel()))
    places = np.array(shares) / 100 * (channel.size - 1)
    below, above = (np.searchsorted(ends, f(places), "right") for f in (np.floor, np.ceil))
    return below + places % 1 * (above - below)


def stretch(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    """`clip((channel - low) / (high - low), 0, 1)`, low and high of `find_range`.

    Exposure differs from one microscope to the next by more than a factor of ten.

    Args:
        channel: (H, W), any real dtype.
        low, high: values of the channel.

    Returns:
        (H, W) float32 in [0, 1].
    """
    exact = np.result_type(channel, np.float32).type  # float32 is enough for 8 and 16 bits
    scale = max(high - low, float(np.finfo(np.float32).tiny))
    return np.clip((channel - exact(low)) / exact(scale), 0, 1).astype(np.float32, copy=False)


def has_bright_background(image: np.ndarray) -> bool:
    """Whether most of the image is nearer to its brightest than to its darkest parts.

    In stage1_train and stage1_test the median lies below 0.32 on dark backgrounds, above 0.47 on
    bright ones. It is relative to the image, for 12 bits often come in files of 16.
    """
    low, median, high = percentiles(brightness(image), (LOW_PERCENTILE, 50, HIGH_PERCENTILE))
    return bool(median - low > BRIGHT_BACKGROUND * (high - low))


def image_kind(image: np.ndarray) -> str:
    """Names the kind of an image: "fluorescence", "brightfield" or "stained tissue".

    A dark background means fluorescence; of the others those with colour are stained tissue.

    >>> image_kind(np.zeros((4, 4), np.uint8))
    'fluorescence'
    """
    if not has_bright_background(image):
        return "fluorescence"
    if image.ndim == 2:
        return "brightfield"
    red, green, blue = np.moveaxis(image, -1, 0)
    darkest = np.minimum(np.minimum(red, green), blue)
    difference = brightness(image).mean(dtype=float) - darkest.mean(dtype=float)
    coloured = difference > COLOUR_DIFFERENCE * find_range(brightness(image))[1]
    return "stained tissue" if coloured else "brightfield"


def halve(gray: np.ndarray) -> np.ndarray:
    """Half the height and width, each pixel the mean of four: coarse shapes, little noise.

    Args:
        gray: (..., H, W) float, H and W at least 1; an odd last row or column is repeated.

    Returns:
        (..., ceil(H / 2), ceil(W / 2)) float32.
    """
    odd = [(0, 0)] * (gray.ndim - 2) + [(0, side % 2) for side in gray.shape[-2:]]
    gray = np.pad(gray, odd, "edge").astype(np.float32)
    rows = gray[..., ::2, :] + gray[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def common_diameter(labels: np.ndarray) -> float:
    """Diameter in pixels of a common nucleus: half of the nuclear area is in wider ones; 0: none.

    The diameter of a nucleus is that of the disk of its area. Weighing by area keeps crumbs, which
    are many where a nucleus falls into pieces, from counting as much as nuclei.

    >>> common_diameter(np.repeat([[0, 1, 2]], 100, axis=0)).__round__(3)
    11.284
    """
    areas = np.bincount(labels.ravel())[1:]
    areas = np.sort(areas[areas > 0])
    if not len(areas):
        return 0.0
    total = np.cumsum(areas)
    return float(np.sqrt(4 / np.pi * areas[np.searchsorted(total, total[-1] / 2)]))


def load_samples(
    samples: Sequence[Sample], cache: str | Path | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads images and labels, with a progress bar, or takes them from an earlier reading.

    Args:
        samples: from `open_source`.
        cache: file to keep the decoded arrays in. It counts while names, sizes and times of the
            samples' files are what they were, and may be deleted at any time.

    Returns:
        images: list of (H, W) or (H, W, 3), as in the files.
        labels: list of (H, W) int32.

    Raises:
        ValueError: the first image or mask that cannot be used, by name.
    """
    if cache is None or sum(len(sample.masks) for sample in samples) < CACHED_MASKS:
        return read_samples(samples)
    fingerprint = describe_files(samples)
    loaded = load_cache(Path(cache), fingerprint)
    if loaded is None:
        loaded = read_samples(samples)
        save_cache(Path(cache), fingerprint, *loaded)
    return loaded


def read_samples(samples: Sequence[Sample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decodes the files of all samples; returns and raises as `load_samples`."""
    images, labels = [], []
    with ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
        try:
            read = pool.map(read_sample, samples)
            bar = {"total": len(samples), "desc": "reading", "unit": "image", "disable": None}
            for image, numbers in tqdm(read, **bar):
                images.append(image)
                labels.append(numbers)
        except BaseException:  # do not read the rest before saying so
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images, labels


def read_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W) or (H, W, 3) and labels (H, W) int32 of one sample with masks."""
    image = read_image(sample.image)
    if image.ndim == 3 and (image == image[..., :1]).all():  # most are gray in three equal channels
        image = np.broadcast_to(image[..., :1].copy(), image.shape)  # of which memory holds one
    return image, read_labels(sample, image.shape[:2])


def describe_files(samples: Sequence[Sample]) -> str:
    """SHA-256 of names, sizes and times of all files (in a .zip: and their checksums)."""
    digest = hashlib.sha256(str(READER).encode())
    for sample in samples:
        for file in (sample.image, *sample.masks):
            if isinstance(file, zipfile.Path):
                entry = file.root.getinfo(file.at)
                facts = (entry.filename, entry.file_size, entry.date_time, entry.CRC)
            else:
                status = file.stat()
                facts = (str(file.absolute()), status.st_size, status.st_mtime_ns)
            digest.update(repr((sample.id, *facts)).encode())
    return digest.hexdigest()


def save_cache(file: Path, fingerprint: str, images: list, labels: list) -> None:
    """Keeps decoded arrays for `load_cache`; without room for it work goes on without it."""
    # Of equal channels, as of `read_sample`, one is enough.
    images = [x[..., :1] if x.ndim == 3 and x.strides[2] == 0 else x for x in images]
    arrays = [*labels, *images]
    described = [fingerprint, [(array.shape, array.dtype.str) for array in arrays]]
    description = np.frombuffer(json.dumps(described).encode(), np.uint8)
    pieces = [*arrays, description, np.uint64(len(description))]

    def write(part: Path) -> None:
        """As `np.save` of one array of bytes, the last four of them a checksum."""
        size = sum(piece.nbytes for piece in pieces) + 4
        checksum = 0
        with open(part, "wb") as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in pieces:
                content = np.ascontiguousarray(piece)
                checksum = zlib.crc32(content, checksum)
                stream.write(content)
            stream.write(np.uint32(checksum))

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, write)
    except OSError as error:
        print(f"{file}: no cache kept, {error.strerror or error}", file=sys.stderr)


def load_cache(file: Path, fingerprint: str) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """The arrays of `save_cache`; None if they are not there, of other files, or damaged."""
    arrays, place = [], 0
    try:
        content = np.asarray(np.load(file, mmap_mode="c"))  # what is written to stays in memory
        length = int(content[-12:-4].view(np.uint64)[0])
        found, described = json.loads(content[-12 - length : -12].tobytes())
        if found != fingerprint or content[-4:].view(np.uint32) != zlib.crc32(content[:-4]):
            return None
        for shape, kind in described:
            start, place = place, place + math.prod(shape) * np.dtype(kind).itemsize
            array = content[start:place].view(kind).reshape(shape)
            one = array.ndim == 3 and shape[2] == 1
            arrays.append(np.broadcast_to(array, (*shape[:2], 3)) if one else array)
    except Exception:  # of a damaged one numpy raises half a dozen kinds
        return None
    half = len(arrays) // 2
    return arrays[half:], arrays[:half]


def group_tiles(images: Sequence[np.ndarray]) -> np.ndarray:
    """Finds which images are tiles of one picture, from the pixels of their facing edges.

    Equal images are one picture. Two images of one size are neighbours where the last column (row)
    of one and the first of the other are each other's best match and differ (root mean square) by
    less than TILE_DIFFERENCE of their standard deviation: the edges of tiles cut from one picture
    are one pixel apart.

    Args:
        images: list of (H, W) or (H, W, 3).

    Returns:
        (N,) int, one number per picture.
    """
    shapes, firsts, pairs = {}, {}, []
    for index, image in enumerate(images):
        shapes.setdefault(image.shape[:2], []).append(index)
        content = hashlib.sha256(brightness(image).tobytes()).digest()
        pairs.append((firsts.setdefault((image.shape[:2], content), index), index))
    for members in shapes.values():
        index = np.array(members)
        for axis in (0, 1):
            turned = [np.moveaxis(images[i], axis, 0) for i in members]
            ends, starts = (
                np.stack([brightness(image[[place]]).ravel() for image in turned])
                for place in (-1, 0)
            )
            pairs += [(index[a], index[b]) for a, b in _matching_edges(ends, starts)]
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(images), len(images)))
    return connected_components(graph, directed=False)[1]


def _matching_edges(ends: np.ndarray, starts: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (a, b) where end a and start b, both (N, L), are each other's best match."""
    ends, starts = (  # with less noise
        gaussian_filter1d(edges.astype(np.float64), 1, axis=1) for edges in (ends, starts)
    )
    squares = (ends**2).mean(axis=1)[:, None] + (starts**2).mean(axis=1)
    squared_difference = squares - 2 * ends @ starts.T / ends.shape[1]
    variance = np.outer(ends.std(axis=1), starts.std(axis=1))
    difference = np.sqrt(np.maximum(squared_difference, 0) / np.maximum(variance, 1e-12))
    difference[variance < 1e-12] = np.inf  # constant edges, black on black, prove nothing
    np.fill_diagonal(difference, np.inf)
    best, back = difference.argmin(axis=1), difference.argmin(axis=0)
    return [
        (a, b) for a, b in enumerate(best) if back[b] == a and difference[a, b] < TILE_DIFFERENCE
    ]


def split_data(
    ids: Sequence[str],
    images: Sequence[np.ndarray],
    fraction: float = VALIDATION_FRACTION,
    seed: int = SEED,
) -> tuple[list[str], list[str]]:
    """Splits ids into training and validation, whole pictures at a time, kinds in proportion.

    Args:
        ids: N names.
        images: N images, (H, W) or (H, W, 3).
        fraction: share of the images that goes to validation, in (0, 0.5].
        seed: of the shuffling.

    Returns:
        training ids and validation ids, both sorted.

    Raises:
        ValueError: fewer than two pictures, so that nothing is left for one side.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"validation fraction must be above 0 and at most 0.5, not {fraction}")
    pictures = group_tiles(images)
    folds = min(round(1 / fraction), len(set(pictures)))
    if folds < 2:
        raise ValueError(f"{len(ids)} image(s) of one picture cannot be split; add images")
    kinds = [f"{image_kind(i)} {i.shape[0]}x{i.shape[1]}" for i in images]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    codes = np.unique(kinds, return_inverse=True)[1]
    rare = np.isin(codes, np.flatnonzero(np.bincount(codes) < folds))
    codes[rare] = codes.max() + 1
    with warnings.catch_warnings():  # of kinds rarer than folds, which is no fault here
        warnings.filterwarnings("ignore", "The least populated class")
        training, validation = next(splitter.split(codes, codes, pictures))  # the first fold
    return sorted(ids[i] for i in training), sorted(ids[i] for i in validation)


def hold_out_kind(
    ids: Sequence[str], images: Sequence[np.ndarray], kind: str
) -> tuple[list[str], list[str]]:
    """Splits off all images of one kind: how well does the rest prepare for a kind never seen?

    Returns:
        training ids, of the other kinds, and validation ids, of this kind, both sorted.

    Raises:
        ValueError: no image is of this kind, or every one is.
    """
    kinds = [image_kind(image) for image in images]
    if set(kinds) == {kind} or kind not in kinds:
        raise ValueError(f"cannot hold out {kind!r}: the kinds here are {sorted(set(kinds))}")
    sides = [
        sorted(i for i, k in zip(ids, kinds, strict=True) if (k == kind) == side) for side in (0, 1)
    ]
    return sides[0], sides[1]


def read_record(file: str | Path) -> dict:
    """Reads training.json, which Train.py writes beside the weights.

    Raises:
        ValueError: it is none, or an id is on both sides of the split.
    """
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        both = set(record["training_ids"]) & set(record["validation_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected a training.json of Train.py, with the ids") from error
    if both:
        raise ValueError(
            f"{file}: {len(both)} ids are trained on and validated on, first {min(both)}"
        )
    return record


def rle_encode(labels: np.ndarray) -> list[str]:
    """Run lengths as Kaggle writes them: "start length …", starts from 1, down the columns.

    Source: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation

    Args:
        labels: (H, W) int, 0 background, 1…K; or a mask, (H, W) bool.

    Returns:
        K texts, that of nucleus 1 first.

    >>> rle_encode(np.array([[0, 2, 2], [1, 2, 0]]))
    ['2 1', '3 3']
    """
    flat = np.append(0, labels.ravel(order="F"))
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    numbers, lengths = flat[starts + 1], np.diff(starts, append=labels.size)
    order = np.argsort(numbers, kind="stable")
    ends = np.searchsorted(numbers[order], np.arange(1, flat.max() + 2))
    runs = np.split(np.column_stack([starts + 1, lengths])[order], ends)
    return [" ".join(map(str, run.ravel())) for run in runs[1:-1]]


def rle_decode(runs: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of one text of `rle_encode`.

    Raises:
        ValueError: an odd count, a number that is none, a run outside the image or on another.

    >>> rle_decode("2 3", (2, 2)).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    try:
        numbers = [int(word) for word in runs.split()]
    except ValueError:
        raise ValueError(f"run lengths must be whole numbers, not {runs[:40]!r}") from None
    starts, lengths = numbers[::2], numbers[1::2]
    if len(starts) != len(lengths):
        raise ValueError(f"run lengths come in pairs, these are {len(numbers)} numbers")
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(starts, lengths, strict=True):
        if start < 1 or length < 1 or start + length - 1 > flat.size:
            raise ValueError(f"run {start} {length} leaves the {shape[0]}x{shape[1]} image")
        run = flat[start - 1 : start - 1 + length]
        if run.any():
            raise ValueError(f"run {start} {length} overlaps another of the same nucleus")
        run[:] = True
    return flat.reshape(shape, order="F")


def read_solution(file: str | Path) -> dict[str, np.ndarray]:
    """Reads Kaggle's solution table, ImageId,EncodedPixels,Height,Width,Usage, a row a nucleus.

    Returns:
        id -> labels (H, W) int32; rows with Usage "Ignored" are left out. A pixel of two nuclei
        belongs to the later one.

    Raises:
        ValueError: a column is missing or a row is wrong, with its line number.
    """
    labels, seen = {}, set()
    with open(file, newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        missing = {"ImageId", "EncodedPixels", "Height", "Width"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{file}: no column {', '.join(sorted(missing))}")
        for row in rows:
            if row.get("Usage") == "Ignored":
                continue
            try:
                if (row["ImageId"], row["EncodedPixels"]) in seen:
                    raise ValueError("the same nucleus is in an earlier row")
                seen.add((row["ImageId"], row["EncodedPixels"]))
                shape = int(row["Height"]), int(row["Width"])
                _check_size(shape)
                nucleus = rle_decode(row["EncodedPixels"], shape)
                image = labels.setdefault(row["ImageId"], np.zeros(shape, np.int32))
                if image.shape != shape:
                    raise ValueError(f"size {shape}, in an earlier row {image.shape}")
                image[nucleus] = image.max() + 1
            except (ValueError, TypeError, AttributeError) as error:  # a row may end early
                raise ValueError(f"{file}, line {rows.line_num}: {error}") from None
    return labels


def outline_nuclei(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image as people look at it, each nucleus outlined in yellow.

    Args:
        image: (H, W) or (H, W, 3); all but stained tissue become gray, stretched.
        labels: (H, W) int.

    Returns:
        (H, W, 3) uint8.
    """
    bright = brightness(image)
    low, high = find_range(bright)
    if image.ndim == 3 and image_kind(image) == "stained tissue":
        picture = (255 * stretch(image, 0, high)).astype(np.uint8)
    else:
        gray = (255 * stretch(bright, low, high)).astype(np.uint8)
        picture = np.repeat(gray[..., None], 3, axis=-1)
    picture[find_boundaries(labels, mode="inner")] = (255, 220, 0)
    return picture


def save_contact_sheet(
    pictures: Sequence[np.ndarray], titles: Sequence[str], out: str | Path, columns: int = 4
) -> None:
    """Saves pictures (H, W, 3) uint8 side by side, with titles, as one PNG."""
    from matplotlib.figure import Figure  # here, so that reading images does not wait for it

    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(rows, columns, squeeze=False).flat, pictures, titles, strict=False
    ):
        axes.imshow(picture)
        axes.set_title(title, fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    kind = Path(out).suffix[1:] or "png"
    write_whole(Path(out), lambda file: figure.savefig(file, dpi=110, format=kind))


def format_summary(kinds: Iterable[str], labels: Sequence[np.ndarray]) -> str:
    """A table: images, sizes, nuclei and nucleus area (pixels) by kind of image."""
    lines = [f"{'kind':<16}{'images':>8}{'nuclei':>8}{'smallest':>12}{'largest':>12}  median area"]
    kinds = np.array(list(kinds))
    for kind in sorted(set(kinds)):
        chosen = [labels[i] for i in np.flatnonzero(kinds == kind)]
        shapes = sorted((x.shape for x in chosen), key=lambda s: s[0] * s[1])
        areas = np.concatenate([np.bincount(x.ravel())[1:] for x in chosen])
        areas = areas[areas > 0]
        small, large = (f"{s[0]}x{s[1]}" for s in (shapes[0], shapes[-1]))
        area = f"{np.median(areas):.0f} pixels" if areas.size else "-"
        lines.append(f"{kind:<16}{len(chosen):>8}{areas.size:>8}{small:>12}{large:>12}  {area}")
    return "\n".join(lines)


def find_data(or_else: str | None = None) -> str:
    """The competition's training data, where data/download.py puts it, or else `or_else`.

    Raises:
        FileNotFoundError: it is not there and nothing else was named.
    """
    for place in (*TRAINING_DATA, or_else):
        if place and Path(place).exists():
            return place
    raise FileNotFoundError(
        f"no {' or '.join(TRAINING_DATA)}; python data/download.py fetches it, --data names another"
    )


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Has `write` write a neighbour of the file, then renames it: never half a file.

    The neighbour keeps the ending, from which most libraries take the format.

    Raises:
        OSError: with the file's name; where there is no room, how far it came.
    """
    part = file.with_name(f"{UNFINISHED}{os.getpid()}-{file.name}")
    try:
        write(part)
        os.replace(part, file)
    except OSError as error:
        if error.filename and UNFINISHED not in str(error.filename):  # it is of another file
            raise
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            written = part.stat().st_size if part.exists() else 0
            free = shutil.disk_usage(file.parent).free
            reason = f"{os.strerror(error.errno)} after {written:,} bytes, {free:,} are free"
        reason += "; name another place or make room there"
        raise OSError(error.errno, reason, str(file)) from error
    finally:
        part.unlink(missing_ok=True)


def show_pictures(*files: str | Path) -> None:
    """Opens a window for each picture file where there is a display; else does nothing."""
    display = sys.platform in ("win32", "darwin") or os.environ.keys() & {
        "DISPLAY",
        "WAYLAND_DISPLAY",
    }
    if not display or os.environ.get("MPLBACKEND", "").lower() == "agg":
        return
    import matplotlib.pyplot as plt

    for file in files:
        figure, axes = plt.subplots(num=str(file), figsize=(11, 8), layout="constrained")
        axes.imshow(read_image(Path(file)))
        axes.set_axis_off()
    plt.show()


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Ends the process with main's exit code; a user's mistake is one line on stderr and code 2."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename:  # the system's own words, not ours
            reason = f"{error.filename}: {error.strerror}"
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"stopped by Ctrl-C; {stop}".rstrip("; "), file=sys.stderr)
        sys.exit(130)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=DATA, help=f"images and masks (default {DATA})")
    parser.add_argument("--out", default="data/contact_sheet.png", help="picture to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    samples = open_source(args.data)
    images, labels, skipped = [], [], 0
    for sample in tqdm(samples, desc="reading", unit="image", disable=None):
        try:
            image = read_image(sample.image)
            # A plain folder of images has no masks: then the table says 0 nuclei.
            blank = np.zeros(image.shape[:2], np.int32)
            labels.append(read_labels(sample, image.shape[:2]) if sample.masks else blank)
            images.append(image)
        except (ValueError, OSError) as error:
            skipped += 1
            print(f"skipped: {error}", file=sys.stderr)
    if not images:
        raise ValueError(f"{args.data}: none of its {len(samples)} images can be read")
    kinds = [image_kind(i) for i in images]
    print(format_summary(kinds, labels))
    print(f"{len(images)} images from {len(set(group_tiles(images)))} pictures")
    shown = np.unique(np.linspace(0, len(images) - 1, 16).round().astype(int))
    shown = sorted(shown, key=lambda i: (kinds[i], images[i].shape))
    pictures = [outline_nuclei(images[i], labels[i]) for i in shown]
    titles = [f"{kinds[i]}, {'x'.join(map(str, images[i].shape[:2]))}" for i in shown]
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    save_contact_sheet(pictures, titles, args.out)
    print(f"saved the contact sheet to {args.out}")
    return 1 if skipped else 0


if __name__ == "__main__":
    run_script(main)
