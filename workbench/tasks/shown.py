"""A benchmark as text and as a table in a notebook: first what the data support, then the figures."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from workbench import figures
from workbench.tasks.paired import FEW, Interval

if TYPE_CHECKING:
    from workbench.tasks.result import Benchmark

HEADS = ("", "score", "difference, points", "won", "lost", "p", "verdict", "KL", "tokens/s", "size")


def text(found: Benchmark) -> str:
    """Every task as a table of plain text, with what its figures do and do not say."""
    blocks = []
    for place, task in enumerate(found.tasks):
        rows = [HEADS, *cells(found, place)]
        shown = [column for column in range(len(HEADS)) if any(row[column] for row in rows[1:])]
        widths = [max(len(row[column]) for row in rows) for column in shown]
        lines = [
            "  ".join(row[column].ljust(width) for column, width in zip(shown, widths, strict=True)).rstrip()
            for row in rows
        ]
        blocks.append("\n".join([f"{task.name}: {len(task):,} examples", *lines, *remarks(found, place)]))
    return "\n\n".join([*blocks, *found.notes])


def markup(found: Benchmark) -> str:
    """The same as HTML; everything is escaped."""
    blocks = []
    for place, task in enumerate(found.tasks):
        rows = cells(found, place)
        shown = [column for column in range(len(HEADS)) if any(row[column] for row in rows)]
        head = "".join(f"<th>{html.escape(HEADS[column])}</th>" for column in shown)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(row[column])}</td>" for column in shown) + "</tr>" for row in rows
        )
        said = "".join(f"<div>{html.escape(line)}</div>" for line in remarks(found, place))
        title = html.escape(f"{task.name}: {len(task):,} examples")
        blocks.append(f"<p><b>{title}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}")
    return "".join(blocks) + "".join(f"<p>{html.escape(note)}</p>" for note in found.notes)


def cells(found: Benchmark, place: int) -> list[tuple[str, ...]]:
    """A row of texts for each candidate, in the order of `HEADS`."""
    rows: list[tuple[str, ...]] = []
    for each in found.entries:
        key = (found.tasks[place].name, each.name)
        pair, kl, speed = found.pairs.get(key), found.kl(place, each), each.speed(place)
        rows.append(
            (
                each.name,
                share(found.accuracies[key]),
                points(pair.difference) if pair and pair.examples else "",
                str(pair.wins) if pair and pair.examples else "",
                str(pair.losses) if pair and pair.examples else "",
                probability(pair.holm) if pair and pair.examples else "",
                pair.verdict if pair else "the reference",
                f"{kl.value:.3g}" if kl else "",
                "" if math.isnan(speed) else f"{speed:.1f}",
                "" if each.nbytes is None else figures.size(each.nbytes),
            )
        )
    return rows


def share(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "no score"
    around = "" if math.isnan(interval.low) else f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return f"{100 * interval.value:.1f} %{around}"


def points(interval: Interval) -> str:
    """A difference in percentage points, with its sign."""
    if math.isnan(interval.value):
        return "no score"
    around = "" if math.isnan(interval.low) else f" ({signed(interval.low)} to {signed(interval.high)})"
    return f"{signed(interval.value)}{around}"


def signed(value: float) -> str:
    shown = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if shown in ("+0.0", "−0.0") else shown


def probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def remarks(found: Benchmark, place: int) -> list[str]:
    """What a reader of a task's table should know."""
    task, lines = found.tasks[place], list(found.tasks[place].notes)
    for each in found.entries:
        failed = [one for one in each.outcomes[place] if math.isnan(one.score)]
        if failed:
            count = "1 example has" if len(failed) == 1 else f"{len(failed)} examples have"
            lines.append(f"{each.name}: {count} no score and count for nothing; {failed[0].error}")
        cut = sum(1 for one in each.outcomes[place] if one.said.reply and one.said.reply.finish == "length")
        if cut > len(task) // 4:
            lines.append(f"{each.name}: {cut} replies were cut at {task.settings.max_tokens} tokens (max_tokens)")
        pair = found.pairs.get((task.name, each.name))
        if pair is not None and pair.settles:
            lines.append(f"{each.name}: {pair.settles}")
    if 1 < len(task) < FEW:
        lines.append(f"under {FEW} examples, an interval is itself not to be trusted")
    return lines
