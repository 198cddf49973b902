"""Lists of images that threads read ahead, and what becomes of each image."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from data.files import UserError
from data.runs import ImageWork, RunLog, collect_work, read_ahead
from data.sources import Sample


def make_samples(names):
    return [Sample(name, Path(f"{name}.png")) for name in names]


def done(result):
    """A future with this result, or this error."""
    future = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def test_a_list_is_read_while_the_one_before_is_worked_on():
    read = []
    with ThreadPoolExecutor(1) as pool:
        lists = read_ahead(make_samples("abcde"), lambda sample: read.append(sample.id), pool, 3)
        assert next(lists) == []
        names = []
        for chunk in lists:
            names.append([sample.id for sample, _ in chunk])
            for _, reading in chunk:
                reading.result()
            assert set("".join(map("".join, names))) <= set(read)
    assert names == [["a"], ["b", "c", "d"], ["e"], []]
    assert read == list("abcde")


def test_what_was_read_is_sorted_and_what_cannot_be_read_is_skipped(capsys):
    small, large, broken, gone = make_samples(["small", "large", "broken", "gone"])
    work = ImageWork(small, {}, None, None, None)
    readings = [work, None, UserError("broken.png: no image"), FileNotFoundError("gone.png")]
    log = RunLog()
    chunk = [(sample, done(reading)) for sample, reading in zip([small, large, broken, gone], readings, strict=True)]
    assert collect_work(chunk, log) == ([work], [large])
    assert log.answer() == ([], {"broken": "broken.png: no image", "gone": "gone.png"})
    assert "skipped broken: broken.png: no image" in capsys.readouterr().err
    with pytest.raises(AttributeError):  # a fault of our own
        collect_work([(small, done(AttributeError("ours")))], log)


def test_the_channel_that_was_chosen_is_said_once(capsys):
    log = RunLog()
    log.wait_for("b", done("DAPI"))
    log.wait_for("a", done(""))
    log.wait_for("c", done(UserError("its channels both look like nuclei")))
    assert log.answer() == (["a", "b"], {"c": "its channels both look like nuclei"})
    assert capsys.readouterr().out == "b: DAPI was chosen; --channel or --background chooses another\n"
