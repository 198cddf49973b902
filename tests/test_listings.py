"""Archives: which are refused, and what becomes of damaged ones."""

import errno
import zipfile

import numpy as np
import pytest
from conftest import IMAGE, KAGGLE, write_archive

from data.files import UserError
from data.sources import find_samples
from data.truth import read_sample

LINK = zipfile.ZipInfo("b/images/b.png")
LINK.external_attr = 0o120777 << 16
UNSAFE = {  # name -> entries and what the error says
    "absolute": ([("/etc/images/a.png", IMAGE)], "points outside"),
    "parent": ([("../images/a.png", IMAGE)], "points outside"),
    "parent within": ([("a/../../b/images/b.png", IMAGE)], "points outside"),
    "drive": ([("C:/a/images/a.png", IMAGE)], "points outside"),
    "backslash": ([("..\\..\\a.png", IMAGE)], "points outside"),
    "twice": ([*KAGGLE, KAGGLE[0]], "twice"),
    "case": ([*KAGGLE, ("A/images/A.png", IMAGE)], "two images have the id"),
    "link": ([*KAGGLE, (LINK, b"/etc/passwd")], "is a link"),
    "nothing": ([("readme.txt", b"")], "no images"),
}


@pytest.mark.parametrize("fault", UNSAFE)
def test_unsafe_archives_are_refused_and_nothing_is_unpacked(tmp_path, fault):
    entries, reason = UNSAFE[fault]
    file = write_archive(tmp_path / "a.zip", entries)
    with pytest.raises(UserError, match=rf"a\.zip.*{reason}"):
        find_samples(file)
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


def patch_entry(file, offset, value):
    """Changes bytes of the first entry, in its own header and in the directory of the archive."""
    content = bytearray(file.read_bytes())
    own_header = content.find(b"PK\3\4") + offset
    in_directory = content.find(b"PK\1\2") + offset + 2
    for start in (own_header, in_directory):
        content[start : start + len(value)] = value
    file.write_bytes(content)
    return file


def test_an_encrypted_entry_is_refused(tmp_path):
    file = patch_entry(write_archive(tmp_path / "a.zip", KAGGLE), 6, b"\1\0")  # flags
    with pytest.raises(UserError, match=r"a\.zip.*a/images/a\.png.*encrypted"):
        find_samples(file)


def test_an_entry_that_unpacks_to_gigabytes_is_refused(tmp_path):
    file = patch_entry(write_archive(tmp_path / "b.zip", KAGGLE), 22, b"\xff\xff\xff\xf0")  # size
    with pytest.raises(UserError, match=r"b\.zip.*a/images/a\.png.*too large"):
        find_samples(file)


def test_cut_archives_are_named(tmp_path):
    content = write_archive(tmp_path / "a.zip", KAGGLE).read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.zip").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a\.zip"):
            find_samples(tmp_path / "a.zip")


def test_changed_archives_are_read_or_named(tmp_path):
    content = write_archive(tmp_path / "a.zip", KAGGLE).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "a.zip").write_bytes(changed)
        try:
            for sample in find_samples(tmp_path / "a.zip"):
                if not sample.masks:
                    continue
                image, labels = read_sample(sample)
                assert image.shape[:2] == labels.shape
        except UserError as error:
            refused += 1
            assert "a.zip" in str(error)
        except OSError as error:  # the operating system goes to no place before the file
            assert error.errno == errno.EINVAL and "a.zip" in error.filename
    assert 0 < refused < 300


def test_an_archive_without_memory_is_not_called_damaged(tmp_path, monkeypatch):
    file = write_archive(tmp_path / "a.zip", KAGGLE)

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(zipfile.ZipFile, "infolist", fail)
    with pytest.raises(MemoryError):
        find_samples(file)
