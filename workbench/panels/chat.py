"""Chat: talk to the model in a format and an engine, alone or beside another, and see what it costs."""

from __future__ import annotations

import time
from typing import Any

import ipywidgets as widgets

from workbench import figures
from workbench.engines import Engine, side_by_side_steps
from workbench.engines.server import models_steps
from workbench.exceptions import WorkbenchError
from workbench.panels import conversation, parts, speed
from workbench.panels.answerer import Answerer
from workbench.panels.conversation import Turn, reply_steps
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag, together
from workbench.panels.picker import Picker
from workbench.panels.sampling import Sampling
from workbench.panels.side import NOBODY
from workbench.panels.speed import Speed
from workbench.progress import Steps

REDRAW = 0.1  # seconds between two redraws of a reply that is being made


class Chat(Panel):
    """Talks to the model: `wb.run(model, format, engine=...)`, and `wb.side_by_side` for two."""

    title = "Chat"
    lead = (
        "Talk to the model in the format and the engine of your choice, or to what a server runs. Compare it with "
        "another one, and both are asked the same."
    )

    def build(self) -> list[widgets.Widget]:
        self.first = Picker(self.session, "first", "Talk to", self.picked, self._list, self._export)
        self.second = Picker(self.session, "second", "Compare with", self.picked, self._list, self._export)
        self.prompt = widgets.Textarea(value="Name three uses of copper.", description="Prompt", rows=2)
        self.prompt.add_class("wb-grow")
        self.prompt.observe(lambda _: self.refresh(), "value")
        self.send = parts.button("Send", self.run, primary=True)
        self.stop = parts.button("Stop", self.session.jobs.cancel)
        self.again = parts.button("New conversation", lambda: self.attempt(self.forget))
        self.free = parts.button("Free the memory", lambda: self.attempt(self.session.close_engines))
        self.said = parts.html_box()
        self.held = parts.html_box("wb-grow")
        self.table = parts.html_box()
        self.copied = parts.Code(label="table", bare=True)
        self.sampling = Sampling(self.refresh)
        self.strip.cancels_its_own = False
        self.strip.go_ahead = lambda: self.attempt(lambda: self._start(anyway=True))
        self.turns: list[Turn] = []
        self.speeds: list[Speed] = []
        self._model: object = None
        body = parts.box(
            self.first.widget,
            self.second.widget,
            self.said,
            parts.box(self.prompt, self.send, self.stop, cls="wb-row wb-top"),
            self.strip.widget,
            self.sampling.widget,
            parts.box(self.held, self.again, self.free, cls="wb-row"),
            self.table,
            self.copied,
            cls="wb-stack",
        )
        return [body]

    # --- asking --------------------------------------------------------------------------------

    def run(self) -> None:
        """Ask what the prompt box says."""
        self.attempt(self._start)

    def _start(self, anyway: bool = False) -> None:
        asked = self.answerers
        for answerer in asked:
            if answerer.hindrance:
                raise answerer.hindrance
        if len(asked) == 2 and asked[0].key == asked[1].key:
            raise WorkbenchError(
                asked[1].label, "it would be compared with itself", do="choose another format or engine"
            )
        turn = Turn(self.prompt.value, tuple(each.label for each in asked), self._code_of(anyway), ["" for _ in asked])
        steps = self._answer_steps(turn, asked, self.messages, self.settings, anyway)
        self.turns = [*self.turns, turn] if len(asked) == 1 else [turn]
        if len(asked) == 1:
            self.prompt.value = ""  # side by side it stays, to be asked again of others
        self.session.jobs.start(
            f"Asking {' and '.join(turn.names)}",
            steps,
            lambda _: self.refresh(),
            owner=self,
            stopped=lambda: self._stopped(turn),
        )

    def _answer_steps(
        self, turn: Turn, asked: list[Answerer], messages: Any, settings: dict[str, Any], anyway: bool
    ) -> Steps[None]:
        engines = yield from self._engines_steps(asked, anyway)
        try:
            yield from self._showing(self._asked_steps(turn, engines, messages, settings))
        finally:
            told = zip(asked, engines, turn.replies, strict=False)
            self.speeds = [*self.speeds, *(Speed.of(*each) for each in told if each[-1].tokens)]

    def _asked_steps(self, turn: Turn, engines: list[Engine], messages: Any, settings: dict[str, Any]) -> Steps[None]:
        def show(side: int, piece: str) -> None:
            turn.texts[side] += piece

        turn.whats = [engine.what for engine in engines]
        if len(engines) == 2:
            first, second = engines
            turn.compared = yield from side_by_side_steps(first, second, messages, show=show, **settings)
            turn.replies = list(turn.compared.replies)
        else:
            yield from reply_steps(engines[0], messages, show, turn.replies.append, **settings)

    def _engines_steps(self, asked: list[Answerer], anyway: bool) -> Steps[list[Engine]]:
        """What answers: engines that run already, and new ones; others give their memory back."""
        session, model = self.session, self.session.checkpoint
        keys = [answerer.key for answerer in asked]
        if anyway:
            session.close_engines()  # one that refused a prompt is started again, without its scruples
        for key, engine in session.engines.items():
            if key not in keys:
                engine.close()
        session.engines = {key: engine for key, engine in session.engines.items() if key in keys}
        for key, answerer in zip(keys, asked, strict=True):
            if key not in session.engines:
                engine = yield from answerer.run_steps(anyway=anyway)
                if session.checkpoint is not model:  # another was opened while this one was built
                    engine.close()
                    raise WorkbenchError(answerer.label, "another model was opened meanwhile", do="ask again")
                session.engines = {**session.engines, key: engine}
        return [session.engines[key] for key in keys]

    def _showing(self, steps: Steps[None]) -> Steps[None]:
        """The same steps, the conversation redrawn at some of them: here, since a thread's redraw may not be seen."""
        drawn = 0.0
        try:
            for step in steps:
                if time.monotonic() - drawn > REDRAW:
                    self._draw()
                    drawn = time.monotonic()
                yield step
        finally:
            steps.close()
            self._draw()

    def _stopped(self, turn: Turn) -> None:
        """After a cancel or an error: what was said is kept, a question that was not answered goes back to its box."""
        if not any(turn.texts):
            self.turns = [each for each in self.turns if each is not turn]
            self.prompt.value = turn.prompt
        self._draw()

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns = []
        self.refresh()

    def _list(self, picker: Picker) -> None:
        """Ask a side's server for the names of its models."""

        def keep(names: list[str]) -> None:
            picker.names = names
            self.refresh()

        source, kind, key = picker.server
        self.attempt(
            lambda: self.session.jobs.start(
                "Asking the server for its models", models_steps(source, kind, key=key), keep, owner=self
            )
        )

    def _export(self, name: str) -> None:
        """Lead to where `name` becomes a file."""
        self.session.format, self.session.page = name, "Export"

    # --- what is asked -------------------------------------------------------------------------

    @property
    def answerers(self) -> list[Answerer]:
        """What answers: one, or two side by side."""
        sides = [side for side in (self.session.first, self.session.second) if side.what != NOBODY]
        return [Answerer(self.session, side) for side in sides]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the engines' own."""
        return self.sampling.chosen

    @property
    def messages(self) -> str | list[dict[str, str]]:
        """The prompt, after what was said before; side by side each question stands alone, the same for both."""
        return conversation.messages([] if len(self.answerers) == 2 else self.turns, self.prompt.value)

    @property
    def code(self) -> str:
        """The call that Send makes; with nothing to send, the call of the last answer."""
        return self._code_of(anyway=False)

    def _code_of(self, anyway: bool) -> str:
        asked = self.answerers
        if any(answerer.hindrance for answerer in asked):
            return ""
        if not self.prompt.value.strip():
            return self.turns[-1].code if self.turns else ""
        blocks = dict.fromkeys(block for answerer in asked for block in answerer.blocks)
        runs = [answerer.call(anyway=anyway) for answerer in asked]
        said = ", ".join([repr(self.messages), *(f"{key}={value!r}" for key, value in self.settings.items())])
        lines = ["import workbench as wb", "", *blocks]
        if len(runs) == 1:
            return "\n".join([*lines, f"chat = {runs[0]}", f"chat({said})"])
        lines += [f"{name} = {run}" for name, run in zip(("first", "second"), runs, strict=True)]
        return "\n".join([*lines, f"wb.side_by_side(first, second, {said})"])

    # --- what is shown -------------------------------------------------------------------------

    def update(self) -> None:
        session = self.session
        if session.checkpoint is not self._model:
            self._model, self.turns, self.speeds = session.checkpoint, [], []
        self.first.show(self.busy)
        self.second.show(self.busy)
        answering = self.busy and session.jobs.status.owner is self
        for widget in (self.again, self.free):
            widget.disabled = self.busy
        hindered = any(answerer.hindrance for answerer in self.answerers)
        self.send.disabled = self.busy or hindered or not self.prompt.value.strip()
        parts.show(self.send, not answering)
        parts.show(self.stop, answering and session.jobs.threaded)
        parts.show(self.again, bool(self.turns))
        parts.show(self.free, bool(session.engines))
        self._draw()

    def _draw(self) -> None:
        said = conversation.transcript(self.turns)
        parts.fill(self.said, tag("div", said, cls="wb-log", role="log", aria_live="polite"))
        engines = self.session.engines.values()
        held = [f"{each.name} {figures.size(max(0, each.memory_after - each.memory_before))}" for each in engines]
        parts.fill(self.held, tag("div", f"In memory: {', '.join(held)}" if held else "", cls="wb-hint"))
        parts.fill(self.table, speed.drawn(self.speeds))
        self.copied.code = speed.copied(self.speeds)

    def still(self) -> Markup:
        if not self.turns:
            return tag("p", "Nothing was asked yet.")
        return together(conversation.transcript(self.turns), speed.drawn(self.speeds))
