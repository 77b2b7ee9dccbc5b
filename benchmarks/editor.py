"""How soon the plan editor answers, in a real browser: the demo's size, an 80-layer model, and one of 60 x 128 experts.

    python -m benchmarks.editor [--runs 20] [--models demo,80 layers,experts] [--small]

Prices are made up, since only their number matters. A press of a key is timed in the page: until the cell has its new
colour, which the page draws at once, and until the kernel has answered and size, prediction, front and memory are drawn
anew. The solver is timed from a change of the budget's field until its answer is drawn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from tests.browser import lab
from tools.browser import chromium

ROOT = Path(__file__).parents[1]
MODELS = {
    "demo": "synthetic.card({**synthetic.AWKWARD, 'num_hidden_layers': 30})",
    "80 layers": "synthetic.card(synthetic.SEVENTY)",
    "experts": "synthetic.experts(60, 128)",
    "small": "synthetic.card()",
}
CELL = """import sys; sys.path.insert(0, {root!r})
from tests.allocation import synthetic
from workbench import panels
card = {card}
session = panels.Session()
session.checkpoint = card.checkpoint
session.card = card
panel = panels.Plan(session)
panel.preparing.start_pricing()
session.jobs.wait()
panel"""

# From a key's press in a cell: milliseconds until it looks otherwise, and until the last thing that follows, the code,
# is drawn.
PRESS = """async name => {
    const seen = what => [...document.querySelectorAll(what)].filter(each => each.offsetParent)
    const root = seen('.wbg')[0]
    const cell = seen('.wbg [role=gridcell]').find(each => each.getAttribute('aria-label').startsWith(name + ','))
    const code = seen('.wb-code pre').at(-1)
    cell.dispatchEvent(new MouseEvent('mousedown', { bubbles: true, buttons: 1 }))
    document.dispatchEvent(new MouseEvent('mouseup'))
    await new Promise(done => setTimeout(done, 500))
    const [color, before, text] = [cell.style.backgroundColor, root.dataset.answer, code.textContent]
    const key = cell.textContent === 'Q8_0' ? '1' : '6'
    const began = performance.now()
    cell.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
    let coloured = null
    while (root.dataset.answer === before || code.textContent === text) {
        await new Promise(requestAnimationFrame)
        if (coloured === null && cell.style.backgroundColor !== color) coloured = performance.now() - began
        if (performance.now() - began > 20000) throw new Error(name + ': no answer')
    }
    return [coloured ?? performance.now() - began, performance.now() - began]
}"""
SOLVE = """async megabytes => {
    const root = [...document.querySelectorAll('.wbg')].find(each => each.offsetParent)
    const field = [...document.querySelectorAll('.wb-budget input[type=number]')].find(each => each.offsetParent)
    const before = Number(root.dataset.answer)
    field.value = String(megabytes)
    const began = performance.now()
    field.dispatchEvent(new Event('input', { bubbles: true }))
    field.dispatchEvent(new Event('change', { bubbles: true }))
    while (Number(root.dataset.answer) <= before) {
        if (performance.now() - began > 60000) throw new Error('no answer')
        await new Promise(requestAnimationFrame)
    }
    return performance.now() - began
}"""


def measured(page: Page, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run."""
    names = page.evaluate(
        "[...document.querySelectorAll('.wbg [role=gridcell]')].filter(each => each.offsetParent)"
        ".map(each => each.getAttribute('aria-label').split(',')[0])"
    )
    found: dict[str, list[float]] = {"colour": [], "everything": [], "solver": []}
    for run in range(runs):
        colour, everything = page.evaluate(PRESS, names[1 + (run * 7) % (len(names) - 1)])
        found["colour"].append(colour)
        found["everything"].append(everything)
    now = float(page.locator(".wb-budget input[type=number]:visible").first.input_value())
    for run in range(max(3, runs // 2)):
        found["solver"].append(page.evaluate(SOLVE, round(now * (0.8 + 0.04 * (run % 8)), 2)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--models", default="demo,80 layers,experts")
    parser.add_argument("--small", action="store_true", help="one tiny model, five runs: to see that it works")
    given = parser.parse_args()
    models, runs = (["small"], 5) if given.small else (given.models.split(","), given.runs)
    print(f"{'model':>10} {'what':>12} {'median':>9} {'worst':>9}   of {runs} runs, milliseconds")
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        with lab.jupyterlab(folder) as address:
            for number, model in enumerate(models):
                lab.notebook(folder / f"{number}.ipynb", [CELL.format(root=str(ROOT), card=MODELS[model])])
                with lab.opened(browser, address, f"{number}.ipynb", height=1300) as page:
                    page.evaluate(lab.RUN_ALL)
                    page.wait_for_selector(".wbg-chip:visible", timeout=300_000)
                    page.wait_for_timeout(2000)
                    for what, times in measured(page, runs).items():
                        print(f"{model:>10} {what:>12} {statistics.median(times):9.1f} {max(times):9.1f}", flush=True)


if __name__ == "__main__":
    main()
