"""How long a person waits: import, the second load of the demo, and the heatmap in JupyterLab with a warm cache.

    python -m benchmarks.first_heatmap [--runs 5]

Import and load are timed in new processes, beside `import numpy` as a measure of the
machine. The heatmap is timed in a real JupyterLab in Chromium: from the start of the cell
`wb.app(errors=wb.errors(model, formats))` until its first cell is drawn, and beside it
until plotly has drawn `errors.heatmap()`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.errors import FORMATS
from tests.browser import lab
from tools.browser import chromium

PREPARE = f"""import workbench as wb
model = wb.load("demo")
formats = {FORMATS!r}
errors = wb.errors(model, formats); wb.app(errors=errors); errors.heatmap()"""
APP = "wb.app(errors=wb.errors(model, formats))"
PLOTLY = "wb.errors(model, formats).heatmap()"
WAIT = """async ([index, wanted]) => {
    const notebook = window.jupyterapp.shell.currentWidget.content
    notebook.activeCellIndex = index
    const output = notebook.widgets[index].outputArea.node
    const began = performance.now()
    void window.jupyterapp.commands.execute('notebook:run-cell')
    while (!output.querySelector(wanted)) await new Promise(requestAnimationFrame)
    return (performance.now() - began) / 1000
}"""
IMPORTS = {
    "import numpy": "import numpy",
    "import workbench": "import workbench",
    "second wb.load('demo')": "import workbench as wb; wb.load('demo')",
    "... with its tokenizer": "import workbench as wb; wb.load('demo').tokenizer",
}
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=5)
    runs = options.parse_args().runs
    print("| | seconds, median |\n|---|---|")
    for name, code in IMPORTS.items():
        command = [sys.executable, "-c", TIMED.format(code)]
        subprocess.run(command, check=True, capture_output=True)
        times = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(runs)]
        print(f"| {name} | {statistics.median(times):.3f} |", flush=True)
    for name, seconds in drawn(runs).items():
        print(f"| {name} | {statistics.median(seconds):.2f} |")


def drawn(runs: int) -> dict[str, list[float]]:
    """Seconds from a cell's start to its picture, in one JupyterLab."""
    cells = {
        "app with the heatmap": (APP, ".wbg-cell"),
        "errors.heatmap() by plotly": (PLOTLY, ".js-plotly-plot .heatmaplayer"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab.notebook(folder / "timed.ipynb", [PREPARE, *(cell for cell, _ in cells.values() for _ in range(runs))])
        with (
            chromium() as browser,
            lab.jupyterlab(folder) as address,
            lab.opened(browser, address, "timed.ipynb") as page,
        ):
            page.evaluate(WAIT, [0, ".jp-OutputArea-child"])
            page.wait_for_function(lab.STARTED)
            found: dict[str, list[float]] = {}
            for number, (what, (_, wanted)) in enumerate(cells.items()):
                places = range(1 + number * runs, 1 + (number + 1) * runs)
                found[what] = [page.evaluate(WAIT, [place, wanted]) for place in places]
            return found


if __name__ == "__main__":
    main()
