"""Fisher information of every matrix, a sequence at a time, kept as row sums and column sums.

For a sequence s of T tokens, labels y_t are drawn from the model's own softmax, and

    G_s = d/dW [ - sum_t log p(y_t) ] = sum_t g_t x_t^T          [out, in]
    F   = 1/(S T) sum_s G_s * G_s                                (elementwise)

estimates the diagonal of the Fisher matrix per token: labels from the model make it the
Fisher matrix itself and not the "empirical" one (Kunstner et al. 2019, arXiv 1905.12558).
Squaring after the sum over positions keeps what positions do together, on which the
rank of k and v depends. A sequence goes through alone, so autograd's own gradient is G_s: for a head
tied to the embedding both uses summed, for stacked experts each expert's, without padding.
Of F only r = F 1 [out] and c = F^T 1 [in] are kept: a rank one F = r c^T / sum(r) by
which each weight is judged (as Adafactor does, Shazeer and Stern 2018, arXiv 1804.04235).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import files
from workbench.engines.places import Place
from workbench.exceptions import WorkbenchError, need
from workbench.measure.inputs import MeanSquares
from workbench.progress import Progress

if TYPE_CHECKING:
    import torch

PASSES = 3.0  # a forward and a backward pass to weights and inputs, in forward passes


class Fisher:
    """Sums over the sequences done so far, resumable from a file.

    Attributes:
        rows: tensor -> sum over sequences of G_s^2 1, float64 [out] (or [experts, out]), in the model's order.
        cols: tensor -> the same of (G_s^2)^T 1, [in] (or [experts, in]).
        inputs: the mean squares of what the matrices were fed in the same passes.
        done: sequences added.
    """

    def __init__(self, model: Any, places: Mapping[str, Place], seed: int) -> None:
        self.model, self.places, self.seed = model, places, seed
        self.rows: dict[str, np.ndarray] = {}
        self.cols: dict[str, np.ndarray] = {}
        self.inputs = MeanSquares(places)
        self.done = 0
        self._fresh: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._within: dict[int, list[Place]] = {}
        for place in places.values():
            self._within.setdefault(id(place.parameter), []).append(place)

    def run(self, sequences: list[torch.Tensor], kept: Path, report: Callable[[Progress], None]) -> None:
        """Add the sequences that are not in yet ([T] ids each); what is done is in `kept` whatever ends the call."""
        self._resume(kept)
        total = sum(map(len, sequences))

        def tick(message: str = "gradients") -> None:
            report(Progress(sum(map(len, sequences[: self.done])), total, " tokens", message))

        try:
            with _gradients_only_of(self.model, self.places, lambda parameter: self._take(parameter, tick), tick):
                for number in range(self.done, len(sequences)):
                    tick()
                    self._add(sequences[number], number)
        finally:
            if self.done:
                self._keep(kept)

    def _add(self, ids: torch.Tensor, number: int) -> None:
        torch = need("torch")
        device = next(iter(self.places.values())).parameter.device
        try:
            with self.inputs.watching(), torch.enable_grad():
                logits = self.model(input_ids=ids[None].to(device), use_cache=False).logits[0].float()
            likelihood = torch.log_softmax(logits, -1)
            if not bool(torch.isfinite(likelihood).all()):
                raise WorkbenchError(
                    "logits", f"they are not finite numbers in sequence {number}", do="use dtype='float32'"
                )
            labels = _drawn(likelihood.detach(), self.seed, number)
            (-likelihood.gather(1, labels[:, None]).sum()).backward()
            for tensor, *norms in self._fresh:
                for sums, norm in zip((self.rows, self.cols), norms, strict=True):
                    sums[tensor] = sums.get(tensor, 0) + norm.cpu().numpy().astype(np.float64)
            self.done = number + 1
        finally:
            self._fresh.clear()

    def _take(self, parameter: torch.nn.Parameter, tick: Callable[[], None]) -> None:
        """Autograd has finished a gradient: keep its sums, drop it, so that never all of them are in memory."""
        torch = need("torch")
        tick()
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        for place in self._within[id(parameter)]:
            part = gradient[place.index]
            norms = [torch.linalg.vector_norm(part, dim=dim, dtype=torch.float32).square() for dim in (-1, -2)]
            self._fresh.append((place.tensor, *norms))

    # --- kept between sessions ------------------------------------------------------------------

    def _keep(self, path: Path) -> None:
        names = list(self.places)
        parts = {"rows": self.rows, "cols": self.cols, "inputs": self.inputs.sums}
        arrays: dict[str, Any] = {
            f"{what}.{names.index(name)}": array for what, part in parts.items() for name, array in part.items()
        }
        counts = np.array([self.inputs.counts.get(name, 0) for name in names])
        with files.whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, done=np.array(self.done), counts=counts, **arrays)

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        names = list(self.places)
        with np.load(path, allow_pickle=False) as kept:
            self.done = int(kept["done"])
            self.inputs.counts = {name: int(count) for name, count in zip(names, kept["counts"], strict=True) if count}
            parts = {"rows": self.rows, "cols": self.cols, "inputs": self.inputs.sums}
            for key in kept.files:
                what, dot, number = key.partition(".")
                if dot:
                    parts[what][names[int(number)]] = kept[key]


def _drawn(likelihood: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """A label for each position of [T, vocabulary] log probabilities, by the inverse of their running sum.

    The random numbers come from numpy, so the same logits give the same labels on every device.
    """
    torch = need("torch")
    uniform = np.random.default_rng([seed, number]).random(len(likelihood), dtype=np.float32)
    running = likelihood.exp().cumsum(-1)
    wanted = torch.from_numpy(uniform).to(likelihood.device)[:, None] * running[:, -1:]
    return torch.searchsorted(running, wanted).squeeze(1).clamp_(max=likelihood.shape[-1] - 1)


@contextlib.contextmanager
def _gradients_only_of(
    model: Any,
    places: Mapping[str, Place],
    take: Callable[[torch.nn.Parameter], None],
    tick: Callable[[], None],
) -> Iterator[None]:
    """Within this block only the placed parameters have gradients, each handed to `take` as soon as it is whole."""
    wanted = {id(place.parameter): place.parameter for place in places.values()}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    hooks = [parameter.register_post_accumulate_grad_hook(take) for parameter in wanted.values()]
    hooks += [module.register_forward_pre_hook(lambda *_: tick()) for module in _leaves(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, had in before:
            parameter.requires_grad_(had)
            parameter.grad = None


def _leaves(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if next(module.children(), None) is None)
