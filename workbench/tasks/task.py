"""A task: questions with their answers, how replies are scored, and how a model is asked."""

from __future__ import annotations

import html
import inspect
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import files
from workbench.engines.base import Settings
from workbench.exceptions import WorkbenchError
from workbench.progress import Steps, drain
from workbench.tasks.checks import CHECKS
from workbench.tasks.harness import Harness, examples_steps, is_harness, opened
from workbench.tasks.reading import Source, rows_steps
from workbench.tasks.understanding import HARNESS, OWN, Example, Fields, Function, examples_of

if TYPE_CHECKING:
    import pandas as pd

FIRST = 5  # rows shown


@dataclass(frozen=True, eq=False)
class Task:
    """Examples of one kind of work; made by `wb.task`.

    Attributes:
        name: what figures and tables call it.
        examples: what is asked and scored.
        settings: how replies are generated: greedy unless it says otherwise.
        shots: examples shown before each question, as turns of the conversation; they are not scored.
        function: the user's own check, for examples that are scored by one.
        harness: where it comes from, for one of lm-evaluation-harness.
        rows: how many the source had.
        understood: which fields are used for what, in words.
        notes: what a reader of results should know.
    """

    name: str
    examples: tuple[Example, ...]
    settings: Settings = field(default_factory=Settings)
    shots: tuple[Example, ...] = ()
    function: Function | None = field(default=None, repr=False)
    harness: Harness | None = None
    rows: int = 0
    understood: str = ""
    notes: tuple[str, ...] = ()

    def messages(self, example: Example) -> list[dict[str, str]]:
        """What a model is asked: the shots with their answers, then the example; the system's word is a setting."""
        shown = [
            turn
            for shot in self.shots
            for turn in (*shot.messages, {"role": "assistant", "content": shot.shown_answer})
        ]
        own = list(example.messages)
        if shown and own[0]["role"] == "system":  # what the example says of itself stays in front
            return [own[0], *(turn for turn in shown if turn["role"] != "system"), *own[1:]]
        return [*(turn for turn in shown if turn["role"] != "system"), *own]

    @property
    def checks(self) -> dict[str, int]:
        """Kind of check -> how many examples are scored by it."""
        return dict(Counter(example.check for example in self.examples))

    @cached_property
    def fingerprint(self) -> str:
        """A name for the questions, the answers and the settings; of a function, for its source."""
        asked = [(self.messages(one), one.answer, one.choices, one.check) for one in self.examples]
        own = _source(self.function) if self.function else ""
        return files.digest(asked, vars(self.settings), own, repr(self.harness))

    @property
    def text(self) -> str:
        """Questions and answers as one text, for `wb.sensitivity` and `wb.errors`: what matters to this task."""
        return "\n\n".join(f"{example.prompt}\n{example.shown_answer}".rstrip() for example in self.examples)

    def frame(self) -> pd.DataFrame:
        """A row for each example: example, prompt, answer, check, and choices where there are any."""
        import pandas as pd

        rows = [
            {"example": one.id, "prompt": one.prompt, "answer": one.shown_answer, "check": one.check}
            | ({"choices": " | ".join(one.choices)} if one.choices else {})
            for one in self.examples
        ]
        return pd.DataFrame(rows)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def said(self) -> list[str]:
        """What was understood, a line each: the fields, how replies are scored, what to know."""
        kinds = [f"{count} by {name!r}: {_what(name)}" for name, count in self.checks.items()]
        shots = [f"{len(self.shots)} examples are shown before each question, and not scored"] if self.shots else []
        return [self.understood, *kinds, *shots, *self.notes]

    @property
    def headline(self) -> str:
        """Its name and its size."""
        some = f", drawn from {self.rows:,}" if self.rows > len(self.examples) + len(self.shots) else ""
        return f"{self.name}: {len(self.examples):,} example{'s' * (len(self.examples) != 1)}{some}"

    def __repr__(self) -> str:
        first = [f"  {one.prompt!r:.70} -> {one.shown_answer!r:.40}" for one in self.examples[:FIRST]]
        return "\n".join([self.headline, *self.said, *first])

    def _repr_html_(self) -> str:
        said = "".join(f"<div>{html.escape(line)}</div>" for line in self.said)
        table = self.frame().head(FIRST).to_html(index=False, escape=True)
        return f"<p><b>{html.escape(self.headline)}</b></p>{said}{table}"


def _what(check: str) -> str:
    others = {OWN: "your function", HARNESS: "lm-evaluation-harness's own scoring"}
    return others[check] if check in others else CHECKS[check].what


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)


def task(
    source: Source | Task,
    *,
    check: str | Function | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    choices: str | None = None,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
    name: str | None = None,
    **settings: Any,
) -> Task:
    """Read a task from a file and say how its replies are scored.

        wb.task("mine.jsonl")                                   # {"prompt": ..., "answer": ...} on each line
        wb.task("mine.csv", prompt="Q: {question}", check="number", shots=3, max_tokens=200)
        wb.task(frame, check=lambda reply, row: row["name"] in reply)

    Args:
        source: a .jsonl, .json, .csv or .tsv file, a DataFrame, or a list of dictionaries. Or a task of
            lm-evaluation-harness: its .yaml file, or "lm-eval:gsm8k". That library then writes the questions and
            scores the replies; code that the file names is run, as it does itself.
        check: one of "exact", "contains", "regex", "number", "json", "choice", "letter", "maths", or a function
            (reply, row) -> True, False or a score from 0 to 1; None takes what suits the answers. For
            lm-evaluation-harness a metric and filter of the task, such as "exact_match,flexible-extract".
        prompt, answer, choices: names of the fields, where they are not the usual ones. `prompt` may be a
            template, such as "Translate to French: {text}". A prompt is a text or a list of messages.
        shots: so many examples, drawn by `seed`, are shown before each question with their answers.
        limit: use at most so many rows, drawn by `seed`.
        settings: those of `wb.run`'s replies: max_tokens (256), system, stop, temperature (0: greedy), ...

    Raises:
        WorkbenchError: a row that does not fit (it and its field are named), an unknown check, more rows than
            anybody waits for.
    """
    steps = task_steps(
        source,
        check=check,
        prompt=prompt,
        answer=answer,
        choices=choices,
        shots=shots,
        limit=limit,
        seed=seed,
        name=name,
        **settings,
    )
    return drain(steps, label="reading")


def task_steps(
    source: Source | Task,
    *,
    check: str | Function | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    choices: str | None = None,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
    name: str | None = None,
    **settings: Any,
) -> Steps[Task]:
    """`task`, yielding the rows read."""
    if isinstance(source, Task):
        return source
    if isinstance(source, str | Path) and is_harness(source):
        return (yield from _harness_steps(opened(source, check, shots or None, limit, seed), name, settings))
    if check is not None and not isinstance(check, str) and not callable(check):
        raise WorkbenchError("check", f"it is {check!r:.60}", allowed=", ".join(CHECKS) + ", or a function")
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise WorkbenchError("shots", f"it is {shots!r:.40}", allowed="a whole number, 0 for none")
    generated = Settings.of(**settings)
    said, rows, count = yield from rows_steps(source, None if limit is None else limit + shots, seed)
    fields = Fields.of(rows[0], prompt, answer, choices, answered=not callable(check))
    examples = examples_of(rows, fields, check)
    shown, asked = _divided(examples, shots, seed, said)
    own = name or (Path(source).stem if isinstance(source, str | Path) else "task")
    used = {"prompt": fields.prompt, "answer": fields.answer, "choices": fields.choices, "check": fields.check}
    understood = "; ".join(f"{what}: {field!r}" for what, field in used.items() if field)
    return Task(
        own,
        tuple(asked),
        generated,
        tuple(shown),
        check if callable(check) else None,
        rows=count,
        understood=understood,
        notes=tuple(_notes(asked)),
    )


def _harness_steps(harness: Harness, name: str | None, settings: dict[str, Any]) -> Steps[Task]:
    """A task of lm-evaluation-harness; `settings` come before its own."""
    examples, own = yield from examples_steps(harness)
    chosen = Settings.of(**{**vars(own), **settings})
    count = len(examples)
    return Task(name or harness.name, tuple(examples), chosen, harness=harness, rows=count, understood=harness.what)


def _divided(examples: list[Example], shots: int, seed: int, name: str) -> tuple[list[Example], list[Example]]:
    """Those that are shown, and those that are asked."""
    if shots == 0:
        return [], examples
    if shots >= len(examples):
        raise WorkbenchError(
            "shots", f"{shots} of the {len(examples)} examples of {name} leave none to ask", do="show fewer"
        )
    untold = next((one for one in examples if not one.shown_answer), None)
    if untold is not None:
        raise WorkbenchError(
            "shots",
            f"{untold.where} is checked by {untold.check!r} and says no reply that could be shown",
            do='give such rows a field "example" with a good reply',
        )
    places = set(random.Random(f"shots {seed}").sample(range(len(examples)), shots))
    return [examples[place] for place in sorted(places)], [
        one for place, one in enumerate(examples) if place not in places
    ]


def _notes(examples: Sequence[Example]) -> list[str]:
    notes = []
    twice = len(examples) - len({str(one.messages) for one in examples})
    if twice:
        notes.append(
            f"{twice} question{'s are' if twice > 1 else ' is'} asked more than once: such examples are not "
            "independent, and intervals come out too narrow"
        )
    if len(examples) == 1:
        notes.append("one example settles nothing: no interval can be given")
    return notes


def renamed(tasks: Sequence[Task]) -> list[Task]:
    """Tasks with names that differ."""
    seen: Counter[str] = Counter()
    made = []
    for one in tasks:
        seen[one.name] += 1
        made.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name} {seen[one.name]}"))
    return made
