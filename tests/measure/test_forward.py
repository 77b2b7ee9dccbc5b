"""Logits in slices against those of one plain forward pass."""

from __future__ import annotations

import pytest
import torch

from tests.engines import models
from workbench.engines import build
from workbench.measure.forward import Predictions


def sliced(model, ids):
    predictions = Predictions(model, "cpu")
    states = predictions.states(ids)
    return torch.stack([torch.cat([predictions.logits(part) for part in each.split(5)]) for each in states])


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_logits_in_slices_are_those_of_a_plain_pass(tmp_path, architecture):
    plain = models.save(tmp_path, architecture)
    ids = models.some_ids()
    with torch.inference_mode():
        whole = plain(input_ids=ids).logits
    torch.testing.assert_close(sliced(plain, ids), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
def test_logits_of_a_model_in_bfloat16_are_not_rounded_to_it(tmp_path, architecture):
    checkpoint = models.opened(tmp_path, architecture)
    found = sliced(build.model_of(checkpoint, dtype="bfloat16"), models.some_ids())
    assert found.dtype == torch.float32
    rounded = found.bfloat16().float()
    assert (found != rounded).float().mean() > 0.9
    streamed = sliced(build.streaming_model_of(checkpoint, dtype="bfloat16"), models.some_ids())
    torch.testing.assert_close(streamed, found)


def test_a_pass_can_be_ended_at_any_module(tmp_path):
    class Enough(Exception):
        pass

    left = iter(range(10))

    def tick():
        if next(left, None) is None:
            raise Enough

    predictions = Predictions(models.save(tmp_path, "llama"), "cpu", tick)
    with pytest.raises(Enough):
        predictions.states(models.some_ids())
