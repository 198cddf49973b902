"""The record and the history of a training."""

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


@pytest.mark.parametrize("validation_ids", [["c"], ["d"]])
def test_weights_may_start_a_training_whose_validation_images_they_do_not_know(tmp_path, validation_ids):
    weights = str(tmp_path / "unet.keras")
    records.check_validation_is_unseen(weights, ["a"])  # nothing is known of these weights
    records.save_record(tmp_path, RECORD)
    records.check_validation_is_unseen(weights, validation_ids)
    with pytest.raises(UserError, match="it was trained on 1 of the images to validate on, first b"):
        records.check_validation_is_unseen(weights, [*validation_ids, "b"])


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
    with pytest.raises(UserError, match="no interrupted training"):
        records.read_interrupted(tmp_path, record)
    (tmp_path / "last.weights.h5").touch()
    assert records.read_interrupted(tmp_path, record)["kept"] == {"epoch": 1}
    with pytest.raises(UserError, match=message):
        records.read_interrupted(tmp_path, record | changed)


def test_the_history_is_read_as_it_was_written(tmp_path):
    history = [{"epoch": epoch, "seconds": 1.5, "loss": 1 / epoch} for epoch in (1, 2)]
    records.save_history(history, tmp_path / "history.csv")
    read = records.read_history(tmp_path / "history.csv")
    assert read == history
    assert isinstance(read[0]["epoch"], int)
