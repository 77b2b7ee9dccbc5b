"""What is asked about a model's memory, and the arithmetic that answers it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workbench.exceptions import WorkbenchError
from workbench.fit import cache, compute
from workbench.fit.answer import Memory
from workbench.fit.devices import Device
from workbench.fit.devices import device as device_named
from workbench.fit.overhead import overhead
from workbench.fit.subject import Subject
from workbench.fit.weights import WIDTHS, WeightBytes
from workbench.planning import Spec

ENGINES = ("llama.cpp", "transformers", "bitsandbytes", "vllm")
MOST_TOKENS = 1 << 30


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
        vocabulary = subject.architecture.vocabulary
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
                "overhead": overhead(self.engine, self.device.kind if self.device else "", vocabulary),
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

    def _beyond(self) -> tuple[str, ...]:
        limit = self.subject.architecture.context
        if not limit or self.context <= limit:
            return ()
        return (f"the model was made for {limit:,} tokens; beyond that its replies get worse",)
