"""Rows of a user's file, one at a time: JSON Lines, CSV or a DataFrame; each knows where it stands.

A file is read once, a line at a time, and only the rows that are kept are parsed: of a million rows a
sample of two hundred takes the memory of two hundred.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps

if TYPE_CHECKING:
    import pandas as pd

Source: TypeAlias = "str | Path | pd.DataFrame | Sequence[Mapping[str, Any]]"

KINDS = {".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV"}
LONGEST_ROW = 1 << 20  # characters: no prompt of this length fits a context
LONGEST_FILE = 64 << 20  # bytes of a .json file, which can only be read as a whole
MOST = 10_000  # rows that are taken without being asked for: a model needs hours for more
SECONDS = 1.0  # that an answer takes a small model on a processor: for a first estimate of the cost
EVERY = 2000  # rows between two reports of progress


@dataclass(frozen=True)
class Row:
    """One row: `where` it stands, for messages ("row 3 of tasks.jsonl"), its number from 1, and its fields."""

    where: str
    number: int
    fields: Mapping[str, Any]


def rows_steps(source: Source, limit: int | None = None, seed: int = 0) -> Steps[tuple[str, list[Row], int]]:
    """The rows of `source`, yielding how much was read: (a name for them, the rows, how many there were).

    Args:
        limit: keep so many at most, drawn by `seed`, in the order of the file; None: all.

    Raises:
        WorkbenchError: no such file, of no known kind, no row, a row that cannot be read (named), or
            more than `MOST` rows without a limit, with what they would cost.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise WorkbenchError("limit", f"it is {limit!r:.40}", allowed="a whole number above 0, or None for all rows")
    name, raw, parse = _opened(source)
    kept, count = yield from _drawn(raw, limit, random.Random(seed))
    if not count:
        raise WorkbenchError(name, "it has no rows", allowed="a row for each example, with a prompt and an answer")
    if limit is None and count > MOST:
        raise WorkbenchError(
            name,
            f"it has {count:,} rows: at about {SECONDS:g} s for an answer, {count * SECONDS / 3600:,.0f} hours for "
            "each candidate",
            allowed=f"up to {MOST:,} without asking",
            do=f"wb.task(..., limit=500) draws 500 of them, which settle most questions; limit={count} takes all",
        )
    return name, [Row(f"row {number} of {name}", number, parse(number, line)) for number, line in kept], count


def _drawn(raw: Iterator[Any], limit: int | None, draw: random.Random) -> Steps[tuple[list[tuple[int, Any]], int]]:
    """Numbered rows, at most `limit` of them (Vitter's reservoir), and how many came by."""
    kept: list[tuple[int, Any]] = []
    count, most = 0, MOST + 1 if limit is None else limit
    for count, line in enumerate(raw, start=1):
        if len(kept) < most:
            kept.append((count, line))
        elif limit is not None and (place := draw.randrange(count)) < most:
            kept[place] = (count, line)
        if count % EVERY == 0:
            yield Progress(count, 0, "row", "reading")
    return sorted(kept, key=lambda each: each[0]), count


Parse = Callable[[int, Any], Mapping[str, Any]]


def _opened(source: Source) -> tuple[str, Iterator[Any], Parse]:
    """A name, the raw rows, and what makes fields of the raw row of a number."""
    if isinstance(source, str | Path):
        return _file(Path(source).expanduser())
    if hasattr(source, "columns") and hasattr(source, "itertuples"):
        columns = [str(column) for column in source.columns]
        lines = source.itertuples(index=False, name=None)
        return "the DataFrame", iter(lines), lambda _, line: dict(zip(columns, map(_plain, line), strict=True))
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return "the list", iter(source), _mapping("the list")
    raise WorkbenchError(
        "task",
        f"it is a {type(source).__name__}",
        allowed="a .jsonl, .json, .csv or .tsv file, a DataFrame, or a list of dictionaries",
    )


def _file(path: Path) -> tuple[str, Iterator[Any], Parse]:
    name, kind = path.name, KINDS.get(path.suffix.lower())
    if kind is None:
        raise WorkbenchError(path, "its name does not say how it is written", allowed=", ".join(KINDS))
    if not path.is_file():
        raise WorkbenchError(path, "there is no such file", do="check the path; it is relative to where Python runs")
    if kind == "CSV":
        return name, _csv_rows(path), lambda _, fields: fields
    if kind == "JSON":
        return name, iter(_list(path)), _mapping(name)
    return name, _lines(path), lambda number, line: _object(f"row {number} of {name}", line)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a JSON Lines file that are not empty."""
    number = 0
    for line in _text(path):
        if line.strip():
            number += 1
            yield line
        if len(line) > LONGEST_ROW:
            raise _too_long(f"row {number} of {path.name}", len(line))


def _text(path: Path) -> Iterator[str]:
    """Lines of UTF-8 text, none longer than `LONGEST_ROW` and a bit."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while line := file.readline(LONGEST_ROW + 2):
                yield line
    except (OSError, UnicodeDecodeError) as reason:
        raise WorkbenchError(path, f"it cannot be read as text ({reason})", allowed="UTF-8") from reason


def _too_long(where: str, length: int) -> WorkbenchError:
    return WorkbenchError(where, f"it has over {min(length, LONGEST_ROW):,} characters", allowed=f"{LONGEST_ROW:,}")


def _object(where: str, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise WorkbenchError(
            where, f"it is no JSON ({reason!s:.100})", allowed='an object on a line: {"prompt": "...", "answer": "..."}'
        ) from reason
    return _mapping("")(0, found) if isinstance(found, dict) else _refused(where, found)


def _list(path: Path) -> list[Any]:
    """The list in a .json file, or under the only key of the object in it."""
    if path.stat().st_size > LONGEST_FILE:
        raise WorkbenchError(
            path,
            f"it has {path.stat().st_size:,} bytes",
            allowed=f"up to {LONGEST_FILE:,} in one JSON value",
            do="write it as JSON Lines, an object on each line, which is read bit by bit",
        )
    try:
        found = json.loads("".join(_text(path)))
    except (ValueError, RecursionError) as reason:
        raise WorkbenchError(path, f"it is no JSON ({reason!s:.100})", allowed="a list of objects") from reason
    if not isinstance(found, list):
        raise WorkbenchError(path, f"it holds a {type(found).__name__}", allowed="a list of objects")
    return found


def _mapping(name: str) -> Parse:
    def parse(number: int, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            _refused(f"row {number} of {name}", value)
        return {str(key): _plain(each) for key, each in value.items()}

    return parse


def _refused(where: str, value: object) -> dict[str, Any]:
    raise WorkbenchError(where, f"it is {value!r:.60}", allowed='an object: {"prompt": "...", "answer": "..."}')


def _plain(value: Any) -> Any:
    """A value of a DataFrame as JSON has it: numpy's numbers as Python's, what is missing as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if value is None or (isinstance(value, float) and value != value) or str(value) == "<NA>" else value


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries by the names in the first row; cells that are empty are missing."""
    lines = _text(path)
    head = next(lines, "")
    separator = max(",;\t", key=head.count)
    table = csv.reader(_joined(head, lines), delimiter=separator, strict=True)
    number = 0
    try:
        names = [name.strip() for name in next(table, [])]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise WorkbenchError(path, f"two columns are called {twice!r}", do="give each column a name of its own")
        for number, cells in enumerate((cells for cells in table if cells), start=1):
            if len(cells) != len(names):
                raise WorkbenchError(
                    f"row {number} of {path.name}",
                    f"it has {len(cells)} cells, and the first line names {len(names)} columns",
                    do="put a cell that holds the separator, or a line break, in double quotes",
                )
            yield {name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=True)}
    except csv.Error as reason:
        raise WorkbenchError(
            f"row {number + 1} of {path.name}", f"it is no CSV ({reason})", do="close every double quote"
        ) from reason


def _joined(head: str, lines: Iterator[str]) -> Iterator[str]:
    yield from io.StringIO(head, newline="")
    yield from lines
