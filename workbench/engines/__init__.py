"""Running a model: `run` gives an engine that answers, `side_by_side` compares two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.checkpoint import Checkpoint, load_steps
from workbench.engines.base import Engine, Reply, Settings
from workbench.engines.served import Served, serve, serve_steps
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
    "Served",
    "Settings",
    "SideBySide",
    "run",
    "run_steps",
    "serve",
    "serve_steps",
    "side_by_side",
    "side_by_side_steps",
]

ENGINES = {
    "transformers": "Hugging Face transformers, on the CPU or a GPU",
    "llama.cpp": "llama.cpp, in this process: GGUF files as it really computes them",
}


def run(
    model: Checkpoint | str,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    engine: str = "transformers",
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    anyway: bool = False,
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
        context: for llama.cpp, tokens of prompt and reply together; by default 4096, or what the
            model was made for if that is less.
        kv: for llama.cpp, what keys and values are kept in: a type for both or a pair, such as
            "q8_0" or ("q8_0", "q4_0"); by default "f16".
        threads: for llama.cpp; by default as many as this process may use.
        gpu_layers: for llama.cpp, how many layers a GPU holds; by default all, where there is one.
        anyway: go ahead even if the model, or later a prompt, does not fit in memory.

    Raises:
        WorkbenchError: an unknown format or engine, a format that needs an importance, a model
            that transformers cannot build.
        DoesNotFit: with the figures and the nearest thing that fits, before any weight is read; or when
            memory ran out all the same.
    """
    steps = run_steps(
        model,
        format,
        engine=engine,
        decoded=decoded,
        dtype=dtype,
        device=device,
        importance=importance,
        context=context,
        kv=kv,
        threads=threads,
        gpu_layers=gpu_layers,
        anyway=anyway,
    )
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
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    anyway: bool = False,
) -> Steps[Engine]:
    """`run`, yielding the bytes of the model that were read; closing it stops within a second."""
    if engine not in ENGINES:
        raise WorkbenchError("engine", f"there is none called {engine!r}", allowed=", ".join(ENGINES))
    of_transformers = {"decoded": decoded or None, "dtype": dtype, "device": device, "importance": importance}
    of_llama_cpp: dict[str, Any] = {"context": context, "kv": kv, "threads": threads, "gpu_layers": gpu_layers}
    _refuse_options(engine, of_llama_cpp if engine == "transformers" else of_transformers)
    checkpoint = model if isinstance(model, Checkpoint) else (yield from load_steps(model))
    if engine == "llama.cpp":
        from workbench.engines import llamacpp

        if format is not None:
            raise WorkbenchError(
                "format",
                "llama.cpp runs a file as it is",
                do='write the file first, wb.export(model, "Q4_K_M", "model.gguf"), and run that; '
                'or engine="transformers", which decodes any format',
            )
        return (yield from llamacpp.open_steps(checkpoint, **of_llama_cpp, anyway=anyway))
    from workbench.engines import transformers

    return (
        yield from transformers.open_steps(
            checkpoint, format, decoded=decoded, dtype=dtype, device=device, importance=importance, anyway=anyway
        )
    )


def _refuse_options(engine: str, others: Mapping[str, Any]) -> None:
    """Complain of an option that another engine has."""
    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise WorkbenchError(given, f"the engine {engine!r} has no such option", do="leave it out")
