"""A benchmark as one page of HTML that fetches nothing: verdicts, figures, and every example that changed."""

from __future__ import annotations

import html
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import __version__, files
from workbench.tasks import shown

if TYPE_CHECKING:
    from workbench.tasks.result import Benchmark, Flip

MOST = 200  # changed examples that are shown; the frame has them all
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: .5rem 0 } th, td { text-align: left; padding: .25rem .8rem .25rem 0 }
th { font-weight: 600; border-bottom: 2px solid #ccc } td { border-bottom: 1px solid #e5e5e5 }
details { border: 1px solid #ddd; border-radius: 6px; padding: .5rem 1rem; margin: .5rem 0 }
summary { cursor: pointer } mark { background: #ffe08a } .quiet { color: #666; font-size: .9em }
.gained { color: #0072B2 } .lost { color: #B34700 } figure { margin: 1rem 0 }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } mark { color: #222 }
  th, td, details { border-color: #444 } .quiet { color: #aaa } .gained { color: #56B4E9 } .lost { color: #E69F00 } }
"""
HOW = (
    "All candidates answered the same questions, so they are compared example by example. “won” and “lost” count the "
    "examples on which a candidate did better or worse than the reference; p is the chance of counts at least this "
    "uneven if neither were better (the exact test of McNemar, corrected by Holm for all comparisons on this page). "
    "Intervals are of 95 %, by resampling the examples. A difference that its interval or its test does not support "
    "is called none."
)


def write(found: Benchmark, path: str | Path) -> Path:
    """Write the page; whole, or not at all."""
    target = Path(path).expanduser()
    with files.whole(target) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
    return target


def page(found: Benchmark) -> str:
    """The page as text; everything that a file, a model or a server gave is escaped."""
    names = ", ".join(each.name for each in found.entries)
    title = html.escape(f"Benchmark: {', '.join(task.name for task in found.tasks)}")
    asked = [f"<li>{html.escape('; '.join(filter(None, [task.name, *task.said])))}</li>" for task in found.tasks]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="quiet">{html.escape(names)}. {date.today()}, quantization-workbench {html.escape(__version__)}.</p>
{shown.markup(found)}
<h2>Pictures</h2>{_pictures(found)}
<h2>What changed</h2>{_changed(found)}
<h2>How it was asked</h2><ul>{"".join(asked)}</ul>
<p class="quiet">{html.escape(HOW)}</p>
</body></html>
"""


def _pictures(found: Benchmark) -> str:
    from plotly import io

    drawn = [found.figure()] if len(found.entries) > 1 else []
    if sum(each.nbytes is not None for each in found.entries) > 1:
        drawn.append(found.by_bytes())
    if any(found.kl(place, each) for place in range(len(found.tasks)) for each in found.entries):
        drawn.append(found.by_kl())
    config = {"displayModeBar": False, "responsive": True}
    made = (
        io.to_html(each, full_html=False, include_plotlyjs=number == 0, config=config)
        for number, each in enumerate(drawn)
    )
    return "".join(f"<figure>{each}</figure>" for each in made) or "<p>There is one candidate.</p>"


def _changed(found: Benchmark) -> str:
    flips = found.flips()
    if not flips:
        return "<p>No example changed between right and wrong.</p>"
    more = f"<p>The first {MOST} of {len(flips)}.</p>" if len(flips) > MOST else ""
    return more + "".join(_flip(each) for each in flips[:MOST])


def _flip(flip: Flip) -> str:
    kind = "gained" if flip.gained else "lost"
    head = html.escape(
        f"{flip.task.name} {flip.example.id}, {flip.candidate}: {' '.join(flip.example.prompt.split())}"[:160]
    )
    return f'<details><summary><b class="{kind}">{kind}</b> {head}</summary>{flip._repr_html_()}</details>'
