"""Two small charts as markup, a few kilobytes each: the front with the plan on it, and predicted against measured.

They are made anew for every change of a plan, many times a second while a slider moves; a plotly figure would take
longer to send than everything else together. What is predicted is hollow or dashed, what was measured is solid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench import figures
from workbench.allocation.figure import MARKS
from workbench.panels.parts import Markup, tag

if TYPE_CHECKING:
    import pandas as pd

    from workbench.allocation.priced import Prediction

WIDTH, HEIGHT = 460.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 10.0, 10.0, 36.0
MOST_POINTS = 160  # of a line: more are not seen
FADED = 0.55


@dataclass(frozen=True)
class Point:
    """A plan on a chart: bits per weight, predicted KL with its band, and what was measured; all in nats per token."""

    name: str
    bits: float
    kl: float
    low: float = math.nan
    high: float = math.nan
    measured: float = math.nan
    error: float = math.nan

    @classmethod
    def of(cls, name: str, bits: float, predicted: Prediction) -> Point:
        return cls(name, bits, predicted.kl, predicted.low, predicted.high)


@dataclass(frozen=True)
class _Axis:
    """Values to places between two ends; a log axis takes the logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = self._of(value)
        low, high = self._of(self.low), self._of(self.high)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    @property
    def ticks(self) -> dict[float, str]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 3) if last - first < 4 else (1,)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            step = next(each for each in (0.1, 0.25, 0.5, 1, 2, 5, 10) if (self.high - self.low) / each < 8)
            found = [number * step for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return {each: f"{each:g}" for each in found if self.low <= each <= self.high}


@dataclass(frozen=True)
class Backdrop:
    """What a plan moves on: the best mixes, (bits per weight, KL), and marks, (kind, name, bits, KL, words)."""

    best: list[tuple[float, float]]
    marks: list[tuple[str, str, float, float, str]]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Backdrop:
        """From the frame of an `allocation.front.Front`."""
        rows = list(frame[frame.kl > figures.LEAST_KL].itertuples())
        best = [(row.bits, row.kl) for row in rows if row.kind == "front"]
        step = max(1, len(best) // MOST_POINTS)
        marks = [
            (
                *(row.kind, row.name, row.bits, row.kl),
                f"{row.name}: {row.bits:.2f} bits, {figures.size(row.nbytes)}, predicted KL {row.kl:.3g}",
            )
            for row in rows
            if row.kind in ("uniform", "rule")
        ]
        return cls([*best[:-1:step], *best[-1:]], marks)


def front(
    behind: Backdrop,
    now: Point,
    *,
    last: Point | None = None,
    around: tuple[Sequence[float], Sequence[float]] | None = None,
    verified: Iterable[Point] = (),
) -> Markup:
    """Bits per weight against predicted KL: the best mixes as a line, what people take as marks, the plan on it.

    Args:
        last: the plan before the last change.
        around: bits per weight and KL of the best mixes around what is locked.
        verified: plans that were measured.
    """
    measured = [each for each in verified if each.measured > 0]
    beside = [each for each in (now, last) if each is not None and each.kl > 0]
    places = [*behind.best, *(mark[2:4] for mark in behind.marks), *((each.bits, each.kl) for each in beside)]
    x, y = _axes([bits for bits, _ in places], [*(kl for _, kl in places), *(each.measured for each in measured)])
    drawn = [*_frame(x, y, "bits per weight of the whole model", "predicted KL, nats per token")]
    if around is not None:
        drawn.append(_line(x, y, *around, color=MARKS["plan"][1], dash="2 3"))
    drawn.append(_line(x, y, *([each[i] for each in behind.best] for i in (0, 1)), color=figures.BEFORE))
    words = _Words()
    for kind, name, bits, kl, said in behind.marks:
        drawn.append(_mark(x(bits), y(kl), kind, MARKS[kind][1], said))
        if kind == "uniform" or name == "Q4_K_M":
            words.add(x(bits), y(kl), name)
    drawn += words.drawn
    for point in measured:
        drawn += _measured(x(point.bits), y, point)
    if last is not None and last.kl > 0:
        ends = {"x1": x(last.bits), "y1": y(last.kl), "x2": x(now.bits), "y2": y(max(now.kl, y.low))}
        drawn.append(tag("line", **_short(ends), stroke=MARKS["plan"][1], stroke_dasharray="1 3", stroke_width=1.5))
        drawn.append(_circle(x(last.bits), y(last.kl), 3.5, "none", MARKS["plan"][1], f"before: {_said(last)}"))
    if now.kl > 0:
        drawn += _band(x(now.bits), y, now)
        drawn.append(_circle(x(now.bits), y(now.kl), 7, "var(--paper, #fff)", MARKS["plan"][1], _said(now), width=3))
    return _svg(drawn, f"The front of the best mixes. {_said(now)}")


def agreement(verified: Sequence[Point]) -> Markup:
    """Predicted against measured KL, with the band of each prediction and the line on which they agree."""
    points = [each for each in verified if each.kl > 0 and each.measured > 0]
    every = [value for each in points for value in (each.kl, each.measured)]
    x, y = _axes(every, every, log=True)
    drawn = _frame(x, y, "predicted KL, nats per token", "measured KL")
    ends = [max(x.low, y.low), min(x.high, y.high)]
    drawn.append(_line(x, y, ends, ends, color="currentColor", dash="4 4", opacity=FADED))
    for each in points:
        if each.low == each.low:
            drawn.append(_bar(x(each.low), y(each.measured), x(each.high), y(each.measured)))
        drawn += _measured(x(each.kl), y, each)
        drawn.append(_word(x(each.kl), y(each.measured) - 11, each.name, "middle", size=10))
    return _svg(drawn, "Predicted against measured: " + "; ".join(_said(each) for each in points))


# --- pieces --------------------------------------------------------------------------------------------------


class _Words:
    """Names beside marks; one that would lie over another is left to the mark's hint."""

    def __init__(self) -> None:
        self.drawn: list[Markup] = []
        self._taken: list[tuple[float, float, float]] = []

    def add(self, x: float, y: float, text: str) -> None:
        wide = 5.8 * len(text)
        left, anchor = (x + 6, "start") if x + 6 + wide < WIDTH else (x - 6 - wide, "end")
        if any(abs(y - other) < 10 and left < end and left + wide > start for start, end, other in self._taken):
            return
        self._taken.append((left, left + wide, y))
        self.drawn.append(_word(x + 6 if anchor == "start" else x - 6, y - 5, text, anchor, size=9.5, opacity=0.8))


def _axes(xs: Iterable[float], ys: Iterable[float], *, log: bool = False) -> tuple[_Axis, _Axis]:
    found_x, found_y = list(xs) or [1.0], list(ys) or [1.0]
    low, high = min(found_y) / 1.5, max(found_y) * 1.5
    across = (min(found_x) / 1.5, max(found_x) * 1.5) if log else (min(found_x) - 0.15, max(found_x) + 0.15)
    return _Axis(*across, LEFT, WIDTH - RIGHT, log), _Axis(low, high, HEIGHT - BOTTOM, TOP, True)


def _frame(x: _Axis, y: _Axis, across: str, down: str) -> list[Markup]:
    """The axes, their ticks, their names."""
    drawn = []
    for value, label in y.ticks.items():
        drawn.append(_bar(LEFT, y(value), WIDTH - RIGHT, y(value), opacity=0.14))
        drawn.append(_word(LEFT - 6, y(value) + 3.5, label, "end"))
    for value, label in x.ticks.items():
        drawn.append(_bar(x(value), TOP, x(value), HEIGHT - BOTTOM, opacity=0.08))
        drawn.append(_word(x(value), HEIGHT - BOTTOM + 14, label, "middle"))
    drawn.append(_word((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, across, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    drawn.append(_word(11, middle, down, "middle", transform=f"rotate(-90 11 {middle:.0f})"))
    return drawn


def _svg(drawn: Iterable[Markup], said: str) -> Markup:
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    style = "width: 100%; max-width: 620px; display: block; overflow: visible"
    return tag("svg", *drawn, viewBox=box, role="img", aria_label=said, style=style, font_size="11")


def _line(
    x: _Axis,
    y: _Axis,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    color: str,
    dash: str | None = None,
    opacity: float = 1,
) -> Markup:
    step = max(1, len(xs) // MOST_POINTS)
    kept = [*range(0, len(xs), step), *([len(xs) - 1] if len(xs) else [])]
    points = " ".join(f"{x(xs[i]):.1f},{y(ys[i]):.1f}" for i in kept if ys[i] > 0)
    look = {"fill": "none", "stroke": color, "stroke_width": 2, "stroke_dasharray": dash, "opacity": opacity}
    return tag("polyline", points=points, **look)


def _bar(x1: float, y1: float, x2: float, y2: float, *, opacity: float = FADED, color: str = "currentColor") -> Markup:
    return tag("line", **_short({"x1": x1, "y1": y1, "x2": x2, "y2": y2}), stroke=color, opacity=opacity)


def _word(x: float, y: float, text: str, anchor: str, *, size: float = 11, **more: Any) -> Markup:
    look = {"font_size": size, "fill": "currentColor", "opacity": 0.75, **more}
    return tag("text", text, **_short({"x": x, "y": y}), text_anchor=anchor, **look)


def _circle(x: float, y: float, r: float, fill: str, stroke: str, said: str, *, width: float = 1.5) -> Markup:
    place = _short({"cx": x, "cy": y, "r": r})
    return tag("circle", tag("title", said), **place, fill=fill, stroke=stroke, stroke_width=width)


def _mark(x: float, y: float, kind: str, color: str, said: str) -> Markup:
    turned = f"rotate(45 {x:.1f} {y:.1f})" if kind == "rule" else None
    place = _short({"x": x - 3, "y": y - 3, "width": 6, "height": 6})
    return tag("rect", tag("title", said), **place, transform=turned, fill=color)


def _band(x: float, y: _Axis, point: Point) -> list[Markup]:
    """The band of a prediction."""
    return [] if math.isnan(point.low) else [_bar(x, y(point.low), x, y(point.high), color=MARKS["plan"][1], opacity=1)]


def _measured(x: float, y: _Axis, point: Point) -> list[Markup]:
    """A measurement: solid, with twice its standard error."""
    more = 2 * point.error if point.error == point.error else 0.0
    ends = y(max(point.measured - more, y.low)), y(point.measured + more)
    bar = _bar(x, ends[0], x, ends[1], opacity=1)
    return [bar, _circle(x, y(point.measured), 4.5, "currentColor", "none", _said(point))]


def _said(point: Point) -> str:
    measured = "" if math.isnan(point.measured) else f", measured {point.measured:.3g}"
    return f"{point.name}: {point.bits:.2f} bits per weight, predicted KL {point.kl:.3g}{measured}"


def _short(places: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in places.items()}
