"""What an engine asks before it spends memory: how much a model needs, and how much this process can have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench import fit
from workbench.checkpoint import Checkpoint
from workbench.exceptions import need
from workbench.fit.overhead import CONTEXT
from workbench.planning import Spec

if TYPE_CHECKING:
    import torch

TOKENS = 1024  # of a first question and its answer: a longer prompt asks again when it comes


def needed(
    checkpoint: Checkpoint,
    format: Spec | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    engine: str = "transformers",
    context: int | None = None,
    batch: int = 1,
) -> fit.Memory | None:
    """What a model takes in an engine of `fit.ENGINES`; None where there is no estimate, which stops nobody.

    Args:
        context: tokens of each sequence; by default `TOKENS`, at most what the model was made for.
    """
    width = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[str(dtype).removeprefix("torch.")]
    try:
        found = fit.memory(checkpoint, format, context or TOKENS, batch, engine=engine, device=str(device), dtype=width)
        longest = found.question.subject.architecture.context
        return found.at(context=min(TOKENS, longest)) if longest and not context else found
    except Exception:  # a config that only its own library understands, a device that has no table: no estimate
        return None


def ask(
    needs: fit.Memory | None, checkpoint: Checkpoint, what: str, device: torch.device, *, anyway: bool = False
) -> None:
    """Refuse a model that does not fit on its device, or whose largest tensor does not fit in main memory on its way.

    Raises:
        DoesNotFit: with the figures and the nearest thing that fits, unless `anyway`.
    """
    if device.type != "cpu":
        largest = 4 * max((info.params for info in checkpoint.tensors.values()), default=0)
        fit.ask(largest, f"{what}, its largest tensor in float32", "cpu", anyway=anyway)
    fit.ask(needs, what, here(device) if needs is not None else None, anyway=anyway)


def ask_for_prompt(needs: fit.Memory | None, tokens: int, device: torch.device, *, anyway: bool = False) -> None:
    """Refuse a prompt whose cache and work space do not fit beside the model, which is there already.

    Raises:
        DoesNotFit: unless `anyway`.
    """
    if needs is None or tokens <= needs.context:
        return
    there = needs.at(context=tokens)
    work = there.cache + there.parts["compute"]
    fit.ask(work, f"a prompt of {tokens:,} tokens", here(device), instead="a shorter prompt", anyway=anyway)


def here(device: torch.device) -> fit.Device:
    """The device, with what this process can have there: what is free, and what it holds itself and would use again."""
    found = fit.device(str(device))
    if device.type != "cuda":
        return found
    cuda: Any = need("torch").cuda
    held = CONTEXT + cuda.memory_reserved(device) - cuda.memory_allocated(device)
    return replace(found, usable=found.usable + held)
