"""Running a model: `run` gives an engine that answers, `side_by_side` compares two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.checkpoint import Checkpoint, load_steps
from workbench.engines import ollama
from workbench.engines.base import Engine, Reply, Settings
from workbench.engines.commands import serve_command
from workbench.engines.presets import PRESETS, is_server
from workbench.engines.served import Served, serve, serve_steps
from workbench.engines.sidebyside import SideBySide, side_by_side, side_by_side_steps
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import Plan, of_plan
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
    "ollama",
    "run",
    "run_steps",
    "serve",
    "serve_command",
    "serve_steps",
    "side_by_side",
    "side_by_side_steps",
]

ENGINES = {
    "transformers": "Hugging Face transformers, on the CPU or a GPU",
    "llama.cpp": "llama.cpp, in this process: GGUF files as it really computes them",
    "exllamav2": "ExLlamaV2, in this process: EXL2 and GPTQ folders, on an NVIDIA GPU",
    **{name: f"{preset.title} over HTTP, as it runs already" for name, preset in PRESETS.items()},
}


def run(
    source: Checkpoint | Plan | str,
    /,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    engine: str | None = None,
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    model: str | None = None,
    key: str | None = None,
    silence: float | None = None,
    anyway: bool = False,
) -> Engine:
    """Start a model in a format, ready to answer; or speak to one that a server runs.

        chat = wb.run(model, "Q4_K")
        chat("Why is the sky blue?", max_tokens=100)
        for piece in chat.stream("And at night?"): print(piece, end="")
        chat.close()
        wb.run("model.gguf", engine="llama.cpp")
        wb.run("ollama", model="smollm2")

    Args:
        source: an opened checkpoint, what `wb.load` takes, or a plan, which brings its model; or a server:
            "ollama", "vllm", "tgi", "llama-server" where it listens by default, or a url such as
            "http://127.0.0.1:8080/v1".
        format: None runs the weights as they are. NF4, FP4 and LLM.int8 run in bitsandbytes'
            own layers. Any other format, recipe or plan runs by decoded weights: the model
            answers as it would in that format, at the speed and memory of the original.
        engine: what runs it, see `ENGINES`: by default transformers, and for a url any server of
            OpenAI's protocol.
        decoded: run NF4, FP4 and LLM.int8 by decoded weights too.
        dtype: "float32", "bfloat16" or "float16"; by default what the device is fast in.
        device: "cpu", "cuda", ...; by default the first GPU, else the CPU.
        importance: tensor name -> mean square of each input channel, float32 [in], for
            formats that use it; a plan made from a card brings its own.
        context: for llama.cpp and ExLlamaV2, tokens of prompt and reply together; by default 4096, or what the
            model was made for if that is less.
        kv: what keys and values are kept in: a type of llama.cpp's for both or a pair, such as "q8_0" or
            ("q8_0", "q4_0"). By default "f16" in llama.cpp; in transformers what it computes in: there
            they are rounded to the type, which shows its quality and not its memory. For ExLlamaV2 "f16", "q8",
            "q6" or "q4", its own.
        threads: for llama.cpp; by default as many as this process may use.
        gpu_layers: for llama.cpp, how many layers a GPU holds; by default all, where there is one.
        model: for a server, the name of its model; not needed where it has one.
        key: for a server, the name of the environment variable that holds its key, or "ask".
        silence: for a server, seconds without a byte after which it is given up; by default 120.
        anyway: go ahead even if the model, or later a prompt, does not fit in memory.

    Raises:
        WorkbenchError: an unknown format or engine, a format that needs an importance, a model
            that the engine cannot build, a server that does not answer.
        DoesNotFit: with the figures and the nearest thing that fits, before any weight is read; or when
            memory ran out all the same.
    """
    steps = run_steps(
        source,
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
        model=model,
        key=key,
        silence=silence,
        anyway=anyway,
    )
    return drain(steps, label="starting the model")


def run_steps(
    source: Checkpoint | Plan | str,
    /,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    engine: str | None = None,
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    model: str | None = None,
    key: str | None = None,
    silence: float | None = None,
    anyway: bool = False,
) -> Steps[Engine]:
    """`run`, yielding the bytes of the model that were read; closing it stops within a second."""
    if isinstance(source, Plan):
        source, format = of_plan(source, format)
    if engine is not None and engine not in ENGINES:
        raise WorkbenchError("engine", f"there is none called {engine!r}", allowed=", ".join(ENGINES))
    options: dict[str, Any] = {"decoded": decoded, "dtype": dtype, "device": device, "importance": importance}
    transformers_own = options | {"decoded": decoded or None}
    llama_own: dict[str, Any] = {"context": context, "threads": threads, "gpu_layers": gpu_layers}
    server_own: dict[str, Any] = {"model": model, "key": key, "silence": silence}
    if isinstance(source, str) and is_server(source):
        _refuse_options("a server", {"format": format, "kv": kv} | transformers_own | llama_own)
        if engine in ("transformers", "llama.cpp", "exllamav2"):
            raise WorkbenchError("engine", f"{engine!r} runs no server", allowed=", ".join(PRESETS))
        from workbench.engines import server

        return (yield from server.open_steps(source, engine, **server_own))
    if engine in PRESETS:
        do = f'wb.run("http://127.0.0.1:8000/v1", engine={engine!r}), with the address of yours'
        raise WorkbenchError("engine", f"{engine!r} is a server, and {source!s:.100} is none", do=do)
    if engine == "llama.cpp":
        _refuse_options("llama.cpp", transformers_own | server_own)
        if format is not None:
            raise WorkbenchError(
                "format",
                "llama.cpp runs a file as it is",
                do='write the file first, wb.export(model, "model.gguf", "Q4_K_M"), and run that; '
                'or engine="transformers", which decodes any format',
            )
        from workbench.engines import llamacpp

        checkpoint = source if isinstance(source, Checkpoint) else (yield from load_steps(source))
        return (yield from llamacpp.open_steps(checkpoint, **llama_own, kv=kv, anyway=anyway))
    if engine == "exllamav2":
        few = {name: value for name, value in llama_own.items() if name != "context"}
        _refuse_options("exllamav2", {"format": format} | transformers_own | few | server_own)
        from workbench.engines import exllamav2

        checkpoint = source if isinstance(source, Checkpoint) else (yield from load_steps(source))
        return (yield from exllamav2.open_steps(checkpoint, context=context, kv=kv, anyway=anyway))
    _refuse_options("transformers", llama_own | server_own)
    from workbench.engines import transformers

    checkpoint = source if isinstance(source, Checkpoint) else (yield from load_steps(source))
    return (yield from transformers.open_steps(checkpoint, format, **options, kv=kv, anyway=anyway))


def _refuse_options(engine: str, others: Mapping[str, Any]) -> None:
    """Complain of an option that another engine has."""
    given = next((name for name, value in others.items() if value is not None), None)
    if given is not None:
        raise WorkbenchError(given, f"{engine} has no such option", do="leave it out")
