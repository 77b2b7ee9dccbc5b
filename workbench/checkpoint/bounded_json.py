"""JSON from strangers: duplicated keys, deep nesting and sheer size are errors, never crashes or lost memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.checkpoint.tensors import malformed, opened

# A Python object may take 25 times the bytes of its JSON text, so whole documents are kept small ...
LONGEST_DOCUMENT = 3 << 20
MOST_BRACKETS = 100_000  # each list or object of three characters costs fifty bytes and slows Python's collector
DEEPEST = 50  # lists and objects within each other; Python's own limit would be met later, in the middle of other work
# ... and longer ones are walked member by member, each of at most this many characters.
LONGEST_MEMBER = 4096

_SPACE = re.compile(r"[ \t\n\r]*")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} appears twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a small file such as config.json (at most 3 MiB and 100,000 lists and objects)."""
    return parse(path, text_of(path, LONGEST_DOCUMENT))


def parse(path: Path, text: str) -> dict[str, Any]:
    """The JSON object that `text`, of the file `path`, holds; within the same limits."""
    if len(text) > LONGEST_DOCUMENT:
        raise malformed(path, f"it has {len(text):,} characters", allowed=f"up to {LONGEST_DOCUMENT:,}")
    if (brackets := text.count("[") + text.count("{")) > MOST_BRACKETS:
        raise malformed(path, f"it has {brackets:,} opening brackets", allowed=f"up to {MOST_BRACKETS:,}")
    walk = Walk(path, text)
    found = walk.value(LONGEST_DOCUMENT)
    walk.end()
    if not isinstance(found, dict):
        raise malformed(path, f"it holds a JSON {type(found).__name__}", allowed="a JSON object, {...}")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [member for value in level for member in _members(value)]
        if not level:
            return found
    raise malformed(path, "its JSON is nested too deeply", allowed=f"{DEEPEST} levels")


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def text_of(path: Path, longest: int) -> str:
    """The text of a UTF-8 file of at most `longest` bytes."""
    with opened(path) as (file, size):
        if size > longest:
            raise malformed(path, f"it has {size:,} bytes", allowed=f"up to {longest:,} bytes for this file")
        return decoded(path, file.read(longest))


def decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise malformed(path, f"its text is not UTF-8 ({reason.reason} at byte {reason.start:,})") from reason


class Walk:
    """A position in a JSON text, moved over one value at a time.

        for key in walk.members(limit): entry = walk.value()

    Each member must be taken (with `value`, or `members` again) before the next.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text, self.at = path, text, 0

    def members(self, most: int) -> Iterator[str]:
        """The keys of the object that starts here, of which there may be `most`."""
        self._expect("{")
        if self._next() == "}":
            self.at += 1
            return
        seen: set[str] = set()
        while True:
            if self._next() != '"':
                raise self._wrong("a key in quotes")
            key = self.value()
            if key in seen:
                raise malformed(self.path, f"the name {key!r} appears twice in its header")
            if len(seen) == most:
                raise malformed(self.path, f"its header has more than {most:,} entries")
            seen.add(key)
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def value(self, longest: int = LONGEST_MEMBER) -> Any:
        """The value that starts here, of at most `longest` characters."""
        self._next()
        try:
            found, length = _DECODER.raw_decode(self.text[self.at : self.at + longest])
        except RecursionError as reason:
            raise malformed(self.path, f"its JSON is nested too deeply at character {self.at:,}") from reason
        except json.JSONDecodeError as reason:
            raise malformed(
                self.path, f"its JSON is wrong at character {self.at + reason.pos:,}: {reason.msg}"
            ) from reason
        except ValueError as reason:
            raise malformed(self.path, f"its JSON is wrong after character {self.at:,}: {reason}") from reason
        self.at += length
        return found

    def end(self) -> None:
        """Check that nothing but space follows."""
        if self._next():
            raise self._wrong("the end of the text")

    def _next(self) -> str:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def _expect(self, characters: str) -> str:
        found = self._next()
        if not found or found not in characters:
            raise self._wrong(" or ".join(characters))
        self.at += 1
        return found

    def _wrong(self, wanted: str) -> Exception:
        found = self.text[self.at : self.at + 20]
        return malformed(self.path, f"its JSON has {found!r} at character {self.at:,}", allowed=wanted)
