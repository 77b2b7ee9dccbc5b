"""Models of transformers as sides of a comparison: built for it, or held by an engine already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.checkpoint import Checkpoint
from workbench.engines import build
from workbench.engines.transformers import TransformersEngine
from workbench.exceptions import need
from workbench.measure.forward import Predictions, Predictor
from workbench.measure.sides import Side
from workbench.progress import Progress, Steps


@dataclass(frozen=True, eq=False)
class Built:
    """A side for which transformers' model is built.

    Attributes:
        dtype, device: what it computes in and on.
    """

    side: Side
    dtype: Any
    device: Any

    @property
    def checkpoint(self) -> Checkpoint:
        return self.side.checkpoint

    @property
    def name(self) -> str:
        return self.side.name

    @property
    def fingerprint(self) -> str:
        return self.side.fingerprint

    @property
    def how(self) -> tuple[object, ...]:
        return str(self.dtype), self.device.type

    @property
    def computed(self) -> str:
        return f"transformers in {str(self.dtype).removeprefix('torch.')} on {self.device}"

    @property
    def versions(self) -> dict[str, str]:
        return {name: need(name).__version__ for name in ("torch", "transformers")}

    @property
    def nbytes(self) -> int:
        infos = self.checkpoint.tensors.values()
        return int(self.dtype.itemsize * sum(info.params for info in infos) + 4 * max(info.params for info in infos))

    def check(self) -> None:
        self.side.check()

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        what: Any = self.checkpoint, self.side.plan, self.dtype, self.device
        if streamed:
            model = build.streaming_model_of(*what, importance=self.side.importance)
        else:
            model = yield from build.model_of_steps(*what, importance=self.side.importance)
        return Predictions(model, self.device, tick)


class Held:
    """The model of an engine, in whatever layers and types it runs there."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.checkpoint, self.name = engine, engine.checkpoint, engine.name
        self.device, self.nbytes = engine.device, 0
        importance = engine.plan.importance if engine.plan and engine.importance is None else engine.importance
        self._weights = Built(Side(engine.checkpoint, engine.plan, importance), engine.dtype, engine.device)

    @property
    def fingerprint(self) -> str:
        return self._weights.fingerprint

    @property
    def how(self) -> tuple[object, ...]:
        return *self._weights.how, self.engine.native, self.engine.kept, self.versions

    @property
    def computed(self) -> str:
        layers = f", layers of bitsandbytes {self.engine.native}" * bool(self.engine.native)
        kept = f", keys and values rounded to {'/'.join(self.engine.kept)}" if self.engine.kept else ""
        return f"{self._weights.computed}{layers}{kept}"

    @property
    def versions(self) -> dict[str, str]:
        other = {"bitsandbytes": need("bitsandbytes").__version__} if self.engine.native else {}
        return self._weights.versions | other

    def check(self) -> None:
        """It runs already."""

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        yield Progress(0, 0, "", "")
        return Predictions(self.engine.model, self.device, tick, self.engine.kept)
