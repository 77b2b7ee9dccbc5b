"""KL divergence on the reference's own replies: how far a candidate is from it on the way it really went.

Every reply of the reference is read by both models after its question (teacher-forced), and their predictions of
each of its tokens are held against each other. A candidate that would never have said a word otherwise has 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench import files
from workbench.engines import room
from workbench.exceptions import WorkbenchError
from workbench.measure.estimate import Estimate
from workbench.measure.lockstep import Task as Texts
from workbench.measure.lockstep import measure_steps
from workbench.measure.pair import Computed, check_tokens, check_vocabularies
from workbench.progress import Steps
from workbench.tasks.asking import Said
from workbench.tasks.candidates import Contender

Asked = Sequence[Sequence[Said]]  # what the reference said, by task and example


@dataclass(frozen=True, eq=False)
class Forced(Texts):
    """One question with the reference's reply, of which the reply is scored.

    Attributes:
        prompt: tokens of the question.
    """

    prompt: int

    @property
    def scored(self) -> slice:
        return slice(self.prompt - 1, self.context - 1)

    @cached_property
    def keys(self) -> list[str]:
        return [files.digest(key, self.prompt) for key in super().keys]


def divergences_steps(
    reference: Contender, candidate: Contender, said: Asked
) -> Steps[tuple[list[Estimate | None], str]]:
    """Of every task, KL(reference‖candidate) in nats per token of the reference's replies, and why there is none."""
    first, second = reference.computed(), candidate.computed()
    if first is None or second is None:
        return [None] * len(said), ""
    texts = {
        (place, number): _forced(first, second, one)
        for place, answers in enumerate(said)
        for number, one in enumerate(answers)
    }
    found = {where: text for where, text in texts.items() if text is not None}
    if not found:
        return [None] * len(said), ""
    try:
        check_vocabularies(first, second)
        check_tokens(first, second, np.concatenate([text.chunks[0] for text in found.values()]))
    except WorkbenchError as reason:
        return [None] * len(said), f"no KL divergence: {reason.found}"
    missing = [text for text in found.values() if text.missing()]
    if missing:
        if missing[0].nbytes > room.here(missing[0].device).usable:
            return [None] * len(said), "no KL divergence: both models do not fit in memory at once"
        yield from measure_steps(*missing)
    made: list[Estimate | None] = []
    for place in range(len(said)):
        by_text = [next(iter(text.known().values()))["kl"] for (task, _), text in found.items() if task == place]
        made.append(_mean(by_text))
    return made, ""


def _forced(first: Computed, second: Computed, said: Said) -> Forced | None:
    reply = said.reply
    if reply is None or not reply.token_ids or not said.prompt:
        return None
    ids = np.array([*said.prompt, *reply.token_ids], np.int64)
    return Forced((first, second), ids[None], len(said.prompt))


def _mean(by_text: Sequence[np.ndarray]) -> Estimate | None:
    """The mean over tokens; its error with tokens, and with only the replies, taken as independent."""
    if not by_text:
        return None
    tokens = np.concatenate(by_text).astype(np.float64)
    sums, counts = (np.array([part(each) for each in by_text], float) for part in (np.sum, np.size))
    value, n = tokens.mean(), len(by_text)
    error = tokens.std(ddof=1) / len(tokens) ** 0.5 if len(tokens) > 1 else float("nan")
    spread = np.square(sums - value * counts).sum() * n / (n - 1) if n > 1 else float("nan")
    return Estimate(float(value), float(error), float(spread**0.5 / counts.sum()))
