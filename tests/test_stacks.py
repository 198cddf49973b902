"""Layouts and pixels of stacks, the ids of their planes, and projections."""

import json
import struct

import numpy as np
import pytest
import tifffile
from conftest import only, save_image, write_archive, write_source

import data.stacks
from data.channels import Channels
from data.files import UserError
from data.images import open_rows, read_image, read_shape
from data.layouts import Plane
from data.pixel_size import read_pixel_size
from data.sources import Sample, find_samples
from data.stacks import Dimensions, expand_planes, read_sample_image, read_scene_dimensions
from data.tiffs import TiffRows

NAMES = ("DAPI", "GFP")


def make_pixels(*shape, dtype=np.uint16):
    """Each value is its own number, so that no two planes are alike."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def write_stack(file, pixels, **options):
    """Writes gray planes with tifffile; returns the file."""
    tifffile.imwrite(file, pixels, **{"photometric": "minisblack"} | options)
    return file


def write_ome(file, pixels, axes, **options):
    metadata = {"axes": axes} | ({"Channel": {"Name": list(NAMES)}} if "C" in axes else {})
    return write_stack(file, pixels, ome=True, metadata=metadata, **options)


def read_dimensions(file):
    """The dimensions of a file that holds one image."""
    (dimensions,) = read_scene_dimensions(file)
    return dimensions


def read_planes(file, project=None):
    """What each plane of a file is read as, by its id."""
    return {sample.id: read_sample_image(sample, project) for sample in expand_planes([only(file)], project)}


def holds_planes(file, expected):
    """Whether a file has these planes and no others: pixels and dtype by id; of several channels (C, H, W)."""
    planes = read_planes(file)
    found = {name: image.planes if isinstance(image, Channels) else image for name, image in planes.items()}
    pairs = zip(found.values(), expected.values(), strict=False)
    are_equal = all(image.dtype == pixels.dtype and np.array_equal(image, pixels) for image, pixels in pairs)
    return list(found) == list(expected) and are_equal


# Layouts and pixels.


def write_imagej(file, pixels, axes):
    return write_stack(file, pixels, imagej=True, metadata={"axes": axes})


@pytest.mark.parametrize("write", [write_imagej, write_ome])
@pytest.mark.parametrize(
    ("axes", "shape", "ids"),
    [
        ("CYX", (2, 5, 7), ["a"]),
        ("ZYX", (3, 5, 7), ["a_z0", "a_z1", "a_z2"]),
        ("TYX", (2, 5, 7), ["a_t0", "a_t1"]),
        ("TZCYX", (2, 3, 2, 5, 7), ["a_t0_z0", "a_t0_z1", "a_t0_z2", "a_t1_z0", "a_t1_z1", "a_t1_z2"]),
    ],
)
def test_each_plane_of_z_and_time_has_its_own_pixels(tmp_path, write, axes, shape, ids):
    pixels = make_pixels(*shape)
    file = write(tmp_path / "a.tif", pixels, axes)
    dimensions = read_dimensions(file)
    names = NAMES if write is write_ome else ("channel 1", "channel 2")
    assert dimensions == Dimensions(axes, shape, names if "C" in axes else ())
    planes = pixels.reshape(len(ids), *shape[2 if "T" in axes and "Z" in axes else 1 if "C" not in axes else 0 :])
    assert holds_planes(file, dict(zip(ids, planes, strict=True)))


@pytest.mark.parametrize("order", ["ZCTYX", "CTZYX", "TCZYX"])
def test_the_axes_of_an_ome_tiff_may_have_any_order(tmp_path, order):
    pixels = make_pixels(*(dict(zip("TZCYX", (2, 3, 2, 4, 5), strict=True))[axis] for axis in order))
    file = write_ome(tmp_path / "a.tif", pixels, order)
    planes = np.moveaxis(pixels, [order.index(axis) for axis in "TZC"], (0, 1, 2))
    assert holds_planes(file, {f"a_t{t}_z{z}": planes[t, z] for t in range(2) for z in range(3)})


def test_one_page_may_hold_a_volume(tmp_path):
    volume = make_pixels(3, 20, 24)
    write_stack(tmp_path / "a.tif", volume, volumetric=True, tile=(3, 16, 16))
    assert holds_planes(tmp_path / "a.tif", {f"a_z{z}": volume[z] for z in range(3)})


def test_planes_may_lie_in_compressed_tiles(tmp_path):
    pixels = make_pixels(2, 3, 20, 24)
    write_ome(tmp_path / "a.ome.tif", pixels, "CZYX", tile=(16, 16), compression="zlib")
    assert holds_planes(tmp_path / "a.ome.tif", {f"a.ome_z{z}": pixels[:, z] for z in range(3)})


@pytest.mark.parametrize("order", "<>")
def test_planes_after_a_first_page_that_stands_for_all_are_found(tmp_path, order):
    pixels = make_pixels(2, 3, 5, 7)  # as ImageJ writes stacks of more than 4 GB
    write_stack(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TZYX"}, truncate=True, byteorder=order)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert len(tiff.pages) == 1
    assert holds_planes(tmp_path / "a.tif", {f"a_t{t}_z{z}": pixels[t, z] for t in range(2) for z in range(3)})


@pytest.mark.parametrize("options", [{}, {"metadata": None}])
def test_pages_without_a_word_of_what_they_are_lie_along_z(tmp_path, options):
    pixels = make_pixels(3, 5, 7)
    write_stack(tmp_path / "a.tif", pixels, **options)
    assert read_dimensions(tmp_path / "a.tif") == Dimensions("ZYX", (3, 5, 7), ())
    assert holds_planes(tmp_path / "a.tif", {f"a_z{z}": pixels[z] for z in range(3)})


def test_planes_of_colours_stay_colours(tmp_path):
    colours = make_pixels(3, 5, 7, 3)
    write_stack(tmp_path / "a.tif", colours, photometric="rgb")
    assert read_dimensions(tmp_path / "a.tif") == Dimensions("ZYXS", (3, 5, 7, 3), ())
    assert holds_planes(tmp_path / "a.tif", {f"a_z{z}": colours[z] for z in range(3)})


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("count", [2, 4, 5])
def test_samples_that_are_no_colours_are_channels(tmp_path, planar, count):
    pixels = make_pixels(count, 5, 7)
    stored = pixels if planar == "separate" else np.moveaxis(pixels, 0, -1)
    write_stack(tmp_path / "a.tif", stored, planarconfig=planar)
    assert read_dimensions(tmp_path / "a.tif").names == tuple(f"channel {number + 1}" for number in range(count))
    assert holds_planes(tmp_path / "a.tif", {"a": pixels})


def test_alpha_and_colours_are_no_channels(tmp_path):
    gray = make_pixels(5, 7, 2)
    write_stack(tmp_path / "gray.tif", gray, planarconfig="contig", extrasamples=["unassalpha"])
    write_stack(tmp_path / "rgba.tif", make_pixels(5, 7, 4), photometric="rgb", extrasamples=["unassalpha"])
    write_stack(tmp_path / "planar.tif", make_pixels(3, 5, 7), photometric="rgb", planarconfig="separate")
    for name in ("gray", "rgba", "planar"):
        assert read_dimensions(tmp_path / f"{name}.tif") is None


@pytest.mark.parametrize("count", [2, 4])
def test_alpha_of_planes_is_dropped(tmp_path, count):
    pixels = make_pixels(3, 5, 7, count)
    photometric = "rgb" if count == 4 else "minisblack"
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    write_stack(tmp_path / "a.tif", pixels, **options)
    visible = pixels[..., :3] if count == 4 else pixels[..., 0]
    assert holds_planes(tmp_path / "a.tif", {f"a_z{z}": visible[z] for z in range(3)})


PALETTE = np.zeros((3, 256), np.uint16)
PALETTE[0] = np.arange(256)[::-1] * 257
COLOURS_OF_PAGES = {
    "palette": ((2, 5, 7), {"photometric": "palette", "colormap": PALETTE}),
    "cmyk": ((2, 5, 7, 4), {"photometric": "separated"}),
    "rgba": ((2, 5, 7, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
}


@pytest.mark.parametrize("kind", COLOURS_OF_PAGES)
def test_colours_of_planes_are_those_of_whole_images(tmp_path, kind):
    shape, options = COLOURS_OF_PAGES[kind]
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if kind == "rgba":
        pixels[:, :2, :, 3] = 0  # transparent
    whole = [read_image(write_stack(tmp_path / "one.tif", plane, **options)) for plane in pixels]
    write_stack(tmp_path / "a.tif", pixels, **options)
    assert holds_planes(tmp_path / "a.tif", {"a_z0": whole[0], "a_z1": whole[1]})


def test_a_fourth_channel_of_planes_that_is_no_alpha_is_refused(tmp_path):
    options = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    first, _ = expand_planes([only(write_stack(tmp_path / "a.tif", make_pixels(2, 5, 7, 4), **options))], None)
    with pytest.raises(UserError, match="it holds 4 channels"):
        read_sample_image(first)


def test_planes_of_imagej_have_its_numbers_not_the_colours_of_its_lookup_table(tmp_path):
    pixels = make_pixels(2, 5, 7, dtype=np.uint8)
    options = {"photometric": "palette", "colormap": PALETTE, "metadata": {"axes": "ZYX"}}
    write_stack(tmp_path / "a.tif", pixels, imagej=True, **options)
    assert holds_planes(tmp_path / "a.tif", {"a_z0": pixels[0], "a_z1": pixels[1]})


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True, "metadata": {"axes": "CYXS"}}])
def test_pages_in_colours_are_no_channels(tmp_path, options):
    pixels = make_pixels(2, 5, 7, 3, dtype=np.uint8)
    write_stack(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    assert holds_planes(tmp_path / "a.tif", {"a_z0": pixels[0], "a_z1": pixels[1]})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_planes_are_turned_as_whole_images_are(tmp_path, orientation):
    planes = {1: make_pixels(2, 5, 7), 3: make_pixels(2, 5, 7, 3)}
    for samples, pixels in planes.items():
        options = {"photometric": "rgb" if samples == 3 else "minisblack", "metadata": None}
        turn = {"extratags": [(274, 3, 1, orientation, True)]}
        write_stack(tmp_path / "a.tif", pixels, **options, **turn)
        whole = []
        for plane in pixels:
            whole.append(read_image(write_stack(tmp_path / "one.tif", plane, **options, **turn)))
        assert holds_planes(tmp_path / "a.tif", {"a_z0": whole[0], "a_z1": whole[1]})


def test_dark_is_bright_where_the_file_says_that_white_is_zero(tmp_path):
    pixels = make_pixels(2, 5, 7, dtype=np.uint8)
    write_stack(tmp_path / "a.tif", pixels, photometric="miniswhite")
    write_stack(tmp_path / "one.tif", pixels[1], photometric="miniswhite")
    assert holds_planes(tmp_path / "a.tif", {"a_z0": 255 - pixels[0], "a_z1": read_image(tmp_path / "one.tif")})


def test_planes_that_an_ome_tiff_leaves_out_are_background(tmp_path):
    pixels = make_pixels(3, 5, 7)
    file = write_ome(tmp_path / "a.tif", pixels, "ZYX")
    file.write_bytes(file.read_bytes().replace(b'SizeZ="3"', b'SizeZ="4"'))
    planes = [*pixels, np.zeros((5, 7), np.uint16)]
    assert holds_planes(file, {f"a_z{z}": planes[z] for z in range(4)})


# Names of channels.


def test_labels_of_imagej_name_the_channels(tmp_path):
    labels = ["Hoechst", "actin"] * 3  # one a plane, channels first
    metadata = {"axes": "ZCYX", "Labels": labels}
    write_stack(tmp_path / "a.tif", make_pixels(3, 2, 5, 7), imagej=True, metadata=metadata)
    assert read_dimensions(tmp_path / "a.tif").names == ("Hoechst", "actin")


@pytest.mark.parametrize("names", [["DAPI", "DAPI"], None])
def test_names_that_tell_nothing_apart_are_numbers(tmp_path, names):
    metadata = {"axes": "CYX"} | ({"Channel": {"Name": names}} if names else {})
    write_stack(tmp_path / "a.tif", make_pixels(2, 5, 7), ome=True, metadata=metadata)
    assert read_dimensions(tmp_path / "a.tif").names == ("channel 1", "channel 2")


# Samples and ids.


def test_ids_have_as_many_digits_as_the_last(tmp_path, capsys):
    pixels = make_pixels(12, 2, 3)
    write_stack(tmp_path / "z.tif", pixels)
    write_imagej(tmp_path / "t.tif", make_pixels(10, 2, 2, 3), "TZYX")
    save_image(tmp_path / "m.png", np.zeros((5, 7), np.uint8))
    samples = expand_planes(find_samples(tmp_path), None)
    assert [sample.id for sample in samples] == [
        "m",
        *(f"t_t{t}_z{z}" for t in range(10) for z in range(2)),
        *(f"z_z{z:02}" for z in range(12)),
    ]
    assert samples[0].plane is None and samples[1].plane == Plane(0, 0) and samples[-1].plane == Plane(11, None)
    assert "2 stacks: 32 planes" in capsys.readouterr().out


def test_channels_alone_and_one_projection_keep_the_id(tmp_path, capsys):
    write_ome(tmp_path / "c.tif", make_pixels(2, 5, 7), "CYX")
    write_stack(tmp_path / "z.tif", make_pixels(3, 5, 7))
    write_imagej(tmp_path / "t.tif", make_pixels(2, 3, 5, 7), "TZYX")
    samples = expand_planes(find_samples(tmp_path), "max")
    assert [sample.id for sample in samples] == ["c", "t_t0", "t_t1", "z"]
    assert "1 stack: 2 planes, each an image of its own\n" in capsys.readouterr().out


def test_a_plane_and_an_image_of_one_id_are_a_mistake(tmp_path):
    write_stack(tmp_path / "a.tif", make_pixels(3, 5, 7))
    save_image(tmp_path / "a_z0.png", np.zeros((5, 7), np.uint8))
    samples = find_samples(tmp_path)
    with pytest.raises(UserError, match=r"a\.tif.* have the id a_z0"):
        expand_planes(samples, None)
    assert [sample.id for sample in expand_planes(samples, "max")] == ["a", "a_z0"]


def test_a_stack_may_lie_in_an_archive(tmp_path):
    pixels = make_pixels(3, 5, 7)
    content = write_stack(tmp_path / "a.tif", pixels).read_bytes()
    archive = write_archive(tmp_path / "images.zip", [("a.tif", content)])
    assert holds_planes(archive, {f"a_z{z}": pixels[z] for z in range(3)})


def test_a_sample_with_masks_is_not_expanded(tmp_path):
    image = np.zeros((5, 7), np.uint8)
    write_source(tmp_path / "source", {"a": (image, (image == 0).astype(int))})
    (tmp_path / "source/a/images/a.png").unlink()
    write_stack(tmp_path / "source/a/images/a.tif", make_pixels(3, 5, 7))
    samples = find_samples(tmp_path / "source")
    assert len(samples[0].masks) == 1 and expand_planes(samples, None) == samples


# What is no stack.


@pytest.mark.parametrize("kind", ["gray.tif", "gray.png", "pyramid", "slide", "sub-pages"])
def test_one_image_is_no_stack(tmp_path, kind):
    file = tmp_path / (kind if "." in kind else "a.tif")
    image = make_pixels(64, 48)
    colours = make_pixels(64, 48, 3)
    if kind == "gray.tif":
        write_stack(file, image)
    elif kind == "gray.png":
        save_image(file, image)
    elif kind == "pyramid":  # not marked as one
        with tifffile.TiffWriter(file) as tiff:
            for step in (1, 2, 4):
                tiff.write(image[::step, ::step], metadata=None, tile=(16, 16))
    elif kind == "slide":
        with tifffile.TiffWriter(file) as tiff:
            tiff.write(colours, photometric="rgb", tile=(16, 16), description="Aperio Image Library", metadata=None)
            for step in (4, 2):
                tiff.write(colours[::step, ::step], photometric="rgb", metadata=None, subfiletype=1)
    else:
        with tifffile.TiffWriter(file, ome=True) as tiff:
            tiff.write(image, subifds=1, metadata={"axes": "YX"})
            tiff.write(image[::2, ::2], subfiletype=1)
    assert read_dimensions(file) is None
    planes = read_planes(file)
    np.testing.assert_array_equal(planes[file.stem], colours if kind == "slide" else image)


def test_channels_of_a_pyramid_are_those_of_its_full_resolution(tmp_path):
    pixels = make_pixels(2, 64, 48)
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tiff:
        tiff.write(pixels, subifds=1, photometric="minisblack", metadata={"axes": "CYX"})
        tiff.write(pixels[:, ::2, ::2], subfiletype=1, photometric="minisblack")
    assert holds_planes(tmp_path / "a.tif", {"a": pixels})


# Several images in one file.


def write_images(file, images, **options):
    """Writes an OME-TIFF of several images: (name, pixels, axes, names of channels)."""
    with tifffile.TiffWriter(file, ome=True) as tiff:
        for number, (name, pixels, axes, channels) in enumerate(images):
            metadata = {"Name": name, "axes": axes, "PhysicalSizeX": number + 1, "PhysicalSizeY": number + 1}
            metadata |= {"Channel": {"Name": channels}} if channels else {}
            tiff.write(pixels, metadata=metadata, photometric="minisblack", **options)
    return file


@pytest.mark.parametrize("second", [(5, 7), (4, 9), (9, 4), (3, 4)])
def test_each_position_of_an_ome_tiff_is_an_image_of_its_own(tmp_path, second):
    positions = [make_pixels(5, 7), make_pixels(*second) + 100, make_pixels(6, 8) + 200]
    write_images(tmp_path / "a.ome.tif", [(f"position {n}", p, "YX", None) for n, p in enumerate(positions)])
    assert holds_planes(tmp_path / "a.ome.tif", {f"a.ome_s{n}": p for n, p in enumerate(positions)})
    for scene, pixels in enumerate(positions):
        assert read_shape(tmp_path / "a.ome.tif", scene=scene) == pixels.shape
        assert read_pixel_size(tmp_path / "a.ome.tif", scene=scene) == scene + 1
        with open_rows(tmp_path / "a.ome.tif", scene=scene) as rows:
            assert isinstance(rows, TiffRows)
            np.testing.assert_array_equal(rows[2:], pixels[2:])


def test_positions_may_be_stacks_with_channels_of_their_own(tmp_path, capsys):
    first = make_pixels(2, 3, 5, 7)
    second = make_pixels(2, 4, 6) + 300
    images = [("one", first, "CZYX", ["DAPI", "GFP"]), ("two", second, "CYX", ["Hoechst", "RFP"])]
    file = write_images(tmp_path / "a.tif", images)
    assert [dimensions.names for dimensions in read_scene_dimensions(file)] == [("DAPI", "GFP"), ("Hoechst", "RFP")]
    assert holds_planes(file, {f"a_s0_z{z}": first[:, z] for z in range(3)} | {"a_s1": second})
    assert "1 stack: 4 scenes and planes" in capsys.readouterr().out


def test_a_file_of_several_images_is_refused_where_one_is_wanted(tmp_path):
    file = write_images(
        tmp_path / "a.tif", [("one", make_pixels(5, 7), "YX", None), ("2", make_pixels(4, 6), "YX", None)]
    )
    with pytest.raises(UserError, match=r"a\.tif: it holds 2 images"):
        read_image(file)
    with pytest.raises(UserError, match=r"a\.tif: it holds 2 images"), open_rows(file):
        pass
    with pytest.raises(UserError, match=r"a\.tif: it was replaced"):
        read_image(file, scene=2)


def test_the_label_the_overview_and_the_levels_of_a_slide_are_no_positions(tmp_path):
    pixels = make_pixels(64, 48)
    others = [("#2", pixels[::2, ::2]), ("label image", pixels[:20, :40]), ("Macro", pixels[:20, :30])]
    images = [("macro image", pixels[:9, :9].copy(), "YX", None), ("#1", pixels, "YX", None)]
    images += [(name, np.ascontiguousarray(other), "YX", None) for name, other in others]
    file = write_images(tmp_path / "a.tif", images, tile=(16, 16))
    assert holds_planes(file, {"a": pixels})
    assert read_shape(file, level=1) == (32, 24)


def test_pages_that_differ_in_size_are_images_of_their_own(tmp_path):
    pages = [make_pixels(5, 7), make_pixels(6, 7) + 50, make_pixels(6, 7) + 100]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in pages:
            tiff.write(page, metadata=None)
        tiff.write(make_pixels(2, 9), metadata=None, subfiletype=1)  # a thumbnail
    assert holds_planes(tmp_path / "a.tif", {"a_s0": pages[0], "a_s1_z0": pages[1], "a_s1_z1": pages[2]})


@pytest.mark.parametrize("kind", ["positions", "pages", "marked pages", "tiles"])
def test_smaller_images_of_the_same_shape_are_named_where_they_may_be_no_levels(tmp_path, capsys, kind):
    pixels = [make_pixels(64, 48), make_pixels(32, 24), make_pixels(20, 15), make_pixels(8, 6)]  # the last: a thumbnail
    file = tmp_path / f"{kind}.tif"
    if kind == "positions":
        write_images(file, [(f"position {n}", p, "YX", None) for n, p in enumerate(pixels)], tile=(16, 16))
    else:
        tile = (16, 16) if kind == "tiles" else None
        with tifffile.TiffWriter(file) as tiff:
            for number, page in enumerate(pixels):
                flag = 1 if number and kind == "marked pages" else 0
                tiff.write(page, metadata=None, tile=tile, subfiletype=flag)
    assert holds_planes(file, {file.stem: pixels[0]})
    line = f"{file}: left out 2 smaller images as levels of a pyramid; save what is no level as its own file\n"
    assert capsys.readouterr().err == (line if kind in ("positions", "pages") else "")


def test_a_thumbnail_before_the_image_is_not_the_image(tmp_path):
    pixels = make_pixels(50, 70)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(np.ascontiguousarray(pixels[::10, ::10]), metadata=None, subfiletype=1)
        tiff.write(pixels, metadata=None)
    assert holds_planes(tmp_path / "a.tif", {"a": pixels})
    assert read_shape(tmp_path / "a.tif") == (50, 70)


# What cannot be read.


@pytest.mark.parametrize("length", [0, 6, 100, 0.9])
def test_the_reading_of_a_damaged_stack_says_what_is_wrong(tmp_path, length):
    file = write_stack(tmp_path / "a.tif", make_pixels(3, 50, 70), compression="zlib")
    content = file.read_bytes()
    file.write_bytes(content[: length if isinstance(length, int) else int(length * len(content))])
    planes = expand_planes([Sample("a", file)], None)
    with pytest.raises(UserError, match=r"a\.tif"):
        for sample in planes:
            read_sample_image(sample)


def test_a_plane_that_is_damaged_leaves_the_others(tmp_path):
    pixels = make_pixels(3, 50, 70)
    file = write_stack(tmp_path / "a.tif", pixels, compression="zlib")
    with tifffile.TiffFile(file) as tiff:
        start = tiff.pages[1].dataoffsets[0]
        end = start + tiff.pages[1].databytecounts[0]
    content = bytearray(file.read_bytes())
    content[start:end] = bytes(end - start)
    file.write_bytes(content)
    first, damaged, last = expand_planes([only(file)], None)
    with pytest.raises(UserError, match=r"a\.tif: not a readable image"):
        read_sample_image(damaged)
    np.testing.assert_array_equal(read_sample_image(first), pixels[0])
    np.testing.assert_array_equal(read_sample_image(last), pixels[2])


def test_pixels_are_read_though_the_description_of_a_file_is_damaged(tmp_path):
    planes = make_pixels(2, 5, 7)
    write_ome(tmp_path / "pages.tif", planes, "CYX")
    write_ome(tmp_path / "samples.tif", np.moveaxis(planes, 0, -1), "YXS", planarconfig="contig")
    for name, shown in (("pages", {"pages_z0": planes[0], "pages_z1": planes[1]}), ("samples", {"samples": planes})):
        file = tmp_path / f"{name}.tif"
        file.write_bytes(file.read_bytes().replace(b"<Pixels", b"<Pixel&"))
        assert holds_planes(file, shown)


def test_planes_of_no_number_and_too_large_planes_are_named(tmp_path, monkeypatch):
    pixels = make_pixels(2, 5, 7, dtype=np.float32)
    pixels[1, 2, 3] = np.nan
    first, second = expand_planes([only(write_stack(tmp_path / "a.tif", pixels))], None)
    assert read_sample_image(first).dtype == np.float32
    with pytest.raises(UserError, match=r"a\.tif.*NaN"):
        read_sample_image(second)
    monkeypatch.setattr(data.stacks, "MAX_PIXELS", 34)
    with pytest.raises(UserError, match=r"a\.tif.*too large"):
        read_sample_image(first)


def test_a_stack_that_was_replaced_on_the_way_is_named(tmp_path):
    file = write_stack(tmp_path / "a.tif", make_pixels(3, 5, 7))
    last = expand_planes([only(file)], None)[-1]
    for pixels in (make_pixels(2, 5, 7), make_pixels(5, 7)):
        write_stack(file, pixels)
        with pytest.raises(UserError, match=r"a\.tif: it was replaced"):
            read_sample_image(last)
    save_image(tmp_path / "b.png", make_pixels(5, 7)).rename(file)
    with pytest.raises(UserError, match=r"a\.tif: it was replaced"):
        read_sample_image(last)


# Projections.


@pytest.mark.parametrize(
    ("project", "values", "dtype"), [("max", [250, 9], np.uint8), ("mean", [151, 4], "f4"), ("sum", [453, 12], "f4")]
)
def test_a_projection_is_along_z_alone(tmp_path, project, values, dtype):
    pixels = np.zeros((2, 3, 2, 1, 2), np.uint8)  # T, Z, C, Y, X
    pixels[1, :, 1, 0] = [[250, 2], [200, 9], [3, 1]]
    planes = read_planes(write_ome(tmp_path / "a.tif", pixels, "TZCYX"), project)
    assert list(planes) == ["a_t0", "a_t1"]
    assert not planes["a_t0"].planes.any() and not planes["a_t1"].planes[0].any()
    np.testing.assert_array_equal(planes["a_t1"].planes[1], np.array([values], dtype), strict=True)


def test_a_stack_without_z_is_as_it_is_with_a_projection(tmp_path):
    pixels = make_pixels(2, 5, 7)
    planes = read_planes(write_imagej(tmp_path / "a.tif", pixels, "TYX"), "sum")
    np.testing.assert_array_equal(planes["a_t1"], pixels[1], strict=True)


# What other programs write.


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": {"axes": "YXC"}}])
def test_a_last_axis_of_length_1_is_none(tmp_path, options):
    pixels = make_pixels(5, 7, 1)
    assert holds_planes(write_stack(tmp_path / "a.tif", pixels, **options), {"a": pixels[..., 0]})
    planes = make_pixels(3, 5, 7, 1)
    expected = {f"b_z{z}": planes[z, ..., 0] for z in range(3)}
    assert holds_planes(write_stack(tmp_path / "b.tif", planes, **options), expected)


def write_files_of_one_stack(folder, planes):
    """OME-TIFF in several files: each holds one time, and names all."""
    names = [f"a_{number}.ome.tif" for number in range(len(planes))]
    data = "".join(
        f'<TiffData IFD="0" FirstZ="0" FirstT="{number}" FirstC="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData>'
        for number, name in enumerate(names)
    )
    image = (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="5" SizeZ="1" '
        f'SizeC="1" SizeT="{len(planes)}"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image>'
    )
    for number, name in enumerate(names):
        write_with_ome_xml(folder / name, number, image, planes[number])


def write_with_ome_xml(file, number, images, planes):
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    description = f'<?xml version="1.0"?><OME xmlns="{namespace}" UUID="urn:uuid:{number}">{images}</OME>'
    write_stack(file, planes, description=description, metadata=None)


def test_each_file_of_a_stack_in_several_files_is_its_own_image(tmp_path):
    planes = make_pixels(3, 5, 7)
    write_files_of_one_stack(tmp_path, planes)
    (tmp_path / "a_0.ome.tif").unlink()  # the others do not miss it
    samples = expand_planes(find_samples(tmp_path), None)
    assert [sample.id for sample in samples] == ["a_1.ome", "a_2.ome"]
    for sample, plane in zip(samples, planes[1:], strict=True):
        np.testing.assert_array_equal(read_sample_image(sample), plane)


def test_positions_in_files_of_their_own_keep_their_channels(tmp_path):
    planes = make_pixels(2, 3, 2, 5, 7)  # positions, Z, C, Y, X
    images = ""
    for position, names in enumerate((("DAPI", "GFP"), ("Hoechst", "RFP"))):
        channels = "".join(f'<Channel ID="Channel:{position}:{c}" Name="{name}"/>' for c, name in enumerate(names))
        data = "".join(
            f'<TiffData IFD="{2 * z + c}" FirstZ="{z}" FirstC="{c}" FirstT="0" PlaneCount="1">'
            f'<UUID FileName="a_{position}.ome.tif">urn:uuid:{position}</UUID></TiffData>'
            for z in range(3)
            for c in range(2)
        )
        images += (
            f'<Image ID="Image:{position}"><Pixels ID="Pixels:{position}" DimensionOrder="XYCZT" Type="uint16" '
            f'SizeX="7" SizeY="5" SizeZ="3" SizeC="2" SizeT="1" PhysicalSizeX="{position + 1}" '
            f'PhysicalSizeY="{position + 1}">{channels}{data}</Pixels></Image>'
        )
    for position in range(2):
        file = tmp_path / f"a_{position}.ome.tif"
        write_with_ome_xml(file, position, images, planes[position].reshape(6, 5, 7))
        assert read_dimensions(file).names == (("DAPI", "GFP"), ("Hoechst", "RFP"))[position]
        assert holds_planes(file, {f"a_{position}.ome_z{z}": planes[position, z] for z in range(3)})
        assert read_pixel_size(file) == position + 1


def test_channels_in_files_of_their_own_have_their_names(tmp_path):
    channels = "".join(f'<Channel ID="Channel:0:{c}" Name="{name}"/>' for c, name in enumerate(("DAPI", "GFP")))
    data = "".join(
        f'<TiffData IFD="{z}" FirstZ="{z}" FirstC="{c}" FirstT="0" PlaneCount="1"><UUID>urn:uuid:{c}</UUID></TiffData>'
        for c in range(2)
        for z in range(3)
    )
    image = (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="5" SizeZ="3" '
        f'SizeC="2" SizeT="1">{channels}{data}</Pixels></Image>'
    )
    planes = make_pixels(3, 5, 7)
    write_with_ome_xml(tmp_path / "b.ome.tif", 1, image, planes)
    assert read_dimensions(tmp_path / "b.ome.tif") == Dimensions("ZYX", (3, 5, 7), ())
    assert holds_planes(tmp_path / "b.ome.tif", {f"b.ome_z{z}": planes[z] for z in range(3)})


def write_micromanager(file, planes, first, positions):
    """A file of some positions (P, C, H, W) uint16, from `first` on, of a recording of Micro-Manager's."""
    count, channels, height, width = planes.shape
    summary = {"MicroManagerVersion": "2", "Frames": 1, "Slices": 1, "Channels": channels, "Positions": positions}
    text = json.dumps(summary).encode()
    start = 40 + len(text)
    step = 162 + planes[0, 0].nbytes  # of a directory of 13 tags and its plane
    end = start + step * count * channels
    content = b"II*\0" + struct.pack("<9I", start, 54773648, end, 483765892, 0, 99384722, 0, 2355492, len(text)) + text
    index = []
    for position, channel in np.ndindex(count, channels):
        plane = planes[position, channel]
        begin = len(content)
        index.append((channel, 0, 0, first + position, begin))
        tags = {254: 0, 256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: begin + 162, 274: 1, 277: 1, 278: height}
        tags |= {279: plane.nbytes, 284: 1}
        content += struct.pack("<H", 13) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
        content += struct.pack("<HHII", 51123, 2, len(text), 40)
        content += struct.pack("<I", begin + step if begin + step < end else 0) + plane.astype("<u2").tobytes()
    file.write_bytes(content + struct.pack("<2I", 3453623, len(index)) + np.array(index, "<u4").tobytes())


def test_a_file_of_micromanager_does_not_hold_the_positions_of_the_files_beside_it(tmp_path):
    pixels = make_pixels(2, 2, 5, 7)
    for position in range(2):
        write_micromanager(tmp_path / f"x_MMStack_Pos{position}.ome.tif", pixels[position, None], position, 2)
    for position in range(2):
        file = tmp_path / f"x_MMStack_Pos{position}.ome.tif"
        assert holds_planes(file, {f"x_MMStack_Pos{position}.ome": pixels[position]})


def test_positions_in_one_file_of_micromanager_are_images_not_planes_along_z(tmp_path):
    pixels = make_pixels(3, 2, 5, 7)
    write_micromanager(tmp_path / "x_MMStack.ome.tif", pixels, 0, 4)  # the recording was stopped before the last
    expected = {f"x_MMStack.ome_s{position}": pixels[position] for position in range(3)}
    assert holds_planes(tmp_path / "x_MMStack.ome.tif", expected)
    assert list(read_planes(tmp_path / "x_MMStack.ome.tif", "max")) == list(expected)
    write_micromanager(tmp_path / "x_MMStack.ome.tif", pixels[:, :1], 0, 4)
    assert holds_planes(tmp_path / "x_MMStack.ome.tif", {name: planes[0] for name, planes in expected.items()})


def write_ndtiff(folder, recording):
    """A recording of Micro-Manager's newer format: files of planes (C, H, W), and one index of all."""
    index = b""
    for number, planes in enumerate(recording):
        file = folder / f"x_NDTiffStack_{number}.tif"
        write_micromanager(file, planes[None], 0, 1)
        with tifffile.TiffFile(file) as tiff:
            offsets = [page.dataoffsets[0] for page in tiff.pages]
        content = bytearray(file.read_bytes())
        content[8:16] = struct.pack("<2I", 483729, 2)
        file.write_bytes(content)
        for channel, offset in enumerate(offsets):
            axes = json.dumps({"time": number, "channel": channel}).encode()
            name = file.name.encode()
            index += struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name
            index += struct.pack("<IiiiiIii", offset, planes.shape[2], planes.shape[1], 1, 0, 0, 0, 0)
    (folder / "NDTiff.index").write_bytes(index)


def test_a_recording_of_ndtiff_is_read_where_it_is_one_file_and_refused_in_several(tmp_path):
    pixels = make_pixels(2, 2, 5, 7)
    write_ndtiff(tmp_path, pixels[:1])
    file = tmp_path / "x_NDTiffStack_0.tif"
    assert holds_planes(file, {"x_NDTiffStack_0": pixels[0]})
    write_ndtiff(tmp_path, pixels)
    (sample,) = expand_planes([only(file)], None)
    with pytest.raises(UserError, match=r"x_NDTiffStack_0\.tif: it is a part of a recording in several files"):
        read_shape(sample.image)


def test_labels_of_slices_name_no_channel(tmp_path):
    labels = [f"c:{number}/2 - cells.lif - Series001" for number in (1, 2)]
    metadata = {"axes": "CYX", "Labels": labels}
    tifffile.imwrite(tmp_path / "a.tif", make_pixels(2, 5, 7), imagej=True, metadata=metadata)
    assert read_dimensions(tmp_path / "a.tif").names == ("channel 1", "channel 2")


def test_channels_of_qptiff_are_channels(tmp_path):
    pixels = make_pixels(4, 32, 32)
    with tifffile.TiffWriter(tmp_path / "a.qptiff", bigtiff=True) as tiff:
        for plane in pixels:
            tiff.write(plane, photometric="minisblack", metadata=None, software="PerkinElmer-QPI", tile=(16, 16))
    (image,) = read_planes(tmp_path / "a.qptiff").values()
    np.testing.assert_array_equal(image.planes, pixels)
