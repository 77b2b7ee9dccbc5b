"""How a reply is scored: the kinds of check, what each asks of an answer, and how it reads a reply.

A score is from 0 to 1, and a reply is right if its score is 1. What `expected` cannot make of an answer it says in a
`ValueError`, before anything is asked.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.tasks.numbers import number_in, number_of

REGEX_SECONDS = 1.0  # that a pattern may take on one reply
LETTERS = string.ascii_uppercase
_EDGES = string.punctuation + string.whitespace + "“”„‘’«»。！？，¡¿…"


@dataclass(frozen=True)
class Check:
    """A kind of check.

    Attributes:
        name: what a task calls it.
        what: when a reply is right, for a reader.
        expected: (answer, choices) -> what replies are held against; raises ValueError for an answer it cannot use.
        score: (reply, what is expected) -> 0 to 1.
        likelihood: choices are compared by log-likelihood, and nothing is generated.
        apart: it runs in a process of its own, since nothing here can end it.
    """

    name: str
    what: str
    expected: Callable[[Any, Sequence[str]], Any]
    score: Callable[[str, Any], float]
    likelihood: bool = False
    apart: bool = False


def plain(text: object) -> str:
    """A text as "exact" and "contains" see it: case, spaces and the punctuation around it do not count."""
    folded = unicodedata.normalize("NFKC", str(text)).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def _texts(answer: Any, choices: Sequence[str]) -> tuple[str, ...]:
    accepted = answer if isinstance(answer, list | tuple) else [answer]
    found = tuple(plain(_spelt(each)) for each in accepted)
    if not found or any(isinstance(each, Mapping | list) for each in accepted):
        raise ValueError(f"it is {answer!r:.60}; a text or a list of texts is needed")
    if not all(found):
        raise ValueError("nothing is left of it without spaces and punctuation")
    return found


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _contains(reply: str, accepted: tuple[str, ...]) -> float:
    text = plain(reply)
    return float(any(_has(text, each) for each in accepted))


def _has(text: str, part: str) -> bool:
    """Whether `part` stands in `text` as whole words; where letters have no case, words have no edges."""
    at = text.find(part)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(part) : at + len(part) + 1]
        if not (_joins(before) and _joins(part[0])) and not (_joins(after) and _joins(part[-1])):
            return True
        at = text.find(part, at + 1)
    return False


def _joins(character: str) -> bool:
    return character.isdigit() or character.lower() != character.upper()


def _pattern(answer: Any, choices: Sequence[str]) -> str:
    import regex

    if not isinstance(answer, str) or not answer:
        raise ValueError(f"it is {answer!r:.60}; a regular expression is needed")
    try:
        regex.compile(answer)
    except regex.error as reason:
        raise ValueError(f"{answer!r:.60} is no regular expression: {reason}") from reason
    return answer


def _matches(reply: str, pattern: str) -> float:
    import regex

    try:
        return float(regex.search(pattern, reply, timeout=REGEX_SECONDS) is not None)
    except TimeoutError:
        raise TimeoutError(f"the pattern was still searching after {REGEX_SECONDS:g} s") from None


def _number(answer: Any, choices: Sequence[str]) -> Any:
    found = number_of(answer)
    if found is None:
        raise ValueError(f"it is {answer!r:.60}; a number is needed")
    return found


def _fields(answer: Any, choices: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError) as reason:
            raise ValueError(f"{answer!r:.60} is no JSON") from reason
    if not isinstance(answer, Mapping) or not answer:
        raise ValueError(f"it is {answer!r:.60}; an object with a field or more is needed")
    return dict(answer)


def _json(reply: str, wanted: Mapping[str, Any]) -> float:
    found = json_in(reply)
    if not isinstance(found, Mapping):
        return 0.0
    leaves = list(_leaves(wanted, found))
    return sum(leaves) / len(leaves)


def _leaves(wanted: Any, found: Any) -> list[bool]:
    """Of every value within `wanted`, whether `found` has it at the same place."""
    if isinstance(wanted, Mapping) and wanted:
        inside = found if isinstance(found, Mapping) else {}
        return [leaf for key, value in wanted.items() for leaf in _leaves(value, inside.get(key))]
    if isinstance(wanted, list) and wanted:
        row = found if isinstance(found, list) else []
        longer = [False] if len(row) > len(wanted) else []
        padded = [*row, *[None] * len(wanted)]
        return [leaf for value, other in zip(wanted, padded, strict=False) for leaf in _leaves(value, other)] + longer
    if isinstance(wanted, str):
        return [isinstance(found, str) and plain(found) == plain(wanted)]
    return [isinstance(found, bool) == isinstance(wanted, bool) and found == wanted]


def json_in(text: str) -> Any:
    """The first JSON object in a reply, which may stand in prose or in a fence; None: there is none."""
    decoder, at = json.JSONDecoder(), text.find("{")
    for _ in range(100):  # braces tried: enough for any prose, and no reply can make it slow
        if at < 0:
            return None
        try:
            return decoder.raw_decode(text, at)[0]
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
    return None


def _choice(answer: Any, choices: Sequence[str]) -> int:
    """The number of the right choice, from its text, its letter, or its number from 0."""
    if len(choices) < 2:
        raise ValueError("there are no choices to choose from; two or more are needed")
    if isinstance(answer, int) and not isinstance(answer, bool) and str(answer) not in choices:
        if 0 <= answer < len(choices):
            return answer
        raise ValueError(f"it is {answer}; the choices are numbered from 0 to {len(choices) - 1}")
    texts = [plain(choice) for choice in choices]
    wanted = plain(_spelt(answer)) if answer is not None else ""
    if wanted in texts:
        return texts.index(wanted)
    letters = [letter.lower() for letter in LETTERS[: len(choices)]]
    if wanted in letters:
        return letters.index(wanted)
    raise ValueError(f"{answer!r:.60} is not among the choices {', '.join(choices)!s:.200}")


def _letter(reply: str, right: int) -> float:
    return float(letter_in(reply) == LETTERS[right])


def letter_in(reply: str) -> str | None:
    """The letter that a reply chooses: the first capital that stands alone, as in "B", "(B)" or "The answer is B."."""
    words = "".join(character if character.isalnum() or character == "'" else " " for character in reply).split()
    alone = [word for word in words if len(word) == 1 and word in LETTERS]
    if len(alone) > 1 and alone[0] in "AI" and len(words) > 1 and words[0] == alone[0]:
        alone = alone[1:]  # "A dog ... B": an article, a pronoun
    return alone[0] if alone else None


def _as_it_is(answer: Any, choices: Sequence[str]) -> Any:
    return answer


def _chosen(reply: str, right: int) -> float:
    raise AssertionError("choices are compared by likelihood, not by a reply")


def _maths_answer(answer: Any, choices: Sequence[str]) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"it is {answer!r:.60}; a number or an expression is needed")
    return str(answer)


def maths(reply: str, answer: str) -> float:
    """Whether a reply comes to an expression, by the library math-verify. May never return: call it `apart`."""
    import logging

    from workbench.exceptions import need

    library = need("math_verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the missing clock, which is outside
    bare = "\\" in answer and "$" not in answer  # LaTeX is looked for between dollars
    gold = library.parse(f"${answer}$" if bare else answer, parsing_timeout=None)
    found = library.parse(reply, parsing_timeout=None)
    return float(library.verify(gold, found, timeout_seconds=None))


CHECKS = {
    check.name: check
    for check in (
        Check(
            "exact",
            "the reply is the answer, but for case, spaces and the punctuation around it",
            _texts,
            lambda reply, accepted: float(plain(reply) in accepted),
        ),
        Check("contains", "the answer stands in the reply as whole words, in any case", _texts, _contains),
        Check("regex", "the answer, a regular expression, matches somewhere in the reply", _pattern, _matches),
        Check(
            "number",
            "the number that the reply comes to is the answer's",
            _number,
            lambda reply, wanted: float(number_in(reply) == wanted),
        ),
        Check("json", "the reply holds a JSON object with every field of the answer", _fields, _json),
        Check("choice", "the right choice is the likeliest reply", _choice, _chosen, likelihood=True),
        Check("letter", "the reply names the letter of the right choice", _choice, _letter),
        Check("maths", "the reply comes to an equal expression, by math-verify", _maths_answer, maths, apart=True),
    )
}
