"""data.scales: the scales that images are predicted at, and the mean over them."""

import functools
import math
from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest
import tifffile
from conftest import Recorder, Threshold, draw_disks, load_once
from PIL import Image
from skimage.draw import disk

import Evaluate_model
import Predict_masks
from data import nuclei
from data.files import UserError
from data.scales import PredictionJob, average_scales, choose_job, count_halvings, finish_labels, predict_scales
from data.sources import find_samples


@pytest.fixture(scope="module")
def unet():
    return load_once()


# Scales.


def test_images_of_wide_nuclei_are_predicted_at_smaller_sizes_too(tmp_path):
    radii = {"narrow": 8, "wide": 25, "very_wide": 42}
    for name, radius in radii.items():
        image = 255 * draw_disks((100, 120), [(50, 60)], radius).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    network = Recorder()
    Predict_masks.predict_samples(find_samples(tmp_path), network, tmp_path / "out", {})
    images = Counter()
    for count, height, width, _ in network.batches:
        images[height, width] += count
    assert images == {(100, 120): 3, (50, 60): 2, (25, 30): 3 + 1}  # three thumbnails
    for halvings, name in enumerate(radii):
        image = np.asarray(Image.open(tmp_path / f"{name}.png"))
        mask = np.asarray(Image.open(tmp_path / "out/masks" / f"{name}.png"))
        assert mask.shape == image.shape and np.mean(mask == image) > 0.98
        labels, scales = Predict_masks.find_nuclei(Threshold(), np.float32(image / 255))
        written = tifffile.imread(tmp_path / "out/labels" / f"{name}.tif")
        np.testing.assert_array_equal(written, labels)
        assert scales == tuple(range(halvings + 1))


@pytest.mark.parametrize("probability", [1, 0], ids=["merge", "are lost"])
def test_where_nuclei_merge_or_are_lost_at_a_smaller_size_the_larger_one_is_kept(probability):
    class Reduced(Threshold):
        """Takes all of an image that was reduced for one nucleus, or for none."""

        def predict_on_batch(self, batch):
            answer = super().predict_on_batch(batch)
            return answer if batch.shape[1] == 128 else np.zeros_like(answer) + (probability, 0)

    gray = draw_disks((128, 128), [(40, 40), (90, 90)], 20)
    labels, scales = Predict_masks.find_nuclei(Reduced(), gray)
    assert scales == (0,)
    np.testing.assert_array_equal(labels, nuclei.separate_nuclei(gray, 0 * gray))
    assert labels.max() == 2


class Dotted(Threshold):
    """Sees narrow nuclei in images of some heights, whatever these show."""

    def __init__(self, heights, count):
        self.heights = heights
        self.centres = [(number // 6 + 0.5, number % 6 + 0.5) for number in range(count)]  # in sixths of the side

    def predict_on_batch(self, batch):
        _, height, width, _ = batch.shape
        if height in self.heights:
            centres = [(row * height // 6, column * width // 6) for row, column in self.centres]
            dots = draw_disks((height, width), centres, height // 32)
            batch = np.broadcast_to(dots[None, ..., None], batch.shape)
        return super().predict_on_batch(batch)


@pytest.mark.parametrize(("heights", "first", "count"), [((256,), 1, 1), ((256, 128), 0, 18)])
def test_narrow_nuclei_contradict_wide_ones_if_they_are_there_at_half_size_too(heights, first, count):
    gray = draw_disks((256, 256), [(128, 128)], 60)
    labels, scales = Predict_masks.find_nuclei(Dotted(heights, 18), gray)
    assert scales[0] == first
    assert labels.max() == count


@pytest.mark.parametrize("diameter", [None, 120])
def test_a_wide_nucleus_that_is_given_or_that_thumbnails_show_has_not_merged_from_pieces(diameter):
    gray = draw_disks((256, 256), [(128, 128)], 60)
    labels, scales = Predict_masks.find_nuclei(Dotted((128,), 6), gray, diameter)
    assert scales == (1, 2)
    assert labels.max() == 1
    assert Evaluate_model.dice_score(labels > 0, gray > 0) > 0.9


@pytest.mark.parametrize(
    ("radii", "chosen"), [((12, 8), "usual"), ((12, 14), "usual"), ((12, 30), "other"), ((0, 8), "other")]
)
def test_few_nuclei_of_another_background_do_not_outdo_many_of_the_usual_one(radii, chosen):
    """In the usual way nuclei do not stand out, so that those of the other have the higher score."""
    jobs = []
    for reading, brightness, radius in zip(("usual", "other"), (-0.1, 0.9), radii, strict=True):
        mask = draw_disks((80, 80), [(40, 40)] if radius else [], radius) > 0
        job = PredictionJob(np.float32(0.1 + brightness * mask), (mask.astype(np.float32), 0 * mask), reading=reading)
        job.labels_future = Future()
        job.labels_future.set_result(mask.astype(np.int32))
        jobs.append(job)
    jobs[1].must_be_confluent = True
    assert choose_job(jobs).reading == chosen


def test_two_ways_to_see_one_channel_are_not_two_channels():
    nucleus = draw_disks((80, 80), [(40, 40)], 30)
    labels = Future()
    labels.set_result(nucleus.astype(np.int32))
    jobs = [PredictionJob(nucleus, (nucleus, 0 * nucleus), labels, channel_index=0) for _ in range(2)]
    jobs[1].must_be_confluent = True
    assert choose_job(jobs) is jobs[0]
    jobs[1].channel_index = 1
    with pytest.raises(UserError, match="both look like nuclei"):
        choose_job(jobs)


@pytest.mark.parametrize(("count", "signal", "kept"), [(4, 4.5, 0), (4, 6, 4), (16, 4.5, 16), (16, 3.5, 0)])
def test_in_what_looks_like_noise_many_nuclei_need_not_stand_out_as_far_as_few(count, signal, kept):
    side = math.isqrt(count)
    centres = [(30 + 40 * row, 30 + 40 * column) for row in range(side) for column in range(side)]
    shape = (40 * side + 20, 40 * side + 20)
    labels = sum(number * draw_disks(shape, [centre], 8) for number, centre in enumerate(centres, 1)).astype(np.int32)
    noise = np.random.default_rng(0).standard_normal(shape)
    gray = np.float32(0.3 + 0.05 * (noise + signal * (labels > 0)))
    job = PredictionJob(gray, has_signal=False, labels_future=Future())
    job.labels_future.set_result(labels)
    assert finish_labels(job).max() == kept


def test_an_image_without_nuclei_has_none():
    labels, _ = Predict_masks.find_nuclei(Threshold(), np.zeros((20, 30), np.float32))
    assert labels.shape == (20, 30) and not labels.any()


# Means.


def test_the_smaller_size_weighs_two_thirds():
    larger = np.full((2, 3, 4), 0.3, np.float32)
    smaller = np.full((2, 3, 4), 0.9, np.float32)
    means = average_scales(larger, smaller)
    np.testing.assert_allclose(means, 0.7, rtol=1e-6)
    assert means[0].dtype == np.float32


def test_scales_are_averaged_from_the_largest_to_the_smallest():
    class Size(Threshold):
        """Answers the height of the image, in hundreds of pixels."""

        def predict_on_batch(self, batch):
            return super().predict_on_batch(np.full_like(batch, batch.shape[1] / 100))

    gray = np.zeros((64, 96), np.float32)
    predict = functools.partial(Predict_masks.predict_probability, Size())
    nucleus, border = predict_scales(predict, gray, (0, 1, 2))
    np.testing.assert_allclose(nucleus, ((0.64 + 2 * 0.32) / 3 + 2 * 0.16) / 3, rtol=1e-6)
    assert border.shape == gray.shape and not border.any()


def test_the_first_scale_follows_the_diameter():
    diameters = (0, 2, 4, 6, 10, 33, 100, 101, 300, 1000)
    assert [count_halvings(diameter) for diameter in diameters] == [0, -3, -2, -1, 0, 0, 0, 1, 2, 4]


def test_narrow_nuclei_are_predicted_at_double_size(unet):
    field = np.full((60, 90), 30, np.uint8)
    for row in range(8, 60, 14):
        for column in range(8, 90, 14):
            field[disk((row, column), 4, shape=field.shape)] = 180
    labels, job = Predict_masks.segment_image(unet, field)
    assert job.halvings == (-1,)
    assert labels.max() == 24


def test_doubled_and_halved_probabilities_lie_where_the_image_does():
    gray = np.zeros((64, 64), np.float32)
    gray[disk((30, 34), 10)] = 1
    for halvings in (-1, 0, 1):
        nucleus, border = Predict_masks.predict_probability(Threshold(), gray, halvings)
        assert nucleus.shape == border.shape == gray.shape
        rows, columns = np.nonzero(nucleus > 0.5)
        assert abs(rows.mean() - 30) < 0.5 and abs(columns.mean() - 34) < 0.5
