"""Targets, augmentation and a training that can be stopped, on drawn nuclei and a tiny network."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, draw_nuclei, draw_source
from scipy.ndimage import affine_transform, maximum_filter, minimum_filter
from sklearn.metrics import accuracy_score, f1_score

import Model
import Preprocessed_data
import Train

TINY = {"crops": 16, "batch_size": 4, "image_size": 32, "base_filters": 4, "depth": 2}
TINY |= {"epochs": 3, "learning_rate": 0.01, "precision": "float32", "seed": 3}
IDS = [f"image_{number:02}" for number in range(8)]


@pytest.fixture(autouse=True)
def keep_precision():
    """train() sets it for the whole process."""
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def as_arguments(options):
    return [word for k, v in options.items() for word in ("--" + k.replace("_", "-"), str(v))]


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def assert_same_history(one, other):
    assert len(one) == len(other)
    for a, b in zip(without_seconds(one), without_seconds(other), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# What the network should answer.


def test_truth_of_two_touching_squares():
    labels = np.zeros((20, 20), np.int32)
    labels[5:15, 2:10], labels[5:15, 10:18] = 1, 2
    border = np.zeros((20, 20))
    border[3:17, 8:12] = 1  # two pixels to each side of the seam, and beyond its ends
    truth = Train.make_truth(labels)
    assert truth.dtype == np.float32
    np.testing.assert_array_equal(truth[..., 0], labels > 0)
    np.testing.assert_array_equal(truth[..., 1], border)
    np.testing.assert_array_equal(truth[..., 2], np.ones((20, 20)))


@pytest.mark.parametrize("gap, columns", [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0), (5, 0)])
def test_border_only_where_nuclei_are_close(gap, columns):
    labels = np.zeros((20, 30), np.int32)
    labels[:, 2:10], labels[:, 10 + gap : 20 + gap] = 1, 2
    border = Train.make_truth(labels)[..., 1]
    expected = np.zeros((20, 30))
    start = 10 - columns // 2 + gap // 2 + (gap % 2 if columns % 2 == 0 else 0)
    expected[:, start : start + columns] = 1
    np.testing.assert_array_equal(border, expected)


def test_extremes_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for shape in (60, 90), (3, 33), (1, 2):
        labels = rng.integers(0, 99, shape).astype(np.int32)
        for pick, expected in (np.maximum, maximum_filter), (np.minimum, minimum_filter):
            found = Train.extremes(pick, labels)
            np.testing.assert_array_equal(found, expected(labels, Train.BORDER_WIDTH))


def test_no_border_without_neighbours():
    labels = np.zeros((20, 20), np.int32)
    assert not Train.make_truth(labels)[..., :2].any()
    labels[5:9, 5:9] = 7
    assert not Train.make_truth(labels)[..., 1].any()


def test_validation_images_are_padded_to_the_next_multiple():
    gray, labels = draw_nuclei((30, 37))
    padded, truth = Train.whole_image(gray, labels, 4)
    assert padded.shape == (1, 32, 40, 1) and truth.shape == (1, 32, 40, 3)
    np.testing.assert_array_equal(padded[0, :30, :37, 0], gray)
    np.testing.assert_array_equal(truth[0, :30, :37], Train.make_truth(labels))
    assert truth[..., 2].sum() == 30 * 37


# Augmentation.


def draw_crop(shape=(64, 80), seed=0):
    image, labels = draw_nuclei(shape, seed)
    return Preprocessed_data.to_grayscale(image), labels


def test_image_and_labels_move_together():
    _, labels = draw_nuclei((96, 80))
    mask = (labels > 0).astype(np.float32)
    moved = 0
    for seed in range(30):
        gray, warped = Train.warp(mask, labels, 64, np.random.default_rng(seed), seed % 2 > 0)
        assert gray.shape == warped.shape == (64, 64)
        assert set(np.unique(warped)) <= set(range(5))
        assert np.mean((gray > 0.5) == (warped > 0)) > 0.96  # the two round differently on rims
        moved += np.mean((gray > 0.5) != (mask[:64, :64] > 0)) > 0.01
    assert moved >= 28


def test_crops_differ_and_are_the_rngs_alone():
    gray, labels = draw_crop()
    crops = [Train.augment(gray, labels, 32, np.random.default_rng(s)) for s in (1, 1, 2)]
    for one, other in zip(crops[0], crops[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(crops[0][0], crops[2][0])


@pytest.mark.parametrize("shape", [(64, 80), (20, 200), (16, 16)])
def test_crops_are_grays_and_labels_also_of_small_images(shape):
    gray, labels = draw_crop(shape)
    before = gray.copy(), labels.copy()
    for seed in range(30):
        crop, numbers = Train.augment(gray, labels, 32, np.random.default_rng(seed))
        assert crop.shape == numbers.shape == (32, 32)
        assert (crop.dtype, numbers.dtype) == (np.float32, np.int32)
        assert 0 <= crop.min() <= crop.max() <= 1
    np.testing.assert_array_equal(gray, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_labels_are_looked_up_as_scipy_does():
    rng = np.random.default_rng(0)
    for shape in (60, 90), (20, 33), (1, 7):
        labels = rng.integers(0, 99, shape).astype(np.int32)
        matrix, offset = rng.uniform(-2, 2, (2, 2)), rng.uniform(-50, 90, 2)
        expected = affine_transform(labels, matrix, offset, (64, 64), order=0, mode="mirror")
        found = Train.look_up(labels, matrix, offset, 64)
        assert np.mean(found != expected) < 0.001  # in float32 a half may be rounded otherwise


def test_crops_look_for_nuclei():
    labels = np.zeros((400, 400), np.int32)
    labels[100:200, 100:200] = 1  # a sixteenth of the image
    gray, rng = labels.astype(np.float32), np.random.default_rng(0)
    centres = [Train.warp(gray, labels, 32, rng)[1][16, 16] for _ in range(200)]
    # Half of the crops look up to ten times: 0.5 / 16 + 0.5 * (1 - (15 / 16) ** 10) = 0.27
    assert 0.18 < np.mean(centres) < 0.36


def test_a_crop_larger_than_its_image_lies_in_its_middle(monkeypatch):
    monkeypatch.setattr(Train, "SCALES", (0.5, 0.5))
    gray, labels = draw_crop((64, 64))
    gray = (gray + gray[::-1, ::-1]) / 2  # looks the same turned by half
    for seed in range(10):
        crop, _ = Train.warp(gray, labels, 64, np.random.default_rng(seed))
        np.testing.assert_allclose(crop, crop[::-1, ::-1], atol=1e-4)


@pytest.mark.parametrize(("scale", "noise"), [(0.9, 1), (0.5, 1 / 2), (0.3, 1 / 4), (0.2, 1 / 4)])
def test_noise_is_averaged_as_often_as_seen_from_afar(scale, noise, monkeypatch):
    monkeypatch.setattr(Train, "SCALES", (scale, scale))
    gray = np.random.default_rng(0).normal(0.5, 0.1, (800, 800)).astype(np.float32)
    labels = np.zeros(gray.shape, np.int32)
    for seed in range(5):
        crop, _ = Train.warp(gray, labels, 64, np.random.default_rng(seed))
        # Between the pixels it is averaged once more, to two thirds on average.
        assert 0.055 * noise < crop.std() < 0.105 * noise


def test_images_of_wide_nuclei_are_seen_from_afar_more_often():
    noise = np.random.default_rng(0).normal(0.5, 0.1, (400, 400)).astype(np.float32)
    labels = np.zeros(noise.shape, np.int32)
    for wide, expected in (False, 0.25), (True, 0.5):
        crops = [Train.warp(noise, labels, 64, np.random.default_rng(s), wide) for s in range(200)]
        # The mean of four pixels has half the noise. Below 0.71, of 0.5 to 2, that is: 1 in 4;
        # and of 0.25 to 1: 3 in 4, for the half of the crops that wide nuclei are halved in.
        afar = np.mean([gray.std() < 0.05 for gray, _ in crops])
        assert abs(afar - expected) < 0.1


class OneCoin:
    """A generator whose coins all fall so that nothing happens, but the one of number `coin`."""

    def __init__(self, coin=None):
        self.coin, self.tossed = coin, 0

    def random(self, size=None, dtype=float):
        if size is not None:
            return np.full(size, 0.99, dtype)
        self.tossed += 1
        return 0.0 if self.tossed - 1 == self.coin else 0.99

    def uniform(self, low, high, size=None):
        return np.full(size or (), low + 0.25 * (high - low))[()]

    def standard_normal(self, size, dtype):
        return np.random.default_rng(0).standard_normal(size, dtype)


PIECES = ("nuclei", "haze", "illumination", "blur", "photons", "contrast", "noise")


@pytest.mark.parametrize("coin", range(len(PIECES)), ids=PIECES)
def test_every_piece_of_change_intensity_changes_pixels(coin):
    gray, labels = draw_crop((32, 32))
    nothing, one = OneCoin(), OneCoin(coin)
    plain = Train.change_intensity(gray, labels, nothing)
    changed = Train.change_intensity(gray, labels, one)
    assert nothing.tossed == len(PIECES)
    assert np.mean(abs(changed - plain) > 1e-3) > 0.05
    if PIECES[coin] == "nuclei":  # the background far from nuclei stays
        assert abs(changed - plain)[labels > 0].mean() > 5 * abs(changed - plain)[:3].mean()


def test_haze_takes_the_same_share_of_the_light_from_nuclei_and_background():
    dark, light = np.zeros((48, 64), np.float32), np.full((48, 64), 0.5, np.float32)
    thickest = set()
    for seed in range(50):
        haze, over = (Train.add_haze(x, np.random.default_rng(seed)) for x in (dark, light))
        np.testing.assert_allclose(1 - over, (1 - light) * (1 - haze), atol=1e-6)
        assert haze.min() == 0 and Train.HAZE[0] < haze.max() < Train.HAZE[1]
        assert max(abs(np.diff(haze, axis=axis)).max() for axis in (0, 1)) < 0.2  # no edges
        thickest.add(haze.max())
    assert len(thickest) == 50


def test_gamma_changes_pixels(monkeypatch):
    gray, labels = draw_crop((32, 32))
    results = []
    for gammas in ((1, 1), (2, 2)):
        monkeypatch.setattr(Train, "GAMMAS", gammas)
        results.append(Train.change_intensity(gray, labels, OneCoin()))
    assert abs(results[0] - gray).max() < 1e-6
    assert abs(results[1] - gray).mean() > 0.01


def test_edges_as_seen_are_moved_by_neither_blur_nor_gamma(monkeypatch):
    gray = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    gray[:, 40:] = 1
    nothing, blurred = OneCoin(), OneCoin(PIECES.index("blur"))
    labels = (gray > 0.5).astype(np.int32)
    kept = Train.change_intensity(gray, labels, nothing, as_seen=True)
    np.testing.assert_array_equal(kept, gray)
    assert nothing.tossed == len(PIECES) - 1  # none for the blur
    monkeypatch.setattr(Train, "GAMMAS", (1, 1))  # so that what moves them is the blur
    assert abs(Train.change_intensity(gray, labels, blurred) - gray).max() > 0.01


def test_the_last_batches_show_edges_as_they_are(monkeypatch):
    pairs, shares = [draw_crop((40, 40))], np.ones(1)
    options = {"size": 32, "batch_size": 1, "seed": 1, "as_seen_from": 3}
    monkeypatch.setattr(
        Train, "change_intensity", lambda gray, labels, rng, as_seen: gray + as_seen
    )
    first = Train.Crops(pairs, shares, numbers=range(5), **options)
    assert [int(first[i][0].max() > 1) for i in range(5)] == [0, 0, 0, 1, 1]
    resumed = Train.Crops(pairs, shares, numbers=range(5)[2:], **options)
    assert [int(resumed[i][0].max() > 1) for i in range(3)] == [0, 1, 1]


def test_contrast_keeps_dim_rims_from_the_background():
    gray = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    for seed in range(100):
        changed = Train.change_intensity(gray, np.zeros((64, 64), np.int32), OnlyContrast(seed))
        assert 0 <= changed.min() and changed.max() <= 1
        assert np.diff(changed[0]).min() > 0.5 / 63  # every step is still a step


class OnlyContrast(OneCoin):
    """All coins fall so that nothing happens, but that of the contrast; which then is random."""

    def __init__(self, seed):
        super().__init__(PIECES.index("contrast"))
        self.rng = np.random.default_rng(seed)

    def uniform(self, low, high, size=None):
        # Gamma, asked for as logarithms, is 1.
        return 0.0 if low < 0 else self.rng.uniform(low, high, size)


def test_rare_kinds_are_drawn_more_often():
    images = [draw_nuclei(seed=i)[0] for i in range(9)]
    images += [draw_nuclei(stained=True)[0], *[draw_nuclei((30, 36))[0]] * 4]
    weights = Train.sampling_weights(images)
    assert weights.shape == (14,) and weights.sum() == pytest.approx(1)
    assert weights[9] > weights[10] > weights[0] > 0
    # A kind of 13 is drawn sqrt(13) times as often as one of 1; its sizes of 9 and 4 as 3 to 2.
    assert weights[:9].sum() + weights[10:].sum() == pytest.approx(13**0.5 * weights[9])
    assert weights[:9].sum() / weights[10:].sum() == pytest.approx(3 / 2)


def test_dimmed_nuclei_fade_into_their_own_surroundings():
    gray = np.zeros((60, 90), np.float32)
    gray[:, 30:] = 0.5  # a cell, twice as wide as what is looked at
    labels = np.zeros(gray.shape, np.int32)
    labels[25:35, 70:80] = 1
    gray[labels == 1] = 1

    class Dim(OneCoin):  # every nucleus, as far as it goes
        def random(self, size=None):
            return np.full(size, 0.99)

        def uniform(self, low, high, size=None):
            return np.full(size, 0.0)

    dimmed = Train.dim_nuclei(gray, labels, Dim())
    assert dimmed[labels == 1].min() > 0.45 and dimmed[30, 75] < 0.55


def test_batches_follow_from_seed_and_number():
    pairs = [draw_crop((40, 40), seed) for seed in range(3)]
    options = {"size": 32, "batch_size": 2}
    weights = np.full(3, 1 / 3)
    whole = Train.Crops(pairs, weights, seed=1, numbers=range(9), **options)
    later = Train.Crops(pairs, weights, seed=1, numbers=range(4, 9), **options)
    other = Train.Crops(pairs, weights, seed=2, numbers=range(9), **options)
    assert (len(whole), len(later)) == (9, 5)
    assert whole[0][0].shape == (2, 32, 32, 1) and whole[0][1].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(whole[4][0], later[0][0])
    assert not np.array_equal(whole[0][0], whole[1][0])
    assert not np.array_equal(whole[0][0], other[0][0])


# Training.


def test_training_steps_lower_the_loss():
    keras.utils.set_random_seed(0)
    crops = [draw_crop((32, 32), seed) for seed in range(4)]
    gray = np.stack([gray for gray, _ in crops])[..., None]
    truth = np.stack([Train.make_truth(labels) for _, labels in crops])
    model = Model.Unet(2, 4).build()
    model.compile("adam", Model.segmentation_loss)
    loss = model.fit(gray, truth, epochs=12, verbose=0).history["loss"]
    assert loss[-1] < 0.9 * loss[0]


def test_a_fused_normalisation_trains_as_the_plain_one():
    keras.utils.set_random_seed(0)
    plain = Model.Unet(1, 4).build()
    fused = Train.fuse_normalisations(plain)
    assert sum(isinstance(layer, Train.FusedNormalization) for layer in fused.layers) == 6
    gray, labels = draw_crop((64, 64), 1)
    batch = gray[None, ..., None], Train.make_truth(labels)[None]
    before = plain.get_weights()
    np.testing.assert_array_equal(
        plain.predict_on_batch(batch[0]), fused.predict_on_batch(batch[0])
    )
    for model in plain, fused:
        model.compile(keras.optimizers.SGD(0.1), Model.segmentation_loss)
        model.train_on_batch(*batch)
    for old, one, other in zip(before, plain.get_weights(), fused.get_weights(), strict=True):
        assert not np.array_equal(old, one)
        # The kernel divides the variance by n - 1 instead of n pixels, here 1024 or more.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_validation_is_the_mean_over_whole_images_of_any_sizes(tmp_path):
    keras.utils.set_random_seed(1)
    model = Model.Unet(2, 4).build()
    model.compile("adam", Model.segmentation_loss, metrics=[Model.accuracy, Model.dice])
    images = [draw_crop(shape, i) for i, shape in enumerate([(32, 32), (32, 32), (36, 44)])]
    keeper = Train.KeepEpochs(tmp_path, {}, [], None, images)
    keeper.set_model(model)
    pairs = []
    for gray, labels in images:
        probability = model.predict(gray[None, ..., None], verbose=0)[0, ..., 0]
        pairs.append(((labels > 0).ravel(), (probability > 0.5).ravel()))
    for _ in range(2):  # a second time nothing is left over from the first
        means = keeper.validate()
        assert means["val_dice"] == pytest.approx(np.mean([f1_score(*p) for p in pairs]), abs=1e-4)
        accuracy = np.mean([accuracy_score(*p) for p in pairs])
        assert means["val_accuracy"] == pytest.approx(accuracy, abs=1e-4)


def test_the_kept_copy_is_float32_and_answers_the_same():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = Train.fuse_normalisations(Model.Unet(2, 4).build())
    copy = Train.plain_copy(model)
    assert {type(layer) for layer in copy.layers} == {type(x) for x in Model.Unet().build().layers}
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for one, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_source(folder)
    return folder


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    """What the command leaves behind, a training from beginning to end."""
    out = tmp_path_factory.mktemp("trained") / "new" / "weights"
    Train.main(["--data", str(drawn), "--out", str(out), *as_arguments(TINY)])
    return out


@pytest.fixture(scope="module")
def interrupted(drawn, tmp_path_factory):
    """What is left of the same training, stopped by Ctrl-C in its third epoch."""

    class Stopped(Train.KeepEpochs):
        def on_train_batch_end(self, batch, logs=None):
            if len(self.history) == 2 and batch == 1:
                raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Train, "KeepEpochs", Stopped)
        with pytest.raises(KeyboardInterrupt):
            Train.train(str(drawn), str(out), **TINY)
    return out


@pytest.fixture
def stopped(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "stopped")


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_stopped_at_once_only_a_resumed_training_may_go_on(stopped, drawn, monkeypatch, options):
    def stop(*_):
        raise KeyboardInterrupt

    os.utime(stopped / "last.weights.h5", (0, 0))  # written long ago
    monkeypatch.setattr(Train, "load_data", stop)
    command = ["--data", str(drawn), "--out", str(stopped), *as_arguments(TINY), *options]
    with pytest.raises(KeyboardInterrupt) as told:
        Train.main(command)
    assert ("go on with" in str(told.value)) == bool(options)


def test_training_leaves_these_files_and_no_others(trained):
    files = ["accuracy.png", "history.csv", "loss.png", "training.json", "unet.keras"]
    assert sorted(file.name for file in trained.iterdir()) == files
    for name in ("accuracy.png", "loss.png"):
        picture = Preprocessed_data.read_image(trained / name)
        assert min(picture.shape[:2]) > 300 and picture.std() > 5


def test_history_has_a_row_an_epoch(trained):
    history = Train.read_history(trained / "history.csv")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    names = {"loss", "accuracy", "dice", "val_loss", "val_accuracy", "val_dice", "learning_rate"}
    assert all(names < set(row) for row in history)
    assert all(0 <= row[name] <= 1 for row in history for name in ("val_dice", "val_accuracy"))
    assert len({row["loss"] for row in history}) == 3


def test_training_json_says_what_was_trained_on(trained, drawn):
    record = json.loads((trained / "training.json").read_text())
    assert record["options"] == TINY | {"hold_out": None}
    assert record["images"] == 8 and len(record["data_sha256"]) == 64
    assert record["validation_ids"] and record["training_ids"]
    assert sorted(record["training_ids"] + record["validation_ids"]) == IDS
    assert record == Train.training_record(trained / "unet.keras")
    history = Train.read_history(trained / "history.csv")
    assert record["kept"] == max(history, key=lambda row: row["val_dice"])


def test_the_weights_are_those_of_the_best_epoch(trained, drawn):
    model = Model.load_unet(trained / "unet.keras")
    record = json.loads((trained / "training.json").read_text())
    scores = []
    for sample in Preprocessed_data.open_source(drawn):
        if sample.id in record["validation_ids"]:
            image = Preprocessed_data.read_image(sample.image)
            labels = Preprocessed_data.read_labels(sample, image.shape[:2])
            gray = Preprocessed_data.to_grayscale(image)
            padded, truth = Train.whole_image(gray, labels, 4)
            score = Model.dice(truth, model.predict(padded, verbose=0))
            scores.append(float(score[0]))
    assert np.mean(scores) == pytest.approx(record["kept"]["val_dice"], abs=1e-4)


@pytest.mark.parametrize(("kind", "kept"), [(None, 2), ("stained tissue", 3)])
def test_a_kind_held_out_does_not_choose_the_epoch(drawn, tmp_path, monkeypatch, kind, kept):
    dice = iter([0.5, 0.9, 0.7])
    scores = {"val_loss": 1.0, "val_accuracy": 1.0}
    monkeypatch.setattr(Train.KeepEpochs, "validate", lambda _: scores | {"val_dice": next(dice)})
    Train.train(str(drawn), str(tmp_path), **TINY | {"hold_out": kind})
    assert Train.training_record(tmp_path / "unet.keras")["kept"]["epoch"] == kept


def test_two_runs_of_one_seed_are_the_same(trained, drawn, tmp_path):
    history = Train.train(str(drawn), str(tmp_path), **TINY)
    assert_same_history(history, Train.read_history(trained / "history.csv"))
    one, other = (Model.load_unet(out / "unet.keras").get_weights() for out in (trained, tmp_path))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_training_ends_with_edges_as_they_are(drawn, tmp_path, monkeypatch):
    seen, change = [], Train.change_intensity
    monkeypatch.setattr(Train, "change_intensity", lambda *a: seen.append(a[-1]) or change(*a))
    Train.train(str(drawn), str(tmp_path), **TINY)
    # Of 12 batches of 4 the last 2: the first whose number is at least 9.6 is number 10.
    assert seen.count(True) == 8 and all(seen[-8:])
    assert seen.count(False) >= 40  # Keras looks at some of the first ones before


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(trained, drawn, stopped):
    assert len(Train.read_history(stopped / "history.csv")) == 2
    assert (stopped / "last.weights.h5").is_file() and (stopped / "unet.keras").is_file()
    history = Train.train(str(drawn), str(stopped), go_on=True, **TINY)
    assert_same_history(history, Train.read_history(trained / "history.csv"))
    assert_same_history(history, Train.read_history(stopped / "history.csv"))
    assert not (stopped / "last.weights.h5").exists()
    weights = [Model.load_unet(out / "unet.keras").get_weights() for out in (trained, stopped)]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_resume_without_an_interrupted_training(drawn, trained, tmp_path):
    for out in (tmp_path, trained):
        with pytest.raises(FileNotFoundError, match="no interrupted training"):
            Train.train(str(drawn), str(out), go_on=True, **TINY)


def test_resume_with_other_options_or_data(drawn, stopped, tmp_path):
    before = {file.name: file.read_bytes() for file in stopped.iterdir()}
    with pytest.raises(ValueError, match="other options"):
        Train.train(str(drawn), str(stopped), go_on=True, **TINY | {"seed": 4})
    draw_source(tmp_path / "other", count=7)
    with pytest.raises(ValueError, match="other data"):
        Train.train(str(tmp_path / "other"), str(stopped), go_on=True, **TINY)
    assert before == {file.name: file.read_bytes() for file in stopped.iterdir()}


# Mistakes and the command line.


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"image_size": 30}, "--image-size must be a multiple of 4, not 30"),
        ({"epochs": 0}, "must be above 0"),
        ({"crops": 0}, "must be above 0"),
        ({"batch_size": -1}, "must be above 0"),
        ({"learning_rate": 0}, "must be above 0"),
        ({"depth": 0}, "depth"),
    ],
)
def test_options_that_do_not_fit(drawn, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        Train.train(str(drawn), str(tmp_path), **TINY | wrong)


def test_mistake_of_the_command(mistake, tmp_path):
    assert "nowhere" in mistake("Train.py", "--data", "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_nan_loss_ends_the_training_with_an_error(source, tmp_path, monkeypatch):
    def broken(truth, probability):
        return keras.ops.mean(probability, axis=(1, 2, 3)) * float("nan")

    monkeypatch.setattr(Model, "segmentation_loss", broken)
    with pytest.raises(ValueError, match="NaN or infinite in epoch 1, in the batches of image_0"):
        Train.train(str(source), str(tmp_path / "out"), **TINY)
    assert not list((tmp_path / "out").iterdir())


def test_weights_broken_by_the_last_batch_are_not_kept(source, tmp_path):
    options = TINY | {"epochs": 1, "crops": 4, "batch_size": 4, "learning_rate": 1e38}
    with pytest.raises(ValueError, match="NaN or infinite in epoch 1"):
        Train.train(str(source), str(tmp_path / "out"), **options)
    assert not list((tmp_path / "out").iterdir())


def start(source, out, *options):
    """Train.py in a process of its own."""
    words = [str(ROOT / "Train.py"), "--data", str(source), "--out", str(out), *options]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    # Where the tests run in the background, Ctrl-C is ignored, and would be in the process too.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([sys.executable, *words], cwd=source.parent, **pipes, **listen)


def wait_for_epoch(process, out):
    while not (out / "last.weights.h5").is_file() and process.poll() is None:
        time.sleep(0.05)


def test_ctrl_c_says_how_to_go_on(source, tmp_path):
    out = tmp_path / "out"
    options = as_arguments(TINY | {"epochs": 500})
    process = start(source, out, *options)
    wait_for_epoch(process, out)
    errors = ""
    for _ in range(6):  # libraries in the midst of writing may swallow one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            errors = process.communicate(timeout=15)[1]
            break
    process.kill()
    assert process.returncode == 130
    (last,) = [line for line in errors.splitlines() if line.startswith("stopped by Ctrl-C")]
    words = ["--data", str(source), "--out", str(out), *options, "--resume"]
    assert last.endswith(f"python Train.py {shlex.join(words)}")
    assert len(Train.read_history(out / "history.csv")) >= 1 and not list(out.glob(".unfinished-*"))


@pytest.mark.slow
def test_ten_kills_lose_nothing(source, tmp_path):
    out, rng, epochs, kills = tmp_path / "out", np.random.default_rng(0), 400, 0
    options = as_arguments(TINY | {"epochs": epochs})
    while kills < 10:
        go_on = ["--resume"] if (out / "last.weights.h5").is_file() else []
        process = start(source, out, *options, *go_on)
        wait_for_epoch(process, out)
        # From the moment of its first epoch, or of importing where there are epochs before.
        time.sleep(rng.uniform(0, 1.5 if kills == 0 else 15))
        process.kill()
        assert process.wait() != 0  # else it had ended by itself
        kills += 1
        kept = Train.read_history(out / "history.csv")
        assert [row["epoch"] for row in kept] == list(range(1, len(kept) + 1))
        Model.load_unet(out / "unet.keras")
    process = start(source, out, *options, "--resume")
    assert process.wait() == 0
    history = Train.read_history(out / "history.csv")
    undisturbed = Train.train(str(source), str(tmp_path / "other"), **TINY | {"epochs": epochs})
    assert_same_history(history, undisturbed)
    kept, expected = (Model.load_unet(x / "unet.keras") for x in (out, tmp_path / "other"))
    for one, other in zip(kept.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
