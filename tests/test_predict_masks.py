"""Predict_masks: padding, separation of touching nuclei, the files written and shown."""

import csv
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

import Model
import Predict_masks
import Preprocessed_data


def draw_disks(shape, centres, radius):
    nucleus = np.zeros(shape, np.float32)
    for centre in centres:
        nucleus[disk(centre, radius, shape=shape)] = 1
    return nucleus


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    keras.utils.set_random_seed(1)
    file = tmp_path_factory.mktemp("weights") / "unet.keras"
    Model.Unet(2, 2).build().save(file)
    return file


class Threshold:
    """Stands for a network that answers the gray value itself, and never a border."""

    layers = ()

    def predict_on_batch(self, batch):
        return np.concatenate([batch, np.zeros_like(batch)], axis=-1)


@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (7, 5), (1, 1), (1, 40)])
def test_probability_has_the_images_own_size(tiny_weights, shape):
    gray = np.random.default_rng(0).random(shape, np.float32)
    for answer in Predict_masks.predict_probability(Model.load_unet(tiny_weights), gray):
        assert answer.shape == shape and answer.dtype == np.float32
        assert 0 <= answer.min() and answer.max() <= 1


def test_padding_does_not_move_the_image():
    gray = np.random.default_rng(0).random((13, 17), np.float32)
    nucleus, border = Predict_masks.predict_probability(Threshold(), gray)
    np.testing.assert_array_equal(nucleus, gray)
    assert not border.any()


def test_a_stack_is_answered_as_its_images_are():
    stack = np.random.default_rng(0).random((3, 13, 17), np.float32)
    nucleus, _ = Predict_masks.predict_probability(Threshold(), stack)
    np.testing.assert_array_equal(nucleus, stack)


def test_separate_disks_are_counted_and_kept_to_the_pixel():
    nucleus = draw_disks((80, 100), [(20, 20), (20, 60), (60, 40), (60, 80), (15, 85)], 9)
    labels = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    expected, count = ndimage.label(nucleus)
    assert count == labels.max() == 5 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, expected > 0)


def test_touching_disks_are_parted_at_the_border():
    nucleus = draw_disks((40, 60), [(20, 20), (20, 37)], 9)
    border = np.zeros_like(nucleus)
    border[10:31, 27:31] = 1
    joined = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    parted = Predict_masks.separate_nuclei(nucleus, border)
    assert joined.max() == 1 and parted.max() == 2
    np.testing.assert_array_equal(parted > 0, nucleus > 0)
    assert parted[20, 15] != parted[20, 42]
    areas = np.bincount(parted.ravel())[1:]
    assert areas.min() / areas.max() > 0.85


def test_holes_are_filled_and_specks_removed():
    nucleus = draw_disks((60, 60), [(30, 30)], 12)
    nucleus[28:32, 28:32] = 0
    nucleus[2:5, 2:5] = 1
    labels = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    assert labels.max() == 1 and labels[30, 30] == 1 and labels[3, 3] == 0


def test_background_at_the_edge_of_the_image_is_no_hole():
    nucleus = draw_disks((60, 60), [(24, 24)], 30)  # cuts off a corner of 100 pixels
    labels = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    np.testing.assert_array_equal(labels, nucleus)


@pytest.mark.parametrize(("width", "count"), [(9, 13), (11, 12)])
def test_what_is_ten_times_as_large_as_a_common_nucleus_is_none(width, count):
    nucleus = draw_disks((100, 120), [(50, column) for column in range(6, 120, 10)], 4)
    area = nucleus.sum() / 12
    nucleus[5 : 5 + width, 10 : 10 + int(area)] = 1  # 9 or 11 times as large
    labels = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    assert labels.max() == count and labels[5, 10] == count - 12


def test_a_large_nucleus_among_few_small_ones_stays():
    nucleus = draw_disks((100, 100), [(6, column) for column in range(6, 96, 10)], 4)
    nucleus += draw_disks((100, 100), [(60, 50)], 30)
    labels = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    np.testing.assert_array_equal(labels > 0, nucleus > 0)


def test_each_number_is_one_connected_piece():
    rng = np.random.default_rng(3)
    nucleus = ndimage.gaussian_filter(rng.random((128, 128)), 3)
    border = ndimage.gaussian_filter(rng.random((128, 128)), 3)
    nucleus, border = ((x - x.min()) / np.ptp(x) for x in (nucleus, border))
    labels = Predict_masks.separate_nuclei(nucleus, border * 0.4)
    assert labels.max() > 5
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    for number in range(1, labels.max() + 1):
        assert ndimage.label(labels == number)[1] == 1
        assert (labels == number).sum() >= Predict_masks.MIN_AREA


def test_nothing_there_gives_no_nucleus():
    zero = np.zeros((20, 30), np.float32)
    assert not Predict_masks.separate_nuclei(zero, zero).any()


def test_files_agree_and_have_the_promised_types(tmp_path):
    labels = np.zeros((40, 50), np.int32)
    labels[5:15, 5:15], labels[20:30, 20:35] = 1, 2
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Predict_masks.make_folders(tmp_path)
    Predict_masks.write_prediction(tmp_path, "a", image, labels)
    mask = np.asarray(Image.open(tmp_path / "masks/a.png"))
    numbers = tifffile.imread(tmp_path / "labels/a.tif")
    overlay = np.asarray(Image.open(tmp_path / "overlays/a.png"))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert numbers.dtype == np.uint16 and overlay.shape == (40, 50, 3)
    np.testing.assert_array_equal(numbers, labels)
    np.testing.assert_array_equal(mask == 255, labels > 0)
    assert (overlay[5, 5] == (255, 220, 0)).all()


def test_more_nuclei_than_16_bits_hold(tmp_path):
    labels = np.arange(70_000, dtype=np.int32).reshape(250, 280)
    Predict_masks.make_folders(tmp_path)
    Predict_masks.write_prediction(tmp_path, "many", np.zeros((250, 280), np.uint8), labels)
    numbers = tifffile.imread(tmp_path / "labels/many.tif")
    assert numbers.dtype == np.uint32 and numbers.max() == 69_999


def test_many_images_of_many_shapes_each_get_their_own_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(Predict_masks, "READ_AHEAD", 4)
    monkeypatch.setattr(Predict_masks, "BATCH_PIXELS", 2 * 40 * 50)
    batches = []

    class Recorder(Threshold):
        def predict_on_batch(self, batch):
            batches.append(batch.shape)
            return super().predict_on_batch(batch)

    source, truth = tmp_path / "images", {}
    source.mkdir()
    for number in range(11):
        image = np.zeros([(40, 50), (40, 50), (30, 60)][number % 3], np.uint8)
        image[5:15, number : number + 10] = 200
        Image.fromarray(image).save(source / f"{number:02}.png")
        truth[f"{number:02}"] = image > 0
    (source / "05.png").write_bytes(b"no image")
    samples = Preprocessed_data.open_source(source)
    written, skipped = Predict_masks.predict_samples(samples, Recorder(), tmp_path / "out")
    assert list(skipped) == ["05"] and written == sorted(set(truth) - {"05"})
    for name in written:
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(mask > 0, truth[name])
    assert max(shape[0] for shape in batches) == 2 and sum(shape[0] for shape in batches) == 10


@pytest.fixture
def small_strips(monkeypatch):
    for name, value in {"STRIP": 64, "TILE": 128, "MARGIN": 32, "TIFF_TILE": 16}.items():
        monkeypatch.setattr(Predict_masks, name, value)


def test_a_nucleus_across_strips_is_one_nucleus(small_strips):
    # Rows 64, 128 and 192 are where strips meet; the last strip is 8 rows.
    centres = [
        (64, 20),
        (66, 60),
        (62, 100),
        (128, 20),
        (127, 60),
        (191, 20),
        (100, 140),
        (195, 80),
    ]
    nucleus = draw_disks((200, 160), centres, 9)
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    strips = (answer[:, row : row + 64] for row in range(0, 200, 64))
    labels = np.concatenate(list(Predict_masks.label_strips(strips)))
    whole = Predict_masks.separate_nuclei(*answer)
    assert labels.max() == whole.max() == 8
    np.testing.assert_array_equal(labels > 0, whole > 0)
    pairs = np.unique(np.stack([labels, whole])[:, whole > 0], axis=1)
    assert pairs.shape == (2, 8)  # each nucleus has one number, and each number one nucleus


def test_a_nucleus_higher_than_strip_and_margins_is_one_nucleus(small_strips):
    nucleus = draw_disks((400, 300), [(200, 120)], 110) + draw_disks((400, 300), [(50, 280)], 15)
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    strips = (answer[:, row : row + 64] for row in range(0, 400, 64))
    labels = np.concatenate(list(Predict_masks.label_strips(strips)))
    np.testing.assert_array_equal(labels, Predict_masks.separate_nuclei(*answer))


def test_a_vessel_across_strips_is_no_nucleus(small_strips):
    disks = [(row, column) for row in range(8, 380, 14) for column in range(8, 90, 14)]
    nucleus = draw_disks((384, 120), disks, 5)
    whole = Predict_masks.separate_nuclei(nucleus, np.zeros_like(nucleus))
    nucleus[:, 100:112] = 1
    answer = np.stack([nucleus, np.zeros_like(nucleus)])
    np.testing.assert_array_equal(Predict_masks.separate_nuclei(*answer), whole)
    strips = (answer[:, row : row + 64] for row in range(0, 384, 64))
    largest = Predict_masks.giant_area(whole)
    labels = np.concatenate(list(Predict_masks.label_strips(strips, largest)))
    assert labels.max() == whole.max() == len(disks)
    np.testing.assert_array_equal(labels > 0, whole > 0)


@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_a_large_image_in_tiles_is_as_it_is_whole(tmp_path, small_strips, monkeypatch, halvings):
    model = Model.load_unet(Path(__file__).parent.parent / Predict_masks.WEIGHTS)
    samples = Preprocessed_data.open_source(Preprocessed_data.DATA)
    files = [s.image for s in samples if "fluorescence" in s.id][:4]
    images = [Preprocessed_data.read_image(file) for file in files]
    images = [Preprocessed_data.brightness(image)[:200, :200] for image in images]
    image = np.block([images[:2], images[2:]])[:370, :390]
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/big.tif", image, tile=(64, 64), compression="zlib")
    widths = [(1000, 1000), (1, 1000), (1, 1)][halvings]
    monkeypatch.setattr(Predict_masks, "HALVE_ABOVE", widths)
    monkeypatch.setattr(Predict_masks, "MERGED", 1000)
    samples = Preprocessed_data.open_source(tmp_path / "images")
    Predict_masks.predict_samples(samples, model, tmp_path / "whole")
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1000)
    written, skipped = Predict_masks.predict_samples(samples, model, tmp_path / "tiles")
    assert (written, skipped) == (["big"], {})
    whole = tifffile.imread(tmp_path / "whole/labels/big.tif")
    with tifffile.TiffFile(tmp_path / "tiles/labels/big.tif") as file:
        assert file.is_bigtiff and file.pages[0].is_tiled
        tiles = file.asarray()
    assert tiles.dtype == np.uint32 and len(np.unique(tiles)) - 1 == tiles.max() == whole.max() > 20
    assert 2 * np.sum((whole > 0) & (tiles > 0)) / (np.sum(whole > 0) + np.sum(tiles > 0)) > 0.999
    assert (
        len(np.unique(np.stack([whole, tiles])[:, (whole > 0) & (tiles > 0)], axis=1).T)
        < whole.max() + 3
    )
    mask = tifffile.imread(tmp_path / "tiles/masks/big.tif")
    np.testing.assert_array_equal(mask, np.where(tiles > 0, 255, 0))
    assert Image.open(tmp_path / "tiles/overlays/big.png").size == (390, 370)
    assert Predict_masks.show_predictions(tmp_path / "tiles").is_file()


def test_wide_nuclei_are_predicted_from_afar(tmp_path):
    seen = Counter()

    class Recorder(Threshold):
        def predict_on_batch(self, batch):
            seen.update({batch.shape[1:3]: len(batch)})
            return super().predict_on_batch(batch)

    images = {"narrow": 8, "wide": 25, "very_wide": 42}
    for name, radius in images.items():
        image = 255 * draw_disks((100, 120), [(50, 60)], radius).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    samples = Preprocessed_data.open_source(tmp_path)
    Predict_masks.predict_samples(samples, Recorder(), tmp_path / "out")
    assert seen == {(100, 120): 3, (50, 60): 2, (25, 30): 1}  # all from near, some from afar
    for name in images:
        image = np.asarray(Image.open(tmp_path / f"{name}.png"))
        mask = np.asarray(Image.open(tmp_path / "out/masks" / f"{name}.png"))
        assert mask.shape == image.shape and np.mean(mask == image) > 0.98
        labels, _ = Predict_masks.find_nuclei(Threshold(), np.float32(image / 255))
        written = tifffile.imread(tmp_path / "out/labels" / f"{name}.tif")
        np.testing.assert_array_equal(written, labels)


def test_what_is_seen_from_afar_counts_two_thirds():
    near, far = np.full((2, 3, 4), 0.3, np.float32), np.full((2, 3, 4), 0.9, np.float32)
    np.testing.assert_allclose(Predict_masks.blend(near, far), 0.7, rtol=1e-6)


def test_where_nuclei_run_together_from_afar_they_are_seen_from_near(tmp_path):
    class Merging(Threshold):
        """Sees the whole image as one nucleus once it is reduced."""

        def predict_on_batch(self, batch):
            answer = super().predict_on_batch(batch)
            return answer if batch.shape[1] == 128 else np.zeros_like(answer) + (1, 0)

    near = draw_disks((128, 128), [(40, 40), (90, 90)], 20)
    labels, halvings = Predict_masks.find_nuclei(Merging(), near.astype(np.float32))
    assert halvings == 0 and labels.max() == 2


def test_what_cannot_be_written_of_a_large_image_is_named_once(tmp_path, small_strips, monkeypatch):
    monkeypatch.setattr(Predict_masks, "LARGE_IMAGE", 1000)
    Image.fromarray(np.zeros((90, 70), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "out/masks/a.tif").mkdir(parents=True)  # where the mask is to be
    with pytest.raises(OSError) as error:
        samples = Preprocessed_data.open_source(tmp_path / "a.png")
        Predict_masks.predict_samples(samples, Threshold(), tmp_path / "out")
    assert error.value.filename == str(tmp_path / "out/masks/a.tif")
    assert error.value.strerror.count("make room there") == 1
    assert not list(tmp_path.glob("out/labels/*"))


def test_a_broken_image_is_named_and_the_rest_finished(tmp_path, tiny_weights, capsys):
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(source / "good.png")
    (source / "broken.png").write_bytes(b"no image")
    arguments = [
        "--data",
        source,
        "--weights",
        tiny_weights,
        "--out",
        out,
        "--show",
        "--submission",
    ]
    assert Predict_masks.main([str(a) for a in arguments]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert [file.name for file in (out / "masks").iterdir()] == ["good.png"]
    assert (out / "predictions.png").is_file()
    assert "good" in (out / "submission.csv").read_text()
    assert "broken" not in (out / "submission.csv").read_text()


def test_show_predictions_reads_only_the_files(tmp_path):
    Predict_masks.make_folders(tmp_path)
    labels = np.pad(np.ones((10, 10), np.int32), 10)
    Predict_masks.write_prediction(tmp_path, "a", np.zeros((30, 30), np.uint8), labels)
    before = Preprocessed_data.read_image(Predict_masks.show_predictions(tmp_path))
    inverted = 255 - np.asarray(Image.open(tmp_path / "masks/a.png"))
    Image.fromarray(inverted).save(tmp_path / "masks/a.png")
    after = Preprocessed_data.read_image(Predict_masks.show_predictions(tmp_path))
    assert (before != after).any()


def test_show_predictions_of_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Predict_masks.py"):
        Predict_masks.show_predictions(tmp_path)


def test_the_submission_holds_the_nuclei_of_the_label_files(tmp_path):
    Predict_masks.make_folders(tmp_path)
    labels = ndimage.label(draw_disks((30, 40), [(8, 8), (20, 30)], 5))[0].astype(np.int32)
    for name, numbers in ("a", labels), ("empty", 0 * labels):
        Predict_masks.write_prediction(tmp_path, name, np.zeros((30, 40), np.uint8), numbers)
    with open(Predict_masks.save_submission(tmp_path, ["a", "empty"]), newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["ImageId", "EncodedPixels"]
    assert [name for name, _ in rows] == ["a", "a", "empty"] and rows[2][1] == ""
    found = sum(
        number * Preprocessed_data.rle_decode(run, labels.shape)
        for number, (_, run) in enumerate(rows[:2], start=1)
    )
    np.testing.assert_array_equal(found, labels)


def test_mistakes_of_the_command(mistake, source, tiny_weights, tmp_path):
    assert "nowhere" in mistake("Predict_masks.py", "--data", "nowhere")
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    arguments = ["--data", source, "--weights", tiny_weights, "--out", out]
    with pytest.raises(NotADirectoryError, match=str(out.parent)):
        Predict_masks.main([str(word) for word in arguments])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        Predict_masks.main(["--data", str(tmp_path / "empty")])
