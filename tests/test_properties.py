"""What must hold for any image: tried on arrays that hypothesis makes up, and on turned ones."""

import csv
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import load_once, save_image
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

import Evaluate_model
import Predict_masks
from data import nuclei, outputs, pictures, slides, tables
from data.images import read_image
from data.options import DATA
from data.run_lengths import decode_run_lengths, encode_run_lengths
from data.sources import find_samples
from Preprocessed_data import KINDS, image_kind, to_display, to_grayscale

ROOT = Path(__file__).resolve().parent.parent
MANY = settings(max_examples=150, deadline=None, derandomize=True)
FEW = settings(max_examples=15, deadline=None, derandomize=True)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)
DTYPES = st.sampled_from("bool uint8 uint16 int16 int32 float32 float64".split())
# Nearly as large as may be; TensorFlow turns subnormal numbers off for the whole process.
FLOATS = {"min_value": -(2.0**99), "max_value": 2.0**99, "allow_subnormal": False}
IMAGES = st.tuples(SHAPES, st.booleans(), DTYPES).flatmap(
    lambda x: arrays.arrays(x[2], (*x[0], 3) if x[1] else x[0], elements=FLOATS if "float" in x[2] else None)
)
PROBABILITIES = SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, (2, *shape), elements=st.floats(0, 1, width=32)))
CELLS = (3, 4)  # of the ground that disks are drawn on, one in a cell at most
CELL = 24  # pixels
RADII = st.lists(st.sampled_from([0, 5, 6, 7, 8, 9]), min_size=12, max_size=12).filter(
    lambda radii: np.count_nonzero(radii) > 2
)


@pytest.fixture(scope="module")
def unet():
    """The committed network."""
    return load_once()


def assert_well_numbered(labels, scale=0):
    """1…K without gaps, each one connected piece of at least MIN_AREA pixels of the scale that was predicted at."""
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) - {0} == set(range(1, labels.max() + 1))
    for number in range(1, labels.max() + 1):
        assert ndimage.label(labels == number)[1] == 1
        assert (labels == number).sum() >= nuclei.MIN_AREA * 4.0**scale


def draw_cells(radii):
    """Labels (72, 96) int of a disk of each radius in pixels, in a cell of its own; 0 leaves the cell empty."""
    labels = np.zeros((CELLS[0] * CELL, CELLS[1] * CELL), int)
    for index, radius in enumerate(radii):
        if radius:
            centre = (np.array(divmod(index, CELLS[1])) + 0.5) * CELL
            labels[disk(centre, radius)] = labels.max() + 1
    return labels


def read_agreeing_files(out, name, shape):
    """The labels (H, W) of an image, whose files have this size; its mask is 255 where they are not 0."""
    files = outputs.prediction_files(out, name)
    labels = read_image(files.labels)
    assert labels.shape == shape
    assert np.asarray(Image.open(files.overlay)).shape == (*shape, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(files.mask)), np.where(labels > 0, 255, 0))
    return labels


@MANY
@given(IMAGES)
def test_gray_is_from_0_to_1_whatever_the_image_holds(image):
    gray = to_grayscale(image)
    assert gray.shape == image.shape[:2] and gray.dtype == np.float32
    assert np.isfinite(gray).all() and gray.min() >= 0 and gray.max() <= 1
    assert image_kind(image) in KINDS
    picture = to_display(image)
    assert picture.shape == (*image.shape[:2], 3) and picture.dtype == np.uint8
    assert pictures.outline_nuclei(picture, (gray > 0.5).astype(int)).shape == picture.shape


@MANY
@given(PROBABILITIES)
def test_nuclei_are_well_numbered_whatever_the_network_answers(answer):
    labels = nuclei.separate_nuclei(*answer)
    assert labels.shape == answer.shape[1:]
    assert_well_numbered(labels)


@MANY
@given(RADII, st.integers(0, 99))
def test_each_disk_of_an_answer_is_a_nucleus(radii, seed):
    drawn = draw_cells(radii)
    noise = np.random.default_rng(seed).uniform(0, 0.4, (2, *drawn.shape))
    labels = nuclei.separate_nuclei(np.where(drawn > 0, 1 - noise[0] / 4, noise[0]), noise[1])
    assert_well_numbered(labels)
    assert labels.max() == drawn.max() == np.count_nonzero(radii)
    pairs = np.stack([labels, drawn])[:, drawn > 0]
    assert len(np.unique(pairs, axis=1).T) == drawn.max()  # a number of its own each
    assert ((labels > 0) == (drawn > 0)).all()


@MANY
@given(st.lists(st.tuples(st.integers(0, 149), st.integers(0, 39), st.integers(3, 12)), max_size=9))
def test_nuclei_lower_than_the_context_are_the_same_in_strips(disks):
    rows, columns = np.mgrid[:150, :40]
    nucleus = np.zeros((150, 40), np.float32)
    for row, column, radius in disks:
        nucleus[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 1
    answer = np.stack([nucleus, 0 * nucleus])
    with mock.patch.object(slides, "CONTEXT_ROWS", 30):
        strips = (answer[:, top : top + 40] for top in range(0, 150, 40))
        labels = np.concatenate([part for part, _ in slides.label_strips(strips, nuclei.separate_nuclei)])
    whole = nuclei.separate_nuclei(*answer)
    for number, (height, _) in enumerate(ndimage.find_objects(whole), start=1):
        if height.stop - height.start <= 30:
            found = np.unique(labels[whole == number])
            assert len(found) == 1 and found[0] > 0
            assert ((labels == found[0]) == (whole == number)).all()


@FEW
@given(IMAGES)
def test_files_have_the_size_of_the_image(unet, tmp_path_factory, image):
    out = tmp_path_factory.mktemp("out")
    outputs.make_folders(out)
    labels, scales = Predict_masks.find_nuclei(unet, to_grayscale(image))
    assert_well_numbered(labels, scales[0])
    overlay = pictures.outline_nuclei(to_display(image), labels)
    outputs.write_prediction(outputs.prediction_files(out, "a"), labels, overlay, {})
    np.testing.assert_array_equal(read_agreeing_files(out, "a", image.shape[:2]), labels)


@FEW
@given(RADII, st.booleans(), st.integers(0, 99))
def test_mask_labels_and_tables_agree_pixel_by_pixel(unet, tmp_path_factory, radii, is_bright_field, seed):
    out = tmp_path_factory.mktemp("out")
    drawn = draw_cells(radii)
    gray = np.where(drawn > 0, 160, 20) + np.random.default_rng(seed).integers(-9, 10, drawn.shape)
    save_image(out / "images/a.png", np.uint8(255 - gray if is_bright_field else gray))
    Predict_masks.predict_samples(find_samples(out / "images"), unet, out, {"weights_sha256": "0"})
    labels = read_agreeing_files(out, "a", drawn.shape).astype(np.int32)
    assert_well_numbered(labels)
    assert labels.max() == drawn.max()
    assert tables.save_tables(out, ["a"])["a"]["count"] == drawn.max()
    with open(out / "nuclei.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    pixels = [(number, (labels == number).sum()) for number in range(1, drawn.max() + 1)]
    assert [(int(row["label"]), int(row["area_px"])) for row in rows] == pixels


@MANY
@given(arrays.arrays(np.uint16, SHAPES, elements=st.integers(0, 5)))
def test_run_lengths_there_and_back(labels):
    masks = [decode_run_lengths(text, labels.shape) for text in encode_run_lengths(labels)]
    decoded = sum((number * mask for number, mask in enumerate(masks, start=1)), 0 * labels)
    np.testing.assert_array_equal(decoded, labels)


@MANY
@given(SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, (2, *shape), elements=st.integers(0, 3))))
def test_scores_stay_between_0_and_1_and_a_truth_scores_1(pair):
    truth, other = pair
    for labels in truth, other:
        scores = Evaluate_model.score_image(truth, labels > 0, labels)
        for name in ("dice", "iou", "ap", "ap50", "f1_50", "f1_70"):
            assert 0 <= scores[name] <= 1
            assert scores[name] == 1 or labels is not truth
    there = Evaluate_model.dice_score(truth > 0, other > 0)
    assert there == Evaluate_model.dice_score(other > 0, truth > 0)


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, np.rot90])
def test_a_turned_image_has_nearly_the_same_nuclei(unet, turn):
    for sample in find_samples(ROOT / DATA)[::3]:
        image = read_image(sample.image)
        labels, _ = Predict_masks.find_nuclei(unet, to_grayscale(image))
        turned, _ = Predict_masks.find_nuclei(unet, to_grayscale(turn(image).copy()))
        assert Evaluate_model.dice_score(turn(labels) > 0, turned > 0) > 0.97
        assert abs(int(labels.max()) - int(turned.max())) <= 0.05 * labels.max()
