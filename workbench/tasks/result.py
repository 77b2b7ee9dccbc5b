"""What a benchmark found: who said what, who was right, and what the difference comes to."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines import SideBySide
from workbench.exceptions import WorkbenchError
from workbench.measure.estimate import Estimate
from workbench.tasks import figure, report, shown
from workbench.tasks.paired import Interval, Paired, accuracy, corrected, paired
from workbench.tasks.scoring import Outcome
from workbench.tasks.task import Task
from workbench.tasks.understanding import Example

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Entry:
    """One candidate's part.

    Attributes:
        name: what it is called.
        nbytes: bytes of its weights; None: not known.
        outcomes: of every task, an outcome for each of its examples.
        kl: of every task, KL(reference‖candidate) on the reference's own replies, nats per token; None where it
            cannot be measured.
    """

    name: str
    nbytes: int | None
    outcomes: tuple[tuple[Outcome, ...], ...]
    kl: tuple[Estimate | None, ...] = ()

    def scores(self, task: int) -> list[float]:
        return [outcome.score for outcome in self.outcomes[task]]

    def speed(self, task: int) -> float:
        """Tokens per second while it generated, over all replies."""
        replies = [one.said.reply for one in self.outcomes[task] if one.said.reply is not None]
        timed = [(max(len(each.tokens) - 1, 0), each.tokens_per_second) for each in replies]
        timed = [(tokens, rate) for tokens, rate in timed if tokens and not math.isnan(rate)]
        seconds = sum(tokens / rate for tokens, rate in timed)
        return sum(tokens for tokens, _ in timed) / seconds if seconds else math.nan


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Candidates on the same examples; made by `wb.benchmark`.

    Attributes:
        tasks: what was asked.
        entries: the candidates, the reference first.
        seed: of the intervals.
        notes: what a reader must know.
    """

    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Entry:
        return self.entries[0]

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Paired]:
        """(task, candidate) -> the candidate against the reference."""
        keys = [(place, each) for place in range(len(self.tasks)) for each in self.entries[1:]]
        found = [paired(each.scores(place), self.reference.scores(place), self.seed) for place, each in keys]
        return {
            (self.tasks[place].name, each.name): one for (place, each), one in zip(keys, corrected(found), strict=True)
        }

    @cached_property
    def accuracies(self) -> dict[tuple[str, str], Interval]:
        """(task, candidate) -> its mean score, over the examples it was scored on."""
        return {
            (task.name, each.name): accuracy([one for one in each.scores(place) if not math.isnan(one)], self.seed)
            for place, task in enumerate(self.tasks)
            for each in self.entries
        }

    def kl(self, task: int, entry: Entry) -> Estimate | None:
        """KL(reference‖candidate) on the reference's own replies to a task, nats per token; None: not measured."""
        return entry.kl[task] if entry.kl else None

    def table(self) -> pd.DataFrame:
        """A row for each task and candidate.

        Columns: task, candidate, examples (scored), failed, accuracy (the mean score) with its interval (low, high);
        difference to the reference with its interval (difference_low, difference_high), wins, losses, ties, p
        (exact, uncorrected), p_holm, verdict, more (examples that would settle it); kl and kl_error (on the
        reference's own replies, nats per token), tokens_per_second, bytes. Shares are from 0 to 1.
        """
        import pandas as pd

        rows = [self._row(place, each) for place in range(len(self.tasks)) for each in self.entries]
        return pd.DataFrame(rows).astype({"more": "Int64", "bytes": "Int64"})

    def _row(self, place: int, each: Entry) -> dict[str, Any]:
        key, failed = (self.tasks[place].name, each.name), sum(math.isnan(one) for one in each.scores(place))
        share, pair, kl = self.accuracies[key], self.pairs.get(key), self.kl(place, each)
        nothing, gap = pd_missing(), pair.difference if pair else Interval(math.nan, math.nan, math.nan)
        return {
            "task": key[0],
            "candidate": each.name,
            "examples": len(self.tasks[place]) - failed,
            "failed": failed,
            "accuracy": share.value,
            "low": share.low,
            "high": share.high,
            "difference": gap.value,
            "difference_low": gap.low,
            "difference_high": gap.high,
            **{name: getattr(pair, name) if pair else nothing for name in ("wins", "losses", "ties")},
            "p": pair.p if pair else math.nan,
            "p_holm": pair.holm if pair else math.nan,
            "verdict": pair.verdict if pair else "the reference",
            "more": nothing if pair is None or pair.more is None else pair.more,
            "kl": kl.value if kl else math.nan,
            "kl_error": kl.error_by_chunk if kl else math.nan,
            "tokens_per_second": each.speed(place),
            "bytes": nothing if each.nbytes is None else each.nbytes,
        }

    def frame(self) -> pd.DataFrame:
        """A row for each task, example and candidate.

        Columns: task, example, candidate, prompt, answer, reply, score, right, flipped (right where the
        reference is wrong, or the other way round), finish, error.
        """
        import pandas as pd

        rows = []
        for place, task in enumerate(self.tasks):
            for number, example in enumerate(task.examples):
                first = self.reference.outcomes[place][number]
                for each in self.entries:
                    found = each.outcomes[place][number]
                    rows.append(
                        {
                            "task": task.name,
                            "example": example.id,
                            "candidate": each.name,
                            "prompt": example.prompt,
                            "answer": example.shown_answer,
                            "reply": found.text,
                            "score": found.score,
                            "right": found.right,
                            "flipped": flipped(first, found),
                            "finish": found.said.reply.finish if found.said.reply else "",
                            "error": found.error,
                        }
                    )
        return pd.DataFrame(rows)

    def flips(self, candidate: str | None = None, task: str | None = None) -> list[Flip]:
        """The examples that a candidate gained or lost against the reference: of one candidate or task, or of all.

        Raises:
            WorkbenchError: there is no candidate or task of that name.
        """
        for what, name, names in (
            ("candidate", candidate, [each.name for each in self.entries[1:]]),
            ("task", task, [each.name for each in self.tasks]),
        ):
            if name is not None and name not in names:
                raise WorkbenchError(what, f"there is none called {name!r:.60}", allowed=", ".join(names))
        return [
            Flip(one, example, each.name, first, found, self.reference.name)
            for place, one in enumerate(self.tasks)
            if task in (None, one.name)
            for each in self.entries[1:]
            if candidate in (None, each.name)
            for example, first, found in zip(
                one.examples, self.reference.outcomes[place], each.outcomes[place], strict=True
            )
            if flipped(first, found)
        ]

    def figure(self) -> go.Figure:
        """Every candidate's difference to the reference with its interval, by task."""
        return figure.differences(self)

    def by_bytes(self) -> go.Figure:
        """Scores against the bytes of the weights."""
        return figure.scores(self, "bytes")

    def by_kl(self) -> go.Figure:
        """Scores against the KL divergence on the reference's own replies."""
        return figure.scores(self, "kl")

    def report(self, path: str | Path) -> Path:
        """Write all of it as one page of HTML, which fetches nothing; returns its path."""
        return report.write(self, path)

    def __repr__(self) -> str:
        return shown.text(self)

    def _repr_html_(self) -> str:
        return shown.markup(self)


def pd_missing() -> Any:
    import pandas as pd

    return pd.NA


def flipped(first: Outcome, found: Outcome) -> bool:
    """Whether one is right and the other is wrong; False where either is not known."""
    return first.right is not None and found.right is not None and first.right != found.right


@dataclass(frozen=True, eq=False)
class Flip:
    """An example on which a candidate and the reference come out differently.

    Attributes:
        task, example: which.
        candidate, reference: their names.
        first, found: what the reference made of it, and what the candidate did.
    """

    task: Task
    example: Example
    candidate: str
    first: Outcome
    found: Outcome
    reference: str

    @property
    def gained(self) -> bool:
        return bool(self.found.right)

    @property
    def replies(self) -> SideBySide:
        """Both replies, the first token that differs marked."""
        assert self.first.said.reply is not None
        assert self.found.said.reply is not None
        verdicts = ("wrong", "right") if self.gained else ("right", "wrong")
        return SideBySide((self.reference, self.candidate), verdicts, (self.first.said.reply, self.found.said.reply))

    def __repr__(self) -> str:
        asked = f"{self.task.name}, example {self.example.id}: {self.example.prompt}"
        return f"{asked}\nAnswer: {self.example.shown_answer}\n\n{self.replies!r}"

    def _repr_html_(self) -> str:
        asked = html.escape(f"{self.task.name}, example {self.example.id}")
        prompt, answer = html.escape(self.example.prompt), html.escape(self.example.shown_answer)
        return (
            f'<p><b>{asked}</b></p><div style="white-space: pre-wrap">{prompt}</div>'
            f"<p>Answer: <b>{answer}</b></p>{self.replies._repr_html_()}"
        )
