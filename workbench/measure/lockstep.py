"""Two models over the chunks of a text in lockstep: no logits are kept, and what is finished is in the cache."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import __version__, files, fit
from workbench.engines import keeping, room
from workbench.exceptions import WorkbenchError, need
from workbench.fit.guard import free
from workbench.measure import divergence, forward
from workbench.measure.comparison import TOKEN, Comparison
from workbench.measure.forward import Predictor, Rows
from workbench.measure.pair import Computed
from workbench.measure.text import vocabulary
from workbench.progress import Progress, Steps, in_thread

if TYPE_CHECKING:
    import torch

MARGIN = 1.2  # on the bytes of two models: what runs them needs some beside
EVERY = 0.1  # seconds between two reports of progress, each of which is a chance to cancel
STREAMED = 1 << 13  # tokens read at once by models that are streamed, which read all their weights each time


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that decides a `Comparison`.

    Attributes:
        chunks: token ids, int64 [chunks, context].
    """

    sides: tuple[Computed, Computed]
    chunks: np.ndarray

    @property
    def context(self) -> int:
        return self.chunks.shape[1]

    @property
    def scored(self) -> slice:
        """The positions whose predictions are scored."""
        return slice(self.context // 2, self.context - 1)

    @cached_property
    def code(self) -> str:
        return files.code_version(sys.modules[__name__], divergence, forward, keeping)

    @cached_property
    def keys(self) -> list[str]:
        """The cache key of each chunk; chunks of the same tokens share one."""
        basis = [(side.fingerprint, side.how) for side in self.sides], self.code
        return [files.digest(*basis, chunk.tobytes()) for chunk in self.chunks]

    def known(self) -> dict[str, np.ndarray]:
        """What the cache has of the chunks: key -> `TOKEN` [tokens]."""
        kept = files.cache("divergence").get(self.keys)
        return {key: np.frombuffer(base64.b64decode(str(value)), TOKEN) for key, value in kept.items()}

    def keep(self, number: int, by_token: np.ndarray) -> None:
        files.cache("divergence").put({self.keys[number]: base64.b64encode(by_token.tobytes()).decode()})

    def missing(self) -> list[int]:
        """The numbers of the chunks that are still to be measured, each distinct one once."""
        known = self.known()
        return [number for key, number in {key: n for n, key in enumerate(self.keys)}.items() if key not in known]

    def answer(self) -> Comparison:
        """Of the chunks that are in the cache."""
        known, (first, second) = self.known(), self.sides
        versions = {"torch": need("torch").__version__} | first.versions | second.versions
        return Comparison(
            reference=first.name,
            candidate=second.name,
            fingerprints=(first.fingerprint, second.fingerprint),
            text=files.digest(self.chunks.tobytes()),
            context=self.context,
            by_token=np.stack([known[key] for key in self.keys if key in known]),
            computed=(first.computed, second.computed),
            versions={"workbench": __version__, "measure": self.code, **versions},
            notes=first.checkpoint.notes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that both models take in memory while they are built and run."""
        return int(MARGIN * sum(side.nbytes for side in self.sides)) + 40 * divergence.SLICE

    @property
    def device(self) -> Any:
        """Where logits are held against each other: a GPU, if one has them."""
        return max((side.device for side in self.sides), key=lambda device: device.type != "cpu")


def measure_steps(*tasks: Task) -> Steps[None]:
    """Measure the missing chunks of one task, or of several with the same sides, yielding those done.

    Both models are held in memory where they fit; else those that can be are streamed, and several
    chunks are read at a time.
    """
    task, total = tasks[0], sum(len(each.chunks) for each in tasks)
    streamed = task.nbytes > room.here(task.device).usable
    longest = max(each.context for each in tasks)
    at_once = max(1, STREAMED // longest) if streamed else 1
    what = "comparing " + " and ".join(side.name for side in task.sides)
    done, both = _Done(total - sum(len(each.missing()) for each in tasks), total), list[Predictor]()

    def measure(report: Callable[[Progress], None]) -> None:
        for each in tasks:
            _measure(each, both, at_once, done.to(report))

    try:
        with fit.guarded(task.nbytes, what, str(task.device), instead="dtype='bfloat16', or a shorter context"):
            for side in task.sides:
                both.append((yield from side.open_steps(longest, done.tick, streamed=streamed)))
            yield from in_thread(measure)
    finally:
        for predictor in both:
            predictor.close()
        both.clear()
        free()


def _measure(task: Task, both: Sequence[Predictor], at_once: int, done: _Done) -> None:
    """Both models over the missing chunks, a few at once; each finished chunk is put in the cache."""
    torch = need("torch")
    missing = task.missing()
    for first in range(0, len(missing), at_once):
        numbers = missing[first : first + at_once]
        ids = torch.from_numpy(task.chunks[numbers])
        read = [one.read(ids, task.scored) for one in both]
        for row, number in enumerate(numbers):
            by_token = _by_token(task, number, [each[row] for each in read])
            task.keep(number, by_token)
            done.add(float(by_token["kl"].mean()))


@dataclass
class _Done:
    """Says how far it is, a few times a second, from within a forward pass."""

    chunks: int
    total: int
    report: Callable[[Progress], None] = lambda step: None
    last: float = 0.0
    measured: list[float] = field(default_factory=list)  # mean KL of each chunk, nats per token

    def to(self, report: Callable[[Progress], None]) -> _Done:
        self.report = report
        return self

    def add(self, kl: float) -> None:
        self.chunks += 1
        self.measured.append(kl)

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            so_far = f"KL {np.mean(self.measured):.3g}" if self.measured else ""
            self.report(Progress(self.chunks, self.total, "chunk", so_far))


def _by_token(task: Task, number: int, both: Sequence[Rows]) -> np.ndarray:
    """One chunk's scored positions, of dtype `TOKEN`, from both models' logits of it."""
    torch = need("torch")
    following = torch.from_numpy(task.chunks[number][task.scored.start + 1 :]).to(task.device)
    by_token = np.empty(len(following), TOKEN)
    wide = max(vocabulary(side.checkpoint) or 1 << 18 for side in task.sides)
    for rows in divergence.slices(len(following), wide):
        logits = [one(rows).to(task.device) for one in both]
        _check_logits(task, number, logits)
        nll = [torch.nn.functional.cross_entropy(each, following[rows], reduction="none") for each in logits]
        same = logits[0].argmax(-1) == logits[1].argmax(-1)
        for name, values in zip(TOKEN.names or (), (divergence.kl(*logits), *nll, same), strict=True):
            by_token[name][rows] = values.cpu().numpy()
    return by_token


def _check_logits(task: Task, number: int, logits: Sequence[torch.Tensor]) -> None:
    for side, each in zip(task.sides, logits, strict=True):
        if not each.amax(-1).isfinite().all():
            raise WorkbenchError(
                f"{side.name}, chunk {number + 1} of {len(task.chunks)}",
                "its logits are not finite numbers",
                do="compare in dtype='float32'; if they are so too, the weights or the format are damaged",
            )
    widths = [each.shape[-1] for each in logits]
    if widths[0] != widths[1]:
        first, second = (side.name for side in task.sides)
        raise WorkbenchError(second, f"it predicts {widths[1]} tokens, and {first} predicts {widths[0]}")
