"""The network as ONNX and as a package of bioimage.io: the answers are Keras's, and what cannot be written is named."""

import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from bioimageio.spec import ValidationContext, load_model_description
from conftest import ROOT, draw_disks, load_once
from scipy import ndimage

import Model
from data import export
from data.files import UserError

RNG = np.random.default_rng(0)
TOLERANCE = 1e-4  # of probabilities
WEIGHTS = ROOT / "weights" / "unet.keras"


def draw_weights(model):
    """Gives every weight a random value, also the statistics of the batch normalisations, which a new network lacks."""
    for layer in model.layers:
        is_normalization = isinstance(layer, keras.layers.BatchNormalization)
        drawn = []
        for weight in layer.get_weights():
            if is_normalization:
                drawn.append(RNG.uniform(0.5, 1.5, weight.shape))
            else:
                drawn.append(RNG.normal(0, 0.2, weight.shape))
        layer.set_weights(drawn)
    return model


@pytest.fixture(scope="module")
def small():
    return draw_weights(Model.Unet(depth=2, base_filters=4).build())


@pytest.fixture(scope="module")
def trained():
    return load_once()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package that the command writes of the trained weights."""
    file = tmp_path_factory.mktemp("package") / "unet.zip"
    Model.main(["--export", "bioimageio", "--weights", str(WEIGHTS), "--out", str(file)])
    return file


def test_the_shipped_weights_need_not_be_there(small, tmp_path, monkeypatch):
    small.save(tmp_path / "mine.keras")
    monkeypatch.setattr(Model, "find_beside_scripts", lambda name: str(tmp_path / name))
    Model.export_weights(tmp_path / "mine.keras", "bioimageio", tmp_path / "mine.zip")
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert "images of its user" in archive.read("README.md").decode()


@pytest.mark.parametrize(("weights", "origin"), [("shipped", "TNBC"), ("others", "images of its user")])
def test_the_package_says_what_the_weights_were_trained_on(package, small, tmp_path, weights, origin):
    file = package
    if weights == "others":
        small.save(tmp_path / "unet.keras")
        file = tmp_path / "unet.zip"
        Model.main(["--export", "bioimageio", "--weights", str(tmp_path / "unet.keras"), "--out", str(file)])
    with zipfile.ZipFile(file) as archive:
        text = archive.read("README.md").decode()
    assert origin in text and "{" not in text
    assert ("Data Science Bowl" in text) == (weights == "shipped")


def start(content):
    """An onnxruntime session of a file or of its bytes."""
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def answer(session, gray):
    """Probabilities (batch, 2, H, W) of gray (batch, 1, H, W)."""
    return session.run(None, {"gray": gray})[0]


def keras_answer(model, gray):
    probability = model.predict_on_batch(gray.transpose(0, 2, 3, 1))
    return np.asarray(probability).transpose(0, 3, 1, 2)


# ONNX.


@pytest.mark.parametrize("network", ["small", "trained"])
def test_onnx_answers_as_keras_at_two_sizes(network, request):
    model = request.getfixturevalue(network)
    session = start(export.convert_network(model).SerializeToString())
    for shape in ((2, 1, 64, 96), (1, 1, 144, 80)):
        nuclei = draw_disks(shape[2:], RNG.uniform(10, 60, (6, 2)), 9)
        gray = ndimage.gaussian_filter(np.broadcast_to(nuclei, shape), (0, 0, 1, 1))
        expected = keras_answer(model, gray)
        assert expected.max() - expected.min() > 0.1  # the answers differ from pixel to pixel
        found = answer(session, gray)
        assert (found.shape, found.dtype) == ((shape[0], 2, *shape[2:]), np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_the_order_of_rows_and_columns_and_of_outputs_is_kept(small):
    session = start(export.convert_network(small).SerializeToString())
    gray = np.zeros((1, 1, 32, 48), np.float32)
    gray[0, 0, 3, 40] = 1
    expected = keras_answer(small, gray)
    assert abs(expected[:, 0] - expected[:, 1]).max() > 0.01
    np.testing.assert_allclose(answer(session, gray), expected, rtol=0, atol=TOLERANCE)


def test_the_onnx_file_says_its_axes_and_sizes(small):
    model = export.convert_network(small)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["axes"] == "bcyx"
    assert metadata["height and width"] == "multiples of 4"
    shapes = {}
    for tensor in (*model.graph.input, *model.graph.output):
        sides = tensor.type.tensor_type.shape.dim
        shapes[tensor.name] = [side.dim_param or side.dim_value for side in sides]
    assert shapes == {"gray": ["batch", 1, "height", "width"], "probability": ["batch", 2, "height", "width"]}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", export.OPSET)]


def test_command_writes_onnx(tmp_path, small, capsys):
    small.save(tmp_path / "small.keras")
    file = tmp_path / "small.onnx"
    Model.main(["--export", "onnx", "--weights", str(tmp_path / "small.keras"), "--out", str(file)])
    assert f"saved the network to {file}" in capsys.readouterr().out
    onnx.checker.check_model(file, full_check=True)
    gray = RNG.random((1, 1, 32, 32), np.float32)
    np.testing.assert_allclose(answer(start(file), gray), keras_answer(small, gray), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (keras.layers.Dropout(0.5, name="odd"), "layer odd: Dropout cannot be written"),
        (
            keras.layers.Conv2D(1, 3, dilation_rate=2, padding="same", name="odd"),
            "layer odd: Conv2D with dilation_rate",
        ),
        (keras.layers.ReLU(max_value=6, name="odd"), "layer odd: ReLU with max_value"),
        (keras.layers.Conv2D(1, 1, activation="tanh", name="odd"), "layer odd: the activation tanh"),
    ],
)
def test_layers_of_other_networks_are_named(layer, reason):
    gray = keras.Input((None, None, 1))
    model = keras.Model(gray, keras.layers.Conv2D(2, 1)(layer(gray)))
    with pytest.raises(UserError, match=reason):
        export.convert_network(model)


# The package.


def test_the_package_is_valid_by_the_specification(package):
    with ValidationContext(perform_io_checks=True, progressbar=False):
        description = load_model_description(package)  # raises where it is not
    summary = description.validation_summary
    assert summary.status in ("passed", "valid-format"), summary.format()
    assert description.format_version.startswith("0.5.")
    assert [author.name for author in description.authors] == ["the authors of this repository"]
    assert (description.license, description.cite[0].doi) == ("MIT", "10.1007/978-3-319-24574-4_28")
    (gray,) = description.inputs
    (probability,) = description.outputs
    assert [axis.id for axis in gray.axes] == ["batch", "channel", "y", "x"]
    assert [axis.id for axis in probability.axes] == ["batch", "channel", "y", "x"]
    for axis in gray.axes[2:]:
        assert axis.size.step == 16 and axis.size.min % 16 == 0
    assert probability.axes[1].channel_names == ["nucleus", "border"]


def test_the_package_answers_its_test_input_with_its_test_output(package, tmp_path):
    """Its own preprocessing, computed here as the specification defines it, then its ONNX weights."""
    with zipfile.ZipFile(package) as archive:
        assert set(archive.namelist()) >= {"README.md", "test_input.npy", "test_output.npy", "unet.onnx"}
        archive.extractall(tmp_path)
    description = load_model_description(package)
    steps = {step.id: step.kwargs for step in description.inputs[0].preprocessing}
    image = np.load(tmp_path / "test_input.npy")
    expected = np.load(tmp_path / "test_output.npy")
    scale = steps["scale_range"]
    assert "batch" not in scale.axes  # every image has percentiles of its own
    low, high = np.percentile(image[0], (scale.min_percentile, scale.max_percentile))
    gray = np.clip((image - low) / (high - low + scale.eps), steps["clip"].min, steps["clip"].max)
    found = answer(start(tmp_path / "unet.onnx"), gray.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert 0.05 < (expected[0, 0] > 0.5).mean() < 0.5  # nuclei are found


# Mistakes.


@pytest.mark.parametrize(
    ("target", "module", "advice"),
    [
        ("onnx", "onnx", "pip install onnx"),
        ("bioimageio", "onnx", "pip install onnx"),
        ("bioimageio", "bioimageio.spec", "pip install bioimageio.spec"),
    ],
)
def test_a_missing_package_is_named(target, module, advice, mistake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # its import fails
    assert advice in mistake("Model.py", "--export", target, "--weights", WEIGHTS, "--out", "unet.out")
    assert not list(tmp_path.iterdir())


def test_mistakes_of_the_export(mistake):
    assert "gone.keras: no such weights" in mistake("Model.py", "--export", "onnx", "--weights", "gone.keras")
    assert "nowhere" in mistake("Model.py", "--export", "onnx", "--weights", WEIGHTS, "--out", "nowhere/x.onnx")


def test_the_scripts_start_without_the_packages_of_the_export():
    code = "import sys, Model; print(sorted({'onnx', 'onnxruntime', 'bioimageio.spec'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.stdout == "[]\n", process.stderr
    requirements = Path(ROOT, "requirements.txt").read_text(encoding="utf-8")
    assert "onnx" not in requirements and "bioimageio" not in requirements
