"""Small pieces that the panels are built of, and the one place where text becomes markup.

ipywidgets puts the value of an `HTML` widget into the page as it is. So the panels write
markup only with `tag`, which escapes everything that is not markup itself.
"""

from __future__ import annotations

import html
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from workbench import figures
from workbench.exceptions import WorkbenchError
from workbench.fit import DoesNotFit
from workbench.panels.jobs import Jobs, Status
from workbench.progress import Progress

STYLE = Path(__file__).with_name("panels.css")


class Markup(str):
    """A string that is markup already: made by `tag`, or escaped by whoever made it."""


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """`<name attributes>content</name>`; whatever is not `Markup` is escaped. `cls` stands for class."""
    said = "".join(
        f' {key.replace("cls", "class").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{said}>{together(*content)}</{name}>")


def together(*content: object) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, cls: str = "wb-table") -> Markup:
    """A plain table; every column after the first holds figures and is aligned to the right."""
    head = tag("tr", *(tag("th", each, scope="col") for each in heads))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("table", tag("thead", head), tag("tbody", *body), cls=cls)


def note(text: object, *, kind: str = "note") -> Markup:
    return tag("div", text, cls=f"wb-{kind}", role="note")


def fold(summary: str, *content: object, cls: str = "wb-fold") -> Markup:
    return tag("details", tag("summary", summary), *content, cls=cls)


def error_markup(error: BaseException, *, kind: str = "error") -> Markup:
    """What went wrong, for a reader: a WorkbenchError in full, anything else with its traceback folded."""
    if isinstance(error, WorkbenchError):
        lines = [tag("p", tag("b", error.item), ": ", error.found)]
        lines += [tag("p", "Allowed: ", error.allowed)] if error.allowed else []
        lines += [tag("p", "Try: ", error.do)] if error.do else []
        return tag("div", *lines, cls=f"wb-{kind}", role="alert" if kind == "error" else "note")
    told = "".join(traceback.format_exception(error))
    short = tag("p", tag("b", type(error).__name__), ": ", str(error) or "no message")
    return tag("div", short, fold("Traceback", tag("pre", told)), cls="wb-error", role="alert")


# --- words and numbers -----------------------------------------------------------------------------------


PLURALS = {"token": "tokens", "matrix": "matrices"}  # the units of `Progress` that are named in the singular


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def count(number: float) -> str:
    """A count as a reader wants it: 134.5 M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale * (10 if unit == "k" else 1):
            return f"{number / scale:.4g} {unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02d} s"


def amount(step: Progress) -> str:
    """How far a step has come, in its unit: "57.2 M of 134.5 M weights"."""
    if step.unit == "B":
        done, total, unit = figures.size(step.done), figures.size(step.total), ""
    else:
        unit = step.unit.strip()
        done, total, unit = count(step.done), count(step.total), f" {PLURALS.get(unit, unit)}"
    return f"{done} of {total}{unit}" if step.total > 0 else (f"{done}{unit}" if step.done else "")


# --- widgets -----------------------------------------------------------------------------------


def style() -> widgets.HTML:
    made = widgets.HTML(f"<style>{STYLE.read_text()}</style>")
    made.layout.display = "none"
    return made


def box(*children: widgets.Widget, cls: str) -> widgets.Box:
    """A container that the style sheet lays out."""
    made = widgets.Box(children)
    for each in cls.split():
        made.add_class(each)
    return made


def html_box(cls: str = "") -> widgets.HTML:
    made = widgets.HTML()
    for each in cls.split():
        made.add_class(each)
    return made


def button(label: str, on_click: Callable[[], Any], *, primary: bool = False, cls: str = "") -> widgets.Button:
    made = widgets.Button(description=label, button_style="primary" if primary else "")
    made.layout.width = "auto"
    for each in cls.split():
        made.add_class(each)
    made.on_click(lambda _: on_click())
    return made


def show(widget: widgets.DOMWidget, visible: bool) -> None:
    widget.layout.display = None if visible else "none"


def hint(text: str) -> widgets.HTML:
    """A quiet line of explanation."""
    return widgets.HTML(str(tag("div", text, cls="wb-hint")))


def fill(widget: widgets.HTML, content: Markup) -> None:
    """Change an HTML widget only if its content does, so that a folded part stays as the reader left it."""
    if widget.value != content:
        widget.value = str(content)


def choose(menu: widgets.Dropdown, options: Sequence[Any], value: Any) -> None:
    """Give a menu its options and its choice, without a moment in which it has neither."""
    if list(menu.options) != list(options):
        menu.options = options
    menu.value = value


def folded(label: str, inside: widgets.Widget) -> widgets.Widget:
    """Widgets behind a button that shows and hides them; hidden at first."""
    show(inside, False)
    toggle = widgets.ToggleButton(description=label)
    toggle.layout.width = "auto"
    toggle.add_class("wb-link")
    toggle.observe(lambda change: show(inside, change.new), "value")
    return box(toggle, inside, cls="wb-stack")


class Code(anywidget.AnyWidget):
    """A read-only block of text with a copy button; hidden while there is none.

    Attributes:
        code: the text.
        label: what it is, on the button: "code" for "Copy code"; it may be empty.
        bare: the button alone, for a text that stands beside it in another form.
    """

    _esm = Path(__file__).with_name("code.js")
    code = traitlets.Unicode("").tag(sync=True)
    label = traitlets.Unicode("code").tag(sync=True)
    bare = traitlets.Bool(False).tag(sync=True)


class Strip:
    """The line of a panel that tells of the session's job: how far it is, how it ended, and Cancel."""

    def __init__(self, jobs: Jobs, owner: object) -> None:
        self.jobs, self.owner = jobs, owner
        self.kept = "What was finished is kept."  # what is said after a cancel
        self.cancels_its_own = True  # False for a panel that has a button of its own for that
        self.said = html_box("wb-said")
        self.cancel = button("Cancel", jobs.cancel)
        self.anyway = button("Go ahead anyway", lambda: self.go_ahead and self.go_ahead())
        self.go_ahead: Callable[[], Any] | None = None  # does it again for a user who does so although it does not fit
        self.widget = box(self.said, self.cancel, self.anyway, cls="wb-strip")
        jobs.observe(self._changed, "status")
        self._show(jobs.status)

    def fail(self, error: BaseException) -> None:
        """Show an error that came outside of a job, in a callback say."""
        fill(self.said, error_markup(error))
        show(self.cancel, False)
        self._offer(error)
        show(self.widget, True)

    def clear(self) -> None:
        if not self.jobs.status.busy:
            show(self.widget, False)

    def _changed(self, change: Any) -> None:
        self._show(change.new)

    def _show(self, status: Status) -> None:
        mine = status.owner is self.owner
        content = status_markup(status, self.jobs.threaded, self.kept) if status.busy or mine else Markup("")
        fill(self.said, content)
        self.cancel.disabled = status.state == "cancelling"
        show(self.cancel, status.busy and self.jobs.threaded and (self.cancels_its_own or not mine))
        self._offer(status.error if mine and status.state == "failed" else None)
        show(self.widget, bool(content))

    def _offer(self, error: BaseException | None) -> None:
        show(self.anyway, isinstance(error, DoesNotFit) and self.go_ahead is not None)


def status_markup(status: Status, threaded: bool, kept: str) -> Markup:
    """One line on the job: a bar and its figures while it runs, a sentence when it has ended."""
    if status.state == "failed" and status.error is not None:
        return error_markup(status.error)
    if status.state == "cancelled":
        return tag("div", f"Cancelled after {duration(status.seconds)}. {kept}", cls="wb-ended")
    if not status.busy:
        return Markup("")
    step = status.progress
    parts = [amount(step) if step else "", duration(status.seconds)]
    if status.left is not None:
        parts.append(f"about {duration(status.left)} left")
    if status.state == "cancelling":
        parts = ["cancelling"]
    elif not threaded:
        parts.append("to cancel, interrupt the kernel (the stop button of the cell, or Runtime > Interrupt)")
    words = [status.name, *(part for part in parts if part)]
    happening = step.message if step else ""
    return tag(
        "div",
        _bar(step.fraction if step else None),
        tag("span", ", ".join(words)),
        tag("span", happening, cls="wb-happening"),
        cls="wb-progress",
    )


def _bar(fraction: float | None) -> Markup:
    if fraction is None:
        return tag("div", tag("i"), cls="wb-meter wb-unknown", role="progressbar")
    now = f"{100 * fraction:.0f}"
    return tag(
        "div",
        tag("i", style=f"width: {100 * fraction:.1f}%"),
        cls="wb-meter",
        role="progressbar",
        aria_valuenow=now,
        aria_valuemin=0,
        aria_valuemax=100,
    )


def picture(figure: Any, *, dark: bool) -> dict[str, Any]:
    """A plotly figure as one output of an `Output` widget, in colours that suit the page.

    Set from data, not through `display`, which from a thread or a callback may end up anywhere.
    """
    import json

    import plotly.io

    ink, line = ("#e0e0e0", "#4a4a4a") if dark else ("#333333", "#dddddd")
    clear = "rgba(0,0,0,0)"
    font = {"color": ink, "size": 12, "family": "system-ui, sans-serif"}
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, font=font)
    figure.update_annotations(font_size=12)  # the titles of the plots
    axes = {"gridcolor": line, "linecolor": line, "zerolinecolor": line, "title_font_size": 12}
    figure.update_xaxes(axes)
    figure.update_yaxes(axes)
    if dark:
        figure.update_traces(marker_color="#aab4c0", selector={"marker.color": figures.CHANNEL})
    data = {"application/vnd.plotly.v1+json": json.loads(figure.to_json()) | {"config": {"displayModeBar": False}}}
    if "google.colab" in sys.modules or plotly.io.renderers.default in ("colab", "kaggle"):  # no renderer for that type
        data = {"text/html": figure.to_html(full_html=False, include_plotlyjs="cdn")}
    return {"output_type": "display_data", "data": data, "metadata": {}}
