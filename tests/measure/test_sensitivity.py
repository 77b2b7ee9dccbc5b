"""The sensitivity card: against autograd by hand, against exact KL, and when it is cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines import models
from workbench.checkpoint import TensorInfo, names
from workbench.engines import build
from workbench.engines.places import Place, places
from workbench.measure import anchors, fisher, unseen
from workbench.measure import sensitivity as module
from workbench.measure.calibration import calibrate
from workbench.measure.divergence import kl
from workbench.measure.fisher import Fisher
from workbench.measure.inputs import MeanSquares
from workbench.measure.probe import Probe
from workbench.measure.sensitivity import sensitivity_steps

TEXT = "The ferry leaves at six, unless the fog is in, and then it leaves when the fog does; nobody minds. " * 20
ARCHITECTURES = ("llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt_neox", "mixtral", "qwen3_moe")
SMALL = {"tokens": 256, "context": 64, "device": "cpu"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path):
    return models.opened(tmp_path / "model")


def lively(checkpoint):
    """The model with larger weights, so that its predictions are far from even, as a trained model's are."""
    model = build.model_of(checkpoint, dtype="float32", device="cpu")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for place in places(model, checkpoint).values():
            place.part.mul_(4)
    return model


def test_the_sequences_are_spread_over_the_text(checkpoint):
    whole = module.chunks_of(checkpoint, TEXT, 64)
    found = module.sequences_of(checkpoint, TEXT, 256, 64)
    assert found.shape == (4, 64)
    np.testing.assert_array_equal(found[[0, -1]], whole[[0, -1]])


# --- the Fisher information ---------------------------------------------------------------------


def squared_gradients(model, place, ids, labels):
    """sum_s G_s * G_s of one tensor, by a loop over sequences and autograd alone."""
    total = 0
    for sequence, drawn in zip(ids, labels, strict=True):
        logits = model(input_ids=sequence[None]).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, place.parameter)
        total = total + gradient[place.index].double().square()
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_and_column_sums_are_those_of_squared_gradients_by_sequence(architecture, tmp_path, monkeypatch):
    checkpoint = models.opened(tmp_path / "model", architecture)
    model = lively(checkpoint)
    where = places(model, checkpoint)
    assert set(where) == {info.name for info in checkpoint.matrices}
    ids, labels = models.some_ids(2, 12), models.some_ids(2, 12).flip(0, 1)
    monkeypatch.setattr(fisher, "_drawn", lambda likelihood, seed, number: labels[number])
    found = Fisher(model, where, seed=0)
    found.run(list(ids), tmp_path / "kept.npz", lambda step: None)
    for name in list(where)[:: max(1, len(where) // 12)]:
        by_hand = squared_gradients(model, where[name], ids, labels)
        np.testing.assert_allclose(found.rows[name], by_hand.sum(-1), rtol=1e-3, atol=1e-6 * by_hand.sum())
        np.testing.assert_allclose(found.cols[name], by_hand.sum(-2), rtol=1e-3, atol=1e-6 * by_hand.sum())


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt_neox"])
def test_every_tensor_is_found_where_transformers_put_it(architecture, tmp_path):
    checkpoint = models.opened(tmp_path / "model", architecture)
    model = build.model_of(checkpoint, dtype="float32", device="cpu")
    for name, place in places(model, checkpoint).items():
        np.testing.assert_array_equal(place.part.numpy(), checkpoint.read(name))


def test_labels_are_drawn_with_the_models_own_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.2])
    drawn = fisher._drawn(probabilities.log().expand(20_000, 4), seed=1, number=0)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)
    assert shares[2] == 0


def test_importance_is_that_of_the_calibration(checkpoint):
    text = checkpoint.tokenizer.decode(checkpoint.tokenizer(TEXT).input_ids[:256])
    card = wb.sensitivity(checkpoint, text, **SMALL)
    calibration = calibrate(checkpoint, text, tokens=256, context=64)
    assert set(card.importance) == set(calibration.inputs)
    for name, mean in card.importance.items():
        np.testing.assert_allclose(mean, calibration.mean_square(name), rtol=1e-3)


def test_a_product_is_seen_however_it_is_written():
    weights, stack = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (2, 3, 4)))
    where = {"plain": Place("plain", "w", weights, (slice(None), slice(None)))}
    where |= {f"expert {e}": Place(f"expert {e}", "s", stack, (e, slice(None))) for e in range(2)}
    found, x = MeanSquares(where), torch.arange(8.0).reshape(2, 4)
    with found.watching():
        torch.nn.functional.linear(x, weights)
        (2 * x) @ weights.T
        torch.nn.functional.linear(3 * x, stack[1])
    np.testing.assert_allclose(found.mean("plain"), 2.5 * x.square().mean(0))  # (1 + 4) / 2
    np.testing.assert_allclose(found.mean("expert 1"), 9 * x.square().mean(0))
    assert found.mean("expert 0") is None


def test_an_expert_is_judged_by_its_own_tokens_and_an_unseen_one_by_the_least_used(tmp_path):
    checkpoint = models.opened(tmp_path / "model", "mixtral")
    card = wb.sensitivity(checkpoint, TEXT, **SMALL | {"tokens": 64})
    for layer in range(2):
        experts = [
            name for name in card.matrices if f"layers.{layer}.block_sparse_moe.experts" in name and "w2" in name
        ]
        sums = np.array([card.matrices[name].total for name in experts])
        assert (len(experts), sums.min() > 0, len(np.unique(sums)) > 6) == (12, True, True)
        assert set(experts) <= set(card.importance)


def test_an_unseen_expert_is_priced_as_the_least_used_of_its_kind():
    seen, least = (module.MatrixCard(np.full(4, total, np.float32), np.ones(8, np.float32)) for total in (3, 1))
    none = module.MatrixCard(np.zeros(4, np.float32), np.zeros(8, np.float32))
    names = [f"model.layers.0.mlp.experts.{number}.up_proj.weight" for number in range(3)]
    tensors = {name: info(name) for name in names}
    fed = {names[0]: np.full(8, 9.0), names[1]: np.full(8, 5.0)}
    cards, importance = unseen.filled(dict(zip(names, (seen, least, none), strict=True)), fed, tensors)
    assert cards[names[2]].total == least.total
    assert importance[names[2]][0] == 5.0
    stack = module.MatrixCard(np.stack([seen.rows, none.rows, least.rows]), np.ones((3, 8), np.float32))
    (filled,), _ = (list(part.values()) for part in unseen.filled({"blk.0.ffn_up_exps.weight": stack}, {}, tensors))
    np.testing.assert_array_equal(filled.rows[1], least.rows)


def info(name):
    return TensorInfo(name, (4, 8), "F32", 128, Path("model.safetensors"), 0, *names.place(name))


def test_a_gguf_files_rows_are_in_its_own_order(tmp_path):
    weights = tiny.weights(hidden=128)
    card = wb.sensitivity(wb.load(tiny.gguf(tmp_path / "model.gguf", weights, "F32")), TEXT, **SMALL)
    other = wb.sensitivity(wb.load(tiny.folder(tmp_path / "folder", weights, dtype="F32")), TEXT, **SMALL)
    q = other.matrices["model.layers.0.self_attn.q_proj.weight"].rows
    np.testing.assert_allclose(card.matrices["blk.0.attn_q.weight"].rows, tiny.permute(q, 2), rtol=1e-2)


# --- predicted and exact -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_predicted_costs_rank_as_exact_divergences(architecture, tmp_path):
    checkpoint = models.opened(tmp_path / "model", architecture)
    model = lively(checkpoint)
    where = places(model, checkpoint)
    ids = models.some_ids(24, 32)
    sums = Fisher(model, where, seed=0)
    sums.run(list(ids), tmp_path / "kept.npz", lambda step: None)
    cards = {name: module.MatrixCard(sums.rows[name] / ids.numel(), sums.cols[name] / ids.numel()) for name in where}
    predicted = dict(anchors.costs(cards, where))
    names = [name for name in where if predicted[name] > 0][:24]
    probe = Probe(model, ids)
    exact = [anchors.measured(probe, where[name]) for name in names]
    ranks = [np.argsort(np.argsort(each)) for each in ([predicted[name] for name in names], exact)]
    assert np.corrcoef(*ranks)[0, 1] > 0.85
    assert np.median(np.array(exact) / [predicted[name] for name in names]) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_divergence_without_the_layers_before_is_the_whole_models(architecture, tmp_path):
    checkpoint = models.opened(tmp_path / "model", architecture)
    model = lively(checkpoint)
    where, ids = places(model, checkpoint), models.some_ids(2, 24)
    probe = Probe(model, ids)
    with torch.inference_mode():
        before = model(input_ids=ids).logits.flatten(0, 1)
    every = list(where.values())
    for place in (every[0], every[-2], every[-1]):
        changed = anchors.rounded(place.part, 6)
        with probe.changed(place, changed), torch.inference_mode():
            whole = kl(before, model(input_ids=ids).logits.flatten(0, 1)).mean()
            assert probe.kl([place]) == pytest.approx(float(whole), rel=1e-3, abs=1e-7)
    with probe.changed(every[-1], changed), torch.inference_mode():
        alone = kl(before[:24], model(input_ids=ids[:1]).logits[0]).mean()
        assert probe.kl([every[-1]], 1) == pytest.approx(float(alone), rel=1e-3, abs=1e-7)
    assert probe.kl(where.values()) == pytest.approx(0, abs=1e-7)  # everything is back
    assert probe.passes < 1.5 + 3.5 + 1


def test_the_dearest_matrices_are_priced_as_they_were_measured(checkpoint):
    card = wb.sensitivity(checkpoint, TEXT, **SMALL)
    (single,) = [each for each in card.measured if each.tensor]
    assert card.matrices[single.tensor].ratio == pytest.approx(single.kl / single.predicted)
    assert sum(not each.tensor for each in card.measured) == len(anchors.TARGETS) + len(anchors.MIXES)


def test_a_curve_goes_through_its_points():
    points = [module.Measured("", s, 1.5 * s * (1 + s) ** 0.4) for s in (0.02, 0.1, 0.4, 1.0)]
    curve = anchors.fitted(points)
    assert (curve.a, curve.b, curve.spread) == pytest.approx((1.5, 0.4, 0), abs=1e-9)
    assert curve.kl(1e-6) == pytest.approx(1.5e-6, rel=1e-5)  # small errors add up
    assert anchors.fitted(points, noise=0.1).spread == pytest.approx(0.1)
    assert anchors.fitted(points[:1]).b == 0  # one point says nothing of an exponent


# --- prices ----------------------------------------------------------------------------------------


def test_prices_are_the_formula_with_the_formats_own_quantizer_and_importance(checkpoint):
    card = wb.sensitivity(checkpoint, TEXT, **SMALL)
    frame = card.prices(["Q8_0", "Q4_0", "Q4_K"]).frame
    assert list(frame) == [
        *("tensor", "layer", "role", "rows", "cols", "format", "used", "nbytes", "cost", "params"),
    ]
    for row in frame[frame.role.isin(["v_proj", "down_proj", "embed_tokens"])].itertuples():
        weights, used = checkpoint.read(row.tensor), wb.formats.get(row.used)
        lost = weights - used.roundtrip(weights, card.importance.get(row.tensor))
        one = card.matrices[row.tensor]
        form = (one.rows @ lost.astype(np.float64) ** 2 @ one.cols) / one.rows.sum() / 2
        assert row.cost == pytest.approx(one.ratio * form / (1 + form), rel=1e-3)
        assert row.nbytes == used.nbytes(weights.shape)
    assert (frame.used[frame.format == "Q4_K"] == "Q5_0").any()  # 64 columns are no whole block of 256


def test_a_stack_of_experts_is_priced_expert_by_expert(checkpoint):
    random = np.random.default_rng(0)
    rows, cols = random.random((3, 8), np.float32), random.random((3, 64), np.float32)
    error = 1e-3 * random.standard_normal((3, 8, 64)).astype(np.float32)
    stack = module.MatrixCard(rows, cols)
    alone = sum(module.MatrixCard(rows[e], cols[e]).cost(error[e]) for e in range(3))
    assert stack.cost(error) == pytest.approx(alone, rel=1e-5)


def test_pictures_show_the_costs_and_the_measurements(checkpoint):
    card = wb.sensitivity(checkpoint, TEXT, **SMALL)
    prices = card.prices(["Q8_0", "Q4_0"])
    frame = prices.frame[(prices.frame.format == "Q4_0") & (prices.frame.layer == 1)]
    curve = next(trace for trace in prices.by_layer().data if trace.name == "Q4_0")
    assert curve.y[1] == pytest.approx(frame.cost.sum())
    cells = prices.heatmap("Q4_0").data[0]
    at = cells.x.index("v_proj")
    assert 10 ** cells.z[1][at] == pytest.approx(frame.cost[frame.role == "v_proj"].item())
    singles, plans, *_ = card.figure().data
    assert (len(singles.x), len(plans.x)) == (1, 4)
    assert singles.y[0] == next(each.kl for each in card.measured if each.tensor)


# --- the file --------------------------------------------------------------------------------------


def test_a_saved_card_is_the_same_again(checkpoint, tmp_path):
    card = wb.sensitivity(checkpoint, TEXT, **SMALL)
    again = wb.Card.load(card.save(tmp_path / "model.card"), checkpoint)
    assert (again.curve, again.measured, dict(again.provenance)) == (card.curve, card.measured, dict(card.provenance))
    for name, one in card.matrices.items():
        np.testing.assert_array_equal(again.matrices[name].rows, one.rows)
        np.testing.assert_array_equal(again.matrices[name].cols, one.cols)
        assert again.matrices[name].ratio == one.ratio
    assert again.prices("Q4_0").frame.equals(card.prices("Q4_0").frame)


def test_a_card_of_another_model_is_refused(checkpoint, tmp_path):
    path = wb.sensitivity(checkpoint, TEXT, **SMALL).save(tmp_path / "model.card")
    other = models.opened(tmp_path / "other", seed=1)
    with pytest.raises(wb.WorkbenchError, match="another model"):
        wb.Card.load(path, other)


def damaged(raw: bytes, how: str) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    return {
        "cut short": raw[: len(raw) // 2],
        "no card": raw[:8] + raw[8 : 8 + length].replace(b"workbench.card", b"workbench.cart") + raw[8 + length :],
        "a negative figure": raw[:-1] + bytes([raw[-1] | 0x80]),
        "not a number": raw[:-4] + np.float32("nan").tobytes(),
        "another tensor": raw[:8] + raw[8 : 8 + length].replace(b"q_proj", b"x_proj") + raw[8 + length :],
        "a head that is no JSON": raw[:8] + raw[8 : 8 + length].replace(b'{\\"curve', b'[\\"curve') + raw[8 + length :],
    }[how]


@pytest.mark.parametrize(
    "how",
    ["cut short", "no card", "a negative figure", "not a number", "another tensor", "a head that is no JSON"],
)
def test_a_damaged_card_is_an_error_that_names_the_file(how, checkpoint, tmp_path):
    raw = wb.sensitivity(checkpoint, TEXT, **SMALL).save(tmp_path / "model.card").read_bytes()
    broken = tmp_path / "broken.card"
    broken.write_bytes(damaged(raw, how))
    with pytest.raises(wb.WorkbenchError, match=r"broken\.card"):
        wb.Card.load(broken, checkpoint)


# --- cut short, and bad input ----------------------------------------------------------------------


@pytest.mark.parametrize("unit", [" tokens", " exact"])
def test_an_interrupted_card_goes_on_where_it_stopped(unit, checkpoint, tmp_path, monkeypatch):
    whole = wb.sensitivity(checkpoint, TEXT, **SMALL)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "another"))
    steps = sensitivity_steps(checkpoint, TEXT, **SMALL)
    halfway = next(step for step in steps if step.unit == unit and step.fraction > 0.4)
    steps.close()

    read = []
    original = Fisher._add
    monkeypatch.setattr(Fisher, "_add", lambda self, ids, number: read.append(number) or original(self, ids, number))
    again = wb.sensitivity(checkpoint, TEXT, **SMALL)
    assert len(read) <= 4 - (halfway.done // 64 if unit == " tokens" else 4)
    for name, one in whole.matrices.items():
        np.testing.assert_allclose(again.matrices[name].rows, one.rows, rtol=1e-4)
    np.testing.assert_allclose(again.curve, whole.curve, rtol=1e-3)
    assert again.provenance["forwards"] == pytest.approx(whole.provenance["forwards"], abs=2.5)


def test_a_finished_card_is_not_measured_again(checkpoint, monkeypatch):
    first = wb.sensitivity(checkpoint, TEXT, **SMALL)
    monkeypatch.setattr(module.build, "model_of_steps", lambda *_: pytest.fail("the model was loaded again"))
    assert wb.sensitivity(checkpoint, TEXT, **SMALL).curve == first.curve


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("", {}, "empty"),
        ("Too short.", {}, "tokens"),
        (TEXT, {"context": 4096}, "256"),
        (TEXT, {"tokens": 10}, "from 64 on"),
        (TEXT, {"dtype": "float16"}, "overflow"),
        (TEXT, {"device": "cuda:99"}, "cannot be used"),
    ],
    ids=["empty", "too short", "more context than the model has", "too few tokens", "float16", "no such device"],
)
def test_bad_input_is_named(text, settings, said, checkpoint):
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.sensitivity(checkpoint, text, **SMALL | settings)


def test_logits_that_are_not_numbers_are_named(tmp_path):
    weights = tiny.weights(hidden=128)
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    broken = wb.load(tiny.folder(tmp_path / "model", weights, dtype="F32"))
    with pytest.raises(wb.WorkbenchError, match="not finite"):
        wb.sensitivity(broken, TEXT, **SMALL)


def test_bfloat16_gives_nearly_the_same_card(checkpoint):
    wide, narrow = (wb.sensitivity(checkpoint, TEXT, **SMALL, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for name, one in wide.matrices.items():
        assert narrow.matrices[name].total == pytest.approx(one.total, rel=0.5)
