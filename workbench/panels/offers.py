"""What Fit offers to choose from: contexts, formats, devices; and which of them the session's choice is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

from workbench.exceptions import WorkbenchError
from workbench.fit import TABLE, Memory
from workbench.fit.answer import CANDIDATES
from workbench.panels.chosen import Chosen
from workbench.panels.session import ORIGINAL, gpu_here
from workbench.planning import RECIPES, Spec

SHORTEST = 512  # tokens at the slider's beginning
FURTHEST = 4  # its end, in contexts that the model was made for; beyond one a note says what to expect
UNSAID = 1 << 18  # tokens, taken for what a model was made for that does not say it
GIB = 1 << 30


def contexts(limit: int, others: Iterable[int]) -> list[int]:
    """The slider's steps in tokens: powers of two and what is halfway, the model's limit (0: not said), `others`."""
    end = FURTHEST * (limit or UNSAID)
    doubled = [SHORTEST << step for step in range(40) if SHORTEST << step <= end]
    halfway = [3 * step // 2 for step in doubled if 3 * step // 2 <= end]
    return sorted({*doubled, *halfway, *others, limit or SHORTEST})


def formats(subject: Memory, engine: str, chosen: Chosen) -> list[str]:
    """The usual formats of an engine, its default first, and the chosen one if the engine holds it."""
    names = [default(engine), *CANDIDATES[engine], *(RECIPES if engine == "llama.cpp" else ())]
    if chosen.spec is not None and _holds(subject, engine, chosen.spec):
        names.append(chosen.name)
    return list(dict.fromkeys(names))


def default(engine: str) -> str:
    """What an engine holds if nothing is said."""
    return "NF4" if engine == "bitsandbytes" else ORIGINAL


def _holds(subject: Memory, engine: str, format: Spec) -> bool:
    try:
        subject.at(engine=engine, format=format)
    except WorkbenchError:
        return False
    return True


def devices() -> list[tuple[str, str]]:
    """(words, name as `wb.memory` takes it) of this machine's devices and of the table's."""
    gpu = gpu_here()
    if (
        not gpu and "torch" not in sys.modules and find_spec("torch") is not None
    ):  # whether there is one is not known yet
        gpu = "mps" if sys.platform == "darwin" else "cuda"
    own = [("this machine's memory", "cpu"), *([("this machine's GPU", gpu)] if gpu else [])]
    return own + [(_with_size(name), name) for name in TABLE]


def _with_size(name: str) -> str:
    return name if "GB" in name else f"{name}, {TABLE[name].total / GIB:.0f} GB"
