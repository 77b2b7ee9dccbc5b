"""A checkpoint as a readable tree: layers with the same tensors are told once. Plain text, and HTML that folds."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.checkpoint import names
from workbench.figures import size

if TYPE_CHECKING:
    from workbench.checkpoint.checkpoint import Checkpoint
    from workbench.checkpoint.tensors import TensorInfo

# No published model comes near these; a file made to flood the page does.
MOST_PARTS = 100
MOST_ROWS = 100  # of one part

Row = tuple[str, str, str, str, str]  # role, shape, encoding, bytes, name


@dataclass(frozen=True)
class Part:
    """A branch of the tree: tensors outside the layers (no title), or layers that have the same tensors."""

    title: str
    rows: list[Row]


def shown(text: str) -> str:
    """`text` with control characters spelled out, so that a name can neither hide nor move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(params: int) -> str:
    """A number of parameters: 135 M, 7.24 B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if params >= scale:
            return f"{params / scale:.3g} {unit}" if params < 999.5 * scale else f"{params / scale:,.0f} {unit}"
    return str(params)


def headline(model: Checkpoint) -> str:
    """One line: kind, architecture, parameters, bytes, bits per weight, licence."""
    bits = f" ({8 * model.nbytes / model.params:.3g} bits per weight)" if model.params else ""
    kind = {"gguf": "GGUF", "safetensors": "safetensors"}[model.kind]
    licence = f"licence {model.licence}" if model.licence else "no licence named"
    revision = f"revision {model.revision[:12]}" if model.revision else ""
    said = [
        kind,
        model.architecture,
        f"{count(model.params)} parameters",
        f"{size(model.nbytes)}{bits}",
        licence,
        revision,
    ]
    return shown(", ".join(part for part in said if part))


def parts(model: Checkpoint) -> list[Part]:
    """The tree from its first branch to its last, every string fit to be shown."""
    layers: dict[int, list[TensorInfo]] = {}
    before: list[TensorInfo] = []
    after: list[TensorInfo] = []
    for info in model.tensors.values():
        if info.layer is not None:
            layers.setdefault(info.layer, []).append(info)
        else:
            (before if info.role == "embed_tokens" else after).append(info)
    alike: dict[tuple[Row, ...], list[int]] = {}
    for layer, infos in layers.items():
        alike.setdefault(tuple(_rows(infos)), []).append(layer)
    made = [Part("", _rows(before))] if before else []
    made += [Part(_title(numbers, layers[numbers[0]]), list(rows)) for rows, numbers in alike.items()]
    if after or model.tied_head:
        head: list[Row] = [("lm_head", "", "", "", "(the embedding serves as the head)")] if model.tied_head else []
        made.append(Part("", _rows(after) + head))
    if model.extras:
        made.append(Part(f"beside the parameters: {size(_bytes(model.extras.values()))}", _rows(model.extras.values())))
    return made if len(made) <= MOST_PARTS else [*made[:MOST_PARTS], Part(f"and {len(made) - MOST_PARTS} more", [])]


def _rows(infos: Iterable[TensorInfo]) -> list[Row]:
    """A row for each kind of tensor; experts of one shape and encoding share theirs."""
    same: dict[tuple[object, ...], list[TensorInfo]] = {}
    for info in infos:
        key = (info.role, names.starred(info.name), info.shape, info.encoding, info.problem)
        same.setdefault(key, []).append(info)
    rows = [_row(some) for some in same.values()]
    return (
        rows if len(rows) <= MOST_ROWS else [*rows[:MOST_ROWS], ("", "", "", "", f"and {len(rows) - MOST_ROWS} more")]
    )


def _row(some: list[TensorInfo]) -> Row:
    first = some[0]
    shape = " x ".join(f"{n:,}" for n in first.shape) or "one value"
    times = f"{len(some)} of " if len(some) > 1 else ""
    name = names.starred(first.name) + (f"  CANNOT BE READ: {first.problem}" if first.problem else "")
    return shown(first.role), f"{times}{shape}", shown(first.encoding), size(_bytes(some)), shown(name)


def _bytes(infos: Iterable[TensorInfo]) -> int:
    return sum(info.nbytes for info in infos)


def _title(numbers: list[int], infos: list[TensorInfo]) -> str:
    """layers 0-2, 5, each: 3.54 M parameters, 2.22 MB."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spelled = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    which = f"layer {spelled}" if len(numbers) == 1 else f"layers {spelled}, each"
    return f"{which}: {count(sum(info.params for info in infos))} parameters, {size(_bytes(infos))}"


def plain(model: Checkpoint) -> str:
    """The tree as text."""
    tree = parts(model)
    widths = [max((len(row[column]) for part in tree for row in part.rows), default=0) for column in range(4)]
    lines = [shown(model.name), headline(model)]
    for part in tree:
        lines += [f"  {part.title}"] if part.title else []
        for role, shape, encoding, nbytes, name in part.rows:
            start = f"    {role:{widths[0]}}" if part.title else f"  {role:{widths[0] + 2}}"
            middle = f"{shape:>{widths[1]}}  {encoding:{widths[2]}}  {nbytes:>{widths[3]}}"
            lines.append(f"{start}  {middle}  {name}".rstrip())
    return "\n".join([*lines, *(f"note: {shown(note)}" for note in model.notes)])


def html_of(model: Checkpoint) -> str:
    """The tree as HTML without scripts: layers fold, every string is escaped."""
    said = [f"<div><b>{html.escape(shown(model.name))}</b><br>{html.escape(headline(model))}</div>"]
    for part in parts(model):
        table = f"<table>{''.join(map(_html_row, part.rows))}</table>"
        folded = f"<details><summary>{html.escape(part.title)}</summary>{table}</details>"
        said.append(folded if part.title else table)
    said += [f"<div><i>{html.escape(shown(note))}</i></div>" for note in model.notes]
    return f'<div class="workbench-checkpoint">{"".join(said)}</div>'


def _html_row(row: Row) -> str:
    sides = ("left", "right", "left", "right", "left")
    cells = (f'<td style="text-align: {side}">{html.escape(cell)}</td>' for cell, side in zip(row, sides, strict=True))
    return f"<tr>{''.join(cells)}</tr>"
