"""A plan being edited, as a grid of cells: which matrices each cell stands for, and how it looks now.

A cell is a matrix, or the experts of one layer and kind, which a layer can show one by one. What the grid must know
once (`view`) is apart from what every change makes anew (`paint`), so that a change sends little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from workbench import figures
from workbench.allocation.draft import Draft
from workbench.allocation.figure import colours
from workbench.checkpoint.tree import shown
from workbench.panels.grid import APART, ATTENTION, Scale, View, columns, row_height

EXPERT = re.compile(r"\.experts\.(\d+)\.")
MOST_OPEN = 3  # layers whose experts are shown at once: some hundred cells each
KINDS = {
    "all": "all",
    "attention": "attention",
    "feed-forward": "feed-forward",
    "costliest": "the costliest tenth",
    "locked": "what is locked",
    "fallbacks": "what got a fallback",
}
By = Literal["format", "cost"]


@dataclass(frozen=True)
class Cell:
    """A cell: its key in the page, the rows of its matrices in the tariff, and what it is called."""

    key: str
    rows: np.ndarray
    lines: tuple[str, ...]


class Sheet:
    """The cells of a draft.

    Attributes:
        open: the layers whose experts are shown one by one, the last opened last.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft, self.tariff = draft, draft.tariff
        self.open: list[int] = []
        self._infos = draft.model.matrices
        by_place: dict[tuple[int | None, str], list[int]] = {}
        for row, info in enumerate(self._infos):
            by_place.setdefault((info.layer, info.role), []).append(row)
        self.places = {place: self._cell(f"{_said(place[0])}|{place[1]}", rows) for place, rows in by_place.items()}
        self.roles = list(dict.fromkeys(role for layer, role in self.places if layer is not None))
        self.layers = sorted({layer for layer, _ in self.places if layer is not None})
        self._looks: dict[tuple[Any, ...], View] = {}

    @property
    def kinds(self) -> list[str]:
        """The kinds of matrices."""
        return list(dict.fromkeys(role for _, role in self.places))

    # --- which cells there are --------------------------------------------------------------------

    def rows(self, keys: Iterable[str]) -> list[int]:
        """The tariff's rows of the cells with these keys; of a key from an older page nothing."""
        return [row for key in keys if key in self.cells for row in self.cells[key].rows.tolist()]

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells that are shown, by key."""
        if self._cells is None:
            inner = [cell for layer in sorted(self.open) for cells in self._experts(layer).values() for cell in cells]
            self._cells = {cell.key: cell for cell in (*self.places.values(), *inner) if cell is not None}
            self._all = np.concatenate([cell.rows for cell in self._cells.values()])
            self._of = np.repeat(np.arange(len(self._cells)), [len(cell.rows) for cell in self._cells.values()])
        return self._cells

    _cells: dict[str, Cell] | None = None

    def some(self, which: str) -> list[str]:
        """The keys of cells of a kind: one of `KINDS`, or a matrix kind of the model."""
        cells, state, tariff = self.cells, self.draft.now, self.tariff
        costs, stored = tariff.costs(state.mix), tariff.stored(state.mix)
        if which == "costliest":
            by_cost = sorted(self.places.values(), key=lambda cell: -costs[cell.rows].sum())
            return [cell.key for cell in by_cost[: max(1, len(by_cost) // 10)]]
        tests = {
            "all": lambda cell, role: True,
            "attention": lambda cell, role: role in ATTENTION,
            "feed-forward": lambda cell, role: role in self.roles and role not in ATTENTION,
            "locked": lambda cell, role: state.locked[cell.rows].any(),
            "fallbacks": lambda cell, role: (stored[cell.rows] != state.mix[cell.rows]).any(),
        }
        test = tests.get(which, lambda cell, role: role == which)
        return [cell.key for (_, role), cell in self.places.items() if cell.key in cells and test(cell, role)]

    def fold(self, layer: int) -> None:
        """Show the experts of a layer one by one, or together again."""
        if layer in self.layers:
            self.open = [each for each in self.open if each != layer] + [layer] * (layer not in self.open)
            self.open, self._cells = self.open[-MOST_OPEN:], None

    def _cell(self, key: str, rows: Sequence[int]) -> Cell:
        first = self._infos[rows[0]]
        name, shape = first.name, " × ".join(f"{size:,}" for size in first.shape)
        if len(rows) > 1:
            return Cell(
                key, np.array(rows), (shown(EXPERT.sub(".experts.*.", name)), f"{len(rows)} of {shape} weights")
            )
        return Cell(key, np.array(rows), (shown(name), f"{shape} weights"))

    def _experts(self, layer: int) -> dict[int, list[Cell | None]]:
        """Expert -> its cell in each column."""
        found: dict[int, list[Cell | None]] = {}
        for column, role in enumerate(self.roles):
            cell = self.places.get((layer, role))
            for row in cell.rows.tolist() if cell is not None and len(cell.rows) > 1 else ():
                number = _expert(self._infos[row].name)
                if number is not None:
                    line = found.setdefault(number, [None] * len(self.roles))
                    line[column] = self._cell(f"{layer}|{role}|{number}", [row])
        return dict(sorted(found.items()))

    # --- once ---------------------------------------------------------------------------------------

    def view(self, by: By) -> View:
        """What does not change with the plan."""
        above = [place for place in self.places if place[0] is None and place[1].startswith("embed")]
        below = [place for place in self.places if place[0] is None and place not in above]
        lines = [self._apart(place) for place in above]
        for layer in self.layers:
            cells = [self.places.get((layer, role)) for role in self.roles]
            line = {"label": str(layer), "apart": False, "cells": [self._told(cell) for cell in cells]}
            if layer in self._expandable:
                line["open"] = layer in self.open
            lines.append(line)
            if layer in self.open:
                lines += [
                    {
                        "label": f"expert {number}",
                        "apart": False,
                        "inner": True,
                        "cells": [self._told(c) for c in experts],
                    }
                    for number, experts in self._experts(layer).items()
                ]
        return {
            "title": "The plan: a format for each matrix" if by == "format" else self._scale.label,
            "columns": columns(self.roles),
            "rows": lines + [self._apart(place) for place in below],
            "row_height": row_height(len(self.layers)),
            "formats": [self._offer(each.name) for each in self.draft.choices.asked],
            "colors": {name: {"color": color, "dark": _is_dark(color)} for name, color in self._colors.items()},
            "scale": self._scale.legend() if by == "cost" else None,
            "fallbacks": "",
        }

    def _apart(self, place: tuple[int | None, str]) -> View:
        return {"label": APART.get(place[1], place[1]), "apart": True, "cells": [self._told(self.places[place])]}

    def _told(self, cell: Cell | None) -> View | None:
        """A cell, and what it would be stored in for each format asked for; None where it cannot have it."""
        if cell is None:
            return None
        used = self.tariff.used[cell.rows, : len(self.draft.choices.asked)]
        same = (used == used[0]).all(0) & (used[0] >= 0) & self._whole(cell)
        names = [self.tariff.name(column) if alike else None for column, alike in zip(used[0], same, strict=True)]
        return {"key": cell.key, "lines": list(cell.lines), "as": names}

    def _whole(self, cell: Cell) -> bool:
        """Whether all that is kept together with a cell's matrices is in it."""
        group = self.tariff.group[cell.rows]
        return bool((self._sizes[group] <= len(cell.rows)).all())

    @cached_property
    def _sizes(self) -> np.ndarray:
        """[groups] matrices in each, and 0 for none at the end."""
        return np.array([*(len(group) for group in self.draft.choices.groups), 0])

    def _offer(self, name: str) -> View:
        rules = self.draft.rules
        why = "" if rules.runs(name) else f"{rules.program} does not run {name}"
        return {"name": name, "bits": f"{self.tariff.formats[self.tariff.column[name]].bits:g}", "why": why}

    @cached_property
    def _expandable(self) -> set[int]:
        places = self.places.items()
        return {p[0] for p, cell in places if p[0] is not None and len(cell.rows) > 1 and self._experts(p[0])}

    @cached_property
    def _colors(self) -> dict[str, str]:
        """Format -> colour, for every format that something can be stored in."""
        used = np.unique(self.tariff.used[:, : self.tariff.stays])
        return colours([self.tariff.name(column) for column in used.tolist() if column >= 0])

    @cached_property
    def _scale(self) -> Scale:
        """Costs of cells in any format, so that a colour keeps its meaning whatever is changed."""
        import pandas as pd

        found = [self.tariff.cost[cell.rows, : self.tariff.stays].sum(0) for cell in self.places.values()]
        costs = np.concatenate(found)
        return Scale.of(pd.Series(costs[np.isfinite(costs)]), "cost")

    # --- after every change -----------------------------------------------------------------------------

    def paint(self, by: By) -> dict[str, View]:
        """How every cell looks now, by key."""
        cells, tariff, state = self.cells, self.tariff, self.draft.now
        rows, of, many = self._all, self._of, len(self.cells)
        asked, stored = state.mix[rows], tariff.stored(state.mix)[rows]
        width = tariff.stays + 1
        counts = np.bincount(of * width + stored, minlength=many * width).reshape(many, width)
        most, sizes = counts.argmax(1), counts.sum(1)
        mixed = counts.max(1) < sizes
        fallen = np.bincount(of, weights=asked != stored, minlength=many) > 0
        locked = np.bincount(of, weights=state.locked[rows], minlength=many) > 0
        nbytes = np.bincount(of, weights=tariff.sizes(state.mix)[rows], minlength=many)
        costs = np.bincount(of, weights=tariff.costs(state.mix)[rows], minlength=many)
        wanted = asked[np.searchsorted(of, np.arange(many))]
        told = (each.tolist() for each in (most, mixed, fallen, locked, wanted, nbytes, costs))
        return {key: self._look(by, key, *each) for key, *each in zip(cells, *told, strict=True)}

    def _look(self, by: By, *state: Any) -> View:
        key = (by, *state)
        if key not in self._looks:
            if len(self._looks) > 100_000:
                self._looks.clear()
            self._looks[key] = self._made(by, *state)
        return self._looks[key]

    def _made(
        self, by: By, _: str, most: int, mixed: bool, fallen: bool, locked: bool, asked: int, nbytes: float, cost: float
    ) -> View:
        name = self.tariff.name(most)
        at = self._scale.at(cost) if by == "cost" and name else None
        color = self._colors.get(name) if by == "format" else None if at is None else self._scale.color(at)
        stored = f"several formats, mostly {name}" if mixed else name or "stays as it is in the file"
        if fallen and not mixed:
            stored += f", because {self.tariff.name(asked)} does not fit this shape"
        lines = [f"{stored}: {figures.size(nbytes)}"]
        if name:
            lines.append(f"predicted cost ≈ {cost:.2g} nats per token")
        if locked:
            lines.append("locked")
        return {
            **{"color": color, "dark": color is not None and _is_dark(color), "text": "mix" if mixed else name},
            **{"mixed": mixed, "fallback": fallen, "locked": locked, "at": at, "lines": lines},
        }


def _said(layer: int | None) -> str:
    return "" if layer is None else str(layer)


def _expert(name: str) -> int | None:
    found = EXPERT.search(name)
    return int(found[1]) if found and len(found[1]) < 9 else None


def _is_dark(color: str) -> bool:
    digits = [color[place : place + 2] for place in (1, 3, 5)] if color.startswith("#") else []
    red, green, blue = [float(int(each, 16)) for each in digits] or map(float, re.findall(r"[\d.]+", color)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
