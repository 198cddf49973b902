"""Files of microscopes: each scene and plane by its own pixels, names and pixel size; what a missing package means.

The .czi are written by pylibCZIrw, the slides by tifffile. Nothing writes .nd2 and .lif: small ones are made here by
the description of their formats, and are read by the real packages.
"""

import itertools
import struct
import sys

import numpy as np
import openslide
import pytest
import tifffile
from conftest import only, save_image, write_archive
from pylibCZIrw import czi

from data.channels import narrow_channels
from data.files import UserError
from data.images import SceneRows, open_rows, read_image, read_shape
from data.pixel_size import read_pixel_size
from data.sources import find_samples
from data.stacks import expand_planes, read_sample_image

SCENES, TIMES, DEPTHS, CHANNELS = 2, 2, 3, 2
PIXELS = np.arange(SCENES * TIMES * DEPTHS * CHANNELS * 35, dtype=np.uint16).reshape(2, 2, 3, 2, 5, 7)
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
NAMES = ("Hoechst 33342", "GFP")
PIXEL_SIZE = 0.25  # micrometres
ENDINGS = (".czi", ".nd2", ".lif")
each_format = pytest.mark.parametrize("ending", ENDINGS)


def write_czi(file, pixels, names=NAMES):
    """Writes pixels (S, T, Z, C, H, W), or (H, W, 3) RGB, compressed as current microscopes do."""
    with czi.create_czi(str(file), exist_ok=True, compression_options="zstd1:ExplicitLevel=2") as document:
        if pixels.shape[-1] == 3:
            document.write(np.ascontiguousarray(pixels[..., ::-1]))
        else:
            for s, t, z, c in np.ndindex(pixels.shape[:4]):
                plane = {"T": t, "Z": z, "C": c}
                document.write(pixels[s, t, z, c, ..., None], (100 * s, 30 * s), plane, scene=s)
        side = PIXEL_SIZE * 1e-6
        document.write_metadata(channel_names=dict(enumerate(names)), scale_x=side, scale_y=side)
    return file


def make_nd2_xml(name, value):
    """An element of the metadata of a version 2 file."""
    if isinstance(value, dict):
        return f"<{name}>{''.join(make_nd2_xml(*item) for item in value.items())}</{name}>"
    types = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}
    return f'<{name} runtype="{types[type(value)]}" value="{value}"/>'


def write_nd2(file, pixels, names=NAMES, dye=None):
    """As `write_czi`: chunks with their names, and a map of them at the end."""
    dye = {"m_uiColor": 0} if dye is None else dye
    samples = 3 if pixels.shape[-1] == 3 else 1
    if samples == 3:
        pixels = pixels[None, None, None, None]
    s, t, z, c, height, width = pixels.shape[:6]
    bits = 8 * pixels.itemsize
    sizes = {"uiWidth": width, "uiHeight": height, "uiWidthBytes": width * c * samples * pixels.itemsize}
    components = {"uiComp": c * samples, "uiBpcInMemory": bits, "uiBpcSignificant": bits, "uiSequenceCount": s * t * z}
    plane = {"uiCompCount": samples, "pFluorescentProbe": dye}
    planes = {f"a{number}": plane | {"sDescription": names[number]} for number in range(c)}
    metadata = {"bCalibrated": True, "dCalibration": PIXEL_SIZE, "sPicturePlanes": {"uiCount": c, "sPlaneNew": planes}}
    points = {f"i{number:010}": {"dPosX": float(number), "dPosY": 0.0} for number in range(s)}
    depths = {"eType": 4, "uLoopPars": {"uiCount": z, "dZStep": 1.0}}
    positions = {"eType": 2, "uLoopPars": {"Points": points}, "ppNextLevelEx": {"i0000000000": depths}}
    period = {"uiCount": t, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
    experiment = {"eType": 1, "uLoopPars": period, "ppNextLevelEx": {"i0000000000": positions}}
    chunks = {
        "ImageAttributes!": make_nd2_xml("variant", sizes | components).encode(),
        "ImageMetadataSeq|0!": make_nd2_xml("variant", metadata).encode(),
        "ImageMetadata!": make_nd2_xml("variant", experiment).encode(),
    }
    frames = np.moveaxis(pixels, (1, 3), (0, 5 if samples == 1 else 3))  # (T, S, Z, H, W, C)
    for number, index in enumerate(np.ndindex(frames.shape[:3])):
        chunks[f"ImageDataSeq|{number}!"] = bytes(8) + frames[index].tobytes()
    content = struct.pack("<IIQ32s64s", 0x0ABECEDA, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver2.1")
    entries = b""
    for name, chunk in chunks.items():
        entries += name.encode() + struct.pack("<QQ", len(content), len(chunk))
        content += struct.pack("<IIQ4072s", 0x0ABECEDA, 4072, len(chunk), name.encode()) + chunk
    entries += struct.pack("<32sQ", b"ND2 CHUNK MAP SIGNATURE 0000001!", len(content))
    header = struct.pack("<IIQ32s", 0x0ABECEDA, 32, len(entries), b"ND2 FILEMAP SIGNATURE NAME 0001!")
    file.write_bytes(content + header + entries)
    return file


def make_lif_image(number, axes, channels, itemsize, size):
    """The XML of an image: axes as (id, length, length in metres, bytes), channels as (tag, name, bytes)."""
    dimensions = [
        f'<DimensionDescription DimID="{axis}" NumberOfElements="{count}" Origin="0" Length="{length}" Unit="m" '
        f'BytesInc="{step}" BitInc="0"/>'
        for axis, count, length, step in axes
    ]
    described = [
        f'<ChannelDescription DataType="0" ChannelTag="{tag}" Resolution="{8 * itemsize}" NameOfMeasuredQuantity="" '
        f'Min="0" Max="1" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="{step}" BitInc="0"><ChannelProperty>'
        f"<Key>DyeName</Key><Value>{name}</Value></ChannelProperty></ChannelDescription>"
        for tag, name, step in channels
    ]
    return (
        f'<Element Name="image {number}"><Data><Image><ImageDescription><Channels>{"".join(described)}</Channels>'
        f"<Dimensions>{''.join(dimensions)}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{size}" MemoryBlockID="block {number}"/></Element>'
    )


def write_lif(file, pixels, names=NAMES, axis_of_time=4):
    """As `write_czi`; rows of colours are padded to 4 bytes, as Leica's are, and begin with blue."""
    images = []
    if pixels.shape[-1] == 3:
        height, width = pixels.shape[:2]
        padded = np.zeros((height, 24), np.uint8)
        padded[:, : 3 * width] = pixels[..., ::-1].reshape(height, -1)
        axes = [(1, width, PIXEL_SIZE * 1e-6 * (width - 1), 3), (2, height, PIXEL_SIZE * 1e-6 * (height - 1), 24)]
        channels = [(tag, "", byte) for byte, tag in enumerate((3, 2, 1))]
        images.append((padded, axes, channels, 1))
    else:
        for scene in pixels:
            stored = np.ascontiguousarray(np.moveaxis(scene, 2, 1))  # (T, C, Z, H, W)
            steps = dict(zip("TCZYX", stored.strides, strict=True))
            sizes = dict(zip("TCZYX", stored.shape, strict=True))
            lengths = {axis: PIXEL_SIZE * 1e-6 * (size - 1) for axis, size in sizes.items()}
            ids = {"X": 1, "Y": 2, "Z": 3, "T": axis_of_time}
            axes = [(number, sizes[axis], lengths[axis], steps[axis]) for axis, number in ids.items()]
            channels = [(0, name, number * steps["C"]) for number, name in enumerate(names)]
            images.append((stored, axes, channels, stored.itemsize))
    elements = [
        make_lif_image(number, axes, channels, itemsize, stored.nbytes)
        for number, (stored, axes, channels, itemsize) in enumerate(images)
    ]
    xml = f'<LMSDataContainerHeader Version="2"><Element Name="a"><Children>{"".join(elements)}</Children></Element>'
    header = (xml + "</LMSDataContainerHeader>").encode("utf-16-le")
    content = struct.pack("<IIBI", 0x70, len(header) + 5, 0x2A, len(header) // 2) + header
    for number, (stored, *_) in enumerate(images):
        name = f"block {number}".encode("utf-16-le")
        content += struct.pack("<IIBQBI", 0x70, 0, 0x2A, stored.nbytes, 0x2A, len(name) // 2) + name + stored.tobytes()
    file.write_bytes(content)
    return file


def write(file, pixels, **options):
    """Writes pixels (S, T, Z, C, H, W), or (H, W, 3), in the format of the file's ending."""
    return {".czi": write_czi, ".nd2": write_nd2, ".lif": write_lif}[file.suffix](file, pixels, **options)


def write_slide(file, pixels):
    """Writes a pyramid as Aperio's scanners do, which openslide reads whatever the ending."""
    with tifffile.TiffWriter(file) as tiff:
        for step in (1, 4):
            description = f"Aperio Image Library\r\n{step}|MPP = {PIXEL_SIZE}"
            options = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "description": description}
            options |= {"compression": "jpeg", "compressionargs": {"level": 100}}
            tiff.write(np.ascontiguousarray(pixels[::step, ::step]), **options)
    return file


# Scenes and planes.


@each_format
def test_each_scene_and_plane_has_its_own_pixels_and_names(tmp_path, ending, capsys):
    file = write(tmp_path / f"a{ending}", PIXELS)
    samples = expand_planes(find_samples(tmp_path), None)
    expected = {f"a_s{s}_t{t}_z{z}": PIXELS[s, t, z] for s, t, z in np.ndindex(SCENES, TIMES, DEPTHS)}
    assert [sample.id for sample in samples] == list(expected)
    assert "1 stack: 12 scenes and planes" in capsys.readouterr().out
    for sample in samples:
        image = read_sample_image(sample)
        assert image.names == NAMES
        np.testing.assert_array_equal(image.planes, expected[sample.id], strict=True)
        assert read_pixel_size(file, scene=sample.scene) == pytest.approx(PIXEL_SIZE)
        assert read_shape(file, scene=sample.scene) == (5, 7)
    assert narrow_channels(image, None).names == NAMES[:1]
    with pytest.raises(UserError, match=rf"a{ending}: it holds 2 images"):
        read_image(file)


@each_format
def test_depths_are_projected_and_a_lone_scene_keeps_the_id(tmp_path, ending):
    write(tmp_path / f"a{ending}", PIXELS[:1, :1])
    (sample,) = expand_planes(find_samples(tmp_path), "max")
    assert (sample.id, sample.scene) == ("a", None)
    np.testing.assert_array_equal(read_sample_image(sample, "max").planes, PIXELS[0, 0].max(axis=0))
    with pytest.raises(UserError, match=rf"a{ending}: it holds planes .*3 along Z"):
        read_image(sample.image)


@each_format
@pytest.mark.parametrize("shown", ["gray", "colours"])
def test_one_plane_is_an_image_like_any_other(tmp_path, ending, shown):
    pixels = COLOURS if shown == "colours" else PIXELS[0, 0, 0, 0]
    file = write(tmp_path / f"a{ending}", COLOURS if shown == "colours" else PIXELS[:1, :1, :1, :1], names=NAMES[:1])
    (sample,) = expand_planes(find_samples(file), None)
    assert (sample.id, sample.plane) == ("a", None)
    np.testing.assert_array_equal(read_image(file), pixels, strict=True)
    with open_rows(file) as rows:
        np.testing.assert_array_equal(rows[1:4], pixels[1:4])
    assert read_shape(file) == (5, 7)
    assert read_pixel_size(file) == pytest.approx(PIXEL_SIZE)


@each_format
def test_names_that_tell_nothing_apart_are_numbers(tmp_path, ending):
    file = write(tmp_path / f"a{ending}", PIXELS[:1, :1, :1], names=("Cam1", "Cam1"))
    (sample,) = expand_planes([only(file)], None)
    assert read_sample_image(sample).names == ("channel 1", "channel 2")


def test_an_nd2_is_read_though_the_package_fails_at_its_metadata(tmp_path):
    file = write_nd2(tmp_path / "a.nd2", PIXELS[:1, :1, :1], dye={})
    (sample,) = expand_planes([only(file)], None)
    image = read_sample_image(sample)
    assert image.names == ("channel 1", "channel 2") and read_pixel_size(file) is None
    np.testing.assert_array_equal(image.planes, PIXELS[0, 0, 0])


def test_dyes_of_a_czi_go_before_the_names_of_its_tracks(tmp_path, monkeypatch):
    file = write(tmp_path / "a.czi", PIXELS[:1, :1, :1], names=("T1", "T2"))
    document = czi.CziReader.raw_metadata.fget
    for number, dye in enumerate(("GFP", "DAPI"), start=1):
        previous = document
        end = f'Name="T{number}">'

        def document(reader, previous=previous, end=end, dye=dye):
            return previous(reader).replace(end, f"{end}<Fluor>{dye}</Fluor>")

    monkeypatch.setattr(czi.CziReader, "raw_metadata", property(document))
    (sample,) = expand_planes([only(file)], None)
    image = read_sample_image(sample)
    assert image.names == ("GFP", "DAPI")
    np.testing.assert_array_equal(narrow_channels(image, "dapi"), PIXELS[0, 0, 0, 1])


def test_axes_that_are_not_known_are_named(tmp_path):
    file = write_lif(tmp_path / "a.lif", PIXELS[:1], axis_of_time=9)  # wavelengths
    (sample,) = expand_planes([only(file)], None)
    with pytest.raises(UserError, match=r"a\.lif: its axes Λ are not known"):
        read_sample_image(sample)


def test_tiles_of_a_lif_are_scenes(tmp_path):
    file = write_lif(tmp_path / "a.lif", PIXELS, axis_of_time=10)
    samples = expand_planes([only(file)], "max")
    assert [sample.id for sample in samples] == ["a_s0", "a_s1", "a_s2", "a_s3"]
    for sample, tile in zip(samples, itertools.chain(*PIXELS), strict=True):
        np.testing.assert_array_equal(read_sample_image(sample, "max").planes, tile.max(axis=0))


# Slides and levels.


def test_rows_and_levels_of_a_czi(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (530, 601, 3), np.uint8)
    file = write_czi(tmp_path / "a.czi", pixels)
    with open_rows(file) as rows:
        assert isinstance(rows, SceneRows) and rows.shape == pixels.shape and rows.dtype == np.uint8
        for start, stop in ((0, 1), (17, 300), (528, 600)):
            np.testing.assert_array_equal(rows[start:stop], pixels[start:stop])
    with open_rows(file, 1) as rows:
        assert rows.shape == (265, 300, 3) and read_shape(file, 1) == (265, 300)
        np.testing.assert_array_equal(rows[100:200], pixels[200:400:2, :600:2])
    assert read_pixel_size(file, 1) == pytest.approx(2 * PIXEL_SIZE, rel=0.01)  # 601 pixels became 300
    with pytest.raises(UserError, match=r"a\.czi: no level 2; its levels are 0 \(530×601\), 1 \(265×300\)"):
        read_shape(file, 2)


def test_channels_of_a_czi_have_levels_too(tmp_path):
    planes = np.random.default_rng(0).integers(0, 999, (1, 1, 1, 2, 520, 514), np.uint16)
    (sample,) = expand_planes([only(write_czi(tmp_path / "a.czi", planes))], None)
    np.testing.assert_array_equal(read_sample_image(sample, None, 1).planes, planes[0, 0, 0, :, ::2, ::2])


def test_a_slide_is_read_by_regions(tmp_path, monkeypatch):
    smooth = np.add.outer(np.arange(256), np.arange(512)) // 3
    pixels = np.dstack([smooth, 255 - smooth, smooth // 2]).astype(np.uint8)
    file = write_slide(tmp_path / "a.svslide", pixels)
    read = []
    read_region = openslide.OpenSlide.read_region

    def spy(slide, position, level, size):
        read.append(size)
        return read_region(slide, position, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", spy)
    assert read_shape(file) == (256, 512) and read_shape(file, 1) == (64, 128)
    for level, step in ((0, 1), (1, 4)):
        with open_rows(only(file).image, level) as rows:
            expected = pixels[::step, ::step]
            assert rows.shape == expected.shape and rows.dtype == np.uint8
            read.clear()
            assert np.abs(rows[40:60].astype(int) - expected[40:60]).max() <= 5  # JPEG
            assert read == [(expected.shape[1], 20)]
        assert read_pixel_size(file, level) == pytest.approx(step * PIXEL_SIZE)


def test_of_a_slide_only_what_was_scanned_is_read(tmp_path, monkeypatch):
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[64:192, 128:] = 200
    file = write_slide(tmp_path / "a.mrxs", pixels)
    with openslide.OpenSlide(file) as slide:
        bounds = {"bounds-x": "128", "bounds-y": "64", "bounds-width": "128", "bounds-height": "128"}
        properties = dict(slide.properties) | {f"openslide.{name}": value for name, value in bounds.items()}
    monkeypatch.setattr(openslide.OpenSlide, "properties", properties)
    for level, size in ((0, 128), (1, 32)):
        with open_rows(file, level) as rows:
            assert rows.shape == (size, size, 3) and rows[:].min() > 190


# What cannot be read.


def test_without_the_package_the_other_images_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nd2", None)  # as if it were not installed
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "images" / name, COLOURS)
    for name in ("c.nd2", "d.ND2"):
        (tmp_path / "images" / name).touch()
    assert [sample.id for sample in find_samples(tmp_path / "images")] == ["a", "b"]
    assert capsys.readouterr().err == "left out: 2 files that need pip install nd2 (.nd2)\n"
    with pytest.raises(UserError, match=r"c\.nd2: a package that reads it is missing; pip install nd2$"):
        find_samples(tmp_path / "images/c.nd2")


def test_in_an_archive_they_are_left_out(tmp_path, capsys):
    entries = [write_nd2(tmp_path / "a.nd2", COLOURS), save_image(tmp_path / "b.png", COLOURS)]
    archive = write_archive(tmp_path / "b.zip", [(file.name, file.read_bytes()) for file in entries])
    assert [sample.id for sample in find_samples(archive)] == ["b"]
    assert capsys.readouterr().err == "left out: 1 file that is not read in an archive (.nd2)\n"


@pytest.mark.parametrize("ending", [*ENDINGS, ".svslide"])
def test_damaged_files_are_named(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    if ending == ".svslide":
        content = write_slide(file, np.zeros((64, 64, 3), np.uint8)).read_bytes()
    else:
        content = write(file, PIXELS).read_bytes()
    for length in (0, 50, len(content) // 2, len(content) - 30):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=rf"a{ending}"):
            for sample in expand_planes([only(file)], None):
                read_sample_image(sample)
    file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        read_image(file)
    assert error.value.filename == str(file)


def test_a_colour_camera_beside_a_gray_one_is_a_channel(tmp_path):
    gray = np.arange(61 * 75, dtype=np.uint16).reshape(61, 75).astype(np.uint8)
    colours = np.dstack([gray // 4, gray // 2, gray // 3])
    with czi.create_czi(str(tmp_path / "a.czi")) as document:
        document.write(data=colours[..., ::-1].copy(), plane={"C": 0})
        document.write(data=gray[..., None], plane={"C": 1})
    (sample,) = expand_planes([only(tmp_path / "a.czi")], None)
    image = read_sample_image(sample)
    np.testing.assert_array_equal(image.planes, [gray // 2, gray])
