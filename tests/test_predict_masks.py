"""Predict_masks: padding, separation of touching nuclei, and what becomes of each image."""

import csv
import json
import os
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
import roifile
import tifffile
from conftest import Recorder, Threshold, draw_disks, load_once, save_image
from PIL import Image
from scipy import ndimage
from skimage.draw import disk, polygon

import data.outputs
import data.pixels
import Model
import Predict_masks
import Preprocessed_data
from data import artifacts, intensity, nuclei, scales, slides
from data.files import UserError, describe_file, hash_file
from data.images import read_image
from data.pixel_size import read_pixel_size
from data.sources import find_samples

MARK = {"weights_sha256": "5f2b", "settings": {"min_area": 20}}


@pytest.fixture(scope="module")
def tiny_unet():
    keras.utils.set_random_seed(1)
    return Model.Unet(2, 2).build()


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory, tiny_unet):
    file = tmp_path_factory.mktemp("weights") / "unet.keras"
    tiny_unet.save(file)
    return file


# Probabilities.


@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (7, 5), (1, 1), (1, 40)])
@pytest.mark.parametrize("halvings", [0, 2])
def test_probability_has_the_images_own_size(tiny_unet, shape, halvings):
    gray = np.random.default_rng(0).random(shape, np.float32)
    for answer in Predict_masks.predict_probability(tiny_unet, gray, halvings):
        assert answer.shape == shape and answer.dtype == np.float32
        assert 0 <= answer.min() and answer.max() <= 1


def test_an_image_is_padded_with_its_mirror_image_and_does_not_move():
    class Deep(Threshold):
        """Takes sides that are multiples of 8."""

        layers = [keras.layers.MaxPooling2D(2) for _ in range(3)]

        def predict_on_batch(self, batch):
            self.batch = batch
            return super().predict_on_batch(batch)

    network = Deep()
    gray = np.random.default_rng(0).random((13, 17), np.float32)
    nucleus, border = Predict_masks.predict_probability(network, gray)
    np.testing.assert_array_equal(nucleus, gray)
    assert not border.any()
    padded = network.batch[0, ..., 0]
    assert padded.shape == (16, 24)
    np.testing.assert_array_equal(padded[13:, :17], gray[:9:-1])
    np.testing.assert_array_equal(padded[:13, 17:], gray[:, :9:-1])


def test_a_smaller_size_does_not_move_the_image():
    rows, columns = np.mgrid[:40, :56].astype(np.float32)
    gray = (rows + columns) / 100
    nucleus, _ = Predict_masks.predict_probability(Threshold(), gray, halvings=1)
    np.testing.assert_allclose(nucleus[2:-2, 2:-2], gray[2:-2, 2:-2], atol=1e-6)


def test_a_stack_is_answered_as_its_images_are():
    stack = np.random.default_rng(0).random((3, 13, 17), np.float32)
    nucleus, _ = Predict_masks.predict_probability(Threshold(), stack)
    np.testing.assert_array_equal(nucleus, stack)


# From probabilities to nuclei.


def test_disks_apart_are_counted_and_kept_to_the_pixel():
    nucleus = draw_disks((80, 100), [(20, 20), (20, 60), (60, 40), (60, 80), (15, 85)], 9)
    labels = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    expected, count = ndimage.label(nucleus)
    assert count == labels.max() == 5 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, expected > 0)


def test_touching_disks_are_separated_at_the_border():
    nucleus = draw_disks((40, 60), [(20, 20), (20, 37)], 9)
    border = np.zeros_like(nucleus)
    border[10:31, 27:31] = 1
    joined = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    separated = nuclei.separate_nuclei(nucleus, border)
    assert joined.max() == 1 and separated.max() == 2
    np.testing.assert_array_equal(separated > 0, nucleus > 0)
    assert separated[20, 15] != separated[20, 42]
    areas = np.bincount(separated.ravel())[1:]
    assert areas.min() / areas.max() > 0.85


def draw_parted(radius):
    """Probabilities of ten common nuclei, and of a smaller one with a border in its middle; also what the latter is."""
    centres = [(12, column) for column in range(12, 232, 22)]
    small = draw_disks((60, 240), [(40, 60)], radius) > 0
    border = np.zeros(small.shape, np.float32)
    border[20:, 59:62] = 1
    return draw_disks(small.shape, centres, 9) + small, border, small


@pytest.mark.parametrize(("radius", "count"), [(7, 1), (9, 2)])  # 0.6 and 1 times the area of a common nucleus
def test_two_touching_pieces_that_are_small_and_convex_together_are_one_nucleus(radius, count):
    nucleus, border, small = draw_parted(radius)
    labels = nuclei.separate_nuclei(nucleus, border)
    assert labels.max() == 10 + count
    assert len(np.unique(labels[small])) == count
    np.testing.assert_array_equal(labels > 0, nucleus > 0)


def test_small_pieces_that_are_not_convex_together_stay_two():
    nucleus, border, _ = draw_parted(7)
    nucleus[20:] = 0
    nucleus[30:46, 52:60] = 1  # an L
    nucleus[40:46, 60:72] = 1
    labels = nuclei.separate_nuclei(nucleus, border)
    assert labels.max() == 12 and labels[32, 53] != labels[42, 68]


def test_a_piece_is_merged_once():
    labels = np.zeros((30, 60), np.int32)
    labels[5:20, 5:15] = 1
    labels[5:20, 15:25] = 2
    labels[5:18, 25:35] = 3  # less convex with 2 than that is with 1
    merged = nuclei.merge_pieces(labels, 320)
    np.testing.assert_array_equal(merged, np.where(labels == 2, 1, labels))
    np.testing.assert_array_equal(nuclei.merge_pieces(labels, 299), np.where(labels == 3, 2, labels))


def test_holes_are_filled_and_specks_removed():
    nucleus = draw_disks((60, 60), [(30, 30)], 12)
    nucleus[28:32, 28:32] = 0
    nucleus[2:5, 2:5] = 1
    labels = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    assert labels.max() == 1 and labels[30, 30] == 1 and labels[3, 3] == 0


def test_background_at_the_edge_of_the_image_is_no_hole():
    nucleus = draw_disks((60, 60), [(24, 24)], 30)  # cuts off a corner of 100 pixels
    labels = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    np.testing.assert_array_equal(labels, nucleus)


@pytest.mark.parametrize(("width", "count"), [(9, 13), (11, 12)])
def test_what_is_ten_times_as_large_as_a_common_nucleus_is_none(width, count):
    nucleus = draw_disks((100, 120), [(50, column) for column in range(6, 120, 10)], 4)
    area = nucleus.sum() / 12
    nucleus[5 : 5 + width, 10 : 10 + int(area)] = 1  # 9 or 11 times as large
    labels = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    assert labels.max() == count and labels[5, 10] == count - 12


def test_a_large_nucleus_among_few_small_ones_stays():
    nucleus = draw_disks((100, 100), [(6, column) for column in range(6, 96, 10)], 4)
    nucleus += draw_disks((100, 100), [(60, 50)], 30)
    labels = nuclei.separate_nuclei(nucleus, np.zeros_like(nucleus))
    np.testing.assert_array_equal(labels > 0, nucleus > 0)


@pytest.mark.filterwarnings("error")
def test_the_contrast_of_nuclei_leaves_out_a_number_without_pixels_or_without_a_ring():
    labels = np.zeros((60, 90), np.int32)
    labels[disk((20, 20), 6)] = 2  # there is no 1
    labels[disk((20, 21), 2)] = 4  # inside of it, so it has no ring
    labels[disk((40, 65), 6)] = 7
    gray = np.where(labels > 0, 0.7, np.indices(labels.shape).sum(axis=0) % 2 * 0.2)  # around them 0.1 ± 0.1
    assert nuclei.local_contrast(gray, labels) == pytest.approx(6, rel=0.02)


def test_each_number_is_one_connected_piece():
    rng = np.random.default_rng(3)
    nucleus = ndimage.gaussian_filter(rng.random((128, 128)), 3)
    border = ndimage.gaussian_filter(rng.random((128, 128)), 3)
    nucleus = (nucleus - nucleus.min()) / np.ptp(nucleus)
    border = (border - border.min()) / np.ptp(border)
    labels = nuclei.separate_nuclei(nucleus, border * 0.4)
    assert labels.max() > 5
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    for number in range(1, labels.max() + 1):
        assert ndimage.label(labels == number)[1] == 1
        assert (labels == number).sum() >= nuclei.MIN_AREA


def test_nothing_there_gives_no_nucleus():
    zero = np.zeros((20, 30), np.float32)
    assert not nuclei.separate_nuclei(zero, zero).any()


# Provenance.


@pytest.mark.parametrize(
    ("module", "setting", "value"),
    [
        (nuclei, "MAX_HOLE_AREA", 301),
        (scales, "HALVING_DIAMETERS", (33, 81)),
        (intensity, "LOW_PERCENTILE", 1.0),
        (artifacts, "JUMP", 0.1),
        (Preprocessed_data, "BRIGHT_MEDIAN", 0.5),
    ],
)
def test_provenance_tells_of_every_setting_that_changes_labels(tiny_weights, monkeypatch, module, setting, value):
    before = Predict_masks.describe_provenance(tiny_weights)
    monkeypatch.setattr(module, setting, value)
    after = Predict_masks.describe_provenance(tiny_weights)
    changed = {name for name, known in after["settings"].items() if known != before["settings"][name]}
    assert changed == {setting.lower()}
    assert after["weights_sha256"] == before["weights_sha256"]


def test_provenance_names_the_weights_and_is_the_same_as_json(tiny_weights, tmp_path):
    provenance = Predict_masks.describe_provenance(str(tiny_weights))
    assert provenance["weights_sha256"] == hash_file(tiny_weights)
    assert json.loads(json.dumps(provenance)) == provenance
    (tmp_path / "other.keras").write_bytes(b"other weights")
    assert Predict_masks.describe_provenance(tmp_path / "other.keras") != provenance


# Many images.


def test_many_images_of_many_shapes_each_get_their_own_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "READ_AHEAD", 4)
    monkeypatch.setattr(data.scales, "BATCH_PIXELS", 2 * 40 * 50)
    source = tmp_path / "images"
    source.mkdir()
    truth = {}
    for number in range(11):
        image = np.zeros([(40, 50), (40, 50), (30, 60)][number % 3], np.uint8)
        image[5:15, number : number + 10] = 200
        Image.fromarray(image).save(source / f"{number:02}.png")
        truth[f"{number:02}"] = image > 0
    (source / "05.png").write_bytes(b"no image")
    network = Recorder()
    written, skipped = Predict_masks.predict_samples(find_samples(source), network, tmp_path / "out", MARK)
    assert list(skipped) == ["05"] and written == sorted(set(truth) - {"05"})
    for name in written:
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        assert np.count_nonzero((mask > 0) != truth[name]) <= 12  # sharp corners are out of line with their neighbours
        provenance = data.outputs.read_provenance(tmp_path / "out" / "labels" / f"{name}.tif")
        seen = {"reading": "", "background": "dark", "scales": [0]}
        assert provenance == MARK | {"image": describe_file(source / f"{name}.png"), "seen": seen}
    counts = [shape[0] for shape in network.batches]
    assert max(counts) == 2 and sum(counts) == 10


def save_images(folder, names, shape=(20, 30)):
    """Writes an image of one nucleus for each name; returns their samples."""
    image = 200 * draw_disks(shape, [(10, 12)], 6).astype(np.uint8)
    folder.mkdir()
    for name in names:
        Image.fromarray(image).save(folder / f"{name}.png")
    return find_samples(folder)


def test_an_image_that_cannot_be_opened_is_named_and_skipped(tmp_path, capsys):
    samples = save_images(tmp_path / "images", "abc")
    samples[1].image.unlink()
    written, skipped = Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", {})
    assert written == ["a", "c"] and list(skipped) == ["b"]
    assert str(samples[1].image) in skipped["b"] and "No such file" in skipped["b"]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "skipped" in line] == [f"skipped b: {skipped['b']}"]


@pytest.mark.parametrize("large_image", [2048 * 2048, 100], ids=["whole", "in tiles"])
@pytest.mark.parametrize("fault", [AttributeError, MemoryError, ValueError])
def test_a_fault_of_our_own_is_not_skipped(tmp_path, monkeypatch, capsys, fault, large_image):
    def brightness(image):
        raise fault("of our own")

    monkeypatch.setattr(Preprocessed_data, "brightness", brightness)
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", large_image)
    samples = save_images(tmp_path / "images", "ab")
    with pytest.raises(fault, match="^of our own$") as error:
        Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", {})
    assert error.type is fault  # and no UserError, which is a ValueError
    assert "skipped" not in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/*"))


# Large images.


@pytest.fixture
def large_images(monkeypatch):
    """Images of more than 1000 pixels are large, and have several strips and tiles."""
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1000)
    monkeypatch.setattr(slides, "STRIP", 32)
    monkeypatch.setattr(slides, "TILE", 64)
    monkeypatch.setattr(slides, "CONTEXT_ROWS", 16)
    monkeypatch.setattr(data.outputs, "TIFF_TILE", 16)


def test_an_image_has_one_mask_whatever_its_size_was_before(tmp_path, large_images, monkeypatch):
    samples = save_images(tmp_path / "images", "a", shape=(90, 70))
    files = data.outputs.prediction_files(tmp_path / "out", "a")
    for large_image, mask in ((10_000, files.mask), (1000, files.tiled_mask), (10_000, files.mask)):
        monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", large_image)
        assert Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", MARK) == (["a"], {})
        assert list(tmp_path.glob("out/masks/*")) == [mask]
        provenance = data.outputs.read_provenance(files.labels)
        seen = {"reading": "", "background": "dark", "scales": [0]}
        assert provenance == MARK | {"image": describe_file(samples[0].image), "seen": seen}
        labels = read_image(files.labels)
        assert labels.max() == 1
        np.testing.assert_array_equal(read_image(mask) > 0, labels > 0)
        np.testing.assert_array_equal(labels > 0, read_image(samples[0].image) > 0)


def test_a_large_image_that_is_damaged_is_named_and_the_rest_predicted(tmp_path, large_images):
    source = tmp_path / "images"
    source.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (90, 70), np.uint8)
    for name in "abc":
        tifffile.imwrite(source / f"{name}.tif", image, rowsperstrip=10, compression="zlib")
    with tifffile.TiffFile(source / "b.tif") as tiff:
        last = tiff.pages[0].dataoffsets[-1]
        size = tiff.pages[0].databytecounts[-1]
    content = bytearray((source / "b.tif").read_bytes())
    content[last : last + size] = bytes(size)
    (source / "b.tif").write_bytes(content)
    written, skipped = Predict_masks.predict_samples(find_samples(source), Threshold(), tmp_path / "out", {})
    assert written == ["a", "c"] and list(skipped) == ["b"] and "b.tif" in skipped["b"]
    assert {file.stem for file in tmp_path.glob("out/*/*")} == {"a", "c"}


def test_a_large_image_that_vanishes_on_the_way_is_named_and_the_rest_predicted(tmp_path, large_images, monkeypatch):
    samples = save_images(tmp_path / "images", "abcd", shape=(90, 70))
    predict_slide = Predict_masks.predict_slide

    def remove_next(sample, *arguments):
        if sample.id == "b":
            samples[2].image.unlink()
        predict_slide(sample, *arguments)

    monkeypatch.setattr(Predict_masks, "predict_slide", remove_next)
    written, skipped = Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", {})
    assert written == ["a", "b", "d"] and list(skipped) == ["c"]
    assert str(samples[2].image) in skipped["c"]


def test_what_cannot_be_written_of_a_large_image_is_named_once(tmp_path, large_images):
    samples = save_images(tmp_path / "images", "a", shape=(90, 70))
    (tmp_path / "out/masks/a.tif").mkdir(parents=True)  # where the mask is to be
    with pytest.raises(OSError) as error:
        Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out", {})
    assert error.value.filename == str(tmp_path / "out/masks/a.tif")
    assert error.value.strerror.count("make room there") == 1
    assert not list(tmp_path.glob("out/labels/*"))


# The command line.


def test_a_broken_image_is_named_and_the_rest_finished(tmp_path, tiny_weights, capsys):
    save_images(tmp_path / "images", ["good"])
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = ["--data", tmp_path / "images", "--weights", tiny_weights, "--out", out]
    arguments += ["--show", "--submission", "--report"]
    assert Predict_masks.main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert "broken.png" in printed.err and "1 image in " in printed.out
    assert printed.out.splitlines()[-1] == "1 image skipped: broken (see above)"
    assert [file.name for file in (out / "masks").iterdir()] == ["good.png"]
    assert (out / "predictions.png").is_file() and (out / "report.html").is_file()
    assert "good" in (out / "submission.csv").read_text()
    assert "broken" not in (out / "submission.csv").read_text()
    assert Predict_masks.main([str(argument) for argument in arguments]) == 1
    again = capsys.readouterr().out
    assert "1 image skipped: broken" in again and "a second" not in again  # nothing was predicted


def test_a_rerun_predicts_what_is_missing_with_the_same_settings_only(tmp_path, tiny_weights, capsys, monkeypatch):
    save_images(tmp_path / "images", "ab")
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "images"), "--weights", str(tiny_weights), "--out", str(out)]
    assert Predict_masks.main(arguments) == 0
    assert "are done" not in capsys.readouterr().out
    (out / "overlays/b.png").unlink()
    before = (out / "labels/a.tif").stat().st_mtime_ns
    assert Predict_masks.main(arguments) == 0
    assert "1 of 2 images are done; --overwrite" in capsys.readouterr().out
    assert Predict_masks.main(arguments) == 0
    again = capsys.readouterr().out
    assert "all 2 images are done already" in again and "a second" not in again and "2 nuclei in 2 images" in again
    assert (out / "overlays/b.png").is_file() and (out / "labels/a.tif").stat().st_mtime_ns == before
    monkeypatch.setattr(nuclei, "MIN_AREA", 21)
    with pytest.raises(UserError, match="other thresholds or constants; redo it alone or all with --overwrite"):
        Predict_masks.main(arguments)
    assert Predict_masks.main([*arguments, "--overwrite"]) == 0
    assert "are done" not in capsys.readouterr().out
    settings = data.outputs.read_provenance(out / "labels/a.tif")["settings"]
    assert settings["min_area"] == 21


def test_the_command_that_is_advised_repeats_the_options_and_works(tmp_path, tiny_weights, capsys):
    save_images(tmp_path / "my images", "a")
    out = tmp_path / "out"
    arguments = ["--data", tmp_path / "my images", "--weights", tiny_weights, "--out", out, "--diameter", 12]
    assert Predict_masks.main([*map(str, arguments), "--overwrite"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert command == ["python", "Predict_masks.py", *map(str, arguments), "--report"]
    assert Predict_masks.main(command[2:]) == 0
    assert "all 1 images are done already" in capsys.readouterr().out and (out / "report.html").is_file()


def draw_field(seed, count):
    """So many disks that the committed weights tell apart, uint8; they lie elsewhere for each seed."""
    rng = np.random.default_rng(seed)
    corners = np.mgrid[0:3, 0:4].reshape(2, -1).T[:count]
    image = 15 + 140 * draw_disks((126, 168), corners * 42 + 21 + rng.uniform(-5, 5, corners.shape), 9)
    return (image + rng.normal(0, 4, image.shape)).astype(np.uint8)


def save_fields(folder, names, count):
    """Writes an image of so many nuclei for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(draw_field(seed, count)).save(folder / name)
    return folder


def save_stain_pair(file):
    """Writes an OME-TIFF of two channels: 12 cells of GFP, 6 nuclei of DAPI."""
    file.parent.mkdir(exist_ok=True)
    metadata = {"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    channels = np.stack([draw_field(0, 12), draw_field(1, 6)])
    tifffile.imwrite(file, channels, photometric="minisblack", ome=True, metadata=metadata)
    return file


def count_nuclei(out, name):
    return int(read_image(out / "labels" / f"{name}.tif").max())


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """predict("--data", "a"): runs the command with the committed weights in an empty working directory."""
    monkeypatch.setattr(Predict_masks, "load_unet", load_once)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def predict(*arguments):
        assert Predict_masks.main([str(argument) for argument in arguments]) == 0
        return work

    return predict


def test_two_folders_of_one_name_keep_their_own_results(tmp_path, predict, capsys):
    folders = []
    for day, count in (("day1", 6), ("day2", 12)):
        folders.append(save_fields(tmp_path / day / "images", ["img001.png"], count))
        work = predict("--data", folders[-1])
    assert "writing to day2_images_predicted" in capsys.readouterr().out
    for folder in folders[::-1]:
        predict("--data", folder)
        assert "all 1 images are done" in capsys.readouterr().out
    assert count_nuclei(work / "images_predicted", "img001") == 6
    assert count_nuclei(work / "day2_images_predicted", "img001") == 12
    predict("--data", *folders, "--out", "both")
    assert count_nuclei(work / "both", "day1__img001") == 6
    assert count_nuclei(work / "both", "day2__img001") == 12


def test_a_replaced_image_is_predicted_anew_though_it_is_older(tmp_path, predict, capsys):
    images = save_fields(tmp_path / "images", ["a.png", "b.png"], 6)
    predict("--data", images, "--out", "out")
    save_fields(images, ["a.png"], 12)
    os.utime(images / "a.png", (1_000_000_000, 1_000_000_000))
    work = predict("--data", images, "--out", "out")
    assert "1 of 2 images are done" in capsys.readouterr().out
    assert (count_nuclei(work / "out", "a"), count_nuclei(work / "out", "b")) == (12, 6)


def test_a_rerun_within_the_folder_of_the_images_does_not_predict_its_results(tmp_path, predict, monkeypatch, capsys):
    plate = save_fields(tmp_path / "plate", ["a.png"], 6)
    save_fields(plate / "day1", ["a.png"], 12)
    monkeypatch.chdir(plate)
    for _ in range(2):
        predict("--data", ".", "--show")
    assert "all 2 images are done" in capsys.readouterr().out
    assert count_nuclei(plate / "plate_predicted", "a") == 6
    assert count_nuclei(plate / "plate_predicted", "day1__a") == 12


@pytest.mark.parametrize("large_image", [2048 * 2048, 10_000], ids=["whole", "in strips"])
def test_the_nuclear_channel_is_predicted_or_the_one_that_is_wanted(
    tmp_path, predict, monkeypatch, capsys, large_image
):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", large_image)
    file = save_stain_pair(tmp_path / "images/a.ome.tif")
    work = predict("--data", file, "--out", "out")
    is_whole = large_image > 10_000
    assert "a.ome: DAPI was chosen; --channel" in capsys.readouterr().out
    assert (work / "out/masks/a.ome.png").exists() == is_whole
    assert count_nuclei(work / "out", "a.ome") == 6
    for channel, count in (("gfp", 12), ("2", 6)):
        predict("--data", file, "--out", channel, "--channel", channel)
        assert count_nuclei(work / channel, "a.ome") == count
        provenance = data.outputs.read_provenance(work / channel / "labels/a.ome.tif")
        assert provenance["options"]["channel"] == channel
        (row,) = read_table(work / channel / "images.csv")
        assert row["channel"] == {"gfp": "GFP", "2": "DAPI"}[channel]
    assert "was chosen" not in capsys.readouterr().out
    for out, is_bright in (("out", False), ("gfp", True), ("2", False)):  # the last cell is of GFP alone
        overlay = np.asarray(Image.open(work / out / "overlays/a.ome.png"))
        assert (overlay[105, 147].min() > 127) == is_bright


@pytest.mark.parametrize("large_image", [2048 * 2048, 10_000], ids=["whole", "in strips"])
def test_a_nuclear_channel_that_nuclei_nearly_cover_is_seen_on_a_dark_background(
    tmp_path, predict, monkeypatch, capsys, large_image
):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", large_image)
    centres = [(row, column) for row in range(12, 132, 22) for column in range(12, 176, 22)]
    noise = np.random.default_rng(0).normal(20, 3, (2, 132, 176))
    noise[1] += 130 * ndimage.gaussian_filter(draw_disks((132, 176), centres, 10), 1)
    metadata = {"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", noise.astype(np.uint8), photometric="minisblack", metadata=metadata)
    for channel, choice in ((None, "DAPI on a dark background"), ("dapi", "dark background")):
        arguments = ["--channel", channel] if channel else []
        work = predict("--data", tmp_path / "a.ome.tif", "--out", str(channel), *arguments)
        assert f"a.ome: {choice} was chosen; --channel or --background chooses another" in capsys.readouterr().out
        (row,) = read_table(work / str(channel) / "images.csv")
        assert (row["count"], row["channel"], row["background"]) == (str(len(centres)), "DAPI", "dark")


def test_an_image_that_needs_a_channel_is_predicted_alone_into_the_same_folder(tmp_path, predict, capsys):
    images = save_fields(tmp_path / "images", ["a.png"], 6)
    field = draw_field(0, 12)
    save_image(images / "day1/b.png", np.dstack([field, 0 * field, np.roll(field, 70, axis=1)]))
    command = ["--data", str(images), "--out", "out", "--report"]
    assert Predict_masks.main(command) == 1
    printed = capsys.readouterr()
    found = r"(blue|red) \(\d+ found\)"
    assert re.search(f"skipped day1__b: its channels {found} and {found} both look like nuclei", printed.err)
    assert "predict them alone: python Predict_masks.py --data " in printed.out
    assert printed.out.endswith(" --only ID --channel NAME\n")
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "1 image was skipped:" in page and "<b>day1__b</b>: its channels " in page
    with pytest.raises(UserError, match="--only day1_b: no image has this ID; is day1__b meant?"):
        Predict_masks.main([*command, "--only", "day1_b"])
    predict(*command, "--only", "day1__b", "--channel", "red")
    work = predict(*command)  # which keeps the choice
    assert "all 2 images are done" in capsys.readouterr().out
    assert [(row["image"], row["channel"]) for row in read_table(work / "out/images.csv")] == [
        ("a", ""),
        ("day1__b", "red"),
    ]
    assert "skipped" not in (work / "out/report.html").read_text(encoding="utf-8").split("</style>")[1]


def test_an_image_without_the_channel_is_skipped_with_its_reason(tmp_path, monkeypatch, capsys):
    save_stain_pair(tmp_path / "images/a.tif")
    field = draw_field(0, 6)
    Image.fromarray(np.dstack([field, field, 0 * field])).save(tmp_path / "images/b.png")
    Image.fromarray(field).save(tmp_path / "images/c.png")  # its one channel is meant
    Image.fromarray(np.dstack([field] * 3)).save(tmp_path / "images/d.png")  # a gray image too
    arguments = ["--data", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--channel", "RFP"]
    assert Predict_masks.main(arguments) == 1
    error = capsys.readouterr().err
    assert "skipped a: no channel 'RFP'; its channels are 1 (GFP), 2 (DAPI)" in error
    assert "skipped b: no channel 'RFP'; its channels are 1 (red), 2 (green), 3 (blue)" in error
    assert sorted(file.name for file in tmp_path.glob("out/labels/*")) == ["c.tif", "d.tif"]
    np.testing.assert_array_equal(read_image(tmp_path / "out/labels/d.tif"), read_image(tmp_path / "out/labels/c.tif"))


def test_planes_are_images_of_their_own_and_a_projection_has_the_nuclei_of_all(tmp_path, predict, capsys):
    fields = draw_field(0, 12)
    parts = np.stack([fields, fields])
    parts[0, :42] = parts[1, 42:] = 15  # the first plane holds the lower eight
    parts = parts + np.random.default_rng(0).normal(0, 2, parts.shape)
    tifffile.imwrite(tmp_path / "a.tif", parts.astype(np.uint8), photometric="minisblack")
    work = predict("--data", tmp_path / "a.tif", "--out", "planes")
    assert "1 stack: 2 planes" in capsys.readouterr().out
    assert [count_nuclei(work / "planes", f"a_z{z}") for z in range(2)] == [8, 4]
    arguments = ["--data", tmp_path / "a.tif", "--out", "one"]
    for _ in range(2):
        predict(*arguments, "--project", "max")
    assert "all 1 images are done" in capsys.readouterr().out
    labels = work / "one/labels/a.tif"
    assert count_nuclei(work / "one", "a") == 12
    assert data.outputs.read_provenance(labels)["options"]["project"] == "max"
    with pytest.raises(UserError, match=r"other options \(project max, not sum\); .*--overwrite"):
        predict(*arguments, "--project", "sum")
    predict(*arguments, "--project", "sum", "--overwrite")
    assert count_nuclei(work / "one", "a") == 12
    assert "count it twice" not in capsys.readouterr().out
    predict(*arguments)
    assert "a lies in one whole and in planes or scenes: the tables count it twice" in capsys.readouterr().out
    assert data.outputs.read_provenance(labels)["options"]["project"] == "sum"


def test_the_sample_and_the_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = Predict_masks.parse_args([])
    assert len(find_samples(*args.data)) == 12
    assert Path(args.weights).is_file()


def test_mistakes_of_the_command(mistake, source, tiny_weights, tmp_path):
    assert "nowhere" in mistake("Predict_masks.py", "--data", "nowhere")
    assert "no.keras" in mistake("Predict_masks.py", "--data", source, "--weights", "no.keras")
    (tmp_path / "file").write_text("in the way")
    arguments = ["--data", source, "--weights", tiny_weights, "--out", tmp_path / "file/out"]
    assert f"{tmp_path}/file" in mistake("Predict_masks.py", *arguments)
    (tmp_path / "empty").mkdir()
    assert "no images" in mistake("Predict_masks.py", "--data", tmp_path / "empty")
    (tmp_path / "empty/broken.png").write_bytes(b"no image")
    arguments = ["--data", str(tmp_path / "empty"), "--weights", str(tiny_weights), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="none of its 1 images can be predicted"):
        Predict_masks.main(arguments)


# Tables.


def read_table(file):
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_tables_have_a_row_for_each_nucleus_and_each_image(tmp_path, monkeypatch, capsys, predict):
    source = save_fields(tmp_path / "images", ["a.png", "b.png"], 6)
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(source / "empty.png")
    work = predict("--data", source, "--out", "out", "--pixel-size", "0.5")
    assert "12 nuclei in 3 images" in capsys.readouterr().out
    nuclei = read_table(work / "out/nuclei.csv")
    assert [(row["image"], row["label"]) for row in nuclei] == [(name, str(k)) for name in "ab" for k in range(1, 7)]
    labels = read_image(work / "out/labels/a.tif")
    assert [int(row["area_px"]) for row in nuclei[:6]] == np.bincount(labels.ravel())[1:].tolist()
    assert float(nuclei[0]["area_um2"]) == int(nuclei[0]["area_px"]) / 4
    images = {row["image"]: row for row in read_table(work / "out/images.csv")}
    assert {name: row["count"] for name, row in images.items()} == {"a": "6", "b": "6", "empty": "0"}
    assert (images["a"]["warnings"], images["empty"]["warnings"]) == ("", "no nuclei; hardly more than noise")
    assert images["a"]["background"] == "dark" and images["a"]["pixel_size_um"] == "0.5"


def test_a_table_that_is_missing_is_made_again(tmp_path, predict, capsys):
    source = save_fields(tmp_path / "images", ["a.png", "b.png"], 6)
    work = predict("--data", source, "--out", "out")
    before = (work / "out/nuclei.csv").read_text()
    (work / "out/tables/b.csv").unlink()
    (work / "out/nuclei.csv").unlink()
    predict("--data", source, "--out", "out")
    assert "1 of 2 images are done" in capsys.readouterr().out
    assert (work / "out/nuclei.csv").read_text() == before


def test_tables_hold_the_images_of_earlier_runs_in_the_folder_too(tmp_path, predict, capsys):
    source = save_fields(tmp_path / "images", ["a.png", "b.png", "c.png"], 6)
    work = predict("--data", source, "--out", "out")
    capsys.readouterr()
    save_fields(source, ["b.png"], 12)
    predict("--data", source / "b.png", "--out", "out", "--submission", "--report")
    assert "24 nuclei in 3 images, 12 of them in the 1 of this run;" in capsys.readouterr().out
    counts = {row["image"]: row["count"] for row in read_table(work / "out/images.csv")}
    assert counts == {"a": "6", "b": "12", "c": "6"}
    assert [row["image"] for row in read_table(work / "out/nuclei.csv")] == ["a"] * 6 + ["b"] * 12 + ["c"] * 6
    assert {row["ImageId"] for row in read_table(work / "out/submission.csv")} == set("abc")
    assert "24 nuclei in 3 images" in (work / "out/report.html").read_text(encoding="utf-8")
    # What lacks its table is not in the tables; what is skipped now is named with its reason.
    (source / "b.png").write_bytes(b"no image")
    (work / "out/tables/c.csv").unlink()
    arguments = ["--data", str(source / "a.png"), str(source / "b.png"), "--out", "out"]
    assert Predict_masks.main(arguments) == 1
    first, skipped = read_table(work / "out/images.csv")
    assert (first["image"], skipped["image"], skipped["count"]) == ("a", "b", "")
    assert skipped["warnings"].startswith("skipped: ") and "b.png" in skipped["warnings"]
    assert {row["image"] for row in read_table(work / "out/nuclei.csv")} == {"a"}


def test_a_large_image_has_the_table_of_its_labels(tmp_path, large_images, predict):
    file = save_stain_pair(tmp_path / "images/a.ome.tif")
    work = predict("--data", file, "--out", "out")
    (row,) = read_table(work / "out/images.csv")
    assert (row["count"], row["channel"]) == ("6", "DAPI")
    nuclei = read_table(work / "out/nuclei.csv")
    labels = read_image(work / "out/labels/a.ome.tif")
    channels = tifffile.imread(file)
    for row in nuclei:
        inside = labels == int(row["label"])
        assert int(row["area_px"]) == inside.sum()
        for name, plane in zip(("GFP", "DAPI"), channels, strict=True):
            assert float(row[f"intensity_mean_{name}"]) == pytest.approx(plane[inside].mean())


def test_labels_keep_the_pixel_size_and_show_nuclei_in_fiji(tmp_path, predict, capsys):
    file = tmp_path / "images/a.tif"
    file.parent.mkdir()
    tifffile.imwrite(file, draw_field(0, 6), imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    work = predict("--data", file, "--out", "out")
    labels = work / "out/labels/a.tif"
    assert read_pixel_size(labels) == 0.25
    with tifffile.TiffFile(labels) as tiff:
        assert tiff.imagej_metadata["unit"] == "um"
        assert (tiff.imagej_metadata["min"], tiff.imagej_metadata["max"]) == (0, 6)
    assert data.outputs.read_provenance(labels)["seen"]["background"] == "dark"
    capsys.readouterr()
    predict("--data", file, "--out", "given", "--pixel-size", "0.5")
    assert "a: --pixel-size 0.5 is used; the file says 0.25 micrometres\n" in capsys.readouterr().out
    assert read_pixel_size(work / "given/labels/a.tif") == 0.5
    predict("--data", file, "--out", "same", "--pixel-size", "0.2501")
    assert "is used" not in capsys.readouterr().out


def test_outlines_are_written_where_they_are_wanted_later_too(tmp_path, predict):
    source = save_fields(tmp_path / "images", ["a.png"], 6)
    work = predict("--data", source, "--out", "out")
    assert not (work / "out/rois").exists()
    predict("--data", source, "--out", "out", "--rois", "--geojson")
    names = [str(number) for number in range(1, 7)]
    assert [roi.name for roi in roifile.roiread(work / "out/rois/a.zip")] == names
    features = json.loads((work / "out/geojson/a.geojson").read_text())["features"]
    nuclei = {row["label"]: row for row in read_table(work / "out/nuclei.csv")}
    assert sorted(feature["properties"]["name"] for feature in features) == names
    for feature in features:
        area = feature["properties"]["measurements"]["area_px"]
        assert area == int(nuclei[feature["properties"]["name"]]["area_px"])


def test_outlines_follow_labels_that_are_replaced(tmp_path, predict, capsys):
    source = save_fields(tmp_path / "images", ["a.png", "b.png"], 6)
    command = ["--data", source, "--out", "out"]
    work = predict(*command, "--rois", "--geojson")
    capsys.readouterr()
    predict(*command, "--overwrite", "--diameter", "20", "--min-area", "100000")
    assert "saved the nuclei of 2 images to out/rois too" in capsys.readouterr().out
    assert roifile.roiread(work / "out/rois/a.zip") == []
    assert json.loads((work / "out/geojson/b.geojson").read_text())["features"] == []
    # A run that is killed between labels and outlines leaves none, not those of other labels.
    data.outputs.prediction_files(work / "out", "a").remove_optional()
    assert sorted(file.name for file in (work / "out").glob("*/a.*")) == ["a.csv", "a.json", "a.png", "a.png", "a.tif"]


# Python.


def test_segment_takes_arrays_and_paths(tmp_path, monkeypatch):
    field = draw_field(0, 6)
    source = save_fields(tmp_path / "images", ["a.png"], 6)
    labels = Predict_masks.segment(field)
    assert labels.shape == field.shape and labels.dtype == np.int32 and labels.max() == 6
    for image in (field.astype(float), np.stack([field] * 3, -1), source / "a.png", str(source / "a.png")):
        np.testing.assert_array_equal(Predict_masks.segment(image), labels)
    _, details = Predict_masks.segment(field, details=True)
    assert details["nucleus"].shape == details["border"].shape == field.shape
    assert (details["background"], details["scales"]) == ("dark", [0])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros(5), "expected one gray or RGB image"),
        (np.zeros((4, 5, 7)), "expected one gray or RGB image"),
        (np.full((9, 9), np.nan), "NaN"),
        (np.zeros((9, 9), complex), "expected real numbers"),
    ],
)
def test_segment_refuses_what_is_no_image_in_words(image, reason):
    with pytest.raises(UserError, match=f"the array: .*{reason}"):
        Predict_masks.segment(image)


def test_segment_refuses_a_slide_that_is_too_large_to_be_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(data.pixels, "MAX_PIXELS", 10_000)
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        for level in (pixels, pixels[::2, ::2]):
            tiff.write(level, photometric="rgb", tile=(64, 64))
    assert Predict_masks.segment(tmp_path / "a.svs", Threshold(), level=1).shape == (64, 64)
    with pytest.raises(UserError, match=r"a\.svs: its 128×128 pixels are too many to read at once; Predict_masks\.py"):
        Predict_masks.segment(tmp_path / "a.svs", Threshold())


def test_the_lines_of_python_in_the_readme_work(tmp_path, monkeypatch):
    readme = Path(Predict_masks.__file__).with_name("README.md").read_text(encoding="utf-8")
    (lines,) = [block for block in readme.split("```") if "from Predict_masks import" in block]
    source = save_fields(tmp_path, ["my_image.png"], 6)
    monkeypatch.chdir(source)
    names = {}
    exec(lines.removeprefix("python"), names)
    assert names["labels"].max() == 6


# Scale and level.


def test_the_diameter_that_is_given_sets_the_scale(tmp_path, predict):
    source = save_fields(tmp_path / "images", ["a.png"], 6)
    for diameter, halvings in (("16", 0), ("40", 0), ("150", 1), ("6", -1), ("4", -2)):
        work = predict("--data", source, "--out", diameter, "--diameter", diameter)
        assert data.outputs.read_provenance(work / diameter / "labels/a.tif")["seen"]["scales"][0] == halvings
    for diameter in ("-1", "0.5", "4000", "nan"):
        with pytest.raises(UserError, match=f"--diameter must be from 3 to 3000 pixels, not {diameter}"):
            predict("--data", source, "--diameter", diameter)
    with pytest.raises(UserError, match="--pixel-size 500.0 is wider than a nucleus; it is in micrometres, at most 20"):
        predict("--data", source, "--pixel-size", "500")


def test_the_precision_is_kept_with_the_labels(tmp_path, predict):
    source = save_fields(tmp_path / "images", ["a.png"], 6)
    for precision in ("float32", "mixed_bfloat16"):
        work = predict("--data", source, "--out", "out", "--precision", precision, "--overwrite")
        options = data.outputs.read_provenance(work / "out/labels/a.tif")["options"]
        assert options["precision"] == precision
        assert count_nuclei(work / "out", "a") == 6
    with pytest.raises(UserError, match="--precision must be float32 or mixed_bfloat16, not float16"):
        Predict_masks.segment(np.zeros((9, 9)), precision="float16")


def test_the_level_of_a_pyramid_is_chosen(tmp_path, predict):
    file = tmp_path / "a.tif"
    field = draw_field(0, 6)
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(np.kron(field, np.ones((2, 2), field.dtype)), subifds=1, resolution=(4e4, 4e4), resolutionunit=3)
        tiff.write(field, subfiletype=1)
    work = predict("--data", file, "--out", "out", "--level", "1", "--geojson")
    labels = read_image(work / "out/labels/a.tif")
    assert labels.shape == field.shape
    assert count_nuclei(work / "out", "a") == 6
    assert read_pixel_size(work / "out/labels/a.tif") == pytest.approx(0.5)
    # Outlines are in pixels of the largest level, which QuPath shows.
    drawn = np.zeros((2 * labels.shape[0], 2 * labels.shape[1]), int)
    for feature in json.loads((work / "out/geojson/a.geojson").read_text())["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        columns, rows = np.array(ring).T
        drawn[polygon(rows - 0.5, columns - 0.5)] = int(feature["properties"]["name"])
    assert np.array_equal(drawn, np.kron(labels, np.ones((2, 2), int)))
    with pytest.raises(UserError, match=r"none of its 1 images"):
        predict("--data", file, "--out", "none", "--level", "2")
