"""The panels together, over one session: `wb.app(model)`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from workbench import figures
from workbench.checkpoint import Checkpoint, load
from workbench.checkpoint.tree import shown
from workbench.panels import parts
from workbench.panels.benchmark import Benchmark
from workbench.panels.chat import Chat
from workbench.panels.export import Export
from workbench.panels.fit import Fit
from workbench.panels.inspect import Inspect
from workbench.panels.load import Load
from workbench.panels.panel import Panel, Shown
from workbench.panels.parts import Markup, tag, together
from workbench.panels.plan import Plan
from workbench.panels.quantize import Quantize
from workbench.panels.session import Session

if TYPE_CHECKING:
    from workbench.measure.errors import ErrorTable

PANELS: tuple[type[Panel], ...] = (Load, Fit, Quantize, Inspect, Plan, Export, Chat, Benchmark)


def app(
    model: Checkpoint | str | None = None, errors: ErrorTable | None = None, *, session: Session | None = None
) -> App:
    """The panels as one app: load a model, see whether it fits and what formats do to it, choose one, write it, talk.

        wb.app()                 # choose a model in the app
        wb.app(model)            # one that is open
        wb.app(errors=table)     # one that is measured

    Args:
        model: an opened checkpoint, or what `wb.load` takes.
        errors: the table of `wb.errors`, to be shown at once.
        session: panels with the same session stay in step.

    Raises:
        WorkbenchError: the model cannot be opened.
    """
    session = session or Session()
    if isinstance(model, Checkpoint):
        session.open(model)
    elif model is not None:
        session.open(load(model), model)
    if errors is not None:
        session.show(errors)
    return App(session)


class App(Shown):
    """The panels, one shown at a time; made by `wb.app`.

    Attributes:
        session: what the panels share; observe it, or set it from code.
        load, fit, quantize, inspect, plan, export, chat, benchmark: the panels.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.load, self.fit, self.quantize, self.inspect = (
            Load(session),
            Fit(session),
            Quantize(session),
            Inspect(session),
        )
        self.plan, self.export, self.chat = Plan(session), Export(session), Chat(session)
        self.benchmark = Benchmark(session)
        self.panels: list[Panel] = [getattr(self, panel.title.lower()) for panel in PANELS]
        self._code = self.load._code
        self._head = parts.html_box("wb-grow")
        self._steps = [
            parts.button(f"{number}  {panel.title}", partial(self.turn_to, panel), cls="wb-step")
            for number, panel in enumerate(self.panels, start=1)
        ]
        top = parts.box(*self._steps, self._head, cls="wb-top")
        self.widget = parts.box(top, *(panel.widget for panel in self.panels), cls="wb wb-app")
        session.observe(self._changed, ["checkpoint", "errors", "page"])
        self._tell()
        self.turn_to(self.load if session.checkpoint is None else self.inspect if session.errors else self.quantize)

    def turn_to(self, panel: Panel) -> None:
        """Show one panel."""
        for each, step in zip(self.panels, self._steps, strict=True):
            parts.show(each.widget, each is panel)
            (step.add_class if each is panel else step.remove_class)("wb-on")
        self.shown = panel

    def _changed(self, change: Any) -> None:
        if change.name == "page":
            for panel in self.panels:
                if panel.title == change.new:
                    self.turn_to(panel)
            self.session.page = ""  # so that the same page can be asked for again
            return
        self._tell()
        if change.name == "errors" and change.new is not None and self.shown is self.quantize:
            self.turn_to(self.inspect)  # whoever has gone elsewhere meanwhile is left there

    def _tell(self) -> None:
        model = self.session.checkpoint
        if model is None:
            parts.fill(self._head, Markup(""))
            return
        facts = f"{parts.count(model.params)} weights, {figures.size(model.nbytes)}"
        parts.fill(self._head, tag("div", tag("b", shown(model.name)), f" {facts}", cls="wb-model"))

    def snapshot(self) -> Markup:
        return together(*(panel.snapshot() for panel in self.panels))

    def __repr__(self) -> str:
        return "\n\n".join(repr(panel) for panel in self.panels)
