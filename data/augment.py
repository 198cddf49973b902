"""Draws augmented crops of an image: moved and scaled with their labels, and changed in their intensity.

In:  gray (H, W) float32 in [0, 1] and labels (H, W) int32 of a whole image.
Out: gray (size, size) float32 in [0, 1] and labels (size, size) int32.
"""

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, uniform_filter
from skimage import transform
from skimage.color import hed_from_rgb
from skimage.measure import label

from data.crowding import paste_nuclei
from data.images import halve
from data.intensity import normalize, percentile_range

# Geometry.
NUCLEUS_SHARE = 0.5  # share of the crops that are centred on a nucleus: large images are mostly background
CROWDED_SHARE = 0.4  # share of the crops that get more nuclei, which touch others
CENTRE_TRIES = 10  # places tried for the centre of such a crop
MAGNIFICATIONS = (0.5, 2.0)  # limits of the factor of size
MAX_STRETCH = 0.15  # logarithm of the stretch of each axis
HALVE_BELOW = 2**-0.5  # factor of size below which neighbouring pixels are averaged first
MIRROR_MARGIN = 8  # pixels around a window, which averaging and interpolation look at
# Shares of the optical density in green and in blue that are added to haematoxylin, which is mostly that in red.
GREEN_SHARES = (-0.3, 1.5)  # at 1.5 strong eosin counts about half as much as haematoxylin
BLUE_SHARES = (-0.3, 0.4)
# Shares of the crops that each change of intensity is applied to.
DIMMED_SHARE = 0.4
HAZY_SHARE = 0.5
TILTED_SHARE = 0.3
BLURRED_SHARE = 0.3
NOISY_SHARE = 0.5  # for each of the two sorts of noise
REDUCED_CONTRAST_SHARE = 0.5
# How far intensity is changed.
KEPT_NUCLEI = 0.5  # share of the nuclei of a dimmed crop that keep their brightness
DIMMED_SIGNALS = (0.2, 1)  # share of its signal that a dimmed nucleus keeps
SMOOTHING = 1.5  # pixels, standard deviation of the filter that keeps dimming from adding an edge
GAMMAS = (0.5, 1.5)  # above 1 dim rims fade
BLURS = (0.3, 1.5)  # standard deviation in pixels
CONTRASTS = (0.6, 1.0)  # share of the range from black to white that is used
MAX_SLOPE = 0.3  # share of the light that is lost or won from the middle to one side
MAX_NOISE = 0.06  # standard deviation of the camera's noise
PHOTONS = (15, 500)  # counted in a white pixel; with few of them large nuclei look grained
HAZE = (0.1, 0.7)  # share of the light that the densest patch takes
PATCH_DISTANCES = (6, 64)  # pixels from one patch to the next
SURROUNDINGS = 41  # pixels, side of the square around a pixel; twice the width of a common nucleus

Crop = tuple[np.ndarray, np.ndarray]  # gray and labels


def draw_crop(
    gray: np.ndarray,
    labels: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    has_wide_nuclei: bool = False,
    fixed_edges: bool = False,
) -> Crop:
    """Draws one augmented crop of an image.

    Args:
        gray: (H, W) float32 in [0, 1].
        labels: (H, W) int32.
        size: side of the crop in pixels.
        rng: the only source of chance.
        has_wide_nuclei: whether half of the crops are to show the image at half its size.
        fixed_edges: whether to leave out what moves the edge of a nucleus (blur and gamma).

    Returns:
        gray (size, size) float32 in [0, 1] and labels (size, size) int32.
    """
    gray, labels = warp(gray, labels, size, rng, has_wide_nuclei)
    if rng.random() < CROWDED_SHARE:
        gray, labels = paste_nuclei(gray, labels, rng)
    return change_intensity(gray, labels, rng, fixed_edges), labels


def vary_stain(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes the gray of stained tissue as if it were stained in other hues.

    Where the colours of a slide's stains are not those that the colour deconvolution assumes, a share of eosin counts
    as haematoxylin. The share of another slide is drawn.

    Args:
        density: (H, W, 3) float32 of `optical_density`.
        rng: the only source of chance.

    Returns:
        (H, W) float32 in [0, 1].
    """
    red, green, blue = hed_from_rgb[:, 0]
    green += rng.uniform(*GREEN_SHARES)
    blue += rng.uniform(*BLUE_SHARES)
    channel = np.float32(red) * density[..., 0]
    channel += np.float32(green) * density[..., 1]
    channel += np.float32(blue) * density[..., 2]
    np.maximum(channel, 0, out=channel)  # as `haematoxylin` does
    return normalize(channel, *percentile_range(channel))


def warp(
    gray: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator, has_wide_nuclei: bool = False
) -> Crop:
    """Flips, turns, scales and stretches image and labels by one matrix."""
    scale = 1.0
    if has_wide_nuclei and rng.random() < 0.5:
        scale = 0.5
    angle = rng.integers(4) * np.pi / 2
    if rng.random() < 0.5:
        angle += rng.uniform(0, np.pi / 2)
    scale *= draw_log_uniform(rng, MAGNIFICATIONS)
    stretch = np.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2))
    stretch[0] *= rng.choice([-1, 1])  # a flip
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # From places in the crop to places in the image. `*` stretches the columns of the matrix: rows and columns of the
    # crop are stretched first, then turned.
    matrix = turn * stretch / scale
    centre = draw_centre(labels, matrix, size, rng)
    # Places are counted from the corner of the image, pixels from the middle of the first.
    offset = centre - 0.5 - matrix @ np.full(2, (size - 1) / 2)
    shape = (size, size)
    labels = affine_transform(labels, matrix, offset, shape, order=0, mode="mirror")
    corners = offset + np.array([(0, 0), (0, size), (size, 0), (size, size)]) @ matrix.T
    if (corners < 0).any() or (corners > gray.shape).any():
        labels = label(labels, background=0, connectivity=2).astype(np.int32)  # a mirrored nucleus is another one
        if scale < HALVE_BELOW:
            # What is outside is mirrored before it is halved, as that of the labels is.
            start = np.floor(corners.min(axis=0)).astype(int) - MIRROR_MARGIN
            stop = np.ceil(corners.max(axis=0)).astype(int) + MIRROR_MARGIN
            gray = gray[np.ix_(*map(mirror_indices, start, stop, gray.shape))]
            offset = offset - start
    while scale < HALVE_BELOW:
        # Pixel i of the halved image lies at 2 i + 0.5 of the image; half of the scale is done.
        gray = halve(gray)
        matrix = matrix / 2
        offset = (offset - 0.5) / 2
        scale = 2 * scale
    # For order 1 scikit-image takes half of scipy's time; it counts (column, row), and its mode
    # "reflect" is scipy's "mirror".
    homogeneous = np.eye(3)
    homogeneous[:2, :2] = matrix[::-1, ::-1]
    homogeneous[:2, 2] = offset[::-1]
    gray = transform.warp(gray, homogeneous, output_shape=shape, mode="reflect", clip=False)
    return gray, labels


def mirror_indices(start: int, stop: int, length: int) -> np.ndarray:
    """The pixels that show at start to stop of an axis of this length, which is mirrored at its first and last pixel.

    >>> mirror_indices(-2, 6, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if length == 1:
        return np.zeros(stop - start, int)
    indices = np.arange(start, stop) % (2 * (length - 1))
    return np.minimum(indices, 2 * (length - 1) - indices)


def draw_centre(labels: np.ndarray, matrix: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the middle of a crop, (row, column); half of the time it tries to hit a nucleus."""
    # The window lies inside the image as far as it fits; what is outside is mirrored.
    reach = np.abs(matrix).sum(axis=1) * size / 2
    reach = np.minimum(reach, np.array(labels.shape) / 2)
    on_nucleus = rng.random() < NUCLEUS_SHARE
    for _ in range(CENTRE_TRIES):
        centre = rng.uniform(reach, np.array(labels.shape) - reach)
        row, column = centre.astype(int)
        if not on_nucleus or labels[row, column]:
            break
    return centre


def draw_log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draws a factor between two bounds; its logarithm is uniform."""
    return np.exp(rng.uniform(*np.log(bounds)))


def change_intensity(
    gray: np.ndarray, labels: np.ndarray, rng: np.random.Generator, fixed_edges: bool = False
) -> np.ndarray:
    """Varies the brightness of nuclei, haze, illumination, blur, gamma and contrast, and adds two sorts of noise.

    A sharp nucleus that is blurred here keeps its outline, which is then at half of its brightness; people outline
    truly soft nuclei wider. `fixed_edges` leaves out blur and gamma, so that a training can end with outlines as people
    draw them.
    """
    if rng.random() < DIMMED_SHARE:
        gray = dim_nuclei(gray, labels, rng)
    if rng.random() < HAZY_SHARE:
        gray = add_haze(gray, rng)
    if rng.random() < TILTED_SHARE:
        gray = tilt_illumination(gray, rng)
    if not fixed_edges and rng.random() < BLURRED_SHARE:
        gray = gaussian_filter(gray, rng.uniform(*BLURS))
    gray = np.clip(gray, 0, 1)
    if not fixed_edges:
        gray = gray ** np.float32(draw_log_uniform(rng, GAMMAS))
    if rng.random() < NOISY_SHARE:
        gray = add_photon_noise(gray, rng)
    if rng.random() < REDUCED_CONTRAST_SHARE:
        # Nothing is cut off at black or white: the dim rim of a nucleus belongs to it.
        contrast = rng.uniform(*CONTRASTS)
        gray = gray * contrast + rng.uniform(0, 1 - contrast)
    if rng.random() < NOISY_SHARE:
        gray = gray + rng.uniform(0, MAX_NOISE) * rng.standard_normal(gray.shape, np.float32)
    return np.clip(gray, 0, 1).astype(np.float32)


def dim_nuclei(gray: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the brightness of some nuclei towards what is around them: dim nuclei beside bright ones."""
    if not labels.any() or labels.all():
        return gray
    # The mean of the background nearby: in a stained cell that is its cytoplasm, not the glass.
    background = (labels == 0).astype(np.float32)
    share = uniform_filter(background, SURROUNDINGS) + 1e-3
    median = np.median(gray[labels == 0])
    surroundings = (uniform_filter(gray * background, SURROUNDINGS) + 1e-3 * median) / share
    count = labels.max() + 1
    factors = np.where(rng.random(count) < KEPT_NUCLEI, 1, rng.uniform(*DIMMED_SIGNALS, count))
    factors[0] = 1
    factor = gaussian_filter(factors[labels].astype(np.float32), SMOOTHING)
    return surroundings + (gray - surroundings) * factor


def add_haze(gray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds smooth bright patches, like cytoplasm that takes stain or light from out of focus.

    The patches absorb (or glow, in fluorescence) before the nuclei, so that the network tells nuclei from background by
    their edges, not by one brightness for the whole crop.
    """
    distance = draw_log_uniform(rng, PATCH_DISTANCES)
    count = int(max(gray.shape) / distance) + 2
    rows = _patch_profiles(gray.shape[0], distance, count)  # (count, H)
    columns = _patch_profiles(gray.shape[1], distance, count)  # (count, W)
    # Not by @, whose threads would keep the cores busy that the network trains on.
    patches = np.einsum("ar,ab->rb", rows, rng.random((count, count), np.float32))
    patches = np.einsum("rb,bc->rc", patches, columns)
    patches -= patches.min()
    haze = np.float32(rng.uniform(*HAZE)) * patches / patches.max()
    return 1 - (1 - np.clip(gray, 0, 1)) * (1 - haze)


def _patch_profiles(side: int, distance: float, count: int) -> np.ndarray:
    """(count, side) float32: soft bumps along one side, `distance` pixels apart."""
    offsets = np.arange(side) / distance - np.arange(count)[:, None]
    return np.exp(-2 * offsets**2, dtype=np.float32)


def tilt_illumination(gray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lets the light fall off from one side to the other."""
    slope = np.float32(rng.uniform(-MAX_SLOPE, MAX_SLOPE, 2))
    rows = np.linspace(-1, 1, gray.shape[0], dtype=np.float32)
    columns = np.linspace(-1, 1, gray.shape[1], dtype=np.float32)
    return gray * (1 + slope[0] * rows[:, None] + slope[1] * columns)


def add_photon_noise(gray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scatters every pixel by the root of its count of photons.

    The normal distribution takes a quarter of the time of `rng.poisson`.
    """
    photons = np.float32(draw_log_uniform(rng, PHOTONS))
    noise = rng.standard_normal(gray.shape, np.float32)
    return np.maximum(gray + np.sqrt(gray / photons) * noise, 0)
