"""The number that a reply comes to, exactly.

Read here and not by a library for mathematics: such a library evaluates what it reads, and "9^9^9^9" in a reply
of a small model keeps it busy for ever. Numbers are read as fractions, so 0.5, 1/2 and 50 % are equal and
nothing is rounded. Where expressions are asked for, there is the check "maths".
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_DIGITS = 60  # of one number; more are no answer, and make arithmetic slow
MOST_EXPONENT = 60

_PLAIN = r"(?:\d{1,3}(?:[,\u00a0\u202f']\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[-−–+])?\s?(?P<money>[$€£¥]|\\\$)?\s?
    (?P<number>{_PLAIN})(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?
    (?:\s?/\s?(?P<under>{_PLAIN}))?\s?(?P<percent>\\?%)?""",
    re.VERBOSE,
)
_FRACTION = re.compile(rf"(?P<sign>[-−])?\s*\\[dt]?frac\s*{{\s*(?P<over>{_PLAIN})\s*}}\s*{{\s*(?P<under>{_PLAIN})\s*}}")
_BOXED = re.compile(r"\\boxed\s*{((?:[^{}]|{[^{}]*}){1,200})}")
_AFTER = re.compile(r"####\s*([^\n]*)")  # how GSM8K writes its answers
_SAID = re.compile(r"(?i)\b(?:answer|result|total|antwort|réponse|respuesta)\b[^\d\n$€£+−.-]{0,40}(?=[-−–+$€£.\d])")
_GROUPS = str.maketrans("", "", ",'\u00a0\u202f")


def number_in(text: str) -> Fraction | None:
    """The number that `text` gives as its answer; None: it has none.

    In this order: what follows "####", what is boxed, the number after "the answer is" or the like (the
    last time it is said), else the last number of the text.
    """
    marked = _AFTER.findall(text) or _BOXED.findall(text)
    if marked:
        found = _numbers(marked[-1])
        return found[-1] if found else None
    said = list(_SAID.finditer(text))
    if said and (found := _numbers(text[said[-1].end() : said[-1].end() + 200].partition("\n")[0])):
        return found[0]
    found = _numbers(text)
    return found[-1] if found else None


def number_of(value: object) -> Fraction | None:
    """A number given as an answer: an int, a float, or a text that is one; None: it is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        try:
            return Fraction(str(value))
        except ValueError:  # not finite
            return None
    text = str(value).strip()
    if _AFTER.search(text) or _BOXED.search(text):
        return number_in(text)
    for pattern in (_FRACTION, _NUMBER):
        if match := pattern.fullmatch(text):
            return _value(match)
    return None


def _numbers(text: str) -> list[Fraction]:
    text = _FRACTION.sub(lambda match: f" {match['sign'] or ''}{match['over']}/{match['under']} ", text)
    found = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in found if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    parts = match.groupdict()
    over, under = parts.get("over") or parts["number"], parts["under"] or "1"
    if len(over) + len(under) > MOST_DIGITS:
        return None
    value, divisor = Fraction(over.translate(_GROUPS)), Fraction(under.translate(_GROUPS))
    exponent = int(parts.get("exponent") or 0)
    if divisor == 0 or abs(exponent) > MOST_EXPONENT:
        return None
    value = value / divisor * Fraction(10) ** exponent
    value = value / 100 if parts.get("percent") else value
    return -value if parts["sign"] and parts["sign"] in "-−–" else value
