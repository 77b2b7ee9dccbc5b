"""Packed folders changed at random: the weights come finite and in their shape, or a WorkbenchError says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import packed, tiny
from tests.checkpoint.bounds import within_seconds

WEIGHTS = tiny.weights(hidden=64, layers=1)
MODULE = "model.layers.0.mlp.up_proj"
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    8,
    10**20,
    0.5,
    float("nan"),
    "",
    "4",
    [],
    [4],
    {},
    {"a": {}},
    "\0" * 9,
)
TRIES = 60


def changed(random: np.random.Generator, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """One change: of a setting, or of a part's values, shape, type, name or presence."""
    if random.random() < 0.35:
        key = random.choice(
            [*settings, "bits", "group_size", "quant_method", "config_groups", "dynamic", "load_in_8bit"]
        )
        settings[key] = ODD[random.integers(len(ODD))]
        return
    names = [name for name in tensors if name.startswith(MODULE)]
    name = names[random.integers(len(names))]
    array, other = tensors[name], tensors[names[random.integers(len(names))]]
    match random.integers(6):
        case 0:
            raw = bytearray(array.tobytes())
            for place in random.integers(0, len(raw), max(1, len(raw) // 50)):
                raw[place] = random.integers(256)
            tensors[name] = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        case 1:
            tensors[name] = array.reshape(array.shape[::-1])
        case 2:
            tensors[name] = np.ascontiguousarray(array[: random.integers(len(array) + 1)]) if array.ndim else array
        case 3:
            tensors[name] = other
        case 4:
            del tensors[name]
        case _:
            tensors[f"{MODULE}.{random.choice(['scales', 'weight', 'g_idx', 'weight_scale', 'SCB', 'zero'])}"] = array


@pytest.mark.parametrize("kind", packed.KINDS)
def test_random_changes_give_weights_or_a_reason(kind: str, tmp_path: Path) -> None:
    random, whole = np.random.default_rng(7), packed.tensors(kind, WEIGHTS)
    told = 0
    for number in range(TRIES):
        tensors, settings = dict(whole), json.loads(json.dumps(packed.KINDS[kind][1]))
        for _ in range(random.integers(1, 3)):
            changed(random, tensors, settings)
        config = tiny.llama_config(WEIGHTS) | {"quantization_config": settings}
        folder = packed.written(tmp_path / "model", tensors, config, tokenizer=number == 0)
        try:
            with within_seconds(2), np.errstate(all="ignore"):
                model = wb.load(folder)
                for info in model.matrices:
                    weights = model.read(info.name)
                    assert weights.shape == info.shape
                    assert weights.dtype == np.float32
                    if info.packed:
                        assert np.isfinite(weights).all()
        except wb.WorkbenchError:
            told += 1
    assert 0 < told < TRIES
