"""A model's predictions over a text, a slice of positions at a time.

Logits are as wide as the vocabulary: those of one chunk of 512 tokens can take more memory than
a layer of the model. So the states that leave the last layer are kept, and the model's own
head (with whatever the architecture does after it) is given a few of them at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from workbench.engines.keeping import Kept, cache_of
from workbench.exceptions import need

if TYPE_CHECKING:
    import torch


Rows: TypeAlias = "Callable[[slice], torch.Tensor]"


class Predictor(Protocol):
    """What a side of a comparison does, whatever computes it."""

    def read(self, ids: torch.Tensor, scored: slice) -> list[Rows]:
        """Have texts [sequences, tokens] read, each from its beginning.

        Returns for each of them a function that gives, for a run of its `scored` positions, float32
        logits [positions, vocabulary]. It is called with one run after the other, text by text.
        """

    def close(self) -> None:
        """Leave everything as it was before; called from any thread, and once more does no harm."""


class Predictions:
    """Logits of one model in float32, whatever its weights are in.

    In bfloat16, whose steps are 0.1 for logits about 20, rounding the logits alone would look like a
    divergence of 0.001 nats; so the head is widened to float32.

    Args:
        model: a causal language model of transformers; until `close`, for this use only.
        device: where it runs; a model that is streamed does not know.
        tick: called before every module runs; what it raises ends the call.
        kept: the types that keys and values are rounded to before they are attended to.
    """

    def __init__(
        self, model: Any, device: torch.device | str, tick: Callable[[], None] = lambda: None, kept: Kept = None
    ) -> None:
        self.model, self.base, self.device, self.kept = model, model.base_model, device, kept
        self._output: Any = None
        self._undo: list[Callable[[], None]] = []
        for module in model.modules():
            if not list(module.children()):
                self._undo.append(module.register_forward_pre_hook(lambda *_: tick()).remove)
        head = model.get_output_embeddings()
        if head is not None:
            self._undo.append(head.register_forward_pre_hook(_widen).remove)
            self._undo += [
                partial(setattr, head, name, parameter) for name, parameter in head.named_parameters(recurse=False)
            ]

    def read(self, ids: torch.Tensor, scored: slice) -> list[Rows]:
        """See `Predictor`."""
        return [partial(self._rows, states) for states in self.states(ids)[:, scored]]

    def _rows(self, states: torch.Tensor, rows: slice) -> torch.Tensor:
        return self.logits(states[rows])

    def close(self) -> None:
        """See `Predictor`."""
        while self._undo:
            self._undo.pop()()

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """What leaves the last layer for `ids` [sequences, tokens]: [sequences, tokens, hidden]."""
        with need("torch").inference_mode():
            settings = {"use_cache": False} | cache_of(self.model, self.kept)
            output = self.base(input_ids=ids.to(self.device), **settings)
        self._output = type(output)
        return output.last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Of some of these states [positions, hidden]: float32 [positions, vocabulary]."""
        torch = need("torch")
        unread = torch.zeros(1, len(states), dtype=torch.long, device=self.device)
        with torch.inference_mode(), self._handing_on(self._output(last_hidden_state=states[None])):
            return self.model(input_ids=unread, use_cache=False).logits[0].float()

    @contextlib.contextmanager
    def _handing_on(self, output: Any) -> Iterator[None]:
        """Within this block the layers are not run, and hand on `output`."""
        self.base.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            del self.base.forward


def _widen(head: Any, inputs: tuple) -> tuple:
    """Before the head runs: its parameters, and what it is given, in float32. An embedding tied to it stays narrow."""
    torch = need("torch")
    for name, parameter in list(head.named_parameters(recurse=False)):
        if parameter.dtype != torch.float32:
            setattr(head, name, torch.nn.Parameter(parameter.float(), requires_grad=False))
    return tuple(x.float() for x in inputs)
