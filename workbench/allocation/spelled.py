"""A plan as the code that makes it: where it began, and the changes since, by patterns of names where they serve."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, NamedTuple

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Origin:
    """Where changes by hand began.

    Attributes:
        name: of the plan then.
        code: the call that gives it; empty where none does.
        kind: what the call gives: a plan whose `with_` takes any change, one that is only good for its formats,
            or, without code, nothing.
    """

    name: str
    code: str = ""
    kind: Literal["priced", "formats", ""] = ""


def spelled(origin: Origin, changes: Mapping[str, str], asked: Callable[[str], str], names: Sequence[str]) -> str:
    """Lines that give a plan as `plan`, from `model` and `card`.

    Args:
        changes: tensor -> format, where the plan is not as it began; "" for one that stays as it is in the file.
        asked: tensor -> format, of the whole plan, in the same way.
        names: all matrices of the model.
    """
    if origin.kind and not changes:
        return f"plan = {origin.code}" if origin.kind == "priced" else f"plan = wb.plan(card, {origin.code})"
    if origin.kind and "" not in changes.values():
        if origin.kind == "priced":
            return f"plan = {origin.code}.with_({as_dict(patterned(changes, asked, names))})"
        entries = [f"**{origin.code}.formats", *_entries(changes)]
        return f"plan = wb.plan(card, {_braced(entries)})"
    return f"plan = wb.plan(card, {as_dict({name: format for name in names if (format := asked(name))})})"


def patterned(changes: Mapping[str, str], asked: Callable[[str], str], names: Sequence[str]) -> dict[str, str]:
    """Tensor -> format, with one pattern (`blk.*.attn_v.weight`) for all layers, or experts, that end up alike.

    Args:
        asked: tensor -> format, of all that a pattern may speak of: it may name again what is so already.
        names: all matrices that a pattern could match.
    """
    left, found = dict(changes), {}
    for kind in _kinds(tuple(names)) if len(changes) > 1 else ():
        touched = Counter(kind.pattern[name] for name in left if name in kind.pattern)
        for pattern in [pattern for pattern, many in touched.items() if many > 1]:
            formats = {asked(name) for name in kind.members[pattern]}
            if len(formats) == 1 and "" not in formats:
                found[pattern] = formats.pop()
                for name in kind.members[pattern]:
                    left.pop(name, None)
    return {**found, **left}


class _Kinds(NamedTuple):
    """Names by the pattern that matches just them: pattern -> its names, name -> its pattern."""

    members: dict[str, list[str]]
    pattern: dict[str, str]


@lru_cache(maxsize=4)
def _kinds(names: tuple[str, ...]) -> list[_Kinds]:
    """With every number left open, then with every number but the first, the layer's.

    A pattern that matches others too (an expert's matrix, of a layer's) is left out.
    """
    made = []
    for kept in (0, 1):
        classes: dict[str, list[str]] = defaultdict(list)
        for name in names:
            classes[_open(name, kept)].append(name)
        if len(classes) > len(names) // 2:
            continue  # nearly every name would be a pattern of its own
        # With its numbers written as *, a name stands for its class: a pattern that matches one matches all.
        members = {
            pattern: found
            for pattern, found in classes.items()
            if "[" not in pattern and not any(fnmatchcase(other, pattern) for other in classes if other != pattern)
        }
        made.append(_Kinds(members, {name: pattern for pattern, found in members.items() for name in found}))
    return made


def _open(name: str, kept: int) -> str:
    """The name with its numbers left open, all but the first `kept`."""
    end = 0
    for _ in range(kept):
        found = NUMBER.search(name, end)
        end = found.end() if found else end
    return name[:end] + NUMBER.sub("*", name[end:])


def as_dict(changes: Mapping[str, str]) -> str:
    """{"a": "b"} as code, a line for each entry if there are several."""
    return _braced(_entries(changes))


def as_list(names: Sequence[str]) -> str:
    return "[" + ", ".join(map(quoted, names)) + "]"


def quoted(text: str) -> str:
    """A string as Python code, which it stays whatever is in it."""
    return f'"{text}"' if text.isprintable() and not set(text) & {'"', "\\"} else repr(text)


def _entries(changes: Mapping[str, str]) -> list[str]:
    return [f"{quoted(name)}: {quoted(format)}" for name, format in changes.items()]


def _braced(entries: Sequence[str]) -> str:
    if len(entries) < 2:
        return "{" + "".join(entries) + "}"
    return "{\n    " + ",\n    ".join(entries) + ",\n}"
