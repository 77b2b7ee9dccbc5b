"""The mean square of what every matrix of a model is fed, whoever multiplies by it.

A linear module, an expert out of a stack and a head tied to the embedding all end in the
same function of torch, which can be watched. So one watcher serves every architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engines.places import Place
from workbench.exceptions import need

if TYPE_CHECKING:
    import torch

Key = tuple[int, int]  # a parameter's id, and an expert of its stack (0 for a plain matrix)


class MeanSquares:
    """Sums of x_j^2 over all tokens that reach a matrix, float32 [in]: with their number, llama.cpp's importance.

    Matrices in one parameter (gate above up, say) are fed the same x and share its sums.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self.places = places
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self._tensors: dict[Key, list[str]] = {}
        for name, place in places.items():
            if place.parameter.dim() == 2:
                self._tensors.setdefault((id(place.parameter), 0), []).append(name)
            elif isinstance(place.index[0], int):
                self._tensors.setdefault((id(place.parameter), place.index[0]), []).append(name)
        self._last: tuple[Any, Any] = (None, None)
        self._fresh: list[tuple[str, torch.Tensor, int]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this block, see every product with weights [out, in] and add up its inputs at the end."""
        torch = need("torch")
        from torch.overrides import TorchFunctionMode

        take, linear = self._take, torch.nn.functional.linear
        products = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}  # x @ W.T, as Falcon writes it

        class Watch(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
                if func is linear:
                    take(args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"])
                elif func in products and len(args) > 1 and args[1]._base is not None and args[1].stride(0) == 1:
                    take(args[0], args[1]._base)
                return func(*args, **(kwargs or {}))

        with Watch():
            yield
        self._add()

    def mean(self, tensor: str) -> np.ndarray | None:
        """mean x_j^2, float32 [in]; None for a matrix that nothing was multiplied by."""
        count = self.counts.get(tensor, 0)
        return (self.sums[tensor] / count).astype(np.float32) if count else None

    def _take(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        tensors = self._tensors.get(self._key(weight))
        if not tensors:
            return
        if self._last[0] is not x:
            rows = x.detach().reshape(-1, x.shape[-1])
            self._last = (x, (rows.float().square().sum(0), len(rows)))
        self._fresh += [(tensor, *self._last[1]) for tensor in tensors]

    def _key(self, weight: torch.Tensor) -> Key:
        base = weight._base
        if base is None or base.dim() != 3:
            return id(weight), 0
        return id(base), weight.storage_offset() // base.stride(0)

    def _add(self) -> None:
        self._last = (None, None)
        for tensor, total, count in self._fresh:
            self.sums[tensor] = self.sums.get(tensor, 0) + total.cpu().numpy().astype(np.float64)
            self.counts[tensor] = self.counts.get(tensor, 0) + count
        self._fresh.clear()
