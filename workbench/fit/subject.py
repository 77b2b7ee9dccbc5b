"""The model a question is about: opened once, with what was already found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench import checkpoint as checkpoints
from workbench.checkpoint import Checkpoint, hub
from workbench.fit.architecture import Architecture, part_of
from workbench.fit.outline import Outline, architecture_of, from_config
from workbench.fit.remote import outline_steps
from workbench.fit.weights import WeightBytes, weights_of
from workbench.planning import Spec
from workbench.progress import Steps

Source = Checkpoint | Mapping[str, Any] | str | Path


class Subject:
    """A model as the arithmetic needs it; the weights of each format are priced once."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        self.checkpoint, self.architecture = checkpoint, architecture
        self._priced: dict[tuple[object, str, str], tuple[Spec | None, WeightBytes]] = {}

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @cached_property
    def params(self) -> int:
        return self.checkpoint.params

    @cached_property
    def active_params(self) -> int:
        """Parameters that one token passes: of the experts, only those it is sent to."""
        tensors = self.checkpoint.tensors.values()
        routed = sum(info.params for info in tensors if part_of(info.name, info.shape) == "experts")
        return self.params - round(routed * (1 - self.active_share))

    @property
    def active_share(self) -> float:
        """The share of the experts that a token is sent to; 1 without experts."""
        return self.architecture.experts_used / self.architecture.experts if self.architecture.experts else 1.0

    @property
    def assumed(self) -> tuple[str, ...]:
        return self.architecture.assumed

    def weights(self, spec: Spec | None, engine: str, dtype: str) -> WeightBytes:
        """Bytes of the weights in a format, as an engine holds them."""
        key = (spec if isinstance(spec, str | None) else id(spec), engine, dtype)
        if key not in self._priced:  # the spec is kept with its price, so that its id stays its own
            self._priced[key] = spec, weights_of(self.checkpoint, spec, engine, dtype)
        return self._priced[key][1]


def open_steps(model: Source, revision: str | None = None) -> Steps[Subject]:
    """Open a model as far as its bytes are concerned: of a hub model, only the config and the files' headers are read.

    Raises:
        WorkbenchError: a config with a key that is missing, not a number or out of range; no network.
    """
    if isinstance(model, Mapping):
        return Subject(*from_config(model))
    if isinstance(model, Checkpoint):
        return Subject(model, architecture_of(model))
    if _is_hub_id(model):
        outline: Outline = yield from outline_steps(str(model), revision)
        return Subject(outline, architecture_of(outline))
    opened = yield from checkpoints.load_steps(model, revision)
    return Subject(opened, architecture_of(opened))


def _is_hub_id(model: str | Path) -> bool:
    if not isinstance(model, str) or model == "demo" or Path(model).expanduser().exists():
        return False
    return hub.ID.fullmatch(model) is not None
