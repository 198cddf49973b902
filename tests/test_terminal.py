"""The terminal: what libraries write while they are imported, help, and mistyped options."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from data.files import UserError
from data.options import predict_masks_parser
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


SCRIPTS = ("Preprocessed_data", "Model", "Train", "Predict_masks", "Evaluate_model", "Main")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_no_slow_library_and_ends_with_examples(script):
    code = (
        "import atexit, runpy, sys; sys.argv = ['a', '--help']; "
        "atexit.register(lambda: print(sorted({'numpy', 'keras', 'matplotlib'} & set(sys.modules)))); "
        f"runpy.run_path('{script}.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    *lines, modules = done.stdout.splitlines()
    assert (done.returncode, modules) == (0, "[]")
    examples = lines[lines.index("examples:") + 1 :]
    assert examples and all(line.startswith(f"    python {script}.py") for line in examples)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--daat", "a"), "no option --daat; is --data meant?"),
        (("--diameter", "wide"), "argument --diameter: invalid number value: 'wide'"),
        (("--diameter", "0,5"), "argument --diameter: 0,5 is not a number; write a point, 0.5"),
        (("--zzz",), "no option --zzz"),
    ],
)
def test_a_mistyped_option_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict_masks_parser("").parse_args(words)
    assert capsys.readouterr().err == f"error: {message}; --help lists the options\n"


def test_every_option_may_be_shortened():
    assert predict_masks_parser("").parse_args(["--min-c", "0.5"]).min_confidence == 0.5
