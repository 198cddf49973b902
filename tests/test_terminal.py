"""What libraries write about themselves while they are imported."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from data.files import UserError
from data.terminal import STDERR, import_quietly


def test_remarks_are_held_back_and_what_comes_later_is_not(capfd):
    with import_quietly():
        os.write(STDERR, b"no GPU\n")
    os.write(STDERR, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_a_failed_import_gives_them_out(capfd):
    with pytest.raises(UserError), import_quietly():
        os.write(STDERR, b"a library is missing\n")
        raise UserError("stop")
    assert capfd.readouterr().err == "a library is missing\n"


def test_a_mistake_is_the_only_line_on_the_terminal(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "Predict_masks.py", "--data", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r".*none: no such file or folder.*\n", done.stderr)
