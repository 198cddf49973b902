"""Keeps the six scripts in one order, each readable from top to bottom and quick to import."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "Preprocessed_data": set(),
    "Model": {"Preprocessed_data"},  # for run_script and write_whole
    "Train": {"Preprocessed_data", "Model"},
    "Predict_masks": {"Preprocessed_data", "Model"},
    "Evaluate_model": {"Preprocessed_data"},
    "Main": {"Preprocessed_data", "Model", "Train", "Predict_masks", "Evaluate_model"},
}
BACKENDS = {"keras", "tensorflow", "torch", "jax"}
GUARD = re.compile(r"if __name__ == '__main__':\n    (\w+\.)?run_script\(main\)")
each_script = pytest.mark.parametrize("script", ALLOWED)


def parse(script):
    return ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))


def imported(script):
    """Names of all modules that a script imports, also inside its functions, without dots."""
    names = set()
    for node in ast.walk(parse(script)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{script}: relative import"
            names.add(node.module.split(".")[0])
    return names


def rank(node):
    """0 docstring, 1 imports, 2 constants, 3 definitions, 4 guard; None: it has no place here."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return 0
    if isinstance(node, ast.Import | ast.ImportFrom):
        return 1
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name for target in targets for name in ast.walk(target)]
        names = [name.id for name in names if isinstance(name, ast.Name)]
        alias = isinstance(node.value, ast.BinOp | ast.Attribute | ast.Subscript)  # of a type
        named = all(n.isupper() or alias and re.fullmatch("([A-Z][a-z]+)+", n) for n in names)
        return 2 if names and named else None
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return 3
    return 4 if GUARD.fullmatch(ast.unparse(node)) else None


@each_script
def test_imports_only_scripts_above_it(script):
    assert imported(script) & set(ALLOWED) <= ALLOWED[script]


def test_the_edges_that_make_one_path():
    assert "Preprocessed_data" in imported("Train") & imported("Predict_masks")
    assert "Model" in imported("Train") & imported("Predict_masks")
    assert imported("Main") & set(ALLOWED) == ALLOWED["Main"]


@each_script
def test_module_level_in_order_and_nothing_else(script):
    body = parse(script).body
    ranks = [rank(node) for node in body]
    strange = [ast.unparse(node) for node, r in zip(body, ranks, strict=True) if r is None]
    assert not strange
    assert ranks == sorted(ranks)
    assert ranks[0] == 0 and ranks[-1] == 4 and ranks.count(4) == 1


@each_script
def test_docstring_shows_a_command(script):
    assert f"\n    python {script}.py" in ast.get_docstring(parse(script))


@each_script
def test_ends_with_arguments_and_main(script):
    names = [node.name for node in parse(script).body if isinstance(node, ast.FunctionDef)]
    assert names[-2:] == ["parse_args", "main"]


def test_the_tour_stays_short():
    assert len((ROOT / "Main.py").read_text(encoding="utf-8").splitlines()) <= 80


@each_script
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(script).main(["--help"])
    assert f"python {script}.py" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["Preprocessed_data", "Evaluate_model"])
def test_starts_without_a_network_library(script):
    assert not imported(script) & BACKENDS
    code = f"import sys, {script}; print(sorted({BACKENDS} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
