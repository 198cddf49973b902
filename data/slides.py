"""Large images in strips: the network's answer without seams, and one number for each nucleus.

In:  functions that read rows of gray, predict a part of it, and separate its nuclei.
Out: strips of probabilities and of labels, from the top to the bottom of the image.
"""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.metrics import contingency_table
from tqdm import tqdm

from data.channels import Channels
from data.nuclei import local_contrast

STRIP = 512  # rows of a strip
TILE = 1024  # columns of a strip that go through the network at once
CONTEXT_ROWS = 128  # rows above and below a strip that are in view when its nuclei are separated
WINDOW = 384  # pixels, side of each of the nine windows that `sample_windows` takes
WINDOWS_ACROSS = 3
READING = threading.Lock()  # a file has one position, and `prefetch` reads beside `measure_contrast`

ReadGray = Callable[[int, int], np.ndarray]  # rows from, to -> (rows, W) float32 in [0, 1]
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # gray -> nucleus, border
Separate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # nucleus, border -> labels
LabelStrips = Iterator[tuple[np.ndarray, np.ndarray]]  # labels (rows, W) int32, probabilities (2, rows, W)


def iterate_strips(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the strips of an image that is read by its rows, such as `data.images.open_rows` gives."""
    for row in range(0, rows.shape[0], STRIP):
        yield rows[row : row + STRIP]


def sample_windows(shape: tuple[int, int], read_gray: ReadGray) -> np.ndarray:
    """The gray of nine windows of a large image, or of three of a narrow one, put together as if they were one image.

    Args:
        shape: (H, W) of the large image.
        read_gray: reads rows of it.

    Returns:
        at most (3 * WINDOW, 3 * WINDOW) float32 in [0, 1].
    """
    height, width = shape
    tops = np.unique(np.linspace(0, max(height - WINDOW, 0), WINDOWS_ACROSS).astype(int))
    lefts = np.unique(np.linspace(0, max(width - WINDOW, 0), WINDOWS_ACROSS).astype(int))
    bands = []
    for top in tops:
        gray = read_gray(top, min(top + WINDOW, height))
        bands.append(np.hstack([gray[:, left : left + WINDOW] for left in lefts]))
    return np.vstack(bands)


def read_windows(image: np.ndarray | Channels) -> np.ndarray | Channels:
    """Nine windows of a large image, (H, W), (H, W, 3) or several channels, put together as if they were one image."""
    if isinstance(image, Channels):
        return Channels(image.names, np.stack([read_windows(plane) for plane in image.planes]))
    return sample_windows(image.shape[:2], lambda start, stop: image[start:stop])


def predict_strips(
    shape: tuple[int, int], read_gray: ReadGray, predict: Predict, halo: int, name: str
) -> Iterator[np.ndarray]:
    """Predicts an image strip by strip, each pixel as if the image had been predicted whole.

    Each tile goes through the network with a halo around it, as wide as an answer depends on its surroundings, so that
    no seam shows.

    Args:
        shape: (H, W) of the image.
        read_gray: reads rows of it.
        predict: the network.
        halo: pixels around a tile, a multiple of the network's total downsampling, so that the poolings of a tile begin
            where those of the whole image do.
        name: shown beside the progress bar.

    Yields:
        (2, rows, W) float32 in [0, 1] of STRIP rows each: nucleus and border.
    """
    height, width = shape
    tile_count = math.ceil(height / STRIP) * math.ceil(width / TILE)
    with tqdm(total=tile_count, desc=name, unit="tile", disable=None, leave=False) as bar:
        for row in range(0, height, STRIP):
            top = max(row - halo, 0)
            bottom = min(row + STRIP + halo, height)
            with READING:
                gray = read_gray(top, bottom)
            strip = np.empty((2, min(STRIP, height - row), width), np.float32)
            for column in range(0, width, TILE):
                left = max(column - halo, 0)
                right = min(column + TILE + halo, width)
                tile = strip[:, :, column : column + TILE]
                rows = slice(row - top, row - top + tile.shape[1])
                columns = slice(column - left, column - left + tile.shape[2])
                for channel, probability in enumerate(predict(gray[:, left:right])):
                    tile[channel] = probability[rows, columns]
                bar.update()
            yield strip


def prefetch(strips: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields strips while a thread makes the next one, so that the network works beside the numbering of nuclei."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, strips, None)
        while (strip := upcoming.result()) is not None:
            upcoming = pool.submit(next, strips, None)
            yield strip
            del strip  # it is large where an image is wide


def label_strips(strips: Iterator[np.ndarray], separate: Separate) -> LabelStrips:
    """Numbers the nuclei of a whole image, strip by strip.

    A nucleus is numbered in the strip where it begins, with CONTEXT_ROWS of the strips above and below in view, and
    keeps its number in the strips below.

    Args:
        strips: of `predict_strips`.
        separate: numbers the nuclei of a part.

    Yields:
        labels (rows, W) int32 and probabilities (2, rows, W) of each strip.
    """
    strips = prefetch(strips)
    strip = next(strips)
    count = 0  # nuclei until now
    above = strip[:, :0]  # rows of the strip before that are in view
    # Labels of these rows, and of the rows below the strip where its nuclei reach already.
    labelled = np.zeros((0, strip.shape[2]), np.int32)
    while strip is not None:
        below = next(strips, None)
        start = above.shape[1]
        stop = start + strip.shape[1]
        views = [above, strip]
        if below is not None:
            views.append(below[:, :CONTEXT_ROWS])
        window = np.concatenate(views, axis=1)
        del views, above, strip  # they are large where an image is wide
        labels, count = number_window(window, labelled, start, stop, count, separate)
        above = window[:, stop - CONTEXT_ROWS : stop].copy()
        labelled = labels[stop - CONTEXT_ROWS :].copy()
        strip = below
        yield labels[start:stop], window[:, start:stop]
        del labels, window


def measure_contrast(strips: LabelStrips, read_gray: ReadGray, contrasts: list[float]) -> LabelStrips:
    """Passes the strips of `label_strips` on, and adds the `local_contrast` of each to `contrasts`, once per nucleus.

    So strips with few pieces of noise do not outvote one with many nuclei.
    """
    row = 0
    for labels, probabilities in strips:
        stop = row + len(labels)
        count = np.count_nonzero(np.bincount(labels.ravel())[1:])
        if count:
            with READING:
                gray = read_gray(row, stop)
            contrasts += [local_contrast(gray, labels)] * count
        yield labels, probabilities
        row = stop


def number_window(
    window: np.ndarray, labelled: np.ndarray, start: int, stop: int, count: int, separate: Separate
) -> tuple[np.ndarray, int]:
    """Numbers the nuclei of a strip and of what is in view above and below it.

    The first strip of 512 rows sees the rows down to 640. A nucleus in the rows 500 to 530 begins in it and gets a new
    number there. The second strip, which sees the rows from 384 on, finds that number and gives no other. A nucleus in
    the rows 520 to 550 begins below the first strip, which leaves it to the second.

    Args:
        window: (2, rows, W) float32, nucleus and border.
        labelled: (fewer rows, W) int32, labels that the first of these rows already have.
        start: first row of the strip.
        stop: row after its last.
        count: nuclei until now.
        separate: numbers the nuclei of the window.

    Returns:
        labels (rows, W) int32, and the count with the nuclei that begin in the strip.
    """
    local = separate(*window)  # numbered from 1 in every window
    labels = np.zeros_like(local)
    labels[: len(labelled)] = labelled
    unlabelled = np.where(labels == 0, local, 0)
    unlabelled[:start] = 0
    # A nucleus that reaches down from the rows above keeps its number in the new rows.
    numbers, is_same = match_labelled(local, labelled)
    local_areas = np.bincount(local.ravel(), minlength=len(numbers))
    new_areas = np.bincount(unlabelled.ravel(), minlength=len(numbers))
    areas_until_stop = np.bincount(local[:stop].ravel(), minlength=len(numbers))
    # A nucleus gets a new number if it is none of those that have one, if most of its pixels have
    # no number yet, and if it begins above the end of this strip: else the next strip numbers it.
    # All others take the number that they overlap, or become background.
    begins_here = ~is_same & (new_areas > local_areas / 2) & (areas_until_stop > 0)
    begins_here[0] = False
    numbers[begins_here] = count + np.arange(1, begins_here.sum() + 1)
    return labels + numbers[unlabelled], int(numbers.max(initial=count))


def match_labelled(local: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the numbered nucleus that each nucleus of a window lies on.

    Args:
        local: (rows, W) int32, up to K nuclei.
        labelled: (fewer rows, W) int32, labels that the first of these rows already have.

    Returns:
        numbers: (K + 1,) int32, the number that most of each nucleus has, 0 for none.
        is_same: (K + 1,) bool, whether most of that numbered nucleus also lies on this one: then the two are the same
            nucleus.
    """
    numbers = np.zeros(local.max() + 1, np.int32)
    is_same = np.zeros(len(numbers), bool)
    if len(labelled):
        shared = contingency_table(local[: len(labelled)], labelled, ignore_labels=(0,), sparse_type="array")
        numbers[: shared.shape[0]] = shared.argmax(axis=1)
        is_same = shared.argmax(axis=0)[numbers] == np.arange(len(numbers))
    return numbers, (numbers > 0) & is_same
