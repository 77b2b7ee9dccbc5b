"""From rows to examples: which field is the prompt, which the answer, and how a reply is scored.

Everything is looked at before anything is asked; what does not fit names its row and field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.engines.base import messages_of
from workbench.exceptions import WorkbenchError
from workbench.tasks.checks import CHECKS, LETTERS, Check
from workbench.tasks.numbers import number_of
from workbench.tasks.reading import Row

PROMPTS = ("prompt", "messages", "question", "input", "instruction")
ANSWERS = ("answer", "target", "expected", "output", "label")
CHOICES = ("choices", "options")
CHECKED_BY, NAMED_BY = ("check",), ("id",)

Function = Callable[[str, Mapping[str, Any]], float]
OWN = "function"  # the name of a check by a user's function
HARNESS = "lm-eval"  # and of one by lm-evaluation-harness


@dataclass(frozen=True, eq=False)
class Example:
    """One question of a task.

    Attributes:
        where: the row it comes from, for messages.
        id: its own, or the number of its row.
        messages: the conversation that is asked, without the examples shown before it.
        answer: as the file has it. wanted: what replies are held against.
        choices: what there is to choose from; empty for an open question.
        check: a name of `CHECKS`, or "function".
        row: all of the row's fields.
    """

    where: str
    id: str
    messages: tuple[dict[str, str], ...]
    answer: Any
    wanted: Any
    choices: tuple[str, ...]
    check: str
    row: Mapping[str, Any] = field(repr=False)

    @property
    def likelihood(self) -> bool:
        """Whether choices are compared by log-likelihood, and nothing is generated."""
        return bool(self.choices) if self.check == HARNESS else self.check in CHECKS and CHECKS[self.check].likelihood

    @property
    def prompt(self) -> str:
        """What is asked last, as text."""
        return self.messages[-1]["content"]

    @property
    def shown_answer(self) -> str:
        """The answer as a reply would give it."""
        if self.choices and isinstance(self.wanted, int):
            return LETTERS[self.wanted] if self.check == "letter" else self.choices[self.wanted]
        if self.check == "regex":  # a pattern is no reply: the row may give one
            return str(self.row.get("example") or "")
        if isinstance(self.answer, list) and self.answer and self.check != "json":
            return str(self.answer[0])
        if isinstance(self.answer, dict | list):
            return json.dumps(self.answer, ensure_ascii=False)
        return "" if self.answer is None else str(self.answer)


@dataclass(frozen=True)
class Fields:
    """The names of the fields that are used, None where there is none; `prompt` may be a template: "Q: {question}"."""

    prompt: str
    answer: str | None
    choices: str | None
    check: str | None
    id: str | None

    @classmethod
    def of(
        cls, first: Row, prompt: str | None, answer: str | None, choices: str | None, *, answered: bool = True
    ) -> Fields:
        """Those a caller named, else those that the first row has."""
        there = first.fields
        return cls(
            _named(first, "prompt", prompt, PROMPTS) if prompt is None or "{" not in prompt else prompt,
            _named(first, "answer", answer, ANSWERS, needed=answered),
            _named(first, "choices", choices, CHOICES, needed=False),
            next((name for name in CHECKED_BY if there.get(name) is not None), None),
            next((name for name in NAMED_BY if there.get(name) is not None), None),
        )


def _named(row: Row, what: str, asked: str | None, usual: Sequence[str], *, needed: bool = True) -> Any:
    """The name of a field: the one asked for, or the first usual one that the row has."""
    found = asked if asked is not None else next((name for name in usual if name in row.fields), None)
    if found is not None and found not in row.fields:
        raise WorkbenchError(row.where, f"it has no field {found!r}", allowed=_listed(row.fields))
    if found is None and needed:
        raise WorkbenchError(
            row.where,
            f"none of its fields is the {what}: it has {_listed(row.fields)}",
            allowed=", ".join(usual),
            do=f'name it: wb.task(..., {what}="...")',
        )
    return found


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(fields)[:20]) or "none"


def examples_of(rows: Sequence[Row], fields: Fields, check: str | Function | None) -> list[Example]:
    """The rows as examples.

    Args:
        check: the name of a check, a function, or None for what the rows' own field "check" says, or else what
            suits the answers of all rows.

    Raises:
        WorkbenchError: the first row that does not fit, and its field.
    """
    if isinstance(check, str):
        _known(check, "check")
    usual = check if check is not None else _suitable(rows, fields)
    return [_example(row, fields, usual) for row in rows]


def _known(name: str, item: str) -> Check:
    if name not in CHECKS:
        raise WorkbenchError(item, f"there is no check {name!r:.60}", allowed=", ".join(CHECKS) + ", or a function")
    return CHECKS[name]


def _suitable(rows: Sequence[Row], fields: Fields) -> str:
    """The check for the answers that all rows have; raises WorkbenchError where they are of several kinds."""
    if fields.check is not None and all(row.fields.get(fields.check) is not None for row in rows):
        return "exact"  # of no use: every row says its own
    if fields.choices is not None:
        return "choice"
    first, answers = rows[0], {row.number: row.fields.get(fields.answer or "") for row in rows}
    kinds = {number: _kind(answer) for number, answer in answers.items()}
    other = next((row for row in rows if kinds[row.number] != kinds[first.number]), None)
    if other is None:
        return kinds[first.number]
    if set(kinds.values()) <= {"number", "contains"} and all(isinstance(answer, str) for answer in answers.values()):
        return "contains"  # texts, some of which are numbers
    raise WorkbenchError(
        f"{other.where}, field {fields.answer!r}",
        f"its answer is {other.fields.get(fields.answer or '')!r:.60}, and that of {first.where} is "
        f"{first.fields.get(fields.answer or '')!r:.60}: they cannot be scored alike",
        do='make them of one kind, say how all are scored (wb.task(..., check="contains")), or add a field "check"',
    )


def _kind(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return "json"
    return "number" if number_of(answer) is not None else "contains"


def _example(row: Row, fields: Fields, check: str | Function) -> Example:
    own = row.fields.get(fields.check) if fields.check else None
    if own is not None and not callable(check):
        check = _known(own if isinstance(own, str) else repr(own), f"{row.where}, field {fields.check!r}").name
    choices = _choices(row, fields)
    answer = row.fields.get(fields.answer) if fields.answer else None
    name = OWN if callable(check) else check
    if name == OWN:
        wanted: Any = None
    else:
        if answer is None:
            raise WorkbenchError(f"{row.where}, field {fields.answer!r}", "it is missing", allowed="an answer")
        try:
            wanted = CHECKS[name].expected(answer, choices)
        except ValueError as reason:
            raise WorkbenchError(
                f"{row.where}, field {fields.answer!r}", str(reason), allowed=f"for the check {name!r}: {_needs(name)}"
            ) from None
    messages = _messages(row, fields, choices if name == "letter" else ())
    given = row.fields.get(fields.id) if fields.id else None
    return Example(
        row.where, str(given if given is not None else row.number), messages, answer, wanted, choices, name, row.fields
    )


def _needs(check: str) -> str:
    return {
        "number": "a number",
        "json": "a JSON object",
        "regex": "a regular expression",
        "choice": "one of the choices, its letter, or its number from 0",
        "letter": "one of the choices, its letter, or its number from 0",
    }.get(check, "a text, or a list of texts of which any will do")


def _choices(row: Row, fields: Fields) -> tuple[str, ...]:
    if fields.choices is None:
        return ()
    where, found = f"{row.where}, field {fields.choices!r}", row.fields.get(fields.choices)
    if isinstance(found, str):
        found = _split(found)
    if isinstance(found, Mapping) and isinstance(found.get("text"), list):
        found = found["text"]  # {"text": [...], "label": [...]}, as ARC and its like have it
    if not isinstance(found, list) or not all(isinstance(each, str | int | float) for each in found):
        raise WorkbenchError(where, f"it is {found!r:.60}", allowed='a list of texts, or a text such as "yes|no"')
    texts = tuple(str(each) for each in found)
    if not 2 <= len(texts) <= len(LETTERS) or len(set(texts)) < len(texts) or not all(text.strip() for text in texts):
        raise WorkbenchError(
            where, f"it is {found!r:.60}", allowed=f"2 to {len(LETTERS)} texts, none empty and no two the same"
        )
    return texts


def _split(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return [part.strip() for part in text.split("|")]


def _messages(row: Row, fields: Fields, lettered: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    if "{" in fields.prompt:
        text: Any = _filled(row, fields.prompt)
        where = row.where
    else:
        text, where = row.fields.get(fields.prompt), f"{row.where}, field {fields.prompt!r}"
    if isinstance(text, str) and text.lstrip().startswith('[{"role"'):  # a conversation in a cell of a CSV
        try:
            text = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise WorkbenchError(where, f"it is no JSON ({reason!s:.80})") from reason
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str | list) or not text or (isinstance(text, str) and not text.strip()):
        found = "it is missing" if text is None else f"it is {text!r:.60}"
        raise WorkbenchError(where, found, allowed='a text, or a list of {"role": ..., "content": ...}')
    try:
        made = messages_of(text, None)
    except WorkbenchError as reason:
        raise WorkbenchError(where, f"{reason.item}: {reason.found}", allowed=reason.allowed) from None
    if made[-1]["role"] != "user":
        raise WorkbenchError(where, f"its last message is of the role {made[-1]['role']!r}", allowed="user")
    if lettered:
        lines = [f"{LETTERS[number]}. {choice}" for number, choice in enumerate(lettered)]
        asked = "\n".join([made[-1]["content"], *lines, "Answer with the letter alone."])
        made[-1] = {"role": "user", "content": asked}
    return tuple(made)


def _filled(row: Row, template: str) -> str:
    """The template with its {fields}; nothing but plain names of fields is understood in it."""

    def value(match: re.Match[str]) -> str:
        name = match[1].strip()
        if row.fields.get(name) is None:
            raise WorkbenchError(
                f"{row.where}, field {name!r}",
                "the prompt's template asks for it, and it is missing",
                allowed=_listed(row.fields),
            )
        found = row.fields[name]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return re.sub(r"{([^{}]+)}", value, template)
