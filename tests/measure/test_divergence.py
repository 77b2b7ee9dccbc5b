"""KL divergence against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from workbench.measure import divergence
from workbench.measure.divergence import kl


def logits(positions=6, vocabulary=5000, seed=0):
    return 3 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))


def by_definition(reference, candidate):
    p, q = reference.double().log_softmax(-1), candidate.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1, 30])
def test_kl_is_what_its_definition_says_in_float64(noise):
    reference, change = logits(), logits(seed=1) / 3
    candidate = reference + noise * change + 5  # a constant changes nothing
    exact = by_definition(reference, candidate)
    assert kl(reference, candidate).tolist() == pytest.approx(exact.tolist(), rel=1e-4, abs=1e-9)
    assert kl(reference.double(), candidate.double()).tolist() == pytest.approx(exact.tolist(), rel=1e-9)


def test_a_model_against_itself_is_zero():
    assert kl(logits(), logits()).tolist() == [0] * 6
    assert kl(logits(), logits() + 40).abs().max() < 1e-9


def test_slices_of_positions_change_nothing(monkeypatch):
    whole = kl(logits(), logits(seed=1))
    monkeypatch.setattr(divergence, "SLICE", 12_000)
    assert kl(logits(), logits(seed=1)).tolist() == pytest.approx(whole.tolist(), rel=1e-6)
    assert kl(logits()[:0], logits()[:0]).shape == (0,)


def test_tokens_without_any_chance_count_as_the_definition_says():
    never = -torch.inf
    reference = torch.tensor([[0.0, never, 1.0], [0.0, never, 1.0], [0.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]])
    candidate = torch.tensor([[0.0, never, 1.0], [0.0, 50.0, 1.0], [0.0, never, 0.0], [0.0, 0.0, 0.0]])
    found = kl(reference, candidate)
    assert found[0] == 0
    assert found[1] == pytest.approx(50 - torch.tensor([0.0, 1.0]).logsumexp(0).item(), rel=1e-6)
    assert found[2] == torch.inf
    assert found[3].isnan()


def test_its_gradient_is_the_difference_of_the_distributions():
    reference, candidate = logits(3, 40), logits(3, 40, seed=1).requires_grad_()
    kl(reference, candidate).sum().backward()
    torch.testing.assert_close(candidate.grad, candidate.detach().softmax(-1) - reference.softmax(-1))
