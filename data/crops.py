"""Draws the crops that a network is fitted to, and makes the target of its output.

In:  the gray (H, W) float32 in [0, 1] and the labels (H, W) int32 of whole images.
Out: batches of gray (batch, size, size, 1) and target (batch, size, size, 3), float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

from data.augment import Crop, draw_crop, vary_stain
from data.empty_crops import draw_empty_crop
from data.nuclei import common_diameter
from data.options import TrainingOptions

# Share of the batches, the last ones, without blur and gamma, which change how bright a nucleus is at its outline.
FIXED_EDGES_SHARE = 0.2
VARIED_STAIN_SHARE = 0.5  # share of the crops of stained tissue; the others are as prediction sees them
EMPTY_SHARE = 0.04  # share of the crops that have no nuclei and no image
WIDE_DIAMETER = 33  # pixels; images of wider nuclei are shown at half their size too
BORDER_WIDTH = 5  # pixels; a pixel is border where the square of this side around it holds two nuclei


class TrainingImage(NamedTuple):
    """A whole image as the network sees it, and its nuclei."""

    gray: np.ndarray  # (H, W) float32 in [0, 1]
    labels: np.ndarray  # (H, W) int32
    density: np.ndarray | None = None  # from `optical_density`, (H, W, 3), for stained tissue to train on
    has_signal: bool = True  # as of `PredictionJob`, for the images that are predicted whole
    debris: np.ndarray | None = None  # likewise


class Crops:
    """Augmented crops for the whole training, drawn by (seed, batch id) and nothing else.

    A batch holds gray (batch, size, size, 1) and targets (batch, size, size, 3), as in
    `make_target`. Each of several processes draws every n-th batch; the batches of epochs that are
    done are left out. The last ones, FIXED_EDGES_SHARE, have neither blur nor gamma.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        probabilities: Sequence[float],
        options: TrainingOptions,
        *,
        epochs_done: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.images = images
        self.probabilities = probabilities  # that of each image to be drawn
        self.options = options
        self.batch_size = options.batch_size // processes
        self.has_wide_nuclei = [common_diameter(image.labels) > WIDE_DIAMETER for image in images]
        batch_count = options.epochs * options.steps_per_epoch * processes
        self.batch_ids = range(process, batch_count, processes)[epochs_done * options.steps_per_epoch :]
        self.fixed_edges_from = (1 - FIXED_EDGES_SHARE) * batch_count

    def __len__(self) -> int:
        return len(self.batch_ids)

    def draw_images(self, index: int) -> tuple[np.ndarray, np.random.Generator]:
        """Indices of the images of a batch, and the generator that also augments them."""
        rng = np.random.default_rng([self.options.seed, self.batch_ids[index]])
        return rng.choice(len(self.images), self.batch_size, p=self.probabilities), rng

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_indices, rng = self.draw_images(index)
        fixed_edges = self.batch_ids[index] >= self.fixed_edges_from
        grays = []
        targets = []
        for image_index in image_indices:
            gray, labels = self.draw(image_index, rng, fixed_edges)
            grays.append(gray)
            targets.append(make_target(labels))
        return np.stack(grays)[..., None], np.stack(targets)

    def draw(self, image_index: int, rng: np.random.Generator, fixed_edges: bool) -> Crop:
        """Gray and labels of one crop, of the image or of none."""
        size = self.options.crop_size
        if rng.random() < EMPTY_SHARE:
            return draw_empty_crop(size, rng, fixed_edges)
        gray, labels, density = self.images[image_index][:3]
        if density is not None and rng.random() < VARIED_STAIN_SHARE:
            gray = vary_stain(density, rng)
        is_wide = self.has_wide_nuclei[image_index]
        return draw_crop(gray, labels, size, rng, has_wide_nuclei=is_wide, fixed_edges=fixed_edges)


def draw_probabilities(groups: Sequence[str], shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """How often each image is drawn: a group of n images, of one kind and source, in proportion to sqrt(n).

    Within such a group the same goes for the sizes, for a size often means a microscope: the k images of one size share
    sqrt(n) * sqrt(k) / (sum of sqrt(k) over the sizes of the group) equally. So what is rare is seen often enough to be
    learned, and not so often that its few images are learned by heart.

    Args:
        groups: N names of kind and source, one for each image.
        shapes: N of (H, W), one for each image.

    Returns:
        (N,) float, sums to 1.
    """
    groups = np.array(groups)
    sizes = np.array([str(shape) for shape in shapes])
    weights = np.zeros(len(groups))
    for group in set(groups):
        chosen = np.flatnonzero(groups == group)
        _, size_indices, counts = np.unique(sizes[chosen], return_inverse=True, return_counts=True)
        # The last division shares the weight of a size, sqrt(count), among its count images.
        weights[chosen] = np.sqrt(len(chosen)) / np.sqrt(counts).sum() / np.sqrt(counts[size_indices])
    return weights / weights.sum()


def make_target(labels: np.ndarray) -> np.ndarray:
    """What the network should output.

    Args:
        labels: (H, W) int32.

    Returns:
        (H, W, 3) float32 of 0 and 1: nucleus; border, where the square of BORDER_WIDTH pixels around a pixel holds two
        nuclei; and whether the pixel counts (1 everywhere).
    """
    no_nucleus = np.iinfo(np.int32).max
    highest = maximum_filter(labels, BORDER_WIDTH)
    lowest = minimum_filter(np.where(labels, labels, no_nucleus), BORDER_WIDTH)
    target = np.ones((*labels.shape, 3), np.float32)
    target[..., 0] = labels > 0
    target[..., 1] = (highest > 0) & (lowest < highest)
    return target


def whole_image(gray: np.ndarray, labels: np.ndarray, multiple: int) -> Crop:
    """A validation image at its own size as a batch of one, padded to a size that the network takes.

    Returns:
        gray (1, H', W', 1) and target (1, H', W', 3), H' and W' the next multiples.
    """
    padding = [(0, -side % multiple) for side in gray.shape]
    gray = np.pad(gray, padding, "symmetric")  # as if the image went on
    target = np.pad(make_target(labels), [*padding, (0, 0)])  # padded pixels do not count
    return gray[None, ..., None], target[None]
