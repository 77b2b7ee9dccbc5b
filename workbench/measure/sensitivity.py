"""The call that measures a model's sensitivity: one pass with gradients, then a few exact measurements.

The order: Fisher information and importance of every matrix (`measure.fisher`); the exact KL divergence
of rounding the few that are predicted to cost most, each put back after; and whole plans written over one
another (`measure.anchors`). What is finished is in the cache at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import __version__, files, fit
from workbench import checkpoint as checkpoints
from workbench.checkpoint import Checkpoint
from workbench.engines import build
from workbench.engines.places import Place, places
from workbench.engines.weights import Weights
from workbench.exceptions import WorkbenchError, need
from workbench.measure import anchors, card, fisher, inputs, probe, unseen
from workbench.measure.card import Card, MatrixCard, Measured, model_hash
from workbench.measure.fisher import Fisher
from workbench.measure.probe import Probe
from workbench.measure.text import Text, chunks_of, text_of
from workbench.progress import Progress, Steps, drain, in_thread

if TYPE_CHECKING:
    import torch

LEAST = 64  # tokens; fewer say nothing
LONGEST = 4_000_000  # characters of a text that are cut into tokens: a second's work, and more than anybody measures on
SHARE = 20  # a single matrix is measured on one sequence of so many
PROBED = 256  # tokens, at least, that a single matrix is measured on
ON_PLANS = 3  # a whole plan is measured on one of so many, and on twice as many as a single matrix at least

Report = Callable[[Progress], None]


def sensitivity(
    model: Checkpoint | str | Path,
    text: Text,
    *,
    tokens: int = 5120,
    context: int = 256,
    seed: int = 0,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    anyway: bool = False,
) -> Card:
    """Measure what an error in each matrix of a model costs in KL divergence.

    Args:
        model: an opened checkpoint, or whatever `wb.load` takes.
        text: a few thousand words of the kind the model will be used on.
        tokens: how many are used at most, in sequences spread evenly over the text.
        context: length of these sequences, in tokens.
        seed: of the labels that are drawn from the model.
        dtype: "bfloat16" halves the memory.
        device: by default the first GPU there is, else the CPU.
        anyway: go ahead though the memory seems too small.

    Costs about five forward passes over the text, in three of which gradients are computed a
    sequence at a time; needs the model in memory and its largest matrix once more.
    Every finished sequence and measurement is in the cache: an interrupted call goes on
    where it stopped, and a repeated one returns at once.

    Raises:
        WorkbenchError: the text is empty or too short, the context is longer than the model's, the dtype
            is float16, or the model's logits are not finite.
        DoesNotFit: before memory is spent.
    """
    steps = sensitivity_steps(
        model, text, tokens=tokens, context=context, seed=seed, dtype=dtype, device=device, anyway=anyway
    )
    return drain(steps, label="measuring sensitivity")


def sensitivity_steps(
    model: Checkpoint | str | Path,
    text: Text,
    *,
    tokens: int = 5120,
    context: int = 256,
    seed: int = 0,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    anyway: bool = False,
) -> Steps[Card]:
    opened = model if isinstance(model, Checkpoint) else (yield from checkpoints.load_steps(model))
    where = build.device_of(device)
    kind = build.dtype_of(dtype, where)
    if kind == need("torch").float16:
        raise WorkbenchError("dtype", "gradients overflow in float16", allowed="float32, bfloat16")
    run = _Run(opened, sequences_of(opened, text, tokens, context), seed, kind, where)
    if run.finished.exists():
        return Card.load(run.finished, opened)
    fit.ask(run.memory, f"measuring the sensitivity of {opened.name}", where.type, anyway=anyway)
    loaded = yield from build.model_of_steps(opened, None, kind, where, anyway=anyway)
    return (yield from in_thread(lambda report: run.card(loaded, report)))


def sequences_of(opened: Checkpoint, text: Text, tokens: int, context: int) -> np.ndarray:
    """Token ids [sequences, context], about `tokens` of them, spread evenly over a text that has more."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < LEAST:
        raise WorkbenchError("tokens", f"it is {tokens!r:.40}", allowed=f"a whole number from {LEAST} on")
    chunks = chunks_of(opened, text_of(text)[:LONGEST], context, least=LEAST)
    count = min(len(chunks), max(1, tokens // chunks.shape[1]))
    return chunks[np.linspace(0, len(chunks) - 1, count).round().astype(int), :tokens]


def _amid(count: int, parts: int) -> np.ndarray:
    """The middle one of each of so many parts of `count`: the ends of a text are often unlike the rest."""
    return ((np.arange(parts) + 0.5) * count / parts).astype(int)


class _Run:
    """One model on one text, and what the cache holds of it."""

    def __init__(self, opened: Checkpoint, ids: np.ndarray, seed: int, dtype: Any, device: Any) -> None:
        self.opened, self.ids, self.seed, self.dtype, self.device = opened, ids, seed, dtype, device
        code = files.code_version(
            *(sys.modules[each.__name__] for each in (fisher, inputs, anchors, probe, unseen, card))
        )
        self.key = files.digest(opened.fingerprint, ids.tobytes(), ids.shape, seed, str(dtype), str(device), code)
        self.cache = files.cache("sensitivity")

    @property
    def finished(self) -> Path:
        return files.cache_dir() / "sensitivity" / f"{self.key}.safetensors"

    @property
    def memory(self) -> int:
        """Bytes: the weights, the largest gradient, and logits with their gradients."""
        largest = max(info.params for info in self.opened.matrices)
        vocabulary = max((info.shape[0] for info in self.opened.matrices if info.layer is None), default=0)
        width = self.dtype.itemsize
        return (self.opened.params + 2 * largest) * width + 5 * 4 * vocabulary * max(self.ids.shape[1], 2 * PROBED)

    def card(self, model: Any, report: Report) -> Card:
        """Measure, on a loaded model, which is not the same afterwards."""
        torch = need("torch")
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # an expert at a time: every product by weights can be seen
        where = places(model, self.opened)
        sums = Fisher(model, where, self.seed)
        sums.run([torch.from_numpy(row) for row in self.ids], self.finished.with_suffix(".npz"), report)
        cards = {name: MatrixCard(self._mean(sums.rows[name]), self._mean(sums.cols[name])) for name in where}
        exact = _Exact(self, model, where, cards, report)
        measured = exact.measure()
        matrices, importance = unseen.filled(
            {name: replace(one, rows=where[name].rows_of_file(one.rows)) for name, one in exact.cards.items()},
            {name: mean for name in where if (mean := sums.inputs.mean(name)) is not None},
            self.opened.tensors,
        )
        made = Card(
            self.opened,
            matrices,
            importance,
            anchors.fitted([each for each in measured if not each.tensor], float(np.mean(exact.errors))),
            tuple(measured),
            self._provenance(fisher.PASSES + exact.passes * exact.ids.numel() / self.ids.size),
        )
        made.save(self.finished)
        self.finished.with_suffix(".npz").unlink(missing_ok=True)
        return made

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        """Sums over the text as a figure for each token, float32."""
        return (sums / self.ids.size).astype(np.float32)

    def _provenance(self, forwards: float) -> dict[str, Any]:
        return {
            "model": self.opened.name,
            "model_hash": model_hash(self.opened),
            "revision": self.opened.revision,
            "text_hash": files.digest(self.ids.tobytes()),
            "tokens": self.ids.size,
            "context": self.ids.shape[1],
            "seed": self.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "forwards": forwards,
            "versions": {
                "workbench": __version__,
                **{name: str(need(name).__version__) for name in ("torch", "transformers", "numpy")},
            },
        }


class _Exact:
    """The measured part of a card, on some of the sequences; every figure is in the cache once it is there."""

    def __init__(
        self, run: _Run, model: Any, where: Mapping[str, Place], cards: dict[str, MatrixCard], report: Report
    ) -> None:
        torch = need("torch")
        self.run, self.model, self.where, self.cards, self.report = run, model, where, cards, report
        self.few = min(len(run.ids), max(math.ceil(PROBED / run.ids.shape[1]), len(run.ids) // SHARE))
        many = min(len(run.ids), max(2 * self.few, len(run.ids) // ON_PLANS))
        chosen = _amid(len(run.ids), many)
        few = chosen[_amid(many, self.few)]
        self.ids = torch.from_numpy(run.ids[[*few, *np.setdiff1d(chosen, few)]])
        self.now, self.passes = Progress(0, 0, "", ""), 0.0
        self.found: list[Measured] = []
        self.errors: list[float] = []  # of the plans' ln KL, for the sequences they are measured on are few
        self.costs = dict(anchors.costs(cards, where))
        self.doubtful = anchors.doubtful(self.costs)
        apart = [name for name in where if run.opened.tensors[name].layer is None]
        self.plans = anchors.plans(self.costs, apart, run.seed)

    @cached_property
    def probe(self) -> Probe:
        return Probe(self.model, self.ids, lambda: self.report(self.now))

    def measure(self) -> list[Measured]:
        """Single matrices, by which the cards are corrected; then whole plans, after which nothing is put back."""
        for number, name in enumerate(self.doubtful):
            self._tell(number, name)
            found = Measured(name, *self._kept(name, partial(self._single, name)))
            self.cards[name] = self.cards[name].measured([found], name)
            self.found.append(found)
        for number, plan in enumerate(self.plans):
            self._tell(len(self.doubtful) + number, "a whole plan")
            total, kl, error = self._kept(f"plan {number}", partial(self._whole, plan))
            self.found.append(Measured("", total, kl))
            self.errors.append(error)
        return self.found

    def _single(self, name: str) -> list[float]:
        return [self.costs[name], anchors.measured(self.probe, self.where[name], self.few)]

    def _whole(self, plan: anchors.Levels) -> list[float]:
        probe = self.probe  # before anything is written: its reference is the unchanged model
        weights = Weights(self.run.opened, report=lambda step: self.report(self.now))
        total = anchors.put(plan, self.cards, self.where, weights.tensor)
        kl = probe.kl_by_sequence(self.where.values())
        error = kl.std(ddof=1) / math.sqrt(len(kl)) / kl.mean() if len(kl) > 1 and kl.mean() > 0 else 0.0
        return [total, float(kl.mean()), float(error)]

    def _tell(self, done: int, what: str) -> None:
        self.now = Progress(done, len(self.doubtful) + len(self.plans), " exact", what)
        self.report(self.now)

    def _kept(self, what: str, measure: Callable[[], list[float]]) -> list[float]:
        """What `measure` gives, from the cache if it is there; the passes it took are counted either way."""
        key = f"{self.run.key} {what}"
        known = self.run.cache.get([key]).get(key)
        if not isinstance(known, list):
            before = self.probe.passes if "probe" in self.__dict__ else 0.0
            values = measure()
            known = [self.probe.passes - before, *values]
            self.run.cache.put({key: known})
        self.passes += known[0]
        return known[1:]
