"""Opens the files of microscopes through packages that are installed only where such files are to be read.

In:  .czi (package pylibCZIrw), .nd2 (nd2), .lif (liffile), and .mrxs, .vms, .vmu, .bif, .svslide (openslide), on disk.
Out: the scenes of a file: the length of their axes, the names of channels, the size of a pixel, and how to read them.
A file may hold several scenes, each an image of its own with the id ID_s02, counted from 0 in the order of the file:
the scenes of a .czi, the positions of an .nd2, the images of a .lif, and of its tile scans each tile.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data.files import File, UserError, decoding

SLIDE_ENDINGS = (".mrxs", ".vms", ".vmu", ".bif", ".svslide")
PACKAGES = {  # ending -> the module that reads such files, and what pip installs
    ".czi": ("pylibCZIrw", "pylibCZIrw"),
    ".nd2": ("nd2", "nd2"),
    ".lif": ("liffile", "liffile"),
    **dict.fromkeys(SLIDE_ENDINGS, ("openslide", "openslide-python openslide-bin")),
}
MICROSCOPE_ENDINGS = tuple(PACKAGES)
MIN_LEVEL_SIDE = 256  # pixels of the shorter side of the smallest level of a .czi
MICROMETRES_A_METRE = 1e6


@dataclass(frozen=True)
class Scene:
    """One image of an open file.

    `read(level, start, stop, c, z, t)` gives rows `start` to `stop` of a level of a plane: (stop - start, W),
    (stop - start, W, 3), or (stop - start, W, 4) with alpha; it raises what the package raises.
    """

    sizes: dict[str, int]  # length of the axes T, Z and C where it is not 1, and of axes that are not known here
    levels: tuple[tuple[int, int], ...]  # (H, W) of each level of the pyramid, the largest first
    read: Callable[..., np.ndarray]
    names: tuple[str, ...] = ()  # names of the channels; () where the file does not tell them apart
    sides: tuple[float, float] | None = None  # width and height of a pixel, micrometres
    reads_regions: bool = False  # whether `read` decodes no more than these rows


def is_microscope_file(file: File) -> bool:
    """Whether the ending of a file's name is that of a microscope's format."""
    return file.name.lower().endswith(MICROSCOPE_ENDINGS)


def missing_package(file: File) -> str:
    """What pip is to install before a file with this ending can be read; "" where nothing is missing."""
    module, package = PACKAGES.get(Path(file.name).suffix.lower(), ("", ""))
    if not module:
        return ""
    try:
        importlib.import_module(module)
    except ImportError:
        return package
    return ""


def check_package(file: File) -> None:
    """Raises UserError where the package that reads a file is missing."""
    package = missing_package(file)
    if package:
        raise UserError(f"{file}: a package that reads it is missing; pip install {package}")


@contextmanager
def open_scenes(file: File) -> Iterator[list[Scene]]:
    """Yields the scenes of a file; they can be read as long as it is open.

    Raises:
        UserError: its package is missing, it lies in an archive, or it is damaged.
        OSError: it cannot be opened.
    """
    check_package(file)
    if not isinstance(file, Path):
        raise UserError(f"{file}: such files are not read in an archive; unpack it")
    list_scenes = {".czi": _list_czi, ".nd2": _list_nd2, ".lif": _list_lif}.get(file.suffix.lower(), _list_slide)
    with ExitStack() as stack:
        with decoding(file):
            file.open("rb").close()  # for the system's own words, where it cannot be opened
            scenes = list_scenes(file, stack)
        if not scenes:
            raise UserError(f"{file}: no images in it")
        yield scenes


@contextmanager
def open_scene(file: File, index: int | None = None) -> Iterator[Scene]:
    """Yields a scene of a file, None: the only one. Raises as `open_scenes`, and UserError where there is none."""
    with open_scenes(file) as scenes:
        if index is None and len(scenes) > 1:
            raise UserError(f"{file}: it holds {len(scenes)} images; save the one that is meant as a file of its own")
        if (index or 0) >= len(scenes):
            raise UserError(f"{file}: it was replaced and has no such image now; run the command again")
        yield scenes[index or 0]


def _longer_than_one(sizes: dict[str, int]) -> dict[str, int]:
    return {axis: size for axis, size in sizes.items() if size > 1}


def _first_distinct(*lists: Sequence[str | None]) -> tuple[str, ...]:
    """The first of several lists of names that tells all channels apart; () where none does."""
    for names in lists:
        if all(names) and len(set(names)) == len(names):
            return tuple(names)
    return ()


def _list_czi(path: Path, stack: ExitStack) -> list[Scene]:
    from pylibCZIrw import czi

    document = stack.enter_context(czi.open_czi(str(path)))
    box = document.total_bounding_box_no_pyramid
    sizes = _longer_than_one({axis: stop for axis, (_, stop) in box.items() if axis not in "SXY"})
    rectangles = document.scenes_bounding_rectangle_no_pyramid or {None: document.total_bounding_rectangle_no_pyramid}
    try:
        metadata = ElementTree.fromstring(document.raw_metadata)
    except ElementTree.ParseError:  # the pixels may be whole
        metadata = ElementTree.Element("none")
    channels = metadata.findall("Metadata/Information/Image/Dimensions/Channels/Channel")
    dyes = [channel.findtext("Fluor") or channel.findtext("DyeName") for channel in channels]
    names = _first_distinct(dyes, [channel.get("Name") for channel in channels])
    sides = [metadata.findtext(f"Metadata/Scaling/Items/Distance[@Id='{axis}']/Value") for axis in "XY"]
    sides = tuple(float(side) * MICROMETRES_A_METRE for side in sides) if all(sides) else None
    scenes = []
    for index, rectangle in rectangles.items():
        shorter = min(rectangle.h, rectangle.w)
        count = max(int(math.log2(shorter / MIN_LEVEL_SIDE)), 0) + 1
        levels = tuple((rectangle.h >> level, rectangle.w >> level) for level in range(count))
        read = partial(_read_czi, document, index, rectangle)
        scenes.append(Scene(sizes, levels, read, names, sides, reads_regions=True))
    return scenes


def _read_czi(
    document, scene_index: int | None, rectangle, level: int, start: int, stop: int, c: int, z: int, t: int
) -> np.ndarray:
    step = 2**level
    region = (rectangle.x, rectangle.y + start * step, rectangle.w // step * step, (stop - start) * step)
    values = document.read(region, {"C": c, "Z": z, "T": t}, scene_index, 1 / step)
    return values[..., 0] if values.shape[-1] == 1 else values[..., ::-1]  # blue, green, red in the file


def _list_nd2(path: Path, stack: ExitStack) -> list[Scene]:
    import nd2

    file = stack.enter_context(nd2.ND2File(path))
    attributes = file.attributes
    samples = file.components_per_channel
    shape = (attributes.channelCount or 1, attributes.heightPx, attributes.widthPx, samples)
    sizes = {axis: size for axis, size in file.sizes.items() if axis not in "PCSYX"}
    sizes = _longer_than_one(sizes | {"C": shape[0], "S": 1 if samples in (1, 3, 4) else samples})
    try:
        channels = file.metadata.channels or []
    except Exception:  # the package does not know all that Nikon writes; the pixels may be whole
        channels = []
    sides = None
    if channels and all(channels[0].volume.axesCalibrated[:2]):
        sides = tuple(file.voxel_size()[:2])
    names = _first_distinct([channel.channel.name for channel in channels])
    frames = {tuple(indices.get(axis, 0) for axis in "PTZ"): frame for frame, indices in enumerate(file.loop_indices)}
    positions = range(file.sizes.get("P", 1))
    return [
        Scene(sizes, (shape[1:3],), partial(_read_nd2, file, frames, shape, position), names, sides)
        for position in positions
    ]


def _read_nd2(
    file, frames: dict, shape: tuple, position: int, _level: int, start: int, stop: int, c: int, z: int, t: int
) -> np.ndarray:
    frame = file.read_frame(frames[position, t, z]).reshape(shape)  # (C, H, W, samples)
    return np.array(frame[c, start:stop])[..., 0 if shape[-1] == 1 else slice(None)]  # a copy outlives the file


def _list_lif(path: Path, stack: ExitStack) -> list[Scene]:
    import liffile

    file = stack.enter_context(liffile.LifFile(path))
    scenes = []
    for image in file.images:
        sizes = dict(image.sizes)
        shape = (sizes.pop("Y", 1), sizes.pop("X", 1))
        tiles = sizes.pop("M", 1)
        if sizes.get("S") == 3:
            del sizes["S"]
        described = image.xml_element.findall("Data/Image/ImageDescription/Channels/ChannelDescription")
        described.sort(key=lambda channel: int(channel.get("BytesInc", 0)))
        dyes = [channel.findtext("ChannelProperty[Key='DyeName']/Value") for channel in described]
        names = _first_distinct(dyes, [channel.get("LUTName") for channel in described])
        axes = [image.coords.get(axis, ()) for axis in "XY"]  # metres, of the first and of the last pixel too
        sides = None
        if all(map(len, axes)):
            sides = tuple(abs(axis[-1] - axis[0]) / (len(axis) - 1) * MICROMETRES_A_METRE for axis in axes)
        for tile in range(tiles):
            scenes.append(Scene(_longer_than_one(sizes), (shape,), partial(_read_lif, image, tile), names, sides))
    return scenes


def _read_lif(image, tile: int, _level: int, start: int, stop: int, c: int, z: int, t: int) -> np.ndarray:
    indices = {"M": tile, "C": c, "Z": z, "T": t}
    if "S" in image.sizes:  # only `asarray` knows that rows of colours may be padded
        return image.asarray()[tuple(indices.get(axis, slice(None)) for axis in image.sizes)][start:stop]
    return image.frame(**{axis: index for axis, index in indices.items() if axis in image.sizes})[start:stop]


def _list_slide(path: Path, stack: ExitStack) -> list[Scene]:
    import openslide

    slide = stack.enter_context(openslide.OpenSlide(path))
    bounds = [slide.properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if None in bounds:
        bounds = (0, 0, *slide.dimensions)
    left, top, width, height = map(int, bounds)  # the scanned region, at level 0
    levels = tuple((round(height / scale), round(width / scale)) for scale in slide.level_downsamples)
    sides = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    sides = tuple(map(float, sides)) if all(sides) else None
    return [Scene({}, levels, partial(_read_slide, slide, left, top, levels), (), sides, reads_regions=True)]


def _read_slide(
    slide, left: int, top: int, levels: tuple, level: int, start: int, stop: int, *_plane: int
) -> np.ndarray:
    position = (left, top + round(start * slide.level_downsamples[level]))
    return np.asarray(slide.read_region(position, level, (levels[level][1], stop - start)))
