"""What `wb.diff` found: a row for each matrix, what is unusual, as table, picture and page."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import figures
from workbench.checkpoint import Checkpoint
from workbench.checkpoint.tree import shown
from workbench.forensics import report
from workbench.forensics.unusual import Finding
from workbench.measure.errors import ErrorTable

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MOST = 20  # findings that are shown at once; `findings` and the report have more


@dataclass(frozen=True, eq=False)  # tables have no single truth value
class Diff:
    """A quantized checkpoint held against its original.

    Attributes:
        frame: a row for each matrix that both have. Columns: tensor (the original's name), layer, role, rows, cols,
            scheme, group (the inputs, rows or tiles that share a scale), bits (of a code), bytes and bits_per_weight
            (scales included), original and original_bytes, weight_error and, with a text, importance_error and
            output_error. The error of a matrix that could not be decoded is missing.
        unusual: what was found, as `Finding`s; `findings` is the same as a table.
        original, quantized: the two.
        errors: the error table of `wb.errors`, which opens single matrices; None if none could be decoded.
    """

    frame: pd.DataFrame
    unusual: tuple[Finding, ...]
    original: Checkpoint
    quantized: Checkpoint
    errors: ErrorTable | None = None

    @cached_property
    def findings(self) -> pd.DataFrame:
        """A row for each thing that is unusual: tensor, kind, what."""
        import pandas as pd

        rows = [(each.tensor, each.kind, each.what) for each in self.unusual]
        return pd.DataFrame(rows, columns=["tensor", "kind", "what"])

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row for each scheme: matrices, bytes, bits per weight, error as a mean over weights."""
        frame = self.frame.assign(params=self.frame.rows * self.frame.cols)
        frame = frame.assign(
            lost=frame.weight_error * frame.params, known=frame.params.where(frame.weight_error.notna())
        )
        by = frame.groupby(["scheme", "group"], sort=False)
        found = by[["bytes", "params", "lost", "known"]].sum(min_count=1)
        found = found.assign(
            matrices=by.size(),
            bits_per_weight=8 * found.bytes / found.params,
            weight_error=found.lost / found.known,
        )
        return found.reset_index()[["scheme", "group", "matrices", "bytes", "bits_per_weight", "weight_error"]]

    def heatmap(self, metric: str | None = None) -> go.Figure:
        """Layer x matrix: errors by default ("output_error" with a text), or "bits_per_weight" or "bytes"."""
        name = self.quantized.name
        best = "output_error" if "output_error" in self.frame else "weight_error"
        cells = self.frame.assign(format=name, used=name)
        return figures.heatmap(cells, metric or best, [name])

    def report(self, path: str | Path) -> Path:
        """Write everything as one page of HTML that fetches nothing."""
        return report.write(self, path)

    def headline(self) -> str:
        return f"{shown(self.quantized.name)} against {shown(self.original.name)}"

    def lines(self) -> list[str]:
        """What a reader should know first."""
        before, after = self.original.nbytes, self.quantized.nbytes
        share = f", {after / before:.0%} of it" if before else ""
        kinds = Counter(each.kind for each in self.unusual)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        count = "1 finding" if len(self.unusual) == 1 else f"{len(self.unusual)} findings"
        said = f"{count}: {listed}" if kinds else "nothing unusual was found"
        return [
            f"{len(self.frame)} matrices; {figures.size(before)} became {figures.size(after)}{share}",
            *([f"config.json says: {method}"] if (method := self.method()) else []),
            said,
        ]

    def method(self) -> str:
        """What the checkpoint says of its quantization, shortened."""
        settings = self.quantized.config.get("quantization_config")
        if not isinstance(settings, dict):
            return ""
        told = {key: value for key, value in settings.items() if isinstance(value, str | int | float | bool)}
        return shown(", ".join(f"{key} {value}" for key, value in told.items()))[:300]

    def __repr__(self) -> str:
        table = self.summary.assign(scheme=self.summary.scheme.map(shown)).to_string(index=False, float_format="%.3g")
        told = [f"  {shown(each.tensor)}: {shown(each.what)}" for each in self.unusual[:MOST]]
        more = [f"  and {len(self.unusual) - MOST} more in .findings"] if len(self.unusual) > MOST else []
        return "\n".join([self.headline(), *self.lines(), *told, *more, table])

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.headline())}</b></p>{report.overview(self)}{report.findings(self, MOST)}"
