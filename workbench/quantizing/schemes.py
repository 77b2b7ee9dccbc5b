"""The names that users say, and what each is made by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench import formats
from workbench.exceptions import WorkbenchError
from workbench.quantizing import exl2
from workbench.quantizing.exl2 import Exl2
from workbench.quantizing.parts import KINDS

ALIASES = {
    "w8a8": "INT8-row",
    "int8-w8a8": "INT8-row",
    "w4a16": "INT4-g128",
    "w8a16": "INT8-g128",
    "int8": "INT8",
    "nf4": "NF4",
}
SUCCESSORS = {"autogptq": "GPTQ-4bit-g128", "autoawq": "AWQ-4bit-g128", "hqq": "INT4", "quanto": "INT4"}
CALIBRATED = re.compile(r"(GPTQ|AWQ)(?:-(\d)bits?)?(?:-g(-?\d+))?", re.IGNORECASE)
BITS, GROUPS = {"GPTQ": (2, 3, 4, 8), "AWQ": (4,)}, (32, 64, 128)


@dataclass(frozen=True)
class Calibrated:
    """A method that reads a text: "GPTQ" or "AWQ", its bits, and the inputs that share a scale."""

    method: str
    bits: int
    group: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.bits}bit-g{self.group}"


def scheme_of(name: str) -> Calibrated | Exl2 | str:
    """What a name means: a method that reads a text, or the name of a format that rounds.

    Raises:
        WorkbenchError: an unknown name; that of a library that is no longer kept leads to what has taken its place.
    """
    plain = str(name).strip()
    found = CALIBRATED.fullmatch(plain)
    if found:
        method, bits, group = found[1].upper(), int(found[2] or 4), int(found[3] or 128)
        if bits not in BITS[method] or group not in GROUPS:
            raise WorkbenchError(
                plain,
                f"{method} is not made in {bits} bits in groups of {group}",
                allowed=f"{method}-Nbit-gM with N of {', '.join(map(str, BITS[method]))}, M of 32, 64, 128",
            )
        return Calibrated(method, bits, group)
    if (converted := exl2.parsed(plain)) is not None:
        return converted
    old = plain.lower().replace("-", "").replace("_", "")
    if old in SUCCESSORS:
        raise WorkbenchError(
            plain,
            "that library is not used here: it is no longer kept, or its files load nowhere else",
            do=f'wb.quantize(model, "{SUCCESSORS[old]}", text, to=...)',
        )
    known = ALIASES.get(plain.lower(), plain)
    if known.lower() in map(str.lower, made()):
        return formats.get(known).name
    allowed = ", ".join([*made(), "W8A8", "W4A16", "GPTQ-4bit-g128", "AWQ-4bit-g128", "EXL2-4.0bpw"])
    do = "wb.export writes GGUF's formats" if known.lower() in map(str.lower, formats.FORMATS) else ""
    raise WorkbenchError(plain, "no checkpoint for GPUs is made in it", allowed=allowed, do=do)


def made() -> list[str]:
    """The formats that a folder is written in here."""
    return [name for name, format in formats.FORMATS.items() if type(format) in KINDS]
