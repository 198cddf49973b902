"""Images and their truth, paired by folders and names."""

import re
import zipfile

import numpy as np
import pytest
from conftest import encode_png, only, save_image, write_archive

from data.files import UserError
from data.sources import find_samples

GRAY = np.zeros((6, 8), np.uint8)


def write_tree(folder, *names):
    """Writes an image for each name of an image, and an empty file for each other name."""
    for name in names:
        if name.endswith((".png", ".tif", ".jpg")):
            save_image(folder / name, GRAY)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    return folder


def pairs(*sources, **options):
    """id -> names of its truth, with their folders below the first source."""
    samples = find_samples(*sources, **options)
    return {s.id: [re.sub(r".*plate(\.zip)?/", "", str(file)) for file in s.truths] for s in samples}


LAYOUTS = {  # files -> id: truth
    "images and masks": (
        ["images/a.tif", "images/b.jpg", "masks/a.png", "masks/b.png"],
        {"a": "masks/a.png", "b": "masks/b.png"},
    ),
    "truth below days": (
        ["day1/images/a.png", "day1/images/b.png", "day1/truth/a.png", "day1/truth/b_mask.png"]
        + ["day2/c.png", "day2/c_label.tif"],
        {"day1__a": "day1/truth/a.png", "day1__b": "day1/truth/b_mask.png", "day2__c": "day2/c_label.tif"},
    ),
    "days below images": (
        ["images/day1/a.png", "images/day2/a.png", "masks/day1/a.png", "masks/day2/a.png"],
        {"day1__a": "masks/day1/a.png", "day2__a": "masks/day2/a.png"},
    ),
    "train and val": (
        ["train/images/a.png", "train/images/b.png", "val/images/c.png", "val/images/d.png"]
        + ["train/masks/a.png", "train/masks/b.png", "val/masks/c.png", "val/masks/d.png"],
        {
            name.replace("/", "__"): name.replace("/", "/masks/") + ".png"
            for name in ("train/a", "train/b", "val/c", "val/d")
        },
    ),
    "a folder in the images": (
        ["a.png", "b.png", "masks/a.png", "masks/b.png"],
        {"a": "masks/a.png", "b": "masks/b.png"},
    ),
    "Kaggle with one picture": (["a/images/a.png", "a/masks/a.png"], {"a": "a/masks/a.png"}),
    "one image and its mask of another name": (["images/a.tif", "masks/A_masks.tif"], {"plate": "masks/A_masks.tif"}),
    "Cellpose": (
        ["a.tif", "a_masks.tif", "b.tif", "b_cp_masks.png", "c_label.png", "c_label_labels.png"],
        {"a": "a_masks.tif", "b": "b_cp_masks.png", "c_label": "c_label_labels.png"},
    ),
    "nnU-Net": (
        ["imagesTr/a_0000.png", "imagesTr/b_0000.png", "labelsTr/a.png", "labelsTr/b.png"],
        {"a": "labelsTr/a.png", "b": "labelsTr/b.png"},
    ),
    "ROI sets beside images": (["a.png", "a.zip", "b.png", "b.roi"], {"a": "a.zip", "b": "b.roi"}),
    "ROI sets and GeoJSON in folders": (
        ["images/a.png", "images/b.png", "rois/a.zip", "geojson/b.geojson"],
        {"a": "rois/a.zip", "b": "geojson/b.geojson"},
    ),
    "labels by id": (["images/day1/a.png", "labels/day1__a.tif"], {"day1__a": "labels/day1__a.tif"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_zip", [False, True])
def test_each_layout_gives_each_image_its_truth(tmp_path, capsys, layout, is_zip):
    names, expected = LAYOUTS[layout]
    source = write_tree(tmp_path / "plate", *names)
    if is_zip:
        with zipfile.ZipFile(tmp_path / "plate.zip", "w") as archive:
            for name in names:
                archive.write(source / name, name)
        source = tmp_path / "plate.zip"
    assert pairs(source, with_truth=True) == {name: [truth] for name, truth in expected.items()}
    assert capsys.readouterr().err == ""


def test_truth_is_no_image_to_predict(tmp_path, capsys):
    source = write_tree(tmp_path / "plate", "a.png", "a_masks.png", "b.png", "b.zip", "day1/c.png", "day1/labels/c.tif")
    assert list(pairs(source)) == ["a", "b", "day1__c"]
    assert capsys.readouterr().err == "left out: 1 file (.zip), 2 masks beside images\n"


def test_a_wildcard_finds_truth_beside_its_images(tmp_path, capsys):
    source = write_tree(tmp_path / "plate", "a.tif", "a_masks.tif", "b.tif", "b.geojson")
    expected = {"a": ["a_masks.tif"], "b": ["b.geojson"]}
    assert pairs(source / "*.tif", with_truth=True) == expected
    assert capsys.readouterr().err == ""
    assert pairs(source / "?.tif") == expected
    assert capsys.readouterr().err == ""  # nothing that was named is left out
    assert only(source / "a_masks.tif").id == "a_masks"


FAULTS = {  # files and what the error says
    "no truth": (["images/a.png", "images/b.png", "masks/a.png"], r"1 of 2 images without truth: b\.png"),
    "no image": (
        ["images/a.png", "images/b.png", "masks/a.png", "masks/b.png", "masks/c.png"],
        r"1 truth without an image: c\.png",
    ),
    "other names": (
        ["images/a.png", "images/b.png", "masks/1.png", "masks/2.png"],
        r"2 of 2 images without truth: a\.png, b\.png; 2 truths without an image: 1\.png, 2\.png",
    ),
    "Cellpose": (["a.tif", "a_masks.tif", "b.tif", "c_masks.tif"], r"b\.tif; .*an image: c_masks\.tif"),
    "ROI sets": (["a.png", "rois/a.zip", "rois/b.zip"], r"without an image: b\.zip"),
    "several": (["images/a.png", "images/b.png", "masks/a.png", "labels/a.tif", "masks/b.png"], "more than one truth"),
    "channels": (["imagesTr/a_0000.png", "imagesTr/a_0001.png", "labelsTr/a.png"], "nnU-Net's layout.*one channel"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_partner_is_named(tmp_path, fault):
    names, reason = FAULTS[fault]
    source = write_tree(tmp_path / "plate", *names)
    with pytest.raises(UserError, match=reason):
        find_samples(source, with_truth=True)
    assert find_samples(source)  # they can be predicted


def test_test_images_of_nnunet_need_no_labels(tmp_path, capsys):
    source = write_tree(tmp_path / "plate", "imagesTr/a_0000.png", "labelsTr/a.png", "imagesTs/b_0000.png")
    assert pairs(source, with_truth=True) == {"a": ["labelsTr/a.png"]}
    assert capsys.readouterr().err == "left out: 1 image without truth\n"
    assert list(pairs(source)) == ["a", "imagesTs__b_0000"]


def test_labels_of_a_prediction_are_truth_of_the_images_beside_them_or_of_another_source(tmp_path):
    results = ["source.json", "labels/day1__a.tif", "masks/day1__a.png", "overlays/day1__a.png", "rois/day1__a.zip"]
    source = write_tree(tmp_path / "plate", "day1/a.png")
    out = write_tree(tmp_path / "out/plate", *results)
    expected = {"day1__a": ["labels/day1__a.tif"]}
    assert pairs(source, out, with_truth=True) == expected
    write_tree(source, *results)
    assert pairs(source, with_truth=True) == expected


def test_kaggles_masks_stay_masks(tmp_path):
    image = encode_png(GRAY)
    archive = write_archive(tmp_path / "a.zip", [("a/images/a.png", image), ("a/masks/1.png", image)])
    sample = only(archive)
    assert len(sample.masks) == 1 and sample.truths == () and sample.has_truth
