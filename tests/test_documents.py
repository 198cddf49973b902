"""What README, model card, changelog and citation say is kept true as far as a machine can."""

import importlib
import json
import re
import shlex

import pytest
from cffconvert import Citation
from conftest import ROOT
from jsonschema.exceptions import ValidationError

from data.files import hash_file
from data.options import VERSION

DOCUMENTS = ("README.md", "weights/README.md", "weights/EXPERIMENTS.md", "tests/README.md", "CHANGELOG.md")
SCRIPTS = ("Preprocessed_data", "Model", "Train", "Predict_masks", "Evaluate_model", "Main")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(text):
    """The commands of fenced blocks that call Python, without comments."""
    pieces = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # text, language, block, "", text …
    lines = [line for block in pieces[2::4] for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return [shlex.split(part, comments=True) for part in parts if re.match(r"(\w+=\S+ )*python ", part)]


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_have_their_options(name):
    for words in commands_of(read(name)):
        words = words[words.index("python") + 1 :]
        if words[0] == "-m":
            continue
        script = words[0].removesuffix(".py")
        assert (ROOT / words[0]).is_file(), words
        if script in SCRIPTS:
            importlib.import_module(script).parse_args(words[1:])  # ends the process where an option is wrong


def test_the_readme_shows_every_script():
    shown = {words[words.index("python") + 1] for words in commands_of(read("README.md"))}
    assert {"Main.py", "Train.py", "Predict_masks.py", "Evaluate_model.py"} <= shown


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_inside_the_project_lead_somewhere(name):
    text = read(name)
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = folder / file if file else ROOT / name
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_fit_a_screen(name):
    text = re.sub(r"\]\(http[^)]*\)", "]()", read(name))  # an address cannot be broken
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert wide == []


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 250
    assert len(read("weights/README.md").splitlines()) <= 130


def test_the_newest_version_is_told_everywhere():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == VERSION
    assert f"\nversion: {VERSION}\n" in read("CITATION.cff")


def test_the_citation_follows_its_schema():
    text = read("CITATION.cff")
    assert Citation(text).validate() is None  # it raises where something is wrong, such as:
    with pytest.raises(ValidationError):
        Citation(text.replace("\nauthors:", "\nwriters:", 1)).validate()


def test_the_figures_of_the_first_table_are_those_of_scores():
    """The figures at the top of the README stand again in its table of scores, with their intervals."""
    text = read("README.md")
    table, scores = text.split("## Scores")
    for kind, row in (("all kinds", "all (93)"), ("fluorescence", "fluorescence (77)"), ("patients", "TNBC tissue")):
        top = next(line for line in table.splitlines() if kind in line and line.startswith("|"))
        full = next(line for line in scores.splitlines() if line.startswith(f"| {row}") and "this U-Net" in line)
        for figure in re.findall(r"0\.\d{3}", top):
            assert figure in full


def test_the_record_of_the_shipped_weights_belongs_to_them():
    record = json.loads(read("weights/training.json"))
    assert record["calibration"]["weights_sha256"] == hash_file(ROOT / "weights/unet.keras")
