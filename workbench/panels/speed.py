"""How fast and how large what answered was: a line for each reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench import figures
from workbench.engines import Engine, Reply
from workbench.panels import parts
from workbench.panels.answerer import Answerer
from workbench.panels.parts import Markup, tag, together

HEADS = ("What", "Engine", "Prompt, tokens/s", "Reply, tokens/s", "First token, s", "Memory")
MEANING = (
    "Prompt: tokens of the question read in a second. Reply: tokens made in a second, after the first. First token: "
    "from sending to seeing it. Memory: what the model took when it was opened. The speed and memory of decoded "
    "weights are those of the original, not of the format: for these, export it and ask it in llama.cpp."
)


@dataclass(frozen=True)
class Speed:
    """The figures of one reply.

    Attributes:
        what, engine: what answered, and in what.
        prompt, reply: tokens per second; nan where the engine does not tell.
        first: seconds from the question to the first token.
        memory: bytes; 0 where it is another program's.
    """

    what: str
    engine: str
    prompt: float
    reply: float
    first: float
    memory: int

    @classmethod
    def of(cls, answerer: Answerer, engine: Engine, reply: Reply) -> Speed:
        memory = max(0, engine.memory_after - engine.memory_before)
        run_by = f"{answerer.engine}, decoded weights" if answerer.decoded else answerer.engine
        return cls(
            answerer.thing, run_by, reply.prompt_per_second, reply.tokens_per_second, reply.seconds_to_first, memory
        )

    @property
    def cells(self) -> tuple[str, ...]:
        figure = (_figure(self.prompt), _figure(self.reply), _figure(self.first, 2))
        return (self.what, self.engine, *figure, figures.size(self.memory) if self.memory else "not told")


def _figure(value: float, digits: int = 1) -> str:
    return "not told" if math.isnan(value) else f"{value:,.{digits}f}"


def drawn(speeds: Sequence[Speed]) -> Markup:
    """The table as markup; empty without a reply."""
    if not speeds:
        return Markup("")
    table = parts.table(HEADS, [each.cells for each in speeds], cls="wb-table wb-speeds")
    return together(table, tag("div", MEANING, cls="wb-hint"))


def copied(speeds: Sequence[Speed]) -> str:
    """The table as Markdown; empty without a reply."""
    rows = [HEADS, ["---", "---", *["---:"] * (len(HEADS) - 2)], *(each.cells for each in speeds)]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows) if speeds else ""


def _plain(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())
