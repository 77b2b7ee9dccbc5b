"""Inspect: the error of every matrix as a grid, two formats against each other, and one matrix opened."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from workbench import figures
from workbench.checkpoint.tree import shown
from workbench.panels import parts
from workbench.panels.grid import Grid, value_text, view_of
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, sentence, tag, together

NOTHING = ("nothing", "")  # in the menu of formats to compare with
COLUMNS = ("weight_error", "importance_error", "output_error")


class Inspect(Panel):
    """Shows an error table: `errors.heatmap`, `errors.compare`, `errors.matrix`."""

    title = "Inspect"
    lead = "Each cell is one matrix of the model. Click one, or move with the arrow keys and press Enter, to open it."

    def build(self) -> list[widgets.Widget]:
        self.shown = widgets.Dropdown(description="Format")
        self.against = widgets.Dropdown(description="Compare with")
        self.metric = widgets.Dropdown(description="Colour")
        self.grid = Grid()
        self.said = parts.html_box()
        self.partial = parts.html_box()
        self.picture = widgets.Output()
        self.shown.observe(lambda change: self.picked("shown", change.new), "value")
        self.against.observe(lambda change: self.picked("against", change.new), "value")
        self.metric.observe(lambda change: self.picked("metric", change.new), "value")
        self.grid.observe(lambda change: self.picked("tensor", change.new), "selected")
        self.grid.observe(lambda _: self.attempt(self._draw), "dark")
        self.empty = parts.hint("Nothing is measured yet: measure formats under Quantize.")
        self.body = parts.box(
            parts.box(self.shown, self.against, self.metric, cls="wb-row"),
            self.partial,
            parts.box(self.grid, parts.box(self.said, self.picture, cls="wb-stack"), cls="wb-columns wb-inspect"),
            cls="wb-stack",
        )
        self._detail: Any = None  # the opened matrix, and what it was opened for
        self._detail_of: object = None
        return [self.strip.widget, self.empty, self.body]

    def update(self) -> None:
        session, errors = self.session, self.session.errors
        parts.show(self.empty, errors is None)
        parts.show(self.body, errors is not None)
        if errors is None:
            self._detail = self._detail_of = None
            self.grid.view, self.grid.selected = {}, ""
            self._draw()
            return
        names = list(errors.formats)
        parts.choose(self.shown, names, session.shown)
        others = [(name, name) for name in names if name != session.shown]
        parts.choose(self.against, [NOTHING, *others], session.against)
        parts.choose(self.metric, [(figures.METRICS[name], name) for name in metrics_of(errors)], session.metric)
        view = view_of(errors.frame, session.metric, session.shown, session.against or None)
        if self.grid.view != view:
            self.grid.view = view
        self.grid.selected = session.tensor
        parts.fill(self.partial, partly(errors))
        self.attempt(self._open)

    def _open(self) -> None:
        """Open the selected matrix, unless it is open already."""
        wanted = (self.session.errors, self.session.tensor, self.session.shown)
        if self._detail_of != wanted:
            self._detail_of, self._detail = wanted, None
            self._draw()
            if self.session.tensor:
                self._detail = self.session.errors.matrix(self.session.tensor, self.session.shown)
        self._draw()

    def _draw(self) -> None:
        parts.fill(self.said, self._told())
        if self._detail is None:
            self.picture.outputs = ()
            return
        figure = self._detail.figure(stacked=True)
        figure.update_layout(title=None, height=520, margin={"l": 56, "r": 8, "t": 28, "b": 8})
        self.picture.outputs = (parts.picture(figure, dark=self.grid.dark),)

    def _told(self) -> Markup:
        """The selected matrix in words: its figures in the format shown, and the channels that suffer."""
        errors, tensor = self.session.errors, self.session.tensor
        if errors is None:
            return Markup("")
        if not tensor:
            return tag("div", "No matrix is selected.", cls="wb-hint wb-placeholder")
        frame = errors.frame
        row = next(frame[(frame.tensor == tensor) & (frame.format == self.session.shown)].itertuples())
        instead = "" if row.used == row.format else f", since {row.format} does not fit its {row.cols} columns"
        told = [
            ("Shape", f"{row.rows:,} × {row.cols:,}"),
            ("Stored as", f"{row.used}{instead}: {figures.size(row.bytes)}, {row.bits_per_weight:.4g} bits per weight"),
        ]
        for name in COLUMNS:
            if name in frame:
                told.append((sentence(figures.METRICS[name]), value_text(getattr(row, name), name)))
        if self._detail is not None:
            worst = ", ".join(f"{c} ({self._detail.channel_error[c]:.2g}×)" for c in self._detail.outliers[:4])
            told.append(("Outlier channels", f"{worst}: their error over the mean channel's"))
            if self._detail.rows < row.rows:
                told.append(("Opened", f"{self._detail.rows:,} of {row.rows:,} rows, evenly spread"))
        facts = tag("dl", *(together(tag("dt", name), tag("dd", value)) for name, value in told))
        return together(tag("div", shown(tensor), cls="wb-name"), tag("div", facts, cls="wb-facts"))

    @property
    def code(self) -> str:
        session = self.session
        if session.errors is None:
            return ""
        if session.against:
            lines = [f"errors.compare({session.against!r}, {session.shown!r}, {session.metric!r})"]
        else:
            lines = [f"errors.heatmap({session.metric!r}, {session.shown!r})"]
        if session.tensor:
            lines.append(f"errors.matrix({session.tensor!r}, {session.shown!r}).figure()")
        return "\n".join([session.errors_code, *(f"{line}.show()" for line in lines)])

    def still(self) -> Markup:
        """The grid as a table of figures, coloured as in the live one."""
        errors = self.session.errors
        if errors is None:
            return tag("p", "Nothing is measured yet.")
        view = view_of(errors.frame, self.session.metric, self.session.shown, self.session.against or None)
        width = len(view["columns"])
        lines = [tag("tr", tag("th", "layer"), *(tag("th", column["name"]) for column in view["columns"]))]
        for row in view["rows"]:
            span = width if row["apart"] else None
            lines.append(tag("tr", tag("th", row["label"]), *(still_cell(cell, span) for cell in row["cells"])))
        title = tag("p", f"{sentence(view['title'])}. {view['fallbacks']}")
        return together(title, partly(errors), tag("table", *lines), self._told())


def partly(errors: Any) -> Markup:
    """A word on a table that was cancelled, or holds what could not be measured."""
    known, rows = int(errors.frame[errors.best_metric].notna().sum()), len(errors.frame)
    if known == rows:
        return Markup("")
    told = f"{known:,} of {rows:,} figures are measured. Hatched cells are not: measure again to go on."
    return tag("div", told, cls="wb-hint")


def metrics_of(errors: Any) -> list[str]:
    """The figures that were measured, the nearest to what a user notices first."""
    found = [name for name in figures.METRICS if name in errors.frame and errors.frame[name].notna().any()]
    return sorted(found, key=lambda name: name != errors.best_metric)


def still_cell(cell: dict[str, Any] | None, span: int | None) -> Markup:
    if cell is None:
        return tag("td")
    ink = "#ffffff" if cell["dark"] else "#000000"
    style = f"background-color: {cell['color']}; color: {ink}" if cell["color"] else None
    return tag("td", cell["value"], colspan=span, style=style, title=cell["say"])
