"""Plan: a format for each matrix, by hand and by the solver, with size, fit and predicted quality as they move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench import files
from workbench.allocation import Draft
from workbench.allocation.verified import Verified
from workbench.exceptions import WorkbenchError
from workbench.fit import device
from workbench.panels import chart, judged, offers, parts
from workbench.panels.chart import Point
from workbench.panels.checks import Checks
from workbench.panels.drafting import PROGRAMS
from workbench.panels.editor import Editor
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag, together
from workbench.panels.preparing import Preparing
from workbench.panels.session import FITTING
from workbench.panels.sheet import KINDS
from workbench.planning import Plan as AnyPlan

MB = 1e6
STEPS = 500  # of the budget's slider
ASK = ("…", "")  # what a menu shows that is not a choice but an action
CHECKED = 2048  # tokens that a plan is verified on


class Plan(Panel):
    """Edits a plan: `wb.plan(card, formats, budget=...)` and what follows from it."""

    title = "Plan"
    lead = (
        "A format for each matrix. Click a cell, drag, or move with the arrows; a number key gives the selection a "
        "format. Size is exact, quality is predicted by the card until you verify it."
    )
    passes_over = FITTING | {
        "errors",
        "format",
        "formats",
        "metric",
        "shown",
        "against",
        "tensor",
        "page",
        "files",
        "engines",
    }

    def build(self) -> list[widgets.Widget]:
        self.draft: Draft | None = None
        self.preparing = Preparing(self, self._begin)
        self.checks = Checks(self)
        self._held: tuple[object, judged.Held] | None = None
        self._behind: tuple[Draft, chart.Backdrop] | None = None
        self._taken: object = None  # the session's plan that came from here, or was taken up here
        self.session.observe(self._fitting, ["engine", "context", "batch", "kv", "device"])
        self.empty = parts.hint("Open a model first.")
        self.body = parts.box(
            parts.box(self._editing(), self._judging(), cls="wb-columns wb-plan"), self._acting(), cls="wb-stack"
        )
        return [self.empty, self.preparing.widget, self.strip.widget, self.body]

    # --- widgets --------------------------------------------------------------------------------------

    def _editing(self) -> widgets.Widget:
        """The grid and what acts on its selection."""
        self.editor = Editor()
        self.editor.on_msg(lambda _, content, __: self._command(content))
        self.by = widgets.Dropdown(options=[("format", "format"), ("cost in nats", "cost")], description="Colour")
        self.by.observe(lambda change: self.editor.draw(change.new), "value")
        self.select = self._menu("Select", lambda which: self._select(which))
        self.lock = parts.button("Lock", lambda: self._command({"do": "lock", "cells": self.editor.chosen}))
        self.undo = parts.button("Undo", lambda: self._command({"do": "undo"}))
        self.redo = parts.button("Redo", lambda: self._command({"do": "redo"}))
        for each, said in ((self.lock, "L"), (self.undo, "Ctrl+Z"), (self.redo, "Ctrl+Y")):
            each.tooltip = f"key: {said}"
        tools = parts.box(self.select, self.by, self.lock, self.undo, self.redo, cls="wb-row wb-tools")
        return parts.box(tools, self.editor, cls="wb-stack")

    def _judging(self) -> widgets.Widget:
        """What the plan comes to, and the budget."""
        self.figures, self.front, self.deltas, self.memory = (parts.html_box() for _ in range(4))
        # In whole steps: a slider of floats rounds in the page what it is given, and reports that as the user's wish.
        self.slider = widgets.IntSlider(max=STEPS, description="Budget", readout=False, continuous_update=True)
        self.slider.add_class("wb-grow")
        self.slider.observe(lambda change: self._spend(self._at_step(change.new), moving=True), "value")
        self.mb = widgets.BoundedFloatText(description="MB", min=0, max=1e9, step=0.1)
        self.bits = widgets.BoundedFloatText(description="bits per weight", min=0, max=64, step=0.05)
        self.mb.observe(lambda change: self._spend(change.new * MB), "value")
        self.bits.observe(lambda change: self._spend(change.new * self._params / 8), "value")
        self.solve = parts.button("Solve", lambda: self._edit(lambda draft: draft.solve(draft.nbytes)))
        self.solve.tooltip = "the best plan of this size, around what is locked"
        self.reset = self._menu("Reset to", self._reset)
        for short in (self.mb, self.bits):
            short.add_class("wb-short")
        self.device = widgets.Dropdown(description="Device")
        self.device.observe(lambda change: self.picked("device", change.new), "value")
        self.context = widgets.Dropdown(description="Context")
        self.context.observe(lambda change: self.picked("context", change.new), "value")
        return parts.box(
            self.figures,
            self.deltas,
            parts.box(self.slider, self.mb, self.bits, self.solve, self.reset, cls="wb-row wb-budget"),
            self.front,
            self.memory,
            parts.box(self.device, self.context, cls="wb-row"),
            cls="wb-stack",
        )

    def _acting(self) -> widgets.Widget:
        """What is done with a plan that is good."""
        self.checked = widgets.BoundedIntText(CHECKED, min=64, max=10_000_000, description="Tokens")
        self.checked.add_class("wb-short")
        self.verify = parts.button("Verify", lambda: self.attempt(self._verify), primary=True)
        self.export = parts.button("Export", lambda: self.attempt(lambda: self._lead("Export")))
        self.chat = parts.button("Chat", lambda: self.attempt(lambda: self._lead("Chat")))
        self.path = widgets.Text("plan.json", description="File")
        self.path.add_class("wb-file")
        self.save = parts.button("Save", lambda: self.attempt(self._save))
        self.open = parts.button("Open", lambda: self.attempt(self._open))
        self.checked_said = parts.html_box()
        self.as_table = widgets.ToggleButton(description="As a table")
        self.as_table.layout.width = "auto"
        self.as_table.add_class("wb-link")
        self.as_table.observe(lambda _: self._show_table(), "value")
        self.table = parts.html_box()
        row = parts.box(
            self.verify, self.checked, self.export, self.chat, self.path, self.save, self.open, cls="wb-row"
        )
        return parts.box(row, self.checked_said, self.as_table, self.table, cls="wb-stack")

    def _menu(self, said: str, act: Callable[[str], Any]) -> widgets.Dropdown:
        """A menu whose entries do something; it goes back to its dots."""
        made = widgets.Dropdown(options=[ASK], description=said)

        def chosen(change: Any) -> None:
            if change.new and not self._updating:
                made.value = ""
                act(change.new)

        made.observe(chosen, "value")
        return made

    def _begin(self, draft: Draft, code: str) -> None:
        """Put a new draft on the desk; `code` makes its card."""
        session = self.session
        with session.lock:
            if self.draft is None or self.draft.choices.prices.card is not draft.choices.prices.card:
                self.checks.forget()
            self.draft = draft
            self.editor.edit(draft)
            self.preparing.more.value = False
            with session.hold_trait_notifications():
                session.card_code, session.card = code, draft.choices.prices.card

    # --- editing ----------------------------------------------------------------------------------------

    def _command(self, content: Any) -> None:
        """What the grid asks for: {"do": ..., "cells": keys, ...}."""
        if not isinstance(content, dict) or self.editor.sheet is None:
            return
        keys = content.get("cells") or []
        rows = self.editor.sheet.rows(each for each in keys if isinstance(each, str))
        do = content.get("do")
        if do == "open":
            self._fold(str(content.get("row")))
        elif do == "give":
            self._edit(lambda draft: draft.assign(rows, str(content.get("format"))))
        elif do == "lock":
            self._edit(lambda draft: self._locked(draft, rows))
        elif do in ("undo", "redo"):
            self._edit(Draft.undo if do == "undo" else Draft.redo)

    def _locked(self, draft: Draft, rows: list[int]) -> str:
        if not rows:
            raise WorkbenchError("selection", "no cell is selected", do="click one, or move there with the arrows")
        return draft.lock(rows, not draft.now.locked[rows].all())

    def _edit(self, act: Callable[[Draft], str], *, moving: bool = False) -> None:
        """Change the draft, and show what became of it; a refusal is said beside the grid.

        Args:
            moving: the slider is in the user's hand, and not to be taken from it.
        """
        with self.session.lock:
            if self.draft is None:
                return
            try:
                said, refused = act(self.draft), False
            except WorkbenchError as error:
                said, refused = _in_a_line(error), True
            except Exception as error:
                self.strip.fail(error)
                return
            self._show(said, refused, moving=moving)

    def _spend(self, nbytes: float, *, moving: bool = False) -> None:
        """The budget was changed: the best plan within it."""
        if not self._updating:
            self._edit(lambda draft: draft.solve(round(nbytes)), moving=moving)

    def _reset(self, what: str) -> None:
        kind, _, name = what.partition(" ")
        ways: dict[str, Callable[[Draft], str]] = {
            "best": lambda draft: draft.solve(draft.nbytes),
            "uniform": lambda draft: draft.uniform(name),
            "rule": lambda draft: draft.rule(name),
        }
        self._edit(ways[kind])

    def _select(self, which: str) -> None:
        if self.editor.sheet is not None:
            self.editor.chosen = self.editor.sheet.some(which)
            self._show(f"{len(self.editor.chosen):,} cells are selected.")

    def _fold(self, row: str) -> None:
        if self.editor.sheet is not None and row.isdigit() and len(row) < 9:
            self.editor.sheet.fold(int(row))
            self.editor.draw()

    # --- verified, kept, handed on -------------------------------------------------------------------------

    def _verify(self) -> None:
        draft = self._there()

        def then(found: Verified) -> None:
            if self.draft is draft:
                self._show(f"Measured: KL {found.measured.kl} nats per token, predicted {found.plan.predicted.kl:.3g}")

        self.checks.start(draft, self.checked.value, then)

    def _there(self) -> Draft:
        if self.draft is None:
            raise WorkbenchError("plan", "there is none yet", do="measure the card, or open one")
        return self.draft

    def _lead(self, title: str) -> None:
        """Choose the plan for the whole session, and go where it is used."""
        draft = self._there()
        plan = self._taken = draft.plan
        self.session.use(plan, draft.code)
        self._show(f"The plan is chosen: {title} has it.")
        self.session.page = title

    def _save(self) -> None:
        path = Path(self.path.value.strip() or "plan.json").expanduser()
        with files.whole(path) as temporary:
            temporary.write_text(self._there().plan.to_json())
        self._show(f"Saved: {path}")

    def _open(self) -> None:
        path = Path(self.path.value.strip()).expanduser()
        if not path.is_file():
            raise WorkbenchError(path, "there is no such file", do="save a plan first, or give another path")
        self._edit(lambda draft: draft.take(AnyPlan.from_json(path.read_text(), draft.model)))

    # --- shown ----------------------------------------------------------------------------------------------

    def update(self) -> None:
        session, draft = self.session, self.draft
        if draft is not None and (
            draft.model is not session.checkpoint or draft.choices.prices.card is not session.card
        ):
            self.draft = draft = self._held = None
            self.editor.edit(None)
            self.checks.forget()
        parts.show(self.empty, session.checkpoint is None)
        parts.show(self.body, draft is not None)
        self.preparing.update(draft is not None)
        self.verify.disabled = self.busy
        if draft is None:
            return
        if draft.rules.program != PROGRAMS[session.engine]:
            draft.rules.program = PROGRAMS[session.engine]
            self.editor.draw()
        self._offer(draft)
        self._show(*self._take(draft, session.plan))

    def _fitting(self, change: Any) -> None:
        """What Fit asks has changed: the engine's formats, and the bar if there is one."""
        if self.draft is not None or change.name == "engine":
            self.refresh()

    def _take(self, draft: Draft, plan: AnyPlan | None) -> tuple[str, bool]:
        """A plan that was given to the session is put on the desk; what to say of it, and whether it is refused."""
        if plan is None or plan is self._taken:
            return "", False
        self._taken = plan
        try:
            return draft.take(plan), False
        except WorkbenchError as error:
            return _in_a_line(error), True

    def _offer(self, draft: Draft) -> None:
        """Fill the menus."""
        session = self.session
        assert self.editor.sheet is not None
        kinds = [(said, name) for name, said in KINDS.items()]
        parts.choose(self.select, [ASK, *kinds, *((role, role) for role in self.editor.sheet.kinds)], "")
        others = draft.front.frame[["kind", "name"]].itertuples(index=False)
        ways = [
            (f"{name} for all" if kind == "uniform" else name, f"{kind} {name}")
            for kind, name in others
            if kind in ("uniform", "rule")
        ]
        parts.choose(self.reset, [ASK, ("the best of this size", "best"), *ways], "")
        known = offers.devices()
        devices = known if session.device in (name for _, name in known) else [*known, (session.device, session.device)]
        parts.choose(self.device, devices, session.device)
        try:
            limit = session.memory().question.subject.architecture.context
        except WorkbenchError:
            limit = 0
        steps = [(f"{step:,} tokens", step) for step in offers.contexts(limit, [session.context])]
        parts.choose(self.context, steps, session.context)

    def _at_step(self, step: int) -> float:
        """Bytes of a position of the slider."""
        low, high = self._there().span
        return low + step / STEPS * (high - low)

    @property
    def _params(self) -> int:
        return max(self.draft.model.params, 1) if self.draft is not None else 1

    def _show(self, said: str = "", refused: bool = False, *, moving: bool = False) -> None:
        """Show the draft as it stands, the grid first."""
        draft = self.draft
        if draft is None:
            return
        self.editor.answer(said, refused)
        was, self._updating = self._updating, True
        try:
            if not moving:
                low, high = draft.span
                self.slider.value = round(STEPS * min(1.0, max(0.0, (draft.nbytes - low) / max(high - low, 1))))
            self.mb.value, self.bits.value = round(draft.nbytes / MB, 2), round(draft.bits, 3)
            parts.fill(self.figures, judged.headline(draft, self.checks.of(draft)))
            parts.fill(self.front, self._front(draft))
            parts.fill(self.deltas, judged.deltas(draft))
            parts.fill(self.memory, self._in_memory(draft))
            parts.fill(self.checked_said, self.checks.drawn())
            self.undo.disabled, self.redo.disabled = not draft.undoable, not draft.redoable
            self._show_table()
            self._code.code = self.code
        finally:
            self._updating = was

    def _backdrop(self, draft: Draft) -> chart.Backdrop:
        """Of the draft's front, which stays while the plan moves on it."""
        if self._behind is None or self._behind[0] is not draft:
            self._behind = draft, chart.Backdrop.of(draft.front.frame)
        return self._behind[1]

    def _front(self, draft: Draft) -> Markup:
        last, around = draft.last, None
        if draft.now.locked.any():
            nbytes, kl = draft.reach()
            around = (8 * nbytes / self._params).tolist(), kl.tolist()
        before = None
        if last is not None:
            before = Point.of("the last plan", 8 * last.nbytes / self._params, last.predicted)
        now = Point.of(draft.name, draft.bits, draft.predicted)
        return chart.front(self._backdrop(draft), now, last=before, around=around, verified=self.checks.points)

    def _in_memory(self, draft: Draft) -> Markup:
        session = self.session
        key = (draft, session.engine, session.context, session.batch, session.kv, session.device)
        try:
            if self._held is None or self._held[0] != key:
                memory = session.memory().at(
                    engine=session.engine,
                    format=draft.plan,
                    context=session.context,
                    batch=session.batch,
                    kv=session.kv or None,
                    device=session.device,
                )
                self._held = key, judged.Held(draft, memory, device(session.device))
            return self._held[1].drawn()
        except WorkbenchError as error:
            return tag("div", f"In memory: {_in_a_line(error)}", cls="wb-hint")

    def _show_table(self) -> None:
        shown = self.as_table.value and self.draft is not None
        parts.fill(self.table, judged.table(self._there()) if shown else Markup(""))

    @property
    def code(self) -> str:
        if self.session.checkpoint is None or self.session.card is None or self.draft is None:
            return ""
        return "\n".join([self.session.load_code, self.session.card_code, self.draft.code, "plan"])

    def still(self) -> Markup:
        draft = self.draft
        if draft is None:
            return tag("p", "No plan yet.")
        found = judged.headline(draft, self.checks.of(draft))
        front = chart.front(
            self._backdrop(draft), Point.of(draft.name, draft.bits, draft.predicted), verified=self.checks.points
        )
        return together(found, judged.deltas(draft), front, self.checks.drawn(), judged.still_grid(self.editor.sheet))


def _in_a_line(error: WorkbenchError) -> str:
    """A refusal as one sentence."""
    allowed = f"; allowed: {error.allowed}" if error.allowed else ""
    return f"{error.item}: {error.found}{allowed}" + (f" ({error.do})" if error.do else "")
