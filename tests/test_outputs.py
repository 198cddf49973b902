"""data.outputs: the files of a prediction, what they say of their origin, and how they are found."""

import csv
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import draw_nuclei
from PIL import Image

from data import outputs
from data.files import UserError, describe_file
from data.images import open_rows
from data.measure import measure_image, measure_nuclei, write_table
from data.pictures import outline_nuclei
from data.run_lengths import decode_run_lengths
from data.sources import Sample, find_samples
from data.tables import save_image_row

OLD = 1_000_000_000  # seconds since 1970, in the year 2001
PROVENANCE = {
    "weights_sha256": "5f2b",
    "settings": {"nucleus_threshold": 0.45, "halving_diameters": [33, 80], "halved_weight": 2 / 3},
}


def write(out, name, labels, provenance=PROVENANCE):
    """Writes the files of one image, its overlay black but for the outlines."""
    outputs.make_folders(out)
    files = outputs.prediction_files(out, name)
    overlay = outline_nuclei(np.zeros((*labels.shape, 3), np.uint8), labels)
    nuclei = measure_nuclei(labels, labels, name)
    write_table(files.nuclei, nuclei)
    save_image_row(files.image_row, measure_image(nuclei, labels.shape, name))
    outputs.write_prediction(files, labels, overlay, provenance)
    return files


def write_description(file, description):
    """Writes a label file as another program might."""
    tifffile.imwrite(file, np.zeros((4, 5), np.uint16), description=description, metadata=None)


# Where files lie.


def test_the_mask_of_an_image_is_the_one_that_is_there(tmp_path):
    outputs.make_folders(tmp_path)
    files = outputs.prediction_files(str(tmp_path), "a")
    assert files.existing_mask() == tmp_path / "masks/a.png"
    files.tiled_mask.touch()
    assert files.existing_mask() == tmp_path / "masks/a.tif"


@pytest.mark.parametrize("mask", ["masks/a.png", "masks/a.tif"])
def test_files_are_complete_with_labels_overlay_tables_and_one_of_the_masks(tmp_path, mask):
    outputs.make_folders(tmp_path)
    files = outputs.prediction_files(tmp_path, "a")
    for name in (mask, "labels/a.tif", "overlays/a.png", "tables/a.csv", "tables/a.json"):
        assert not files.are_complete()
        (tmp_path / name).touch()
    assert files.are_complete()


def test_an_id_may_hold_a_dot(tmp_path):
    files = write(tmp_path, "a.1", draw_nuclei()[1])
    assert files.are_complete() and outputs.find_predictions(tmp_path) == ["a.1"]


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """An empty folder, in which the scripts run."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_default_folder_is_named_after_the_source(working_folder):
    assert outputs.default_out("some/images") == Path("images_predicted")
    (working_folder / "data").mkdir()
    assert outputs.default_out("some/images") == Path("data/images_predicted")
    assert outputs.default_out("data/stage1_test.zip/") == Path("data/stage1_test_predicted")
    assert outputs.default_out("one.png") == Path("data/one_predicted")
    (working_folder / "exp.1").mkdir()
    assert outputs.default_out("exp.1") == Path("data/exp.1_predicted")
    assert outputs.default_out("some/images/*.tif") == Path("data/images_predicted")
    assert outputs.default_out("day1", "day2/images") == Path("data/work_predicted")


def test_files_of_one_folder_are_named_by_it(working_folder):
    (working_folder / "plate").mkdir()
    names = ["plate/a.png", "plate/b.png"]
    for name in names:
        Path(name).touch()
    assert outputs.default_out(*names) == outputs.default_out("plate/*.png") == Path("plate_predicted")


def test_two_sources_do_not_share_the_default_folder(working_folder):
    expected = ["images_predicted", "day2_images_predicted", "day2_images_2_predicted", "day2_images_3_predicted"]
    sources = ["day1/images", "day2/images", "other/day2/images", "more/day2/images"]
    for _ in range(2):
        for source, folder in zip(sources, expected, strict=True):
            out = outputs.default_out(source)
            outputs.record_sources(out, source)
            assert out == Path(folder)
            assert outputs.read_sources(out) == [str(working_folder / source)]


def test_a_folder_of_unknown_origin_is_not_the_default(working_folder):
    (working_folder / "images_predicted").mkdir()
    assert outputs.default_out("day1/images") == Path("images_predicted")
    (working_folder / "images_predicted/source.json").write_text("[]")
    assert outputs.read_sources("images_predicted") == []
    assert outputs.default_out("day1/images") == Path("day1_images_predicted")
    (working_folder / "day1_images_predicted").touch()
    assert outputs.default_out("day1/images") == Path("day1_images_2_predicted")


def test_a_folder_that_was_named_may_hold_several_sources(working_folder):
    outputs.record_sources("out", "b", "a")
    outputs.record_sources("out", "c")
    assert outputs.read_sources("out") == [str(working_folder / name) for name in "abc"]


# What is there.


def test_predictions_are_found_by_their_labels_and_masks(tmp_path):
    for name in ("c", "a", "tiled", "no_mask", "no_labels"):
        write(tmp_path, name, draw_nuclei()[1])
    (tmp_path / "masks/tiled.png").rename(tmp_path / "masks/tiled.tif")
    (tmp_path / "masks/no_mask.png").unlink()
    (tmp_path / "labels/no_labels.tif").unlink()
    for name in ("masks/.unfinished-1-b.png", "labels/.unfinished-1-b.tif"):
        (tmp_path / name).touch()
    assert outputs.find_predictions(str(tmp_path)) == ["a", "c", "tiled"]
    assert outputs.find_predictions(tmp_path / "nowhere") == []


@pytest.fixture
def images(tmp_path):
    """A folder of three images, and their predictions in out."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        image, labels = draw_nuclei()
        Image.fromarray(image).save(tmp_path / f"images/{name}.png")
        provenance = PROVENANCE | {"image": describe_file(tmp_path / f"images/{name}.png")}
        write(tmp_path / "out", name, labels, provenance)
    return tmp_path / "images"


def find_unfinished(images, provenance=PROVENANCE):
    """The ids that are to be predicted."""
    unfinished = outputs.find_unfinished(find_samples(images), images.parent / "out", provenance)
    return [sample.id for sample in unfinished]


@pytest.mark.parametrize("missing", ["labels/b.tif", "masks/b.png", "overlays/b.png", "tables/b.csv", "tables/b.json"])
def test_an_image_that_lacks_a_file_is_unfinished(images, missing):
    assert find_unfinished(images) == []
    (images.parent / "out" / missing).unlink()
    assert find_unfinished(images) == ["b"]


def test_an_image_that_was_replaced_is_unfinished_whatever_its_time(images):
    later = (images.parent / "out/labels/c.tif").stat().st_mtime + 10
    os.utime(images / "c.png", (later, later))
    assert find_unfinished(images) == []
    Image.fromarray(draw_nuclei(seed=9)[0]).save(images / "c.png")
    os.utime(images / "c.png", (OLD, OLD))
    assert find_unfinished(images) == ["c"]


def test_an_entry_of_an_archive_that_was_replaced_is_unfinished(images):
    with zipfile.ZipFile(images.parent / "images.zip", "w") as archive:
        for file in images.iterdir():
            archive.write(file, file.name)
    assert find_unfinished(images.parent / "images.zip") == []
    Image.fromarray(draw_nuclei(seed=9)[0]).save(images / "c.png")
    with zipfile.ZipFile(images.parent / "images.zip", "w") as archive:
        for file in images.iterdir():
            archive.write(file, file.name)
    assert find_unfinished(images.parent / "images.zip") == ["c"]


def test_labels_that_name_no_image_are_unfinished(images):
    write(images.parent / "out", "b", draw_nuclei()[1])
    assert find_unfinished(images) == ["b"]


def change(**settings):
    return PROVENANCE | {"settings": PROVENANCE["settings"] | settings}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(PROVENANCE | {"weights_sha256": "77aa"}, id="weights"),
        pytest.param(change(nucleus_threshold=0.5), id="a number"),
        pytest.param(change(halving_diameters=[33, 81]), id="a number in a list"),
        pytest.param(change(min_area=20), id="one setting more"),
        pytest.param({"weights_sha256": "5f2b", "settings": {}}, id="no settings"),
    ],
)
def test_labels_of_other_weights_or_settings_are_refused(images, other):
    write(images.parent / "out", "b", draw_nuclei()[1], other)
    with pytest.raises(UserError, match=r"labels/b\.tif was predicted with other.*--overwrite.*--out"):
        find_unfinished(images)
    (images.parent / "out/masks/b.png").unlink()  # it will be predicted again in any case
    assert find_unfinished(images) == ["b"]


def test_a_run_keeps_labels_of_any_option_that_it_does_not_name(images):
    def named(channel, **more):
        """The provenance of a run with this --channel."""
        return PROVENANCE | {"options": {"channel": channel, "diameter": None, "min_area": 0.0} | more}

    image = {"image": describe_file(images / "b.png")}
    write(images.parent / "out", "b", draw_nuclei()[1], named("2") | image)
    write(images.parent / "out", "c", draw_nuclei()[1], named(None) | {"image": describe_file(images / "c.png")})
    (images.parent / "out/masks/a.png").unlink(missing_ok=True)
    assert find_unfinished(images, named(None)) == ["a"]
    for other, difference in (
        (named("1"), r"channel 2, not 1"),
        (named(None, diameter=9.0), r"diameter None, not 9\.0"),
        (named("1", min_area=5.0), r"channel 2, not 1; min_area 0\.0, not 5\.0"),
    ):
        with pytest.raises(UserError, match=rf"labels/b\.tif was predicted with other options \({difference}\)"):
            find_unfinished(images, other)
    with pytest.raises(UserError, match=r"labels/b\.tif was predicted with other weights"):
        find_unfinished(images, named(None) | {"weights_sha256": "another"})


@pytest.mark.parametrize("spacing", [{"indent": 2}, {"separators": (" ,", " : ")}, {"separators": (",", ":")}])
def test_provenance_in_another_order_and_spacing_is_the_same(images, spacing):
    settings = dict(reversed(PROVENANCE["settings"].items()))
    image = {"image": describe_file(images / "b.png")}
    text = json.dumps({**image, "settings": settings, "weights_sha256": "5f2b"}, **spacing)
    assert text != json.dumps(PROVENANCE | image)
    write_description(images.parent / "out/labels/b.tif", text)
    assert find_unfinished(images) == []


def test_labels_of_another_program_are_not_taken_for_our_own(images):
    write_description(images.parent / "out/labels/b.tif", "ImageJ=1.54f")
    with pytest.raises(UserError, match=r"labels/b\.tif was changed by another program.*--overwrite would.*--out"):
        find_unfinished(images)
    (images.parent / "out/labels/b.tif").unlink()
    assert find_unfinished(images) == ["b"]


def test_labels_that_cannot_be_read_are_named(images):
    (images.parent / "out/labels/b.tif").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"labels/b\.tif"):
        find_unfinished(images)


def test_an_image_that_was_removed_is_named(images):
    files = outputs.prediction_files(images.parent / "out", "b")
    assert files.are_complete()
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        outputs.find_unfinished([Sample("b", images / "nowhere.png")], images.parent / "out", PROVENANCE)


def test_only_what_a_killed_run_left_is_removed(tmp_path):
    write(tmp_path, "a", draw_nuclei()[1])
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    for name in ("masks/.unfinished-7-b.png", "labels/.unfinished-7-b.tif", "overlays/.unfinished-9-b.png"):
        (tmp_path / name).touch()
    (tmp_path / "zarr/.unfinished-9-b.zarr/0").mkdir(parents=True)
    outputs.remove_unfinished(str(tmp_path))
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before
    assert not list((tmp_path / "zarr").iterdir())
    outputs.remove_unfinished(tmp_path / "nowhere")


# Provenance.


def test_provenance_comes_back_as_it_was_written(tmp_path):
    files = write(tmp_path, "a", draw_nuclei()[1])
    assert outputs.read_provenance(files.labels) == PROVENANCE


@pytest.mark.parametrize("description", ["", "ImageJ=1.54f\nunit=micron", "{not json", "[1, 2]", "0.45", "null", '"a"'])
def test_labels_of_another_program_have_no_provenance(tmp_path, description):
    write_description(tmp_path / "a.tif", description or None)
    assert outputs.read_provenance(tmp_path / "a.tif") == {}


def test_the_shape_that_tifffile_describes_is_no_provenance(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint16))
    assert outputs.read_provenance(tmp_path / "a.tif") == {}


def test_provenance_of_what_is_no_tiff_is_an_error(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.tif"):
        outputs.read_provenance(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError) as error:
        outputs.read_provenance(tmp_path / "gone.tif")
    assert error.value.filename == str(tmp_path / "gone.tif")


# Writing.


def test_files_agree_and_have_the_promised_types(tmp_path):
    labels = np.zeros((40, 50), np.int32)
    labels[5:15, 5:15] = 1
    labels[20:30, 20:35] = 2
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    outputs.make_folders(tmp_path)
    overlay = outline_nuclei(picture, labels)
    outputs.write_prediction(outputs.prediction_files(tmp_path, "a"), labels, overlay, PROVENANCE)
    mask = np.asarray(Image.open(tmp_path / "masks/a.png"))
    written = tifffile.imread(tmp_path / "labels/a.tif")
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, labels)
    np.testing.assert_array_equal(mask == 255, labels > 0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlays/a.png")), overlay)
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert names == {"masks/a.png", "labels/a.tif", "overlays/a.png"}


@pytest.mark.parametrize(("count", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_labels_take_32_bits_where_16_are_too_few(tmp_path, count, dtype):
    labels = np.arange(70_000, dtype=np.int32).clip(0, count).reshape(250, 280)
    files = write(tmp_path, "many", labels)
    written = tifffile.imread(files.labels)
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, labels)


def test_the_tiled_mask_of_a_larger_image_of_this_name_goes(tmp_path):
    outputs.make_folders(tmp_path)
    (tmp_path / "masks/a.tif").touch()
    files = write(tmp_path, "a", draw_nuclei()[1])
    assert files.existing_mask() == tmp_path / "masks/a.png"


def test_labels_are_written_last(tmp_path):
    outputs.make_folders(tmp_path)
    (tmp_path / "masks/a.png").mkdir()  # where the mask is to be
    with pytest.raises(OSError, match="make room there") as error:
        write(tmp_path, "a", draw_nuclei()[1])
    assert error.value.filename == str(tmp_path / "masks/a.png")
    assert not list(tmp_path.glob("labels/*"))


@pytest.mark.parametrize("shape", [(100, 130), (16, 16), (5, 7), (33, 16)])
def test_tiles_hold_what_the_strips_held(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(outputs, "TIFF_TILE", 16)
    labels = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32)
    strips = (labels[row : row + 32] for row in range(0, shape[0], 32))
    outputs.save_tiles(tmp_path / "a.tif", strips, shape, np.uint32, PROVENANCE)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        assert tiff.is_bigtiff and (page.tilelength, page.tilewidth) == (16, 16)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.dtype == np.uint32
        np.testing.assert_array_equal(tiff.asarray(), labels)
    assert outputs.read_provenance(tmp_path / "a.tif") == PROVENANCE
    with open_rows(tmp_path / "a.tif") as rows:
        np.testing.assert_array_equal(rows[3:5], labels[3:5])


def test_the_submission_holds_the_nuclei_of_the_label_files(tmp_path):
    labels = draw_nuclei((30, 40))[1]
    write(tmp_path, "a", labels)
    write(tmp_path, "empty", 0 * labels)
    write(tmp_path, "not asked for", labels)
    with open(outputs.save_submission(tmp_path, ["empty", "a"]), newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["ImageId", "EncodedPixels"]
    assert [name for name, _ in rows] == ["empty", "a", "a", "a", "a"] and rows[0][1] == ""
    decoded = np.zeros_like(labels)
    for number, (_, text) in enumerate(rows[1:], start=1):
        decoded += number * decode_run_lengths(text, labels.shape)
    np.testing.assert_array_equal(decoded, labels)


def test_sources_on_two_drives_have_a_default_folder(working_folder, monkeypatch):
    def commonpath(paths):
        raise ValueError("Paths don't have the same drive")  # as Windows says

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    assert outputs.default_out("day1", "day2").name == "day1_predicted"


def test_an_id_may_begin_with_a_dot(tmp_path):
    for name in (".day1__a", "b"):
        write(tmp_path, name, np.ones((4, 5), np.int32))
    (tmp_path / "labels/._b.tif").touch()  # of macOS
    assert outputs.find_predictions(tmp_path) == [".day1__a", "b"]
