"""Images of several channels that are no colours, and which of them may show the nuclei.

In:  channels with their names, and which one the user wants.
Out: one channel (H, W), or those that may be meant.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tifffile

from data.files import UserError
from data.tiff_series import find_ome_image

COLOURS = ("red", "green", "blue")  # the channels of an RGB image
# Names of nuclear stains and markers; case does not count.
NUCLEAR_NAMES = re.compile(
    r"dapi|hoechst|h33342|h33258|draq[57]|nucle|\bdna\b|sytox|to-?pro|propidium|7-?aad|h2b|histone", re.IGNORECASE
)
# How Bio-Formats labels a slice, as in "c:1/2 z:1/5 - cells.lif": no name of a channel.
SLICE_LABEL = re.compile(r"[czt]:\d+/\d+")


class Channels(NamedTuple):
    """An image of several channels that are no colours."""

    names: tuple[str, ...]  # as in the file, or "channel 1", "channel 2" …
    planes: np.ndarray  # (C, H, W), any real dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.planes.shape[1:]


def fill_channel_names(known: Sequence[str], count: int) -> tuple[str, ...]:
    """The known names of channels, with numbers from 1 for those without one, or for all where two share a name.

    >>> fill_channel_names(["DAPI", "", ""], 3)
    ('DAPI', 'channel 2', 'channel 3')
    """
    numbered = tuple(f"channel {number}" for number in range(1, count + 1))
    if len(known) != count:
        return numbered
    names = tuple(name or number for name, number in zip(known, numbered, strict=True))
    return names if len(set(names)) == count else numbered


def read_channel_names(tiff: tifffile.TiffFile, scene: int | None, count: int) -> list[str]:
    """Names of the channels from OME-XML or from ImageJ's labels, as far as there are any."""
    names = []
    if tiff.is_ome:
        image = find_ome_image(tiff, scene)
        if image is not None:
            names = [channel.get("Name") or "" for channel in image.iterfind("{*}Pixels/{*}Channel")]
    elif tiff.is_imagej:
        labels = [str(label) for label in (tiff.imagej_metadata or {}).get("Labels", [])[:count]]
        names = ["" if SLICE_LABEL.match(label) else label for label in labels]
    return names


def narrow_channels(image: np.ndarray | Channels, wanted: str | None) -> np.ndarray | Channels:
    """Leaves those of several channels that may show the nuclei; other images stay as they are.

    Args:
        image: of `data.stacks.read_sample_image`.
        wanted: "max" for the brightest at each pixel, or as for `pick_channels`.

    Returns:
        (H, W) of the channel that is wanted, or the channels that may be meant.
    """
    if not isinstance(image, Channels):
        return image
    if wanted == "max":
        return image.planes.max(axis=0)
    picked = pick_channels(image.names, wanted)
    if wanted is not None:
        return image.planes[picked[0]]
    return Channels(tuple(image.names[index] for index in picked), image.planes[picked])


def pick_channels(names: Sequence[str], wanted: str | None) -> list[int]:
    """Indices of the channels that may show the nuclei.

    Args:
        names: of the channels.
        wanted: a name (case does not count), a number from 1, or None: the channels with the name of a nuclear stain,
            or all where none has one.

    Raises:
        UserError: there is no such channel.
    """
    if wanted is None:
        return [index for index, name in enumerate(names) if NUCLEAR_NAMES.search(name)] or list(range(len(names)))
    matches = [index for index, name in enumerate(names) if name.lower() == wanted.lower()]
    if not matches and wanted.isdecimal() and 1 <= int(wanted) <= len(names):
        matches = [int(wanted) - 1]
    if not matches:
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names, start=1))
        raise UserError(f"no channel {wanted!r}; its channels are {known}")
    return matches[:1]


def pick_gray_or_colours(image: np.ndarray | Channels, wanted: str | None, file: object) -> np.ndarray:
    """The one channel (H, W) that is wanted of an image; without a wish, colours (H, W, 3) stay together.

    Raises:
        UserError: there is no such channel, or several may be meant.
    """
    try:
        image = narrow_channels(image, wanted)
        if isinstance(image, Channels) and len(image.names) == 1:
            return image.planes[0]
        if isinstance(image, Channels):
            raise UserError(f"which of its channels {', '.join(image.names)} shows the nuclei? name it with --channel")
        if image.ndim == 3 and wanted not in (None, "max"):
            return image[..., pick_channels(COLOURS, wanted)[0]]
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return image


def likely_channel(image: np.ndarray | Channels) -> np.ndarray:
    """Of several channels the first that may show the nuclei, (H, W); other images stay as they are."""
    return take_channel(narrow_channels(image, None), 0)


def take_channel(image: np.ndarray | Channels, index: int | None) -> np.ndarray:
    """The channel with this index of several channels, (H, W); other images stay as they are."""
    return image.planes[index] if isinstance(image, Channels) else image
