"""Formats: how one matrix is stored, with its exact bytes and the way there and back.

They lie in one plain dict, `FORMATS`; `get` finds one by name in any case.
"""

from __future__ import annotations

from workbench.exceptions import WorkbenchError
from workbench.formats import bitsandbytes, floats, fp8, ggml, integer
from workbench.formats.base import Encoded, Format

__all__ = ["FORMATS", "Encoded", "Format", "get"]

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        floats.F32,
        floats.F16,
        floats.BF16,
        *ggml.TYPES,
        *bitsandbytes.FORMATS,
        fp8.BLOCK,
        fp8.FP8,
        *integer.FORMATS,
    )
}

_BY_LOWER = {name.lower(): format for name, format in FORMATS.items()}


def get(name: str | Format) -> Format:
    """The format of that name, in any case; a format is handed back as it is.

    Raises:
        WorkbenchError: an unknown name; the message lists the known ones.
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str) or name.lower() not in _BY_LOWER:
        raise WorkbenchError(name, "there is no format of that name", allowed=", ".join(FORMATS))
    return _BY_LOWER[name.lower()]
