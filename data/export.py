"""Writes a trained U-Net for other runtimes: as ONNX, or as a package of bioimage.io that holds the ONNX file.

In:  a Keras model of `Model.load_unet`, images (batch, H, W, 1) -> probabilities (batch, H, W, 2).
Out: the same network with channels first, as bioimage.io and most users of ONNX expect: gray (batch, 1, H, W) float32
     in [0, 1] -> probability (batch, 2, H, W) float32 in [0, 1]; batch, H and W are free, H and W multiples of
     2 ** depth.

The packages onnx and bioimageio.spec are needed here alone and are imported where they are used.

Sources: the ONNX operators, https://onnx.ai/onnx/operators; the description of models of bioimage.io, version 0.5,
https://github.com/bioimage-io/spec-bioimage-io.
"""

import tempfile
from pathlib import Path

import numpy as np

from data.files import UserError, find_beside_scripts, import_optional, write_whole
from data.images import read_image
from data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE, brightness, normalize, percentile_range

# ONNX.
OPSET = 17  # onnxruntime 1.12 (2022) and later read it
IR_VERSION = 8  # the file format of that opset
CONVERTIBLE = {  # class of a layer -> the settings that the conversion relies on
    "InputLayer": {},
    "Conv2D": {"strides": (1, 1), "dilation_rate": (1, 1), "groups": 1, "data_format": "channels_last"},
    "BatchNormalization": {"axis": -1, "center": True, "scale": True},
    "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0},
    "MaxPooling2D": {"padding": "valid", "data_format": "channels_last"},
    "Conv2DTranspose": {"padding": "valid", "dilation_rate": (1, 1), "data_format": "channels_last"},
    "Concatenate": {"axis": -1},
}
ACTIVATIONS = {"linear": None, "sigmoid": "Sigmoid"}  # Keras -> ONNX
# The package.
TEST_IMAGE = "data/sample/fluorescence_bright_1/images/fluorescence_bright_1.png"
U_NET = {
    "text": "Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
    "doi": "10.1007/978-3-319-24574-4_28",
}
DESCRIPTION = "A U-Net that finds cell nuclei, and the borders between nuclei that touch, in microscope images."
DOCUMENTATION = f"""# Nuclei segmentation with a U-Net

{DESCRIPTION} {{origin}}

## Input

One channel, in which nuclei are bright; axes batch, channel, y, x; y and x are multiples of {{side}}.
The package describes the preprocessing of images with a dark background (fluorescence): the percentiles
{LOW_PERCENTILE} and {HIGH_PERCENTILE} of each image become 0 and 1, and values beyond them are clipped.
Images with a bright background must be inverted first; of stained tissue the network expects the amount of
haematoxylin by colour deconvolution. Nuclei should be 8 to 33 pixels wide; scale other images.
The project's own `Predict_masks.py` does all of this. It also removes hot pixels, frames and debris.

## Output

Two channels: the probability of nucleus, and that of the border between nuclei that touch.
Labels are not part of the package: `Predict_masks.py` takes pixels above a threshold as nuclei and separates them by
a watershed from seeds, where the probability of nucleus is well above that of border.

## Validation

The test output was computed with Keras from the test input, a drawn image of the project's sample.
To validate the network on other images, compare its labels with the truth by the project's `Evaluate_model.py`.
"""
OF_THE_PROJECT = (
    "It was trained on images of the 2018 Data Science Bowl (BBBC038, CC0) and of TNBC (Zenodo 3552674, CC BY 4.0); "
    "its scores are in the project's README."
)


def write_onnx(model, file: str | Path) -> None:
    """Writes a network as an ONNX file.

    Args:
        model: a Keras model of `Model.load_unet`.
        file: to write.

    Raises:
        UserError: no onnx here, or a layer that cannot be written as ONNX.
    """
    content = convert_network(model).SerializeToString()
    with write_whole(file) as temporary:
        temporary.write_bytes(content)


def convert_network(model):
    """Converts a network to ONNX, see `write_onnx`.

    Returns:
        an `onnx.ModelProto`, checked.
    """
    onnx = import_optional("onnx", "onnx", "--export")
    nodes = []
    initializers = []
    names = {}  # id of a tensor of Keras -> its name in ONNX
    for layer in model.layers:
        names[id(layer.output)] = layer.name
        operator, settings, weights = convert_layer(layer)
        if operator is None:
            continue
        tensors = layer.input if isinstance(layer.input, list) else [layer.input]
        inputs = [names[id(tensor)] for tensor in tensors]
        for number, values in enumerate(weights):
            initializers.append(onnx.numpy_helper.from_array(values, f"{layer.name}_{number}"))
            inputs.append(initializers[-1].name)
        activation = ACTIVATIONS[layer.activation.__name__] if hasattr(layer, "activation") else None
        output = f"{layer.name}_linear" if activation else layer.name
        nodes.append(onnx.helper.make_node(operator, inputs, [output], layer.name, **settings))
        if activation:
            nodes.append(onnx.helper.make_node(activation, [output], [layer.name], f"{layer.name}_activation"))
    ends = []
    for tensor in (model.inputs[0], model.outputs[0]):
        shape = ("batch", tensor.shape[-1], "height", "width")
        ends.append(onnx.helper.make_tensor_value_info(names[id(tensor)], onnx.TensorProto.FLOAT, shape))
    graph = onnx.helper.make_graph(nodes, "unet", ends[:1], ends[1:], initializers)
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    converted = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.helper.set_model_props(converted, describe_tensors(total_downsampling(model)))
    onnx.checker.check_model(converted, full_check=True)
    return converted


def describe_tensors(side: int) -> dict[str, str]:
    """The metadata of the ONNX file; `side` divides the height and the width of an image."""
    return {
        "axes": "bcyx",
        "input": "one channel, nuclei bright, percentile-normalized to [0, 1], float32",
        "output": "probability of nucleus and of border between touching nuclei, in [0, 1], float32",
        "height and width": f"multiples of {side}",
    }


def convert_layer(layer) -> tuple[str | None, dict, list[np.ndarray]]:
    """Converts a layer of Keras, without its activation.

    Returns:
        the ONNX operator, None for the input; its attributes; its weights, float32, in the operator's order.

    Raises:
        UserError: the layer is of another class than those of `Model.Unet`, or has other settings.
    """
    check_layer(layer)
    layer_type = type(layer).__name__
    weights = [np.asarray(values, np.float32) for values in layer.get_weights()]
    if layer_type == "Conv2D":
        weights[0] = weights[0].transpose(3, 2, 0, 1)  # (kh, kw, in, out) -> (out, in, kh, kw)
        return "Conv", {"pads": same_padding(layer) if layer.padding == "same" else [0] * 4}, weights
    if layer_type == "Conv2DTranspose":
        weights[0] = weights[0].transpose(3, 2, 0, 1)  # (kh, kw, out, in) -> (in, out, kh, kw)
        return "ConvTranspose", {"strides": layer.strides}, weights
    if layer_type == "BatchNormalization":  # gamma, beta, mean, variance in both
        return "BatchNormalization", {"epsilon": layer.epsilon}, weights
    if layer_type == "MaxPooling2D":
        return "MaxPool", {"kernel_shape": layer.pool_size, "strides": layer.strides}, []
    if layer_type == "Concatenate":
        return "Concat", {"axis": 1}, []
    return ("Relu" if layer_type == "ReLU" else None), {}, []


def check_layer(layer) -> None:
    """Refuses a layer that `convert_layer` does not know, by its name."""
    layer_type = type(layer).__name__
    title = f"layer {layer.name}: {layer_type}"
    config = layer.get_config()
    if layer_type not in CONVERTIBLE:
        raise UserError(f"{title} cannot be written as ONNX, only layers of Model.py can")
    for name, value in CONVERTIBLE[layer_type].items():
        actual = tuple(config[name]) if isinstance(value, tuple) else config[name]
        if actual != value:
            raise UserError(f"{title} with {name} {actual} cannot be written as ONNX, only {value}")
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if activation not in ACTIVATIONS:
        raise UserError(f"layer {layer.name}: the activation {activation} cannot be written as ONNX")


def same_padding(layer) -> list[int]:
    """Zeros before and after the rows and columns of a convolution, which keep the size: top, left, bottom, right."""
    before = [(size - 1) // 2 for size in layer.kernel_size]
    after = [size // 2 for size in layer.kernel_size]
    return before + after


def total_downsampling(model) -> int:
    """The number that divides the height and the width of every image."""
    side = 1
    for layer in model.layers:
        if type(layer).__name__ == "MaxPooling2D":
            side *= layer.strides[0]
    return side


def write_bioimageio(model, file: str | Path, halo: int, origin: str) -> None:
    """Writes a network as a package of bioimage.io: ONNX weights, description, documentation, test tensors.

    Args:
        model: a Keras model of `Model.load_unet`.
        file: .zip to write.
        halo: pixels on each side of a tile that users of the package cut off after prediction.
        origin: sentences on what it was trained on.

    Raises:
        UserError: no onnx or bioimageio.spec here, or a layer that cannot be written as ONNX.
    """
    spec = import_optional("bioimageio.spec", "bioimageio.spec", "--export")
    side = total_downsampling(model)
    test_input, test_output = make_test_tensors(model, side)
    with tempfile.TemporaryDirectory() as name, write_whole(file) as temporary:
        folder = Path(name)
        write_onnx(model, folder / "unet.onnx")
        np.save(folder / "test_input.npy", test_input)
        np.save(folder / "test_output.npy", test_output)
        (folder / "README.md").write_text(DOCUMENTATION.format(side=side, origin=origin), encoding="utf-8")
        with spec.ValidationContext(root=folder, perform_io_checks=True, progressbar=False):
            content = describe_package(model.count_params(), side, halo)
            version = spec.model.v0_5.ModelDescr.implemented_format_version
            description = spec.model.v0_5.ModelDescr.model_validate({"format_version": version, **content})
            spec.save_bioimageio_package(description, output_path=temporary)


def make_test_tensors(model, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of the sample before preprocessing, (1, 1, H, W), and Keras's output, (1, 2, H, W), both float32."""
    channel = brightness(read_image(Path(find_beside_scripts(TEST_IMAGE))))
    height, width = (size // side * side for size in channel.shape)
    channel = channel[:height, :width].astype(np.float32)
    gray = normalize(channel, *percentile_range(channel))
    probability = np.asarray(model.predict_on_batch(gray[None, :, :, None]), np.float32)
    return channel[None, None], np.ascontiguousarray(probability.transpose(0, 3, 1, 2))


def describe_package(parameters: int, side: int, halo: int) -> dict:
    """The description of the package, version 0.5 of bioimage.io's specification."""
    gray_axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["gray"]}]
    probability_axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["nucleus", "border"]}]
    size = {"min": 2 * halo + side, "step": side}  # sides of a tile with its halo, as the specification wants them
    for axis in "yx":
        gray_axes.append({"type": "space", "id": axis, "size": size})
        same_size = {"tensor_id": "gray", "axis_id": axis}
        probability_axes.append({"type": "space", "id": axis, "size": same_size, "halo": halo})
    percentiles = {"min_percentile": LOW_PERCENTILE, "max_percentile": HIGH_PERCENTILE}
    preprocessing = [
        {"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"], **percentiles}},
        {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
    ]
    gray = {
        "id": "gray",
        "description": "one channel, in which nuclei are bright",
        "axes": gray_axes,
        "data": {"type": "float32"},
        "test_tensor": {"source": "test_input.npy"},
        "preprocessing": preprocessing,
    }
    probability = {
        "id": "probability",
        "description": "probability of nucleus, and of the border between nuclei that touch",
        "axes": probability_axes,
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": {"source": "test_output.npy"},
    }
    return {
        "type": "model",
        "name": "Nuclei segmentation U-Net",
        "description": DESCRIPTION,
        "authors": [{"name": "the authors of this repository"}],
        "license": "MIT",
        "cite": [U_NET],
        "tags": ["nuclei", "segmentation", "2d", "unet", "fluorescence-light-microscopy"],
        "documentation": {"source": "README.md"},
        "inputs": [gray],
        "outputs": [probability],
        "weights": {"onnx": {"source": "unet.onnx", "opset_version": OPSET}},
        "config": {"bioimageio": {"model_parameter_count": parameters}},
    }
