"""A plan being edited: every change against the plan that the public call makes of it, and back again."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.allocation import synthetic
from workbench import formats
from workbench.allocation import plan
from workbench.allocation.draft import Draft
from workbench.exceptions import WorkbenchError

K = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"]
VALUE = "model.layers.1.self_attn.v_proj.weight"


@pytest.fixture(scope="module", params=[synthetic.LLAMA, synthetic.AWKWARD], ids=["llama", "awkward"])
def card(request):
    return synthetic.card(request.param)


@pytest.fixture
def draft(card) -> Draft:
    return Draft(plan(card, K, bits=5), "llama.cpp")


def check(draft: Draft) -> None:
    """The arrays say what the plan says that is made of names."""
    made = draft.plan
    assert made.nbytes == draft.nbytes
    assert made.bits == pytest.approx(draft.bits)
    assert made.predicted.cost == pytest.approx(draft.predicted.cost)
    assert made.predicted.kl == pytest.approx(draft.predicted.kl)


def rerun(draft: Draft):
    """The plan that the code makes, run as it stands."""
    names = {"wb": wb, "card": draft.choices.prices.card, "model": draft.model}
    exec(draft.code, names)
    return names["plan"]


# --- by hand ----------------------------------------------------------------------------------------


def test_a_change_is_priced_as_the_plan_with_that_change(draft: Draft):
    before = draft.plan
    check(draft)
    said = draft.assign(draft.rows(VALUE), "Q8_0")
    assert VALUE in said
    changed = before.with_({VALUE: "Q8_0"})
    assert draft.plan.formats == changed.formats
    assert draft.nbytes == changed.nbytes
    assert draft.predicted.kl == pytest.approx(changed.predicted.kl)
    check(draft)


def test_rows_columns_and_all_are_patterns(draft: Draft):
    for pattern, format in (("*layers.2.*", "Q6_K"), ("*down_proj*", "Q5_K"), ("*", "Q8_0")):
        draft.assign(draft.rows(pattern), format)
        asked = {draft.tariff.tensors[row] for row in draft.rows(pattern)}
        shapes = {info.name: info.shape for info in draft.model.matrices}
        found = draft.plan.formats
        assert all(found[name] == formats.get(format).used_for(shapes[name]) for name in asked)
        check(draft)


def test_a_fallback_is_told():
    draft = Draft(plan(synthetic.card(synthetic.AWKWARD), K, bits=6))
    assert "stored as Q5_0, since the shape does not fit" in draft.assign(draft.rows(VALUE), "Q4_K")
    # of a layer only the matrices whose rows are 576 long
    assert "of them stored as Q5_0" in draft.assign(draft.rows("*layers.1.*"), "Q4_K")


def test_undo_and_redo_go_through_all_states(draft: Draft):
    states = [draft.now]
    for act in (
        lambda: draft.assign(draft.rows(VALUE), "Q8_0"),
        lambda: draft.lock(draft.rows("*layers.0.*")),
        lambda: draft.rule("Q4_K_M"),
        lambda: draft.solve(draft.nbytes),
        lambda: draft.uniform("Q6_K"),
    ):
        act()
        states.append(draft.now)
    for state in reversed(states[:-1]):
        draft.undo()
        assert draft.now is state
    assert not draft.undoable
    assert draft.undo() == "Nothing to be undone"
    for state in states[1:]:
        draft.redo()
        assert draft.now is state
    assert not draft.redoable
    draft.undo()
    draft.assign(draft.rows(VALUE), "Q2_K")
    assert not draft.redoable  # another way was taken


def test_what_changes_nothing_is_no_step(draft: Draft):
    draft.assign(draft.rows(VALUE), "Q8_0")
    now = draft.now
    draft.assign(draft.rows(VALUE), "Q8_0")
    assert draft.now is now


def test_the_last_plan_is_the_last_other_mix(draft: Draft):
    assert draft.last is None
    first = draft.nbytes
    draft.assign(draft.rows("*"), "Q8_0")
    draft.lock(draft.rows(VALUE))
    assert draft.last is not None
    assert draft.last.nbytes == first


# --- refused ------------------------------------------------------------------------------------------


def test_what_the_program_does_not_run_is_refused_with_what_it_runs():
    card = synthetic.card()
    draft = Draft(plan(card, ["INT4", "FP8", "BF16"], bits=9), "llama.cpp")
    with pytest.raises(WorkbenchError, match=r"llama.cpp does not run it") as error:
        draft.assign(draft.rows(VALUE), "INT4")
    assert error.value.allowed == "BF16"
    assert draft.rules.runs("BF16")
    with pytest.raises(WorkbenchError, match=r"llama.cpp does not run it"):
        draft.uniform("FP8")


def test_a_format_without_a_price_is_refused(draft: Draft):
    with pytest.raises(WorkbenchError, match="not asked for its price"):
        draft.assign(draft.rows(VALUE), "IQ4_XS")
    with pytest.raises(WorkbenchError, match="no matrix is selected"):
        draft.assign([], "Q4_K")


def test_what_a_program_leaves_as_it_is_stays_and_says_why():
    draft = Draft(plan(synthetic.card(), ["INT4", "INT8", "BF16"], bits=9.5), "vLLM")
    embedding = draft.rows("*embed*")
    with pytest.raises(WorkbenchError, match="leave it as it is"):
        draft.assign(embedding, "INT4")
    said = draft.assign(draft.rows("*"), "INT4")
    assert "not changed" in said
    assert draft.plan["model.embed_tokens.weight"].name == "BF16"
    check(draft)
    draft.uniform("INT4")  # says nothing of the embedding: it stays as it is in the file
    assert "model.embed_tokens.weight" not in draft.plan.formats
    check(draft)


def test_what_is_multiplied_at_once_is_changed_together():
    draft = Draft(plan(synthetic.card(), ["INT4", "FP8"], bits=7.5), "vLLM")
    with pytest.raises(WorkbenchError, match=r"vLLM keeps it and 2 more as one \(k_proj, q_proj, v_proj\)"):
        draft.assign(draft.rows(VALUE), "FP8")
    draft.assign(draft.rows("model.layers.1.self_attn.[qkv]*"), "FP8")
    assert {draft.plan[f"model.layers.1.self_attn.{each}_proj.weight"].name for each in "qkv"} == {"FP8"}


def test_one_expert_alone_is_refused_and_all_of_a_layer_are_changed():
    draft = Draft(plan(synthetic.experts(), ["Q3_K", "Q4_K", "Q6_K"], bits=4.2), "llama.cpp")
    with pytest.raises(WorkbenchError, match=r"llama.cpp keeps it and 63 more as one \(up_proj\)"):
        draft.assign(draft.rows("model.layers.3.mlp.experts.7.up_proj.weight"), "Q6_K")
    draft.assign(draft.rows("model.layers.3.mlp.experts.*.up_proj.weight"), "Q6_K")
    check(draft)
    draft.lock(draft.rows("model.layers.3.mlp.experts.7.up_proj.weight"))
    assert draft.now.locked.sum() == 64


def test_what_needs_an_importance_that_is_not_there_is_refused():
    draft = Draft(plan(synthetic.card(), ["IQ2_XXS", "Q4_K"], bits=4))
    with pytest.raises(WorkbenchError, match="needs the importance"):
        draft.assign(draft.rows("*embed*"), "IQ2_XXS")


# --- solved around locks --------------------------------------------------------------------------------


def test_the_rest_is_solved_around_what_is_locked_as_wb_plan_does_it(draft: Draft, card):
    draft.assign(draft.rows("*layers.1.*"), "Q8_0")
    draft.lock(draft.rows("*layers.1.*"))
    budget = draft.nbytes - 200_000
    draft.solve(budget)
    assert draft.nbytes <= budget
    wanted = plan(card, K, budget=budget, keep={"*layers.1.*": "Q8_0"})
    assert draft.predicted.kl == pytest.approx(wanted.predicted.kl, rel=1e-3)
    assert all(draft.plan[name] == formats.get("Q8_0") for name in wanted.formats if "layers.1." in name)
    check(draft)


def test_a_budget_that_the_locks_do_not_leave_is_refused_with_the_least(draft: Draft):
    draft.assign(draft.rows("*"), "Q8_0")
    draft.lock(draft.rows("*layers*"))
    now = draft.now
    with pytest.raises(WorkbenchError, match="less than the smallest mix") as error:
        draft.solve(1_000_000)
    assert draft.now is now
    least = int(error.value.allowed.split()[1].replace(",", ""))
    draft.solve(least)
    assert draft.nbytes == least
    with pytest.raises(WorkbenchError):
        draft.solve(least - 1)


def test_locked_matrices_are_left_by_rules_uniform_formats_and_hands(draft: Draft):
    draft.assign(draft.rows(VALUE), "Q8_0")
    draft.lock(draft.rows(VALUE))
    with pytest.raises(WorkbenchError, match="it is locked"):
        draft.assign(draft.rows(VALUE), "Q2_K")
    for act in (
        lambda: draft.rule("Q4_K_M"),
        lambda: draft.uniform("Q3_K"),
        lambda: draft.assign(draft.rows(), "Q5_K"),
    ):
        act()
        assert draft.plan[VALUE].name == "Q8_0"
    draft.lock(draft.rows(VALUE), False)
    draft.assign(draft.rows(VALUE), "Q2_K")


def test_a_sliders_way_is_one_step(draft: Draft):
    draft.assign(draft.rows(VALUE), "Q8_0")
    before = draft.now
    for budget in range(int(draft.nbytes * 0.95), draft.nbytes, draft.nbytes // 100):
        draft.solve(budget)
    draft.undo()
    assert draft.now is before


def test_all_can_be_locked(draft: Draft):
    draft.lock(draft.rows())
    mix = draft.now.mix
    draft.solve(draft.nbytes)
    assert np.array_equal(mix, draft.now.mix)
    nbytes, kl = draft.reach()
    assert nbytes.tolist() == [draft.nbytes]
    assert kl == pytest.approx([draft.predicted.kl])


def test_what_can_be_reached_is_the_front_and_with_locks_never_better(draft: Draft):
    front = draft.front.frame.query("kind == 'front'")
    nbytes, kl = draft.reach()
    assert nbytes.tolist() == front.nbytes.tolist()
    assert draft.span == (nbytes[0], nbytes[-1])
    assert kl == pytest.approx(front.kl.to_numpy())
    draft.assign(draft.rows("*v_proj*"), "Q2_K")
    draft.lock(draft.rows("*v_proj*"))
    around, worse = draft.reach()
    assert len(around) < len(nbytes)
    best = np.interp(around, nbytes, kl)
    inside = (around >= nbytes[0]) & (around <= nbytes[-1])
    assert (worse[inside] >= best[inside] - 1e-12).all()


# --- as code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), "wb.plan(card, ["),
        ((("assign", VALUE, "Q8_0"),), f'.with_({{"{VALUE}": "Q8_0"}})'),
        ((("assign", "*v_proj*", "Q8_0"),), '"model.layers.*.self_attn.v_proj.weight": "Q8_0"'),
        ((("assign", "*layers.2.*", "Q6_K"), ("lock", "*layers.2.*"), ("solve", 0.9)), "keep={"),
        ((("rule", "Q4_K_M"),), 'wb.plan(card, wb.plan_for(model, "Q4_K_M"))'),
        ((("rule", "Q4_K_M"), ("assign", VALUE, "Q2_K")), '**wb.plan_for(model, "Q4_K_M").formats'),
        ((("uniform", "Q6_K"), ("assign", "*down*", "Q2_K")), 'wb.formats.get("Q6_K")'),
    ],
    ids=str,
)
def test_the_code_makes_the_plan(draft: Draft, steps, said: str):
    for name, *given in steps:
        rows = draft.rows(given[0]) if name in ("assign", "lock") else None
        values = [int(draft.nbytes * given[0])] if name == "solve" else given[1:] if rows else given
        getattr(draft, name)(*([rows] if rows else []), *values)
    assert said in draft.code
    again = rerun(draft)
    assert again.formats == draft.plan.formats
    assert again.nbytes == draft.nbytes


def test_the_code_of_a_plan_from_elsewhere_and_of_what_stays_makes_it_too(draft: Draft):
    mixed = {info.name: K[number % 6] for number, info in enumerate(draft.model.matrices)}
    draft.take(wb.plan_for(draft.model, mixed))
    assert rerun(draft).formats == draft.plan.formats
    other = Draft(plan(synthetic.card(), ["INT4", "BF16"], bits=9.5), "vLLM")
    other.uniform("INT4")
    other.lock(other.rows("*embed*"))
    other.solve(other.nbytes + 10_000)
    assert "embed" not in other.code
    assert rerun(other).formats == other.plan.formats


def test_a_pattern_for_layers_does_not_change_the_experts_too():
    draft = Draft(plan(synthetic.experts(), ["Q3_K", "Q4_K", "Q6_K"], bits=4.2), "llama.cpp")
    draft.uniform("Q3_K")
    draft.solve(draft.nbytes)
    draft.assign(draft.rows("*layers.3.mlp.experts.*.up_proj*"), "Q6_K")
    assert '"model.layers.3.mlp.experts.*.up_proj.weight": "Q6_K"' in draft.code
    assert rerun(draft).formats == draft.plan.formats
    draft.assign(draft.rows("*up_proj*"), "Q4_K")
    assert '"model.layers.*.mlp.experts.*.up_proj.weight": "Q4_K"' in draft.code
