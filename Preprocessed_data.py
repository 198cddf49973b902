"""Turns images into the gray that the network sees, and splits them for training and validation.

In:  images (H, W) or (H, W, 3) of any real dtype, from the sources that `data.sources` finds.
Out: gray (H, W) float32 in [0, 1], in which nuclei are bright; ids for training and validation.
As a script it reads a source, prints a table by kind of image and saves a contact sheet; with --nuclei it also
measures the true nuclei, as corrected predictions are.

    python Preprocessed_data.py
    python Preprocessed_data.py --data data/stage1_train.zip --out contact_sheet.png
    python Preprocessed_data.py --data checked --nuclei checked.csv
"""

from data.options import KINDS, SEED, PredictionOptions, preprocessed_data_parser

if __name__ == "__main__":
    preprocessed_data_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from data.artifacts import find_ground, remove_outliers
from data.channels import COLOURS, likely_channel
from data.files import UserError, find_beside_scripts, run_script
from data.intensity import (
    HIGH_PERCENTILE,
    LOW_PERCENTILE,
    brightness,
    find_dim_nuclei,
    haematoxylin,
    measure_background,
    normalize,
    percentile_range,
    percentiles,
    stands_out,
    values_off_ground,
    white_value,
)
from data.pictures import draw_thumbnails, save_contact_sheet
from data.pixels import invert, is_gray
from data.sources import Sample, find_samples
from data.stacks import find_channels, read_sample_image
from data.tables import save_true_nuclei
from data.tiles import group_tiles
from data.truth import read_labels

# Sources.
TRAINING_DATA = ("data/stage1_train", "data/stage1_train.zip")
TISSUE_DATA = ("data/tnbc", "data/tnbc.zip")
VALIDATION_PATIENTS = {"tnbc": ("04", "09", "11")}  # by source; a patient's images are PATIENT_NUMBER
SHOWN_IMAGES = 16  # in the contact sheet
# Gray.
BRIGHT_MEDIAN = 0.4  # share of the range from black to white; a median above it is a bright background
COLOUR_DIFFERENCE = 0.02  # share of the value of white; channels that differ by more in the mean show a stain
MIN_COLOUR = 0.1  # share of the strongest channel's signal; a weaker channel of an RGB image shows nothing
MAX_CORRELATION = 0.95  # channels of an RGB image that correlate less show different things
DEBRIS_RATIO = 10  # what is so many times brighter than dim nuclei is no nucleus
FLUORESCENCE, BRIGHTFIELD, STAINED_TISSUE = KINDS
# The split.
VALIDATION_FRACTION = 0.15  # wanted; it is one of round(1 / 0.15) = 7 folds, 14 %, and more with fewer than 7 groups


class Normalization(NamedTuple):
    """How an image becomes gray: its background and stain choose the channel, `low` and `high` the range."""

    has_bright_background: bool
    low: float  # becomes black
    high: float  # becomes white
    background_level: float  # value of the background
    noise: float  # its standard deviation
    is_stained: bool = False
    has_signal: bool = True  # False: the values look like noise, and nuclei must stand out locally
    debris: float = np.inf  # what is brighter is no nucleus
    white: float | None = None  # value of white of stained tissue

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The gray (H, W) of a part of the image, (H, W) or (H, W, 3), as of `to_grayscale`; ground is not sought."""
        channel = select_channel(image, self.has_bright_background, self.is_stained, self.white)
        channel = remove_outliers(channel, self.background_level, self.noise)
        return normalize(channel, self.low, self.high)


def to_grayscale(image: np.ndarray) -> np.ndarray:
    """Makes the single channel that the network sees, in which nuclei are bright.

    On a dark background (fluorescence) it is the brightness. On a bright one, where nuclei absorb the light, it is the
    inverted red channel, for haematoxylin is blue and absorbs red the most; of a gray image it is the inverted image.
    Of stained tissue it is the amount of haematoxylin: eosin, DAB, blood are other stains (Ruifrok & Johnston,
    "Quantification of histochemical staining by color deconvolution", 2001). Ground without picture becomes black; hot
    and dead pixels become as their neighbours.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.

    Returns:
        gray: (H, W) float32 in [0, 1], as from `normalize`; all 0 where the image is constant.

    >>> to_grayscale(np.array([[0, 0, 100], [0, 200, 200]], np.uint16)).round(2).tolist()
    [[0.0, 0.0, 0.5], [0.0, 1.0, 1.0]]
    """
    return prepare_image(image)[0]


def prepare_image(
    image: np.ndarray, background: str | None = None
) -> tuple[np.ndarray, Normalization, np.ndarray | None]:
    """Makes the gray of a whole image, and keeps what was found out on the way.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        background: of `measure_normalization`.

    Returns:
        gray: of `to_grayscale`.
        normalization: of `measure_normalization`.
        debris: (H, W) bool, pixels that are far too bright for nuclei; None where there are none.
    """
    ground = find_ground(brightness(image))
    normalization, channel = _prepare_channel(image, ground, background)
    gray = normalize(channel, normalization.low, normalization.high)
    if ground is not None:
        gray[ground] = 0
    if np.isinf(normalization.debris):
        return gray, normalization, None
    return gray, normalization, brightness(image) > normalization.debris


def measure_normalization(
    image: np.ndarray, ground: np.ndarray | None = None, background: str | None = None, is_reduced: bool = False
) -> Normalization:
    """Finds the background of an image, and the values of its channel that become black and white.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        ground: (H, W) bool of `find_ground`; these pixels do not count.
        background: "dark" or "bright"; None: it is found out.
        is_reduced: whether it is every n-th pixel of another, in which a nucleus may be one pixel: none counts as hot.
    """
    return _prepare_channel(image, ground, background, is_reduced)[0]


def _prepare_channel(
    image: np.ndarray, ground: np.ndarray | None, background: str | None, is_reduced: bool = False
) -> tuple[Normalization, np.ndarray]:
    """The normalization of an image, and its channel (H, W) without hot and dead pixels."""
    channel, background_level, noise = clean_channel(brightness(image), ground, is_reduced)
    if background is None:
        is_bright = _is_mostly_bright(values_off_ground(channel, ground))
    else:
        is_bright = background == "bright"
    has_stain = is_bright and detect_stain(image, ground)
    white = white_value(image) if has_stain else None
    if is_bright:
        # In the brightness the nuclei are dark; the channel in which they are bright takes its place.
        seen = select_channel(image, is_bright, has_stain, white)
        channel, background_level, noise = clean_channel(seen, ground, is_reduced)
    values = values_off_ground(channel, ground)
    low, high = percentile_range(values)
    has_signal = has_stain or stands_out(values, noise)
    normalization = Normalization(is_bright, low, high, background_level, noise, has_stain, has_signal, white=white)
    dim_high = None if is_bright else find_dim_nuclei(channel, background_level, noise, high)
    if dim_high is not None:
        debris = background_level + DEBRIS_RATIO * (dim_high - background_level)
        normalization = normalization._replace(high=dim_high, debris=debris)
    return normalization, channel


def clean_channel(
    channel: np.ndarray, ground: np.ndarray | None, is_reduced: bool = False
) -> tuple[np.ndarray, float, float]:
    """A channel (H, W) without hot and dead pixels if it is not reduced, its background and the noise of that."""
    background_level, noise = measure_background(channel, ground)
    cleaned = channel if is_reduced else remove_outliers(channel, background_level, noise)
    return cleaned, background_level, noise


def find_colours(image: np.ndarray) -> list[str]:
    """Names of the channels of an RGB merge on a dark background that show different things; [] for other images.

    A gray image in three equal channels, one that is shown in any one colour, and hot pixels make no merge.
    """
    if is_gray(image[::4, ::4]):
        return []
    if detect_bright_background(image, find_ground(brightness(image))):
        return []
    channels = [clean_channel(image[..., index], None)[0] for index in range(3)]
    signals = [percentile_range(channel, 50, HIGH_PERCENTILE) for channel in channels]
    heights = [high - low for low, high in signals]
    shown = [index for index in range(3) if heights[index] > MIN_COLOUR * max(heights)]
    if len(shown) < 2:
        return []
    pixels = np.stack([channels[index][::2, ::2].ravel() for index in shown]).astype(np.float32)
    if (pixels.std(axis=1) == 0).any():
        return []
    if np.corrcoef(pixels).min() >= MAX_CORRELATION:
        return []
    return [COLOURS[index] for index in shown]


def select_channel(
    image: np.ndarray, has_bright_background: bool, is_stained: bool = False, white: float | None = None
) -> np.ndarray:
    """The channel of an image in which nuclei are bright, (H, W): see `to_grayscale`; `white` as for `haematoxylin`."""
    if is_stained:
        return haematoxylin(image, white)
    if not has_bright_background:
        return brightness(image)
    # Of colours the red channel, which haematoxylin absorbs the most.
    return invert(brightness(image[..., 0] if image.ndim == 3 else image))


def detect_bright_background(image: np.ndarray, ground: np.ndarray | None = None) -> bool:
    """Whether most of the image is nearer to its brightest than to its darkest parts.

    In stage1_train and stage1_test the median lies below 0.32 of the range on dark backgrounds, above 0.47 on bright
    ones. It is relative to the image, for 12 bits often come in files of 16. Hot pixels do not count.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        ground: (H, W) bool of `find_ground`; these pixels do not count.
    """
    channel, _, _ = clean_channel(brightness(image), ground)
    return _is_mostly_bright(values_off_ground(channel, ground))


def _is_mostly_bright(values: np.ndarray) -> bool:
    low, median, high = percentiles(values, (LOW_PERCENTILE, 50, HIGH_PERCENTILE))
    return bool(median - low > BRIGHT_MEDIAN * (high - low))


def image_kind(image: np.ndarray) -> str:
    """Names the kind of an image: "fluorescence", "brightfield" or "stained tissue".

    A dark background means fluorescence; of the others those with colour are stained tissue.

    >>> image_kind(np.zeros((4, 4), np.uint8))
    'fluorescence'
    """
    ground = find_ground(brightness(image))
    if not detect_bright_background(image, ground):
        return FLUORESCENCE
    return STAINED_TISSUE if detect_stain(image, ground) else BRIGHTFIELD


def detect_stain(image: np.ndarray, ground: np.ndarray | None = None) -> bool:
    """Whether the channels of an image, (H, W) or (H, W, 3), off its `ground` differ as those of stained tissue do."""
    if image.ndim == 2:
        return False
    red, green, blue = np.moveaxis(image, -1, 0)
    darkest = values_off_ground(np.minimum(np.minimum(red, green), blue), ground)
    brightest = values_off_ground(brightness(image), ground)
    difference = brightest.mean(dtype=float) - darkest.mean(dtype=float)
    _, white = percentile_range(brightest)
    return bool(difference > COLOUR_DIFFERENCE * white)


def to_display(image: np.ndarray) -> np.ndarray:
    """The image as people look at it: tissue in its colours, all else gray and normalized.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.

    Returns:
        (H, W, 3) uint8.
    """
    brightest = brightness(image)
    low, high = percentile_range(brightest)
    if image.ndim == 3 and image_kind(image) == STAINED_TISSUE:
        return (255 * normalize(image, 0, high)).astype(np.uint8)
    gray = (255 * normalize(brightest, low, high)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def split_data(
    ids: Sequence[str], images: Sequence[np.ndarray], fraction: float = VALIDATION_FRACTION, seed: int = SEED
) -> tuple[list[str], list[str]]:
    """Splits ids into training and validation, groups of tiles whole, kinds in proportion.

    Args:
        ids: N, one for each image.
        images: N images, (H, W) or (H, W, 3).
        fraction: wanted share of validation, in (0, 0.5]; one of round(1 / fraction) folds.
        seed: of the shuffling.

    Returns:
        training ids and validation ids, both sorted; no validation ids where all images are tiles of one picture.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"validation fraction must be above 0 and at most 0.5, not {fraction}")
    groups = group_tiles(images)
    folds = min(round(1 / fraction), len(set(groups)))
    if folds < 2:
        return sorted(ids), []
    names = [f"{image_kind(image)} {image.shape[0]}x{image.shape[1]}" for image in images]
    strata = np.unique(names, return_inverse=True)[1]
    is_rare = np.isin(strata, np.flatnonzero(np.bincount(strata) < folds))
    strata[is_rare] = strata.max() + 1
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a stratum with fewer images than folds is no fault here
        warnings.filterwarnings("ignore", "The least populated class")
        training, validation = next(splitter.split(strata, strata, groups))  # the first fold
    return sorted(ids[i] for i in training), sorted(ids[i] for i in validation)


def split_sources(
    samples: Sequence[Sample], images: Sequence[np.ndarray], seed: int = SEED
) -> tuple[list[str], list[str]]:
    """Splits each source on its own: by patients where VALIDATION_PATIENTS names them, else by `split_data`.

    So the split of a source stays the same, whatever other sources are trained on, but for pictures of which tiles or
    copies are trained on in another. Sources of one image count as one.

    Returns:
        training ids and validation ids, both sorted; the latter are none where no source has two pictures.

    Raises:
        UserError: nothing is left for one side of a source that is split by patients.
    """
    counts = Counter(sample.source for sample in samples)
    indices_of_source = defaultdict(list)  # source -> indices of its samples
    for index, sample in enumerate(samples):
        indices_of_source[sample.source if counts[sample.source] > 1 else ""].append(index)
    training = []
    validation = []
    for source, chosen in indices_of_source.items():
        ids = [samples[index].id for index in chosen]
        patients = VALIDATION_PATIENTS.get(Path(source).name.lower())
        if patients is not None:
            split = split_patients([samples[index] for index in chosen], patients)
        else:
            split = split_data(ids, [images[index] for index in chosen], seed=seed)
        training += split[0]
        validation += split[1]
    if len(indices_of_source) > 1:
        # Tiles and copies of one picture may lie in several sources.
        group_of_id = dict(zip([sample.id for sample in samples], group_tiles(images), strict=True))
        training_groups = {group_of_id[image_id] for image_id in training}
        training += [image_id for image_id in validation if group_of_id[image_id] in training_groups]
        validation = [image_id for image_id in validation if group_of_id[image_id] not in training_groups]
    return sorted(training), sorted(validation)


def split_patients(samples: Sequence[Sample], patients: Iterable[str]) -> tuple[list[str], list[str]]:
    """Training ids and validation ids, the latter of images whose names begin with one of the patients and "_".

    Raises:
        UserError: no image is of these patients, or every one is.
    """
    validation = [sample.id for sample in samples if sample.image.stem.split("_")[0] in patients]
    training = [sample.id for sample in samples if sample.id not in validation]
    if not (training and validation):
        names = ", ".join(patients)
        raise UserError(f"{samples[0].source}: expected images of the patients {names}, to validate on, and of others")
    return training, validation


def hold_out_kind(ids: Sequence[str], images: Sequence[np.ndarray], kind: str) -> tuple[list[str], list[str]]:
    """Splits off all images of one kind, to measure the network on a kind it never saw.

    Returns:
        training ids, of the other kinds, and validation ids, of this kind, both sorted.

    Raises:
        UserError: no image is of this kind, or every one is.
    """
    kinds = {image_id: image_kind(image) for image_id, image in zip(ids, images, strict=True)}
    validation = sorted(image_id for image_id in ids if kinds[image_id] == kind)
    training = sorted(image_id for image_id in ids if kinds[image_id] != kind)
    if not (training and validation):
        known = sorted(set(kinds.values()))
        raise UserError(f"cannot hold out {kind!r}: the kinds here are {known}")
    return training, validation


def find_training_data(default: str | None = None) -> list[str]:
    """The competition's training data and the tissue, where data/download.py puts them, or else `default`.

    Raises:
        UserError: the competition's data are not there and there is no default.
    """
    sources = [source for source in map(find_beside_scripts, TRAINING_DATA) if Path(source).exists()]
    tissue = [source for source in map(find_beside_scripts, TISSUE_DATA) if Path(source).exists()]
    if sources:
        return sources[:1] + tissue[:1]
    if default is None:
        raise UserError(f"no {' or '.join(TRAINING_DATA)}; python data/download.py fetches it, --data names another")
    return [default]


def format_summary(kinds: Sequence[str], labels: Sequence[np.ndarray]) -> str:
    """A table by kind of image: images, nuclei, sizes and median nucleus area in pixels."""
    lines = [f"{'kind':<16}{'images':>8}{'nuclei':>8}{'smallest':>15}{'largest':>15}  median area"]
    for kind in sorted(set(kinds)):
        chosen = [image_labels for image_labels, own_kind in zip(labels, kinds, strict=True) if own_kind == kind]
        shapes = sorted((image_labels.shape for image_labels in chosen), key=np.prod)
        smallest = format_size(shapes[0])
        largest = format_size(shapes[-1])
        areas = np.concatenate([np.bincount(image_labels.ravel())[1:] for image_labels in chosen])
        areas = areas[areas > 0]
        median = f"{np.median(areas):.0f} pixels" if areas.size else "-"
        line = f"{kind:<16}{len(chosen):>8}{areas.size:>8}{smallest:>15}{largest:>15}  {median}"
        lines.append(line)
    return "\n".join(lines)


def format_size(shape: tuple[int, ...]) -> str:
    """The size of an image (H, W) or (H, W, 3) as text, width first.

    >>> format_size((256, 320))
    '320 × 256'
    """
    return f"{shape[1]} × {shape[0]}"


def read_readable(samples: Iterable[Sample]) -> tuple[list[Sample], list[np.ndarray], list[np.ndarray]]:
    """Reads images and labels, and names on stderr the samples that cannot be read.

    Returns:
        the samples that can; their images as in the files; their labels (H, W) int32, all 0 where one has no truth.
    """
    readable = []
    images = []
    labels = []
    for sample in tqdm(samples, desc="reading", unit="image", disable=None):
        try:
            image = likely_channel(read_sample_image(sample))
            shape = image.shape[:2]
            labels.append(read_labels(sample, shape) if sample.has_truth else np.zeros(shape, np.int32))
            images.append(image)
            readable.append(sample)
        except (UserError, OSError) as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
    return readable, images, labels


def save_overview(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], kinds: Sequence[str], out: str) -> None:
    """Saves a contact sheet of up to SHOWN_IMAGES images, evenly chosen, with their outlines."""
    chosen = np.unique(np.linspace(0, len(images) - 1, SHOWN_IMAGES).round().astype(int))
    chosen = sorted(chosen, key=lambda i: (kinds[i], images[i].shape))
    pictures = [draw_thumbnails(to_display(images[i]), labels[i])[0] for i in chosen]
    titles = [f"{kinds[i]}, {format_size(images[i].shape)}" for i in chosen]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_contact_sheet(pictures, titles, out)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return preprocessed_data_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    PredictionOptions(pixel_size=args.pixel_size).check()
    samples = find_channels(find_samples(args.data, with_truth=True))
    readable, images, labels = read_readable(samples)
    if not images:
        raise UserError(f"{args.data}: none of its {len(samples)} images can be read")
    kinds = [image_kind(image) for image in images]
    print(format_summary(kinds, labels))
    print(f"{len(images)} images from {len(set(group_tiles(images)))} pictures, of which some may be tiles")
    save_overview(images, labels, kinds, args.out)
    print(f"saved the contact sheet to {args.out}")
    if args.nuclei:
        count = save_true_nuclei([sample for sample in readable if sample.has_truth], args.nuclei, args.pixel_size)
        print(f"measured {count} true nuclei in {args.nuclei}")
    return 1 if len(readable) < len(samples) else 0


if __name__ == "__main__":
    run_script(main)
