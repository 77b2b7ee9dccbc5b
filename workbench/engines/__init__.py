"""Running a model: `run` gives an engine that answers, `side_by_side` compares two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.checkpoint import Checkpoint, load_steps
from workbench.engines.base import Engine, Reply, Settings
from workbench.engines.sidebyside import SideBySide, side_by_side, side_by_side_steps
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import Plan
from workbench.progress import Steps, drain

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "ENGINES",
    "Engine",
    "Reply",
    "Settings",
    "SideBySide",
    "run",
    "run_steps",
    "side_by_side",
    "side_by_side_steps",
]

ENGINES = {"transformers": "Hugging Face transformers, on the CPU or a GPU"}


def run(
    model: Checkpoint | str,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    engine: str = "transformers",
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Engine:
    """Start `model` in a format, ready to answer.

        chat = wb.run(model, "Q4_K")
        chat("Why is the sky blue?", max_tokens=100)
        for piece in chat.stream("And at night?"): print(piece, end="")
        chat.close()

    Args:
        model: an opened checkpoint, or what `wb.load` takes.
        format: None runs the weights as they are. NF4, FP4 and LLM.int8 run in bitsandbytes'
            own layers. Any other format, recipe or plan runs by decoded weights: the model
            answers as it would in that format, at the speed and memory of the original.
        engine: what runs it; see `ENGINES`.
        decoded: run NF4, FP4 and LLM.int8 by decoded weights too.
        dtype: "float32", "bfloat16" or "float16"; by default what the device is fast in.
        device: "cpu", "cuda", ...; by default the first GPU, else the CPU.
        importance: tensor name -> mean square of each input channel, float32 [in], for
            formats that use it.

    Raises:
        WorkbenchError: an unknown format or engine, a format that needs an importance, a model
            that transformers cannot build.
    """
    steps = run_steps(model, format, engine=engine, decoded=decoded, dtype=dtype, device=device, importance=importance)
    return drain(steps, label="starting the model")


def run_steps(
    model: Checkpoint | str,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    engine: str = "transformers",
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Steps[Engine]:
    """`run`, yielding the bytes of the model that were read; closing it stops within a second."""
    if engine not in ENGINES:
        raise WorkbenchError("engine", f"there is none called {engine!r}", allowed=", ".join(ENGINES))
    checkpoint = model if isinstance(model, Checkpoint) else (yield from load_steps(model))
    from workbench.engines import transformers

    return (
        yield from transformers.open_steps(
            checkpoint, format, decoded=decoded, dtype=dtype, device=device, importance=importance
        )
    )
