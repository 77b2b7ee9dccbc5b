"""A `Memory` as text and as HTML."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from workbench import figures

if TYPE_CHECKING:
    from workbench.fit.answer import Memory


def as_text(memory: Memory) -> str:
    """The parts in columns, then what a reader of the figures must know."""
    lines = [_headline(memory)]
    width = max(len(part) for part, _ in memory.rows())
    lines += [f"  {part:<{width}}  {figures.size(nbytes):>9}" for part, nbytes in memory.rows()]
    lines.append(f"  {'total':<{width}}  {figures.size(memory.total):>9}")
    return "\n".join([*lines, *_remarks(memory)])


def as_html(memory: Memory) -> str:
    """The same as a table; every string that came from a file is escaped."""
    rows = "".join(
        f"<tr><td style='text-align:left'>{html.escape(part)}</td><td>{figures.size(nbytes)}</td>"
        f"<td>{nbytes / memory.total:.0%}</td></tr>"
        for part, nbytes in memory.rows()
    )
    total = f"<tr><th style='text-align:left'>total</th><th>{figures.size(memory.total)}</th><th></th></tr>"
    said = "".join(f"<p>{html.escape(line)}</p>" for line in _remarks(memory))
    return f"<p><b>{html.escape(_headline(memory))}</b></p><table>{rows}{total}</table>{said}"


def _headline(memory: Memory) -> str:
    types = memory.kv[0] if memory.kv[0] == memory.kv[1] else "/".join(memory.kv)
    several = f", {memory.batch} sequences" if memory.batch > 1 else ""
    return (
        f"{memory.model} in {memory.engine}, {memory.format}: {memory.context:,} tokens{several}, "
        f"keys and values in {types}{' (estimate)' if memory.estimate else ''}"
    )


def _remarks(memory: Memory) -> list[str]:
    lines = []
    if memory.active_weights < memory.weights:
        lines.append(f"Of the weights, a token passes {figures.size(memory.active_weights)}; all must be there.")
    off = memory.rule_is_off_by
    lines.append(
        f"The rule of thumb, parameters x bits / 8 x 1.2, says {figures.size(memory.rule_of_thumb)}: "
        f"{abs(off):.0%} too {'much' if off > 0 else 'little'} for this model and context."
    )
    if memory.device is not None:
        room = memory.room(memory.device)
        verdict = f"fits, {figures.size(room)} to spare" if room >= 0 else f"{figures.size(-room)} too much"
        lines.append(f"{memory.device.name} has {figures.size(memory.device.usable)}: {verdict}.")
        if room < 0:
            lines.append(f"What would fit: {memory.nearest(memory.device)}.")
    return [*lines, *(f"Note: {note}." for note in memory.notes)]
