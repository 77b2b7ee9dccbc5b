"""A budget in bytes, from what a user writes."""

from __future__ import annotations

import math
import re

from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
SHOWN = '90_000_000, "90 MB" (millions of bytes), "4.2 GB", "3 GiB"'
MOST_BITS = 64.0


def bytes_for(model: Checkpoint, budget: int | str | None, bits: float | None) -> int | None:
    """The most bytes of the whole model; None where neither a budget nor bits are given.

    Raises:
        WorkbenchError: both are given, or what is given is no size.
    """
    if budget is not None and bits is not None:
        raise WorkbenchError("budget", f"both budget ({budget}) and bits ({bits}) are given", allowed="one of them")
    if bits is not None:
        if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 < bits <= MOST_BITS:
            raise WorkbenchError("bits", f"{bits!r} is no number of bits for each weight", allowed="0.5 to 64")
        return math.floor(bits * model.params / 8)
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?i?b|)\s*", budget, re.IGNORECASE)
        if found and found[2].upper() in UNITS:
            return math.floor(float(found[1]) * UNITS[found[2].upper()])
    elif budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget > 0):
        return budget
    raise WorkbenchError("budget", f"{budget!r:.60} is no size", allowed=SHOWN)
