"""The U-Net: a contracting path, an expansive path, and skip connections between them.

In:  gray images (batch, H, W, 1) float32 in [0, 1], H and W multiples of 2 ** depth.
Out: two probabilities a pixel (batch, H, W, 2): nucleus, and border where nuclei touch.
Run alone it prints the layers and draws Unet.png from them.

    python Model.py
    python Model.py --depth 3 --base-filters 32 --out small.png

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015 (here with padded convolutions and batch normalisation).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import keras
from keras import layers, ops

from Preprocessed_data import run_script, write_whole

DEPTH = 4  # poolings; the deepest features see 140 pixels, wider than any common nucleus
BASE_FILTERS = 16
BORDER_WEIGHT = 0.5  # of the border's loss beside the nucleus's, which matters more to the Dice
FIGURE = "Unet.png"
ARROWS = {  # kind of layer -> colour and legend
    "conv": ("#334155", "3×3 convolution, batch norm, ReLU"),
    "pool": ("#d1495b", "2×2 max pooling"),
    "upconv": ("#e08e1b", "2×2 up-convolution"),
    "probability": ("#7c4dab", "1×1 convolution, sigmoid"),
    "skip": ("#94a3b8", "skip connection (copy and concatenate)"),
}
CONTRACTING, COPIED, EXPANSIVE = "#3b6fb6", "#b9d0ee", "#2a9d8f"  # colours of the feature maps


class Unet:
    """Builds the U-Net as a plain functional `keras.Model`, which loads with Keras alone.

    Args:
        depth: number of 2×2 max poolings; image sides must be multiples of 2 ** depth.
        base_filters: filters at full resolution, see `filters`.
    """

    def __init__(self, depth: int = DEPTH, base_filters: int = BASE_FILTERS):
        if depth < 1 or base_filters < 1:
            raise ValueError(f"depth and base filters must be 1 or more: {depth}, {base_filters}")
        self.depth, self.base_filters = depth, base_filters

    def filters(self, level: int) -> int:
        """Filters after `level` poolings: 1, 3, 6, 12, 24 … times base_filters.

        Few at full resolution, where a filter takes the most time and sees the least.
        """
        return self.base_filters * 3 * 2 ** (level - 1) if level else self.base_filters

    def build(self) -> keras.Model:
        """Returns the model, (batch, H, W, 1) -> (batch, H, W, 2) float32 in [0, 1]."""
        gray = keras.Input((None, None, 1), name="gray")
        x, skips = self.contracting_path(gray)
        x = conv_block(x, self.filters(self.depth), "bottom")
        x = self.expansive_path(x, skips)
        # float32 also under mixed precision: probabilities near 0 and 1 need the digits.
        x = layers.Conv2D(2, 1, activation="sigmoid", dtype="float32", name="probability")(x)
        return keras.Model(gray, x, name="unet")

    def contracting_path(self, x):
        """At each level two convolutions, whose features are kept, then 2×2 max pooling."""
        skips = []
        for level in range(self.depth):
            x = conv_block(x, self.filters(level), f"down{level}")
            skips.append(x)
            x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
        return x, skips

    def expansive_path(self, x, skips):
        """At each level an up-convolution, joined with the features kept on the way down."""
        for level in reversed(range(self.depth)):
            filters = self.filters(level)
            x = layers.Conv2DTranspose(filters, 2, strides=2, name=f"up{level}_upconv")(x)
            x = layers.Concatenate(name=f"up{level}_skip")([skips[level], x])
            x = conv_block(x, filters, f"up{level}")
        return x


def conv_block(x, filters: int, name: str):
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""
    for number in (1, 2):
        # The normalisation brings its own offset, so the convolution needs no bias.
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv{number}",
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    return x


def segmentation_loss(truth, probability):
    """Cross-entropy plus soft Dice loss on nuclei, and the same on borders times BORDER_WEIGHT.

    Args:
        truth: (batch, H, W, 3) float in [0, 1]: nucleus, border, and 1 where the pixel counts.
        probability: (batch, H, W, 2) float in [0, 1]: nucleus and border.

    Returns:
        (batch,) loss of each image, at least 0.
    """
    target, valid = truth[..., :2], truth[..., 2:]
    p = ops.clip(probability, 1e-6, 1 - 1e-6)
    entropy = -(target * ops.log(p) + (1 - target) * ops.log(1 - p))
    entropy = _sum_pixels(entropy * valid) / ops.maximum(_sum_pixels(valid), 1.0)
    # The 1 keeps images without nuclei at a Dice of 1 when nothing is predicted.
    overlap = 2 * _sum_pixels(target * probability * valid) + 1
    soft_dice = overlap / (_sum_pixels((target + probability) * valid) + 1)
    loss = entropy + 1 - soft_dice
    return loss[:, 0] + BORDER_WEIGHT * loss[:, 1]


def accuracy(truth, probability):
    """Share of the valid pixels on the right side of 0.5, (batch,), in [0, 1]."""
    valid = truth[..., 2:]
    right = ops.cast(ops.equal(truth[..., :1] > 0.5, probability[..., :1] > 0.5), "float32")
    return (_sum_pixels(right * valid) / ops.maximum(_sum_pixels(valid), 1.0))[:, 0]


def dice(truth, probability):
    """Sørensen–Dice of the nucleus mask at 0.5 against the truth, (batch,), in [0, 1]."""
    valid = truth[..., 2:]
    predicted = ops.cast(probability[..., :1] > 0.5, "float32") * valid
    target = truth[..., :1] * valid
    # Both empty is perfect agreement, 1.
    union = _sum_pixels(predicted + target)
    score = (2 * _sum_pixels(predicted * target) + 1e-6) / (union + 1e-6)
    return score[:, 0]


def _sum_pixels(x):
    return ops.sum(x, axis=(1, 2))


def load_unet(file: str | Path) -> keras.Model:
    """Loads a trained U-Net, in safe mode, and checks that it is one of ours.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a Keras file, or a model of another architecture.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: no such weights; python Train.py trains some")
    try:
        model = keras.models.load_model(file, compile=False, safe_mode=True)
        shapes = model.input_shape, model.output_shape
    except Exception as error:  # Keras raises a dozen kinds for a damaged or foreign file
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{file}: not a Keras model that can be loaded ({reason})") from error
    if shapes != ((None, None, None, 1), (None, None, None, 2)):
        raise ValueError(
            f"{file}: expected a model (None, None, None, 1) -> (None, None, None, 2), this one is "
            f"{shapes[0]} -> {shapes[1]}; name weights of Train.py"
        )
    return model


def depth_of(model: keras.Model) -> int:
    """Number of poolings: image sides must be multiples of 2 ** depth."""
    return sum(isinstance(layer, layers.MaxPooling2D) for layer in model.layers)


def flops_per_pixel(model: keras.Model) -> float:
    """Floating-point operations of the convolutions for a pixel of the image, 2 a multiply-add."""
    flops, area = 0.0, 1.0  # area: feature pixels a pixel of the image
    for layer in model.layers:
        if isinstance(layer, layers.MaxPooling2D):
            area /= 4
        if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose):
            flops += 2 * area * math.prod(layer.kernel.shape)
        if isinstance(layer, layers.Conv2DTranspose):
            area *= 4
    return flops


def draw_unet(model: keras.Model, file: str | Path) -> None:
    """Draws the U from the model's own layers: feature maps as boxes, layers as arrows.

    Args:
        model: a built U-Net, of `Unet.build` or `load_unet`.
        file: picture to write; the suffix (.png, .svg, .pdf) chooses the format.
    """
    from matplotlib.figure import Figure  # here, as only the figure needs it

    depth = depth_of(model)
    maps = _feature_maps(model, 2 ** (depth + 4))  # the deepest of 16×16 pixels
    # One unit of the axes is one inch, so boxes and texts keep their scale at every depth.
    left, right, bottom, top = -1.5, maps[-1].right + 1.5, min(m.low for m in maps) - 1.1, 1.4
    figure = Figure(figsize=(right - left, top - bottom), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    _draw_maps(axes, maps)
    middle, caption = (left + right) / 2, f"depth {depth}  ·  {model.count_params():,} parameters"
    axes.text(middle, 0.85, "U-Net", size=26, weight="bold", ha="center")
    axes.text(middle, 0.52, caption, size=13, ha="center")
    for colour, text in ARROWS.values():
        axes.plot([], [], color=colour, lw=3, label=text)
    axes.bar(0, 0, color=COPIED, label="copied features")
    axes.legend(loc="lower center", ncols=min(depth + 1, 3), frameon=False, fontsize=11)
    kind = Path(file).suffix[1:] or "png"
    write_whole(Path(file), lambda part: figure.savefig(part, dpi=150, format=kind))


def _feature_maps(model: keras.Model, size: int) -> list[SimpleNamespace]:
    """Walks the layers: each makes a box (in inches), or widens the one before it."""
    widest = max(layer.output.shape[-1] for layer in model.layers)
    maps, full, colour, x, top = [], size, CONTRACTING, 0.0, 0.0
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization | layers.ReLU):
            continue  # part of the arrow of their convolution
        filters = layer.output.shape[-1]
        # Roots, here and in the height, or the first boxes would be hairlines, the deepest flat.
        width = max(0.5 * (filters / widest) ** 0.5, 0.07)
        if isinstance(layer, layers.Concatenate):  # the copied features, left of the seam
            m, own = maps[-1], width * maps[-1].filters / filters
            m.filters, m.seam, m.right = filters, x - own / 2, x + own / 2
            m.left = m.right - width
            continue
        kind = layer.name.split("_")[-1].rstrip("12")
        if kind == "pool":  # straight below the box before
            size, top = size // layer.strides[0], maps[-1].low - 0.72
        elif kind == "upconv":  # straight above
            size, colour = size * layer.strides[0], EXPANSIVE
            top = next(m.top for m in maps if m.size == size)
        elif maps:
            x = maps[-1].right + 0.4 + width / 2
        m = SimpleNamespace(kind=kind, size=size, filters=filters, colour=colour, x=x, top=top)
        m.left = m.seam = x - width / 2
        m.right, m.low = x + width / 2, top - 1.7 * (size / full) ** 0.6
        maps.append(m)
    return maps


def _draw_maps(axes, maps: list[SimpleNamespace]) -> None:
    rows, arrows = {}, []
    for before, m in zip([None, *maps], maps, strict=False):
        row, y = rows.setdefault(m.size, []), (m.top + m.low) / 2
        for left, right, colour in (m.left, m.seam, COPIED), (m.seam, m.right, m.colour):
            axes.bar(left, m.top - m.low, right - left, m.low, align="edge", color=colour)
        axes.text((m.left + m.right) / 2, m.top + 0.06, m.filters, ha="center", size=12)
        if m.kind == "pool":
            arrows.append(("pool", (m.x, before.low), (m.x, m.top + 0.22)))
        elif m.kind == "upconv":
            arrows.append(("upconv", (m.x, before.top + 0.22), (m.x, m.low)))
        elif before:
            arrows.append((m.kind, (before.right, y), (m.left, y)))
        if m.left < m.seam:
            arrows.append(("skip", (row[-1].right, y), (m.left, y)))
        row.append(m)
    for kind, start, end in arrows:
        style = {"arrowstyle": "-|>", "color": ARROWS[kind][0], "lw": 2.2}
        axes.annotate("", end, start, size=13, arrowprops=style)
    for size, (first, *_, last) in rows.items():
        y, style = (first.top + first.low) / 2, {"va": "center", "size": 11, "color": "#64748b"}
        axes.text(first.left - 0.1, y, f"{size}×{size}", ha="right", **style)
        axes.text(last.right + 0.1, y, f"{size}×{size}", **style)
    y, style = (maps[0].top + maps[0].low) / 2 + 0.18, {"size": 13, "weight": "bold"}
    axes.text(maps[0].left - 0.1, y, "gray image", ha="right", **style)
    axes.text(maps[-1].right + 0.1, y, "nucleus\nand border\nprobability", **style)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=DEPTH, help=f"poolings (default {DEPTH})")
    parser.add_argument(
        "--base-filters", type=int, default=BASE_FILTERS, help=f"default {BASE_FILTERS}"
    )
    parser.add_argument("--out", default=FIGURE, help=f"picture to draw (default {FIGURE})")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    model = Unet(args.depth, args.base_filters).build()
    model.summary()
    print(f"{flops_per_pixel(model):,.0f} floating-point operations a pixel")
    draw_unet(model, args.out)
    print(f"saved the architecture to {args.out}")


if __name__ == "__main__":
    run_script(main)
