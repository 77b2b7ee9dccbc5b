"""The documentation names everything there is, and nothing else, with the numbers that the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import workbench as wb
from workbench.formats import FORMATS
from workbench.formats.ggml import FALLBACK, TYPES
from workbench.panels.app import PANELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def entries(page: str) -> dict[str, str]:
    """Text by heading of a page."""
    parts = re.split(r"^#+ (.+)$", PAGES[page], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", [name for name in wb.__all__ if not name.startswith("__")])
def test_every_public_name_is_documented(name):
    shown = name if name == "WorkbenchError" else f"wb.{name}"
    assert re.search(rf"\b{re.escape(shown)}\b", README + "".join(PAGES.values())), f"{shown} is in no page"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_entry_with_its_bits_and_its_needs(name):
    entry = entries("formats.md")[name].strip()
    bits, rest = re.match(r"([\d.]+) bits per weight(.*)", entry, flags=re.DOTALL).groups()
    assert float(bits) == FORMATS[name].bits
    assert ("importance is required" in rest.lower()) == (FORMATS[name].importance == "required")


@pytest.mark.parametrize("type", TYPES, ids=str)
def test_the_blocks_of_ggml_are_documented_with_their_bytes(type):
    assert f"{type.block_bytes} bytes for {type.block} weights" in entries("formats.md")[type.name]


def test_no_entry_is_left_of_a_format_that_is_gone():
    named = {heading for heading, text in entries("formats.md").items() if re.match(r"\s*[\d.]+ bits per weight", text)}
    assert named == set(FORMATS)


def test_the_fallbacks_of_llama_cpp_are_documented():
    rows = re.findall(r"^\| ((?:\w+, )*\w+) \| (\w+) \|$", PAGES["formats.md"], flags=re.MULTILINE)
    assert {asked: stored for many, stored in rows for asked in many.split(", ")} == FALLBACK


def test_the_mixes_are_documented_with_the_format_that_most_tensors_get():
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", entries("formats.md")["Mixes"], flags=re.MULTILINE)
    assert dict(rows) == {name: recipe.base for name, recipe in wb.RECIPES.items()}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_panel_has_an_entry(panel):
    assert len(entries("panels.md")[panel.title].split()) > 30


def test_the_readme_gives_the_commands_that_make_has():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"make quickstart", "make test", "make lab"} <= set(re.findall(r"make [a-z]+", README))
    assert {command.split()[1] for command in re.findall(r"^make [a-z]+", README, flags=re.MULTILINE)} <= targets


def test_every_extra_is_documented():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    missing = [extra for extra in extras if extra not in ("test", "lint") and f"`{extra}`" not in README]
    assert not missing


def test_every_file_that_a_page_links_to_is_there():
    for page, text in {"README.md": README, **{f"docs/{name}": text for name, text in PAGES.items()}}.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_readmes_tree_names_the_modules_that_exist():
    trees = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)
    named = set(re.findall(r"(\w+\.py)\b", "".join(trees)))
    there = {
        path.name for folder in ("workbench", "tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    assert named - there == set(), "the README's tree names modules that are gone"
    own = {path.name for path in (ROOT / "workbench").rglob("*.py")} - {"__init__.py"}
    assert own - named == set(), "the README's tree leaves modules out"
