"""Chat: talk to the model in a format, alone or beside another, and see what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ipywidgets as widgets

from workbench import figures
from workbench.engines import Engine, Reply, Settings, SideBySide, run_steps, side_by_side_steps
from workbench.exceptions import WorkbenchError
from workbench.panels import parts
from workbench.panels.chosen import Chosen, offered
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, sentence, tag, together
from workbench.progress import Progress, Steps, in_thread

NOTHING = ("nothing", "")  # in the menu of formats to compare with
DEFAULTS = Settings()
REDRAW = 0.1  # seconds between two redraws of a reply that is being made


@dataclass
class Turn:
    """One question and what came of it: the text so far of each side, and its reply once that has ended."""

    prompt: str
    names: tuple[str, ...]
    code: str
    texts: list[str] = field(default_factory=list)
    whats: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    compared: SideBySide | None = None


class Chat(Panel):
    """Talks to the model: `wb.run(model, format)`, and `wb.side_by_side` for two."""

    title = "Chat"
    lead = "Talk to the model in the format of your choice. Compare it with another one, and both are asked the same."

    def build(self) -> list[widgets.Widget]:
        self.first = widgets.Dropdown(description="Format")
        self.second = widgets.Dropdown(description="Compare with")
        self.first.observe(lambda change: self.picked("format", change.new), "value")
        self.second.observe(lambda change: self.picked("rival", change.new), "value")
        self.prompt = widgets.Textarea(value="Name three uses of copper.", description="Prompt", rows=2)
        self.prompt.add_class("wb-grow")
        self.send = parts.button("Send", self.run, primary=True)
        self.stop = parts.button("Stop", self.session.jobs.cancel)
        self.again = parts.button("New conversation", lambda: self.attempt(self.forget))
        self.free = parts.button("Free the memory", lambda: self.attempt(self.session.close_engines))
        self.said = parts.html_box()
        self.held = parts.html_box("wb-grow")
        self.strip.cancels_its_own = False
        self.strip.go_ahead = lambda: self.attempt(lambda: self._start(anyway=True))
        self.turns: list[Turn] = []
        self._model: object = None
        self.empty = parts.hint("Open a model first.")
        self.body = parts.box(
            parts.box(self.first, self.second, cls="wb-row"),
            self.said,
            parts.box(self.prompt, self.send, self.stop, cls="wb-row wb-top"),
            self.strip.widget,
            self._settings(),
            parts.box(self.held, self.again, self.free, cls="wb-row"),
            cls="wb-stack",
        )
        return [self.empty, self.body]

    def _settings(self) -> widgets.Widget:
        wide: dict[str, Any] = {"style": {"description_width": "110px"}}
        asked = "an instruction before the conversation"
        self.system = widgets.Textarea(description="System", placeholder=asked, rows=1, **wide)
        self.max_tokens = widgets.BoundedIntText(
            DEFAULTS.max_tokens, min=1, max=100_000, description="Most tokens", **wide
        )
        self.temperature = widgets.BoundedFloatText(
            DEFAULTS.temperature, min=0, max=5, step=0.1, description="Temperature", **wide
        )
        self.top_p = widgets.BoundedFloatText(DEFAULTS.top_p, min=0.01, max=1, step=0.05, description="Top p", **wide)
        self.top_k = widgets.BoundedIntText(DEFAULTS.top_k, min=0, max=100_000, description="Top k", **wide)
        self.seed = widgets.BoundedIntText(DEFAULTS.seed, min=0, max=2**31 - 1, description="Seed", **wide)
        fields = parts.box(self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed, cls="wb-fields")
        self.system.add_class("wb-grow")
        hint = parts.hint("Temperature 0 always takes the likeliest token. Top p 1 and top k 0 are off.")
        inside = parts.box(parts.box(self.system, cls="wb-row"), fields, hint, cls="wb-stack")
        inside.layout.display = "none"
        toggle = widgets.ToggleButton(description="Settings")
        toggle.layout.width = "auto"
        toggle.add_class("wb-link")
        toggle.observe(lambda change: parts.show(inside, change.new), "value")
        for widget in (self.system, self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed, self.prompt):
            widget.observe(lambda _: self.refresh(), "value")
        return parts.box(toggle, inside, cls="wb-stack")

    # --- asking --------------------------------------------------------------------------------

    def run(self) -> None:
        """Ask what the prompt box says."""
        self.attempt(self._start)

    def _start(self, anyway: bool = False) -> None:
        names = self.names
        turn = Turn(self.prompt.value, names, self._code_of(anyway), ["" for _ in names])
        steps = self._answer_steps(turn, self.messages, self.settings, anyway)
        self.turns = [*self.turns, turn] if len(names) == 1 else [turn]
        if len(names) == 1:
            self.prompt.value = ""  # side by side it stays, to be asked again in other formats
        self.session.jobs.start(
            f"Asking {' and '.join(names)}",
            steps,
            lambda _: self.refresh(),
            owner=self,
            stopped=lambda: self._stopped(turn),
        )

    def _answer_steps(
        self, turn: Turn, messages: str | list[dict[str, str]], settings: dict[str, Any], anyway: bool
    ) -> Steps[None]:
        engines = yield from self._engines_steps(turn.names, anyway)
        yield from self._showing(self._asked_steps(turn, engines, messages, settings))

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

    def _engines_steps(self, names: tuple[str, ...], anyway: bool) -> Steps[list[Engine]]:
        """The engines for these formats: those that run already, and new ones; others give their memory back."""
        session, model = self.session, self.session.checkpoint
        if anyway:
            session.close_engines()  # one that refused a prompt is started again, without its scruples
        for name, engine in session.engines.items():
            if name not in names:
                engine.close()
        session.engines = {name: engine for name, engine in session.engines.items() if name in names}
        for name in names:
            if name not in session.engines:
                chosen = Chosen(session, name)
                engine = yield from run_steps(model, chosen.spec, importance=chosen.importance, anyway=anyway)
                if session.checkpoint is not model:  # another was opened while this one was built
                    engine.close()
                    raise WorkbenchError(model.name, "no longer the session's model")
                session.engines = {**session.engines, name: engine}
        return [session.engines[name] for name in names]

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

    # --- what is asked -------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The formats that answer: one, or two side by side."""
        session = self.session
        return (session.format, session.rival) if session.rival else (session.format,)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the engines' own."""
        chosen = Settings(
            system=self.system.value.strip() or None,
            max_tokens=self.max_tokens.value,
            temperature=self.temperature.value,
            top_p=self.top_p.value,
            top_k=self.top_k.value,
            seed=self.seed.value,
        )
        return {key: value for key, value in asdict(chosen).items() if value != getattr(DEFAULTS, key)}

    @property
    def messages(self) -> str | list[dict[str, str]]:
        """The prompt, after what was said before; side by side each question stands alone, the same for both."""
        before = [] if len(self.names) == 2 else [turn for turn in self.turns if turn.compared is None and turn.replies]
        if not before:
            return self.prompt.value
        said = [
            message
            for turn in before
            for message in (
                {"role": "user", "content": turn.prompt},
                {"role": "assistant", "content": turn.replies[0].text},
            )
        ]
        return [*said, {"role": "user", "content": self.prompt.value}]

    @property
    def code(self) -> str:
        """The call that Send makes; with nothing to send, the call of the last answer."""
        return self._code_of(anyway=False)

    def _code_of(self, anyway: bool) -> str:
        if self.session.checkpoint is None:
            return ""
        if not self.prompt.value.strip():
            return self.turns[-1].code if self.turns else ""
        lines = [self.session.load_code]
        choices = [Chosen(self.session, name) for name in self.names]
        lines += dict.fromkeys(block for choice in choices for block in choice.blocks)
        runs = []
        for choice in choices:
            given = ["model", *([choice.argument] if choice.argument else [])]
            given += ["importance=importance"] * choice.weighed + ["anyway=True"] * anyway
            runs.append(f"wb.run({', '.join(given)})")
        asked = [repr(self.messages), *(f"{key}={value!r}" for key, value in self.settings.items())]
        if len(runs) == 1:
            return "\n".join([*lines, f"chat = {runs[0]}", f"chat({', '.join(asked)})"])
        lines += [f"{name} = {run}" for name, run in zip(("first", "second"), runs, strict=True)]
        return "\n".join([*lines, f"wb.side_by_side(first, second, {', '.join(asked)})"])

    # --- what is shown -------------------------------------------------------------------------

    def update(self) -> None:
        session = self.session
        if session.checkpoint is not self._model:
            self._model, self.turns = session.checkpoint, []
        opened = session.checkpoint is not None
        parts.show(self.empty, not opened)
        parts.show(self.body, opened)
        choices = offered(session)
        parts.choose(self.first, choices, session.format)
        others = [choice for choice in choices if choice[1] != session.format]
        parts.choose(self.second, [NOTHING, *others], session.rival)
        answering = self.busy and session.jobs.status.owner is self
        for widget in (self.first, self.second, self.again, self.free):
            widget.disabled = self.busy
        self.send.disabled = self.busy or not self.prompt.value.strip()
        parts.show(self.send, not answering)
        parts.show(self.stop, answering and session.jobs.threaded)
        parts.show(self.again, bool(self.turns))
        parts.show(self.free, bool(session.engines))
        self._draw()

    def _draw(self) -> None:
        parts.fill(self.said, tag("div", self.transcript(), cls="wb-log", role="log", aria_live="polite"))
        engines = self.session.engines
        held = [f"{name} {figures.size(each.memory_after - each.memory_before)}" for name, each in engines.items()]
        parts.fill(self.held, tag("div", f"In memory: {', '.join(held)}" if held else "", cls="wb-hint"))

    def transcript(self) -> Markup:
        before = [None, *self.turns]
        return together(*(self._turn(turn, last) for turn, last in zip(self.turns, before, strict=False)))

    def _turn(self, turn: Turn, last: Turn | None) -> Markup:
        told = last is not None and last.whats == turn.whats  # what is running need not be said again
        answers = [self._answer(turn, side, told) for side in range(len(turn.names))]
        verdict = tag("div", sentence(turn.compared.verdict) + ".", cls="wb-verdict") if turn.compared else Markup("")
        asked = tag("div", turn.prompt, cls="wb-asked")
        return tag("div", asked, tag("div", *answers, cls="wb-answers"), verdict, cls="wb-turn")

    def _answer(self, turn: Turn, side: int, told: bool) -> Markup:
        head = tag("div", tag("b", turn.names[side]), cls="wb-answer-head")
        reply = turn.replies[side] if side < len(turn.replies) else None
        text = marked(turn.compared, side) if turn.compared else together(turn.texts[side])
        below = [reply.speed, *([reply.note] if reply.note else [])] if reply else []
        what = turn.whats[side] if side < len(turn.whats) and not told else ""
        return tag(
            "div",
            head,
            tag("div", text, cls="wb-text"),
            tag("div", ". ".join(below), cls="wb-hint"),
            tag("div", sentence(what), cls="wb-hint"),
            cls="wb-answer",
        )

    def still(self) -> Markup:
        return self.transcript() if self.turns else tag("p", "Nothing was asked yet.")


def reply_steps(
    engine: Engine,
    messages: str | list[dict[str, str]],
    show: Callable[[int, str], None],
    keep: Callable[[Reply], None],
    **settings: Any,
) -> Steps[None]:
    """One engine's reply, yielding the tokens so far; closing it stops the engine, and `keep` gets what was said."""
    most = Settings.of(**settings).max_tokens

    def answer(report: Callable[[Progress], None]) -> None:
        report(Progress(0, most, "token", "reading the prompt"))
        stream = engine.stream(messages, **settings)
        try:
            for number, piece in enumerate(stream, start=1):
                show(0, piece)
                report(Progress(number, most, "token"))
        finally:
            stream.close()
            if stream.reply is not None:
                keep(stream.reply)

    steps = in_thread(answer)
    try:
        yield from steps
    finally:
        engine.stop()  # first, so that the thread need not wait for the end of a long prompt
        steps.close()


def marked(compared: SideBySide, side: int) -> Markup:
    """One side's reply with the first token that differs from the other's marked."""
    same, different, rest = compared.parts(compared.replies[side])
    return together(same, tag("mark", different) if different else Markup(""), rest)
