"""A benchmark as one page of HTML that fetches nothing: verdicts, figures, and every example that changed."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import pages
from workbench.tasks import shown

if TYPE_CHECKING:
    from workbench.tasks.result import Benchmark, Flip

MOST = 200  # changed examples that are shown; the frame has them all
HOW = (
    "All candidates answered the same questions, so they are compared example by example. “won” and “lost” count the "
    "examples on which a candidate did better or worse than the reference; p is the chance of counts at least this "
    "uneven if neither were better (the exact test of McNemar, corrected by Holm for all comparisons on this page). "
    "Intervals are of 95 %, by resampling the examples. A difference that its interval or its test does not support "
    "is called none."
)


def write(found: Benchmark, path: str | Path) -> Path:
    """Write the page; whole, or not at all."""
    return pages.write(path, page(found))


def page(found: Benchmark) -> str:
    """The page as text; everything that a file, a model or a server gave is escaped."""
    asked = [f"<li>{html.escape('; '.join(filter(None, [task.name, *task.said])))}</li>" for task in found.tasks]
    return pages.page(
        f"Benchmark: {', '.join(task.name for task in found.tasks)}",
        ", ".join(each.name for each in found.entries),
        f"""{shown.markup(found)}
<h2>Pictures</h2>{_pictures(found)}
<h2>What changed</h2>{_changed(found)}
<h2>How it was asked</h2><ul>{"".join(asked)}</ul>
<p class="quiet">{html.escape(HOW)}</p>""",
    )


def _pictures(found: Benchmark) -> str:
    drawn = [found.figure()] if len(found.entries) > 1 else []
    if sum(each.nbytes is not None for each in found.entries) > 1:
        drawn.append(found.by_bytes())
    if any(found.kl(place, each) for place in range(len(found.tasks)) for each in found.entries):
        drawn.append(found.by_kl())
    return pages.pictures(drawn) or "<p>There is one candidate.</p>"


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
