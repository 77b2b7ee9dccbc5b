"""`wb.quantize`: a model as a folder that transformers and vLLM load, rounded here or by a method's library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench import figures, files, fit
from workbench.checkpoint import Checkpoint, load_steps
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure.text import Text
from workbench.planning import Plan, plan_for
from workbench.progress import Steps, drain
from workbench.quantizing import calibrated, exl2, folder, settings
from workbench.quantizing.exl2 import Exl2
from workbench.quantizing.parts import Stored, stored
from workbench.quantizing.schemes import Calibrated, scheme_of
from workbench.writing.checks import check_room

Overrides = Plan | Mapping[str, "str | Format"]


@dataclass(frozen=True)
class Quantized:
    """A folder that was written.

    Attributes:
        path: where it is; `wb.load` opens it.
        scheme: what it was asked for.
        nbytes: bytes of its tensors.
        matrices: how many matrices have each format; "as they were": the others.
    """

    path: Path
    scheme: str
    nbytes: int
    matrices: dict[str, int]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} {name}" for name, count in self.matrices.items())
        return f"<{self.path}: {self.scheme}, {self.nbytes:,} bytes ({figures.size(self.nbytes)}; {mix})>"


def quantize(
    model: Checkpoint | Plan | str | Path,
    scheme: str | None = None,
    text: Text | None = None,
    *,
    to: str | Path,
    overrides: Overrides | None = None,
    anyway: bool = False,
) -> Quantized:
    """Write a model as a folder of safetensors in a format of GPUs, for transformers, vLLM and TGI.

        wb.quantize(model, "FP8", to="model-fp8")
        wb.quantize(model, "GPTQ-4bit-g64", text, to="model-gptq")
        wb.quantize(wb.plan(card, ["INT4", "INT8"], bits=5), to="model-mixed")

    Args:
        model: a model or what `wb.load` takes; or a plan, which brings its model and says everything.
        scheme: "FP8", "W8A8", "INT8" or "INT4" (in groups of 64; "-g32", "-g128"), written as compressed-tensors;
            "NF4", "FP4" or "LLM.int8", as bitsandbytes; "GPTQ-4bit-g128", "AWQ-4bit-g128", by gptqmodel;
            "EXL2-4.0bpw", mean bits, by ExLlamaV2 on an NVIDIA GPU.
        text: what GPTQ and AWQ adjust themselves to, and EXL2 measures on; the others read none.
        to: the new folder; it must not be there, or be empty.
        overrides: other formats for some matrices: a plan, or tensor name -> format; a float leaves a matrix as it is.
            For GPTQ the formats say the bits and groups: "INT8-g128" is 8 bits in groups of 128.
        anyway: go ahead although memory may not do.

    Embedding and head stay as they are, as those who run such folders want it. What is rounded here is written a run
    of rows at a time (a GGUF's matrices one at a time) under another name, read back and renamed. GPTQ and AWQ hold the
    model, and run as a process of their own with libraries of their own. What is stopped begins anew the next time.

    Raises:
        WorkbenchError: an unknown scheme, a text that is missing, a folder that is not empty, a shape or a mix that the
            layout or vLLM's fused layers cannot hold, no room on the disk, a library that gave up.
    """
    steps = quantize_steps(model, scheme, text, to=to, overrides=overrides, anyway=anyway)
    return drain(steps, label=f"quantizing to {Path(to).name}")


def quantize_steps(
    model: Checkpoint | Plan | str | Path,
    scheme: str | None = None,
    text: Text | None = None,
    *,
    to: str | Path,
    overrides: Overrides | None = None,
    anyway: bool = False,
) -> Steps[Quantized]:
    """`quantize`, yielding how far it is; closing it leaves no half folder."""
    target = Path(to)
    files.check_new_folder(target)
    if isinstance(model, Plan):
        if scheme is not None:
            raise WorkbenchError(f"plan {model.name}", "it says its formats already", do="leave the scheme out")
        return (yield from _round_steps(model.checkpoint, target, model.name, model, anyway))
    if scheme is None:
        raise WorkbenchError("scheme", "none was named", do='wb.quantize(model, "FP8", to="folder")')
    asked = scheme_of(scheme)
    opened = model if isinstance(model, Checkpoint) else (yield from load_steps(model))
    changes = _changes(opened, overrides)
    if isinstance(asked, Calibrated):
        return (yield from _calibrate_steps(opened, target, asked, text, changes, anyway))
    if isinstance(asked, Exl2):
        return (yield from _exl2_steps(opened, target, asked, text, changes))
    plan = plan_for(opened, asked)
    if changes:
        plan = plan_for(opened, {**plan.formats, **changes})
    return (yield from _round_steps(opened, target, str(scheme), plan, anyway))


def _changes(model: Checkpoint, overrides: Overrides | None) -> dict[str, Format]:
    if overrides is None:
        return {}
    return dict(plan_for(model, overrides).formats)


def _round_steps(model: Checkpoint, target: Path, name: str, plan: Plan, anyway: bool) -> Steps[Quantized]:
    """Write a plan's formats, rounded here."""
    matrices = stored_in(plan)
    said = settings.config(model, matrices)
    shards = folder.laid_out(model, matrices)
    check_room(target, shards.nbytes)
    largest = 4 * max(model.tensors[each].params for each in matrices) if model.kind == "gguf" else 0
    fit.ask(folder.HELD + largest, f"writing {target.name}", "cpu", anyway=anyway)
    with files.whole_folder(target) as temporary:
        yield from folder.write_steps(model, matrices, shards, said, temporary)
    return _quantized(target, name, shards.nbytes, model, {key: each.format.name for key, each in matrices.items()})


def stored_in(plan: Plan) -> dict[str, Stored]:
    """How a folder stores each matrix of a plan; those in a float stay as they are.

    Raises:
        WorkbenchError: a format that no such folder holds, experts that are stacked, or nothing to quantize.
    """
    found = {}
    for name, format in plan.formats.items():
        if format.family == "float":
            continue
        info = plan.checkpoint.tensors[name]
        if len(info.shape) != 2:
            raise WorkbenchError(
                name,
                "it holds the experts of a layer as one stack, which such a folder keeps apart",
                do="quantize the model's folder of safetensors, or leave the stack as it is",
            )
        if info.role in ("embed_tokens", "lm_head"):
            raise WorkbenchError(
                name, f"no program runs {format.name} there", allowed="a float: it stays as it is", do="leave it out"
            )
        found[name] = stored(name, format, (info.shape[0], info.shape[1]))
    if not found:
        raise WorkbenchError(f"plan {plan.name}", "it leaves every matrix as it is", do="name a format for some")
    return found


def _calibrate_steps(
    model: Checkpoint, target: Path, asked: Calibrated, text: Text | None, changes: dict[str, Format], anyway: bool
) -> Steps[Quantized]:
    run = calibrated.Run.of(model, asked, text, changes)
    check_room(target, 2 * run.nbytes)
    run.ask(anyway)
    with files.whole_folder(target) as temporary:
        yield from run.steps(temporary)
    written = yield from load_steps(target)
    used = {info.name: info.encoding for info in written.tensors.values() if info.packed is not None}
    return _quantized(target, asked.name, written.nbytes, written, used)


def _exl2_steps(
    model: Checkpoint, target: Path, asked: Exl2, text: Text | None, changes: Mapping[str, Format]
) -> Steps[Quantized]:
    if changes:
        raise WorkbenchError(
            asked.name,
            "its converter chooses the bits of each matrix itself",
            do=f'leave the overrides out, or take their mean: "{exl2.of_plan(plan_for(model, changes)).name}"',
        )
    check_room(target, 4 * model.params)
    with files.whole_folder(target) as temporary:
        yield from exl2.steps(model, asked, text, temporary)
    written = yield from load_steps(target)
    used = {info.name: "EXL2" for info in written.tensors.values() if info.packed is not None}
    return _quantized(target, asked.name, written.nbytes, written, used)


def _quantized(target: Path, name: str, nbytes: int, model: Checkpoint, used: Mapping[str, str]) -> Quantized:
    count = Counter(used.values())
    left = len(model.matrices) - len(used)
    return Quantized(target, name, nbytes, dict(count.most_common()) | ({"as they were": left} if left else {}))
