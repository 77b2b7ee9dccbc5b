"""What is known of a model's quality in a format: measured on it, predicted by its card, or published of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.advice.answer import Basis
from workbench.allocation import plan as price
from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.measure.card import Card
from workbench.measure.comparison import Comparison
from workbench.planning import plan_for
from workbench.tasks.result import Benchmark

# Mean KL in nats per token of Llama 3 8B on WikiText-2, from llama.cpp's tools/perplexity/README.md.
PUBLISHED = {
    **{"F16": 0.00055, "Q8_0": 0.00136, "Q6_K": 0.0055, "Q5_K_M": 0.0108},
    **{"Q4_K_M": 0.0313, "Q3_K_M": 0.102, "Q2_K": 0.445},
}
PUBLISHED_OF = "llama.cpp's table for Llama 3 8B"
# Nats per token. Between what Q4_K_M and Q3_K_M cost there lies 0.056, and Q3_K_M is where people begin to complain.
FINE = 0.05  # below this a format is taken as good enough to start with
FELT = 0.1  # above this a cache in fewer bits is not worth what it saves


@dataclass(frozen=True)
class Known:
    """A KL divergence, and where it is from: "measured", "predicted" or "published"."""

    kl: float
    basis: Basis
    said: str


@dataclass(frozen=True)
class Evidence:
    """Everything a caller has measured of one model.

    Attributes:
        comparisons: of candidates against the model itself.
        benchmarks: with the model as reference.
        card: its sensitivity card.
    """

    model: Checkpoint
    comparisons: tuple[Comparison, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    card: Card | None = None

    @classmethod
    def of(cls, model: Checkpoint, measured: Sequence[object], card: Card | None) -> Evidence:
        """Sorted by kind, and only of this model.

        Raises:
            WorkbenchError: something that was not measured by this package, a comparison or card of another model.
        """
        for each in measured:
            if not isinstance(each, Comparison | Benchmark):
                raise WorkbenchError(
                    "measured", f"it holds a {type(each).__name__}", allowed="results of wb.compare and wb.benchmark"
                )
        compared = tuple(each for each in measured if isinstance(each, Comparison))
        for each in compared:
            if each.fingerprints[0] != model.fingerprint:
                raise WorkbenchError(
                    f"the comparison of {each.candidate}",
                    f"its reference is {each.reference}, and not {model.name} as it was opened",
                )
        if card is not None and card.fingerprint != model.fingerprint:
            raise WorkbenchError("card", f"it is of {card.model}, and not of {model.name} as it was opened")
        return cls(model, compared, tuple(each for each in measured if isinstance(each, Benchmark)), card)

    def kl(self, format: str) -> Known | None:
        """What is known of a format: the best there is."""
        for each in self.comparisons:
            if _names(each.candidate, format) and " kv " not in each.candidate:
                return Known(each.kl.value, "measured", f"{each.kl.value:.3g} ± {each.kl.error:.2g}")
        if self.card is not None:
            try:
                found = price(self.card, plan_for(self.model, format)).predicted
                return Known(found.kl, "predicted", f"{found.kl:.3g} ({found.low:.3g} to {found.high:.3g})")
            except WorkbenchError:  # a format that the card cannot price, such as one for an engine alone
                pass
        if format in PUBLISHED:
            return Known(PUBLISHED[format], "published", f"{PUBLISHED[format]:.3g} in {PUBLISHED_OF}")
        return None

    def cache(self, kv: tuple[str, str]) -> Known | None:
        """What was measured of a cache in these types, beside the same weights."""
        kept = "/".join(kv)
        for each in self.comparisons:
            if (
                kept in each.computed[1]
                and kept not in each.computed[0]
                and each.fingerprints[0] == each.fingerprints[1]
            ):
                return Known(each.kl.value, "measured", f"{each.kl.value:.3g} ± {each.kl.error:.2g}")
        return None

    def verdicts(self, format: str) -> Iterable[tuple[str, str]]:
        """(task, verdict) of a format in each benchmark."""
        for found in self.benchmarks:
            for (task, candidate), pair in found.pairs.items():
                if _names(candidate, format):
                    yield task, pair.verdict


def _names(candidate: str, format: str) -> bool:
    """Whether a candidate's name is that of a format, alone or behind the model's."""
    return format.lower() in candidate.lower().replace(",", " ").split()
