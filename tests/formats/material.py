"""Weights and importances for tests: what real models hold, and the corners that break codecs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SHAPES = ((1, 256), (3, 768), (2, 512))


def matrices(rows: int, cols: int) -> Iterator[tuple[str, np.ndarray]]:
    """Named float32 matrices [rows, cols]."""
    random = np.random.default_rng(rows * 1000 + cols)
    bell = random.normal(size=(rows, cols))
    some = {
        "bell curve": bell * 0.02,
        "heavy tails": random.standard_t(2, size=(rows, cols)) * 0.05,
        "mostly zero": bell * (random.random((rows, cols)) < 0.02),
        "one outlier": np.where(np.arange(cols) == 7, 300.0, bell * 0.01),
        "whole steps": random.integers(-8, 8, (rows, cols)) * 0.01,
        "zeros": np.zeros((rows, cols)),
        "one positive value": np.full((rows, cols), 0.37),
        "one negative value": np.full((rows, cols), -0.37),
        "denormals": bell * 1e-40,
        "large": np.clip(bell * 1e3, -3000, 3000),
        "all sizes": bell * 10.0 ** random.integers(-6, 3, (rows, cols)),
    }
    for name, weights in some.items():
        yield name, weights.astype(np.float32)


def importances(cols: int) -> Iterator[tuple[str, np.ndarray]]:
    """Named importances float32 [cols]."""
    random = np.random.default_rng(cols)
    some = {
        "even": np.ones(cols),
        "spread": random.random(cols),
        "over many sizes": np.exp(4 * random.normal(size=cols)),
        "a dead block": np.where(np.arange(cols) < 32, 0, random.random(cols)),
        "all dead": np.zeros(cols),
        "tiny": random.random(cols) * 1e-38,
        "massive activations": np.where(np.arange(cols) == 3, 1e7, random.random(cols)),
    }
    for name, importance in some.items():
        yield name, importance.astype(np.float32)
