"""Run notebooks top to bottom: store their outputs anew, or save one as an HTML report.

    python -m tools.notebooks refresh notebooks/*.ipynb
    python -m tools.notebooks report notebooks/01_quickstart.ipynb out/quickstart.html

Neither stores widget state: it can hold what a person typed, and GitHub's preview fails on it.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE = "application/vnd.plotly.v1+json"
NETWORK = ("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url", "mermaid_layout_elk_js_url")


def execute(path: Path, *, timeout: float = 600) -> NotebookNode:
    """Run the notebook's cells in a new kernel, in the notebook's folder; the file stays as it is.

    Args:
        timeout: seconds that one cell may take.

    Raises:
        CellExecutionError: a cell failed; the message shows the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    began = time.monotonic()
    done = 0

    def report(cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        nonlocal done
        done += cell.cell_type == "code"
        first = next(iter(cell.source.splitlines()), "")
        print(f"  {path.name} {done}/{count} {time.monotonic() - began:6.1f} s  {first}", flush=True)

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],  # for one: that its local connection is not encrypted
        store_widget_state=False,
        on_cell_executed=report,
    )
    return client.execute()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop what is not to be stored: widget state and views, progress bars, warnings, times, local settings."""
    notebook.metadata = NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _lasts(output)]
    return notebook


def _lasts(output: NotebookNode) -> bool:
    """Whether an output means something without its kernel; a widget's view is taken out of it."""
    if output.output_type == "stream":
        return output.name == "stdout"
    if output.output_type == "error" or output.data.pop(WIDGET, None) is None:
        return True
    return bool(set(output.data) - {"text/plain"})  # what is left is the widget's static form, if it has one


def figures(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The `data` of each output that is a plotly figure."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if FIGURE in output.get("data", {}):
                yield output.data


def html_report(notebook: NotebookNode, path: Path) -> str:
    """The executed notebook of `path` as one HTML page, its figures live, that fetches nothing."""
    from nbconvert import HTMLExporter
    from plotly import io

    for number, data in enumerate(figures(notebook)):
        data["text/html"] = io.to_html(_figure(data), full_html=False, include_plotlyjs=number == 0)
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True)
    for script in NETWORK:
        if exporter.has_trait(script):
            setattr(exporter, script, "")
    page, _ = exporter.from_notebook_node(
        notebook, resources={"metadata": {"name": path.stem, "path": str(path.parent)}}
    )
    return page


def draw(notebook: NotebookNode) -> NotebookNode:
    """Replace each plotly figure by its picture: GitHub shows that, and it is smaller."""
    from plotly import io

    from tools.browser import chromium
    from tools.pictures import smaller

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 660, "height": 500})
        for data in figures(notebook):
            page.set_content(io.to_html(_figure(data), config={"displayModeBar": False}, include_plotlyjs=True))
            picture = page.locator(".plot-container").screenshot()
            data.clear()
            data["image/png"] = base64.b64encode(smaller(picture)).decode()
    return notebook


def _figure(data: NotebookNode) -> Figure:
    """Take the figure out of an output's data."""
    from plotly import io

    made = data.pop(FIGURE)
    return io.from_json(json.dumps({"data": made["data"], "layout": made["layout"]}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    refresh = commands.add_parser("refresh", help="run notebooks and store their outputs")
    refresh.add_argument("notebooks", nargs="+", type=Path)
    report = commands.add_parser("report", help="run a notebook and save it as an HTML page")
    report.add_argument("notebook", type=Path)
    report.add_argument("page", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "refresh":
            for path in given.notebooks:
                nbformat.write(draw(clean(execute(path))), path)
        else:
            notebook = clean(execute(given.notebook))
            given.page.parent.mkdir(parents=True, exist_ok=True)
            given.page.write_text(html_report(notebook, given.notebook), encoding="utf-8")
            print(f"The report: {given.page}")
    except CellExecutionError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
