"""One matrix decoded and looked at: groups that are all zeros, and scales at the ends of their type's range."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workbench.checkpoint import Checkpoint, TensorInfo, values
from workbench.exceptions import WorkbenchError
from workbench.forensics.scheme import scheme_of
from workbench.formats.rows import chunks
from workbench.measure.published import Published

# A type of scale -> (its largest number, its smallest one with all of its precision)
RANGES = {
    "F16": (65504.0, 2.0**-14),
    "BF16": (float(np.finfo(np.float32).max) * 0.99, 2.0**-126),
    "F32": (float(np.finfo(np.float32).max) * 0.99, 2.0**-126),
    "F8_E4M3": (448.0, 2.0**-6),
    "F8_E5M2": (57344.0, 2.0**-14),
}
USUAL = 0.01  # of FP8 scales that may be the largest: they are themselves scaled so that one of them is
EXPONENTS = (0, 254)  # of a scale that is an exponent alone; 255 is no number


@dataclass
class Inside:
    """What was seen in a matrix.

    Attributes:
        groups, zeros: groups that share a scale, and those of them that hold nothing but zeros, unlike the original's.
        scales, negative, denormal, largest: scales, and those below zero, those too small for their type's precision,
            and those at its largest number.
        problem: why it cannot be decoded; "" if it can.
    """

    groups: int = 0
    zeros: int = 0
    scales: int = 0
    negative: int = 0
    denormal: int = 0
    largest: int = 0
    problem: str = ""


def look(model: Checkpoint, other: Published, info: TensorInfo, stopped: threading.Event) -> Inside:
    """What the other checkpoint's matrix for `info` is like, a run of rows at a time until told to stop."""
    found = Inside()
    twin = other.twins[info.name].info
    try:
        for scale in _scales(other.other, twin):
            _judge(scale, found)
        per = scheme_of(other.other, twin).per_scale
        for rows in chunks(info.shape[0], math.prod(info.shape[1:]), 1):
            if stopped.is_set():
                break
            weights = other.read(info.name, rows)
            if not np.isfinite(weights).all():
                raise WorkbenchError(twin.name, "it has weights that are not finite numbers")
            empty = _empty(weights, per)
            found.groups += empty.size
            if empty.any():
                found.zeros += int((empty & ~_empty(model.read(info.name, rows), per)).sum())
    except WorkbenchError as reason:
        found.problem = f"{reason.item}: {reason.found}"
    return found


def _empty(weights: np.ndarray, per: int) -> np.ndarray:
    """Which groups of `per` inputs are zeros only, [.., groups]; a last group may be shorter."""
    flat = weights.reshape(-1, weights.shape[-1])
    return ~np.logical_or.reduceat(flat != 0, np.arange(0, flat.shape[1], max(1, per)), axis=1)


def _scales(checkpoint: Checkpoint, info: TensorInfo) -> Iterator[TensorInfo]:
    if info.packed is not None:
        yield from (info.packed.parts[part] for part in info.packed.SCALES if part in info.packed.parts)
    else:
        yield from checkpoint.held_in(info.name)[1:]


def _judge(scale: TensorInfo, found: Inside) -> None:
    if scale.encoding == "U8":
        raw = values.bytes_at(scale, 0, scale.nbytes)
        if not scale.name.endswith("absmax"):  # those are codes, of scales that are quantized themselves
            found.scales += raw.size
            found.denormal += int((raw == EXPONENTS[0]).sum())
            found.largest += int((raw >= EXPONENTS[1]).sum())
        return
    if scale.encoding not in RANGES:
        return
    stored = values.read(scale)
    most, least = RANGES[scale.encoding]
    size = np.abs(stored)
    found.scales += stored.size
    found.negative += int((stored < 0).sum())
    found.denormal += int(((size > 0) & (size < least)).sum())
    largest = int((size >= most).sum())
    if largest > USUAL * stored.size or not scale.encoding.startswith("F8_"):
        found.largest += largest
