"""A result as one page of HTML that fetches nothing: its look, its head, its pictures. What is on it is its maker's."""

from __future__ import annotations

import html
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import __version__, files

if TYPE_CHECKING:
    import plotly.graph_objects as go

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: .5rem 0 } th, td { text-align: left; padding: .25rem .8rem .25rem 0 }
th { font-weight: 600; border-bottom: 2px solid #ccc } td { border-bottom: 1px solid #e5e5e5 }
details { border: 1px solid #ddd; border-radius: 6px; padding: .5rem 1rem; margin: .5rem 0 }
summary { cursor: pointer } mark { background: #ffe08a } .quiet { color: #666; font-size: .9em }
.gained { color: #0072B2 } .lost { color: #B34700 } figure { margin: 1rem 0 }
.wide { overflow-x: auto } .wide td { white-space: nowrap }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } mark { color: #222 }
  th, td, details { border-color: #444 } .quiet { color: #aaa } .gained { color: #56B4E9 } .lost { color: #E69F00 } }
"""


def write(path: str | Path, text: str) -> Path:
    """Write the page; whole, or not at all."""
    target = Path(path).expanduser()
    with files.whole(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def page(title: str, about: str, body: str) -> str:
    """A page: `title` and the line `about` it are text, `body` is HTML in which everything from outside is escaped."""
    head = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{head}</title>
<style>{STYLE}</style></head><body>
<h1>{head}</h1>
<p class="quiet">{html.escape(about)}. {date.today()}, quantization-workbench {html.escape(__version__)}.</p>
{body}
</body></html>
"""


def pictures(drawn: Iterable[go.Figure]) -> str:
    """Figures that can be pointed at and zoomed; plotly's own code comes with the first."""
    from plotly import io

    config = {"displayModeBar": False, "responsive": True}
    made = (
        io.to_html(each, full_html=False, include_plotlyjs=number == 0, config=config)
        for number, each in enumerate(drawn)
    )
    return "".join(f"<figure>{each}</figure>" for each in made)
