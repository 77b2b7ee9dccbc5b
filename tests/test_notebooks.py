"""Every notebook runs top to bottom, reads well, and is stored without anything that belongs to one machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tools import notebooks
from tools.notebooks import FIGURE, WIDGET, clean, execute, html_report

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
INSTALL = re.compile(r"pip install (.*)")
LONGEST_CELL = 5  # lines
LARGEST = 200_000  # bytes, outputs included

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@every_notebook
def test_a_notebook_runs_top_to_bottom_and_makes_a_report_that_stands_alone(path):
    ran = execute(path)  # raises where a cell fails
    assert "widgets" not in ran.metadata
    cleaned = clean(ran)
    assert any(FIGURE in output.get("data", {}) for output in outputs(cleaned)), "no figure was drawn"
    page = html_report(cleaned, path)
    assert "Plotly.newPlot" in page
    asked = re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:|["'])([^"']+)""", page)
    assert not asked, f"the report fetches {asked}"


@every_notebook
def test_code_cells_are_short(path):
    long = [cell.source for cell in code_cells(read(path)) if len(cell.source.strip().splitlines()) > LONGEST_CELL]
    assert not long


@every_notebook
def test_prose_introduces_what_the_code_does(path):
    cells = read(path).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert cells[0].cell_type == "markdown"
    assert words > 20 * len(code_cells(read(path)))


@every_notebook
def test_a_stored_notebook_shows_its_results_without_a_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert "widgets" not in notebook.metadata
    shown = outputs(notebook)
    assert shown, "no outputs: make notebooks"
    assert any("image/png" in output.get("data", {}) for output in shown), "no picture of a figure: make notebooks"
    assert not any(output.output_type == "error" for output in shown)
    assert not any(WIDGET in output.get("data", {}) for output in shown)


@every_notebook
def test_a_stored_notebook_names_no_folder_of_the_machine_it_ran_on(path):
    text = nbformat.writes(read(path))
    assert not re.findall(r"/(?:home|root|Users|tmp|content|kaggle)/\w+", text)


@every_notebook
def test_the_install_cell_leaves_numpy_torch_and_ipywidgets_as_they_are(path):
    installs = [found[1] for cell in code_cells(read(path)) for found in INSTALL.finditer(cell.source)]
    for given in installs:
        words = given.replace("--upgrade-strategy only-if-needed", "").split()  # pip's own default, said aloud
        assert not {"-U", "--upgrade", "--force-reinstall", "-I", "--ignore-installed"} & set(words)
        assert "eager" not in given
        assert not re.search(r"\b(numpy|torch|ipywidgets|notebook|all)\b", given), "names what the host brings"


def test_cleaning_keeps_static_forms_and_drops_widgets_progress_and_local_metadata():
    made = nbformat.v4.new_output
    panel = made("display_data", data={WIDGET: {"model_id": "1"}, "text/html": "<p>still</p>", "text/plain": "Panel"})
    bar = made("display_data", data={WIDGET: {"model_id": "2"}, "text/plain": "0%"})
    warning = made("stream", name="stderr", text="something local")
    said = made("stream", name="stdout", text="a result")
    cell = nbformat.v4.new_code_cell(
        "1", outputs=[panel, bar, warning, said], metadata={"execution": {}, "tags": ["a"]}
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"widgets": {"state": "typed by a person"}, "kernel": "x"}
    )
    cleaned = notebooks.clean(notebook)
    assert [output.get("data", output.get("text")) for output in cleaned.cells[0].outputs] == [
        {"text/html": "<p>still</p>", "text/plain": "Panel"},
        "a result",
    ]
    assert cleaned.cells[0].metadata == {"tags": ["a"]}
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}


def test_a_failing_cell_is_shown_and_fails_the_command(tmp_path, capsys, monkeypatch):
    path = tmp_path / "fails.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    monkeypatch.setattr("sys.argv", ["notebooks", "report", str(path), str(tmp_path / "out.html")])
    assert notebooks.main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
