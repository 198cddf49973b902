"""What README, model card, changelog and citation say is kept true as far as a machine can."""

import argparse
import json
import re
import runpy
import shlex
import sys

import pytest
from cffconvert import Citation
from conftest import ROOT
from jsonschema.exceptions import ValidationError

from data.files import hash_file
from data.options import VERSION

DOCUMENTS = ("README.md", "weights/README.md", "weights/EXPERIMENTS.md", "tests/README.md", "CHANGELOG.md")
PLACEHOLDERS = {"SEED": "1", "KIND": "brightfield", "PRECISION": "float32"}  # of commands, and what may stand there
CARD_ROWS = {  # of the README's table of scores -> of the model card's
    "all (93)": "stage1_train, all (93)",
    "fluorescence (77)": "fluorescence (77)",
    "stained tissue (14)": "stained tissue (14)",
    "TNBC tissue (17)": "TNBC, patients 4, 9, 11 (17)",
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(text):
    """The commands that call Python, in fenced blocks, without comments, and in backticks."""
    pieces = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # text, language, block, "", text …
    lines = [line for block in pieces[2::4] for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    parts += [" ".join(inline.split()) for prose in pieces[::4] for inline in re.findall(r"`([^`]+)`", prose)]
    return [shlex.split(part, comments=True) for part in parts if re.match(r"(\w+=\S+ )*python ", part)]


class ParsedError(BaseException):
    """The options of a script were right; it is to do no work."""


@pytest.fixture
def parse(monkeypatch):
    """parse(["Train.py", "--data", "a"]) parses the options of a script; SystemExit where one is wrong."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        original(parser, *arguments)
        raise ParsedError

    def parse(words):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(ParsedError):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")

    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    return parse


def read_tables(text):
    """Every row of the tables in Markdown: a dict of title -> cell."""
    rows = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        titles, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        rows += [dict(zip(titles, line, strict=False)) for line in lines]
    return rows


def read_scores():
    """The README's scores of this U-Net: images -> title -> cell."""
    return {row["images"]: row for row in read_tables(read("README.md")) if row.get("method") == "this U-Net"}


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_have_their_files_and_options(name, parse):
    for words in commands_of(read(name)):
        words = [PLACEHOLDERS.get(word, word) for word in words[words.index("python") + 1 :]]
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py")), words
        if words[0] != "-m":
            parse(words)


def test_a_wrong_option_of_a_command_is_found(parse, capsys):
    for words in (["Train.py", "--epoch", "few"], ["tests/tools/benchmark.py", "--sped"], ["data/download.py", "-z"]):
        with pytest.raises(SystemExit):
            parse(words)
    (command,) = commands_of("It is `python\nTrain.py --data a`, not `Train.py`.")
    assert command == ["python", "Train.py", "--data", "a"]


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
    scores = read_scores()
    title = "validation images: not trained on, but settings were chosen on them"
    top = [row for row in read_tables(read("README.md")) if title in row]
    for row, images in zip(top, ("all (93)", "fluorescence (77)", "TNBC tissue (17)"), strict=True):
        assert images[images.index("(") :] in row[title]
        for score in ("Dice", "AP", "AP50"):
            assert row[score] == scores[images][score].split()[0], (images, score)


def test_the_scores_of_the_model_card_are_those_of_the_readme():
    card = {}
    for row in read_tables(read("weights/README.md")):
        card.setdefault(row.get("images"), {}).update(row)  # its scores stand in two tables
    scores = read_scores()
    assert scores.keys() == CARD_ROWS.keys()
    for images, row in scores.items():
        other = card[CARD_ROWS[images]]
        assert row["Dice"] == other["mean Dice [95 % interval]"]
        for title in ("AP", "AP50", "precision", "recall"):
            assert row[title] == other[title], (images, title)


def test_the_record_of_the_shipped_weights_belongs_to_them():
    record = json.loads(read("weights/training.json"))
    assert record["calibration"]["weights_sha256"] == hash_file(ROOT / "weights/unet.keras")
