"""Will it fit: the bytes of a model by part, for a format, a context and an engine, against devices.

    fit = memory("org/name", "Q4_K_M", context=16384)
    fit.fits("RTX 4090"), fit.longest_context("RTX 4090"), fit.best_format("RTX 4090")

From headers alone: an opened checkpoint, a hub model by its config and range requests of its
files' headers, or a bare config. Everything a `Memory` answers is arithmetic on those.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workbench import figures
from workbench.exceptions import WorkbenchError
from workbench.fit import cache, compute
from workbench.fit.devices import Device
from workbench.fit.devices import device as device_named
from workbench.fit.subject import Source, Subject, open_steps
from workbench.fit.weights import WIDTHS, WeightBytes
from workbench.planning import RECIPES, Spec
from workbench.progress import Steps, drain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ENGINES = ("llama.cpp", "transformers", "bitsandbytes", "vllm")
MOST_TOKENS = 1 << 30
THUMB = 1.2  # the rule of thumb's allowance for everything beside the weights

# What is tried for a device, best first. IQ types are left out: they need a calibration text.
CANDIDATES = {
    "llama.cpp": ("BF16", *(name for name in RECIPES if " " not in name)),
    "transformers": ("BF16",),
    "bitsandbytes": ("LLM.int8", "NF4"),
    "vllm": ("BF16", "FP8", "INT4"),
}

COMMON = ("RTX 3060", "RTX 4060 Ti 16 GB", "RTX 4090", "A100 80 GB")
MIB = 1 << 20
CONTEXT_OF = {
    # engine -> bytes that it takes on a CUDA device beside its buffers: the driver's context and loaded kernels,
    # as read on an H100 (527 MiB bare, 700 to 760 in PyTorch); older cards take less
    "llama.cpp": 530 * MIB,
    "transformers": 720 * MIB,
    "bitsandbytes": 720 * MIB,
    "vllm": 1500 * MIB,
}
# What a llama.cpp server takes beside its buffers: threads, graphs, work space, and tables for each token.
SERVER = 15_000_000
VOCABULARY_ENTRY = 300
LIBRARIES = 6_000_000  # what PyTorch's libraries for processors keep once they have worked


@dataclass(frozen=True)
class Memory:
    """What a model takes, in bytes.

    Attributes:
        model: its name.
        format: what its weights are held in.
        engine: "llama.cpp", "transformers", "bitsandbytes" or "vllm".
        context: tokens of each sequence; `batch`: sequences at once.
        kv: the types that keys and values are kept in.
        parts: bytes by part: the weights by role, then "kv cache", "states", "compute", "overhead".
        params: the model's parameters; `active_params`: those that one token passes.
        notes: what was assumed, and what a reader of the figures must know.
        estimate: whether anything had to be assumed.
    """

    model: str
    format: str
    engine: str
    context: int
    batch: int
    kv: tuple[str, str]
    dtype: str
    parts: dict[str, int]
    params: int
    active_params: int
    device: Device | None
    notes: tuple[str, ...]
    estimate: bool
    question: Question = field(repr=False, compare=False)

    # --- sums ---------------------------------------------------------------------------------

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(nbytes for part, nbytes in self.parts.items() if part not in _BESIDE)

    @property
    def cache(self) -> int:
        """Bytes kept between tokens: keys, values and states."""
        return self.parts["kv cache"] + self.parts["states"]

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.parts.values())

    @property
    def active_weights(self) -> int:
        """Bytes of the weights that one token passes: of the experts, only those it is sent to."""
        return self.weights - round(self.parts.get("experts", 0) * (1 - self.question.subject.active_share))

    @property
    def rule_of_thumb(self) -> int:
        """Parameters x bits / 8 x 1.2, with the bits that the format's name speaks of."""
        return round(self.params * self.question.weights.bits / 8 * THUMB)

    @property
    def rule_is_off_by(self) -> float:
        """How far the rule of thumb is off: -0.4 when it says 40 % too little."""
        return self.rule_of_thumb / self.total - 1

    # --- against a device ---------------------------------------------------------------------

    def needed(self, where: Device | str | None = None) -> int:
        """Bytes needed on the device with the whole model there.

        On a GPU llama.cpp leaves the embedding in main memory; a head that is tied to it
        takes its place on the GPU.
        """
        found = self._on(where)
        moved = 0
        if self.engine == "llama.cpp" and found.kind == "cuda" and "head" in self.parts:
            moved = self.parts.get("embedding", 0)
        return self.at(device=found).total - moved

    def room(self, where: Device | str | None = None) -> int:
        """Bytes that are left on the device; negative when it does not fit."""
        found = self._on(where)
        return found.usable - self.needed(found)

    def fits(self, where: Device | str | None = None) -> bool:
        """Whether it all fits on the device (by default the one asked for, else this machine's)."""
        return self.room(where) >= 0

    def longest_context(self, where: Device | str | None = None) -> int:
        """The longest context that fits, in tokens, at most what the model was made for; 0 if none does."""
        found = self._on(where)
        step = cache.CELLS if self.engine == "llama.cpp" else 16
        limit = self.question.subject.architecture.context or 1 << 20
        low, high = 0, -(-limit // step)
        while low < high:
            middle = (low + high + 1) // 2
            if self.at(context=middle * step, device=found).fits(found):
                low = middle
            else:
                high = middle - 1
        return min(low * step, limit)

    def best_format(self, where: Device | str | None = None, among: tuple[str, ...] | None = None) -> Memory | None:
        """The same in the format of most bits that fits on the device; None if none does."""
        found = self._on(where)
        for name in among or CANDIDATES[self.engine]:
            tried = self.at(format=name, device=found)
            if tried.fits(found):
                return tried
        return None

    def offload(self, where: Device | str) -> Offload:
        """How many layers llama.cpp can put on a GPU (its -ngl), and the bytes on either side."""
        if self.engine != "llama.cpp":
            raise WorkbenchError("offload", f"{self.engine} does not split a model so", allowed='engine="llama.cpp"')
        found = self._on(where)
        here = self.at(device=found)
        question, layers = here.question, len(here.question.subject.architecture.layers)
        each = cache.by_layer(question.subject.architecture, self.context, self.kv, self.engine)
        held = question.weights.layers
        gpu, moved = here.parts["compute"] + here.parts["overhead"], 0
        for layer in reversed(range(layers)):  # the last layers go first
            more = held.get(layer, 0) + self.batch * each[layer].total
            if gpu + more > found.usable:
                break
            gpu, moved = gpu + more, moved + 1
        else:
            if here.needed(found) <= found.usable:
                gpu, moved = here.needed(found), layers + 1
        return Offload(moved, layers + 1, gpu if moved else 0, max(0, here.total - gpu) if moved else here.total)

    def at(self, **changes: Any) -> Memory:
        """The same with another `context`, `batch`, `kv`, `format`, `engine`, `dtype` or `device`.

        Only arithmetic: a change of context takes well under a millisecond, of format some
        milliseconds, so a slider can ask for each of its positions.
        """
        return self.question.changed(changes).answer()

    def nearest(self, where: Device | str | None = None) -> str:
        """What would fit instead, as a sentence: another format, a shorter context, or some layers on the GPU."""
        found = self._on(where)
        offers = []
        better = self.best_format(found)
        if better is not None and better.total < self.total:
            offers.append(f"{better.format} ({figures.size(better.needed(found))})")
        shorter = self.longest_context(found)
        if 0 < shorter < self.context:
            offers.append(f"a context of {shorter:,} tokens")
        if self.engine == "llama.cpp" and found.kind == "cuda":
            some = self.offload(found)
            if some.layers:
                offers.append(f"{some.layers} of {some.of} layers on the GPU")
        return " or ".join(offers) or "a smaller model, or a larger device"

    def _on(self, where: Device | str | None) -> Device:
        return device_named(where) if where is not None else self.device or device_named(None)

    # --- shown --------------------------------------------------------------------------------

    def figure(self, devices: Sequence[str | Device] = ()) -> go.Figure:
        """Bars of bytes by part, with the usable memory of each device (by default, of a few common ones)."""
        from workbench.fit.figure import bars

        return bars(self, [device_named(one) for one in devices or COMMON])

    def growth(self, kv: Sequence[str | tuple[str, str]] = (), devices: Sequence[str | Device] = ()) -> go.Figure:
        """Lines of total bytes as the context grows, one for each type of cache, with what each device has."""
        from workbench.fit.figure import lines

        return lines(self, list(kv) or [self.kv], [device_named(one) for one in devices])

    def table(self, formats: Sequence[Spec] = (), devices: Sequence[str | Device] = ()) -> pd.DataFrame:
        """A row for each format and device: bytes needed and usable, whether it fits, the longest context that does.

        By default the formats that `best_format` tries, and a few common devices.
        """
        import pandas as pd

        found = []
        for where in (device_named(one) for one in devices or COMMON):
            for name in formats or CANDIDATES[self.engine]:
                there = self.at(format=name, device=where)
                found.append(
                    {
                        **{"format": there.format, "device": where.name, "needed": there.needed(where)},
                        **{"usable": where.usable, "fits": there.fits(where)},
                        "longest_context": there.longest_context(where),
                    }
                )
        return pd.DataFrame(found)

    def rows(self) -> list[tuple[str, int]]:
        """(part, bytes), as all representations show them."""
        return [(part, nbytes) for part, nbytes in self.parts.items() if nbytes]

    def __repr__(self) -> str:
        lines = [self._headline()]
        width = max(len(part) for part, _ in self.rows())
        lines += [f"  {part:<{width}}  {figures.size(nbytes):>9}" for part, nbytes in self.rows()]
        lines.append(f"  {'total':<{width}}  {figures.size(self.total):>9}")
        return "\n".join([*lines, *self._remarks()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(part)}</td><td>{figures.size(nbytes)}</td>"
            f"<td>{nbytes / self.total:.0%}</td></tr>"
            for part, nbytes in self.rows()
        )
        total = f"<tr><th style='text-align:left'>total</th><th>{figures.size(self.total)}</th><th></th></tr>"
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self._remarks())
        return f"<p><b>{html.escape(self._headline())}</b></p><table>{rows}{total}</table>{said}"

    def _headline(self) -> str:
        types = self.kv[0] if self.kv[0] == self.kv[1] else "/".join(self.kv)
        several = f", {self.batch} sequences" if self.batch > 1 else ""
        return (
            f"{self.model} in {self.engine}, {self.format}: {self.context:,} tokens{several}, "
            f"keys and values in {types}{' (estimate)' if self.estimate else ''}"
        )

    def _remarks(self) -> list[str]:
        lines = []
        if self.active_weights < self.weights:
            lines.append(f"Of the weights, a token passes {figures.size(self.active_weights)}; all must be there.")
        off = self.rule_is_off_by
        lines.append(
            f"The rule of thumb, parameters x bits / 8 x 1.2, says {figures.size(self.rule_of_thumb)}: "
            f"{abs(off):.0%} too {'much' if off > 0 else 'little'} for this model and context."
        )
        if self.device is not None:
            room = self.room(self.device)
            verdict = f"fits, {figures.size(room)} to spare" if room >= 0 else f"{figures.size(-room)} too much"
            lines.append(f"{self.device.name} has {figures.size(self.device.usable)}: {verdict}.")
            if room < 0:
                lines.append(f"What would fit: {self.nearest(self.device)}.")
        return [*lines, *(f"Note: {note}." for note in self.notes)]


_BESIDE = ("kv cache", "states", "compute", "overhead")


@dataclass(frozen=True)
class Offload:
    """A model split between a GPU and main memory.

    Attributes:
        layers: how many of `of` layers (the head counts as one) are on the GPU; llama.cpp's -ngl.
        gpu, cpu: bytes on either side.
    """

    layers: int
    of: int
    gpu: int
    cpu: int

    def __str__(self) -> str:
        there, here = figures.size(self.gpu), figures.size(self.cpu)
        return f"{self.layers} of {self.of} layers on the GPU: {there} there, {here} in main memory"


@dataclass(frozen=True)
class Question:
    """Everything that decides a `Memory`."""

    subject: Subject
    spec: Spec | None
    context: int
    batch: int
    kv: str | tuple[str, str] | None
    engine: str
    dtype: str | None
    device: Device | None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise WorkbenchError(self.engine, "there is no engine of that name", allowed=", ".join(ENGINES))
        for name, value in (("context", self.context), ("batch", self.batch)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
                raise WorkbenchError(name, f"it is {value!r:.40}", allowed=f"a whole number from 1 to {MOST_TOKENS:,}")
        if self.dtype is not None and self.dtype not in WIDTHS:
            raise WorkbenchError("dtype", f"it is {self.dtype!r:.40}", allowed=", ".join(WIDTHS))

    @property
    def float_type(self) -> str:
        """What transformers and vLLM compute in."""
        return self.dtype or (self.device.dtype if self.device else "bf16")

    @property
    def types(self) -> tuple[str, str]:
        """What keys and values are kept in: by default float16 in llama.cpp, else what the engine computes in."""
        return cache.type_names(self.kv or ("f16" if self.engine == "llama.cpp" else self.float_type), self.engine)

    @property
    def weights(self) -> WeightBytes:
        return self.subject.weights(self.spec, self.engine, self.float_type)

    def changed(self, changes: dict[str, Any]) -> Question:
        known = ("context", "batch", "kv", "engine", "dtype", "device", "format")
        for name in changes:
            if name not in known:
                raise WorkbenchError(name, "it cannot be changed", allowed=", ".join(known))
        if "format" in changes:
            changes["spec"] = changes.pop("format")
        if changes.get("device") is not None:
            changes["device"] = device_named(changes["device"])
        if changes.get("engine", self.engine) != self.engine:
            changes = {"spec": None, "kv": None, **changes}
        return replace(self, **changes)

    def answer(self) -> Memory:
        """Raises WorkbenchError for a format or a type that the engine does not know."""
        subject, held, types = self.subject, self.weights, self.types
        kept = cache.nbytes(subject.architecture, self.context, self.batch, types, self.engine)
        work = self._compute(types, held)
        return Memory(
            model=subject.name,
            format=held.label,
            engine=self.engine,
            context=self.context,
            batch=self.batch,
            kv=types,
            dtype=self.float_type,
            parts={
                **held.parts,
                "kv cache": kept.tokens,
                "states": kept.states,
                "compute": work.peak + work.fixed,
                "overhead": self._overhead(),
            },
            params=subject.params,
            active_params=subject.active_params,
            device=self.device,
            notes=(*subject.assumed, *held.notes, *self._beyond()),
            estimate=bool(subject.assumed) or self.engine == "vllm",
            question=self,
        )

    def _compute(self, types: tuple[str, str], held: WeightBytes) -> compute.ComputeBytes:
        architecture, sizes = self.subject.architecture, (self.context, self.batch)
        if self.engine == "llama.cpp":
            return compute.llama_cpp(architecture, *sizes)
        if self.engine == "vllm":
            return compute.vllm(architecture, *sizes, WIDTHS[self.float_type])
        machine = compute.Machine(
            width=WIDTHS[self.float_type],
            cpu=self.device is not None and self.device.kind == "cpu",
            flash=self.device is None or self.device.kind != "cuda" or (self.device.flash and self.float_type != "f32"),
        )
        if self.engine == "transformers":
            return compute.transformers(architecture, *sizes, types, machine)
        return compute.bitsandbytes(architecture, *sizes, types, machine, held.largest, eight=held.label == "LLM.int8")

    def _overhead(self) -> int:
        where = self.device.kind if self.device is not None else ""
        if self.engine == "llama.cpp":
            own = SERVER + VOCABULARY_ENTRY * self.subject.architecture.vocabulary
        else:
            own = LIBRARIES if where == "cpu" else 0
        return own + (CONTEXT_OF[self.engine] if where == "cuda" else 0)

    def _beyond(self) -> tuple[str, ...]:
        limit = self.subject.architecture.context
        if not limit or self.context <= limit:
            return ()
        return (f"the model was made for {limit:,} tokens; beyond that its replies get worse",)


def memory(
    model: Source,
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
            the files' headers are read), or a config.json as a dict.
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
    model: Source,
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
    where = None if device is None else device_named(device)
    subject = yield from open_steps(model, revision)
    return Question(subject, format, context, batch, kv, engine, dtype, where).answer()
