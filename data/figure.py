"""Draws the figure of the U-Net.

In:  a built network.
Out: Unet.png.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import figure_format, write_whole

DEEPEST_SIZE = 16  # pixels, side of the smallest feature maps that the figure shows
ARROWS = {  # layer -> colour and legend
    "conv": ("#334155", "3×3 convolution, batch norm, ReLU"),
    "pool": ("#d1495b", "2×2 max pooling"),
    "upconv": ("#e08e1b", "2×2 up-convolution"),
    "probability": ("#7c4dab", "1×1 convolution, sigmoid"),
    "skip": ("#94a3b8", "skip connection (copy and concatenate)"),
}
CONTRACTING = "#3b6fb6"  # colours of the feature maps
COPIED = "#b9d0ee"
EXPANSIVE = "#2a9d8f"
GRAY = "#64748b"  # colour of the texts beside the boxes
EXAMPLE_INCHES = 1.6  # inches


@dataclass
class FeatureMap:
    """A box of the figure; lengths in inches, x to the right and y upwards."""

    layer: str  # a key of ARROWS, or "gray"
    size: int  # pixels, side of the map
    filters: int
    colour: str
    left: float
    seam: float  # between copied features and the map's own
    right: float
    top: float
    low: float

    @property
    def middle(self) -> float:
        """Where arrows up and down begin: the middle of the features that are not copied."""
        return (self.seam + self.right) / 2


def draw_unet(model, depth: int, file: str | Path, example: Sequence[np.ndarray] = ()) -> None:
    """Draws the U from the model's own layers: feature maps as boxes, layers as arrows.

    Args:
        model: a `keras.Model` of `Unet.build`.
        depth: its poolings.
        file: picture to write; the suffix (.png, .svg, .pdf) chooses the format.
        example: gray, probability of nucleus and of border, (H, W) float in [0, 1], shown at the ends of the U.
    """
    from matplotlib.figure import Figure  # here, as only the figure needs it

    maps = _feature_maps(model, DEEPEST_SIZE * 2**depth)
    # One unit of the axes is one inch, so boxes and texts keep their scale at every depth.
    left = -1.5 - (EXAMPLE_INCHES if example else 0)
    right = maps[-1].right + 1.5 + (EXAMPLE_INCHES if example else 0)
    bottom = min(box.low for box in maps) - 1.1
    top = 1.4
    figure = Figure(figsize=(right - left, top - bottom), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    _draw_boxes(axes, maps)
    _draw_arrows(axes, maps)
    _draw_sizes(axes, maps)
    if example:
        _draw_example(axes, maps, example)
    middle = (left + right) / 2
    caption = f"depth {depth}  ·  {model.count_params():,} parameters"
    explanation = "above a box its channels, beside a row the height × width of its maps in pixels"
    axes.text(middle, 0.85, "U-Net", size=26, weight="bold", ha="center")
    axes.text(middle, 0.52, caption, size=13, ha="center")
    axes.text(middle, 0.25, explanation, size=11, ha="center", color=GRAY)
    for colour, text in ARROWS.values():
        axes.plot([], [], color=colour, lw=3, label=text)
    axes.bar(0, 0, color=COPIED, label="copied features")
    axes.legend(loc="lower center", ncols=min(depth + 1, 3), frameon=False, fontsize=11)
    with write_whole(file) as temporary:
        figure.savefig(temporary, dpi=150, format=figure_format(file))


def _feature_maps(model, size: int) -> list[FeatureMap]:
    """Walks the layers: each makes a box, or widens the one before it; `size` is the image's."""
    full_size = size
    widest = max(layer.output.shape[-1] for layer in model.layers)
    maps = []
    colour = CONTRACTING
    x = 0.0  # middle of the box
    top = 0.0
    for layer in model.layers:
        layer_type = type(layer).__name__
        if layer_type in ("BatchNormalization", "ReLU"):
            continue  # part of the arrow of their convolution
        filters = layer.output.shape[-1]
        # Roots, here and in the height, or the first boxes would be hairlines, the deepest flat.
        width = max(0.5 * (filters / widest) ** 0.5, 0.07)
        if layer_type == "Concatenate":  # the copied features, left of the seam
            _widen(maps[-1], filters, width)
            continue
        name = layer.name.split("_")[-1].rstrip("12")
        if name == "pool":  # straight below the box before
            size //= layer.strides[0]
            top = maps[-1].low - 0.72
        elif name == "upconv":  # straight above
            size *= layer.strides[0]
            colour = EXPANSIVE
            top = next(box.top for box in maps if box.size == size)
        elif maps:
            x = maps[-1].right + 0.4 + width / 2
        left = x - width / 2
        low = top - 1.7 * (size / full_size) ** 0.6
        right = x + width / 2
        maps.append(FeatureMap(name, size, filters, colour, left=left, seam=left, right=right, top=top, low=low))
    return maps


def _widen(box: FeatureMap, filters: int, width: float) -> None:
    """Adds copied features to a box, left of its own, which keep their middle."""
    middle = box.middle
    own_width = width * box.filters / filters
    box.filters = filters
    box.seam = middle - own_width / 2
    box.right = middle + own_width / 2
    box.left = box.right - width


def _draw_boxes(axes, maps: list[FeatureMap]) -> None:
    for box in maps:
        for left, right, colour in ((box.left, box.seam, COPIED), (box.seam, box.right, box.colour)):
            axes.bar(left, box.top - box.low, right - left, box.low, align="edge", color=colour)
        axes.text((box.left + box.right) / 2, box.top + 0.06, box.filters, ha="center", size=12)


def _draw_arrows(axes, maps: list[FeatureMap]) -> None:
    """Draws an arrow for every layer, and one for every skip connection."""
    arrows = []  # (layer, start, end)
    last_of_size = {}
    for before, box in zip([None, *maps], maps, strict=False):
        y = (box.top + box.low) / 2
        if box.layer == "pool":
            arrows.append(("pool", (box.middle, before.low), (box.middle, box.top + 0.22)))
        elif box.layer == "upconv":
            start = (box.middle, before.top + 0.22)
            arrows.append(("upconv", start, (box.middle, box.low)))
        elif before:
            arrows.append((box.layer, (before.right, y), (box.left, y)))
        if box.left < box.seam:
            arrows.append(("skip", (last_of_size[box.size].right, y), (box.left, y)))
        last_of_size[box.size] = box
    for layer, start, end in arrows:
        style = {"arrowstyle": "-|>", "color": ARROWS[layer][0], "lw": 2.2}
        axes.annotate("", end, start, size=13, arrowprops=style)


def _draw_sizes(axes, maps: list[FeatureMap]) -> None:
    """Writes the size of the maps at both ends of every row, and what goes in and comes out."""
    style = {"va": "center", "size": 11, "color": GRAY}
    for size in {box.size for box in maps}:
        boxes = [box for box in maps if box.size == size]
        y = (boxes[0].top + boxes[0].low) / 2
        axes.text(boxes[0].left - 0.1, y, f"{size}×{size}", ha="right", **style)
        axes.text(boxes[-1].right + 0.1, y, f"{size}×{size}", **style)
    y = (maps[0].top + maps[0].low) / 2 + 0.18
    style = {"size": 13, "weight": "bold"}
    axes.text(maps[0].left - 0.1, y, "gray image", ha="right", **style)
    axes.text(maps[-1].right + 0.1, y, "nucleus\nand border\nprobability", **style)


def _draw_example(axes, maps: list[FeatureMap], example: Sequence[np.ndarray]) -> None:
    """Shows gray before the first box, and the probabilities of nucleus and border, one above the other, at the end."""
    gray, nucleus, border = example
    side = EXAMPLE_INCHES
    middle = (maps[0].top + maps[0].low) / 2
    before = maps[0].left - 1.4 - side
    after = maps[-1].right + 1.4
    insets = ((gray, before, middle - side / 2), (nucleus, after, middle), (border, after, middle - side - 0.05))
    for picture, x, y in insets:
        inset = axes.inset_axes((x, y, side, side), transform=axes.transData)
        inset.imshow(picture, cmap="gray", vmin=0, vmax=1)
        inset.set_axis_off()
