"""The record and the history of a training."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import TINY

from data import records
from data.files import UserError

RECORD = {"training_ids": ["a", "b"], "validation_ids": ["c"]}


def test_the_record_is_found_beside_the_weights(tmp_path):
    assert records.find_record(tmp_path / "unet.keras") == {}
    records.save_record(tmp_path, RECORD)
    assert records.find_record(tmp_path / "unet.keras") == RECORD


def test_a_record_with_ids_on_both_sides_is_refused(tmp_path):
    file = tmp_path / "training.json"
    file.write_text(json.dumps({"training_ids": ["a", "b"], "validation_ids": ["c"]}))
    assert records.read_training_record(file)["validation_ids"] == ["c"]
    file.write_text(json.dumps({"training_ids": ["a", "b"], "validation_ids": ["b", "c"]}))
    with pytest.raises(UserError, match=r"training\.json: 1 ids .* first b"):
        records.read_training_record(file)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training_ids": 3}', "no json"])
def test_what_is_no_record_is_named(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(UserError, match=r"training\.json: expected"):
        records.read_training_record(tmp_path / "training.json")


def test_the_fingerprint_of_the_data_is_of_ids_images_and_labels():
    kinds = {"a": "tissue", "b": "cells"}
    images = [np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)]
    labels = [np.zeros((2, 2), np.int32), np.ones((2, 2), np.int32)]

    def fingerprint(kinds=kinds, images=images, labels=labels):
        return records.describe_run(TINY, "jax", kinds, images, labels, (["a"], []))["data_sha256"]

    assert fingerprint() == fingerprint()
    other_ids = {"a": "tissue", "c": "cells"}
    others = [fingerprint(kinds=other_ids), fingerprint(images=images[::-1]), fingerprint(labels=labels[::-1])]
    assert len({fingerprint(), *others}) == 4


def test_weights_may_start_a_training_whose_validation_images_they_do_not_know(tmp_path):
    weights = str(tmp_path / "unet.keras")
    rng = np.random.default_rng(0)
    first, second, third = rng.integers(0, 256, (3, 4, 4), np.uint8)
    records.check_validation_is_unseen(weights, {"a": first})  # nothing is known of these weights
    labels = [np.zeros((4, 4), np.int32)] * 2
    record = records.describe_run(TINY, "jax", {"a": "cells", "b": "cells"}, [first, second], labels, (["a"], ["b"]))
    records.save_record(tmp_path, record)
    records.check_validation_is_unseen(weights, {"a": second, "c": third})  # another image may have a known name
    colours = np.stack([first] * 3, axis=-1)
    with pytest.raises(UserError, match="it was trained on 1 of the images to validate on, first renamed"):
        records.check_validation_is_unseen(weights, {"a": second, "renamed": colours})


def test_weights_know_the_images_of_the_weights_that_they_start_from(tmp_path):
    images = {name: np.full((2, 2), value, np.uint8) for name, value in (("a", 1), ("b", 2), ("c", 3))}
    labels = [np.zeros((2, 2), np.int32)]
    options = TINY
    for name in "ab":
        weights = tmp_path / name / "unet.keras"
        weights.parent.mkdir()
        weights.write_bytes(b"weights")
        record = records.describe_run(options, "jax", {name: "cells"}, [images[name]], labels, ([name], []))
        records.save_record(weights.parent, record)
        options = dataclasses.replace(TINY, from_weights=str(weights))
    assert len(record["seen_images"]) == 2
    records.check_validation_is_unseen(str(weights), {"c": images["c"]})
    with pytest.raises(UserError, match="first a"):
        records.check_validation_is_unseen(str(weights), images)


def test_a_finished_training_is_replaced_only_where_that_is_said_and_kept(tmp_path):
    records.back_up_training(tmp_path, overwrite=False)  # an empty folder
    records.save_record(tmp_path, RECORD)
    (tmp_path / "unet.keras").write_text("weights")
    with pytest.raises(UserError, match=r"holds a finished training.*--overwrite"):
        records.back_up_training(tmp_path, overwrite=False)
    records.back_up_training(tmp_path, overwrite=True)
    names = ["training.json", "training.json.before", "unet.keras", "unet.keras.before"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert (tmp_path / "unet.keras.before").read_text() == "weights"
    (tmp_path / "last.weights.h5").write_text("last epoch")
    with pytest.raises(UserError, match=r"holds an interrupted training; continue it with --resume"):
        records.back_up_training(tmp_path, overwrite=False)
    records.back_up_training(tmp_path, overwrite=True)
    assert (tmp_path / "last.weights.h5.before").read_text() == "last epoch"


def test_a_folder_can_be_resumed_by_its_own_run_until_the_end(tmp_path):
    assert not records.can_resume(tmp_path, "run")
    records.save_record(tmp_path, RECORD | {"run_id": "run"})
    assert not records.can_resume(tmp_path, "run")
    (tmp_path / "last.weights.h5").touch()
    assert records.can_resume(tmp_path, "run")
    assert not records.can_resume(tmp_path, "another")
    (tmp_path / "training.json").unlink()
    assert not records.can_resume(tmp_path, "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_sha256": "other"}, "other data"),
        ({"options": {"seed": 2}}, "other options"),
        ({"from_weights_sha256": "other"}, "other weights"),
        ({"validation_ids": ["d"]}, "other data"),
    ],
)
def test_a_training_continues_with_the_same_data_options_and_weights(tmp_path, changed, message):
    record = RECORD | {"data_sha256": "data", "options": {"seed": 1}}
    records.save_record(tmp_path, record | {"kept": {"epoch": 1}})
    assert records.read_interrupted(tmp_path, record)["kept"] == {"epoch": 1}
    with pytest.raises(UserError, match=message):
        records.read_interrupted(tmp_path, record | changed)


def test_the_history_is_read_as_it_was_written(tmp_path):
    history = [{"epoch": epoch, "seconds": 1.5, "loss": 1 / epoch} for epoch in (1, 2)]
    records.save_history(history, tmp_path / "history.csv")
    read = records.read_history(tmp_path / "history.csv")
    assert read == history
    assert isinstance(read[0]["epoch"], int)
