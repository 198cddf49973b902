"""Channels of an image and the statistics of their values.

In:  an image (H, W) or (H, W, 3), or one channel (H, W), any real dtype.
Out: a channel, percentiles, background and noise, and what stands out from them.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.color import hed_from_rgb, separate_stains

# Percentile normalization.
LOW_PERCENTILE = 0.5  # becomes black
HIGH_PERCENTILE = 99.8  # becomes white; nuclei may fill only 1 % of an image
# Noise.
MIN_NOISE = 1.0  # gray level, the least noise where values are whole numbers
TAIL = 6  # standard deviations; what lies farther from the median is no noise
# Few bright objects, such as debris, that hide dim nuclei on a dark background.
BRIGHT_SIGNAL = 0.25  # share of the signal at HIGH_PERCENTILE; brighter pixels are bright objects
MAX_BRIGHT_SHARE = 0.06  # share of the image that bright objects cover, at most
MAX_BRIGHT_OBJECTS = 3
BRIGHT_MARGIN = 5  # pixels around them that do not count, because they are blurred
DIM_RATIO = 5  # bright objects are so many times brighter than dim nuclei
DIM_NOISE = 10  # how far dim nuclei stand out, in standard deviations of the noise
MIN_DIM_OBJECTS = 3
MIN_OBJECT = 20  # pixels; a disk 5 pixels across


def brightness(image: np.ndarray) -> np.ndarray:
    """The brightest channel, (H, W): a fluorescent stain may be shown in any one colour."""
    if image.dtype == bool:
        image = image.astype(np.uint8)
    if image.ndim == 2:
        return image
    red, green, blue = np.moveaxis(image, -1, 0)
    return np.maximum(np.maximum(red, green), blue)  # ten times as fast as max(axis=-1)


def haematoxylin(image: np.ndarray, white: float | None = None) -> np.ndarray:
    """The amount of haematoxylin in stained tissue, by colour deconvolution.

    Args:
        image: (H, W, 3), any real dtype.
        white: `white_value` of the whole image, where this is a part of it.

    Returns:
        (H, W) float32, in arbitrary units.
    """
    white = white or white_value(image)
    rgb = image.astype(np.float32) / np.float32(white)
    return separate_stains(rgb, hed_from_rgb)[..., 0].astype(np.float32)


def white_value(image: np.ndarray) -> int:
    """The value of white: the highest of 8 or 16 bits; of other numbers 1, 255 or 65535, by what the image holds."""
    if image.dtype in (np.uint8, np.uint16):
        return np.iinfo(image.dtype).max
    highest = float(image.max(initial=0))
    return next((white for white in (1, 255, 65535) if highest <= 1.5 * white), math.ceil(highest))


def optical_density(image: np.ndarray) -> np.ndarray:
    """How much light each channel of an image (H, W, 3), any real dtype, absorbs: (H, W, 3) float32, 0 for none."""
    white = white_value(image)
    # Black has no logarithm: it counts as one level of 16 bits, or of the image where its levels are coarser.
    darkest = max(1 / white, 1 / 65535) if image.dtype.kind in "ui" else 1 / 255
    return -np.log(np.maximum(image.astype(np.float32) / np.float32(white), np.float32(darkest)))


def percentile_range(
    channel: np.ndarray, low: float = LOW_PERCENTILE, high: float = HIGH_PERCENTILE
) -> tuple[float, float]:
    """Values at two percentiles, [0, 100]; the extremes where the percentiles are one value."""
    low_value, high_value = percentiles(channel, (low, high))
    if high_value <= low_value:  # a constant image, or very few bright pixels
        low_value = channel.min()
        high_value = channel.max()
    return float(low_value), float(high_value)


def percentiles(channel: np.ndarray, percentages: Sequence[float]) -> np.ndarray:
    """`np.percentile`; of 8 bits by counting, in a fraction of the time.

    Args:
        channel: (H, W), any real dtype.
        percentages: N numbers in [0, 100].

    Returns:
        (N,) float.

    >>> percentiles(np.array([[7, 0], [200, 100]], np.uint8), (0, 50, 90)).tolist()
    [0.0, 53.5, 170.0]
    """
    if channel.dtype == bool:
        channel = channel.view(np.uint8)
    if channel.dtype != np.uint8:
        return np.percentile(channel, percentages)
    cumulative = np.cumsum(np.bincount(channel.ravel()))
    ranks = np.array(percentages) / 100 * (channel.size - 1)  # fractions lie between two pixels
    below = np.searchsorted(cumulative, np.floor(ranks), "right")
    above = np.searchsorted(cumulative, np.ceil(ranks), "right")
    return below + ranks % 1 * (above - below)


def normalize(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    """Percentile normalization: `clip((channel - low) / (high - low), 0, 1)`.

    Exposure differs from one microscope to the next by more than a factor of ten.

    Args:
        channel: any shape and real dtype.
        low: value that becomes 0.
        high: value that becomes 1.

    Returns:
        float32 in [0, 1], of the same shape.
    """
    float_type = np.result_type(channel, np.float32).type  # float32 is enough for 8 and 16 bits
    value_range = max(high - low, float(np.finfo(np.float32).tiny))
    gray = np.clip((channel - float_type(low)) / float_type(value_range), 0, 1)
    return gray.astype(np.float32, copy=False)


def values_off_ground(channel: np.ndarray, ground: np.ndarray | None) -> np.ndarray:
    """The values of a channel (H, W) that are no ground, in any shape."""
    return channel if ground is None else channel[~ground]


def measure_background(channel: np.ndarray, ground: np.ndarray | None = None) -> tuple[float, float]:
    """Median of a channel (H, W), and the standard deviation of its noise, from the differences of neighbours.

    The noise is that of the smoother half of the image; of whole numbers it is at least MIN_NOISE.
    """
    values = values_off_ground(channel, ground)
    background_level = float(np.median(values[..., ::2]))
    difference = np.abs(np.diff(channel[::2].astype(np.float32), axis=1))
    if ground is not None:
        difference = difference[~ground[::2, 1:] & ~ground[::2, :-1]]
    # Of a normal distribution the standard deviation is 1.4826 times the median absolute value; the difference of two
    # pixels varies sqrt(2) times as much as one.
    noise = 1.4826 * float(np.median(difference)) / np.sqrt(2) if difference.size else 0.0
    return background_level, max(noise, MIN_NOISE if channel.dtype.kind in "bui" else 0.0)


def stands_out(values: np.ndarray, noise: float) -> bool:
    """Whether at least MIN_OBJECT pixels lie out of the normal distribution of the others, above or below.

    Noise of any correlation and haze have the tails of a normal distribution; nuclei, bright or dark, do not.

    Args:
        values: pixels of a channel, any shape.
        noise: standard deviation of the background; the least width of the distribution.
    """
    share = min(100 * MIN_OBJECT / values.size, 5)
    # 15.87 % and 84.13 % of a normal distribution lie below the mean minus and plus one standard deviation.
    lowest, low, median, high, highest = percentiles(values, (share, 15.87, 50, 84.13, 100 - share))
    is_above = highest - median > TAIL * max(median - low, noise)
    is_below = median - lowest > TAIL * max(high - median, noise)
    return bool(is_above or is_below)


def find_dim_nuclei(channel: np.ndarray, background_level: float, noise: float, high: float) -> float | None:
    """Finds out whether a few very bright objects hide dim nuclei on a dark background.

    Args:
        channel: (H, W), any real dtype.
        background_level: value of the background.
        noise: standard deviation of the background.
        high: value that would become white.

    Returns:
        The value that becomes white for the dim nuclei; None where there are none.
    """
    signal = channel.astype(np.float32) - background_level
    is_bright = signal > BRIGHT_SIGNAL * (high - background_level)
    if is_bright.mean() > MAX_BRIGHT_SHARE or count_objects(is_bright) > MAX_BRIGHT_OBJECTS:
        return None
    rest = ~ndimage.binary_dilation(is_bright, iterations=BRIGHT_MARGIN)
    if not rest.any():
        return None
    dim = float(np.percentile(signal[rest], HIGH_PERCENTILE))
    if dim < DIM_NOISE * noise or dim * DIM_RATIO > high - background_level:
        return None
    pieces, _ = ndimage.label(signal > dim / 2)
    is_attached = np.isin(pieces, np.unique(pieces[is_bright]))  # the glow and the processes of bright objects
    if count_objects((pieces > 0) & rest & ~is_attached) < MIN_DIM_OBJECTS:
        return None
    return background_level + dim


def count_objects(mask: np.ndarray) -> int:
    """Connected pieces of at least MIN_OBJECT pixels in a mask, (H, W) bool."""
    pieces, _ = ndimage.label(mask)
    return int((np.bincount(pieces.ravel())[1:] >= MIN_OBJECT).sum())
