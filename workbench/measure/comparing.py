"""Two models on one text: how far a candidate's predictions are from its reference's.

What is scored is llama.cpp's definition (tools/perplexity/perplexity.cpp, `--kl-divergence`):
the text is cut into chunks of `context` tokens, each begins with the tokenizer's own beginning
if it has one, and the positions context // 2 to context - 2 of each chunk (from 0) predict the
token after them. One thing is left out on purpose. llama.cpp skips the terms with log p <= -16,
because its file of the reference's logits keeps 16 bits of each, and none that lie further
down; with both models at hand nothing has to be skipped, and the sum is over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, overload

import numpy as np

from workbench.engines import build
from workbench.engines.server import ServerEngine
from workbench.exceptions import WorkbenchError
from workbench.measure import text as texts
from workbench.measure.coarse import Coarse
from workbench.measure.comparison import Comparison
from workbench.measure.likeliest import POSITIONS, likeliest_steps
from workbench.measure.lockstep import Task, measure_steps
from workbench.measure.pair import Candidate, Reference, check_tokens, pair_steps, reference_steps
from workbench.measure.text import Text
from workbench.progress import Steps, drain

if TYPE_CHECKING:
    import torch


@overload
def compare(  # type: ignore[overload-overlap]  # a server is an engine too
    reference: Reference,
    candidate: ServerEngine,
    text: Text,
    *,
    context: int = ...,
    tokens: int | None = ...,
    importance: Mapping[str, np.ndarray] | None = ...,
    dtype: torch.dtype | str = ...,
    device: torch.device | str | None = ...,
    positions: int | None = ...,
) -> Coarse: ...


@overload
def compare(
    reference: Reference,
    candidate: Candidate,
    text: Text,
    *,
    context: int = ...,
    tokens: int | None = ...,
    importance: Mapping[str, np.ndarray] | None = ...,
    dtype: torch.dtype | str = ...,
    device: torch.device | str | None = ...,
    positions: int | None = ...,
) -> Comparison: ...


def compare(
    reference: Reference,
    candidate: Candidate,
    text: Text,
    *,
    context: int = 512,
    tokens: int | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    positions: int | None = None,
) -> Comparison | Coarse:
    """Measure how far a candidate's predictions are from its reference's.

        report = wb.compare(model, "Q4_K_M", text)
        report.kl.value, report.same_top.value, report.table(), report.figure()
        wb.compare(model, wb.run("model.gguf", engine="llama.cpp", kv="q8_0"), text)

    Args:
        reference: a checkpoint or what `wb.load` takes, or an engine.
        candidate: another checkpoint of any encoding or what `wb.load` takes; or a plan, a recipe's or
            format's name, a format, or tensor name -> format: then the reference's weights
            as they are after that; or an engine of `wb.run` that gives logits: the model as it really
            computes it, with its kernels, its rounding of activations, and its types of keys and values; or
            a server that lists its likeliest tokens, which gives a `Coarse`: a KL divergence of at least so much.
        text: a string, a list of strings, or the Path of a text file.
        context: tokens of a chunk; those in its second half are scored.
        tokens: how many tokens of the text are used at most; None: all.
        importance: tensor name -> mean square of each input channel, float32 [in], for formats that
            use it: `workbench.measure.calibration.calibrate(model, text).importance()`. A plan made from a
            card brings its own.
        dtype: what both models compute in; engines have their own. Narrower types take less memory, and
            their rounding is part of the figures, which matters for formats that lose little.
        device: "cpu", "cuda", ...; by default the first GPU, else the CPU.
        positions: of a server alone: at how many of the scored positions it is asked at most, one
            after the other; None: 64. What it answered is kept as long as the engine is.

    Both models run chunk by chunk in lockstep, and no logits are written. Both are held in
    memory where they fit; else both are streamed from disk, some chunks at a time. llama.cpp reads
    the text in a process of its own, which ends with the comparison. Finished
    chunks are in the cache, so an interrupted call goes on where it stopped.

    Raises:
        WorkbenchError: an empty or too short text, a context longer than a model's, vocabularies that
            differ, an unknown name, a plan of another model, logits that are not finite numbers, an
            engine that was closed or gives none, a server that lists no tokens or reads the text as others,
            a file that llama.cpp does not run.
    """
    if isinstance(candidate, ServerEngine):
        if importance is not None:
            raise WorkbenchError("importance", "a server runs what it has", do="leave it out")
        asked = POSITIONS if positions is None else positions
        served = compare_server_steps(
            reference, candidate, text, context=context, tokens=tokens, dtype=dtype, device=device, positions=asked
        )
        return drain(served, label="comparing")
    if positions is not None:
        raise WorkbenchError("positions", "this candidate is measured at all of them", do="leave it out")
    steps = compare_steps(
        reference, candidate, text, context=context, tokens=tokens, importance=importance, dtype=dtype, device=device
    )
    return drain(steps, label="comparing")


def compare_steps(
    reference: Reference,
    candidate: Candidate,
    text: Text,
    *,
    context: int = 512,
    tokens: int | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
) -> Steps[Comparison]:
    """`compare`, yielding the chunks done; closing it stops within a second and keeps them."""
    task = yield from _task_steps(reference, candidate, text, context, tokens, importance, dtype, device)
    if task.missing():
        yield from measure_steps(task)
    return task.answer()


def compare_server_steps(
    reference: Reference,
    engine: ServerEngine,
    text: Text,
    *,
    context: int = 512,
    tokens: int | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    positions: int = POSITIONS,
) -> Steps[Coarse]:
    """`compare` with a server, yielding the positions done; closing it keeps them as long as the engine lives."""
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        raise WorkbenchError("positions", f"it is {positions!r:.40}", allowed="a whole number above 0")
    where = build.device_of(device)
    first = yield from reference_steps(reference, build.dtype_of(dtype, where), where)
    first.check()
    chunks = texts.chunks_of(first.checkpoint, text, context, tokens=tokens)
    _check_scored(context)
    return (yield from likeliest_steps(first, engine, chunks, positions))


def compare_so_far(
    reference: Reference,
    candidate: Candidate,
    text: Text,
    *,
    context: int = 512,
    tokens: int | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
) -> Comparison | None:
    """What earlier calls with the same arguments measured, on the chunks they finished; None if that is none."""
    task = drain(_task_steps(reference, candidate, text, context, tokens, importance, dtype, device))
    return task.answer() if len(task.missing()) < len(set(task.keys)) else None


def _task_steps(
    reference: Reference,
    candidate: Candidate,
    text: Text,
    context: int,
    tokens: int | None,
    importance: Mapping[str, np.ndarray] | None,
    dtype: torch.dtype | str,
    device: torch.device | str | None,
) -> Steps[Task]:
    where = build.device_of(device)
    kind = build.dtype_of(dtype, where)
    first, second = yield from pair_steps(reference, candidate, importance, kind, where)
    texts.check_context(second.checkpoint, context)
    chunks = texts.chunks_of(first.checkpoint, text, context, tokens=tokens)
    check_tokens(first, second, chunks)
    _check_scored(context)
    return Task((first, second), chunks)


def _check_scored(context: int) -> None:
    if context < 3:
        raise WorkbenchError("context", f"{context} tokens leave none to score", allowed="3 or more")
