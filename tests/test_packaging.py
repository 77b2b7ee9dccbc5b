"""The lists of packages agree: pyproject's ranges, the pins of CI, conda's environment, Colab and Kaggle."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from subprocess import run

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import workbench
from workbench.exceptions import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What is on their machines, and must not be moved by an install of ours.
COLAB = {
    "python": "3.13",
    "numpy": "2.1.3",
    "torch": "2.11.0",
    "transformers": "5.15.0",
    "ipywidgets": "7.7.1",
    "plotly": "5.24.1",
    "anywidget": "0.9.21",
    "ipykernel": "6.17.1",
}
KAGGLE = {
    "python": "3.12",
    "torch": "2.10.0",
    "transformers": "5.0.0",
    "ipywidgets": "8.1.5",
    "plotly": "5.24.1",
}
CONDA_NAMES = {"pytorch": "torch"}


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    """Range by package, of the core and of `extras`."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each.specifier for each in found if each.name != PROJECT["name"]}


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


EVERYTHING = requirements("transformers", "bitsandbytes", "llama.cpp", "gguf", "server", "notebook", "test", "lint")


@pytest.mark.parametrize("place", [COLAB, KAGGLE], ids=["Colab", "Kaggle"])
def test_the_versions_of_hosted_notebooks_are_inside_the_ranges(place):
    ranges = EVERYTHING | {"python": SpecifierSet(PROJECT["requires-python"])}
    outside = {name: version for name, version in place.items() if version not in ranges[name]}
    assert not outside


def test_every_required_package_is_pinned_inside_its_range():
    pinned = pins("constraints.txt")
    assert set(EVERYTHING) <= set(pinned)
    outside = {name: pinned[name] for name, allowed in EVERYTHING.items() if pinned[name] not in allowed}
    assert not outside


def test_the_oldest_notebook_libraries_tested_are_the_oldest_allowed_and_colabs():
    oldest = pins("requirements-oldest.txt")
    for name in ("ipywidgets", "plotly", "anywidget", "ipykernel", "numpy"):
        assert oldest[name] == COLAB[name]
    for name in ("ipywidgets", "anywidget", "ipykernel"):
        assert str(EVERYTHING[name]) == f">={oldest[name]}"
    assert all(oldest[name] in EVERYTHING[name] for name in oldest if name in EVERYTHING)


def test_condas_environment_has_the_same_packages_and_ranges():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(each["pip"] for each in listed if isinstance(each, dict))
    assert "-e ." in by_pip
    names = [Requirement(line) for line in (*listed, *by_pip) if isinstance(line, str) and line not in ("pip", "-e .")]
    found = {canonicalize_name(CONDA_NAMES.get(each.name, each.name)): each.specifier for each in names}
    python = found.pop("python")
    assert found == requirements("transformers", "bitsandbytes", "llama.cpp", "gguf", "server", "notebook")
    supported = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert all(version in python and version in SpecifierSet(PROJECT["requires-python"]) for version in supported)


def test_the_extras_that_errors_name_exist_and_hold_the_package():
    for package, extra in EXTRAS.items():
        assert canonicalize_name(package) in requirements(extra)


def test_all_names_every_extra_that_a_user_needs_without_compiling():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == {"transformers", "bitsandbytes", "llama.cpp", "gguf", "server", "notebook"}


def test_the_version_is_written_in_one_place():
    assert metadata.version(PROJECT["name"]) == workbench.__version__
    assert workbench.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_carries_the_panels_scripts_and_styles(tmp_path):
    from zipfile import ZipFile

    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT]
    run([sys.executable, "-m", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(ZipFile(wheel).namelist())
    missing = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "workbench").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    } - inside
    assert not missing
