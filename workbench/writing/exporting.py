"""A plan as a GGUF file: exactly its types, all of the source's metadata, checked before it takes its name.

The file is written to a temporary neighbour, read back (header, a hash of every tensor, a decoded piece of each
against the source) and only then renamed. What was there before stays until that moment.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from workbench import figures, files, fit
from workbench.checkpoint import Checkpoint, TensorInfo, gguf, load_steps, values
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import Plan, Spec, of_plan, plan_for
from workbench.progress import Progress, Steps, drain
from workbench.writing import beside as others
from workbench.writing import converter, decoded, header, stored
from workbench.writing.checks import check, check_room, check_target, check_tokenizer
from workbench.writing.layout import Layout, laid_out

SAMPLE = 1 << 16  # weights of each matrix that are decoded again


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: where it is.
        nbytes: bytes of the file; `data`: of its tensors alone, without metadata and padding.
        types: how many tensors have each type.
        beside: what was written next to it for other programs: "Modelfile", "plan", "recipe", "importance" -> where.
    """

    path: Path
    nbytes: int
    data: int
    types: dict[str, int]
    beside: Mapping[str, Path] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return f"<{self.path}: {self.nbytes:,} bytes ({figures.size(self.nbytes)}; {mix})>"


def export(
    source: Plan | Checkpoint | str,
    path: str | Path,
    format: Spec | None = None,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    about_importance: str = "",
    threads: int | None = None,
    beside: bool | Iterable[str] = False,
    anyway: bool = False,
) -> Exported:
    """Write a plan, or a model in a recipe or format, as a GGUF file that llama.cpp, Ollama and their relatives run.

        wb.export(plan, "mixed.gguf")
        wb.export(model, "model.gguf", "Q4_K_M")

    Args:
        source: a plan, which brings its model; or a model (or what `wb.load` takes), a GGUF or a folder of
            safetensors. A folder is first converted by llama.cpp's own converter, which needs room for the
            whole model beside the new file, for a while; packed weights (GPTQ, AWQ, FP8, ...) are decoded before.
        path: the new file; one that is there is replaced when the new one is whole and checked.
        format: with a model, what `wb.plan_for` takes; tensors that it does not name are copied as they are.
        importance: tensor name -> float32 [in] (or [experts, in]), mean square of each input channel. By
            default the plan's own: one made from a card is written with what it was priced with.
        about_importance: what it was measured on, recorded in the file.
        threads: that encode; as many as this process may use by default.
        beside: write next to the file what other programs want: True for all, or some of "Modelfile" (for
            Ollama), "plan" (its JSON), "recipe" (the same for llama-quantize) and "importance" (the importance
            matrix in llama.cpp's form, where there is one).
        anyway: go ahead although memory may not do, or without a tokenizer.

    Memory is a few runs of rows a thread, whatever the model's size.

    Raises:
        WorkbenchError: a model without a format, a plan of another model, a format that GGUF has not, an importance
            that is needed and missing, the output is one of the input's files, no room on the disk, or a check
            that failed.
    """
    steps = export_steps(
        source,
        path,
        format,
        importance=importance,
        about_importance=about_importance,
        threads=threads,
        beside=beside,
        anyway=anyway,
    )
    return drain(steps, label=f"writing {Path(path).name}")


def export_steps(
    source: Plan | Checkpoint | str,
    path: str | Path,
    format: Spec | None = None,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    about_importance: str = "",
    threads: int | None = None,
    beside: bool | Iterable[str] = False,
    anyway: bool = False,
) -> Steps[Exported]:
    """`export`, yielding the bytes written and then checked; closing it leaves no half file."""
    plan = yield from _plan_steps(source, format)
    target, model = Path(path), plan.checkpoint
    if importance is None:
        importance, about_importance = plan.importance, about_importance or plan.importance_of
    check_target(model, target)
    check(plan, importance)
    if not anyway:
        check_tokenizer(model)
    known = [kind for kind in others.ENDINGS if kind != "importance" or importance]
    kinds = known if beside is True else list(beside or ())
    others.paths(target, kinds)  # raises for a kind that is none
    made = yield from _whole_steps(plan, target, importance, about_importance, threads, anyway)
    if not kinds:
        return made
    return replace(made, beside=others.write(target, kinds, plan, importance=importance, dataset=about_importance))


def _whole_steps(
    plan: Plan, target: Path, importance: Mapping[str, np.ndarray], about: str, threads: int | None, anyway: bool
) -> Steps[Exported]:
    """Write a plan of a GGUF, or of a folder that becomes one first."""
    model = plan.checkpoint
    if model.kind == "gguf":
        return (yield from _export_steps(model, plan, target, importance, about, threads, anyway))
    check_room(target, converter.room_for(model) + plan.nbytes)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=target.name + ".tmp-", dir=target.parent) as scratch:
        converted = yield from converter.converted_steps(model, Path(scratch) / "source.gguf")
        names = converter.as_gguf(plan, model, converted)
        formats = {names[name]: format for name, format in plan.formats.items()}
        there = plan_for(converted, _as_they_were(model, converted) | formats)
        there = replace(there, name=plan.name)
        weighed = {names[name]: each for name, each in importance.items() if name in names}
        return (yield from _export_steps(converted, there, target, weighed, about, threads, anyway))


def _as_they_were(model: Checkpoint, converted: Checkpoint) -> dict[str, Format]:
    """What matrices that were converted as float32, beside decoded ones, are kept in unless a plan says otherwise."""
    if not decoded.is_needed(model):
        return {}
    sources = {model.hf_name(name): info for name, info in model.tensors.items()}
    kept: dict[str, Format] = {}
    for info in converted.matrices:
        source = sources.get(converted.hf_names.get(info.name, ""))
        if source is not None and (format := decoded.in_gguf(source)) is not None:
            kept[info.name] = format
    return kept


def _export_steps(
    model: Checkpoint,
    plan: Plan,
    target: Path,
    importance: Mapping[str, np.ndarray],
    about: str,
    threads: int | None,
    anyway: bool,
) -> Steps[Exported]:
    """Write a plan of a GGUF."""
    laid = laid_out(model, plan, importance, about)
    for info in laid.tensors:
        if info.problem:
            raise WorkbenchError(f"{model.name}, tensor {info.name}", info.problem)
    what = f"writing {target.name}, of which each thread holds a few runs of rows,"
    fit.ask(stored.held(laid.tensors, threads), what, "cpu", instead="fewer threads", anyway=anyway)
    check_room(target, laid.nbytes)
    with files.whole(target) as temporary:
        hashes = yield from _write(temporary, laid, model, plan, threads)
        yield from _read_back(temporary, laid, hashes)
        yield from _compare(temporary, model, laid.tensors)
    types = Counter(entry.encoding for entry in laid.entries)
    return Exported(target, laid.nbytes, sum(entry.nbytes for entry in laid.entries), dict(types.most_common()))


# --- before a file is touched -----------------------------------------------------------------


def _plan_steps(source: Plan | Checkpoint | str, format: Spec | None) -> Steps[Plan]:
    if isinstance(source, Plan):
        return of_plan(source, format)[1]
    if format is None:
        do = 'wb.export(model, "model.gguf", "Q4_K_M"), or wb.export(plan, "model.gguf")'
        raise WorkbenchError("format", "none was named", allowed="a recipe, a format or a plan", do=do)
    return plan_for(source if isinstance(source, Checkpoint) else (yield from load_steps(source)), format)


# --- what is written --------------------------------------------------------------------------


def _write(temporary: Path, laid: Layout, model: Checkpoint, plan: Plan, threads: int | None) -> Steps[list[str]]:
    """Write everything; gives a hash of each tensor's bytes."""
    entries, alignment = laid.entries, laid.alignment
    expected = {entry.name: entry.nbytes for entry in entries}
    hashes = {entry.name: hashlib.sha256() for entry in entries}
    left, done, total = dict(expected), 0, sum(expected.values())
    try:
        with temporary.open("wb") as file:
            file.write(laid.head)
            for info, raw in stored.stream(model, laid.tensors, plan.formats, laid.importance, threads):
                file.write(raw)
                hashes[info.name].update(raw)
                left[info.name] -= len(raw)
                done += len(raw)
                if left[info.name] == 0:
                    file.write(bytes(header.padded(expected[info.name], alignment) - expected[info.name]))
                yield Progress(done, total, "B", info.name)
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        raise WorkbenchError(temporary, f"it cannot be written ({reason})", do="check the disk") from reason
    return [hashes[entry.name].hexdigest() for entry in entries]


# --- and read back ----------------------------------------------------------------------------


def _read_back(temporary: Path, laid: Layout, hashes: list[str]) -> Steps[None]:
    """Raise unless the file's header says what was planned and every tensor's bytes are those that were written."""
    found = gguf.read_header(temporary)
    entries, data = laid.entries, len(laid.head)
    if set(found.spans) != set(laid.metadata):
        raise WorkbenchError(temporary, "its metadata is not what was written", do="check the disk")
    done, total = 0, sum(entry.nbytes for entry in entries)
    for info, entry, offset, expected in zip(found.tensors, entries, laid.offsets, hashes, strict=True):
        said = (info.name, info.shape, info.encoding, info.nbytes, info.offset)
        if said != (entry.name, entry.shape, entry.encoding, entry.nbytes, data + offset):
            raise WorkbenchError(temporary, f"its header misplaces the tensor {entry.name!r}", do="check the disk")
        total_hash = hashlib.sha256()
        for first in range(0, info.nbytes, stored.PIECE):
            count = min(stored.PIECE, info.nbytes - first)
            total_hash.update(values.bytes_at(info, first, count).data)
            done += count
            yield Progress(done, total, "B", f"checking {info.name}")
        if total_hash.hexdigest() != expected:
            raise WorkbenchError(
                temporary, f"the tensor {entry.name!r} reads back differently", do="check the disk and try again"
            )


def _compare(temporary: Path, model: Checkpoint, tensors: list[TensorInfo]) -> Steps[None]:
    """Raise unless a piece of every matrix decodes to something like the source's: a codec gone wrong does not."""
    written = {info.name: info for info in gguf.read_header(temporary).tensors}
    for number, info in enumerate(tensors, 1):
        if len(info.shape) < 2 or written[info.name].encoding == info.encoding:
            continue
        rows = slice(0, max(1, SAMPLE * info.shape[0] // info.params))
        before, after = model.read(info.name, rows), values.read(written[info.name], rows)
        lost = float(np.square(before - after, dtype=np.float64).sum())
        if not lost <= float(np.square(before, dtype=np.float64).sum()):  # a NaN is no less wrong
            raise WorkbenchError(
                temporary,
                f"{info.name!r} in {written[info.name].encoding} does not decode to its weights",
                do="report this: the format's encoder and the model do not agree",
            )
        yield Progress(number, len(tensors), " tensors", f"decoding {info.name}")
