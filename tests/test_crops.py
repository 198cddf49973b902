"""The batches that a network is fitted to and the target of its answer, on drawn nuclei whose answer is known."""

import dataclasses

import numpy as np
import pytest
from conftest import SMALL, draw_nuclei, draw_pair, make_crops

from data import crops
from data.empty_crops import draw_empty_crop
from data.intensity import optical_density
from Preprocessed_data import to_grayscale

# The batches.


def test_batches_follow_from_seed_and_batch_id():
    whole = make_crops()
    later = make_crops(epochs_done=1)
    other = make_crops(dataclasses.replace(SMALL, seed=2))
    assert (len(whole), len(later)) == (9, 6)
    gray, target = whole[0]
    assert gray.shape == (2, 32, 32, 1)
    assert target.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(whole[4][0], later[1][0])
    np.testing.assert_array_equal(whole[4][1], later[1][1])
    assert not np.array_equal(gray, whole[1][0])
    assert not np.array_equal(gray, other[0][0])


def test_a_batch_shows_the_images_that_were_drawn_for_it(monkeypatch):
    monkeypatch.setattr(crops, "EMPTY_SHARE", 0)
    monkeypatch.setattr(crops, "draw_crop", lambda gray, labels, *_, **__: (gray, labels))
    batches = make_crops()
    for index in range(len(batches)):
        images, _ = batches.draw_images(index)
        np.testing.assert_array_equal(batches[index][0][..., 0], [batches.images[image][0] for image in images])


def test_a_small_share_of_the_crops_has_no_nuclei(monkeypatch):
    monkeypatch.setattr(crops, "draw_crop", lambda gray, labels, *_, **__: (gray[:32, :32], np.ones((32, 32), int)))
    batches = make_crops(dataclasses.replace(SMALL, crops=1000, batch_size=20))
    empty = [not target[..., 0].any() for index in range(100) for target in batches[index][1]]
    assert len(empty) == 2000
    assert np.mean(empty) == pytest.approx(crops.EMPTY_SHARE, abs=0.015)  # three standard deviations


@pytest.mark.parametrize("fixed_edges", [False, True])
def test_crops_without_nuclei_follow_from_the_generator_and_have_fixed_edges_too(monkeypatch, fixed_edges):
    monkeypatch.setattr(crops, "EMPTY_SHARE", 1)
    gray, labels = make_crops().draw(0, np.random.default_rng(3), fixed_edges)
    rng = np.random.default_rng(3)
    rng.random()
    expected, no_labels = draw_empty_crop(32, rng, fixed_edges)
    np.testing.assert_array_equal(gray, expected)
    np.testing.assert_array_equal(labels, no_labels)


def test_half_of_the_tissue_crops_are_in_other_stains_each_time(monkeypatch):
    monkeypatch.setattr(crops, "EMPTY_SHARE", 0)
    monkeypatch.setattr(crops, "draw_crop", lambda gray, labels, *_, **__: (gray, labels))
    image, labels = draw_nuclei(stained=True)
    pair = crops.TrainingImage(to_grayscale(image), labels, optical_density(image))
    batches = crops.Crops([pair, pair._replace(density=None)], [0.5, 0.5], SMALL)

    def draw(image_index, seed):
        return batches.draw(image_index, np.random.default_rng(seed), False)[0]

    np.testing.assert_array_equal(draw(0, 1), draw(0, 1))
    drawn = [draw(0, seed) for seed in range(100)]
    varied = [gray for gray in drawn if not np.array_equal(gray, pair.gray)]
    assert 35 < len(varied) < 65
    assert all(abs(gray - pair.gray).mean() > 0.0001 for gray in varied)
    assert abs(varied[0] - varied[1]).mean() > 0.001
    assert all(np.array_equal(draw(1, seed), pair.gray) for seed in range(20))


def test_images_are_drawn_by_their_probabilities():
    pairs = [draw_pair((40, 40), seed) for seed in range(3)]
    batches = crops.Crops(pairs, [0.25, 0, 0.75], dataclasses.replace(SMALL, crops=200))
    drawn = np.concatenate([batches.draw_images(index)[0] for index in range(len(batches))])
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert 0.2 < counts[0] / len(drawn) < 0.3


def test_several_processes_draw_every_batch_once():
    processes = [make_crops(process=process, processes=2) for process in range(2)]
    assert list(processes[0].batch_ids) == list(range(0, 18, 2))
    assert list(processes[1].batch_ids) == list(range(1, 18, 2))
    assert processes[1][0][0].shape == (1, 32, 32, 1)  # both make a batch of two
    later = make_crops(epochs_done=2, process=1, processes=2)
    assert list(later.batch_ids) == [13, 15, 17]


def test_the_last_batches_have_fixed_edges(monkeypatch):
    def draw_whether_fixed(gray, labels, size, rng, *, has_wide_nuclei, fixed_edges):
        return np.full((size, size), fixed_edges), labels

    monkeypatch.setattr(crops, "EMPTY_SHARE", 0)
    monkeypatch.setattr(crops, "draw_crop", draw_whether_fixed)
    options = dataclasses.replace(SMALL, epochs=2, crops=5, batch_size=1)  # ten batches
    whole = make_crops(options)
    assert [bool(whole[index][0].any()) for index in range(10)] == [False] * 8 + [True] * 2
    resumed = make_crops(options, epochs_done=1)
    assert [bool(resumed[index][0].any()) for index in range(5)] == [False] * 3 + [True] * 2


def test_images_of_wide_nuclei_are_drawn_as_such(monkeypatch):
    def draw_whether_wide(gray, labels, size, rng, *, has_wide_nuclei, fixed_edges):
        return np.full((size, size), has_wide_nuclei), labels

    monkeypatch.setattr(crops, "EMPTY_SHARE", 0)
    monkeypatch.setattr(crops, "draw_crop", draw_whether_wide)
    wide = np.zeros((64, 64), np.int32)
    wide[10:50, 10:50] = 1  # a disk of its area is 45 pixels wide
    pairs = [draw_pair((64, 64)), crops.TrainingImage(wide.astype(np.float32), wide)]
    batches = crops.Crops(pairs, [0.5, 0.5], SMALL)
    assert batches.has_wide_nuclei == [False, True]
    for index in range(len(batches)):
        images, _ = batches.draw_images(index)
        np.testing.assert_array_equal(batches[index][0][:, 0, 0, 0], images == 1)


def test_rare_kinds_are_drawn_more_often():
    shapes = [(32, 32)] * 10 + [(30, 36)] * 4
    kinds = ["cells"] * 9 + ["tissue"] + ["cells"] * 4
    probabilities = crops.draw_probabilities(kinds, shapes)
    assert probabilities.shape == (14,)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[9] > probabilities[10] > probabilities[0] > 0
    # A kind of 13 is drawn sqrt(13) times as often as one of 1; its sizes of 9 and 4 as 3 to 2.
    common, rare = probabilities[:9].sum(), probabilities[10:].sum()
    assert common + rare == pytest.approx(13**0.5 * probabilities[9])
    assert common / rare == pytest.approx(3 / 2)
    # In two sources a kind of 9 and the same kind of 4 are drawn as 3 to 2, whatever their sizes.
    sources = ["a"] * 8 + ["b"] + ["a"] * 2 + ["b"] * 3
    groups = [f"{kind} in {source}" for kind, source in zip(kinds, sources, strict=True)]
    apart = crops.draw_probabilities(groups, shapes)
    in_a, in_b = apart[[*range(8), 10]].sum(), apart[[8, 11, 12, 13]].sum()
    assert in_a / in_b == pytest.approx(3 / 2)


# The target.


def test_target_of_two_touching_squares():
    labels = np.zeros((20, 20), np.int32)
    labels[5:15, 2:10] = 1
    labels[5:15, 10:18] = 2
    border = np.zeros((20, 20))
    border[3:17, 8:12] = 1  # two pixels to each side of the seam, and beyond its ends
    target = crops.make_target(labels)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target[..., 0], labels > 0)
    np.testing.assert_array_equal(target[..., 1], border)
    np.testing.assert_array_equal(target[..., 2], np.ones((20, 20)))


@pytest.mark.parametrize("gap, columns", [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0), (5, 0)])
def test_border_only_where_nuclei_are_close(gap, columns):
    labels = np.zeros((20, 30), np.int32)
    labels[:, 2:10] = 1
    labels[:, 10 + gap : 20 + gap] = 2
    border = crops.make_target(labels)[..., 1]
    expected = np.zeros((20, 30))
    start = 8 + gap  # the first column within two pixels of the second nucleus
    expected[:, start : start + columns] = 1
    np.testing.assert_array_equal(border, expected)


def test_border_of_two_pixels_with_high_numbers():
    labels = np.zeros((12, 12), np.int32)
    labels[5, 5] = 2**30
    labels[8, 8] = 2**30 + 1  # one number for both in float32
    expected = np.zeros((12, 12))
    expected[6:8, 6:8] = 1  # within two rows and columns of both
    np.testing.assert_array_equal(crops.make_target(labels)[..., 1], expected)


def test_no_border_without_neighbours():
    labels = np.zeros((20, 20), np.int32)
    assert not crops.make_target(labels)[..., :2].any()
    labels[5:9, 5:9] = 7
    assert not crops.make_target(labels)[..., 1].any()


def test_validation_images_are_padded_to_the_next_multiple():
    gray, labels = draw_pair((30, 37))[:2]
    padded, target = crops.whole_image(gray, labels, 4)
    assert padded.shape == (1, 32, 40, 1)
    assert target.shape == (1, 32, 40, 3)
    np.testing.assert_array_equal(padded[0, :30, :37, 0], gray)
    np.testing.assert_array_equal(padded[0, 30:, :37, 0], gray[:-3:-1])  # mirrored
    np.testing.assert_array_equal(target[0, :30, :37], crops.make_target(labels))
    assert target[..., 2].sum() == 30 * 37  # padded pixels do not count
