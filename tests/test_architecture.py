"""The rooms of the package import downwards only, in no circle, and leave heavy libraries for later."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from subprocess import run

import pytest

import workbench

PACKAGE = Path(workbench.__file__).parent
ROOMS = (  # low to high: a room imports from those before it
    "exceptions",
    "progress",
    "files",
    "figures",
    "pages",
    "formats",
    "checkpoint",
    "planning",
    "fit",
    "engines",
    "writing",
    "environment",
    "measure",
    "forensics",
    "allocation",
    "quantizing",
    "tasks",
    "advice",
    "panels",
)
OPTIONAL = {
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "xllamacpp",
    "openai",
    "math_verify",
    "lm_eval",
    "exllamav2",
    "jupyterlab",
    "nbconvert",
    "nbclient",
}
SLOW = {"pandas", "scipy", "plotly", "ipywidgets", "anywidget", "gguf", "libgguf", "huggingface_hub", "IPython"}

MODULES = {
    ".".join(("workbench", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    return module.split(".")[1]


@cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """(imported module, whether that happens as soon as `module` itself is imported) pairs."""
    tree = ast.parse(MODULES[module].read_text())
    return frozenset((name, at_once) for node, at_once in _import_nodes(tree) for name in _targets(node))


def _import_nodes(tree: ast.AST, at_once: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_once
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _import_nodes(node, at_once and not inside)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.module, f"a relative import: {ast.unparse(node)}"
    for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        yield submodule if submodule in MODULES else node.module


def test_every_module_is_in_a_known_room():
    found = {room(module) for module in MODULES if module != "workbench"}
    assert found <= set(ROOMS)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "workbench"])
def test_a_module_imports_only_from_its_own_room_and_those_below(module):
    own = ROOMS.index(room(module))
    above = sorted(
        name for name, _ in imports(module) if name.startswith("workbench.") and ROOMS.index(room(name)) > own
    )
    assert not above, f"{module} imports from a room above its own: {above}"


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {
        module: {name for name, at_once in imports(module) if at_once and name in MODULES and name != "workbench"}
        for module in MODULES
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(module):
    # Panels are widgets: whoever imports one has asked for ipywidgets.
    allowed = {"ipywidgets", "anywidget", "IPython"} if module.startswith("workbench.panels") else set()
    heavy = {name.split(".")[0] for name, at_once in imports(module) if at_once} & (OPTIONAL | SLOW)
    assert heavy <= allowed, f"{module} imports {sorted(heavy - allowed)} at its top"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, workbench; print(*sys.modules)"
    loaded = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & (OPTIONAL | SLOW | {"numpy"})


WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_extras(code: str) -> str:
    """What `code` prints in a Python where no optional package can be imported."""
    whole = WITHOUT_EXTRAS.format(absent=OPTIONAL) + code
    return run([sys.executable, "-c", whole], capture_output=True, text=True, check=True).stdout


def test_every_public_name_can_be_had_without_any_extra():
    code = "import workbench as wb\nfor name in dir(wb): getattr(wb, name)\nprint('all there')"
    assert without_extras(code) == "all there\n"


def test_formats_work_without_any_extra():
    code = (
        "import numpy as np, workbench as wb\n"
        "matrix = np.ones((4, 256), np.float32)\n"
        "print(wb.formats.get('Q4_K').roundtrip(matrix).shape)"
    )
    assert without_extras(code) == "(4, 256)\n"


def test_a_call_that_needs_an_extra_says_which():
    code = (
        "import numpy as np, workbench as wb\n"
        "try: wb.formats.get('NF4').encode(np.ones((64, 64), np.float32))\n"
        "except wb.WorkbenchError as error: print(error)"
    )
    message = without_extras(code)
    assert "quantization-workbench[transformers]" in message or "quantization-workbench[bitsandbytes]" in message


def test_the_lazy_names_are_those_that_an_editor_sees():
    tree = ast.parse(MODULES["workbench"].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            seen[alias.name] = None if node.module == "workbench" else node.module
    assert seen == workbench._WHERE


def test_an_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'perplexity_of'"):
        _ = workbench.perplexity_of
