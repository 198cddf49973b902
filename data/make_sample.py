"""Draws the small sample in data/sample: twelve pictures of nuclei, and the mask of every nucleus.

In:  nothing but a seed. No pixel is taken from a photograph.
Out: OUT/ID/images/ID.png and OUT/ID/masks/nucleus_NN.png (8 bit, 0 or 255, one file per nucleus),
     the layout of the 2018 Data Science Bowl (https://www.kaggle.com/c/data-science-bowl-2018).

A picture is made in the order in which a microscope makes it: shapes, chromatin, fluorescence or
stain, the blur of the lens, the noise of the camera, 8 bits. Sizes, brightness and noise were
chosen by eye beside the competition's pictures. As there, the mask of a nucleus ends where its
blurred rim has fallen to about half.

    python data/make_sample.py
    python data/make_sample.py --out another_sample --seed 7
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy import ndarray
from numpy.random import Generator
from scipy import ndimage
from skimage.io import imsave

OUT = Path(__file__).resolve().parent / "sample"
SEED = 2018
SMALLEST = 20  # pixels; of a nucleus cut by the picture's edge a smaller rest is left out
TRIES = 100  # places tried for each nucleus wanted; a crowded picture may hold fewer
SLOPE = 0.4  # radians; the way in which fibres, and the nuclei between them, point

LAMP = (214, 222, 220)  # red, green and blue levels of bare glass, 8 bits
# Absorbance of red, green and blue light by one unit of haematoxylin and of eosin (Ruifrok and
# Johnston 2001, as in skimage.color.hed_from_rgb) and of the violet of purple-on-purple tissue.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.41, 0.91, 0.05))

# What is there: height, width, nuclei, radius in pixels, then other arguments of `place_nuclei`.
NUCLEI = {
    "fluorescence_dim_1": (256, 256, 40, 9.5, dict(clumping=1.2)),
    "fluorescence_dim_2": (360, 360, 32, 23, dict(aspect=1.5, press=0.03)),
    "fluorescence_bright_1": (256, 256, 55, 6.5, dict(aspect=1.5, clumping=0.8)),
    "fluorescence_bright_2": (256, 320, 45, 11, dict(aspect=1.4, press=0.03)),
    "fluorescence_crowded_1": (256, 256, 56, 11.5, dict(aspect=1.3, press=0.12, clumping=1.5)),
    "fluorescence_crowded_2": (260, 347, 72, 12, dict(aspect=1.4, press=0.1, clumping=1)),
    "fluorescence_small_1": (256, 256, 80, 4.6, dict(aspect=1.4, press=0.05, clumping=1.5)),
    "fluorescence_mixed_1": (260, 347, 80, 7, dict(aspect=1.5, spread=0.22, press=0.05)),
    "tissue_pink_1": (256, 320, 55, 10, dict(aspect=1.6, spread=0.18, press=0.03, swing=0.3)),
    "tissue_white_1": (256, 320, 65, 10.5, dict(aspect=1.3, spread=0.2, press=0.08)),
    "tissue_purple_1": (256, 320, 50, 11, dict(aspect=1.7, press=0.08, clumping=0.9, swing=0.3)),
    "brightfield_gray_1": (360, 360, 32, 8, dict(aspect=1.2, clumping=0)),
}
# How its chromatin looks: arguments of `fill_nuclei`.
CHROMATIN = {
    "fluorescence_dim_1": dict(texture=0.28, grain=1.7),
    "fluorescence_dim_2": dict(texture=0.13, grain=1.5, vary=0.13),
    "fluorescence_bright_1": dict(texture=0.08, grain=1.5, bright=0.05),
    "fluorescence_bright_2": dict(texture=0.13, grain=1.3, bright=0.05),
    "fluorescence_crowded_1": dict(texture=0.13, grain=1.5, vary=0.2),
    "fluorescence_crowded_2": dict(texture=0.15, grain=1.4, vary=0.2, bright=0.03),
    "fluorescence_small_1": dict(texture=0.08, grain=1.2, bright=0.04),
    "fluorescence_mixed_1": dict(texture=0.12, grain=1.5, bright=0.25),
    "tissue_pink_1": dict(texture=0.28, grain=1.2),
    "tissue_white_1": dict(texture=0.28, grain=1.5, vary=0.32),
    "tissue_purple_1": dict(texture=0.32, grain=1.1),
    "brightfield_gray_1": dict(texture=0.1, grain=1.2, vary=0.15),
}
# How it is lit: arguments of `fluoresce`, `stain` or `shade`.
LIGHT = {
    "fluorescence_dim_1": dict(peak=42, background=2.5, blur=1.5, haze=0.3),
    "fluorescence_dim_2": dict(peak=23, background=4.5, blur=1.3, haze=0.2),
    "fluorescence_bright_1": dict(peak=85, background=6, blur=1.0),
    "fluorescence_bright_2": dict(peak=120, background=9, blur=1.1),
    "fluorescence_crowded_1": dict(peak=75, background=3, blur=1.1, haze=0.2),
    "fluorescence_crowded_2": dict(peak=105, background=12, blur=1.1),
    "fluorescence_small_1": dict(peak=105, background=13, blur=0.8),
    "fluorescence_mixed_1": dict(peak=85, background=20, blur=1.1, haze=0.2),
    "tissue_pink_1": dict(nuclear=(0.45, 0.15, 0), background=(0.03, 0.17, 0), bare=0.3, blur=1.0),
    "tissue_white_1": dict(nuclear=(0.36, 0.32, 0), background=(0.03, 0.12, 0), bare=0.8, blur=1.6),
    "tissue_purple_1": dict(nuclear=(0, 0, 0.6), background=(0, 0, 0.15), bare=0.0, blur=1.1),
    "brightfield_gray_1": dict(cell=30),
}


def draw(image_id: str, seed: int = SEED) -> tuple[ndarray, ndarray]:
    """Draws one picture of the sample.

    Args:
        image_id: A key of `NUCLEI`; the word before its first `_` is the kind of microscopy.
        seed: Another seed, another picture of the same kind.

    Returns:
        image, `(H, W, 4)` uint8 with an opaque alpha, as the competition's files are, except
        `(H, W, 3)` for tissue_pink and `(H, W)` for brightfield; labels, `(H, W)` int32.
    """
    # Seeded by name: a picture added to the sample leaves the others as they are.
    rng = np.random.default_rng([seed, *image_id.encode()])
    height, width, count, radius, shapes = NUCLEI[image_id]
    labels, depth, gap = place_nuclei(rng, (height, width), count, radius, **shapes)
    nuclei = fill_nuclei(rng, labels, depth, gap, **CHROMATIN[image_id])
    expose = {"fluorescence": fluoresce, "tissue": stain, "brightfield": shade}
    image = expose[image_id.split("_")[0]](rng, nuclei, **LIGHT[image_id])
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if not image_id.startswith(("tissue_pink", "brightfield")):
        color = image if image.ndim == 3 else np.dstack([image] * 3)
        image = np.dstack([color, np.full(labels.shape, 255, np.uint8)])
    return image, labels


def place_nuclei(
    rng: Generator,
    shape: tuple[int, int],
    count: int,
    radius: float,
    aspect: float = 1.2,
    spread: float = 0.12,
    press: float = 0.0,
    clumping: float = 0.5,
    swing: float = 3.0,
) -> tuple[ndarray, ndarray, ndarray]:
    """Scatters nuclei one by one over the places where there is room.

    Args:
        rng: Source of chance.
        shape: Height and width in pixels.
        count: Nuclei wanted.
        radius: Typical radius in pixels; its logarithm varies by up to twice `spread`.
        aspect: Typical ratio of the long axis to the short one.
        press: Part of a nucleus that may lie on its neighbours; they share it, and touch.
        clumping: 0 scatters evenly, 2 leaves wide empty space between groups.
        swing: Standard deviation of the long axes around `SLOPE`, in radians.

    Returns:
        labels, `(H, W)` int32; depth, `(H, W)` float, roughly the pixels to the rim; gap,
        `(H, W)` float, depth in its own nucleus less that in the next one: 0 on their border.
    """
    reach = int(3 * radius)  # nuclei are drawn on a wider canvas, whose margin is cut off
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    labels = np.zeros(np.add(shape, 2 * reach), np.int32)
    depth = np.zeros(labels.shape)
    second = np.zeros(labels.shape)  # depth in the next nucleus
    crowd = np.exp(clumping * (smooth_noise(rng, shape, min(shape) / 8) - 1))
    for _ in range(count * TRIES):
        centre = rng.uniform(0, shape)
        angle = rng.normal(SLOPE, swing)
        size = radius * np.exp(spread * rng.uniform(-2, 2))
        long = np.sqrt(aspect) ** rng.uniform(0, 2)
        waves = 0.05 * rng.standard_normal((3, 2))
        corner = centre.astype(int)
        if rng.uniform() > crowd[tuple(corner)]:
            continue
        window = tuple(slice(low, low + 2 * reach + 1) for low in corner)
        own = blob_depth(rows - centre[0] % 1, columns - centre[1] % 1, size, long, angle, waves)
        # Nuclei that do not touch still need two pixels of background for their blurred rims.
        if (labels[window][own > (0 if press else -2)] > 0).mean() > press:
            continue
        second[window] = np.maximum(second[window], np.minimum(own, depth[window]))
        labels[window][own > depth[window]] = labels.max() + 1
        depth[window] = np.maximum(depth[window], own)
        if labels.max() == count:
            break
    inner = (slice(reach, -reach), slice(reach, -reach))
    return keep_pieces(labels[inner]), depth[inner], (depth - second)[inner]


def blob_depth(rows: ndarray, columns: ndarray, radius: float, long: float, angle: float, waves: ndarray) -> ndarray:
    """Pixels (roughly) from each point to the rim of a bent ellipse; negative outside.

    The ellipse is `long * long` times as long as wide; `waves` are the amplitudes (cosine, sine)
    of the harmonics 2, 3, … of its rim, as parts of the radius.
    """
    along = (columns * np.cos(angle) + rows * np.sin(angle)) / long
    across = (rows * np.cos(angle) - columns * np.sin(angle)) * long
    theta = np.arctan2(across, along)
    rim = np.ones_like(theta)
    for k, (cosine, sine) in enumerate(waves, start=2):
        rim += (cosine * np.cos(k * theta) + sine * np.sin(k * theta)) * (2 / k) ** 1.5
    return radius * rim - np.hypot(along, across)


def keep_pieces(labels: ndarray) -> ndarray:
    """Keeps the largest piece of every nucleus, drops the tiny ones, numbers the rest from 1."""
    kept = np.zeros_like(labels)
    for label in np.unique(labels[labels > 0]):
        pieces, _ = ndimage.label(labels == label)
        areas = np.bincount(pieces.ravel())[1:]
        if areas.max() >= SMALLEST:
            kept[pieces == areas.argmax() + 1] = kept.max() + 1
    return kept


def fill_nuclei(
    rng: Generator,
    labels: ndarray,
    depth: ndarray,
    gap: ndarray,
    texture: float,
    grain: float,
    vary: float = 0.25,
    bright: float = 0.0,
) -> ndarray:
    """Fills the nuclei with chromatin, about 1 in the middle of a typical one.

    Args:
        rng, labels, depth, gap: As for and from `place_nuclei`.
        texture, grain: Standard deviation of the logarithm of brightness within a nucleus, and the
            size of a grain of chromatin in pixels (sigma of a Gaussian).
        vary: Standard deviation of the logarithm of brightness between nuclei.
        bright: Part of the nuclei that are condensed, and 2.3 times as bright.

    Returns:
        `(H, W)` float, 0 outside the nuclei.
    """
    brightness = np.exp(vary * np.clip(rng.standard_normal(labels.max() + 1), -2, 2))
    brightness *= np.where(rng.uniform(size=brightness.size) < bright, 2.3, 1.0)
    brightness[0] = 0
    # A nucleus is a lens: thinner at its rim, and so paler. Two that touch thin out side by side.
    thick = 0.72 + 0.28 * (1 - np.exp(-np.maximum(depth, 0) / 3))
    border = 1 - 0.4 * np.exp(-((gap / 1.5) ** 2))
    chromatin = np.exp(texture * smooth_noise(rng, labels.shape, grain))
    return brightness[labels] * thick * border * chromatin


def fluoresce(
    rng: Generator, nuclei: ndarray, peak: float, background: float, blur: float, haze: float = 0.12
) -> ndarray:
    """Bright nuclei on a dark background, `(H, W)` float in gray levels.

    `peak` is the level of a typical nucleus, `background` that of the empty field; `blur` is the
    lens's, in pixels; `haze` the part of the light that comes from out of focus.
    """
    spread = ndimage.gaussian_filter
    glow = 0.6 * spread(nuclei, 3 * blur) + 0.4 * spread(nuclei, 14)
    light = (1 - haze) * spread(nuclei, blur) + haze * glow
    light += 0.006 * np.maximum(1 + fibres(rng, nuclei.shape), 0)  # cytoplasm shines a little
    signal = (peak * light + background) * vignette(rng, nuclei.shape, 0.25)
    # Shot noise grows with the root of the light; the rest is the camera's reading noise.
    return signal + rng.standard_normal(nuclei.shape) * np.sqrt(0.025 * signal + 0.05)


def stain(rng: Generator, nuclei: ndarray, nuclear: tuple, background: tuple, bare: float, blur: float) -> ndarray:
    """Stained tissue by Beer-Lambert, `LAMP * 10 ** -absorbance`; `(H, W, 3)` float.

    `nuclear` and `background` are the amounts of the `STAINS` in a typical nucleus and in the tissue
    between the nuclei; `bare` is the part of the glass without tissue; `blur` is in pixels.
    """
    shape = nuclei.shape
    spread = ndimage.gaussian_filter
    tissue = 1 + 0.06 * fibres(rng, shape) + 0.08 * smooth_noise(rng, shape, 4)
    # Where the glass is bare, a nucleus still has its own cytoplasm around it.
    land = smooth_noise(rng, shape, 18) + 4 * spread(np.sign(nuclei), 8)
    tissue *= 0.05 + 0.95 / (1 + np.exp(-5 * (land - np.quantile(land, bare))))
    tissue += 0.05 * spread(np.exp(smooth_noise(rng, shape, 8)), 3)  # cells out of focus
    dense = 0.85 * spread(nuclei, blur) + 0.15 * spread(nuclei, 4)
    amounts = dense[..., None] * np.array(nuclear) + tissue[..., None] * np.array(background)
    seen = LAMP * vignette(rng, shape, 0.06)[..., None] * 10 ** -(amounts @ np.array(STAINS))
    return seen + 2 * spread(rng.standard_normal((*shape, 3)), (0.6, 0.6, 0))


def shade(rng: Generator, nuclei: ndarray, cell: float) -> ndarray:
    """Dark nuclei, each in its pale flat cell of radius `cell`; `(H, W)` float in gray levels.

    Cells lie over one another, and where they do their absorbances add up.
    """
    shape = nuclei.shape
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    cells = np.zeros(shape)
    pieces, count = ndimage.label(nuclei > 0)
    for row, column in ndimage.center_of_mass(nuclei > 0, pieces, range(1, count + 1)):
        row, column = (row, column) + rng.normal(0, cell / 5, 2)
        size = cell * rng.uniform(0.7, 1.3)
        waves = 0.11 * rng.standard_normal((7, 2))
        inside = blob_depth(rows - row, columns - column, size, 1.1, rng.uniform(0, 3), waves)
        cells += rng.uniform(0.03, 0.09) / (1 + np.exp(-inside / 0.8))
    cells *= np.exp(0.08 * smooth_noise(rng, shape, 6) + 0.08 * smooth_noise(rng, shape, 1))
    absorbance = ndimage.gaussian_filter(0.32 * nuclei + cells, 0.9)
    return 229 * vignette(rng, shape, 0.03) * 10**-absorbance + 2 * rng.standard_normal(shape)


def smooth_noise(rng: Generator, shape: tuple[int, int], sigma: float) -> ndarray:
    """White noise blurred by `sigma` pixels, brought back to mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def fibres(rng: Generator, shape: tuple[int, int]) -> ndarray:
    """Wavy strands along the way in which aligned nuclei point; mean 0, standard deviation 1."""
    strands = ndimage.gaussian_filter(rng.standard_normal(shape), (1.5, 14), mode="wrap")
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    bent = rows - np.tan(SLOPE) * columns + 6 * smooth_noise(rng, shape, 35)
    strands = ndimage.map_coordinates(strands, [bent, columns], order=1, mode="grid-wrap")
    return (strands - strands.mean()) / strands.std()


def vignette(rng: Generator, shape: tuple[int, int], loss: float) -> ndarray:
    """Uneven light: 1 at a random point near the middle, up to about `loss` less at the corners."""
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    row, column = rng.uniform(-0.4, 0.4, 2)
    return 1 - loss * ((rows - row) ** 2 + (columns - column) ** 2) / 2


def write_sample(out: Path, seed: int) -> int:
    """Writes the twelve pictures and their masks below `out`; returns the bytes written."""
    if seed < 0:
        raise ValueError(f"--seed must be 0 or more, not {seed}")
    for path in find_sample(out):  # another seed may have left more masks than this one draws
        path.unlink()
    total = 0
    for image_id in NUCLEI:
        image, labels = draw(image_id, seed)
        files = {out / image_id / "images" / f"{image_id}.png": image}
        for label in range(1, labels.max() + 1):
            mask = np.where(labels == label, 255, 0).astype(np.uint8)
            files[out / image_id / "masks" / f"nucleus_{label:02d}.png"] = mask
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            imsave(path, pixels, check_contrast=False)
            total += path.stat().st_size
        print(f"{image_id:24}{image.shape!s:>16}{labels.max():5} nuclei")
    return total


def find_sample(out: Path) -> list[Path]:
    """Lists the files of an older sample in `out`; ValueError where it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    files = [path for path in sorted(out.rglob("*")) if not path.is_dir()]
    for path in files:
        image_id, *rest = path.relative_to(out).parts
        ours = rest == ["images", f"{image_id}.png"] or (rest[:-1] == ["masks"] and path.match("nucleus_*.png"))
        if image_id not in NUCLEI or not ours:
            raise ValueError(
                f"{out} holds {path.relative_to(out)}, which is no part of a sample; "
                "name a new or empty folder with --out"
            )
    return files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: data/sample)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Draws and writes the sample; returns the exit code."""
    args = parse_args(argv)
    try:
        total = write_sample(args.out, args.seed)
    except (ValueError, OSError) as error:
        print(f"make_sample.py: {error}", file=sys.stderr)
        return 2
    print(f"saved {len(NUCLEI)} images and their masks, {total / 1e6:.2f} MB, to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
