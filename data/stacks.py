"""Reads the planes of stacks: files with channels, z and time: OME-TIFFs, hyperstacks of ImageJ, files of microscopes.

In:  the samples of `data.sources`.
Out: a sample for each scene and each plane of z and time; of a sample one image, or its channels with their names.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from data.channels import Channels, fill_channel_names, read_channel_names
from data.files import File, UserError, decoding, open_file
from data.images import SceneRows, open_rows, read_image, read_scene
from data.layouts import Plane, count_of
from data.microscopes import Scene, is_microscope_file, open_scene, open_scenes
from data.options import PredictionOptions
from data.pixels import MAX_PIXELS, check_image, drop_alpha, find_level, turn_image
from data.sources import Sample, check_unique_ids, say_once
from data.tiff_series import count_unmarked_levels, list_images, main_series
from data.tiffs import TiffRows, check_page, convert_colours, has_alpha, read_tiff_header, tiff_orientation

STACK_ENDINGS = (".tif", ".tiff", ".qptiff", ".scn")
MAX_STACK_BYTES = 2**32  # size of the largest stack that is decoded whole, where it can only be

ReadPlane = Callable[[dict[str, int]], np.ndarray]  # indices of C, Z and T -> (H, W) or (H, W, 3)


@dataclass(frozen=True)
class Dimensions:
    """The axes of a stack, and how long they are."""

    axes: str  # axes of the whole series, such as "TZCYX"; Z, T, C, Y, X, and S for colours
    shape: tuple[int, ...]
    names: tuple[str, ...]  # names of the channels; () for one channel

    def length(self, axis: str) -> int:
        """Planes along an axis, 1 where the stack does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def holds(self, plane: Plane) -> bool:
        """Whether the stack has this plane."""
        return (plane.z or 0) < self.length("Z") and (plane.t or 0) < self.length("T")


def expand_planes(samples: Iterable[Sample], project: str | None) -> list[Sample]:
    """Makes a sample of each plane of z and time of the stacks among samples: ID_z03, ID_t12 or ID_t12_z03, from 0.

    Of a file with several scenes, each is an image or a stack of its own: ID_s02, ID_s02_z03. Such are the scenes of
    `data.microscopes`, the positions of an OME-TIFF, the scans of a slide of Leica's, and pages that differ in size.

    Args:
        samples: of `find_samples`.
        project: "max", "mean" or "sum" makes one plane of all along z; None leaves them apart.

    Returns:
        Samples, sorted by id; those of a stack have a `plane`, those of several scenes a `scene`.

    Raises:
        UserError: two planes or images share one id.
    """
    groups = [split_sample(sample, project) for sample in samples]
    expanded = [sample for group in groups for sample in group]
    check_unique_ids(expanded)
    counts = [len(group) for group in groups if len(group) > 1]
    if counts:
        noun = "planes" if all(sample.scene is None for sample in expanded) else "scenes and planes"
        has_depth = any(sample.plane is not None and sample.plane.z is not None for sample in expanded)
        advice = "; --project max makes one image of all along z" if has_depth else ""
        print(f"{count_of(len(counts), 'stack')}: {sum(counts)} {noun}, each an image of its own{advice}")
    return sorted(expanded, key=lambda sample: sample.id)


def find_channels(samples: Iterable[Sample]) -> list[Sample]:
    """Lets samples with truth be read by their channels.

    A stack of one plane becomes the sample of that plane. One of several stays as it is; reading it raises UserError.
    """
    groups = [(sample, split_sample(sample, None)) for sample in samples]
    return [split[0] if len(split) == 1 else sample for sample, split in groups]


def split_sample(sample: Sample, project: str | None) -> list[Sample]:
    """A sample for each scene and plane of one file; `project` as in `expand_planes`. What has masks is no stack."""
    scenes = [None] if sample.masks else read_scene_dimensions(sample.image)
    split = []
    for scene, dimensions in enumerate(scenes):
        of_scene = sample if len(scenes) == 1 else sample_of_scene(sample, scene, len(scenes))
        if dimensions is None:
            split.append(of_scene)
        else:
            split += [sample_of_plane(of_scene, dimensions, plane) for plane in list_planes(dimensions, project)]
    return split


def list_planes(dimensions: Dimensions, project: str | None) -> list[Plane]:
    """The planes of a stack; z or t is None where there is one, or one is made of all."""
    times = range(dimensions.length("T")) if dimensions.length("T") > 1 else [None]
    depths = range(dimensions.length("Z")) if dimensions.length("Z") > 1 and project is None else [None]
    return [Plane(z, t) for t, z in itertools.product(times, depths)]


def sample_of_scene(sample: Sample, scene: int, count: int) -> Sample:
    """The sample of one of several scenes, with its own id."""
    digits = len(str(count - 1))
    return replace(sample, id=f"{sample.id}_s{scene:0{digits}}", scene=scene)


def sample_of_plane(sample: Sample, dimensions: Dimensions, plane: Plane) -> Sample:
    """The sample of one plane, with its own id."""
    name = sample.id
    for axis, index in (("T", plane.t), ("Z", plane.z)):
        if index is not None:
            digits = len(str(dimensions.length(axis) - 1))
            name += f"_{axis.lower()}{index:0{digits}}"
    return replace(sample, id=name, plane=plane)


def read_scene_dimensions(file: File) -> list[Dimensions | None]:
    """The dimensions of each image of a file, None for one without planes.

    None alone stands for a file of one image, and for one whose reading will say what is wrong with it.
    """
    try:
        if is_microscope_file(file):
            with open_scenes(file) as scenes:
                return [describe_scene(scene) for scene in scenes]
        if not file.name.lower().endswith(STACK_ENDINGS):
            return [None]
        with open_file(file) as stream:
            tiff = read_tiff_header(stream, file)
            if tiff is None:
                return [None]
            with decoding(file):
                count = len(list_images(tiff))
                level_count = count_unmarked_levels(tiff)
            if level_count:
                levels = count_of(level_count, "smaller image")
                say_once(f"{file}: left out {levels} as levels of a pyramid; save what is no level as its own file")
            return [describe_dimensions(tiff, file, scene if count > 1 else None) for scene in range(count)]
    except (UserError, OSError):
        return [None]


def describe_scene(scene: Scene, size: tuple[int, int] | None = None) -> Dimensions | None:
    """The dimensions of a scene, or of a level of it with this `size`; None for one image, and an unreadable one."""
    if not scene.sizes or scene.sizes.keys() - set("TZC"):
        return None
    axes = [axis for axis in "TZC" if axis in scene.sizes]
    shape = (*(scene.sizes[axis] for axis in axes), *(size or scene.levels[0]))
    names = fill_channel_names(scene.names, scene.sizes["C"]) if "C" in axes else ()
    return Dimensions("".join(axes) + "YX", shape, names)


def describe_dimensions(tiff: tifffile.TiffFile, file: File, scene: int | None) -> Dimensions | None:
    """The dimensions of an image of an open TIFF; None where it is gray or RGB, whatever pages lie beside it.

    Raises:
        UserError: the description of its pages is damaged.
    """
    with decoding(file):
        series = main_series(tiff, scene)
        axes, shape = _name_axes(series)
        image_count = sum(other.shape == series.shape for other in tiff.series)
    if image_count > 1 and series.kind != "ome":
        raise UserError(f"{file}: it holds {image_count} images; save each as a file of its own")
    sizes = dict(zip(axes, shape, strict=False))
    if len(sizes) < len(shape) or not {"Y", "X"} <= sizes.keys():
        raise UserError(f"{file}: its axes {series.axes} are not known")
    if not sizes.keys() & set("ZTC") and series.keyframe is series[0]:
        return None  # its page can be read as the image of a file; of Micro-Manager's positions only the first can
    names = ()
    if "C" in sizes:
        with decoding(file):
            known = read_channel_names(tiff, scene, sizes["C"])
        names = fill_channel_names(known, sizes["C"])
    return Dimensions(axes, shape, names)


def _name_axes(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """The axes of a series and their lengths, with Z for one that is not explained; of length 1 only Y and X."""
    pairs = zip(series.axes, series.shape, strict=True)
    kept = [(axis, length) for axis, length in pairs if length > 1 or axis in "YX"]
    axes = "".join(axis for axis, _ in kept)
    keyframe = series.keyframe
    is_colour = keyframe.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.SEPARATED)
    if "S" in axes and not is_colour and not has_alpha(keyframe):
        axes = axes.replace("S", "C" if "C" not in axes else "Z")
    elif "S" in axes and is_colour:
        axes = axes.replace("C", "Z")  # pages in colours are no channels of each other
    for unknown in set(axes) - set("TZCYXS"):
        axes = axes.replace(unknown, "Z")
    return axes, tuple(length for _, length in kept)


@contextmanager
def open_sample(sample: Sample, options: PredictionOptions) -> Iterator[np.ndarray | TiffRows | SceneRows | Channels]:
    """Yields the rows of an image, as `open_rows`; a plane of a stack is read whole.

    Raises:
        UserError: the image cannot be read, or has no such channel or level.
        OSError: it cannot be opened.
    """
    if sample.plane is None:
        with open_rows(sample.image, options.level or 0, sample.scene) as rows:
            yield rows
    else:
        yield read_sample_image(sample, options.project, options.level or 0)


def read_whole(sample: Sample, options: PredictionOptions) -> np.ndarray | Channels:
    """The image of a sample, (H, W), (H, W, 3) or several channels; raises as `open_sample`."""
    with open_sample(sample, options) as rows:
        return rows if isinstance(rows, Channels) else rows[:]


def read_sample_image(sample: Sample, project: str | None = None, level: int = 0) -> np.ndarray | Channels:
    """Reads the image of a sample: (H, W), (H, W, 3), or several channels.

    Args:
        sample: of `expand_planes`.
        project: as `expand_planes` was given it.
        level: of the pyramid of a microscope's file, 0 the largest; only for the planes of stacks.

    Raises:
        UserError, OSError: as `read_image`.
    """
    file = sample.image
    if sample.plane is None:
        return read_image(file, sample.scene)
    if is_microscope_file(file):
        with open_scene(file, sample.scene) as scene:
            height, width = find_level(scene.levels, level, file)
            read_plane = functools.partial(_read_plane_of_scene, scene, file, level, height)
            return _read_channels(read_plane, describe_scene(scene, (height, width)), sample, project)
    if level:
        raise UserError(f"{file}: it is a stack; --level is for slides, whose planes have levels")
    with open_file(file) as stream:
        tiff = read_tiff_header(stream, file)
        dimensions = None if tiff is None else describe_dimensions(tiff, file, sample.scene)
        series = None if dimensions is None else main_series(tiff, sample.scene)
        return _read_channels(functools.partial(_read_plane, series, dimensions, file), dimensions, sample, project)


def _read_channels(
    read_plane: ReadPlane, dimensions: Dimensions | None, sample: Sample, project: str | None
) -> np.ndarray | Channels:
    """The plane of a sample with all its channels."""
    file = sample.image
    if dimensions is None or not dimensions.holds(sample.plane):
        raise UserError(f"{file}: it was replaced and has no such plane now; run the command again")
    if dimensions.length("Y") * dimensions.length("X") > MAX_PIXELS:
        size = f"{dimensions.length('Y')}×{dimensions.length('X')}"
        raise UserError(f"{file}: a plane of {size} pixels is too large to be read at once")
    planes = [
        check_image(_read_channel(read_plane, dimensions, channel, sample.plane, project), file)
        for channel in range(dimensions.length("C"))
    ]
    if not dimensions.names:
        return planes[0]
    planes = [plane.max(axis=-1) if plane.ndim == 3 else plane for plane in planes]  # of a colour camera
    return Channels(dimensions.names, np.stack(planes))


def _read_channel(
    read_plane: ReadPlane, dimensions: Dimensions, channel: int, plane: Plane, project: str | None
) -> np.ndarray:
    """One channel of a plane, (H, W) or (H, W, 3); a projection along z where the plane has none."""
    if plane.z is not None or dimensions.length("Z") == 1:
        return read_plane({"C": channel, "Z": plane.z or 0, "T": plane.t or 0})
    depths = range(dimensions.length("Z"))
    planes = (read_plane({"C": channel, "Z": z, "T": plane.t or 0}) for z in depths)
    first = next(planes)
    if project == "max":
        for other in planes:
            first = np.maximum(first, other)
        return first
    total = first.astype(np.float32)
    for other in planes:
        total += other
    if project == "mean":
        total /= np.float32(len(depths))
    return total  # "sum"; without a projection each plane has its z


def _read_plane_of_scene(scene: Scene, file: File, level: int, height: int, indices: dict[str, int]) -> np.ndarray:
    """(H, W) or (H, W, 3) of a level of a scene at the indices of channel, z and time."""
    return read_scene(scene, file, level, 0, height, indices["C"], indices["Z"], indices["T"])


def _read_plane(
    series: tifffile.TiffPageSeries, dimensions: Dimensions, file: File, indices: dict[str, int]
) -> np.ndarray:
    """(H, W) or (H, W, 3) of a series at the indices of channel, z and time; reads one page where it can.

    Of a series "TZCYX" of shape (5, 3, 2, 512, 512) with gray pages, the first three axes lead to a page: there are
    5 * 3 * 2 pages, and channel 0 of z 1 and time 4 is page (4 * 3 + 1) * 2 + 0 = 26.
    """
    with decoding(file):
        keyframe = series.keyframe
        page_count = len(series.pages)
        orientation = tiff_orientation(keyframe)
    leading = max(len(dimensions.shape) - keyframe.ndim, 0)  # axes along which there are pages
    planes = math.prod(dimensions.shape[:leading])
    axes = dimensions.axes[leading:]
    position = [indices[axis] for axis in dimensions.axes[:leading]]
    number = int(np.ravel_multi_index(position, dimensions.shape[:leading])) if leading else 0
    if leading and page_count == planes:
        values = _read_page(series, number, file)
    elif leading and page_count == 1 and series.dataoffset is not None:
        values = _read_contiguous(series, number, file)
    elif math.prod(dimensions.shape) * series.dtype.itemsize > MAX_STACK_BYTES:
        raise UserError(f"{file}: too large to be read at once; save its planes apart")
    else:
        with decoding(file):
            values = series.asarray().reshape(dimensions.shape)
        axes = dimensions.axes
    if values.ndim != len(axes):
        raise UserError(f"{file}: its pages are not as it describes them; replace or remove it")
    # A stack that was decoded whole has other planes too, "ZYXC" for example; its plane has the axes "YX".
    values = values[tuple(slice(None) if axis in "YXS" else indices[axis] for axis in axes)]
    axes = "".join(axis for axis in axes if axis in "YXS")
    order = [axes.index(axis) for axis in "YXS" if axis in axes]  # rows, columns, colours
    values = np.transpose(values, order)
    if keyframe.photometric != PHOTOMETRIC.PALETTE or not keyframe.parent.is_imagej:  # ImageJ counts with the numbers
        values = convert_colours(values, keyframe, file)
    return drop_alpha(turn_image(values, orientation))


def _read_page(series: tifffile.TiffPageSeries, number: int, file: File) -> np.ndarray:
    """One page of a series; 0 where it is left out, as an OME-TIFF may."""
    shape = series.keyframe.shape
    with decoding(file):
        page = series.pages[number]
    if page is None:
        return np.zeros(shape, series.dtype)
    check_page(page.keyframe, file)  # it may be another than that of the series
    if page.shape != shape:
        raise UserError(f"{file}: its pages differ in shape; replace or remove it")
    with decoding(file):
        return page.asarray()


def _read_contiguous(series: tifffile.TiffPageSeries, number: int, file: File) -> np.ndarray:
    """One plane of a series whose first page stands for all, as in ImageJ's stacks of more than 4 GB."""
    shape = series.keyframe.shape
    size = math.prod(shape)
    tiff = series.keyframe.parent
    dtype = series.dtype.newbyteorder(tiff.byteorder)
    with decoding(file):
        values = tiff.filehandle.read_array(dtype, size, series.dataoffset + number * size * dtype.itemsize)
    return values.reshape(shape).astype(series.dtype, copy=False)
