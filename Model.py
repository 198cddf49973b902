"""The U-Net: a contracting path, an expansive path, and skip connections between them.

In:  gray images (batch, H, W, 1) float32 in [0, 1], H and W multiples of 2 ** depth.
Out: two probabilities per pixel (batch, H, W, 2): nucleus, and border where nuclei touch.
As a script it prints the layers and draws Unet.png from them, or writes trained weights for other runtimes.

    python Model.py
    python Model.py --depth 3 --base-filters 32 --out small.png
    python Model.py --export onnx --weights weights/unet.keras --out unet.onnx
    python Model.py --export bioimageio --out unet.zip

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015 (here with padded convolutions and batch normalisation).
"""

from data.options import BASE_FILTERS, DEPTH, EXPORTS, FIGURE, WEIGHTS, model_parser

if __name__ == "__main__":
    model_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.export import OF_THE_PROJECT, write_bioimageio, write_onnx
from data.figure import draw_unet
from data.files import UserError, find_beside_scripts, hash_file, run_script
from data.images import halve, read_image
from data.nuclei import Calibration
from data.records import find_record
from data.scales import Probabilities
from data.terminal import import_quietly
from Preprocessed_data import to_grayscale

with import_quietly():
    import keras
    from keras import layers, ops

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()  # complains where there is no GPU; else it would do so later

EXAMPLE = "data/sample/fluorescence_crowded_1/images/fluorescence_crowded_1.png"  # shown in the figure
# The network.
INPUT_SHAPE = (None, None, None, 1)
OUTPUT_SHAPE = (None, None, None, 2)
# An output depends on fewer pixels of the deepest feature map on each side. This holds where tiles begin at multiples
# of 2 ** depth pixels, for their poolings are then those of the whole image.
HALO_PIXELS = 6
PROCESSOR = Path("/proc/cpuinfo")  # tells what the processor can, on Linux
# Training.
WEIGHT_DECAY = 1e-4
BORDER_WEIGHT = 0.5  # weight of the loss of borders, which only part nuclei; Dice is scored on nuclei alone
SOFT_DICE_SMOOTHING = 1  # pixels; keeps images without nuclei at a soft Dice of 1 when nothing is predicted
DICE_SMOOTHING = 1e-6  # pixels; gives two empty masks, which agree, a Dice of 1


class Unet:
    """Builds the U-Net as a plain functional `keras.Model`, which loads with Keras alone.

    Args:
        depth: number of 2×2 max poolings; image sides must be multiples of 2 ** depth.
        base_filters: filters at full resolution, see `filters`.
    """

    def __init__(self, depth: int = DEPTH, base_filters: int = BASE_FILTERS):
        if depth < 1 or base_filters < 1:
            raise UserError(f"depth and base filters must be 1 or more: {depth}, {base_filters}")
        self.depth = depth
        self.base_filters = base_filters

    def filters(self, stage: int) -> int:
        """Filters after `stage` poolings: 1, 3, 6, 12, 24 … times base_filters.

        They are few at full resolution, where a filter takes the most time and sees the least.
        """
        if stage == 0:
            return self.base_filters
        return self.base_filters * 3 * 2 ** (stage - 1)

    def build(self) -> keras.Model:
        """Returns the model, (batch, H, W, 1) -> (batch, H, W, 2) float32 in [0, 1]."""
        gray = keras.Input(INPUT_SHAPE[1:], name="gray")  # (batch, H, W, 1)
        x, skips = self.contracting_path(gray)  # (batch, H / 2 ** depth, W / 2 ** depth, C)
        x = conv_block(x, self.filters(self.depth), "bottom")
        x = self.expansive_path(x, skips)  # (batch, H, W, base_filters)
        # float32 also under mixed precision: probabilities near 0 and 1 need the digits.
        x = layers.Conv2D(2, 1, activation="sigmoid", dtype="float32", name="probability")(x)
        return keras.Model(gray, x, name="unet")

    def contracting_path(self, x):
        """At each stage two convolutions, whose features are kept, then 2×2 max pooling."""
        skips = []
        for stage in range(self.depth):
            x = conv_block(x, self.filters(stage), f"down{stage}")
            skips.append(x)
            x = layers.MaxPooling2D(2, name=f"down{stage}_pool")(x)
        return x, skips

    def expansive_path(self, x, skips):
        """At each stage an up-convolution, joined with the features kept on the way down."""
        for stage in reversed(range(self.depth)):
            filters = self.filters(stage)
            x = layers.Conv2DTranspose(filters, 2, strides=2, name=f"up{stage}_upconv")(x)
            x = layers.Concatenate(name=f"up{stage}_skip")([skips[stage], x])
            x = conv_block(x, filters, f"up{stage}")
        return x


def conv_block(x, filters: int, name: str):
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""
    for number in (1, 2):
        # The normalisation brings its own offset, so the convolution needs no bias.
        x = layers.Conv2D(
            filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv{number}"
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
    target = truth[..., :2]
    valid = truth[..., 2:]
    clipped = ops.clip(probability, 1e-6, 1 - 1e-6)  # 0 has no logarithm
    entropy = -(target * ops.log(clipped) + (1 - target) * ops.log(1 - clipped))
    entropy = _sum_pixels(entropy * valid) / ops.maximum(_sum_pixels(valid), 1.0)
    intersection = _sum_pixels(target * probability * valid)
    total_area = _sum_pixels((target + probability) * valid)
    soft_dice = (2 * intersection + SOFT_DICE_SMOOTHING) / (total_area + SOFT_DICE_SMOOTHING)
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
    total_area = _sum_pixels(predicted + target)
    score = (2 * _sum_pixels(predicted * target) + DICE_SMOOTHING) / (total_area + DICE_SMOOTHING)
    return score[:, 0]


def _sum_pixels(x):
    return ops.sum(x, axis=(1, 2))


def compile_unet(depth: int, base_filters: int, learning_rate: float, total_steps: int) -> keras.Model:
    """Builds the network for training, with its loss and optimizer.

    Args:
        depth: of `Unet`.
        base_filters: of `Unet`.
        learning_rate: the highest rate of AdamW; a schedule warms it up to this value and lets it
            fall along a cosine.
        total_steps: batches of the whole training.
    """
    warmup_steps = max(total_steps // 30, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 20,
        max(total_steps - warmup_steps, 1),
        alpha=0.01,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
    model = fuse_normalization(Unet(depth, base_filters).build())
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY, clipnorm=1.0),
        segmentation_loss,
        metrics=[accuracy, dice],
    )
    return model


class FusedNormalization(layers.BatchNormalization):
    """Batch normalisation by TensorFlow's single kernel for it, where training runs on TensorFlow.

    Keras has no name for this kernel; its own passes in float32 make a step half as long again.
    """

    def call(self, x, training=None, mask=None):
        """Normalises x, (batch, H, W, C), by its own statistics while training, as Keras does."""
        if not training or keras.backend.backend() != "tensorflow":
            return super().call(x, training=training, mask=mask)
        from tensorflow import raw_ops

        x, mean, variance, *_ = raw_ops.FusedBatchNormV3(
            x=x,
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return x


def fuse_normalization(model: keras.Model) -> keras.Model:
    """Copies a network with `FusedNormalization`; the weights of both are interchangeable."""

    def copy_layer(layer):
        """The same layer anew, a batch normalisation as a fused one."""
        is_normalization = isinstance(layer, layers.BatchNormalization)
        layer_class = FusedNormalization if is_normalization else type(layer)
        return layer_class.from_config(layer.get_config())

    fused = keras.models.clone_model(model, clone_function=copy_layer)
    fused.set_weights(model.get_weights())
    return fused


def plain_copy(model: keras.Model, precision: str = "float32") -> keras.Model:
    """Copies a network without optimizer, which leaves a third of the size; it computes in the given precision.

    Args:
        model: a U-Net of `Unet.build` or `compile_unet`.
        precision: one of PRECISIONS, as Keras's dtype policies. The weights are float32 in both.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        copy = Unet(depth_of(model), model.layers[1].filters).build()
    finally:
        keras.config.set_dtype_policy(policy)
    copy.set_weights(model.get_weights())
    return copy


def load_unet(file: str | Path, precision: str = "float32") -> keras.Model:
    """Loads a trained U-Net, in safe mode, and checks that it is one of ours.

    Args:
        file: that `Train.py` saved.
        precision: of `plain_copy`.

    Returns:
        The network; its attribute `calibration` is of `read_calibration`.

    Raises:
        UserError: no such file, not a Keras file, or a model of another architecture.
    """
    if not Path(file).is_file():
        raise UserError(f"{file}: no such weights; those of the project are weights/unet.keras")
    try:
        model = keras.models.load_model(file, compile=False, safe_mode=True)
        input_shape = model.input_shape
        output_shape = model.output_shape
    except MemoryError:
        raise
    except Exception as error:  # Keras raises a dozen types for a damaged or foreign file
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{file}: not a Keras model that can be loaded ({reason})") from error
    if (input_shape, output_shape) != (INPUT_SHAPE, OUTPUT_SHAPE):
        raise UserError(
            f"{file}: expected a model {INPUT_SHAPE} -> {OUTPUT_SHAPE}, this one is "
            f"{input_shape} -> {output_shape}; name weights of Train.py"
        )
    try:
        model = plain_copy(model, precision)
    except (ValueError, AttributeError) as error:  # other layers, or other weights in them
        raise UserError(f"{file}: its layers are not those of this U-Net; name weights of Train.py") from error
    model.calibration = read_calibration(file)
    return model


def read_calibration(weights: str | Path) -> Calibration:
    """What training.json beside weights says of their thresholds and confidence; else the usual calibration."""
    known = find_record(weights).get("calibration")
    if known is None or known["weights_sha256"] != hash_file(weights):
        return Calibration()
    thresholds = (known["nucleus_threshold"], known["seed_threshold"])
    return Calibration(*thresholds, tuple(known["confidence"]), known.get("min_confidence", 0.0))


def predict_probability(model: keras.Model, gray: np.ndarray, halvings: int = 0) -> Probabilities:
    """Runs the network on images of one size.

    Args:
        model: from `load_unet`.
        gray: (..., H, W) float32 in [0, 1], one image or a stack, from `to_grayscale`.
        halvings: how often height and width are halved before; negative: doubled.

    Returns:
        Probability of nucleus, and of a border between touching nuclei, as gray in shape, float32.
    """
    multiple = 2 ** (depth_of(model) + max(halvings, 0))
    height, width = gray.shape[-2:]
    padding = [(0, 0), (0, -height % multiple), (0, -width % multiple)]
    padded = np.pad(gray.reshape(-1, height, width), padding, "symmetric")  # (batch, H', W')
    scaled = padded
    for _ in range(halvings):  # none where it is negative
        scaled = halve(scaled)
    if halvings < 0:
        scaled = resize_images(scaled[..., None], [side * 2**-halvings for side in padded.shape[1:]])[..., 0]
    output = model.predict_on_batch(scaled[..., None])  # (batch, H'', W'', 2)
    if halvings:
        output = resize_images(output, padded.shape[1:])
    output = output[:, :height, :width]
    return output[..., 0].reshape(gray.shape), output[..., 1].reshape(gray.shape)


def resize_images(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes images (batch, H, W, C) to a size (H, W), bilinear; where they become smaller, by means of areas."""
    return keras.ops.convert_to_numpy(keras.ops.image.resize(images, size, "bilinear", antialias=True))


def export_weights(weights: str | Path, export_format: str, file: str | Path) -> None:
    """Writes trained weights for other runtimes, in a format of EXPORTS; see `data.export`."""
    model = load_unet(weights)
    if export_format == "onnx":
        write_onnx(model, file)
    else:
        shipped = find_beside_scripts(WEIGHTS)
        is_shipped = Path(shipped).is_file() and hash_file(weights) == hash_file(shipped)
        origin = OF_THE_PROJECT if is_shipped else "It was trained on images of its user."
        write_bioimageio(model, file, HALO_PIXELS * 2 ** depth_of(model), origin)
    print(f"saved the network to {file}")


def use_all_gpus() -> contextlib.AbstractContextManager:
    """A scope to build the model in: with TensorFlow it puts a copy on each of several GPUs."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    # Keras has no function of its own for this.
    devices = [device.name for device in tensorflow.config.list_logical_devices("GPU")]
    if len(devices) < 2:
        return contextlib.nullcontext()
    print(f"training on {len(devices)} GPUs")
    return tensorflow.distribute.MirroredStrategy(devices).scope()


@contextlib.contextmanager
def without_data_parallel() -> Iterator[None]:
    """Lets one process work without the others: with them, each new array waits for theirs."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def fastest_precision() -> str:
    """The dtype policy that is fastest here: mixed_bfloat16 on a GPU, and on processors that are quick with it.

    These are Intel's with AMX and AMD's with AVX512-BF16, which Linux tells; on Intel's with AVX512-BF16 alone it is
    slower than float32.
    """
    flags = PROCESSOR.read_text() if PROCESSOR.is_file() else ""
    is_quick = "amx_bf16" in flags or ("AuthenticAMD" in flags and "avx512_bf16" in flags)
    has_gpu = bool(keras.distribution.list_devices("gpu"))
    return "mixed_bfloat16" if is_quick or has_gpu else "float32"


def depth_of(model: keras.Model) -> int:
    """Number of poolings: image sides must be multiples of 2 ** depth."""
    return sum(isinstance(layer, layers.MaxPooling2D) for layer in model.layers)


def flops_per_pixel(model: keras.Model) -> float:
    """Floating-point operations of the convolutions per image pixel; a multiply-add counts as 2."""
    flops = 0.0
    area = 1.0  # feature-map pixels per image pixel
    for layer in model.layers:
        if isinstance(layer, layers.MaxPooling2D):
            area /= 4
        if isinstance(layer, layers.Conv2D | layers.Conv2DTranspose):
            flops += 2 * area * math.prod(layer.kernel.shape)
        if isinstance(layer, layers.Conv2DTranspose):
            area *= 4
    return flops


def predict_example(depth: int, base_filters: int) -> list[np.ndarray]:
    """Gray, and the trained network's two probabilities, (H, W), of an image of the sample; [] for other networks."""
    if (depth, base_filters) != (DEPTH, BASE_FILTERS):
        return []
    gray = to_grayscale(read_image(Path(find_beside_scripts(EXAMPLE))))
    return [gray, *predict_probability(load_unet(find_beside_scripts(WEIGHTS)), gray)]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return model_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.export:
        export_weights(args.weights, args.export, args.out or EXPORTS[args.export])
        return
    model = Unet(args.depth, args.base_filters).build()
    model.summary()
    print(f"{flops_per_pixel(model):,.0f} floating-point operations per pixel")
    draw_unet(model, args.depth, args.out or FIGURE, predict_example(args.depth, args.base_filters))
    print(f"saved the architecture to {args.out or FIGURE}")


if __name__ == "__main__":
    run_script(main)
