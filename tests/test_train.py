"""A training that can be stopped and resumed, on drawn nuclei and a tiny network."""

import contextlib
import dataclasses
import importlib.machinery
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
import tifffile
from conftest import (
    ROOT,
    SMALL,
    TINY,
    draw_nuclei,
    draw_pair,
    draw_source,
    load_once,
    make_crops,
    save_image,
    write_source,
)
from scipy import ndimage
from sklearn.metrics import accuracy_score, f1_score

import Model
import Predict_masks
import Train
from data import options
from data.confidence import score_jobs
from data.crops import TrainingImage, whole_image
from data.files import UserError, hash_file
from data.images import read_image
from data.intensity import optical_density
from data.sources import find_samples
from data.stacks import find_channels
from data.truth import read_labels
from Evaluate_model import dice_score
from Preprocessed_data import FLUORESCENCE, STAINED_TISSUE, prepare_image, to_grayscale

RUN_ID = "interrupted"
IDS = [f"image_{number:02}" for number in range(8)]


pytestmark = pytest.mark.usefixtures("keep_precision")


def as_arguments(options):
    arguments = []
    for name, value in dataclasses.asdict(options).items():
        if value is not None:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    return arguments


def make_command(data, out, options=TINY, *more):
    return ["--data", str(data), "--out", str(out), *as_arguments(options), *more]


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def assert_same_history(one, other):
    assert len(one) == len(other)
    for a, b in zip(without_seconds(one), without_seconds(other), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def read_record(out):
    return json.loads((out / "training.json").read_text())


def read_files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Options.


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seed": -1}, "--seed"),
        ({"split_seed": -1}, "--split-seed"),
        ({"base_filters": 0}, "--base-filters"),
        ({"crop_size": 31}, "--crop-size must be a multiple of 2, not 31"),
        ({"epochs": 0}, "must be above 0"),
        ({"crops": 0}, "must be above 0"),
        ({"batch_size": -1}, "must be above 0"),
        ({"learning_rate": 0}, "must be above 0"),
        ({"learning_rate": float("nan")}, "must be above 0"),
        ({"split_seed": 2**32}, "must be from 0 to 4294967295"),
        ({"depth": 0}, "--depth"),
    ],
)
def test_options_that_do_not_fit(drawn, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        Train.train([str(drawn)], str(tmp_path), dataclasses.replace(TINY, **wrong), RUN_ID)


@pytest.mark.parametrize(("given", "seeds"), [([], (2018, 2018)), (["--seed", "4"], (4, 4))])
def test_the_split_follows_the_seed_unless_it_has_its_own(given, seeds):
    chosen = options.choose_options(Train.parse_args(given))
    assert (chosen.seed, chosen.split_seed) == seeds
    chosen = options.choose_options(Train.parse_args([*given, "--split-seed", "7"]))
    assert (chosen.seed, chosen.split_seed) == (seeds[0], 7)


def test_a_batch_is_shared_out_evenly_to_the_processes():
    TINY.check(processes=2)
    with pytest.raises(UserError, match="--batch-size must be a multiple of 3"):
        TINY.check(processes=3)


@pytest.mark.parametrize(("images", "crops"), [(1, 256), (20, 320), (100, 1024)])
def test_crops_that_are_not_given_suit_the_number_of_images(images, crops):
    assert dataclasses.replace(TINY, crops=None).with_crops(images).crops == crops
    assert TINY.with_crops(images) == TINY


@pytest.mark.parametrize(("crops", "steps"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_an_epoch_has_at_least_its_crops(crops, steps):
    assert dataclasses.replace(TINY, crops=crops).steps_per_epoch == steps


# A whole training.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_source(folder, shapes=((32, 32), (31, 36)))
    return folder


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def noted():
    """What `trained` does on its way."""
    return types.SimpleNamespace(
        fixed_edges=[],  # whether each crop has them, in the order in which they are drawn
        weights=[],  # after each epoch
        printed=io.StringIO(),
        terminal=Terminal(),  # stderr
    )


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory, noted):
    """What the command leaves behind, a training from beginning to end, in a terminal."""

    class NotedCrops(Train.Crops):
        def draw(self, image_index, rng, fixed_edges):
            noted.fixed_edges.append(fixed_edges)
            return super().draw(image_index, rng, fixed_edges)

    class NotedEpochs(Train.KeepEpochs):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            noted.weights.append(self.model.get_weights())

    out = tmp_path_factory.mktemp("trained") / "new" / "weights"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Train, "Crops", NotedCrops)
        patch.setattr(Train, "KeepEpochs", NotedEpochs)
        with contextlib.redirect_stdout(noted.printed), contextlib.redirect_stderr(noted.terminal):
            Train.main(make_command(drawn, out))
    return out


def test_training_leaves_these_files_and_no_others(trained):
    files = ["accuracy.png", "examples.png", "history.csv", "loss.png", "training.json", "unet.keras"]
    assert sorted(file.name for file in trained.iterdir()) == files
    for name in ("accuracy.png", "examples.png", "loss.png"):
        picture = read_image(trained / name)
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 5


def test_history_has_a_row_an_epoch(trained):
    history = Train.read_history(trained / "history.csv")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    names = {"loss", "accuracy", "dice", "val_loss", "val_accuracy", "val_dice", "learning_rate"}
    assert all(names < set(row) for row in history)
    assert all(0 <= row[name] <= 1 for row in history for name in ("val_dice", "val_accuracy"))
    assert len({row["loss"] for row in history}) == 3


def test_a_training_shows_how_it_goes_and_what_comes_next(trained, noted):
    history = Train.read_history(trained / "history.csv")
    lines = noted.printed.getvalue().splitlines()
    shown = [line for line in lines if line.startswith("epoch ")]
    assert len(shown) == 3
    for row, line in zip(history, shown, strict=True):
        scores = f"loss {row['loss']:.4f}, training Dice {row['dice']:.4f}, validation Dice {row['val_dice']:.4f}"
        assert line.startswith(f"epoch {row['epoch']}/3: {row['seconds']} s, {scores}, ")
    assert shown[0].endswith(", kept")
    assert any(re.search(r"images, one file a nucleus, \d+ nuclei, median \d+ pixels wide$", line) for line in lines)
    assert sum("kept epoch 3" in line for line in lines) == 1
    commands = [line for line in lines if "python " in line]
    assert len(commands) <= 4
    assert any("Main.py --data" in line for line in commands)  # the source has its truth
    for words in ("Predict_masks.py --data IMAGES", "Evaluate_model.py --truth", "Model.py --export"):
        assert sum(f"python {words}" in line for line in commands) == 1
    assert f"--weights {trained / 'unet.keras'}" in commands[0]
    bar = noted.terminal.getvalue()
    assert all(words in bar for words in ("epoch 1/3", "epoch 3/3", "/4 [", "loss=", "validating"))
    assert bar.rsplit("\r", 2)[1].isspace()  # the last bar is wiped away


def test_training_json_says_what_was_trained_on(trained):
    record = read_record(trained)
    assert record["options"] == dataclasses.asdict(TINY)
    assert len(record["run_id"]) == 32
    assert record["images"] == 8
    assert len(record["data_sha256"]) == 64
    assert record["validation_ids"]
    assert record["training_ids"]
    assert sorted(record["training_ids"] + record["validation_ids"]) == IDS
    kinds = [STAINED_TISSUE if name in ("image_02", "image_05") else FLUORESCENCE for name in record["validation_ids"]]
    assert record["validation_kinds"] == kinds
    assert "fine_tuning" not in record
    history = Train.read_history(trained / "history.csv")
    assert record["kept"] == history[-1]  # of the last fifth of three epochs


def test_the_weights_are_those_of_the_best_epoch(trained, drawn):
    model = Model.load_unet(trained / "unet.keras")
    record = read_record(trained)
    scores = []
    for sample in find_samples(drawn):
        if sample.id in record["validation_ids"]:
            image = read_image(sample.image)
            labels = read_labels(sample, image.shape[:2])
            batch, target = whole_image(to_grayscale(image), labels, 2**TINY.depth)
            score = Model.dice(target, model.predict(batch, verbose=0))
            scores.append(float(score[0]))
    assert np.mean(scores) == pytest.approx(record["kept"]["val_dice"], abs=1e-4)


def test_a_training_ends_with_fixed_edges(trained, noted):
    # Of 12 batches of 4 the last 2: the first id that is at least 9.6 is 10.
    assert noted.fixed_edges.count(True) == 8
    assert all(noted.fixed_edges[-8:])
    assert noted.fixed_edges.count(False) >= 40  # Keras draws some of the first ones twice


def test_few_images_are_trained_on_from_trained_weights(trained, tmp_path, monkeypatch, capsys):
    class Noted(keras.callbacks.Callback):
        """Stands for Keras's TensorBoard, whose package need not be installed."""

        def __init__(self, folder, write_graph):
            super().__init__()
            calls.append(folder)

        def on_epoch_end(self, epoch, logs=None):
            calls.append(logs)

    calls = []
    package = types.ModuleType("tensorboard")
    package.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setattr(keras.callbacks, "TensorBoard", Noted)
    monkeypatch.setattr(options, "MIN_CROPS", 8)
    monkeypatch.setattr(options, "CROPS_PER_IMAGE", 4)
    images = {name: draw_nuclei((40, 40), seed) for seed, name in enumerate(("one", "two"), start=20)}
    source = write_source(tmp_path / "few", images)
    start = trained / "unet.keras"
    few = dataclasses.replace(TINY, epochs=1, crops=None, learning_rate=1e-9)
    more = ("--from", str(start), "--tensorboard", "logs")
    Train.main(make_command(source, tmp_path / "out", few, *more))

    record = read_record(tmp_path / "out")
    assert record["from_weights_sha256"] == hash_file(start)
    assert record["options"]["from_weights"] == str(start)
    assert record["options"]["crops"] == 8
    networks = [Model.load_unet(file) for file in (start, tmp_path / "out/unet.keras")]
    for one, other in zip(*(network.trainable_variables for network in networks), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # The weights that are given are scored as they predict.
    (name,) = record["validation_ids"]
    image, truth = images[name]
    labels, _ = Predict_masks.segment_image(networks[0], image)
    scores = record["fine_tuning"]["dice"]
    assert scores["before"] == pytest.approx(dice_score(truth > 0, labels > 0))
    assert scores["difference"] == pytest.approx(scores["after"] - scores["before"])
    assert (scores["images"], scores["interval"]) == (1, None)
    printed = capsys.readouterr().out
    assert printed.index("of the pixels above 0.5") < printed.index("of whole predictions, as Main.py scores them")
    assert "epochs: 1, crops an epoch: 8" in printed
    assert f"without an interval, for which it takes two images: not shown to be better than {start}" in printed
    folder, logs = calls
    assert folder == "logs"
    assert logs["val_dice"] == pytest.approx(record["kept"]["val_dice"], abs=1e-6)


def test_tensorboard_is_asked_for_before_the_data_are_read(mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = mistake("Train.py", "--data", "nowhere", "--tensorboard", "logs")
    assert "pip install tensorboard" in message


def test_one_image_is_trained_on_and_shows_nothing(trained, tmp_path, capsys):
    source = write_source(tmp_path / "one", {"single": draw_nuclei((40, 40), 20)})
    options = dataclasses.replace(TINY, epochs=1, crops=8)
    out = tmp_path / "out"
    Train.main(make_command(source, out, options, "--from", str(trained / "unet.keras")))

    record = read_record(out)
    assert (record["training_ids"], record["validation_ids"]) == (["single"], [])
    assert "fine_tuning" not in record
    # Nothing may choose another calibration than that of the weights that it started from.
    assert Model.read_calibration(out / "unet.keras") == Model.read_calibration(trained / "unet.keras")
    assert record["calibration"]["weights_sha256"] == hash_file(out / "unet.keras")
    assert {"unet.keras", "examples.png", "accuracy.png"} <= {file.name for file in out.iterdir()}
    printed = capsys.readouterr().out
    assert "warning: all images are of one picture, so none is left to validate on" in printed
    assert "1 images to train on, 0 to validate" in printed
    assert "predicting the 0 validation images" in printed
    assert "Main.py" not in printed  # it scores no image that was trained on
    kept = record["kept"]
    assert f"kept epoch 1: Dice on the images trained on {kept['val_dice']:.4f}, of the pixels above 0.5" in printed
    assert "better" not in printed


@pytest.mark.parametrize("count", [2, 3])
def test_of_two_images_or_three_one_validates(tmp_path, count):
    source = write_source(tmp_path / "few", {str(seed): draw_nuclei(seed=seed) for seed in range(count)})
    record = Train.load_data(find_samples(source), TINY)[2]
    assert (len(record["training_ids"]), len(record["validation_ids"])) == (count - 1, 1)


def test_weights_that_saw_the_validation_images_are_refused(trained, drawn, tmp_path):
    options = dataclasses.replace(TINY, epochs=1, crops=4, split_seed=4)
    ids = [set(Train.load_data(find_samples(drawn), chosen)[2]["validation_ids"]) for chosen in (TINY, options)]
    assert ids[0] != ids[1]
    command = [*make_command(drawn, tmp_path / "out", options), "--from", str(trained / "unet.keras")]
    with pytest.raises(UserError, match="it was trained on .* of the images to validate on"):
        Train.main(command)


def test_weights_that_are_not_there_are_named_before_the_data_are_read(tmp_path):
    with pytest.raises(UserError, match=r"--from nowhere\.keras: no such weights"):
        Train.main([*make_command(tmp_path / "no_data", tmp_path / "out"), "--from", "nowhere.keras"])


def test_scores_of_a_training_are_those_of_whole_predictions(keep_precision):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(300, 300)), 4)
    image = (1000 + 150 * noise / noise.std()).astype(np.uint16)
    gray, normalization, debris = prepare_image(image)
    network = load_once()
    pair = TrainingImage(gray, np.zeros(gray.shape, np.int32), None, normalization.has_signal, debris)
    (job,) = Train.predict_images(network, network.get_weights(), [pair], network.calibration)
    assert job.labels_future.result().any()  # which `segment` does not keep
    assert score_jobs([job], [pair.labels], network.calibration)["dice"].tolist() == [1]
    assert Predict_masks.segment(image, network).max() == 0


def test_what_was_predicted_on_a_dark_background_is_not_stained_anew(tmp_path):
    for seed in range(2):
        save_image(tmp_path / f"images/{seed}.png", draw_nuclei((64, 60 + seed), seed, stained=True)[0])
    out = tmp_path / "nuclei"
    Predict_masks.main(["--data", str(tmp_path / "images"), "--out", str(out), "--background", "dark"])
    pairs, _, record = Train.load_data(find_samples(tmp_path / "images", out, with_truth=True), TINY)
    assert [pairs[name].density for name in record["training_ids"]] == [None]


def test_weights_that_would_be_replaced_are_no_start(trained, drawn):
    command = make_command(drawn, trained, TINY, "--from", str(trained / "unet.keras"), "--overwrite")
    before = read_files(trained)
    with pytest.raises(UserError, match="lies in --out and would be replaced; name another --out"):
        Train.main(command)
    assert read_files(trained) == before


def test_weights_of_another_shape_are_refused(trained, drawn, tmp_path):
    options = dataclasses.replace(TINY, epochs=1, crops=4, base_filters=8)
    command = [*make_command(drawn, tmp_path / "out", options), "--from", str(trained / "unet.keras")]
    with pytest.raises(UserError, match="another --depth or --base-filters"):
        Train.main(command)


# The data.


def test_a_kind_held_out_is_validated_on(drawn):
    pairs, probabilities, record = Train.load_data(
        find_samples(drawn), dataclasses.replace(TINY, hold_out=STAINED_TISSUE)
    )
    assert sorted(pairs) == IDS
    assert record["validation_ids"] == ["image_02", "image_05"]
    assert sorted(record["training_ids"] + record["validation_ids"]) == IDS
    assert len(probabilities) == 6
    assert record["options"]["hold_out"] == STAINED_TISSUE


@pytest.mark.parametrize("named", [None, "1"])
def test_corrected_labels_of_a_channel_are_trained_on_in_that_channel(tmp_path, capsys, named):
    image, labels = draw_nuclei((40, 40))
    other = np.random.default_rng(0).integers(0, 250, image.shape, np.uint8)
    stack = tmp_path / "images/a.tif"
    stack.parent.mkdir()
    tifffile.imwrite(stack, np.stack([other, image]), imagej=True, metadata={"axes": "CYX"})
    out = tmp_path / "nuclei"
    Predict_masks.main(["--data", str(stack), "--out", str(out), "--channel", "2"])
    tifffile.imwrite(out / "labels/a.tif", labels.astype(np.uint16))  # as corrected in another program
    capsys.readouterr()
    samples = find_channels(find_samples(tmp_path / "images", out, with_truth=True))
    assert capsys.readouterr().err == ""  # the other results are not left out
    pairs, _, _ = Train.load_data(samples, dataclasses.replace(TINY, channel=named))
    np.testing.assert_array_equal(pairs["a"].gray, to_grayscale(other if named else image))
    np.testing.assert_array_equal(pairs["a"].labels, labels)


def test_labels_on_a_background_that_was_named_are_trained_on_that_background(tmp_path, capsys):
    image, labels = draw_nuclei((40, 40))
    save_image(tmp_path / "images/a.png", 255 - image)
    out = tmp_path / "nuclei"
    Predict_masks.main(["--data", str(tmp_path / "images"), "--out", str(out), "--background", "dark"])
    tifffile.imwrite(out / "labels/a.tif", labels.astype(np.uint16))
    pairs, _, _ = Train.load_data(find_samples(tmp_path / "images", out, with_truth=True), TINY)
    assert pairs["a"].gray[labels > 0].mean() < pairs["a"].gray[labels == 0].mean()  # bright nuclei by themselves


def test_merges_of_colours_are_named(tmp_path, capsys):
    image, labels = draw_nuclei((40, 40))
    merge = np.dstack([np.rot90(image), 0 * image, image])
    source = write_source(tmp_path / "source", {"a": (merge, labels)})
    pairs, _, _ = Train.load_data(find_samples(source), TINY)
    assert "warning: colours of a show different things; --channel names that of the nuclei" in capsys.readouterr().out
    pairs, _, _ = Train.load_data(find_samples(source), dataclasses.replace(TINY, channel="blue"))
    assert "--channel" not in capsys.readouterr().out
    np.testing.assert_array_equal(pairs["a"].gray, to_grayscale(image))


def test_the_density_is_kept_of_stained_tissue_that_is_trained_on(drawn):
    pairs, _, record = Train.load_data(find_samples(drawn), TINY)
    with_density = [name for name in IDS if pairs[name].density is not None]
    assert with_density == [name for name in ("image_02", "image_05") if name in record["training_ids"]]
    assert with_density
    for sample in find_samples(drawn):
        if sample.id in with_density:
            np.testing.assert_array_equal(pairs[sample.id].density, optical_density(read_image(sample.image)))
    held_out, _, _ = Train.load_data(find_samples(drawn), dataclasses.replace(TINY, hold_out=STAINED_TISSUE))
    assert all(pair.density is None for pair in held_out.values())


def test_a_training_on_two_sources_learns_from_both_and_keeps_a_finished_one(trained, drawn, tmp_path):
    out = shutil.copytree(trained, tmp_path / "out")
    before = (out / "unet.keras").read_bytes()
    tissue = {f"{patient:02}_1": draw_nuclei(seed=patient, stained=True) for patient in (1, 2, 4, 9)}
    write_source(tmp_path / "tnbc", tissue)
    command = make_command(drawn, out, dataclasses.replace(TINY, epochs=1, crops=4))
    command.insert(2, str(tmp_path / "tnbc"))
    with pytest.raises(UserError, match=r"holds a finished training.*--overwrite"):
        Train.main(command)
    assert (out / "unet.keras").read_bytes() == before
    Train.main([*command, "--overwrite"])
    assert (out / "unet.keras.before").read_bytes() == before
    assert (out / "unet.keras").read_bytes() != before
    record = read_record(out)
    alone = Train.load_data(find_samples(drawn), TINY)[2]
    assert record["training_ids"] == ["01_1", "02_1", *alone["training_ids"]]
    assert record["validation_ids"] == ["04_1", "09_1", *alone["validation_ids"]]
    assert record["images"] == 12


# What every epoch checks and writes.


def make_keeper(out, model, record, crops=None, validation=()):
    keeper = Train.KeepEpochs(out, record, [], crops, validation)
    keeper.set_model(model)
    keeper.on_epoch_begin(0)
    return keeper


def test_validation_is_the_mean_over_whole_images_of_any_sizes(tmp_path):
    keras.utils.set_random_seed(1)
    model = Model.compile_unet(2, 4, learning_rate=0.01, total_steps=1)
    images = [draw_pair(shape, seed) for seed, shape in enumerate([(32, 32), (32, 32), (36, 44)])]
    dice = []
    accuracy = []
    for gray, labels, *_ in images:
        probability = model.predict(gray[None, ..., None], verbose=0)[0, ..., 0]
        masks = (labels > 0).ravel(), (probability > 0.5).ravel()
        dice.append(f1_score(*masks))
        accuracy.append(accuracy_score(*masks))
    keeper = make_keeper(tmp_path, model, {}, validation=images)
    for _ in range(2):  # the first time leaves nothing over to the second
        means = keeper.validate()
        assert means["val_dice"] == pytest.approx(np.mean(dice), abs=1e-4)
        assert means["val_accuracy"] == pytest.approx(np.mean(accuracy), abs=1e-4)


@pytest.mark.parametrize(
    ("hold_out", "ids", "epochs", "kept"),
    [(None, ["b"], 30, 2), (None, ["b"], 3, 3), (STAINED_TISSUE, ["b"], 30, 3), (None, [], 30, 3)],
)
def test_the_best_epoch_of_the_last_fifth_is_kept_or_the_last(tmp_path, monkeypatch, hold_out, ids, epochs, kept):
    dice = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(Train.KeepEpochs, "validate", lambda _: {"val_loss": 1.0, "val_dice": next(dice)})
    model = Model.compile_unet(1, 2, learning_rate=0.01, total_steps=3)
    record = {"options": {"hold_out": hold_out, "epochs": epochs}, "training_ids": ["a"], "validation_ids": ids}
    keeper = make_keeper(tmp_path, model, record)
    for epoch in range(3):
        model.get_layer("probability").bias.assign([epoch + 1, 0])
        keeper.on_epoch_end(epoch, {"loss": 1.0})
    assert Train.find_record(tmp_path / "unet.keras")["kept"]["epoch"] == kept
    loaded = Model.load_unet(tmp_path / "unet.keras")
    np.testing.assert_array_equal(loaded.get_layer("probability").bias, [kept, 0])


def test_only_one_of_several_processes_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(Train.KeepEpochs, "validate", lambda _: {"val_loss": 1.0, "val_dice": 0.5})
    record = {"options": {"hold_out": None, "epochs": 1}, "validation_ids": ["b"]}
    keeper = make_keeper(tmp_path, Model.compile_unet(1, 2, 0.01, 1), record)
    keeper.is_writer = False
    keeper.on_epoch_end(0, {"loss": 1.0})
    assert len(keeper.history) == 1
    assert not list(tmp_path.iterdir())


def test_a_nan_loss_ends_the_training_with_an_error(source, tmp_path, monkeypatch):
    def broken(truth, probability):
        return keras.ops.mean(probability, axis=(1, 2, 3)) * float("nan")

    monkeypatch.setattr(Model, "segmentation_loss", broken)
    with pytest.raises(UserError, match="NaN or infinite in epoch 1, in the batches of image_0"):
        Train.train([str(source)], str(tmp_path / "out"), TINY, RUN_ID)
    assert not list((tmp_path / "out").iterdir())


def test_a_nan_loss_names_the_images_of_its_batch_and_of_the_one_before(tmp_path):
    crops = make_crops(dataclasses.replace(SMALL, batch_size=1))
    ids = ["first", "second", "third"]
    keeper = make_keeper(tmp_path, None, {"training_ids": ids}, crops)
    drawn = [ids[crops.draw_images(index)[0][0]] for index in range(len(crops))]
    for index in range(4):
        keeper.on_train_batch_end(index, {"loss": 0.5})
    with pytest.raises(UserError, match="smaller --learning-rate") as caught:
        keeper.on_train_batch_end(4, {"loss": np.inf})
    named = {name for name in ids if name in str(caught.value)}
    assert named == set(drawn[3:5])
    assert named < set(ids)


def test_weights_broken_by_the_last_batch_are_not_kept(tmp_path):
    model = Model.compile_unet(1, 2, learning_rate=0.01, total_steps=1)
    model.get_layer("probability").bias.assign([np.nan, 0])
    record = {"training_ids": IDS, "options": {"hold_out": None, "epochs": 1}}
    keeper = make_keeper(tmp_path, model, record, make_crops(), [draw_pair((32, 32))])
    keeper.on_train_batch_end(0, {"loss": 0.5})  # the loss of before the step
    with pytest.raises(UserError, match="NaN or infinite in epoch 1"):
        keeper.on_epoch_end(0, {"loss": 0.5})
    assert not list(tmp_path.iterdir())


# An interrupted training.


@pytest.fixture(scope="module")
def interrupted(drawn, tmp_path_factory):
    """What is left of the training of `trained`, stopped by Ctrl-C in its third epoch."""

    class Stopped(Train.KeepEpochs):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.history) == 2 and batch == 1:
                raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Train, "KeepEpochs", Stopped)
        with pytest.raises(KeyboardInterrupt):
            Train.train([str(drawn)], str(out), TINY, RUN_ID)
    return out


@pytest.fixture
def stopped(interrupted, tmp_path):
    """A copy of `interrupted` for one test."""
    return shutil.copytree(interrupted, tmp_path / "stopped")


@pytest.fixture(scope="module")
def resumed(interrupted, drawn, tmp_path_factory):
    """What the command leaves behind that resumes `interrupted` and comes to its end."""
    out = shutil.copytree(interrupted, tmp_path_factory.mktemp("resumed") / "out")
    Train.main(make_command(drawn, out, TINY, "--resume"))
    return out


def test_an_interrupted_training_keeps_its_epochs(interrupted):
    assert len(Train.read_history(interrupted / "history.csv")) == 2
    assert (interrupted / "last.weights.h5").is_file()
    assert Model.depth_of(Model.load_unet(interrupted / "unet.keras")) == TINY.depth
    assert read_record(interrupted)["run_id"] == RUN_ID


def test_two_trainings_of_one_seed_are_the_same(trained, noted, interrupted):
    history = Train.read_history(trained / "history.csv")[:2]
    assert without_seconds(Train.read_history(interrupted / "history.csv")) == without_seconds(history)
    kept_epoch = read_record(interrupted)["kept"]["epoch"]
    weights = Model.load_unet(interrupted / "unet.keras").get_weights()
    for one, other in zip(weights, noted.weights[kept_epoch - 1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_training_ends_as_if_it_had_not_been_interrupted(trained, resumed):
    history = Train.read_history(resumed / "history.csv")
    assert_same_history(history, Train.read_history(trained / "history.csv"))
    assert {file.name for file in resumed.iterdir()} == {file.name for file in trained.iterdir()}
    weights = Model.load_unet(resumed / "unet.keras").get_weights()
    expected = Model.load_unet(trained / "unet.keras").get_weights()
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_resumed_training_keeps_its_run_id(trained, resumed):
    record = read_record(resumed)
    assert record["run_id"] == RUN_ID
    changed = {"run_id": "", "kept": {}, "calibration": {}}
    assert record | changed == read_record(trained) | changed


def test_a_record_of_an_older_version_without_run_id_can_be_resumed(drawn, stopped, monkeypatch):
    record = read_record(stopped)
    del record["run_id"]
    (stopped / "training.json").write_text(json.dumps(record))
    begun = []

    class Stopped(Train.KeepEpochs):
        def on_epoch_begin(self, epoch, logs=None):
            begun.append(epoch)
            raise KeyboardInterrupt

    monkeypatch.setattr(Train, "KeepEpochs", Stopped)
    command = make_command(drawn, stopped, TINY, "--resume")
    with pytest.raises(KeyboardInterrupt) as told:
        Train.main(command)
    assert begun == [2]  # counted from 0
    assert str(told.value).endswith(f"python Train.py {shlex.join(command)}")


def test_the_checkpoint_says_which_epochs_are_done(stopped):
    before = read_record(stopped)
    history = Train.read_history(stopped / "history.csv")
    # Stopped after the third row was written and before its checkpoint was.
    Train.save_history([*history, history[1] | {"epoch": 3}], stopped / "history.csv")
    model = Model.compile_unet(TINY.depth, TINY.base_filters, TINY.learning_rate, total_steps=12)
    record = {key: before[key] for key in ("options", "data_sha256", "validation_ids")}
    assert Train.load_last_epoch(model, stopped, record, TINY.steps_per_epoch) == history
    assert record["kept"] == before["kept"]  # no later epoch need be better
    assert int(model.optimizer.iterations) == 8


def test_resume_without_an_interrupted_training(drawn, trained, tmp_path, monkeypatch):
    monkeypatch.delattr(Train, "train")  # it is said before
    for out in (tmp_path, trained):
        with pytest.raises(UserError, match="no interrupted training"):
            Train.main(make_command(drawn, out, TINY, "--resume"))


def test_resume_with_other_options_or_data(drawn, stopped, tmp_path):
    before = read_files(stopped)
    with pytest.raises(UserError, match="other options"):
        Train.train([str(drawn)], str(stopped), dataclasses.replace(TINY, seed=4), RUN_ID, resume=True)
    draw_source(tmp_path / "other", count=7)
    with pytest.raises(UserError, match="other data"):
        Train.train([str(tmp_path / "other")], str(stopped), TINY, RUN_ID, resume=True)
    assert read_files(stopped) == before


# The command line.


def stop(*_, **__):
    raise KeyboardInterrupt


def set_times(folder, seconds):
    for file in folder.iterdir():
        os.utime(file, (seconds, seconds))


@pytest.mark.parametrize("moment", ["load_data", "Crops"])
@pytest.mark.parametrize("seconds", [0, 2**32], ids=["old files", "files from the future"])
def test_before_its_first_epoch_a_training_advises_nobody_to_resume_another(
    stopped, drawn, monkeypatch, moment, seconds
):
    set_times(stopped, seconds)
    monkeypatch.setattr(Train, moment, stop)
    with pytest.raises(KeyboardInterrupt) as told:
        Train.main(make_command(drawn, stopped, TINY, "--overwrite"))
    assert str(told.value) == ""
    # What it did not replace yet it leaves to the other training.
    assert Train.can_resume(stopped, RUN_ID) == (moment == "load_data")


@pytest.mark.parametrize("seconds", [0, 2**32], ids=["old files", "files from the future"])
def test_stopped_at_once_a_resumed_training_can_be_resumed_again(stopped, drawn, monkeypatch, seconds):
    set_times(stopped, seconds)
    monkeypatch.setattr(Train, "load_data", stop)
    command = make_command(drawn, stopped, TINY, "--resume")
    with pytest.raises(KeyboardInterrupt) as told:
        Train.main(command)
    assert str(stopped) in str(told.value)
    assert str(told.value).endswith(f"continue with: python Train.py {shlex.join(command)}")  # one --resume


def test_every_training_has_its_own_run_id_and_the_options_of_the_command(tmp_path, monkeypatch):
    calls = []

    def note(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Train, "train", note)
    options = dataclasses.replace(TINY, hold_out=STAINED_TISSUE)
    short = ["--data", "source", "--out", str(tmp_path), "--precision", "float32"]
    commands = [make_command("source", tmp_path, options)] * 2 + [short, [*short, "--from", "unet.keras"]]
    for command in commands:
        with pytest.raises(KeyboardInterrupt):
            Train.main(command)
    first, second, usual, fine_tuning = calls
    assert first[:3] == (["source"], tmp_path, options)
    assert first[3] != second[3]
    assert first[4] is False
    assert usual[2] == Train.TrainingOptions(precision="float32")
    expected = {"epochs": 10, "crops": None, "learning_rate": 5e-4, "from_weights": "unet.keras"}
    assert fine_tuning[2] == dataclasses.replace(usual[2], **expected)


def test_mistake_of_the_command(mistake, tmp_path):
    assert "nowhere" in mistake("Train.py", "--data", "nowhere")
    assert not list(tmp_path.iterdir())


def test_images_without_truth_beside_others_are_named_before_the_training(mistake, tmp_path):
    for name in ("images/a.png", "images/b.png", "masks/b.png"):
        save_image(tmp_path / "pairs" / name, np.zeros((8, 8), np.uint8))
    assert "1 of 2 images without truth: a.png" in mistake("Train.py", "--data", "pairs", "--out", "out")
    assert not (tmp_path / "out").exists()


def start_script(command, folder):
    """Train.py in a process of its own."""
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    # Where the tests run in the background, Ctrl-C is ignored, and would be in the process too.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([sys.executable, str(ROOT / "Train.py"), *command], cwd=folder, **pipes, **listen)


def wait_for_epoch(process, out):
    while not (out / "last.weights.h5").is_file() and process.poll() is None:
        time.sleep(0.05)


def test_ctrl_c_says_how_to_resume(source, tmp_path):
    out = tmp_path / "out"
    command = make_command(source, out, dataclasses.replace(TINY, epochs=500))
    process = start_script(command, tmp_path)
    wait_for_epoch(process, out)
    errors = ""
    for _ in range(4):  # libraries in the midst of their work may swallow one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            errors = process.communicate(timeout=40)[1]  # a second signal too early ends it without its words
            break
    process.kill()
    assert process.returncode == 130
    (last,) = [line for line in errors.splitlines() if line.startswith("stopped by Ctrl-C")]
    assert last.endswith(f"python Train.py {shlex.join([*command, '--resume'])}")
    assert len(Train.read_history(out / "history.csv")) >= 1
    assert not list(out.glob(".unfinished-*"))


@pytest.mark.slow
def test_ten_kills_lose_nothing(source, tmp_path):
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    options = dataclasses.replace(TINY, epochs=250)
    command = make_command(source, out, options)
    for kill in range(10):
        resume = ["--resume"] if (out / "last.weights.h5").is_file() else []
        process = start_script([*command, *resume], tmp_path)
        wait_for_epoch(process, out)
        # From the moment of its first epoch, or of importing where there are epochs before.
        time.sleep(rng.uniform(0, 1.5 if kill == 0 else 15))
        process.kill()
        assert process.wait() != 0  # else it had ended by itself
        kept = Train.read_history(out / "history.csv")
        assert [row["epoch"] for row in kept] == list(range(1, len(kept) + 1))
        Model.load_unet(out / "unet.keras")
    process = start_script([*command, "--resume"], tmp_path)
    assert process.wait() == 0
    history = Train.read_history(out / "history.csv")
    undisturbed = Train.train([str(source)], str(tmp_path / "other"), options, RUN_ID)
    assert_same_history(history, undisturbed)
    weights = Model.load_unet(out / "unet.keras").get_weights()
    expected = Model.load_unet(tmp_path / "other" / "unet.keras").get_weights()
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)
