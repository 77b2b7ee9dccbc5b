"""Plans against what llama.cpp's own quantizer writes, and what users ask of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import llama_cpp, tiny
from workbench import formats
from workbench.checkpoint import Checkpoint, load
from workbench.exceptions import WorkbenchError
from workbench.planning import ATTENTION_AT_Q8, RECIPES, Plan, exl2_bits, plan_for

RECORDED = json.loads(llama_cpp.RECORDED.read_text())


def types_of(model: Checkpoint, plan: Plan) -> str:
    return llama_cpp.runs({name: str(plan.formats.get(name, "F32")) for name in model.tensors})


@pytest.mark.parametrize("described", llama_cpp.MODELS)
def test_recipes_are_those_of_llama_cpp_tensor_by_tensor_and_byte_by_byte(tmp_path: Path, described: str):
    model = load(llama_cpp.write(tmp_path / "m.gguf", **llama_cpp.MODELS[described]))
    for name, answer in RECORDED[described]["mixed"].items():
        plan = plan_for(model, name)
        assert types_of(model, plan) == answer["types"], name
        assert plan.nbytes == answer["bytes"], name


@pytest.mark.parametrize("described", llama_cpp.FOR_PURE)
def test_one_format_for_all_is_what_llama_cpp_calls_pure(tmp_path: Path, described: str):
    model = load(llama_cpp.write(tmp_path / "m.gguf", **llama_cpp.MODELS[described]))
    for name, answer in RECORDED[described]["pure"].items():
        plan = plan_for(model, formats.get(name))
        assert types_of(model, plan) == answer["types"], name
        assert plan.nbytes == answer["bytes"], name


def test_every_recipe_of_llama_cpp_was_recorded():
    assert {ATTENTION_AT_Q8, *llama_cpp.MIXED} == set(RECIPES)
    assert all(set(answers["mixed"]) == set(llama_cpp.MIXED) for answers in RECORDED.values())
    assert set(RECORDED) == set(llama_cpp.MODELS)


@pytest.fixture
def folder(tmp_path: Path) -> Checkpoint:
    return load(tiny.folder(tmp_path / "m", tiny.weights(hidden=256, layers=9, tied=False)))


def test_a_folder_is_planned_like_the_gguf_made_of_it(tmp_path: Path, folder: Checkpoint):
    made = load(tiny.gguf(tmp_path / "m.gguf", tiny.weights(hidden=256, layers=9, tied=False), "F32"))
    for name in RECIPES:
        here, there = plan_for(folder, name), plan_for(made, name)
        assert {tiny.gguf_name(tensor): format for tensor, format in here.formats.items()} == there.formats
        assert here.nbytes == there.nbytes


def test_attention_at_q8_takes_8_bits_for_attention_and_4_for_the_rest(folder: Checkpoint):
    plan = plan_for(folder, ATTENTION_AT_Q8)
    for info in folder.matrices:
        expected = "Q8_0" if ".self_attn." in info.name else "Q6_K" if info.role == "lm_head" else "Q4_K"
        assert plan[info.name].name == expected


@pytest.mark.parametrize("name", ["NF4", "LLM.int8", "INT4", "FP8"])
def test_embedding_and_head_stay_as_they_are_in_formats_for_gpus(folder: Checkpoint, name: str):
    plan = plan_for(folder, name)
    inner = [info for info in folder.matrices if info.role not in ("embed_tokens", "lm_head")]
    assert list(plan.formats) == [info.name for info in inner]
    stay = sum(info.nbytes for info in folder.tensors.values() if info.name not in plan.formats)
    assert plan.nbytes == stay + sum(formats.get(name).nbytes(info.shape) for info in inner)
    assert plan.bits == pytest.approx(8 * plan.nbytes / folder.params)


def test_the_bytes_of_bf16_are_those_of_the_folder(folder: Checkpoint):
    assert plan_for(folder, "BF16").nbytes == folder.nbytes


def test_a_name_that_is_a_format_and_a_recipe_means_the_recipe_and_the_format_itself_just_that(folder: Checkpoint):
    name = "model.layers.0.mlp.down_proj.weight"
    assert plan_for(folder, "q2_k")[name].name == "Q3_K"
    assert plan_for(folder, formats.get("Q2_K"))[name].name == "Q2_K"


def test_single_tensors_can_be_planned_and_the_others_stay(folder: Checkpoint):
    name = "model.layers.3.mlp.down_proj.weight"
    plan = plan_for(folder, {name: "nf4"})
    assert plan.formats == {name: formats.get("NF4")}
    info = folder.tensors[name]
    assert plan.nbytes == folder.nbytes - info.nbytes + formats.get("NF4").nbytes(info.shape)
    with pytest.raises(WorkbenchError, match="stays as it is"):
        plan["model.norm.weight"]


def test_a_single_tensor_that_does_not_fit_falls_back(tmp_path: Path):
    model = load(tiny.folder(tmp_path / "m", tiny.weights(hidden=64, layers=1)))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert plan_for(model, {name: "Q4_K"})[name].name == "Q5_0"


def test_a_plan_is_kept_for_its_own_model_and_refused_for_another(tmp_path: Path, folder: Checkpoint):
    plan = plan_for(folder, "Q4_K_M")
    assert plan_for(folder, plan) is plan
    other = load(tiny.folder(tmp_path / "other", tiny.weights(hidden=256, layers=2)))
    with pytest.raises(WorkbenchError, match="another model"):
        plan_for(other, plan)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("Q4_K_XL", "Q4_K_M.*NF4"),
        ("", "no recipe or format"),
        ({"lm_head.weigh": "Q8_0"}, "not a tensor"),
        ({"model.norm.weight": "Q8_0"}, "not a matrix"),
        ({"lm_head.weight": "Q9"}, "no format of that name"),
        (None, "no format of that name"),
    ],
    ids=str,
)
def test_a_spec_that_makes_no_sense_is_refused(folder: Checkpoint, spec: object, found: str):
    with pytest.raises(WorkbenchError, match=found):
        plan_for(folder, spec)  # type: ignore[arg-type]


def test_experts_of_a_folder_follow_the_rule_of_their_layer(tmp_path: Path):
    weights = tiny.weights(hidden=256, layers=9, tied=False)
    for layer in range(9):
        matrix = weights.pop(f"model.layers.{layer}.mlp.down_proj.weight")
        for expert in range(2):
            weights[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"] = matrix
    described = {**tiny.llama_config(tiny.weights(hidden=256, layers=9, tied=False)), "num_experts": 2}
    plan = plan_for(load(tiny.folder(tmp_path / "m", weights, config=described)), "Q4_K_M")
    six = {name.split(".")[2] for name, format in plan.formats.items() if "down" in name and format.name == "Q6_K"}
    assert six == {"0", "3", "6", "7", "8"}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_newcomer_is_told_what_a_recipe_is_and_when_to_take_it(recipe):
    assert recipe.summary.endswith(".")
    assert recipe.advice.endswith(".")
    assert recipe.runs_on


def test_the_advice_is_to_start_with_q4_k_m_and_to_take_q8_for_math_and_code():
    assert RECIPES["Q4_K_M"].advice == "Start with this one."
    assert "math and code" in RECIPES["Q8_0"].advice


def test_a_plan_shows_its_mix(folder: Checkpoint):
    shown = repr(plan_for(folder, "Q4_K_M"))
    assert shown.startswith("<Plan Q4_K_M: ")
    assert "Q4_K" in shown
    assert "bits per weight" in shown


def test_a_plan_as_bits_for_exl2(folder: Checkpoint):
    plan = plan_for(folder, {info.name: "Q4_K" for info in folder.matrices if info.layer is not None})
    up, head = "model.layers.0.mlp.up_proj", "lm_head.weight"
    bits = exl2_bits(plan)
    assert len(bits) == 9 * 7 + (1 if head in plan.formats else 0)
    assert bits[up] == 4.5
    mixed = plan_for(folder, {**plan.formats, f"{up}.weight": "Q8_0", head: "Q6_K"})
    assert exl2_bits(mixed)[up] == 8  # its codes have 8
    assert exl2_bits(mixed)["lm_head"] == 6.5625


@pytest.mark.parametrize(
    ("format", "message"),
    [("BF16", "EXL2 quantizes every matrix of a layer"), ("IQ1_S", r"1.5625 bits(?s:.*)2 to 8 for EXL2")],
)
def test_what_exl2_has_not_is_refused_with_the_matrix(folder: Checkpoint, format: str, message: str):
    plan = plan_for(folder, {info.name: "Q4_K" for info in folder.matrices if info.layer is not None})
    name = "model.layers.3.mlp.down_proj.weight"
    with pytest.raises(WorkbenchError, match=rf"{re.escape(name)}: .*{message}"):
        exl2_bits(plan_for(folder, {**plan.formats, name: format}))


def test_the_names_of_a_gguf_become_transformers_for_exl2(tmp_path: Path):
    model = load(tiny.gguf(tmp_path / "m.gguf", tiny.weights(), "F16"))
    bits = exl2_bits(plan_for(model, {info.name: "Q4_K" for info in model.matrices if info.layer is not None}))
    assert "model.layers.1.self_attn.q_proj" in bits
