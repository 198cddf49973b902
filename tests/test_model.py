"""The network's shapes, its loss and scores on hand-made answers, its compilation, and its file."""

import json
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, draw_nuclei
from sklearn.metrics import accuracy_score, f1_score

import Model
from data.crops import make_target
from data.files import UserError
from data.images import read_image

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return Model.Unet(depth=2, base_filters=4).build()


def random_case(batch=3, shape=(8, 12)):
    """truth (batch, H, W, 3) of 0 and 1, all pixels valid, and probability (batch, H, W, 2)."""
    truth = RNG.integers(0, 2, (batch, *shape, 3)).astype(np.float32)
    truth[..., 2] = 1
    return truth, RNG.random((batch, *shape, 2)).astype(np.float32)


def value(function, truth, probability):
    return keras.ops.convert_to_numpy(function(truth, probability))


# The network.


@pytest.mark.parametrize("shape", [(4, 4), (32, 64), (36, 20)])
def test_answer_has_the_size_of_the_image(small, shape):
    answer = small.predict(RNG.random((2, *shape, 1)), verbose=0)
    assert answer.shape == (2, *shape, 2)
    assert answer.dtype == np.float32
    assert 0 <= answer.min() < answer.max() <= 1


@pytest.mark.parametrize("depth, base_filters", [(1, 3), (2, 4), (3, 2)])
def test_depth_and_base_filters(depth, base_filters):
    model = Model.Unet(depth, base_filters).build()
    assert Model.depth_of(model) == depth
    convolutions = [layer for layer in model.layers if type(layer) is keras.layers.Conv2D]
    widths = [base_filters * times for times in (1, 3, 6, 12)]
    down = [filters for filters in widths[: depth + 1] for _ in (1, 2)]
    up = [filters for filters in reversed(widths[:depth]) for _ in (1, 2)]
    assert [layer.filters for layer in convolutions] == [*down, *up, 2]


def test_every_stage_has_its_skip_connection(small):
    shapes = {}
    for stage in range(2):
        skip = small.get_layer(f"up{stage}_skip")
        shapes[stage] = [x.shape[-1] for x in skip.input]
        assert skip.input[0] is small.get_layer(f"down{stage}_relu2").output
    assert shapes == {0: [4, 4], 1: [12, 12]}


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"base_filters": 0}, {"depth": -1}])
def test_a_network_of_nothing_is_refused(wrong):
    with pytest.raises(UserError, match="must be 1 or more"):
        Model.Unet(**wrong)


# Loss and scores.


def test_loss_is_near_0_for_the_truth_and_grows_with_the_error():
    truth, _ = random_case()
    none, some, large = (value(Model.segmentation_loss, truth, abs(truth[..., :2] - e)) for e in (0, 0.2, 0.9))
    assert none.shape == (3,)
    np.testing.assert_allclose(none, 0, atol=1e-3)
    assert (none < some).all()
    assert (some < large).all()


def test_loss_by_hand():
    # Nucleus: one pixel of two, both answered 0.5; border: none, none answered.
    truth = np.array([[[[1, 0, 1], [0, 0, 1]]]], np.float32)
    probability = np.array([[[[0.5, 0], [0.5, 0]]]], np.float32)
    expected = np.log(2) + 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    assert value(Model.segmentation_loss, truth, probability) == pytest.approx([expected], abs=1e-4)


def test_the_border_weighs_less_than_the_nucleus():
    truth = np.ones((1, 4, 4, 3), np.float32)
    wrong_nucleus = truth[..., :2].copy()
    wrong_nucleus[..., 0] = 0.1
    wrong_border = truth[..., :2].copy()
    wrong_border[..., 1] = 0.1
    nucleus = value(Model.segmentation_loss, truth, wrong_nucleus)
    border = value(Model.segmentation_loss, truth, wrong_border)
    assert border == pytest.approx(Model.BORDER_WEIGHT * nucleus, rel=1e-3)


@pytest.mark.parametrize("function", [Model.segmentation_loss, Model.accuracy, Model.dice])
def test_invalid_pixels_do_not_count(function):
    truth, probability = random_case()
    cropped = value(function, truth[:, :5, :9], probability[:, :5, :9])
    assert not np.allclose(value(function, truth, probability), cropped, rtol=1e-5)
    truth[:, 5:, :, 2] = 0
    truth[:, :, 9:, 2] = 0
    np.testing.assert_allclose(value(function, truth, probability), cropped, rtol=1e-5)


def test_dice_and_accuracy_are_those_of_scikit_learn():
    truth, probability = random_case()
    pairs = list(zip(truth[..., 0] > 0.5, probability[..., 0] > 0.5, strict=True))
    dice = [f1_score(t.ravel(), p.ravel()) for t, p in pairs]
    accuracy = [accuracy_score(t.ravel(), p.ravel()) for t, p in pairs]
    assert value(Model.dice, truth, probability) == pytest.approx(dice, abs=1e-5)
    assert value(Model.accuracy, truth, probability) == pytest.approx(accuracy, abs=1e-5)


def test_dice_of_empty_and_disjoint_masks():
    empty = np.zeros((1, 4, 4, 2), np.float32)
    truth = np.zeros((1, 4, 4, 3), np.float32)
    truth[..., 2] = 1
    assert value(Model.dice, truth, empty) == [1]
    assert value(Model.dice, truth, empty + 1) == pytest.approx([0], abs=1e-6)
    truth[..., 0] = 1
    assert value(Model.dice, truth, empty) == pytest.approx([0], abs=1e-6)
    assert value(Model.dice, truth, empty + 1) == [1]


# Compiled for training.


@pytest.fixture
def mixed_precision():
    """Layers that are made compute in bfloat16, as Train.py asks for."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield "mixed_bfloat16"
    keras.config.set_dtype_policy(policy)


def draw_batch(count=4, shape=(32, 32)):
    """gray (count, H, W, 1) and targets (count, H, W, 3) of drawn nuclei."""
    pairs = [draw_nuclei(shape, seed) for seed in range(count)]
    gray = np.stack([image / np.float32(255) for image, _ in pairs])
    return gray[..., None], np.stack([make_target(labels) for _, labels in pairs])


def test_training_steps_lower_the_loss():
    keras.utils.set_random_seed(0)
    model = Model.compile_unet(1, 4, learning_rate=0.01, total_steps=12)
    history = model.fit(*draw_batch(), epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert set(history) >= {"loss", "accuracy", "dice"}


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    model = Model.compile_unet(1, 2, learning_rate=0.1, total_steps=62)  # 2 of them warm up
    expected = {0: 0.005, 1: 0.0525, 2: 0.1, 32: 0.0505, 62: 0.001, 70: 0.001}
    found = {}
    for step in expected:
        model.optimizer.iterations.assign(step)
        found[step] = float(model.optimizer.learning_rate)
    assert found == pytest.approx(expected, rel=1e-4)
    assert model.optimizer.weight_decay == Model.WEIGHT_DECAY


def test_a_training_of_one_step_has_a_learning_rate():
    model = Model.compile_unet(1, 2, learning_rate=0.1, total_steps=1)
    assert 0 < float(model.optimizer.learning_rate) <= 0.1


def test_a_fused_normalization_trains_as_the_plain_one():
    keras.utils.set_random_seed(0)
    plain = Model.Unet(1, 4).build()
    fused = Model.fuse_normalization(plain)
    assert sum(isinstance(layer, Model.FusedNormalization) for layer in fused.layers) == 6
    gray, target = draw_batch(1, (64, 64))
    before = plain.get_weights()
    np.testing.assert_array_equal(plain.predict_on_batch(gray), fused.predict_on_batch(gray))
    for model in (plain, fused):
        model.compile(keras.optimizers.SGD(0.1), Model.segmentation_loss)
        model.train_on_batch(gray, target)
    for old, one, other in zip(before, plain.get_weights(), fused.get_weights(), strict=True):
        assert not np.array_equal(old, one)
        # The kernel divides the variance by n - 1 instead of n pixels, here 1024 or more.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_plain_copy_is_float32_of_plain_layers_and_has_the_same_weights(mixed_precision):
    model = Model.compile_unet(2, 4, learning_rate=0.01, total_steps=10)
    assert any(isinstance(layer, Model.FusedNormalization) for layer in model.layers)
    copy = Model.plain_copy(model)
    assert {type(layer) for layer in copy.layers} == {type(layer) for layer in Model.Unet().build().layers}
    assert keras.config.dtype_policy().name == mixed_precision
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for one, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


# The file.


def test_saved_and_loaded_it_predicts_the_same(tmp_path, small):
    small.save(tmp_path / "unet.keras")
    loaded = Model.load_unet(tmp_path / "unet.keras")
    gray = RNG.random((1, 16, 24, 1))
    np.testing.assert_array_equal(small.predict(gray, verbose=0), loaded.predict(gray, verbose=0))


def test_in_bfloat16_it_predicts_nearly_the_same_whatever_the_batch():
    shipped = Model.load_unet(ROOT / Model.WEIGHTS)
    quick = Model.load_unet(ROOT / Model.WEIGHTS, "mixed_bfloat16")
    assert quick.calibration == shipped.calibration
    assert {layer.compute_dtype for layer in quick.layers} == {"bfloat16", "float32"}
    assert keras.config.dtype_policy().name == "float32"
    gray = read_image(ROOT / Model.EXAMPLE)[None, ..., :1] / np.float32(255)
    batch = np.concatenate([gray, gray[:, ::-1]])
    answer = quick.predict_on_batch(batch)
    assert answer.dtype == np.float32
    difference = np.abs(answer - shipped.predict_on_batch(batch))
    assert 0 < difference.mean() < 0.001 and difference.max() < 0.5
    np.testing.assert_array_equal(answer[:1], quick.predict_on_batch(gray))


def make_model(channels_in=1, channels_out=2, first=None):
    image = keras.Input((None, None, channels_in))
    x = first(image) if first else image
    return keras.Model(image, keras.layers.Conv2D(channels_out, 1)(x))


def save_strange(file):
    """A model with a layer of somebody's own, which is no part of Keras."""

    @keras.saving.register_keras_serializable("strange")
    class Strange(keras.layers.Layer):
        def call(self, x):
            return x

    make_model(first=Strange()).save(file)
    keras.saving.get_custom_objects().pop("strange>Strange")


def save_cut(file):
    """The first half of a whole file."""
    make_model().save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def save_running(file):
    """A configuration that names a function of Python to be called."""
    make_model().save(file)
    with zipfile.ZipFile(file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    made = f"open({str(file.with_name('harm'))!r}, 'w').close()"
    call = {"module": "builtins", "class_name": "exec", "config": {"source": made}}
    files["config.json"] = json.dumps(call | {"registered_name": None}).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def save_other_layers(file):
    """A network between the same shapes, which is no U-Net."""
    make_model(channels_out=2).save(file)


FOREIGN = {
    "other layers": save_other_layers,
    "a layer of somebody's own": save_strange,
    "cut": save_cut,
    "something to run": save_running,
    "three channels in": make_model(channels_in=3).save,
    "one channel out": make_model(channels_out=1).save,
    "not built": keras.Sequential([keras.layers.Conv2D(2, 1)]).save,
    "lambda layer": make_model(first=keras.layers.Lambda(lambda x: x + 1)).save,
    "text": lambda file: file.write_text("no weights"),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_refused_by_name(tmp_path, what):
    FOREIGN[what](tmp_path / "foreign.keras")
    with pytest.raises(UserError, match=r"foreign\.keras: ") as caught:
        Model.load_unet(tmp_path / "foreign.keras")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.keras"]  # nothing was run


def test_missing_weights_are_named_with_those_of_the_project(tmp_path):
    with pytest.raises(UserError, match=r"gone\.keras: no such weights.* weights/unet\.keras"):
        Model.load_unet(tmp_path / "gone.keras")


def test_a_lack_of_memory_is_not_blamed_on_the_file(tmp_path, small, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    small.save(tmp_path / "unet.keras")
    monkeypatch.setattr(keras.models, "load_model", fail)
    with pytest.raises(MemoryError):
        Model.load_unet(tmp_path / "unet.keras")


def test_operations_of_a_pixel_are_those_counted_by_hand():
    model = Model.Unet(depth=1, base_filters=1).build()
    # Full size: 3×3 1->1, 1->1, then (after the copy) 2->1, 1->1, and 1×1 1->2.
    full = 9 + 9 + 18 + 9 + 2
    # A quarter of the pixels: 3×3 1->3, 3->3, and the 2×2 up-convolution 3->1.
    quarter = 27 + 81 + 12
    assert Model.flops_per_pixel(model) == 2 * (full + quarter / 4)


# The command line.


def test_command_draws_the_network(tmp_path, run):
    answer = run("Model.py", "--depth", 2, "--base-filters", 4, "--out", "x.png")
    assert answer.returncode == 0, answer.stderr
    assert "down1_conv2" in answer.stdout and "x.png" in answer.stdout
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_of_the_command(mistake):
    assert "depth" in mistake("Model.py", "--depth", 0)
    small = ("--depth", 1, "--base-filters", 1)
    assert "nowhere" in mistake("Model.py", *small, "--out", "nowhere/x.png")
    assert "x.foo: expected a name that ends in .png" in mistake("Model.py", *small, "--out", "x.foo")


@pytest.mark.parametrize(
    ("flags", "gpus", "precision"),
    [
        ("flags : fpu amx_bf16 avx512f", [], "mixed_bfloat16"),
        ("vendor_id : GenuineIntel\nflags : fpu avx512_bf16", [], "float32"),
        ("vendor_id : AuthenticAMD\nflags : fpu avx512_bf16", [], "mixed_bfloat16"),
        ("vendor_id : AuthenticAMD\nflags : fpu avx2", [], "float32"),
        ("flags : fpu", ["gpu:0"], "mixed_bfloat16"),
        (None, [], "float32"),
    ],
)
def test_the_precision_is_that_which_is_fast_here(tmp_path, monkeypatch, flags, gpus, precision):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(flags)
    monkeypatch.setattr(Model, "PROCESSOR", file)
    monkeypatch.setattr(Model.keras.distribution, "list_devices", lambda kind: gpus)
    assert Model.fastest_precision() == precision
