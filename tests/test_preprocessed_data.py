"""Reading, numbering, graying and splitting, on pictures whose pixels are known."""

import json
import re
import resource
import tracemalloc
import zipfile

import numpy as np
import pytest
import tifffile
from conftest import draw_nuclei, draw_source, write_source
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.transform import downscale_local_mean

import Preprocessed_data as data

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ALPHA = np.full((5, 7), 255, np.uint8)


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


def zip_folder(folder, file, prefix=""):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return file


def only(source):
    (sample,) = data.open_source(source)
    return sample


# One image file.


@pytest.mark.parametrize("name", ["UPPER.PNG", "UPPER.TIF"])
def test_endings_in_capitals_count_too(tmp_path, name):
    image = data.read_image(only(save(tmp_path / name, GRAY)).image)
    np.testing.assert_array_equal(image, GRAY)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.JPEG"])
def test_jpeg_is_about_the_picture(tmp_path, name):
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    for pixels in (smooth, np.dstack([smooth] * 3)):
        image = data.read_image(save(tmp_path / name, pixels, quality=95))
        assert image.shape == pixels.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - pixels).max() <= 4


def test_an_image_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        data.read_image(tmp_path / "gone.png")


# Sources.


def test_a_folder_of_images_sorted_by_id(tmp_path):
    for name in ("b.png", "c.TIF", "a.jpg", "Notes.png", ".hidden.png"):
        save(tmp_path / name, GRAY)
    (tmp_path / "notes.txt").write_text("no image")
    samples = data.open_source(tmp_path)
    assert [sample.id for sample in samples] == ["Notes", "a", "b", "c"]
    assert all(sample.masks == () for sample in samples)


def test_a_single_file(tmp_path):
    save(tmp_path / "other.png", RGB)
    sample = only(save(tmp_path / "one.png", GRAY))
    assert (sample.id, sample.masks) == ("one", ())
    np.testing.assert_array_equal(data.read_image(sample.image), GRAY)


@pytest.mark.parametrize("prefix", ["", "stage1_train/"])
def test_kaggle_folder_and_zip_give_the_drawn_arrays(tmp_path, prefix):
    drawn = draw_source(tmp_path / "source")
    for place in ("__MACOSX/image_00/images", "image_00/masks/.cache"):
        save(tmp_path / "source" / place / "no.png", GRAY)
    save(tmp_path / "source" / "image_00" / "masks" / "._1.png", GRAY)
    archive = zip_folder(tmp_path / "source", tmp_path / "source.zip", prefix)
    for place in (tmp_path / "source", archive):
        samples = data.open_source(place)
        images, labels = data.load_samples(samples)
        assert [sample.id for sample in samples] == sorted(drawn)
        for name, image, label in zip(sorted(drawn), images, labels, strict=True):
            pixels, truth = drawn[name]
            np.testing.assert_array_equal(image, pixels[..., :3] if pixels.ndim == 3 else pixels)
            np.testing.assert_array_equal(label, truth)
            assert label.dtype == np.int32


def test_a_zip_is_read_in_place(tmp_path, source):
    archive = zip_folder(source, tmp_path / "source.zip")
    before = sorted(tmp_path.rglob("*"))
    data.load_samples(data.open_source(archive))
    assert sorted(tmp_path.rglob("*")) == before


def test_sources_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images"):
        data.open_source(tmp_path / "empty")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"table\.csv"):
        data.open_source(tmp_path / "table.csv")
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"half\.zip"):
        data.open_source(tmp_path / "half.zip")


def test_two_images_of_one_id_are_refused(tmp_path):
    save(tmp_path / "same.png", GRAY)
    save(tmp_path / "same.jpg", GRAY)
    with pytest.raises(ValueError, match="same"):
        data.open_source(tmp_path)


# Labels.

TWO = np.zeros((6, 8), np.int32)
TWO[1:3, 1:4], TWO[4:6, 5:8] = 1, 2
MASKS = {
    "0 and 1": lambda mask: mask.astype(np.uint8),
    "0 and 255": lambda mask: mask.astype(np.uint8) * 255,
    "one bit": lambda mask: mask,
    "16 bit": lambda mask: mask.astype(np.uint16) * 256,
    "RGBA": lambda mask: np.dstack(
        [mask.astype(np.uint8) * 255] * 3 + [np.full_like(mask, 255, np.uint8)]
    ),
}


@pytest.mark.parametrize("way", MASKS)
def test_masks_of_any_value_become_numbers(tmp_path, way):
    save(tmp_path / "a" / "images" / "a.png", np.zeros(TWO.shape, np.uint8))
    for number in (1, 2):
        save(tmp_path / "a" / "masks" / f"{number}.png", MASKS[way](TWO == number))
    labels = data.read_labels(only(tmp_path), TWO.shape)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, TWO)


WRONG = {
    "labelled picture": (np.arange(35).reshape(5, 7).astype(np.uint8) // 12, "several"),
    "coloured labels": (
        np.dstack([TWO == 1, TWO == 2, TWO == 0]).astype(np.uint8) * 200,
        "several",
    ),
    "photograph": (GRAY, "several"),
    "inverted": (np.where(np.pad(np.ones((2, 2)), 3)[:5, :7], 0, 255).astype(np.uint8), "inverted"),
}


@pytest.mark.parametrize("way", WRONG)
def test_what_is_no_mask_of_one_nucleus_is_refused(tmp_path, way):
    pixels, reason = WRONG[way]
    save(tmp_path / "a" / "images" / "a.png", np.zeros(pixels.shape[:2], np.uint8))
    save(tmp_path / "a" / "masks" / "odd.png", pixels)
    (sample,) = data.open_source(tmp_path)
    with pytest.raises(ValueError, match=rf"odd\.png.*{reason}"):
        data.read_labels(sample, pixels.shape[:2])


def test_a_mask_of_another_size_is_named(tmp_path):
    write_source(tmp_path, {"a": draw_nuclei()})
    save(tmp_path / "a" / "masks" / "odd.png", np.eye(5, 7, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"odd\.png.*\(5, 7\).*\(32, 32\)"):
        data.load_samples(data.open_source(tmp_path))


def test_an_image_without_masks_is_named(tmp_path):
    save(tmp_path / "bare" / "images" / "bare.png", GRAY)
    with pytest.raises(ValueError, match=r"bare\.png.*no masks"):
        data.load_samples(data.open_source(tmp_path))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_percentiles_are_those_of_numpy(kind):
    rng = np.random.default_rng(0)
    for shape in (1, 1), (1, 2), (7, 5), (40, 60):
        channel = rng.integers(0, 255, shape).astype(kind)
        expected = np.percentile(channel, (0, 0.5, 50, 99.8, 100))
        np.testing.assert_allclose(data.percentiles(channel, (0, 0.5, 50, 99.8, 100)), expected)


# The cache of decoded arrays.


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """load(): samples of source.zip by way of a cache, and how often the files were decoded."""
    draw_source(tmp_path / "source")
    archive = zip_folder(tmp_path / "source", tmp_path / "source.zip")
    cache, readings = tmp_path / "kept" / "source.npy", []
    monkeypatch.setattr(data, "CACHED_MASKS", 1)
    read_samples = data.read_samples
    monkeypatch.setattr(data, "read_samples", lambda s: readings.append(0) or read_samples(s))

    def load(source=archive):
        return data.load_samples(data.open_source(source), cache)

    load.cache, load.readings, load.folder = cache, readings, tmp_path / "source"
    return load


def assert_same_arrays(left, right):
    for ours, theirs in zip(left, right, strict=True):  # images, then labels
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_the_second_reading_comes_from_the_cache(cached):
    first = cached()
    assert_same_arrays(cached(), first)
    assert len(cached.readings) == 1
    assert [file.name for file in cached.cache.parent.iterdir()] == ["source.npy"]
    assert_same_arrays(cached(cached.folder), first)  # other files, though of the same pixels
    assert len(cached.readings) == 2


def test_the_cache_keeps_types_shapes_and_numbers(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {(3, 5): np.uint8, (4, 2): np.uint16, (3, 3, 3): np.uint8, (2, 7): np.float32}
    images = [rng.integers(0, 250, shape).astype(kind) for shape, kind in shapes.items()]
    images.append(np.broadcast_to(images[0][..., None], (3, 5, 3)))
    labels = [rng.integers(0, 300, image.shape[:2]).astype(np.int32) for image in images]
    data.save_cache(tmp_path / "kept.npy", "these files", images, labels)
    assert_same_arrays(data.load_cache(tmp_path / "kept.npy", "these files"), (images, labels))
    assert data.load_cache(tmp_path / "kept.npy", "other files") is None


def test_few_files_are_not_worth_a_cache(cached, monkeypatch):
    monkeypatch.setattr(data, "CACHED_MASKS", 1000)
    cached()
    assert not cached.cache.exists()


def test_a_changed_file_is_read_anew(cached):
    _, before = cached(cached.folder)
    mask = cached.folder / "image_00" / "masks" / "1.png"
    save(mask, np.roll(np.asarray(Image.open(mask)), 1, 0))
    _, labels = cached(cached.folder)
    assert not np.array_equal(labels[0] == 1, before[0] == 1)
    mask.unlink()
    _, labels = cached(cached.folder)
    assert not (labels[0] == 4).any() and len(cached.readings) == 3


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"no array",
    "header": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "last": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_not_trusted(cached, damage):
    first = cached()
    cached.cache.write_bytes(DAMAGES[damage](cached.cache.read_bytes()))
    assert_same_arrays(cached(), first)
    assert len(cached.readings) == 2
    assert_same_arrays(cached(), first)
    assert len(cached.readings) == 2  # it was mended


def test_nothing_is_unpickled_from_a_cache(cached):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code in the cache was run",))

    cached.cache.parent.mkdir()
    np.save(cached.cache, np.array([Trap()], object))
    cached(cached.folder)
    assert len(cached.readings) == 1


def test_no_room_for_the_cache_is_said_in_a_line(cached, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk
    try:
        images, _ = cached()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(images) == 8
    assert not list(cached.cache.parent.iterdir())
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"{cached.cache}: no cache kept, File too large after 4,096 bytes, ")


# Gray.


def test_gray_is_float32_from_0_to_1():
    for image in (GRAY, RGB, GRAY > 99, GRAY.astype(np.uint16), GRAY / 7.0 - 3):
        gray = data.to_grayscale(image)
        assert gray.dtype == np.float32 and gray.shape == (5, 7)
        assert (gray.min(), gray.max()) == (0, 1)


def test_stretch_keeps_the_order_of_brightness():
    # So many pixels that the percentiles lie inside the values.
    ramp = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    gray = data.stretch(ramp, *data.find_range(ramp)).ravel()
    assert (np.diff(gray) >= 0).all()
    assert gray[5015] == pytest.approx((0.5015 - 0.005) / (0.998 - 0.005), abs=1e-3)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_fluorescence_may_be_shown_in_any_colour(channel):
    gray = draw_nuclei()[0]
    coloured = np.zeros((*gray.shape, 3), np.uint8)
    coloured[..., channel] = gray
    np.testing.assert_array_equal(data.to_grayscale(coloured), data.to_grayscale(gray))
    assert data.image_kind(coloured) == "fluorescence"


def test_nuclei_are_bright_in_the_gray_of_every_kind():
    fluorescence, labels = draw_nuclei()
    stained, stained_labels = draw_nuclei(stained=True)
    for image, nuclei in (
        (fluorescence, labels > 0),
        (255 - fluorescence, labels > 0),
        (3200 - fluorescence.astype(np.uint16) * 12, labels > 0),  # 12 bits in a file of 16
        (stained, stained_labels > 0),
    ):
        gray = data.to_grayscale(image)
        assert gray[nuclei].mean() > gray[~nuclei].mean() + 0.3


def test_eosin_does_not_hide_haematoxylin():
    white, eosin, haematoxylin = (245, 240, 245), (240, 90, 150), (90, 60, 150)
    tissue = np.full((40, 40, 3), white, np.uint8)
    tissue[:20, :] = eosin
    tissue[10:14, 10:14] = haematoxylin
    gray = data.to_grayscale(tissue)
    assert gray[12, 12] == 1 and gray[5, 5] < 0.05 and gray[30, 5] < 0.05


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_image_is_all_0(value):
    gray = data.to_grayscale(np.full((4, 4), value, np.uint8))
    np.testing.assert_array_equal(gray, np.zeros((4, 4)))


def test_one_bright_pixel_in_a_thousand_is_not_lost():
    image = np.zeros((50, 50), np.uint8)
    image[3, 4] = 90
    np.testing.assert_array_equal(data.to_grayscale(image), image > 0)


@pytest.mark.parametrize("stained", [False, True])
def test_the_same_picture_in_8_and_16_bits_gives_the_same_gray(stained):
    image = draw_nuclei(stained=stained)[0]
    deeper = image.astype(np.uint16) * 257
    np.testing.assert_allclose(data.to_grayscale(deeper), data.to_grayscale(image), atol=1e-5)
    np.testing.assert_allclose(data.to_grayscale(image / 255), data.to_grayscale(image), atol=1e-5)


def test_kinds():
    gray, stained = draw_nuclei()[0], draw_nuclei(stained=True)[0]
    assert data.image_kind(gray) == "fluorescence"
    assert data.image_kind(np.dstack([gray] * 3)) == "fluorescence"
    assert data.image_kind(gray.astype(np.uint16) * 257) == "fluorescence"
    assert data.image_kind(255 - gray) == "brightfield"
    for kind, factor in (np.uint8, 1), (np.uint16, 16), (np.float32, 1), (np.float32, 1 / 255):
        assert data.image_kind((stained * float(factor)).astype(kind)) == "stained tissue"
        bright = np.dstack([(255 - gray) * float(factor)] * 3).astype(kind)
        assert data.image_kind(bright) == "brightfield"


def test_stained_tissue_is_shown_alike_whatever_its_numbers():
    stained, labels = draw_nuclei(stained=True)
    picture = data.outline_nuclei(stained, labels)
    inside = labels == 0
    assert abs(picture[inside].astype(int) - stained[inside]).max() < 10
    for kind, factor in (np.uint16, 16), (np.float32, 1), (np.float32, 1 / 255):
        other = data.outline_nuclei((stained * float(factor)).astype(kind), labels)
        assert abs(picture.astype(int) - other).max() <= 1


# Tiles and the split.


def draw_texture(seed, side=128):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def cut_tiles(picture):
    rows, columns = (side // 2 for side in picture.shape[:2])
    corners = [(row, column) for row in (0, rows) for column in (0, columns)]
    return [picture[r : r + rows, c : c + columns] for r, c in corners]


def draw_tiled(pictures=3, singles=12):
    """ids and images: tiles of some pictures, textures of their own among them."""
    images = {f"single_{seed:02}": draw_texture(seed, 64) for seed in range(singles)}
    for seed in range(pictures):
        for number, tile in enumerate(cut_tiles(draw_texture(100 + seed))):
            images[f"{number}_of_{seed}"] = tile
    ids = sorted(images)
    return ids, [images[i] for i in ids]


def test_tiles_of_one_picture_are_found_among_others():
    ids, images = draw_tiled()
    pictures = dict(zip(ids, data.group_tiles(images), strict=True))
    for seed in range(3):
        assert len({pictures[f"{number}_of_{seed}"] for number in range(4)}) == 1
    assert len(set(pictures.values())) == 3 + 12


def test_a_picture_that_is_there_twice_is_on_one_side():
    images = [np.random.default_rng(i).integers(0, 99, (20, 20), np.uint8) for i in (1, 2, 3, 1)]
    pictures = data.group_tiles(images)
    assert pictures[0] == pictures[3] and len(set(pictures)) == 3


def test_tiles_in_colour_are_found():
    picture = np.dstack([draw_texture(1), draw_texture(2), draw_texture(3)])
    others = [np.dstack([draw_texture(seed, 64)] * 3) for seed in range(4, 8)]
    pictures = data.group_tiles(cut_tiles(picture) + others)
    assert len(set(pictures[:4])) == 1 and len(set(pictures)) == 5


@pytest.mark.parametrize("seed", range(5))
def test_split_never_separates_tiles(seed):
    ids, images = draw_tiled()
    training, validation = data.split_data(ids, images, 0.25, seed)
    assert sorted(training + validation) == ids
    assert training == sorted(training) and validation == sorted(validation)
    sides = [{i[1:] for i in side if "_of_" in i} for side in (training, validation)]
    assert not sides[0] & sides[1]


def test_split_is_reproducible_and_follows_the_seed():
    ids, images = draw_tiled()
    splits = [data.split_data(ids, images, 0.2, seed) for seed in (1, 1, 2, 3, 4)]
    assert splits[0] == splits[1]
    assert len({tuple(validation) for _, validation in splits}) > 1


@pytest.mark.parametrize("fraction", [0.1, 0.15, 0.25, 0.5])
def test_split_takes_about_the_fraction(fraction):
    ids = [f"{i:03}" for i in range(60)]
    images = [draw_texture(i, 24) for i in range(60)]
    _, validation = data.split_data(ids, images, fraction)
    assert len(validation) == pytest.approx(60 * fraction, abs=3)


def test_split_keeps_kinds_in_proportion():
    images = [draw_nuclei(seed=i, stained=i % 3 == 0)[0] for i in range(60)]
    ids = [f"{i:03}" for i in range(60)]
    _, validation = data.split_data(ids, images, 0.2)
    stained = sum(int(i) % 3 == 0 for i in validation)
    assert len(validation) == pytest.approx(12, abs=2) and 3 <= stained <= 5


def test_split_of_rare_kinds_warns_of_nothing(recwarn):
    images = [draw_nuclei(seed=i, stained=i == 0)[0] for i in range(9)]
    data.split_data(list("abcdefghi"), images)
    assert not recwarn.list


def test_split_that_is_impossible():
    with pytest.raises(ValueError, match="add images"):
        data.split_data(["a"], [GRAY])
    with pytest.raises(ValueError, match="0.9"):
        data.split_data(["a", "b"], [GRAY, GRAY], fraction=0.9)


# Run lengths.


def encode_slowly(mask):
    """Pixel by pixel, as the competition describes it."""
    runs, before = [], False
    for number, pixel in enumerate(mask.T.reshape(-1), start=1):
        if pixel and not before:
            runs.append([number, 0])
        if pixel:
            runs[-1][1] += 1
        before = pixel
    return " ".join(f"{start} {length}" for start, length in runs)


BY_HAND = {
    "": [[0, 0, 0], [0, 0, 0]],
    "1 6": [[1, 1, 1], [1, 1, 1]],
    "1 1": [[1, 0, 0], [0, 0, 0]],
    "6 1": [[0, 0, 0], [0, 0, 1]],
    "2 1 4 1 6 1": [[0, 0, 0], [1, 1, 1]],
    "2 2": [[0, 1, 0], [1, 0, 0]],  # from the foot of one column to the head of the next
}


@pytest.mark.parametrize("runs", BY_HAND)
def test_run_lengths_by_hand(runs):
    mask = np.array(BY_HAND[runs], bool)
    assert data.rle_encode(mask) == ([runs] if runs else [])
    decoded = data.rle_decode(runs, (2, 3))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_run_lengths_there_and_back():
    rng = np.random.default_rng(1)
    for _ in range(200):
        labels = rng.integers(0, rng.integers(2, 6), rng.integers(1, 12, 2))
        runs = data.rle_encode(labels)
        assert len(runs) == labels.max()
        for number, text in enumerate(runs, start=1):
            assert text == encode_slowly(labels == number)
            np.testing.assert_array_equal(data.rle_decode(text, labels.shape), labels == number)


@pytest.mark.parametrize("runs", ["1", "1 2 3", "a b", "1.5 2", "0 1", "1 0", "-1 2", "6 2", "7 1"])
def test_runs_that_are_none(runs):
    with pytest.raises(ValueError, match="run"):
        data.rle_decode(runs, (2, 3))


# The solution table.

HEADER = "ImageId,EncodedPixels,Height,Width,Usage\n"


def write_table(tmp_path, rows, header=HEADER):
    (tmp_path / "solution.csv").write_text(header + rows)
    return tmp_path / "solution.csv"


def test_solution_numbers_nuclei_and_leaves_out_ignored_rows(tmp_path):
    rows = "a,1 2,2,3,Private\nb,1 4,2,2,Ignored\na,5 2,2,3,Public\nc,2 1,1,2,Private\n"
    labels = data.read_solution(write_table(tmp_path, rows))
    assert sorted(labels) == ["a", "c"]
    assert labels["a"].dtype == np.int32
    assert labels["a"].tolist() == [[1, 0, 2], [1, 0, 2]]
    assert labels["c"].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "row",
    [
        "a,1 2,3,2,Public",  # another size than in the row before
        "a,9 9,2,3,Public",  # past the end
        "a,5 3,2,3,Public",
        "a,5 1 6,2,3,Public",  # half a pair
        "a,5 0,2,3,Public",
        "a,5 -1,2,3,Public",
        "a,0 1,2,3,Public",
        "a,4 2 5 1,2,3,Public",  # one run on another
        "a,1 2,2,3,Public",  # a nucleus twice
        "b,1 2,two,3,Public",
        "b,1 2,90000000000,90000000000,Public",
        "a,1 2,2",
        "a",
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path, row):
    file = write_table(tmp_path, f"a,1 2,2,3,Public\n{row}\n")
    with pytest.raises(ValueError, match=r"solution\.csv, line 3: "):
        data.read_solution(file)


def test_a_table_as_windows_writes_it(tmp_path):
    file = tmp_path / "solution.csv"
    rows = (HEADER + "a,1 2,2,3,Public\n").replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert data.read_solution(file)["a"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_row_that_ends_before_its_runs(tmp_path):
    file = write_table(tmp_path, "a,2,3\n", "ImageId,Height,Width,EncodedPixels\n")
    with pytest.raises(ValueError, match=r"solution\.csv, line 2: "):
        data.read_solution(file)


def test_a_missing_column_is_named(tmp_path):
    file = write_table(tmp_path, "a,1 2\n", "ImageId,EncodedPixels\n")
    with pytest.raises(ValueError, match=r"solution\.csv: no column Height, Width"):
        data.read_solution(file)


# The record of a training.


def test_a_record_with_ids_on_both_sides_is_refused(tmp_path):
    file = tmp_path / "training.json"
    file.write_text(json.dumps({"training_ids": ["a", "b"], "validation_ids": ["c"]}))
    assert data.read_record(file)["validation_ids"] == ["c"]
    file.write_text(json.dumps({"training_ids": ["a", "b"], "validation_ids": ["b", "c"]}))
    with pytest.raises(ValueError, match=r"training\.json: 1 ids .* first b"):
        data.read_record(file)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training_ids": 3}', "no json"])
def test_what_is_no_record_is_named(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json: expected"):
        data.read_record(tmp_path / "training.json")


# Pictures and the command line.


def test_outlines_are_drawn_on_nuclei_only():
    image, labels = draw_nuclei()
    picture = data.outline_nuclei(image, labels)
    assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
    yellow = (picture == (255, 220, 0)).all(axis=-1)
    assert yellow.any() and (labels[yellow] > 0).all()
    assert set(labels[yellow]) == {1, 2, 3, 4}
    assert not yellow[10:12, 15:17].any()


def test_contact_sheet_shows_every_picture(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 0, 250), (0, 250, 250)]
    pictures = [np.full((20, 30, 3), colour, np.uint8) for colour in colours]
    data.save_contact_sheet(pictures, list("abcde"), tmp_path / "sheet.png")
    sheet = data.read_image(tmp_path / "sheet.png")
    for colour in colours:
        assert (sheet == colour).all(axis=-1).sum() > 1000


def test_command_writes_a_table_and_a_contact_sheet(tmp_path, run, source):
    answer = run("Preprocessed_data.py", "--data", source, "--out", "new/sheet.png")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.search(r"fluorescence +6 +24 +32x32 +30x36", answer.stdout)
    assert re.search(r"stained tissue +2 +8 ", answer.stdout)
    assert "saved the contact sheet to new/sheet.png" in answer.stdout
    assert data.read_image(tmp_path / "new" / "sheet.png").std() > 10


def test_command_names_a_broken_image_and_goes_on(run, source):
    (source / "image_03" / "images" / "image_03.png").write_text("no picture")
    answer = run("Preprocessed_data.py", "--data", source, "--out", "sheet.png")
    assert answer.returncode == 1
    assert answer.stderr.startswith("skipped: ") and answer.stderr.count("\n") == 1
    assert "image_03.png" in answer.stderr and "7 images" in answer.stdout


def test_mistakes_of_the_command(mistake):
    assert "nowhere" in mistake("Preprocessed_data.py", "--data", "nowhere")


def test_a_kind_is_held_out_whole():
    images = [draw_nuclei(seed=n, stained=n % 3 == 2)[0] for n in range(7)]
    training, validation = data.hold_out_kind(list("gfedcba"), images, "stained tissue")
    assert validation == ["b", "e"] and training == ["a", "c", "d", "f", "g"]
    with pytest.raises(ValueError, match="brightfield"):
        data.hold_out_kind(list("gfedcba"), images, "brightfield")
    with pytest.raises(ValueError, match="fluorescence"):
        data.hold_out_kind(["g"], images[:1], "fluorescence")


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 1), (3, 4, 9)])
def test_halving_is_the_mean_of_four(shape):
    gray = np.random.default_rng(0).random(shape, np.float32)
    stack = gray.reshape(-1, *shape[-2:])
    even = np.pad(stack, [(0, 0), *((0, side % 2) for side in shape[-2:])], "edge")
    expected = downscale_local_mean(even, (1, 2, 2)).reshape(
        *shape[:-2], *np.array(even.shape[1:]) // 2
    )
    halved = data.halve(gray)
    assert halved.dtype == np.float32
    np.testing.assert_allclose(halved.squeeze(), expected, rtol=1e-6)


def test_the_common_diameter_is_that_of_half_the_area():
    labels = np.zeros((200, 200), np.int32)
    rows, columns = np.ogrid[:200, :200]
    labels[(rows - 60) ** 2 + (columns - 60) ** 2 < 25**2] = 3
    for number in range(10):  # crumbs are more in number, not in area
        labels[190:193, 10 * number : 10 * number + 3] = 5 + number
    assert abs(data.common_diameter(labels) - 50) < 0.5
    assert data.common_diameter(np.zeros((5, 5), np.int32)) == 0


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((50, 70), "u1"),
        ((50, 70), "u2"),
        ((50, 70), "f4"),
        ((50, 70, 3), "u1"),
        ((50, 70, 4), "u1"),
    ],
)
def test_rows_of_a_tiff_are_those_of_the_image(tmp_path, shape, dtype, order, compression, tile):
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    layout = {"tile": tile} if tile else {"rowsperstrip": 7}
    colour = {"photometric": "rgb"} if len(shape) == 3 else {}
    file = tmp_path / "image.tif"
    tifffile.imwrite(file, pixels, byteorder=order, compression=compression, **colour, **layout)
    image = data.read_image(file)
    assert data.image_shape(file) == (50, 70)
    with data.open_rows(file) as rows:
        assert isinstance(rows, data.TiffRows)
        for start, stop in (0, 50), (0, 1), (13, 15), (6, 8), (20, 47), (49, 60):
            np.testing.assert_array_equal(rows[start:stop], image[start:stop])
        np.testing.assert_array_equal(data.thin(rows, 400), image[::3, ::3])


def test_tiles_left_out_of_a_tiff_are_background(tmp_path):
    tiles = iter([GRAY[:1, :1].repeat(16, 0).repeat(16, 1), None, None, None])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(32, 32), dtype=np.uint8, tile=(16, 16))
    whole = data.read_image(tmp_path / "a.tif")
    assert whole[0, 0] == GRAY[0, 0] and whole[20, 20] == 0
    with data.open_rows(tmp_path / "a.tif") as rows:
        np.testing.assert_array_equal(np.concatenate([rows[:7], rows[7:32]]), whole)


@pytest.mark.parametrize("pixels", [1, 50, 5000, 10**6])
def test_thinned_is_every_nth_row_and_column(pixels):
    image = RNG.integers(0, 256, (700, 90), np.uint8)
    step = next(n for n in range(1, 1000) if 700 * 90 / n**2 <= pixels)
    np.testing.assert_array_equal(data.thin(image, pixels), image[::step, ::step])


def test_thinning_keeps_no_more_than_the_rows_at_hand():
    class Rows:
        shape = 20_000, 1000

        def __getitem__(self, rows):
            return np.zeros((len(range(*rows.indices(20_000))), 1000), np.uint8)

    tracemalloc.start()
    try:
        data.thin(Rows(), 40_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # of 20,000,000
    finally:
        tracemalloc.stop()


def test_other_files_have_rows_too_and_broken_ones_are_named(tmp_path):
    save(tmp_path / "a.png", RGB)
    with data.open_rows(tmp_path / "a.png") as rows:
        np.testing.assert_array_equal(rows[1:3], RGB[1:3])
    tifffile.imwrite(
        tmp_path / "stack.tif", np.zeros((4, 30, 40), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ValueError, match=r"stack.tif.*\(4, 30, 40\)"):
        data.open_rows(tmp_path / "stack.tif").__enter__()
    pixels = RNG.integers(0, 255, (60, 70), np.uint8)
    tifffile.imwrite(tmp_path / "cut.tif", pixels, tile=(16, 16), compression="zlib")
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=r"cut\.tif.*cut off"):
        data.open_rows(tmp_path / "cut.tif").__enter__()


def test_a_part_of_an_image_is_grayed_as_the_whole():
    for image in (RNG.integers(0, 90, (60, 50), np.uint8), 255 - RNG.poisson(5, (60, 50, 3))):
        part = data.to_grayscale(image[20:30], data.find_levels(image))
        np.testing.assert_array_equal(part, data.to_grayscale(image)[20:30])
