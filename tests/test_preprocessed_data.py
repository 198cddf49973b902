"""Gray, kinds and the split, on images whose pixels are known."""

import re
import shutil

import numpy as np
import pytest
import tifffile
from conftest import cut_tiles, draw_nuclei, draw_source, draw_texture, draw_tiled, save_image, write_source
from scipy import ndimage
from skimage.draw import disk

import Preprocessed_data
from data import artifacts, files
from data.files import UserError, read_csv
from data.images import read_image, subsample
from data.intensity import optical_density
from data.nuclei import common_diameter
from data.pictures import CELL
from data.sources import find_samples
from data.truth import load_samples
from Preprocessed_data import (
    TISSUE_DATA,
    TRAINING_DATA,
    find_training_data,
    format_summary,
    hold_out_kind,
    image_kind,
    measure_normalization,
    normalize,
    percentile_range,
    percentiles,
    read_readable,
    save_overview,
    select_channel,
    split_data,
    split_patients,
    split_sources,
    to_display,
    to_grayscale,
)

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


# Gray.


def test_gray_is_float32_from_0_to_1():
    for image in (GRAY, RGB, GRAY > 99, GRAY.astype(np.uint16), GRAY / 7.0 - 3):
        gray = to_grayscale(image)
        assert gray.dtype == np.float32 and gray.shape == (5, 7)
        assert (gray.min(), gray.max()) == (0, 1)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_fluorescence_may_be_shown_in_any_colour(channel):
    gray = draw_nuclei()[0]
    coloured = np.zeros((*gray.shape, 3), np.uint8)
    coloured[..., channel] = gray
    np.testing.assert_array_equal(to_grayscale(coloured), to_grayscale(gray))
    assert image_kind(coloured) == "fluorescence"


def test_nuclei_are_bright_in_the_gray_of_every_kind():
    fluorescence, labels = draw_nuclei()
    stained, stained_labels = draw_nuclei(stained=True)
    for image, nuclei in (
        (fluorescence, labels > 0),
        (255 - fluorescence, labels > 0),
        (3200 - fluorescence.astype(np.uint16) * 12, labels > 0),  # 12 bits in a file of 16
        (stained, stained_labels > 0),
    ):
        gray = to_grayscale(image)
        assert gray[nuclei].mean() > gray[~nuclei].mean() + 0.3


def test_eosin_does_not_hide_haematoxylin():
    tissue = np.full((40, 40, 3), (245, 240, 245), np.uint8)  # white
    tissue[:20, :] = (240, 90, 150)  # eosin
    tissue[10:14, 10:14] = (90, 60, 150)  # haematoxylin
    gray = to_grayscale(tissue)
    assert gray[12, 12] == 1 and gray[5, 5] < 0.05 and gray[30, 5] < 0.05


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.uint8, (255, 128, 1), (0, 0.68923, 5.54126)),  # ln(255 / 128), ln 255
        (np.uint8, (51, 0, 85), (1.60944, 5.54126, 1.09861)),  # ln 5, ln 255, ln 3
        (np.uint16, (65535, 13107, 1), (0, 1.60944, 11.09034)),  # ln 5, ln 65535
        (np.uint16, (255, 0, 21845), (5.54908, 11.09034, 1.09861)),  # ln 257, ln 65535, ln 3
    ],
)
def test_the_optical_density_is_the_logarithm_of_the_light_that_is_lost(dtype, values, expected):
    density = optical_density(np.array([[values]], dtype))
    assert density.shape == (1, 1, 3) and density.dtype == np.float32
    np.testing.assert_allclose(density[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_all_0(value):
    gray = to_grayscale(np.full((4, 4), value, np.uint8))
    np.testing.assert_array_equal(gray, np.zeros((4, 4)))


def test_a_few_bright_pixels_in_a_thousand_are_not_lost_but_one_alone_is_hot():
    image = np.zeros((100, 100), np.uint8)
    image[3:6, 4:7] = 90
    assert to_grayscale(image)[4, 5] == 1 and to_grayscale(image)[50:].max() == 0
    image[70, 70] = 255
    assert to_grayscale(image)[70, 70] == 0


@pytest.mark.parametrize("stained", [False, True])
def test_the_same_image_in_8_and_16_bits_gives_the_same_gray(stained):
    image = draw_nuclei(stained=stained)[0]
    deeper = image.astype(np.uint16) * 257
    np.testing.assert_allclose(to_grayscale(deeper), to_grayscale(image), atol=1e-5)
    np.testing.assert_allclose(to_grayscale(image / 255), to_grayscale(image), atol=1e-5)


def test_a_part_of_an_image_is_grayed_as_the_whole():
    for image in (RNG.integers(0, 90, (60, 50), np.uint8), 255 - RNG.poisson(5, (60, 50, 3))):
        part = measure_normalization(image).apply(image[20:30])
        np.testing.assert_array_equal(part, to_grayscale(image)[20:30])


def test_white_of_float_tissue_is_that_of_the_image_not_of_each_part():
    rng = np.random.default_rng(0)
    image = draw_nuclei((120, 60), stained=True)[0].astype(np.float32)
    image[90:] = rng.uniform(0, 1.2, (30, 60, 3))  # a fold that is so dark that it could be an image from 0 to 1
    for whole in (image, image.round().astype(np.int32)):
        normalization = measure_normalization(whole)
        assert normalization.is_stained
        gray = normalization.apply(whole)
        for row in range(0, 120, 30):
            part = normalization.apply(whole[row : row + 30])
            inner = slice(1, -1)  # the outermost rows of a part have other neighbours
            np.testing.assert_allclose(part[inner], gray[row : row + 30][inner], atol=1e-5)


def test_nuclei_of_one_pixel_in_a_reduced_image_are_no_hot_pixels():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 5, (800, 800))
    for row in range(20, 780, 40):
        for column in range(20, 780, 40):
            centre = (row + rng.uniform(-8, 8), column + rng.uniform(-8, 8))
            image[disk(centre, 5, shape=image.shape)] += 150
    image = image.clip(0, 255).astype(np.uint8)
    whole = measure_normalization(image)
    reduced = measure_normalization(subsample(image, 80 * 80), is_reduced=True)  # every tenth pixel
    assert not whole.has_bright_background and not reduced.has_bright_background
    assert (reduced.low, reduced.high) == pytest.approx((whole.low, whole.high), abs=3)


def test_normalization_names_the_background_and_the_values_that_become_0_and_1():
    ramp = np.arange(1001, dtype=np.float32)
    bright = measure_normalization(np.sqrt(ramp)[None])  # most values are high
    assert bright.has_bright_background
    assert (bright.low, bright.high) == pytest.approx((-(995**0.5), -(2**0.5)), abs=1e-3)  # of the inverted values
    dark = measure_normalization(ramp[None] ** 3)  # most values are low
    assert not dark.has_bright_background
    assert (dark.low, dark.high) == pytest.approx((5**3, 998**3), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_stained_tissue_of_any_dtype_has_the_same_gray(dtype):
    image, _ = draw_nuclei((64, 64), stained=True)
    expected = Preprocessed_data.to_grayscale(image)
    assert expected.mean() > 0.1
    scale = 257 if dtype is np.uint16 else 1  # 16 bits are known to be 16
    np.testing.assert_allclose(Preprocessed_data.to_grayscale(image.astype(dtype) * dtype(scale)), expected, atol=0.01)


def test_colours_of_one_bit_are_colours():
    image = np.zeros((64, 64, 3), bool)
    image[10:20, 10:20, 2] = True
    image[30:40, 30:40, 1] = True
    assert Preprocessed_data.find_colours(image) == ["green", "blue"]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_three_bright_nuclei_are_no_debris_whatever_their_glow_and_processes(scale):
    signal = np.zeros((96 * scale, 96 * scale))
    for centre in ((48, 40), (48, 56), (70, 70)):
        signal[disk(np.multiply(centre, scale), 6 * scale)] = 200
    processes = np.zeros(signal.shape)
    processes[6 * scale : 46 * scale, 40 * scale : 43 * scale] = 14  # it grows out of a nucleus
    processes[80 * scale : 84 * scale, 5 * scale : 25 * scale] = 14
    glow = 0.15 * ndimage.gaussian_filter(signal, 5 * scale)
    image = 20 + ndimage.gaussian_filter(signal + processes, scale) + glow
    image += np.random.default_rng(0).normal(0, 0.7, image.shape)
    assert measure_normalization(image.round().astype(np.uint8)).high > 200


def test_nuclei_are_bright_in_the_channel():
    np.testing.assert_array_equal(select_channel(RGB, True), 255 - RGB[..., 0])
    np.testing.assert_array_equal(select_channel(RGB, False), RGB.max(axis=-1))
    np.testing.assert_array_equal(select_channel(GRAY, True), 255 - GRAY)
    np.testing.assert_array_equal(select_channel(GRAY / 7.0, True), -(GRAY / 7.0))
    assert select_channel(GRAY > 99, True).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentiles_are_those_of_numpy(dtype):
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 2), (7, 5), (40, 60)):
        channel = rng.integers(0, 255, shape).astype(dtype)
        expected = np.percentile(channel, (0, 0.5, 50, 99.8, 100))
        np.testing.assert_allclose(percentiles(channel, (0, 0.5, 50, 99.8, 100)), expected)


def test_normalization_keeps_the_order_of_brightness():
    # So many pixels that the percentiles lie inside the values.
    ramp = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    gray = normalize(ramp, *percentile_range(ramp)).ravel()
    assert (np.diff(gray) >= 0).all()
    assert gray[5015] == pytest.approx((0.5015 - 0.005) / (0.998 - 0.005), abs=1e-3)


def test_the_kind_of_an_image_is_that_of_its_background_and_colours():
    gray, _ = draw_nuclei()
    stained, _ = draw_nuclei(stained=True)
    assert image_kind(gray) == "fluorescence"
    assert image_kind(np.dstack([gray] * 3)) == "fluorescence"
    assert image_kind(gray.astype(np.uint16) * 257) == "fluorescence"
    assert image_kind(255 - gray) == "brightfield"
    for dtype, factor in ((np.uint8, 1), (np.uint16, 16), (np.float32, 1), (np.float32, 1 / 255)):
        assert image_kind((stained * float(factor)).astype(dtype)) == "stained tissue"
        bright = np.dstack([(255 - gray) * float(factor)] * 3).astype(dtype)
        assert image_kind(bright) == "brightfield"


@pytest.mark.parametrize("value", [0, 255], ids=["frame", "margin"])
@pytest.mark.parametrize("stained", [True, False])
def test_ground_does_not_change_the_kind_of_an_image(stained, value):
    tissue = draw_nuclei((64, 64), stained=stained)[0]
    kind = "stained tissue" if stained else "brightfield"
    if not stained:
        tissue = np.dstack([250 - tissue] * 3)
    image = np.full((300, 300, 3), value, np.uint8)
    image[50:114, 40:104] = tissue
    assert image_kind(tissue) == image_kind(image) == kind
    normalization = measure_normalization(image, artifacts.find_ground(image.max(axis=-1)))
    assert (normalization.has_bright_background, normalization.is_stained) == (True, stained)
    assert (to_display(image).std(axis=-1).max() > 0) == stained


# Images as people look at them.


def test_stained_tissue_is_shown_in_its_colours_whatever_its_numbers():
    stained, _ = draw_nuclei(stained=True)
    picture = to_display(stained)
    assert picture.dtype == np.uint8
    assert abs(picture.astype(int) - stained).max() < 10
    for dtype, factor in ((np.uint16, 16), (np.float32, 1), (np.float32, 1 / 255)):
        other = to_display((stained * float(factor)).astype(dtype))
        assert abs(picture.astype(int) - other).max() <= 1


def test_what_is_not_stained_is_shown_gray_and_from_0_to_255():
    gray, _ = draw_nuclei()
    for image in (gray, np.dstack([gray // 2] * 3), gray.astype(np.uint16) * 9):
        picture = to_display(image)
        assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
        assert (picture == picture[..., :1]).all()
        assert (picture.min(), picture.max()) == (0, 255)


def test_the_common_diameter_is_that_of_half_the_area():
    labels = np.zeros((200, 200), np.int32)
    rows, columns = np.ogrid[:200, :200]
    labels[(rows - 60) ** 2 + (columns - 60) ** 2 < 25**2] = 3
    for number in range(10):  # small pieces are more in number, not in area
        labels[190:193, 10 * number : 10 * number + 3] = 5 + number
    assert abs(common_diameter(labels) - 50) < 0.5
    assert common_diameter(np.zeros((5, 5), np.int32)) == 0


# The split.


@pytest.mark.parametrize("seed", range(5))
def test_split_never_separates_tiles(seed):
    ids, images = draw_tiled()
    training, validation = split_data(ids, images, 0.25, seed)
    assert sorted(training + validation) == ids
    assert training == sorted(training) and validation == sorted(validation)
    sides = [{i[1:] for i in side if "_of_" in i} for side in (training, validation)]
    assert not sides[0] & sides[1]


def test_split_is_reproducible_and_follows_the_seed():
    ids, images = draw_tiled()
    splits = [split_data(ids, images, 0.2, seed) for seed in (1, 1, 2, 3, 4)]
    assert splits[0] == splits[1]
    assert len({tuple(validation) for _, validation in splits}) > 1


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.25, 0.5])
def test_split_takes_about_the_fraction(fraction):
    ids = [f"{i:03}" for i in range(60)]
    images = [draw_texture(i, 24) for i in range(60)]
    _, validation = split_data(ids, images, fraction)
    assert len(validation) == pytest.approx(60 * fraction, abs=3)


def test_split_keeps_kinds_in_proportion():
    images = [draw_nuclei(seed=i, stained=i % 3 == 0)[0] for i in range(60)]
    ids = [f"{i:03}" for i in range(60)]
    _, validation = split_data(ids, images, 0.2)
    stained = sum(int(i) % 3 == 0 for i in validation)
    assert len(validation) == pytest.approx(12, abs=2) and 3 <= stained <= 5


def test_split_of_rare_kinds_warns_of_nothing(recwarn):
    images = [draw_nuclei(seed=i, stained=i == 0)[0] for i in range(9)]
    split_data(list("abcdefghi"), images)
    assert not recwarn.list


def test_of_one_picture_no_image_is_left_to_validate_on():
    assert split_data(["a"], [GRAY]) == (["a"], [])
    tiles = cut_tiles(draw_texture(0))
    assert split_data(list("abcd"), tiles) == (list("abcd"), [])


def test_split_that_is_impossible():
    with pytest.raises(ValueError, match="0.9"):
        split_data(["a", "b"], [GRAY, GRAY], fraction=0.9)


# The split of several sources.


def draw_tissue(folder, patients=11):
    """Two stained images of each patient, by the names that the tissue's images have."""
    names = [f"{patient:02}_{number}" for patient in range(1, patients + 1) for number in (1, 2)]
    return write_source(folder, {name: draw_nuclei(seed=n, stained=True) for n, name in enumerate(names)})


def split_of(*sources):
    samples = find_samples(*sources)
    images, _ = load_samples(samples)
    return split_sources(samples, images)


def test_the_split_of_a_source_stays_the_same_whatever_other_source_is_added(tmp_path):
    draw_source(tmp_path / "first", count=12)
    alone = split_of(tmp_path / "first")
    assert len(alone[0]) + len(alone[1]) == 12
    samples = find_samples(tmp_path / "first")
    assert alone == split_data([sample.id for sample in samples], load_samples(samples)[0])
    others = {f"other_{seed}": draw_nuclei((36, 30), 50 + seed) for seed in range(9)}
    write_source(tmp_path / "before", others)
    draw_tissue(tmp_path / "tnbc")
    for more in (["before"], ["tnbc"], ["tnbc", "before"]):
        sides = split_of(tmp_path / "first", *(tmp_path / name for name in more))
        assert [[name for name in side if name.startswith("image_")] for side in sides] == list(alone)
        assert all(side == sorted(side) for side in sides)
        assert any(name.startswith(("other", "04")) for name in sides[1])


def test_copies_in_another_source_are_on_one_side_of_the_split(tmp_path):
    images = draw_source(tmp_path / "first", count=24)
    copies = {f"copy_{number}": images[f"image_{number:02}"] for number in range(8, 16)}
    write_source(tmp_path / "corrected", copies)
    training, validation = split_of(tmp_path / "first", tmp_path / "corrected")
    assert len(training) + len(validation) == 32 and validation
    originals = {name: f"image_{int(name[5:]):02}" for name in copies}
    for side, other in ((training, validation), (validation, training)):
        assert not {originals.get(name) for name in side} & set(other)


def test_the_split_of_a_source_stays_the_same_where_ids_clash(tmp_path):
    draw_source(tmp_path / "first", count=12)
    alone = split_of(tmp_path / "first")
    write_source(tmp_path / "other", {f"image_{n:02}": draw_nuclei((36, 30), 50 + n) for n in range(9)})
    for sides in (split_of(tmp_path / "first", tmp_path / "other"), split_of(tmp_path / "other", tmp_path / "first")):
        assert [[name[7:] for name in side if name.startswith("first__")] for side in sides] == list(alone)


@pytest.mark.parametrize("source", ["tnbc", "tnbc.zip"])
def test_tissue_is_split_by_patients(tmp_path, source):
    folder = draw_tissue(tmp_path / "drawn" / "tnbc")
    if source == "tnbc":
        folder.rename(tmp_path / source)
    else:
        shutil.make_archive(str(tmp_path / "tnbc"), "zip", folder)
    training, validation = split_of(tmp_path / source)
    assert validation == [f"{patient}_{number}" for patient in ("04", "09", "11") for number in (1, 2)]
    assert len(training) == 16 and not set(training) & set(validation)
    # An id that another source has too gets the name of its source.
    write_source(tmp_path / "other", {"04_1": draw_nuclei(), "05_1": draw_nuclei(seed=7)})
    training, validation = split_of(tmp_path / source, tmp_path / "other")
    expected = [f"tnbc__{patient}_{number}" for patient in ("04", "09", "11") for number in (1, 2)]
    assert [name for name in validation if name.startswith("tnbc__")] == expected
    assert sum(name.startswith("tnbc__") for name in training) == 16
    assert sum(name.startswith("other__") for name in training + validation) == 2


def test_patients_are_told_by_the_name_before_the_first_underscore(tmp_path):
    names = ("04_1", "04_12", "041_1", "1_04", "11")
    samples = find_samples(write_source(tmp_path / "tnbc", {name: draw_nuclei() for name in names}))
    assert split_patients(samples, ("04", "11")) == (["041_1", "1_04"], ["04_1", "04_12", "11"])


def test_a_kind_is_held_out_whole():
    images = [draw_nuclei(seed=n, stained=n % 3 == 2)[0] for n in range(7)]
    training, validation = hold_out_kind(list("gfedcba"), images, "stained tissue")
    assert validation == ["b", "e"] and training == ["a", "c", "d", "f", "g"]
    with pytest.raises(UserError, match="brightfield"):
        hold_out_kind(list("gfedcba"), images, "brightfield")
    with pytest.raises(UserError, match="fluorescence"):
        hold_out_kind(["g"], images[:1], "fluorescence")


# The training data.


def test_the_training_data_are_found_as_a_folder_or_an_archive(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "scripts/data/files.py"))
    with pytest.raises(UserError, match="download"):
        find_training_data()
    assert find_training_data(default="data/sample") == ["data/sample"]
    folder, archive = TRAINING_DATA
    for place, prefix in ((tmp_path / "scripts", f"{tmp_path}/scripts/"), (tmp_path / "work", "")):
        (place / "data").mkdir(parents=True)
        (place / archive).touch()
        assert find_training_data(default="data/sample") == [prefix + archive]
        (place / folder).mkdir()
        assert find_training_data() == [prefix + folder]
        (place / TISSUE_DATA[1]).touch()
        assert find_training_data() == [prefix + folder, prefix + TISSUE_DATA[1]]
        (place / TISSUE_DATA[0]).mkdir()
        assert find_training_data() == [prefix + folder, prefix + TISSUE_DATA[0]]
        (place / TISSUE_DATA[0]).rmdir()
        (place / TISSUE_DATA[1]).unlink()
        (place / folder).rmdir()


# The command line.


def test_the_summary_counts_by_kind():
    labels = [np.array([[0, 1, 1], [2, 2, 2]]), np.zeros((4, 5), int), np.array([[0, 3]])]  # 1 and 2 are covered
    table = format_summary(["fluorescence", "brightfield", "fluorescence"], labels).splitlines()
    assert [re.split("  +", row) for row in table[1:]] == [
        ["brightfield", "1", "0", "5 × 4", "5 × 4", "-"],
        ["fluorescence", "2", "3", "2 × 1", "3 × 2", "2 pixels"],
    ]


def test_an_image_without_masks_has_labels_of_0(source):
    for mask in (source / "image_00" / "masks").iterdir():
        mask.unlink()
    readable, images, labels = read_readable(find_samples(source))
    assert len(readable) == len(images) == len(labels) == 8
    assert labels[0].shape == images[0].shape[:2] and not labels[0].any() and labels[1].any()


def test_the_overview_shows_images_evenly_chosen(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(Preprocessed_data, "save_contact_sheet", lambda *sheet: drawn.update(sheet=sheet))
    images = [np.full((4, width), 9, np.uint8) for width in range(1, 41)]
    labels = [np.zeros(image.shape, np.int32) for image in images]
    save_overview(images, labels, ["fluorescence"] * 40, str(tmp_path / "new" / "sheet.png"))
    pictures, titles, out = drawn["sheet"]
    widths = [int(title.split()[1]) for title in titles]
    assert all(max(picture.shape) == CELL for picture in pictures)
    assert len(widths) == Preprocessed_data.SHOWN_IMAGES and (widths[0], widths[-1]) == (1, 40)
    assert set(np.diff(widths)) <= {2, 3}
    assert titles[0] == "fluorescence, 1 × 4"
    assert out == str(tmp_path / "new" / "sheet.png") and (tmp_path / "new").is_dir()


def test_command_writes_a_table_and_a_contact_sheet(tmp_path, run, source):
    answer = run("Preprocessed_data.py", "--data", source, "--out", "new/sheet.png")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.search(r"fluorescence +6 +24 +32 × 32 +36 × 30", answer.stdout)
    assert re.search(r"stained tissue +2 +8 ", answer.stdout)
    assert "saved the contact sheet to new/sheet.png" in answer.stdout
    assert read_image(tmp_path / "new" / "sheet.png").std() > 10


def test_command_names_a_broken_image_and_reads_the_others(source, tmp_path, capsys):
    (source / "image_03" / "images" / "image_03.png").write_text("no image")
    assert Preprocessed_data.main(["--data", str(source), "--out", str(tmp_path / "sheet.png")]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("skipped: ") and output.err.count("\n") == 1
    assert "image_03.png" in output.err and "7 images" in output.out


def test_command_without_one_image_that_can_be_read(tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png: none of its 1 images can be read"):
        Preprocessed_data.main(["--data", str(tmp_path / "broken.png")])
    assert capsys.readouterr().err.startswith("skipped: ")


def test_mistakes_of_the_command(mistake):
    assert "nowhere" in mistake("Preprocessed_data.py", "--data", "nowhere")


def test_true_nuclei_are_measured_in_all_channels(tmp_path, capsys):
    labels = np.zeros((30, 40), np.uint16)
    labels[2:8, 3:9] = 1
    labels[20:24, 30:38] = 2
    channels = np.stack([3 * labels, 5 * labels + 1])
    (tmp_path / "labels").mkdir()
    save_image(tmp_path / "a.png", 9 * labels.astype(np.uint8))
    tifffile.imwrite(tmp_path / "b.ome.tif", channels, metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}})
    for name in ("a", "b.ome"):
        tifffile.imwrite(tmp_path / f"labels/{name}.tif", labels)
    table = tmp_path / "nuclei.csv"
    options = ["--out", str(tmp_path / "sheet.png"), "--nuclei", str(table), "--pixel-size", "0.5"]
    assert Preprocessed_data.main(["--data", str(tmp_path), *options]) == 0
    assert f"measured 4 true nuclei in {table}" in capsys.readouterr().out
    rows = list(read_csv(table))
    assert [(row["image"], row["label"]) for row in rows] == [("a", "1"), ("a", "2"), ("b.ome", "1"), ("b.ome", "2")]
    assert [row["area_px"] for row in rows] == ["36", "32", "36", "32"]
    assert [row["area_um2"] for row in rows] == ["9", "8", "9", "8"]
    assert [row["intensity_mean_gray"] for row in rows] == ["9", "18", "", ""]
    assert [row["intensity_mean_GFP"] for row in rows] == ["", "", "6", "11"]
    with pytest.raises(UserError, match="--pixel-size 500.0 is wider than a nucleus"):
        Preprocessed_data.main(["--data", str(tmp_path), "--pixel-size", "500"])
