"""Models of transformers as sides of a comparison: built for it, or held by an engine already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench import files
from workbench.checkpoint import Checkpoint
from workbench.engines import build
from workbench.engines.transformers import TransformersEngine
from workbench.engines.weights import Weights
from workbench.exceptions import WorkbenchError, need
from workbench.measure.forward import Predictions, Predictor
from workbench.planning import Plan
from workbench.progress import Progress, Steps


@dataclass(frozen=True, eq=False)
class Built:
    """A checkpoint as it is, or with a plan's loss, for which transformers' model is built.

    Attributes:
        dtype, device: what it computes in and on.
        importance: tensor name -> mean square of each input channel, for formats that use it; None: the plan's.
    """

    checkpoint: Checkpoint
    dtype: Any
    device: Any
    plan: Plan | None = None
    importance: Mapping[str, np.ndarray] | None = None

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else self.checkpoint.name

    @cached_property
    def fingerprint(self) -> str:
        """Of the values of all weights: of the file's, and of what each format makes of them."""
        if self.plan is None:
            return self.checkpoint.fingerprint
        used = self.plan.formats
        code = sorted({files.code_version(sys.modules[type(format).__module__]) for format in used.values()})
        given = {
            name: files.digest(np.asarray(self._given(name)).tobytes())
            for name in used
            if self._given(name) is not None
        }
        return files.digest(self.checkpoint.fingerprint, {name: used[name].name for name in used}, given, code)

    def _given(self, name: str) -> np.ndarray | None:
        assert self.plan
        importance = self.plan.importance if self.importance is None else self.importance
        return importance.get(name) if self.plan.formats[name].importance != "unused" else None

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
        made = self.plan.formats.values() if self.plan else ()
        unmade = sorted({format.name for format in made if not format.encodable})
        if unmade:
            raise WorkbenchError(", ".join(unmade), "it can be read but not made here", do="choose another format")
        Weights(self.checkpoint, self.plan, self.importance)

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        what: Any = self.checkpoint, self.plan, self.dtype, self.device
        if streamed:
            model = build.streaming_model_of(*what, importance=self.importance)
        else:
            model = yield from build.model_of_steps(*what, importance=self.importance)
        return Predictions(model, self.device, tick)


class Held:
    """The model of an engine, in whatever layers and types it runs there."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.checkpoint, self.name = engine, engine.checkpoint, engine.name
        self.device, self.nbytes = engine.device, 0
        self._weights = Built(engine.checkpoint, engine.dtype, engine.device, engine.plan, engine.importance)

    @property
    def fingerprint(self) -> str:
        return self._weights.fingerprint

    @property
    def how(self) -> tuple[object, ...]:
        return *self._weights.how, self.engine.native, self.versions

    @property
    def computed(self) -> str:
        layers = f", layers of bitsandbytes {self.engine.native}" * bool(self.engine.native)
        return f"{self._weights.computed}{layers}"

    @property
    def versions(self) -> dict[str, str]:
        other = {"bitsandbytes": need("bitsandbytes").__version__} if self.engine.native else {}
        return self._weights.versions | other

    def check(self) -> None:
        """It runs already."""

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        yield Progress(0, 0, "", "")
        return Predictions(self.engine.model, self.device, tick)
