"""The exact KL divergence that changed weights cause, without running again what comes before them.

The states that enter each layer of the unchanged model are kept, so for a change in layer L
only the layers from L on are run: the model's own forward pass, in which the layers before hand
on what was kept. A model that this does not reproduce exactly is run whole instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engines.places import Place
from workbench.exceptions import WorkbenchError, need
from workbench.measure.divergence import kl

if TYPE_CHECKING:
    import torch


class Probe:
    """A model on a few sequences of equal length, against itself with changed weights.

    Args:
        ids: [sequences, tokens] token ids.
        tick: called before every layer; what it raises ends the call.

    Attributes:
        passes: what was run so far, in forward passes over `ids`, counted by the layers' and the head's parameters.
    """

    def __init__(self, model: Any, ids: torch.Tensor, tick: Callable[[], None] = lambda: None) -> None:
        self.model, self.ids, self.tick = model, ids.to(next(model.parameters()).device), tick
        self.prefix, self.layers = layers_of(model)
        self.passes = 0.0
        self._costs = [sum(p.numel() for p in layer.parameters()) for layer in self.layers]
        head = model.get_output_embeddings()
        self._after = sum(p.numel() for p in head.parameters()) if head is not None else 0
        self._states: list[Any] = []
        self._tuple: list[int] = []
        with self._recording():
            self._reference = self._logits()
        self.passes += 1
        self._check_replay()

    def kl(self, changed: Iterable[Place], sequences: int | None = None) -> float:
        """Mean KL(unchanged || as the model is now), nats per token, when only these places have been written to.

        Args:
            sequences: how many of the sequences it is measured on, the first ones; None: all.
        """
        return float(self.kl_by_sequence(changed, sequences).mean())

    def kl_by_sequence(self, changed: Iterable[Place], sequences: int | None = None) -> np.ndarray:
        """`kl` of each sequence, float64 [sequences]."""
        first = min((self._layer(place) for place in changed), default=0) if self._states else 0
        candidate = self._logits_from(first, sequences)
        by_token = kl(self._reference[:sequences].flatten(0, 1), candidate.flatten(0, 1))
        return by_token.view(len(candidate), -1).double().mean(1).cpu().numpy()

    @contextlib.contextmanager
    def changed(self, place: Place, weights: torch.Tensor) -> Iterator[None]:
        """Within this block the place holds `weights`; then what it held before."""
        before = place.part.clone()
        place.part.copy_(weights)
        try:
            yield
        finally:
            place.part.copy_(before)

    def _logits_from(self, first: int, sequences: int | None) -> torch.Tensor:
        """The logits of the first `sequences`, running only the layers from `first` on."""
        skipped = sum(self._costs[:first]) / max(1, sum(self._costs) + self._after)
        share = len(self.ids[:sequences]) / len(self.ids)
        self.passes += share * (1 - skipped)
        with self._from(first, sequences):
            return self._logits(sequences)

    def _logits(self, sequences: int | None = None) -> torch.Tensor:
        torch = need("torch")
        with torch.inference_mode():
            found = self.model(input_ids=self.ids[:sequences], use_cache=False).logits
        if not bool(torch.isfinite(found).all()):
            raise WorkbenchError("logits", "they are not finite numbers", do="use dtype='float32'")
        return found

    def _layer(self, place: Place) -> int:
        """The layer a change enters at: 0 for the embedding, one past the last for a head of its own."""
        head = self.model.get_output_embeddings()
        inside = place.name.removeprefix(self.prefix)
        if inside != place.name:
            return int(inside.partition(".")[0])
        own_head = head is not None and any(place.parameter is p for p in head.parameters())
        embedding = self.model.get_input_embeddings()
        tied = embedding is not None and any(place.parameter is p for p in embedding.parameters())
        return len(self.layers) if own_head and not tied else 0

    # --- layers that are not run ----------------------------------------------------------------

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Keep what enters each layer and what leaves the last."""

        def enters(module: Any, args: tuple, kwargs: dict) -> None:
            self.tick()
            self._states.append(args[0] if args else kwargs["hidden_states"])

        def leaves(module: Any, args: tuple, output: Any) -> None:
            self._tuple.append(len(output) if isinstance(output, tuple) else 0)
            if module is self.layers[-1]:
                self._states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_pre_hook(enters, with_kwargs=True) for layer in self.layers]
        hooks += [layer.register_forward_hook(leaves) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def _from(self, first: int, sequences: int | None) -> Iterator[None]:
        """Within this block the layers before `first` hand on what was recorded."""
        hooks = [layer.register_forward_pre_hook(lambda *_: self.tick()) for layer in self.layers[first:]]
        for number, layer in enumerate(self.layers[:first]):
            layer.forward = self._handing_on(number, sequences)
        try:
            yield
        finally:
            for layer in self.layers[:first]:
                del layer.forward
            for hook in hooks:
                hook.remove()

    def _handing_on(self, number: int, sequences: int | None) -> Callable[..., Any]:
        state, length = self._states[number + 1][:sequences], self._tuple[number]
        return lambda *args, **kwargs: (state, *[None] * (length - 1)) if length else state

    def _check_replay(self) -> None:
        """Whether half of the layers, on recorded states, give the recorded logits; else all are run from now on."""
        torch = need("torch")
        if len(self._states) != len(self.layers) + 1:
            self._states = []
            return
        try:
            again = self._logits_from(len(self.layers) // 2, 1)
            same = torch.allclose(again, self._reference[:1], rtol=1e-3, atol=1e-3)
        except (RuntimeError, TypeError, KeyError, AttributeError, IndexError):  # a layer that needs an earlier one
            same = False
        if not same:
            self._states = []


def layers_of(model: Any) -> tuple[str, list[Any]]:
    """The name before a layer's number in the parameters' names ("model.layers."), and the layers; ("", []) if none."""
    torch = need("torch")
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return f"{name}.", list(module)
    return "", []
