"""What users ask of mixed precision: budgets, pins, matrices kept together, changes, and words for what cannot be."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.allocation import synthetic
from workbench import WorkbenchError, formats, memory
from workbench.allocation import plan
from workbench.checkpoint import load
from workbench.engines.weights import Weights
from workbench.planning import RECIPES, Plan, plan_for
from workbench.writing import export

K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
VLLM = ("INT4", "INT8", "FP8")


@pytest.fixture(scope="module")
def card() -> synthetic.MadeUp:
    return synthetic.card()


@pytest.mark.parametrize("config", [synthetic.LLAMA, synthetic.AWKWARD], ids=["hidden 512", "hidden 576"])
@pytest.mark.parametrize("bits", [4.2, 4.9, 6.1])
def test_a_mix_keeps_its_budget_and_beats_everything_of_no_more_bytes(config: dict, bits: float):
    card = synthetic.card(config)
    mix = plan(card, K, bits=bits)
    assert mix.bits <= bits
    frame = mix.front().frame
    others = frame[frame.kind.isin(["uniform", "rule", "front"]) & (frame.nbytes <= mix.nbytes)]
    assert len(others) > 1
    assert mix.predicted.kl <= others.kl.min() * 1.001
    counted = plan_for(card.checkpoint, dict(mix.formats))
    assert mix.nbytes == counted.nbytes


def test_a_budget_is_said_in_bytes_units_or_bits(card):
    params = card.checkpoint.params
    asked = [plan(card, K, budget=9_000_000), plan(card, K, budget="9 MB"), plan(card, K, budget="0.009GB")]
    assert {each.nbytes for each in asked} == {asked[0].nbytes}
    assert plan(card, K, budget="9 MiB").nbytes > 9_000_000
    assert plan(card, K, bits=5).nbytes <= 5 * params / 8


def test_fallbacks_are_priced_at_their_own_bytes_and_cost():
    card = synthetic.card(synthetic.AWKWARD)
    mix = plan(card, ["Q4_K", "Q6_K"], bits=6)
    names = {used.name for used in mix.formats.values()}
    assert names & {"Q5_0", "Q8_0"}
    frame = mix.choices.prices.frame.set_index(["tensor", "used"])
    rows = frame.loc[[(name, used.name) for name, used in mix.formats.items()]]
    assert mix.predicted.cost == pytest.approx(rows.cost.sum())
    vectors = sum(4 * info.params for info in card.checkpoint.tensors.values() if len(info.shape) == 1)
    assert mix.nbytes == rows.nbytes.sum() + vectors


def test_the_prediction_is_the_cards_curve_with_its_band(card):
    predicted = plan(card, K, bits=4.5).predicted
    a, b, spread = card.curve
    assert predicted.kl == pytest.approx(a * predicted.cost * (1 + predicted.cost) ** b)
    assert predicted.high / predicted.kl == pytest.approx(math.exp(2 * spread))
    assert predicted.low * predicted.high == pytest.approx(predicted.kl**2)
    assert predicted.perplexity == pytest.approx(math.exp(predicted.kl))
    assert "predicted KL" in repr(plan(card, K, bits=4.5))


def test_pinned_matrices_keep_their_format_and_the_last_pattern_counts(card):
    mix = plan(card, K, bits=4.5, keep={"*v_proj*": "Q8_0", "*layers.0*v_proj*": "IQ4_XS"})
    values = [used.name for name, used in mix.formats.items() if "v_proj" in name]
    assert values == ["IQ4_XS", "Q8_0", "Q8_0", "Q8_0"]
    assert mix.bits <= 4.5


def test_matrices_kept_together_have_one_format_in_each_layer(card):
    free = plan(card, K, bits=4.5)
    bound = plan(card, K, bits=4.5, together=["*[qkv]_proj*", "*k_proj*", "*mlp*"])
    for layer in range(4):
        for part in ("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "mlp.gate_proj mlp.up_proj mlp.down_proj"):
            assert len({bound[f"model.layers.{layer}.{name}.weight"] for name in part.split()}) == 1
    assert bound.predicted.kl > free.predicted.kl


def test_what_vllm_multiplies_at_once_is_kept_together_unless_the_user_says_otherwise(card):
    mix = plan(card, VLLM, bits=9)  # with an embedding of 16 bits
    layers = [f"model.layers.{layer}" for layer in range(4)]
    for at in layers:
        assert len({mix[f"{at}.self_attn.{role}_proj.weight"] for role in "qkv"}) == 1
        assert len({mix[f"{at}.mlp.{role}_proj.weight"] for role in ("gate", "up")}) == 1
    free = plan(card, VLLM, bits=9, together=[])
    assert any(len({free[f"{at}.self_attn.{role}_proj.weight"] for role in "qkv"}) > 1 for at in layers)
    assert "model.embed_tokens.weight" not in mix.formats


def test_llama_cpp_stacks_the_experts_of_a_layer():
    mix = plan(synthetic.experts(), K, bits=5)
    for layer in (0, 11):
        for role in ("gate_proj", "down_proj"):
            names = [f"model.layers.{layer}.mlp.experts.{expert}.{role}.weight" for expert in range(64)]
            assert len({mix[name] for name in names}) == 1
    assert mix.bits <= 5
    assert len(set(mix.formats.values())) > 1


def test_a_model_of_80_layers_is_planned_within_its_budget():
    mix = plan(synthetic.card(synthetic.SEVENTY), K, budget="40 GB")
    assert 39.99e9 < mix.nbytes <= 40e9
    assert mix.uniform is not None
    assert mix.predicted.kl < mix.uniform.predicted.kl


def test_a_plan_brings_its_model_and_the_importance_it_was_priced_with(tmp_path: Path):
    model = load(tiny.gguf(tmp_path / "source.gguf", tiny.weights(), "F32"))
    importance = {info.name: np.linspace(0.1, 3, info.shape[1], dtype=np.float32) for info in model.matrices}
    said = {"tokens": 1000, "text_hash": "0123abcd"}
    mix = plan(synthetic.MadeUp(model, {}, importance, synthetic.CURVE, (), said), K, bits=5)
    made = export(mix, tmp_path / "mixed.gguf")
    assert made.data == mix.nbytes == memory(mix).weights
    written, weighed = load(made.path), 0
    for name, used in mix.formats.items():
        expected = used.roundtrip(model.read(name), importance[name])
        weighed += not np.array_equal(expected, used.roundtrip(model.read(name)))
        assert np.array_equal(written.read(name), expected)
        assert np.array_equal(Weights(model, mix).array(name), expected)  # which wb.run and wb.compare use
    assert weighed
    assert "1,000 tokens" in written.metadata["quantize.imatrix.dataset"]
    assert not np.array_equal(Weights(model, mix, {}).array(name), expected)


# --- changes and rules ------------------------------------------------------------------------------


def test_an_edited_plan_has_the_bytes_and_kl_of_a_plan_made_so(card):
    mix = plan(card, K, bits=4.5)
    name = "model.layers.2.mlp.down_proj.weight"
    edited = mix.with_({"*down_proj*": "Q8_0", name: "Q2_K"})
    assert [edited[name].name, edited["model.layers.1.mlp.down_proj.weight"].name] == ["Q2_K", "Q8_0"]
    again = plan(card, {**mix.formats, **edited.formats})
    assert (edited.nbytes, edited.predicted.kl) == (again.nbytes, pytest.approx(again.predicted.kl))
    assert mix[name] == plan(card, K, bits=4.5)[name]  # the first plan is as it was
    assert edited.name == edited.with_({name: "Q4_K"}).name


@pytest.mark.parametrize("name", RECIPES)
def test_named_rules_are_priced_as_they_are(card, name: str):
    rule = plan(card, name)
    assert rule.formats == plan_for(card.checkpoint, name).formats
    assert rule.nbytes == plan_for(card.checkpoint, name).nbytes
    assert rule.predicted.kl > 0


def test_uniform_formats_and_rules_lie_on_the_picture_with_the_front(card):
    front = plan(card, K, bits=4.5).front()
    by_kind = front.frame.groupby("kind").name.apply(set)
    assert by_kind["uniform"] == set(K)
    assert by_kind["rule"] == set(RECIPES)
    assert by_kind["plan"] == {"mix of 4.50 bits"}
    best = front.frame[front.frame.kind == "front"]
    assert best.nbytes.is_monotonic_increasing
    assert best.kl.is_monotonic_decreasing
    smallest, largest = best.iloc[0], best.iloc[-1]
    assert smallest["nbytes"] == plan_for(card.checkpoint, formats.get("Q2_K")).nbytes
    assert largest["nbytes"] == plan_for(card.checkpoint, formats.get("Q8_0")).nbytes


def test_a_priced_plan_goes_where_a_plan_goes(card):
    mix = plan(card, K, bits=4.5)
    assert plan_for(card.checkpoint, mix) is mix
    fit = memory(synthetic.LLAMA, mix, context=512)
    assert fit.weights == mix.nbytes


def test_its_table_adds_up(card):
    mix = plan(card, K, bits=4.5)
    assert mix.table.cost.sum() == pytest.approx(mix.predicted.cost)
    assert mix.table.share.sum() == pytest.approx(1)
    assert len(mix.table) == len(mix.formats)


# --- what cannot be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": 1_000_000}, r"from [\d,]+ bytes \(.*2\.6\d+ bits"),
        ({"budget": "9 MB", "bits": 4.5}, "both budget"),
        ({}, "neither budget nor bits"),
        ({"budget": "9 parsecs"}, "no size"),
        ({"budget": "-1 MB"}, "no size"),
        ({"budget": True}, "no size"),
        ({"bits": math.nan}, "no number of bits"),
        ({"bits": -4}, "no number of bits"),
        ({"bits": 4.5, "keep": {"*foo*": "Q8_0"}}, "no matrix of"),
        ({"bits": 4.5, "keep": {"*v_proj*": "Q9"}}, "no format of that name"),
        ({"bits": 4.5, "together": ["*foo*"]}, "no matrix has such a name"),
        ({"bits": 4.5, "together": "*mlp*"}, "one pattern"),
        ({"formats": ["Q9"], "bits": 4.5}, "no format of that name"),
        ({"formats": ["Q4_K", "NF4"], "bits": 4.5}, "no program runs them in one model"),
        ({"formats": ["IQ2_XXS"], "bits": 4.5}, "needs the importance"),
        ({"formats": {"a": "Q4_K"}, "bits": 4.5}, "formats to choose from"),
        (
            {"bits": 6, "keep": {"*layers.0*q_proj*": "Q8_0", "*layers.0*k_proj*": "Q4_K"}, "together": ["*attn*"]},
            "pin",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:40],
)
def test_what_makes_no_sense_is_refused_with_what_would(card, asked: dict, said: str):
    with pytest.raises(WorkbenchError, match=said):
        plan(card, **asked)


def test_an_embedding_without_importance_may_have_the_formats_that_need_none(card):
    mix = plan(card, ["IQ2_XXS", "Q4_K"], bits=3)
    assert mix["model.embed_tokens.weight"].name == "Q4_K"


def test_a_change_that_was_not_priced_or_matches_nothing_is_refused(card):
    mix = plan(card, K, bits=4.5)
    with pytest.raises(WorkbenchError, match="not asked for its price") as error:
        mix.with_({"*v_proj*": "IQ4_XS"})
    assert "Q4_K" in error.value.allowed
    with pytest.raises(WorkbenchError, match="no matrix of"):
        mix.with_({"*foo*": "Q4_K"})


def test_a_plan_of_another_model_is_not_priced(card):
    other = synthetic.card(synthetic.AWKWARD)
    with pytest.raises(WorkbenchError, match="another model"):
        plan(card, plan(other, K, bits=5))


# --- kept -------------------------------------------------------------------------------------------


def test_a_plan_comes_back_from_json(card):
    mix = plan(card, K, bits=4.5)
    again = Plan.from_json(mix.to_json(), card.checkpoint)
    assert (again.formats, again.nbytes, again.name, again.model) == (mix.formats, mix.nbytes, mix.name, mix.model)
    assert plan(card, again).predicted.kl == pytest.approx(mix.predicted.kl)


def test_a_plan_of_another_model_is_read_only_if_asked_for(card):
    text = plan(card, K, bits=4.5).to_json()
    other = synthetic.card({**synthetic.LLAMA, "max_position_embeddings": 1024}).checkpoint
    with pytest.raises(WorkbenchError, match="another model"):
        Plan.from_json(text, other)
    assert Plan.from_json(text, other, anyway=True).model == other.fingerprint
    with pytest.raises(WorkbenchError, match="not a tensor"):
        Plan.from_json(text, synthetic.card({**synthetic.LLAMA, "num_hidden_layers": 2}).checkpoint, anyway=True)


@pytest.mark.parametrize(
    "change",
    [
        ('"workbench.plan": 1', '"workbench.plan": 2'),
        ('"workbench.plan": 1', '"workbench.plan": true'),
        ('"workbench.plan": 1', '"other": 1'),
        ('"Q2_K": [', '"Q9": ['),
        ('"Q2_K": [', '"Q2_K": [], "Q2_K": ['),
        ('"Q2_K": [', '"Q2_K": 3, "Q3_K": ['),
        ('"model.layers.0', '"../model.layers.0'),
        ('"name": "', '"name": 3, "other": "'),
        ('"formats": {', '"formats": [], "other": {'),
        ("{", "{" + '"a": ' + "[" * 100),
        ("{", "[{"),
    ],
    ids=str,
)
def test_hostile_json_is_refused(card, change: tuple[str, str]):
    text = plan(card, formats.get("Q2_K")).to_json()
    assert change[0] in text
    with pytest.raises(WorkbenchError):
        Plan.from_json(text.replace(*change, 1), card.checkpoint, anyway=True)


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "[" * 200_000, " " * (4 << 20), b"{}", None], ids=repr)
def test_what_is_no_json_of_a_plan_is_refused(card, text: object):
    with pytest.raises(WorkbenchError):
        Plan.from_json(text, card.checkpoint)  # type: ignore[arg-type]
