"""The error table as a grid of cells: layers down, matrices across, embedding and head apart.

`view_of` turns a tidy frame into what is drawn, words and colours included; `Grid` is the
widget (grid.js) that draws it and reports the selected tensor. Colours come from one log
scale for all formats that were measured, so switching the format keeps their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from workbench import figures
from workbench.checkpoint.tree import shown

if TYPE_CHECKING:
    import pandas as pd

HEIGHT = 520  # pixels for all layers together, within the limits below
ROW_LEAST, ROW_MOST = 8, 20

View = dict[str, Any]


def script(*names: str) -> str:
    """Files of this folder as one module, since a widget's cannot import another."""
    return "\n".join(Path(__file__).with_name(name).read_text() for name in names)


class Grid(anywidget.AnyWidget):
    """The heatmap. `view` is drawn; `selected` is the tensor chosen by mouse or keyboard.

    Arrows, Home, End, PageUp and PageDown move; Enter and the space bar select.
    """

    _esm = script("grid.js", "inspect.js")
    _css = Path(__file__).with_name("grid.css")

    view = traitlets.Dict().tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    dark = traitlets.Bool(False).tag(sync=True)  # told by the front end, for the figures beside the grid


def view_of(frame: pd.DataFrame, metric: str, format: str, against: str | None = None) -> View:
    """What the grid draws: one format, or how many times larger its error is than that of `against`.

    Args:
        frame: the tidy table of `wb.errors`.
        metric: one of `figures.METRICS`.
    """
    rows = frame[frame.format == format]
    base = None if against is None else frame[frame.format == against].set_index("tensor")[metric]
    scale = Scale.of(frame[metric], metric) if base is None else Scale.ratios(rows, base, metric, format, against)
    roles = figures.roles_of(frame)
    cells = {where: _cell(some, metric, scale, base, against) for where, some in _together(rows)}
    layers = sorted({layer for layer, _ in cells if layer is not None})
    apart = [role for layer, role in cells if layer is None]
    above = [role for role in apart if role.startswith("embed")]
    head = [_apart(role, cells) for role in above]
    tail = [_apart(role, cells) for role in apart if role not in above]
    middle = [
        {"label": str(layer), "apart": False, "cells": [cells.get((layer, role)) for role in roles]} for layer in layers
    ]
    fallbacks = int((rows.used != rows.format).sum())
    said = f"corner: stored in another format, because the shape does not fit ({fallbacks} of {len(rows)} matrices)"
    return {
        "title": f"{figures.METRICS[metric]}, {format}" + (f" against {against}" if against else ""),
        "columns": columns(roles),
        "rows": head + middle + tail,
        "row_height": row_height(len(layers)),
        "scale": scale.legend(),
        "fallbacks": said if fallbacks else "",
    }


def row_height(layers: int) -> int:
    """Pixels of a layer's row."""
    return max(ROW_LEAST, min(ROW_MOST, HEIGHT // max(layers, 1) - 2))


def value_text(value: float | None, metric: str) -> str:
    """A figure with its unit; errors are shares of the whole, where 1 means that nothing is left."""
    if value is None or figures.missing(value):
        return "not measured"
    if metric == "bytes":
        return figures.size(value)
    return f"{value:.4g} bits per weight" if metric == "bits_per_weight" else plain(value)


def plain(value: float) -> str:
    """A share to three digits, without an exponent unless it is tiny: 0.0000238."""
    if 0 < abs(value) < 1e-7:
        return f"{value:.2g}"
    return np.format_float_positional(float(f"{value:.3g}"), trim="-")


ATTENTION = ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj")


def columns(roles: Sequence[str]) -> list[View]:
    """The heads of the grid."""
    return [{"name": role.removesuffix("_proj"), "group": _group(role)} for role in roles]


def _group(role: str) -> str:
    return "attention" if role in ATTENTION else "feed-forward"


APART = {"embed_tokens": "embedding", "lm_head": "head"}


def _apart(role: str, cells: dict[tuple[int | None, str], View]) -> View:
    return {"label": APART.get(role, role), "apart": True, "cells": [cells[None, role]]}


def _together(rows: pd.DataFrame) -> Iterable[tuple[tuple[int | None, str], list[Any]]]:
    """Rows by place in the grid; the experts of a layer share one place."""
    places: dict[tuple[int | None, str], list[Any]] = {}
    for row in rows.itertuples():
        layer = None if figures.missing(row.layer) else int(row.layer)
        places.setdefault((layer, str(row.role)), []).append(row)
    return places.items()


def _cell(rows: Sequence[Any], metric: str, scale: Scale, base: pd.Series | None, against: str | None) -> View:
    """One cell. Of several matrices in one place (experts) it has their mean by weights, and selects the worst."""
    value = _mean([getattr(row, metric) for row in rows], rows)
    other = None if base is None else _mean([base[row.tensor] for row in rows], rows)
    ratio = None if base is None else _ratio(value, other)
    at = scale.at(value if base is None else ratio)
    worst = max(rows, key=lambda row: -1.0 if figures.missing(getattr(row, metric)) else float(getattr(row, metric)))
    used = worst.used if worst.used == worst.format else f"{worst.used}, because {worst.format} does not fit this shape"
    lines = [
        shown(worst.tensor),
        f"{worst.rows:,} × {worst.cols:,} weights, {figures.size(worst.bytes)}",
        f"{used}, {worst.bits_per_weight:.4g} bits per weight",
    ]
    if len(rows) > 1:
        lines[0] += f" and {len(rows) - 1} more of its kind"
    if metric not in ("bytes", "bits_per_weight"):
        lines.append(f"{figures.METRICS[metric]}: {value_text(value, metric)}")
    compared = "not comparable" if ratio is None else f"{ratio:.3g}×"
    if against is not None:
        lines.append(f"{compared} that of {against}: {value_text(other, metric)}")
    return {
        "tensor": worst.tensor,
        "value": value_text(value, metric) if base is None else compared,
        "at": at,
        "color": None if at is None else scale.color(at),
        "dark": at is None or scale.is_dark(at),
        "fallback": worst.used != worst.format,
        "lines": lines,
        "say": ", ".join(lines),
    }


def _mean(values: Sequence[Any], rows: Sequence[Any]) -> float | None:
    known = [(float(v), row.rows * row.cols) for v, row in zip(values, rows, strict=True) if not figures.missing(v)]
    return sum(v * weight for v, weight in known) / sum(weight for _, weight in known) if known else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value and base else None  # a ratio with an error of zero says nothing


class Scale:
    """Values to places on a log scale (0 to 1), and places to colours; from the axis of the same plotly figure."""

    def __init__(self, axis: dict[str, Any], colors: Sequence[str], label: str, log: Callable[[float], float]) -> None:
        self.low, self.high = float(axis["cmin"]), float(axis["cmax"])
        self.colors = [(int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in colors]
        self.label, self.log = label, log
        self.ticks = dict(zip(axis["colorbar"]["tickvals"], axis["colorbar"]["ticktext"], strict=True))

    @classmethod
    def of(cls, values: pd.Series, metric: str) -> Scale:
        """From the smallest to the largest value above zero."""
        import plotly.colors

        unit = "" if metric in ("bytes", "bits_per_weight", "cost") else " (1: nothing left)"
        colors = getattr(plotly.colors.sequential, figures.SCALE)
        return cls(figures.log_axis(values, metric), colors, figures.METRICS[metric] + unit, math.log10)

    @classmethod
    def ratios(cls, rows: pd.DataFrame, base: pd.Series, metric: str, format: str, against: str | None) -> Scale:
        """In doublings around "equal": blue where `format` does better, orange where it does worse."""
        found = [_ratio(getattr(row, metric), base[row.tensor]) for row in rows.itertuples()]
        furthest = max([1.0, *(abs(math.log2(ratio)) for ratio in found if ratio)])
        reach = min(furthest, figures.DOUBLINGS)
        label = f"{figures.METRICS[metric]} of {format} over that of {against}"
        return cls(figures.ratio_axis(reach), [str(color) for _, color in figures.RATIO_SCALE], label, math.log2)

    def at(self, value: float | None) -> float | None:
        """The place of a value; zero lies at the lower end. None for what was not measured."""
        if value is None or not math.isfinite(value):
            return None
        return 0.0 if value <= 0 else min(1.0, max(0.0, self._place(self.log(value))))

    def _place(self, log: float) -> float:
        return (log - self.low) / (self.high - self.low)

    def color(self, at: float) -> str:
        return "#" + "".join(f"{round(part):02x}" for part in self._mix(at))

    def is_dark(self, at: float) -> bool:
        red, green, blue = self._mix(at)
        return 0.299 * red + 0.587 * green + 0.114 * blue < 140

    def _mix(self, at: float) -> tuple[float, ...]:
        place = at * (len(self.colors) - 1)
        first = min(int(place), len(self.colors) - 2)
        share = place - first
        return tuple(a + share * (b - a) for a, b in zip(self.colors[first], self.colors[first + 1], strict=True))

    def legend(self) -> View:
        ticks = [{"at": self._place(tick), "label": label} for tick, label in self.ticks.items()]
        return {"label": self.label, "colors": [self.color(n / 12) for n in range(13)], "ticks": ticks}
