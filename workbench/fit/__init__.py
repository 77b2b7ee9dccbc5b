"""Will it fit: the bytes of a model by part, for a format, a context and an engine, against devices.

    fit = memory("org/name", "Q4_K_M", context=16384)
    fit.fits("RTX 4090"), fit.longest_context("RTX 4090"), fit.best_format("RTX 4090")

From headers alone: an opened checkpoint, a hub model by its config and range requests of its
files' headers, or a bare config. Everything a `Memory` answers is arithmetic on those.
"""

from __future__ import annotations

from workbench.fit import devices
from workbench.fit.answer import Memory
from workbench.fit.devices import TABLE, Device, device
from workbench.fit.guard import DoesNotFit, ask, guarded
from workbench.fit.question import ENGINES, Question
from workbench.fit.split import Offload
from workbench.fit.subject import Source, open_steps
from workbench.planning import Plan, Spec, of_plan
from workbench.progress import Steps, drain

__all__ = [
    "ENGINES",
    "TABLE",
    "Device",
    "DoesNotFit",
    "Memory",
    "Offload",
    "ask",
    "device",
    "guarded",
    "memory",
    "memory_steps",
]


def memory(
    model: Source | Plan,
    format: Spec | None = None,
    context: int = 4096,
    batch: int = 1,
    kv: str | tuple[str, str] | None = None,
    engine: str = "llama.cpp",
    device: str | Device | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
) -> Memory:
    """The bytes of a model by part, from headers alone: nothing is downloaded or loaded.

    Args:
        model: an opened checkpoint, what `wb.load` takes (of a hub model only the config and
            the files' headers are read), a config.json as a dict, or a plan, which brings its model.
        format: a format, recipe or plan for the weights; None: as they are published, and
            NF4 for bitsandbytes.
        context: tokens of each sequence, prompt and reply together.
        batch: sequences at once.
        kv: what keys and values are kept in: one type for both or a pair, such as "q8_0" or
            ("q8_0", "q4_0"); None: float16 in llama.cpp, else what the model computes in.
        engine: "llama.cpp", "transformers", "bitsandbytes" or "vllm".
        device: a name of `workbench.fit.TABLE`, "cpu", "cuda", "mps", or a size such as "24 GB".
        dtype: what transformers and vLLM compute in: "bf16", "f16" or "f32"; None: the device's.
        revision: of a hub model.

    Raises:
        WorkbenchError: a config with a key that is missing, not a number or out of range; an
            unknown engine, format, device or type; no network.
    """
    steps = memory_steps(model, format, context, batch, kv, engine, device, dtype=dtype, revision=revision)
    return drain(steps, label="reading headers")


def memory_steps(
    model: Source | Plan,
    format: Spec | None = None,
    context: int = 4096,
    batch: int = 1,
    kv: str | tuple[str, str] | None = None,
    engine: str = "llama.cpp",
    device: str | Device | None = None,
    *,
    dtype: str | None = None,
    revision: str | None = None,
) -> Steps[Memory]:
    """`memory`, yielding the progress of reading a hub model's headers; closing it stops that."""
    if isinstance(model, Plan):
        model, format = of_plan(model, format)
    where = None if device is None else devices.device(device)
    subject = yield from open_steps(model, revision)
    return Question(subject, format, context, batch, kv, engine, dtype, where).answer()
