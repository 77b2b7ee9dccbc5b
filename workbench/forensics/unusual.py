"""What is unusual in a checkpoint that was made from another: sentences, each about one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import figures
from workbench.checkpoint import Checkpoint, names
from workbench.exceptions import WorkbenchError
from workbench.forensics.inside import Inside
from workbench.forensics.scheme import scheme_of
from workbench.measure.published import Published

if TYPE_CHECKING:
    import pandas as pd

RARE = 0.25  # of the matrices of a kind: fewer are an exception, such as a forgotten layer, and no recipe
FAR = 10.0  # times the median error of its kind
LITTLE = 0.5  # relative squared error from which weights have little in common with the original's
SAME = 1e-5  # of a tensor that is kept in another float: BF16 rounds to 1e-6
LARGEST = 1 << 24  # values of a tensor that is compared whole, such as a norm or a bias


@dataclass(frozen=True)
class Finding:
    """Something unusual.

    Attributes:
        tensor: by the original's name, or the quantized one's where the original has it not.
        kind: "unquantized", "scheme", "zeros", "scales", "error", "missing", "stranger", "shape", "changed", "moved",
            "broken".
        what: a sentence without its subject.
    """

    tensor: str
    kind: str
    what: str


def in_matrices(frame: pd.DataFrame, other: Published, insides: Mapping[str, Inside]) -> Iterator[Finding]:
    """Findings about matrices that both have; `frame` has their scheme, role and error."""
    inner = frame[frame.layer.notna()]
    quantized = bool(len(inner)) and inner.quantized.mean() > 0.5
    kinds = {role: Counter(rows.kind) for role, rows in inner.groupby("role")}
    errors = inner.groupby(["role", "kind"]).weight_error
    usual = (errors.median().where(errors.count() >= 4)).to_dict()
    for row in frame.itertuples():
        inside = insides[row.tensor]
        if inside.problem:
            yield Finding(row.tensor, "broken", f"it cannot be decoded: {inside.problem}")
        if not figures.missing(row.layer):
            yield from _against_its_kind(row, kinds[row.role], quantized, usual.get((row.role, row.kind), np.nan))
        if row.weight_error >= LITTLE:
            yield Finding(
                row.tensor, "error", f"it has little in common with the original's: error {row.weight_error:.2g}"
            )
        if inside.zeros:
            yield Finding(
                row.tensor,
                "zeros",
                f"{inside.zeros:,} of {inside.groups:,} groups are all zeros, unlike the original's",
            )
        for count, what in (
            (inside.negative, "below zero"),
            (inside.denormal, "too small for the precision of their type (denormal)"),
            (inside.largest, "at the largest number of their type"),
        ):
            if count:
                yield Finding(row.tensor, "scales", f"{count:,} of {inside.scales:,} scales are {what}")


def _against_its_kind(row: Any, kinds: Counter[str], quantized: bool, usual: float) -> Iterator[Finding]:
    if not row.quantized and quantized:
        yield Finding(row.tensor, "unquantized", f"it was left in {row.scheme}")
    elif kinds[row.kind] < RARE * kinds.total():
        most, count = kinds.most_common(1)[0]
        yield Finding(row.tensor, "scheme", f"it is {row.scheme}, and {count} of {kinds.total()} {row.role} are {most}")
    if usual > 0 and row.weight_error > FAR * usual:
        yield Finding(row.tensor, "error", f"its error is {row.weight_error / usual:.0f} times the median of its kind")


def in_other_tensors(model: Checkpoint, other: Published) -> Iterator[Finding]:
    """Findings about tensors that are missing, that do not belong, or that should have been left alone."""
    theirs = set(other.names.values())
    for name, why in other.unlike.items():
        yield Finding(name, "shape", why)
    for name, info in model.tensors.items():
        if name not in other.names:
            if info.role == "lm_head" and other.other.tied_head:
                continue
            yield Finding(name, "missing", f"{other.name} has no such tensor ({info.encoding} {list(info.shape)})")
    for info in other.other.tensors.values():
        if info.name in theirs:
            continue
        tied = info.role == "lm_head" and model.tied_head
        said = "a head of its own, and the original's is the embedding" if tied else f"no tensor of {model.name}"
        where = f"{scheme_of(other.other, info).name} {list(info.shape)}"
        yield Finding(info.name, "stranger", f"it is {said} ({where})")
    moved = other.moved.norms if other.moved is not None else []
    for kind, count in Counter(names.starred(name) for name in moved).items():
        yield Finding(
            kind,
            "moved",
            f"in {count} layers its scales were moved into the matrices after it, as AWQ and SmoothQuant do: the model "
            "is the same, and errors are measured without that",
        )
    matrices = {info.name for info in model.matrices}
    for name, twin in other.twins.items():
        if name not in matrices and name not in moved and model.tensors[name].params <= LARGEST:
            yield from _changed(model, name, other.other, twin.info.name)


def _changed(model: Checkpoint, name: str, other: Checkpoint, theirs: str) -> Iterator[Finding]:
    try:
        before, after = model.read(name), other.read(theirs)
        if model.kind != other.kind:
            before, after = model.to_hf(name, before)[1], other.to_hf(theirs, after)[1]
    except WorkbenchError as reason:
        yield Finding(name, "broken", f"it cannot be decoded: {reason.found}")
        return
    with np.errstate(all="ignore"):
        lost = float(np.square(before - after, dtype=np.float64).sum() / max(np.square(before).sum(), 1e-30))
    if lost > SAME or not np.isfinite(lost):
        yield Finding(name, "changed", f"it is not the original's: relative squared difference {lost:.2g}")
