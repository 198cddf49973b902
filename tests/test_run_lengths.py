"""Run lengths by hand and there and back, and Kaggle's solution table."""

import numpy as np
import pytest

from data.files import UserError
from data.run_lengths import decode_run_lengths, encode_run_lengths, read_solution

# Run lengths.


def encode_slowly(mask):
    """Pixel by pixel, as the competition describes it."""
    pairs = []
    before = False
    for number, pixel in enumerate(mask.T.reshape(-1), start=1):
        if pixel and not before:
            pairs.append([number, 0])
        if pixel:
            pairs[-1][1] += 1
        before = pixel
    return " ".join(f"{start} {length}" for start, length in pairs)


BY_HAND = {
    "": [[0, 0, 0], [0, 0, 0]],
    "1 6": [[1, 1, 1], [1, 1, 1]],
    "1 1": [[1, 0, 0], [0, 0, 0]],
    "6 1": [[0, 0, 0], [0, 0, 1]],
    "2 1 4 1 6 1": [[0, 0, 0], [1, 1, 1]],
    "2 2": [[0, 1, 0], [1, 0, 0]],  # from the foot of one column to the head of the next
}


@pytest.mark.parametrize("text", BY_HAND)
def test_run_lengths_by_hand(text):
    mask = np.array(BY_HAND[text], bool)
    assert encode_run_lengths(mask) == ([text] if text else [])
    decoded = decode_run_lengths(text, (2, 3))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_run_lengths_there_and_back():
    rng = np.random.default_rng(1)
    for _ in range(200):
        labels = rng.integers(0, rng.integers(2, 6), rng.integers(1, 12, 2))
        texts = encode_run_lengths(labels)
        assert len(texts) == labels.max()
        for number, text in enumerate(texts, start=1):
            assert text == encode_slowly(labels == number)
            np.testing.assert_array_equal(decode_run_lengths(text, labels.shape), labels == number)


@pytest.mark.parametrize("text", ["1", "1 2 3", "a b", "1.5 2", "0 1", "1 0", "-1 2", "6 2", "7 1", "1 3 2 1"])
def test_wrong_run_lengths_are_refused(text):
    with pytest.raises(UserError, match="run"):
        decode_run_lengths(text, (2, 3))


# The solution table.

HEADER = "ImageId,EncodedPixels,Height,Width,Usage\n"


def write_table(tmp_path, rows, header=HEADER):
    (tmp_path / "solution.csv").write_text(header + rows)
    return tmp_path / "solution.csv"


def test_solution_numbers_nuclei_and_leaves_out_ignored_rows(tmp_path):
    rows = "a,1 2,2,3,Private\nb,1 4,2,2,Ignored\na,5 2,2,3,Public\nc,2 1,1,2,Private\n"
    labels = read_solution(write_table(tmp_path, rows))
    assert sorted(labels) == ["a", "c"]
    assert labels["a"].dtype == np.int32
    assert labels["a"].tolist() == [[1, 0, 2], [1, 0, 2]]
    assert labels["c"].tolist() == [[0, 1]]


def test_a_pixel_of_two_rows_belongs_to_the_later_one(tmp_path):
    rows = "a,1 2,1,3,Public\na,2 2,1,3,Public\n"
    assert read_solution(write_table(tmp_path, rows))["a"].tolist() == [[1, 2, 2]]


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
    with pytest.raises(UserError, match=r"solution\.csv, line 3: "):
        read_solution(file)


def test_a_table_as_windows_writes_it(tmp_path):
    file = tmp_path / "solution.csv"
    rows = (HEADER + "a,1 2,2,3,Public\n").replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read_solution(file)["a"].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_row_that_ends_before_its_runs(tmp_path):
    file = write_table(tmp_path, "a,2,3\n", "ImageId,Height,Width,EncodedPixels\n")
    with pytest.raises(UserError, match=r"solution\.csv, line 2: "):
        read_solution(file)


def test_a_missing_column_is_named(tmp_path):
    file = write_table(tmp_path, "a,1 2\n", "ImageId,EncodedPixels\n")
    with pytest.raises(UserError, match=r"solution\.csv: no column Height, Width"):
        read_solution(file)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_solution(tmp_path / "nowhere.csv")
    assert error.value.filename == str(tmp_path / "nowhere.csv")
