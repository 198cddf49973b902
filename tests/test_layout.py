"""Keeps scripts and modules in one order, each readable from top to bottom and quick to import."""

import argparse
import ast
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = {  # script -> the scripts that it may import
    "Preprocessed_data": set(),
    "Model": {"Preprocessed_data"},
    "Train": {"Preprocessed_data", "Model"},
    "Predict_masks": {"Preprocessed_data", "Model"},
    "Evaluate_model": {"Preprocessed_data"},
    "Main": {"Preprocessed_data", "Model", "Train", "Predict_masks", "Evaluate_model"},
}
MODULES = (
    "files",
    "pixels",
    "options",
    "records",
    "microscopes",
    "layouts",
    "listings",
    "sources",
    "tiff_series",
    "tiffs",
    "images",
    "pixel_size",
    "channels",
    "stacks",
    "label_files",
    "intensity",
    "artifacts",
    "tiles",
    "crowding",
    "augment",
    "empty_crops",
    "nuclei",
    "crops",
    "run_lengths",
    "outputs",
    "truth",
    "scales",
    "slides",
    "matching",
    "confidence",
    "shapes",
    "measure",
    "outlines",
    "omezarr",
    "tables",
    "predictions",
    "pictures",
    "report_cards",
    "report",
    "curves",
    "runs",
    "results",
    "cluster",
    "export",
    "figure",
    "terminal",
)
TOOLS = ("download", "make_sample")  # scripts in data/, which need nothing of the project
NETWORK_LIBRARIES = {"keras", "tensorflow", "torch", "jax"}
SCRIPT_GUARD = "if __name__ == '__main__':\n    run_script(main)"
EARLY_GUARD = re.compile(r"if __name__ == '__main__':\n    \w+_parser\(__doc__\)\.parse_args\(\)")
TOOL_GUARD = "if __name__ == '__main__':\n    sys.exit(main())"
each_script = pytest.mark.parametrize("script", SCRIPTS)
each_module = pytest.mark.parametrize("module", MODULES)
each_tool = pytest.mark.parametrize("tool", TOOLS)


def parse(name):
    """The syntax tree of "Train" or of "data.files"."""
    file = ROOT / f"{name.replace('.', '/')}.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(name):
    """Names of all modules that a file imports, also inside its functions: "keras", "data.files"."""
    names = set()
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "data":
            names |= {f"data.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            names.add(node.module)
    return {name if name.startswith("data.") else name.split(".")[0] for name in names}


def imported_modules(name):
    """Of `imported`, the modules of data/, without "data."; "data" stands for the package."""
    return {name.removeprefix("data.") for name in imported(name) if name.split(".")[0] == "data"}


def rank(node):
    """0 docstring, 1 imports, 2 constants, 3 definitions, 4 guard; None for all else."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return 0
    if isinstance(node, ast.Import | ast.ImportFrom) or ast.unparse(node).startswith("with import_quietly():"):
        return 1
    if EARLY_GUARD.fullmatch(ast.unparse(node)):
        return 1
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return 2 if is_constant(node) else None
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return 3
    return 4 if ast.unparse(node) in (SCRIPT_GUARD, TOOL_GUARD) else None


def is_constant(node):
    """Whether an assignment is that of constants, such as `A, B = 1, 2`, or of the alias of a type."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = []
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names += [ast.unparse(part) for part in parts]
    if all(re.fullmatch("[A-Z][A-Z0-9_]*", name) for name in names):
        return True
    is_type = isinstance(node.value, ast.Name | ast.Attribute | ast.Subscript | ast.BinOp)
    return is_type and all(re.fullmatch("([A-Z][a-z]+)+", name) for name in names)


def find_disorder(name, guards):
    """What of a file is not docstring, imports, constants, definitions and its guards, in this order."""
    body = parse(name).body
    ranks = [rank(node) for node in body]
    faults = [ast.unparse(node) for node, r in zip(body, ranks, strict=True) if r is None]
    known = [r for r in ranks if r is not None]
    found = [ast.unparse(node) for node, r in zip(body, ranks, strict=True) if r == 4]
    faults += [f"order {known}"] if known != sorted(known) else []
    faults += [f"{known.count(0)} docstrings"] if known.count(0) != 1 else []
    return faults + ([f"guards {found}"] if found != guards else [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("'A docstring.'", 0),
        ("from a import b", 1),
        ("SIZE = 3", 2),
        ("WEIGHTS, HISTORY = 'a', 'b'", 2),
        ("SIZES: dict = {}", 2),
        ("Parts = tuple[str, ...]", 2),
        ("Provenance = dict", 2),
        ("File = Path | zipfile.Path", 2),
        ("def f(): pass", 3),
        ("class A: pass", 3),
        (SCRIPT_GUARD, 4),
        ("size = 3", None),
        ("size, HISTORY = 'a', 'b'", None),
        ("Parts = find_parts()", None),
        ("SIZES['a'] = 3", None),
        ("os.environ['A'] = '1'", None),
        ("SIZE += 1", None),
        ("print('hello')", None),
        ("with import_quietly(): import keras", 1),
        ("if __name__ == '__main__': a_parser(__doc__).parse_args()", 1),
        ("with open('a'): import keras", None),
        ("if True: pass", None),
        ("for i in range(3): pass", None),
    ],
)
def test_the_order_knows_what_may_stand_in_a_file(line, expected):
    (node,) = ast.parse(line).body
    assert rank(node) == expected


# What imports what.


def test_every_file_is_known_here():
    assert {file.stem for file in ROOT.glob("*.py")} == set(SCRIPTS)
    assert {file.stem for file in (ROOT / "data").glob("*.py")} == {*MODULES, *TOOLS, "__init__"}


@each_script
def test_scripts_import_only_scripts_above_them(script):
    assert imported(script) & set(SCRIPTS) <= SCRIPTS[script]
    assert imported_modules(script) <= set(MODULES)


@each_module
def test_modules_import_only_modules_before_them(module):
    assert imported_modules(f"data.{module}") <= set(MODULES[: MODULES.index(module)])
    assert not imported(f"data.{module}") & (set(SCRIPTS) | NETWORK_LIBRARIES)


@each_tool
def test_tools_import_nothing_of_the_project(tool):
    assert not imported_modules(f"data.{tool}")
    assert not imported(f"data.{tool}") & (set(SCRIPTS) | NETWORK_LIBRARIES)


def test_the_package_lists_its_modules():
    listed = re.findall(r"^    (\w+) ", ast.get_docstring(parse("data.__init__")), flags=re.MULTILINE)
    assert sorted(listed) == sorted([*MODULES, *TOOLS])


def test_the_edges_that_make_one_path():
    assert {"Preprocessed_data", "Model"} <= imported("Train") & imported("Predict_masks")
    assert {"Model", "Predict_masks", "Evaluate_model"} <= imported("Main")
    for script in SCRIPTS:
        assert "files" in imported_modules(script)  # for run_script


def test_a_function_has_one_home():
    homes = {}
    for name in (*SCRIPTS, *(f"data.{module}" for module in MODULES)):
        for node in parse(name).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in ("parse_args", "main"):
                homes.setdefault(node.name, []).append(name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


# How a file reads.


@each_script
def test_scripts_hold_nothing_but_the_order(script):
    assert find_disorder(script, [SCRIPT_GUARD]) == []


@each_module
def test_modules_hold_nothing_but_the_order(module):
    assert find_disorder(f"data.{module}", []) == []


@each_tool
def test_tools_hold_nothing_but_the_order(tool):
    assert find_disorder(f"data.{tool}", [TOOL_GUARD]) == []


def test_the_package_holds_nothing():
    assert [rank(node) for node in parse("data.__init__").body] == [0]


@each_script
def test_scripts_end_with_arguments_and_main(script):
    names = [node.name for node in parse(script).body if isinstance(node, ast.FunctionDef)]
    assert names[-2:] == ["parse_args", "main"]


def test_the_tour_stays_short():
    assert len((ROOT / "Main.py").read_text(encoding="utf-8").splitlines()) <= 100


# How a script is called.


@each_script
def test_docstrings_show_a_command(script):
    assert f"\n    python {script}.py" in ast.get_docstring(parse(script))


@each_tool
def test_docstrings_of_tools_show_a_command(tool):
    assert f"\n    python data/{tool}.py" in ast.get_docstring(parse(f"data.{tool}"))


@each_script
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(script).main(["--help"])
    assert f"python {script}.py" in capsys.readouterr().out


@each_script
def test_all_options_stand_in_groups_with_a_name(script, monkeypatch):
    parsers = []

    def keep(parser, *arguments):
        parsers.append(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    importlib.import_module(script).parse_args([])
    (parser,) = parsers
    default_groups = (parser._positionals, parser._optionals)
    ungrouped = [action.dest for group in default_groups for action in group._group_actions]
    assert ungrouped == ["help", "version"]
    groups = [group for group in parser._action_groups if group not in default_groups]
    assert groups and all(group.title for group in groups)
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("script", ["Preprocessed_data", "Evaluate_model"])
def test_scripts_without_a_network_start_without_its_libraries(script):
    assert not imported(script) & NETWORK_LIBRARIES
    code = f"import sys, {script}; print(sorted({NETWORK_LIBRARIES} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
