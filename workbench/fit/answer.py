"""What a model takes, in bytes by part, and what follows from it for a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench import figures
from workbench.fit import cache
from workbench.fit.devices import Device
from workbench.fit.devices import device as device_named
from workbench.fit.shown import as_html, as_text
from workbench.fit.split import Offload, split
from workbench.planning import RECIPES, Spec

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.fit.question import Question

THUMB = 1.2  # the rule of thumb's allowance for everything beside the weights
BESIDE_WEIGHTS = ("kv cache", "states", "compute", "overhead")

# What is tried for a device, best first. IQ types are left out: they need a calibration text.
CANDIDATES = {
    "llama.cpp": ("BF16", *(name for name in RECIPES if " " not in name)),
    "transformers": ("BF16",),
    "bitsandbytes": ("LLM.int8", "NF4"),
    "vllm": ("BF16", "FP8", "INT4"),
}
COMMON = ("RTX 3060", "RTX 4060 Ti 16 GB", "RTX 4090", "A100 80 GB")


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
        return sum(nbytes for part, nbytes in self.parts.items() if part not in BESIDE_WEIGHTS)

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

    def parts_on(self, where: Device | str | None = None) -> dict[str, int]:
        """Bytes by part on the device itself, with the whole model there.

        On a GPU llama.cpp leaves the embedding in main memory; a head that is tied to it
        takes its place on the GPU.
        """
        found = self._on(where)
        parts = self.at(device=found).parts
        if self.engine == "llama.cpp" and found.kind == "cuda" and "head" in parts:
            return {part: nbytes for part, nbytes in parts.items() if part != "embedding"}
        return parts

    def needed(self, where: Device | str | None = None) -> int:
        """Bytes needed on the device itself, with the whole model there."""
        return sum(self.parts_on(where).values())

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
        """How many layers llama.cpp can put on a GPU (its -ngl), and the bytes on either side.

        Raises:
            WorkbenchError: an engine that does not split a model so.
        """
        return split(self, self._on(where))

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
        better = next((one for one in self._others(found) if one is not None and one.total < self.total), None)
        if better is not None:
            offers.append(f"{better.format} ({figures.size(better.needed(found))})")
        shorter = self.longest_context(found)
        if 0 < shorter < self.context:
            offers.append(f"a context of {shorter:,} tokens")
        if self.engine == "llama.cpp" and found.kind == "cuda":
            some = self.offload(found)
            if some.layers:
                offers.append(f"{some.layers} of {some.of} layers on the GPU")
        return " or ".join(offers) or "a smaller model, or a larger device"

    def _others(self, found: Device) -> Iterator[Memory | None]:
        """The same in other formats, best first; what transformers runs may be bitsandbytes' layers too."""
        if self.engine == "transformers":
            narrow = self.at(dtype="bf16", device=found)
            yield narrow if narrow.fits(found) else None
            yield self.at(engine="bitsandbytes").best_format(found)
        else:
            yield self.best_format(found)

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
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)
