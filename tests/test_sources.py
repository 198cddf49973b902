"""The images of folders, archives, wildcards and lists."""

import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE, KAGGLE, MASK, draw_source, only, save_image, write_archive

from data import sources
from data.files import UserError
from data.images import read_image
from data.sources import find_samples
from data.truth import load_samples, read_sample

GRAY = np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (13, 17, 3), np.uint8)


def zip_folder(folder, file, prefix=""):
    """Writes a .zip of all that is in a folder, last names first."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return file


# Sources.


def test_a_single_file(tmp_path):
    save_image(tmp_path / "other.png", RGB)
    sample = only(save_image(tmp_path / "one.png", GRAY))
    assert (sample.id, sample.masks) == ("one", ())
    np.testing.assert_array_equal(read_image(sample.image), GRAY)


@pytest.mark.parametrize("name", ["UPPER.PNG", "UPPER.TIF"])
def test_endings_in_capitals_count_too(tmp_path, name):
    image = read_image(only(save_image(tmp_path / name, GRAY)).image)
    np.testing.assert_array_equal(image, GRAY)
    assert only(tmp_path).id == "UPPER"


def test_a_folder_of_images_sorted_by_id(tmp_path):
    for name in ("b.png", "c.TIF", "a.jpg", "Notes.png", ".hidden.png"):
        save_image(tmp_path / name, GRAY)
    (tmp_path / "notes.txt").write_text("no image")
    samples = find_samples(tmp_path)
    assert [sample.id for sample in samples] == ["Notes", "a", "b", "c"]
    assert all(sample.masks == () for sample in samples)


@pytest.mark.parametrize("prefix", ["", "stage1_train/"])
def test_kaggle_folder_and_zip_give_the_drawn_arrays(tmp_path, prefix):
    drawn = draw_source(tmp_path / "source")
    for folder in ("__MACOSX/image_00/images", "image_00/masks/.cache"):
        save_image(tmp_path / "source" / folder / "no.png", GRAY)
    save_image(tmp_path / "source" / "image_00" / "masks" / "._1.png", GRAY)
    archive = zip_folder(tmp_path / "source", tmp_path / "source.zip", prefix)
    for source in (tmp_path / "source", archive):
        samples = find_samples(source)
        images, labels = load_samples(samples)
        assert [sample.id for sample in samples] == sorted(drawn)
        for name, image, label in zip(sorted(drawn), images, labels, strict=True):
            pixels, truth = drawn[name]
            np.testing.assert_array_equal(image, pixels[..., :3] if pixels.ndim == 3 else pixels)
            np.testing.assert_array_equal(label, truth)
            assert label.dtype == np.int32


def test_a_sample_knows_its_source(tmp_path, source):
    zip_folder(source, tmp_path / "tissue.zip")
    one = save_image(tmp_path / "one" / "picture.png", GRAY)
    sources = {sample.id: sample.source for sample in find_samples(source, tmp_path / "tissue.zip", one)}
    assert sources["source__image_00"] == str(source)
    assert sources["tissue__image_00"] == str(tmp_path / "tissue")
    assert sources["picture"] == str(tmp_path / "one")
    assert only(one).source == str(tmp_path / "one")


def test_a_zip_is_read_in_place(tmp_path, source):
    archive = zip_folder(source, tmp_path / "source.zip")
    before = sorted(tmp_path.rglob("*"))
    load_samples(find_samples(archive))
    assert sorted(tmp_path.rglob("*")) == before


def test_sources_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        find_samples(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images"):
        find_samples(tmp_path / "empty")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"table\.csv: expected a folder, a \.zip or an image"):
        find_samples(tmp_path / "table.csv")
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"half\.zip: expected"):
        find_samples(tmp_path / "half.zip")


# Layouts.

LAYOUTS = {
    "clutter": [*KAGGLE, ("__MACOSX/a/images/._a.png", b""), ("a/.DS_Store", b"")],
    "top folder": [(f"stage1_train/{name}", content) for name, content in KAGGLE],
    "one id": [("images/a.png", IMAGE), ("masks/1.png", MASK)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unpack", [False, True])
def test_layouts_of_archives_and_folders(tmp_path, layout, unpack):
    source = write_archive(tmp_path / "a.zip", LAYOUTS[layout])
    if unpack:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "a")
        source = tmp_path / "a"
    sample = only(source)
    image, labels = read_sample(sample)
    assert sample.id == "a" and labels.max() == 1
    np.testing.assert_array_equal(image, GRAY)


def test_plain_images_in_an_archive(tmp_path):
    entries = [("my images/a.png", IMAGE), ("my images/b.png", IMAGE)]
    samples = find_samples(write_archive(tmp_path / "a.zip", entries))
    assert [sample.id for sample in samples] == ["a", "b"]


def test_two_images_of_one_id_are_refused(tmp_path):
    save_image(tmp_path / "same.png", GRAY)
    save_image(tmp_path / "same.jpg", GRAY)
    with pytest.raises(UserError, match="two images have the id same"):
        find_samples(tmp_path)


# Several folders.


def write_tree(folder, *names):
    """Writes an image of its own for each name."""
    for number, name in enumerate(names):
        save_image(folder / name, GRAY + np.uint8(number))
    return folder


def ids(*sources):
    return [sample.id for sample in find_samples(*sources)]


TREES = {
    "folders": (["A01/f1.png", "A01/f2.png", "B02/f1.png"], ["A01__f1", "A01__f2", "B02__f1"]),
    "one folder": (["day1/img.png"], ["day1__img"]),
    "deeper": (["a/b/c/d.png"], ["a__b__c__d"]),
    "images beside folders": (["overview.png", "day1/img.png"], ["day1__img", "overview"]),
    "folders named images": (["day1/images/img.png", "day2/images/img.png"], ["day1__img", "day2__img"]),
    "Kaggle": (["x/images/x.png", "y/images/y.png", "y/masks/1.png"], ["x", "y"]),
    "Kaggle beside images": (["x/images/x.png", "x/masks/1.png", "a.png"], ["a", "x"]),
    "images and masks": (["images/a.png", "images/b.png", "masks/a.png", "masks/b.png"], ["a", "b"]),
    "masks alone": (["masks/a.png", "labels/a.png"], ["labels__a", "masks__a"]),
    "masks in a folder of images": (["a.png", "masks/a.png", "overlays/a.png"], ["a"]),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("is_zip", [False, True])
def test_sub_folders_become_part_of_the_id(tmp_path, tree, is_zip):
    names, expected = TREES[tree]
    source = write_tree(tmp_path / "plate", *names)
    if is_zip:
        source = zip_folder(source, tmp_path / "plate.zip", "plate/")
    assert ids(source) == expected


def test_each_id_has_its_own_image(tmp_path):
    source = write_tree(tmp_path / "plate", "A01/f1.png", "B02/f1.png", "f1.png")
    pixels = {sample.id: read_image(sample.image) for sample in find_samples(source)}
    np.testing.assert_array_equal(pixels["B02__f1"], GRAY + np.uint8(1))
    np.testing.assert_array_equal(pixels["f1"], GRAY + np.uint8(2))


def test_folders_that_would_share_an_id_are_refused(tmp_path):
    write_tree(tmp_path / "plate", "day1/img.png", "day1__img.png")
    with pytest.raises(UserError, match="two images have the id day1__img"):
        find_samples(tmp_path / "plate")


def test_what_is_left_out_is_said_in_one_line_once(tmp_path, capsys):
    source = write_tree(tmp_path / "mixed", "images/a.png", "images/b.png", "masks/a.png", "labels/a.tif", ".b.png")
    for name in ("one.doc", "two.DOC", "table.xlsx", "Thumbs.db"):
        (source / name).touch()
    (source / "a.png").symlink_to("nowhere.png")
    assert ids(source) == ids(source) == ["a", "b"]
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    texts = {"3 files (.doc, .xlsx)", "2 masks beside images", "1 broken link (a.png)"}
    assert line.startswith("left out: ") and set(re.split(", (?=[0-9])", line.removeprefix("left out: "))) == texts


def test_kaggles_masks_are_not_left_out(tmp_path, source, capsys):
    find_samples(source)
    assert capsys.readouterr().err == ""


def test_results_within_the_source_are_not_its_images(tmp_path, capsys):
    source = write_tree(tmp_path / "plate", "a.png", "plate_predicted/masks/a.png", "plate_predicted/predictions.png")
    (source / "plate_predicted/source.json").write_text("{}")
    assert ids(source) == ["a"]
    assert capsys.readouterr().err == "left out: 2 pictures of earlier results\n"


def test_pictures_of_results_are_no_images_where_the_results_are_named_too(tmp_path, capsys):
    for name in ("plate/a.png", "plate_predicted/masks/a.png", "plate_predicted/predictions.png", "plate/scores.png"):
        save_image(tmp_path / name, np.eye(5, dtype=np.uint8))
    for folder in ("plate", "plate_predicted"):  # the results of another run lie beside the images
        (tmp_path / folder / "source.json").write_text("{}")
    assert [sample.id for sample in find_samples(tmp_path / "*")] == ["a"]
    assert "2 pictures of earlier results" in capsys.readouterr().err
    assert [sample.id for sample in find_samples(tmp_path / "**/*.png")] == ["a"]
    assert "3 pictures of earlier results" in capsys.readouterr().err


def test_linked_folders_are_read_and_loops_end(tmp_path):
    write_tree(tmp_path / "disk", "img.png")
    source = write_tree(tmp_path / "plate", "day1/img.png")
    (source / "day2").symlink_to(tmp_path / "disk")
    (source / "loop").symlink_to(source)
    assert ids(source) == ["day1__img", "day2__img"]


# Several sources.


def test_sources_with_ids_of_their_own_keep_them(tmp_path):
    write_tree(tmp_path, "x/a.png", "y/b.png", "z/c.png")
    archive = zip_folder(tmp_path / "z", tmp_path / "z.zip")
    assert ids(tmp_path / "x", tmp_path / "y/b.png", archive) == ["a", "b", "c"]


def test_sources_that_share_an_id_are_told_apart_by_their_folders(tmp_path):
    write_tree(tmp_path, "day1/images/img.png", "day2/images/img.png", "day2/images/b.png", "day3/c.png")
    sources = [tmp_path / "day1/images", tmp_path / "day2/images", tmp_path / "day3"]
    assert ids(*sources) == ids(*sources[::-1]) == ["c", "day1__img", "day2__b", "day2__img"]
    images = [file for source in sources[:2] for file in source.iterdir()]
    assert ids(*images) == ["day1__img", "day2__b", "day2__img"]


def test_an_image_of_two_sources_is_one(tmp_path):
    write_tree(tmp_path, "x/a.png", "x/b.png")
    assert ids(tmp_path / "x", tmp_path / "x/a.png", tmp_path / "x/../x") == ["a", "b"]


def test_a_wildcard_stands_for_what_matches(tmp_path):
    write_tree(tmp_path, "x/a.png", "x/b.tif", "y/c.png", "[d].png")
    assert ids(tmp_path / "x/*.png") == ["a"]
    assert ids(f"{tmp_path}/*/*.png") == ["a", "c"]
    assert ids(f"{tmp_path}/**/*.png") == ["[d]", "a", "c"]
    assert ids(tmp_path / "[d].png") == ["[d]"]
    with pytest.raises(UserError, match=r"x/\*\.jpg: no file matches"):
        find_samples(tmp_path / "x/*.jpg")


def test_brackets_in_the_name_of_a_folder_that_is_there_are_no_wildcard(tmp_path):
    write_tree(tmp_path, "day[1]/a.png", "day1/b.png")
    assert ids(tmp_path / "day[1]/*.png") == ["a"]
    (tmp_path / "day[1]/list.txt").write_text("*.png\n")
    assert ids(tmp_path / "day[1]/list.txt") == ["a"]
    assert ids(tmp_path / "day[1-9]/*.png") == ["b"]


def test_a_wildcard_on_a_drive_that_is_not_there_matches_nothing(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)  # not even the root, as on Windows
    with pytest.raises(UserError, match="no file matches"):
        sources._match_wildcard(Path("/nowhere/*.png"))


def test_a_path_on_a_drive_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)  # not even the root, as on Windows
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    assert sources._advise_on_path(Path("/images/a")) == "/images/a: no such file or folder; there is no /"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])  # the last is PowerShell's
def test_a_list_may_come_from_windows(tmp_path, encoding):
    write_tree(tmp_path, "zürich.png", "b.png")
    (tmp_path / "list.txt").write_text("zürich.png\r\nb.png\r\n", encoding=encoding)
    assert ids(tmp_path / "list.txt") == ["b", "zürich"]


def test_spaces_of_all_kinds_may_stand_in_a_name(tmp_path):
    for name in ("at 3.00\u202fPM", "no\u00a0break", "wide\u3000space"):
        save_image(tmp_path / f"{name}.png", GRAY)
    assert ids(tmp_path) == ["at 3.00\u202fPM", "no\u00a0break", "wide\u3000space"]


@pytest.mark.parametrize(("images", "masks"), [("Images", "Masks"), ("images", "Masks"), ("Images", "masks")])
def test_the_case_of_letters_tells_no_layout(tmp_path, capsys, images, masks):
    write_tree(tmp_path, *(f"{name}/{images}/{name}.png" for name in "ab"), *(f"a/{masks}/{n}.png" for n in range(3)))
    samples = find_samples(tmp_path)
    assert [(sample.id, len(sample.masks)) for sample in samples] == [("a", 3), ("b", 0)]
    assert capsys.readouterr().err == ""
    write_tree(tmp_path / "plain", *(f"{images}/{name}.png" for name in "cd"), f"{masks}/c.png")
    assert ids(tmp_path / "plain") == ["c", "d"]


def test_of_many_files_the_unread_are_left_out(tmp_path, capsys):
    write_tree(tmp_path, "x/a.png", "x/b.png")
    (tmp_path / "x/notes.docx").touch()
    (tmp_path / "x/gone.png").symlink_to("nowhere.png")
    assert ids(*(tmp_path / "x").iterdir()) == ["a", "b"]
    line = capsys.readouterr().err
    assert "1 file (.docx)" in line and "1 broken link (gone.png)" in line and line.count("\n") == 1


def test_a_list_names_one_path_a_line(tmp_path):
    write_tree(tmp_path, "x/a.png", "x/b c.png", "y/d.tif")
    lines = ["x/a.png", "", "  x/b c.png\r", str(tmp_path / "y/*.tif")]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    assert ids(tmp_path / "list.txt") == ["a", "b c", "d"]
    (tmp_path / "list.txt").write_text("x/a.png\nx/gone.png")
    with pytest.raises(UserError, match=r"list\.txt: .*x/gone\.png: no such file.*one path a line"):
        find_samples(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list\.txt: expected a text file"):
        find_samples(tmp_path / "list.txt")


# Paths that are not there.


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_path_is_not_the_working_directory(source):
    with pytest.raises(UserError, match="names no images; is a variable of the shell empty"):
        find_samples(source)


def test_a_typo_in_a_path_advises_about_the_path(tmp_path):
    write_tree(tmp_path, "experiment/day1/a.png")
    with pytest.raises(UserError, match=f"is {tmp_path}/experiment/day1 meant\\?") as error:
        find_samples(tmp_path / "experiment/dya1")
    assert "download" not in str(error.value)
    with pytest.raises(UserError, match=f"is {tmp_path}/experiment meant\\?"):
        find_samples(tmp_path / "experimnet/day1/a.png")
    with pytest.raises(UserError, match=f"{tmp_path}/experiment exists, but no zzz in it"):
        find_samples(tmp_path / "experiment/zzz/a.png")
    with pytest.raises(UserError, match="no such file or folder"):
        find_samples(tmp_path / "experiment/day1/a.png/b")
    with pytest.raises(UserError, match=r"python data/download\.py"):
        find_samples(tmp_path / "stage1_train.zip")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"link\.png: the link is broken, nowhere\.png is not there"):
        find_samples(tmp_path / "link.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_named(tmp_path):
    save_image(tmp_path / "a.png", np.zeros((4, 5), np.uint8)).rename(
        os.fsdecode(os.fsencode(tmp_path) + b"/Z\xfcrich.png")
    )
    with pytest.raises(UserError, match=r"Z.udcfcrich.png': its name holds bytes that are no text"):
        find_samples(tmp_path)
