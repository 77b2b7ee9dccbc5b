"""A diff as one page of HTML: the overview, what is unusual, pictures, and every matrix."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import figures, pages
from workbench.checkpoint import Checkpoint
from workbench.checkpoint.tree import shown

if TYPE_CHECKING:
    import pandas as pd

    from workbench.forensics.result import Diff

MOST_FINDINGS = 500
MOST_ROWS = 2000  # matrices that are listed; a page of experts would be too long to open
HOW = (
    "The weights of both were decoded to float32 and compared matrix by matrix: weight_error is |W - Q|² / |W|², 0 for "
    "a perfect copy and about 1 when nothing is left. Bits per weight count everything that is stored, scales and zero "
    "points included; the bits of a code do not. “Unusual” is what a reader should look at, not what is wrong: recipes "
    "leave layers in 16 bits on purpose."
)


def write(found: Diff, path: str | Path) -> Path:
    """Write the page; whole, or not at all."""
    return pages.write(path, page(found))


def page(found: Diff) -> str:
    """The page as text; everything that a file gave is escaped."""
    drawn = [found.heatmap(metric) for metric in (None, "bits_per_weight") if _is_drawn(found, metric)]
    pictures = pages.pictures(drawn) or "<p>No matrix could be decoded.</p>"
    return pages.page(
        found.headline(),
        " and ".join(_known_as(each) for each in (found.original, found.quantized)),
        f"""{overview(found)}
<h2>Unusual</h2>{findings(found, MOST_FINDINGS)}
<h2>Pictures</h2>{pictures}
<h2>Every matrix</h2>{matrices(found)}
<h2>How it was measured</h2><p class="quiet">{html.escape(HOW)}</p>""",
    )


def _known_as(model: Checkpoint) -> str:
    """A hub id with its revision, or a name: a page that is passed on should not tell where its maker's files lie."""
    return shown(f"{model.source} ({model.revision})" if model.revision else model.name)


def _is_drawn(found: Diff, metric: str | None) -> bool:
    return metric is not None or bool(found.frame.weight_error.notna().any())


def overview(found: Diff) -> str:
    """The first lines, and a row for each scheme."""
    said = "".join(f"<p>{html.escape(line)}</p>" for line in found.lines())
    return said + _table(found.summary)


def findings(found: Diff, most: int) -> str:
    """What is unusual, at most so many rows."""
    if not found.unusual:
        return "<p>Nothing was found.</p>"
    more = len(found.unusual) - most
    told = f"<p>And {more} more.</p>" if more > 0 else ""
    return _table(found.findings.head(most)) + told


def matrices(found: Diff) -> str:
    """A row for each matrix."""
    frame = found.frame
    columns = ["tensor", "rows", "cols", "scheme", "group", "bits", "bytes", "bits_per_weight", "original"]
    errors = [name for name in ("weight_error", "importance_error", "output_error") if name in frame]
    more = f"<p>And {len(frame) - MOST_ROWS} more.</p>" if len(frame) > MOST_ROWS else ""
    return f'<div class="wide">{_table(frame[columns + errors].head(MOST_ROWS))}</div>{more}'


def _table(frame: pd.DataFrame) -> str:
    """A table of a page: sizes in units, texts spelled out and escaped, errors to three digits."""
    texts = {name: frame[name].map(lambda value: shown(str(value))) for name in frame.select_dtypes(exclude="number")}
    sized = {name: frame[name].map(figures.size) for name in frame if name == "bytes"}
    told = frame.assign(**texts, **sized).rename(columns={"bytes": "size", "bits": "code bits"})
    told.columns = [str(name).replace("_", " ") for name in told.columns]
    return told.to_html(index=False, float_format=lambda value: f"{value:.3g}", na_rep="", escape=True, border=0)
