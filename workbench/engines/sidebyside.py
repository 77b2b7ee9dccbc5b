"""Two engines, one prompt: where do their replies part, and how fast is each?"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.engines.base import Engine, Messages, Reply, Settings, messages_of
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps, drain, in_thread

END = "⏹"  # marks where one reply ends and the other goes on
SMALL = "opacity: .7; font-size: .9em"
TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; margin: .5em 0"


@dataclass(frozen=True)
class SideBySide:
    """Two replies to one prompt, compared token by token.

    Attributes:
        names, whats: of the two engines.
        replies: in the same order.
    """

    names: tuple[str, str]
    whats: tuple[str, str]
    replies: tuple[Reply, Reply]

    @property
    def first_difference(self) -> int | None:
        """Index of the first token whose text differs, or where one reply ends; None: they are the same."""
        a, b = (reply.tokens for reply in self.replies)
        shared = next((number for number, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return None if shared == len(a) == len(b) else shared

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        at = self.first_difference
        if at is None:
            return f"the same reply, {len(self.replies[0].tokens)} tokens"
        return f"the replies part at token {at + 1}" + (f", after {at} that are the same" if at else "")

    def parts(self, reply: Reply) -> tuple[str, str, str]:
        """The text both share, the first token that differs, and the rest."""
        at = self.first_difference
        if at is None:
            return reply.text, "", ""
        left = list(reply.tokens[at:])
        marked = "" if left else END
        while left and not marked:  # tokens that only begin a character have no text of their own
            marked = left.pop(0)
        return "".join(reply.tokens[:at]), marked, "".join(left)

    def __repr__(self) -> str:
        lines = []
        for name, what, reply in zip(self.names, self.whats, self.replies, strict=True):
            same, marked, rest = self.parts(reply)
            lines += [f"{name} ({what})", same + (f"⟦{marked}⟧" if marked else "") + rest, f"[{reply.speed}]", ""]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        cells = []
        for name, what, reply in zip(self.names, self.whats, self.replies, strict=True):
            same, marked, rest = (html.escape(part) for part in self.parts(reply))
            marked = f"<mark>{marked}</mark>" if marked else ""
            cells.append(
                f'<div style="flex: 1 1 20em; min-width: 0"><b>{html.escape(name)}</b>'
                f'<div style="{SMALL}">{html.escape(what)}</div>'
                f'<div style="{TEXT}">{same}{marked}{rest}</div>'
                f'<div style="{SMALL}">{html.escape(reply.speed)}</div></div>'
            )
        return (
            f'<div style="display: flex; flex-wrap: wrap; gap: 2em">{"".join(cells)}</div>'
            f"<div><i>{html.escape(self.verdict)}</i></div>"
        )


def side_by_side(a: Engine, b: Engine, prompt: str | Messages, **settings: Any) -> SideBySide:
    """Ask two engines the same, one after the other so that neither slows the other down.

    Args:
        settings: those of `Settings`, for both; with temperature 0 every difference is the format's.
    """
    return drain(side_by_side_steps(a, b, prompt, **settings), label="side by side")


def side_by_side_steps(
    a: Engine,
    b: Engine,
    prompt: str | Messages,
    *,
    show: Callable[[int, str], None] | None = None,
    **settings: Any,
) -> Steps[SideBySide]:
    """`side_by_side`, yielding the tokens so far; closing it stops the engine that is answering.

    Args:
        show: called with 0 or 1 and each piece of that engine's reply, in the thread that makes it.
    """
    if a is b:
        raise WorkbenchError(a.name, "both sides are the same engine", do="run the model twice, in two formats")
    most = Settings.of(**settings).max_tokens
    messages_of(prompt, None)  # both say what is wrong with it before either answers

    def answer(report: Callable[[Progress], None]) -> SideBySide:
        replies = []
        for side, engine in enumerate((a, b)):
            report(Progress(side * most, 2 * most, "token", engine.name))
            stream = engine.stream(prompt, **settings)
            try:
                for number, piece in enumerate(stream, start=1):
                    if show:
                        show(side, piece)
                    report(Progress(side * most + number, 2 * most, "token", engine.name))
            finally:
                stream.close()
            assert stream.reply is not None
            replies.append(stream.reply)
        return SideBySide((a.name, b.name), (a.what, b.what), (replies[0], replies[1]))

    steps = in_thread(answer)
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            yield step
    finally:
        a.stop()  # first, so that the thread need not wait for the end of a long prompt
        b.stop()
        steps.close()
