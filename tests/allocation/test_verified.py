"""A plan held against measurement, on a tiny real model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from workbench.allocation.verified import Verified
from workbench.measure.card import Card

TEXT = "the quick brown fox jumps over the lazy dog, and the hen sees it. " * 12
FRESH = "a heron stands in the reeds; nobody knows what it waits for there. " * 10
K = ["Q2_K", "Q3_K", "Q4_K", "Q6_K"]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    folder = tiny.folder(tmp_path_factory.mktemp("model") / "m", tiny.weights(), dtype="F32")
    return wb.sensitivity(wb.load(folder), TEXT, tokens=256, context=64)


@pytest.fixture(scope="module")
def verified(card: Card) -> Verified:
    return wb.plan(card, K, bits=4.6).verify(FRESH, context=64, tokens=256)


def test_a_plan_is_measured_beside_the_best_single_format_of_no_more_bytes(verified: Verified):
    assert verified.uniform is not None
    assert verified.uniform_measured is not None
    assert verified.uniform.name == "Q4_K"
    assert verified.uniform.nbytes <= verified.plan.nbytes
    card = verified.plan.choices.prices.card
    direct = wb.compare(
        card.checkpoint,
        wb.formats.get("Q4_K"),
        FRESH,
        context=64,
        tokens=256,
        importance=card.importance,
    )
    assert verified.uniform_measured.kl.value == direct.kl.value
    assert list(verified.frame.measured) == [verified.measured.kl.value, direct.kl.value]
    assert "predicted KL" in repr(verified)


def test_a_plan_that_measures_worse_says_so_and_offers_the_other(verified: Verified):
    assert verified.uniform_measured is not None
    tokens = verified.uniform_measured.by_token.copy()
    tokens["kl"] *= 1.5
    beaten = replace(verified, measured=replace(verified.measured, by_token=tokens))
    assert beaten.worse
    assert beaten.best is verified.uniform
    assert "This plan measures worse than Q4_K for all" in repr(beaten)
    assert "verified.best" in beaten._repr_html_()
    tokens["kl"] /= 3
    better = replace(verified, measured=replace(verified.measured, by_token=tokens))
    assert not better.worse
    assert better.best is verified.plan
    assert "50% less" in repr(better)
    assert better.lead is not None
    assert better.lead.value == pytest.approx(np.mean(tokens["kl"]))


def test_a_plan_below_every_single_format_is_measured_alone(card: Card):
    plan = wb.plan(card, ["Q4_K", "Q6_K"], bits=5.5).with_({"*": "Q4_K"})
    alone = plan.verify(FRESH, context=64, tokens=128)
    assert alone.uniform is None  # it is the uniform one itself
    assert not alone.worse
    assert alone.best is plan
