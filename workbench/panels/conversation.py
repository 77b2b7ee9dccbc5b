"""What was asked and answered: as messages for the next question, and as markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.engines import Engine, Reply, Settings, SideBySide
from workbench.panels.parts import Markup, sentence, tag, together
from workbench.progress import Progress, Steps, in_thread


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


def messages(turns: Sequence[Turn], prompt: str) -> str | list[dict[str, str]]:
    """The prompt after what was said before; what two sides were asked stands alone, and is not part of it."""
    before = [turn for turn in turns if turn.compared is None and turn.replies]
    if not before:
        return prompt
    said = [
        message
        for turn in before
        for message in (
            {"role": "user", "content": turn.prompt},
            {"role": "assistant", "content": turn.replies[0].text},
        )
    ]
    return [*said, {"role": "user", "content": prompt}]


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


# --- as markup -------------------------------------------------------------------------------------------


def transcript(turns: Sequence[Turn]) -> Markup:
    before = [None, *turns]
    return together(*(_turn(turn, last) for turn, last in zip(turns, before, strict=False)))


def _turn(turn: Turn, last: Turn | None) -> Markup:
    told = last is not None and last.whats == turn.whats  # what is running need not be said again
    answers = [_answer(turn, side, told) for side in range(len(turn.names))]
    verdict = tag("div", sentence(turn.compared.verdict) + ".", cls="wb-verdict") if turn.compared else Markup("")
    asked = tag("div", turn.prompt, cls="wb-asked")
    return tag("div", asked, tag("div", *answers, cls="wb-answers"), verdict, cls="wb-turn")


def _answer(turn: Turn, side: int, told: bool) -> Markup:
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


def marked(compared: SideBySide, side: int) -> Markup:
    """One side's reply with the first token that differs from the other's marked."""
    same, different, rest = compared.parts(compared.replies[side])
    return together(same, tag("mark", different) if different else Markup(""), rest)
