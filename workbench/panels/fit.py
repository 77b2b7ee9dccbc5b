"""Fit: what the model needs in memory, by part, against devices; live, as its controls move."""

from __future__ import annotations

import json
from typing import Any

import ipywidgets as widgets

from workbench.exceptions import WorkbenchError
from workbench.fit import ENGINES, TABLE, Memory, device, memory_steps
from workbench.fit.cache import TYPES_OF
from workbench.panels import bars, offers, parts
from workbench.panels.chosen import Chosen
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag
from workbench.panels.session import PLAN

OTHER = "another size"  # in the menu of devices
FIRST_SIZE = "24 GB"
ELSEWHERE = ("T4", "RTX 3060", "RTX 4060 Ti 16 GB", "RTX 4090", "RTX 5090", "A100 80 GB", "Mac 16 GB", "Mac 64 GB")
MOST_SEQUENCES = 1 << 20


class Fit(Panel):
    """Counts what the model needs: `wb.memory(model, format, context)`."""

    title = "Fit"
    lead = "Will it fit? What the model takes in memory, counted from its headers: nothing is downloaded or loaded."
    passes_over = frozenset()

    def build(self) -> list[widgets.Widget]:
        self.source = widgets.Text(
            placeholder="org/name, a folder, a .gguf file, or the text of a config.json",
            description="Model",
            continuous_update=False,
        )
        self.source.add_class("wb-grow")
        self.read = parts.button("Read headers", self.run)
        self.engine = self._sets("engine", widgets.Dropdown(options=ENGINES, description="Engine"))
        self.format = self._sets("format", widgets.Dropdown(description="Format"))
        self.device = widgets.Dropdown(description="Device")
        self.device.observe(lambda change: self._pick_device(change.new), "value")
        self.size = self._sets("device", widgets.Text(FIRST_SIZE, continuous_update=False))
        self.batch = self._sets("batch", widgets.BoundedIntText(1, min=1, max=MOST_SEQUENCES, description="Sequences"))
        self.keys, self.values = widgets.Dropdown(description="Keys"), widgets.Dropdown(description="Values")
        for menu in (self.keys, self.values):
            menu.observe(lambda _: self.picked("kv", (self.keys.value, self.values.value)), "value")
        for short in (self.size, self.batch, self.keys, self.values):
            short.add_class("wb-short")
        self.picture = parts.html_box()
        self.longest = parts.button("Longest that fits", lambda: self.attempt(self._use_longest))
        self.best = parts.button("Best that fits", lambda: self.attempt(self._use_best))
        self.context: widgets.SelectionSlider | None = None
        self.along = parts.box(cls="wb-row")  # the slider, once there is a model, and its button
        self.empty = parts.hint("Open a model under Load, or name one here: nothing but its headers is read.")
        self._named: object = None  # the model that the field was filled for
        self._odd: set[int] = set()  # contexts that were asked for between the slider's steps
        self.body = parts.box(
            parts.box(self.engine, self.device, self.size, self.batch, cls="wb-row"),
            parts.box(self.format, self.best, self.keys, self.values, cls="wb-row"),
            self.along,
            self.picture,
            cls="wb-stack",
        )
        return [parts.box(self.source, self.read, cls="wb-row"), self.strip.widget, self.empty, self.body]

    def _sets(self, name: str, widget: Any) -> Any:
        """A widget whose value is the session's `name`."""
        widget.observe(lambda change: self.picked(name, change.new), "value")
        return widget

    def _pick_device(self, name: str) -> None:
        self.picked("device", FIRST_SIZE if name == OTHER else name)

    # --- the model -----------------------------------------------------------------------------

    def run(self) -> None:
        """Read the headers of the model that the field names; of a hub model nothing else is downloaded."""
        self.attempt(self._start)

    def _start(self) -> None:
        said = self.source.value.strip()
        source = _config(said) if said.startswith("{") else said
        if not source:
            raise WorkbenchError("model", "none is named", do="give a hub id such as org/name")
        self.session.jobs.start(
            "Reading headers",
            memory_steps(source),
            lambda found: setattr(self.session, "outline", (source, found)),
            owner=self,
        )

    def _subject(self) -> Memory:
        """Any answer on the model that is asked about; others follow from it by arithmetic."""
        return self.session.memory() if self.session.outline is None else self.session.outline[1]

    # --- the answer ------------------------------------------------------------------------------

    def answer(self) -> Memory:
        """What is shown.

        Raises:
            WorkbenchError: no model, or one whose config says too little; a device, or a type
                of keys and values, that there is not.
        """
        session, subject = self.session, self._subject()
        name = self._format(subject)
        return subject.at(
            engine=session.engine,
            format=Chosen(session, name).spec,
            context=session.context,
            batch=session.batch,
            kv=session.kv or None,
            device=session.device,
        )

    def _format(self, subject: Memory) -> str:
        """The session's format if the engine holds it, else the engine's default."""
        engine, chosen = self.session.engine, Chosen(self.session, self.session.format)
        return chosen.name if chosen.name in offers.formats(subject, engine, chosen) else offers.default(engine)

    def _use_longest(self) -> None:
        self.session.context = self.answer().longest_context() or self.session.context

    def _use_best(self) -> None:
        best = self.answer().best_format()
        if best is not None:
            self.session.format = str(best.question.spec)

    # --- shown -----------------------------------------------------------------------------------

    def update(self) -> None:
        session = self.session
        self.read.disabled = self.source.disabled = self.busy
        named = session.outline or session.checkpoint
        if named is not self._named:  # else what was typed stays, a mistyped name too
            self._named, self._odd = named, set()
            if session.outline is None:
                self.source.value = session.source
        parts.show(self.empty, named is None)
        parts.show(self.body, named is not None)
        if named is None:
            return
        try:
            self._offer(self._subject())
            answer = self.answer()
        except WorkbenchError as error:
            parts.fill(self.picture, parts.error_markup(error))
            return
        parts.fill(self.picture, self._drawn(answer))
        self.longest.disabled = answer.longest_context() in (0, answer.context)
        best = answer.best_format()
        self.best.disabled = best is None or best.question.spec == self.session.format

    def _offer(self, subject: Memory) -> None:
        """Make the controls say what the session says, and offer what there is for this model and engine."""
        session = self.session
        known = offers.devices()
        custom = session.device not in (name for _, name in known)
        parts.choose(self.device, [*known, (OTHER, OTHER)], OTHER if custom else session.device)
        parts.show(self.size, custom)
        if custom:
            self.size.value = session.device
        self.engine.value, self.batch.value = session.engine, session.batch
        formats = offers.formats(subject, session.engine, Chosen(session, session.format))
        menu = [(Chosen(session, name).label, name) for name in formats]
        parts.choose(self.format, menu, self._format(subject))
        self._odd.add(session.context)
        self._slide(offers.contexts(subject.question.subject.architecture.context, self._odd))
        usual = subject.at(engine=session.engine, device=session.device).kv
        for menu, name in zip((self.keys, self.values), session.kv or usual, strict=True):
            parts.choose(menu, TYPES_OF[session.engine], name)

    def _slide(self, steps: list[int]) -> None:
        """Put a slider with these steps at the session's context."""
        options = [(f"{step:,}", step) for step in steps]
        if self.context is None or list(self.context.options) != options:
            # A new one: in the page, End would go to where the old one ended at first.
            slider = widgets.SelectionSlider(options=options, value=self.session.context, description="Context")
            slider.add_class("wb-grow")
            self.context = self._sets("context", slider)
            self.along.children = (slider, self.longest)
        self.context.value = self.session.context

    def _drawn(self, answer: Memory) -> Markup:
        notes = list(answer.notes)
        chosen = Chosen(self.session, self.session.format)
        if self._format(self._subject()) != chosen.name:
            notes.append(f"{answer.engine} does not hold {chosen.label}, the chosen format; this is {answer.format}")
        return bars.drawn(answer, [device("cpu"), *(TABLE[name] for name in ELSEWHERE)], notes)

    def still(self) -> Markup:
        if self.session.outline is None and self.session.checkpoint is None:
            return tag("p", "No model yet.")
        try:
            return self._drawn(self.answer())
        except WorkbenchError as error:
            return parts.error_markup(error)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.session.notes if self.session.outline is None else ()

    def __repr__(self) -> str:
        try:
            return f"{self.title}: {self.answer()!r}\n\n{self.code}"
        except WorkbenchError:
            return super().__repr__()

    @property
    def code(self) -> str:
        session = self.session
        try:
            name = self._format(self._subject())
        except WorkbenchError:
            return ""
        opened = session.outline is None
        chosen = Chosen(session, name)
        told = chosen.arguments if opened else [repr(session.outline[0]), *chosen.arguments[1:]]
        told += [f"context={session.context}"]
        told += [f"batch={session.batch}"] if session.batch > 1 else []
        told += [f"kv={session.kv!r}"] if session.kv else []
        told += [f"engine={session.engine!r}"] if session.engine != ENGINES[0] else []
        told += [f"device={session.device!r}"]
        first = session.load_code if opened else "import workbench as wb\n"
        made = "".join(f"{block}\n" for block in (chosen.blocks if name == PLAN else ()))
        return f"{first}\n{made}fit = wb.memory({', '.join(told)})\nfit"


def _config(text: str) -> dict[str, Any]:
    """The config.json that was pasted."""
    try:
        return dict(json.loads(text))
    except (ValueError, RecursionError) as reason:
        raise WorkbenchError("config.json", f"it is not JSON: {reason!s:.200}", do="paste the whole file") from None
