"""What every panel is: a view of the session that shows its notes, its job, its call as code, and a still picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import ipywidgets as widgets

from workbench.panels import parts
from workbench.panels.parts import Markup, tag, together
from workbench.panels.session import FITTING, Session

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Shown:
    """Something with a widget that a notebook displays, and a still picture where widgets do not run.

    The still picture is what GitHub, nbconvert and a saved notebook show. It is given as
    plain markup and plain text beside the live view, by the same names in ipywidgets 7 and 8.
    """

    widget: widgets.Widget
    _code: parts.Code

    def snapshot(self) -> Markup:
        """The present state as markup without scripts."""
        raise NotImplementedError

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = self._code._repr_mimebundle_() or ({}, {})  # with what Colab needs to find anywidget
        view = {**bundle[WIDGET_VIEW], "model_id": self.widget.model_id}
        return {WIDGET_VIEW: view, "text/html": str(self.snapshot()), "text/plain": repr(self)}, metadata


class Panel(Shown):
    """A view of one call. A panel made without a session makes its own."""

    title: ClassVar[str]
    lead: ClassVar[str]  # one sentence: what this panel is for
    passes_over: ClassVar[frozenset[str]] = FITTING  # what of the session it does not show: a slider's moves are many

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session()
        self.strip = parts.Strip(self.session.jobs, self)
        self._notes = parts.html_box()
        self._code = parts.Code()
        self.widget = parts.box(
            parts.style(),
            widgets.HTML(str(tag("div", self.lead, cls="wb-lead"))),
            self._notes,
            *self.build(),
            self._code,
            cls="wb wb-panel",
        )
        self.session.observe(self._changed)
        self.session.jobs.observe(self._changed, "status")
        self._was_busy = False
        self._updating = False
        self.refresh()

    # --- what each panel gives ---------------------------------------------------------------

    def build(self) -> list[widgets.Widget]:
        """The widgets between the lead and the code, the job's line (`strip`) among them; called once."""
        raise NotImplementedError

    def update(self) -> None:
        """Make the widgets say what the session says; called after every change."""
        raise NotImplementedError

    @property
    def code(self) -> str:
        """The call behind what is shown: run as it stands, it gives the same result. Empty if there is none yet."""
        raise NotImplementedError

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the model that is shown."""
        return self.session.notes

    # --- what they share -----------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self.session.jobs.status.busy

    def refresh(self) -> None:
        """Say what the session says. Widgets that are changed here do not report back as if the user had."""
        with self.session.lock:
            if self._updating:
                return
            self._updating = True
            try:
                parts.fill(self._notes, together(*(parts.note(text) for text in self.notes)))
                self.update()
                self._code.code = self.code
            finally:
                self._updating = False

    def picked(self, name: str, value: Any) -> None:
        """The user chose `value` for the session's `name`."""
        with self.session.lock:
            if not self._updating and value is not None:
                self.attempt(lambda: setattr(self.session, name, value))

    def attempt(self, call: Callable[[], Any]) -> None:
        """Do what a click asked for; an error is shown in the panel, since a callback's goes nowhere."""
        try:
            self.strip.clear()
            call()
        except Exception as error:
            self.strip.fail(error)

    def _changed(self, change: Any) -> None:
        if change.name == "status":  # progress comes ten times a second; only its beginning and end matter here
            if change.new.busy == self._was_busy:
                return
            self._was_busy = change.new.busy
        if change.name not in self.passes_over:
            self.refresh()

    def snapshot(self) -> Markup:
        notes = [tag("p", tag("em", text)) for text in self.notes]
        return tag("div", tag("h4", self.title), *notes, self.still(), tag("pre", tag("code", self.code)))

    def still(self) -> Markup:
        """The panel's content without widgets."""
        raise NotImplementedError

    def __repr__(self) -> str:
        model = self.session.checkpoint
        lines = [f"{self.title}: {model.name if model is not None else 'no model yet'}", *self.notes]
        return "\n".join([*lines, *(["", self.code] if self.code else [])])
