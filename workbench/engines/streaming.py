"""A model whose weights are read from the checkpoint when a module is called, and dropped after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from workbench.checkpoint import Checkpoint
from workbench.engines.build import building, config_of, device_of, dtype_of, skeleton_of
from workbench.engines.weights import Weights, silent
from workbench.exceptions import WorkbenchError, need
from workbench.planning import Plan

if TYPE_CHECKING:
    import torch

Make = Callable[[], "torch.Tensor"]


class Tensors(Protocol):
    """Where `makers` takes values from: a checkpoint's, or stand-ins for them."""

    checkpoint: Checkpoint

    def tensor(self, name: str) -> torch.Tensor:
        """The values of the checkpoint's tensor `name`, in transformers' layout."""


def model_of(
    checkpoint: Checkpoint,
    plan: Plan | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    *,
    importance: Mapping[str, np.ndarray] | None,
) -> Any:
    """See `build.streaming_model_of`."""
    where = device_of(device)
    kind = dtype_of(dtype, where)
    weights = Weights(checkpoint, plan, importance)
    with building(silent):
        model = skeleton_of(config_of(checkpoint), checkpoint, kind)
        model.tie_weights()
    make = dict(makers(model, weights, kind))
    missing = [name for name, _ in model.named_parameters() if name not in make]
    if missing:
        raise WorkbenchError(
            checkpoint.name,
            f"{len(missing)} parameters of a {model.config.model_type!r} model are missing, such as {missing[0]}",
            do="check that config.json and the weights are of one model and the download is complete",
        )
    wide = _kept_in_float32(model, kind)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, buffer in module.named_buffers(recurse=False):
            stored = make[prefix + name]() if prefix + name in make else buffer
            setattr(module, name, stored.to(where, buffer.dtype))
        own = {
            name: (make[prefix + name], need("torch").float32 if wide(prefix + name) else kind)
            for name, _ in module.named_parameters(recurse=False)
        }
        if own:
            module.register_forward_pre_hook(_Fill(own, where))
            module.register_forward_hook(_Empty(own), always_call=True)
    return model.eval()


class _Fill:
    """Before a module runs: its own parameters, from the checkpoint."""

    def __init__(self, own: Mapping[str, tuple[Make, torch.dtype]], device: torch.device) -> None:
        self.own, self.device = own, device

    def __call__(self, module: Any, inputs: tuple) -> None:
        torch = need("torch")
        for name, (make, dtype) in self.own.items():
            setattr(module, name, torch.nn.Parameter(make().to(self.device, dtype), requires_grad=False))


class _Empty:
    """After it ran, or failed: back to parameters without storage."""

    def __init__(self, own: Mapping[str, object]) -> None:
        self.own = own

    def __call__(self, module: Any, inputs: tuple, output: Any) -> None:
        for name in self.own:
            setattr(module, name, need("torch").nn.Parameter(getattr(module, name).to("meta"), requires_grad=False))


def _kept_in_float32(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps a parameter in float32 while the model is narrower."""
    torch = need("torch")
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not names or dtype == torch.float32:
        return lambda name: False
    pattern = re.compile("|".join(rf"(^|\.){name}($|\.)" for name in names))
    return lambda name: pattern.search(name) is not None


# --- which tensors make a parameter -------------------------------------------------------------


def makers(model: Any, weights: Tensors, dtype: torch.dtype) -> Iterator[tuple[str, Make]]:
    """For every parameter and stored buffer of the model, the function that reads its values."""
    checkpoint = weights.checkpoint
    tensors = {checkpoint.hf_name(name): name for name in checkpoint.tensors}
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    tied = {name: names for names in names_of.values() for name in names}
    for target, make in _untied(model, weights, tensors, dtype):
        for name in tied.get(target, [target]):
            yield name, make


def _untied(model: Any, weights: Tensors, tensors: Mapping[str, str], dtype: Any) -> Iterator[tuple[str, Make]]:
    """Parameters by the tensors of the file: renamed, or joined of several by a converter of transformers 5."""
    wanted = model.state_dict()
    renamings, converters, rename = _conversions(model)
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    joined: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(tensors, key=_natural):
        target, pattern = rename(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        if pattern is not None:
            joined.setdefault(target, []).append((pattern, name))
        elif target in wanted:
            yield target, partial(weights.tensor, tensors[name])
    for first, sources in joined.items():
        converter = by_pattern[sources[0][0]]
        for pattern in converter.target_patterns:
            target = first.replace(converter.target_patterns[0], pattern)
            parts = [(of, name, partial(weights.tensor, tensors[name])) for of, name in sources]
            yield target, partial(_join, model, converter, first, parts, target, dtype)


def _join(
    model: Any, converter: Any, first: str, parts: Sequence[tuple[str, str, Make]], target: str, dtype: torch.dtype
) -> torch.Tensor:
    """One parameter out of several tensors (the experts of a layer, say), by transformers' own operations."""
    fresh = deepcopy(converter)
    for pattern, name, make in parts:
        fresh.add_tensor(first, name, pattern, lambda make=make: make().to(dtype))
    made = fresh.convert(first, model=model, config=model.config)
    values = made[0] if isinstance(made, tuple) else made  # transformers 5.0 returns errors beside them
    value = values[target]
    return value[0] if isinstance(value, list) else value


def _conversions(model: Any) -> tuple[list[Any], list[Any], Callable[..., tuple[str, str | None]]]:
    """What transformers does to the names and tensors of this model's files."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4: parameters have the names of the file
        return [], [], _rename_by_prefix
    every = get_model_conversion_mapping(model)
    renamings = [one for one in every if isinstance(one, WeightRenaming)]
    return renamings, [one for one in every if isinstance(one, WeightConverter)], rename_source_key


def _rename_by_prefix(name: str, renamings: object, converters: object, prefix: str, wanted: Any) -> tuple[str, None]:
    """A base model's file for a model with a head, or the reverse."""
    choices = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((choice for choice in choices if choice in wanted), name), None


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts expert 2 before expert 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
