"""A figure of a text with its standard error, over tokens and over chunks of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over the tokens of a text, or what follows from such means.

    Attributes:
        error: one standard error, tokens taken as independent of each other: what llama-perplexity
            prints after its ±.
        error_by_chunk: the same with only the chunks taken as independent. Tokens of one chunk share
            a topic, so this is the more honest one where there are enough chunks; with fewer than
            about 10 it is itself uncertain, with one there is none (not a number).
    """

    value: float
    error: float
    error_by_chunk: float

    @classmethod
    def of(cls, value: float, influence: np.ndarray) -> Estimate:
        """From the influence of each token, [chunks, tokens], on the value, up to a constant (the delta method).

        For a mean that is the token's own figure; for f(mean(a), mean(b)) it is
        df/da · a + df/db · b. Over tokens this gives llama.cpp's formulas, covariances included.
        """
        chunks = influence.mean(1)
        return cls(float(value), _error(influence.ravel()), _error(chunks))

    @property
    def percent(self) -> Estimate:
        """The same in hundredths."""
        return Estimate(100 * self.value, 100 * self.error, 100 * self.error_by_chunk)

    def __str__(self) -> str:
        digits = 3 if self.value == 0 or abs(self.value) >= 1000 else 4
        return f"{self.value:.{digits}g} ± {self.error:.2g}"


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
