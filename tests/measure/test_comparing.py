"""`wb.compare`: what can be compared, what is kept, what is refused, how it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines import models
from workbench import fit, formats
from workbench.engines import build
from workbench.measure import lockstep
from workbench.measure.calibration import calibrate
from workbench.measure.comparing import compare_so_far, compare_steps
from workbench.measure.estimate import Estimate
from workbench.measure.text import chunks_of

TEXT = "A lamp in a window, a dog in the lane, and the long blue hour before the first of the snow. " * 8
CONTEXT = 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows every format fits."""
    return wb.load(tiny.folder(tmp_path_factory.mktemp("models") / "wide", tiny.weights(hidden=256), dtype="F32"))


def compared(reference, candidate, text=TEXT, **settings):
    return wb.compare(reference, candidate, text, **{"context": CONTEXT} | settings)


def test_a_model_against_itself_has_no_divergence(model):
    found = compared(model, model)
    assert found.kl.value == pytest.approx(0, abs=1e-9)
    assert (found.same_top.value, found.ratio.value, found.rms_delta_p.value) == (1, 1, 0)


def test_the_second_half_of_every_chunk_is_scored_by_two_plain_passes(model):
    found = compared(model, "INT4")
    ids = torch.from_numpy(chunks_of(model, TEXT, CONTEXT))
    plan = wb.plan_for(model, "INT4")
    both = [build.model_of(model, each, dtype="float32")(input_ids=ids).logits.detach() for each in (None, plan)]
    p, q = (each[:, 32:63].double().log_softmax(-1) for each in both)
    following = ids[:, 33:, None]
    np.testing.assert_allclose(found.by_token["kl"], (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.by_token["nll_candidate"], -q.gather(-1, following)[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(found.by_token["same_top"], p.argmax(-1) == q.argmax(-1))
    assert found.frame().position.min() == 33
    assert found.scored == len(ids) * 31


def test_a_candidate_is_a_name_a_format_a_plan_or_what_load_takes(model, tmp_path):
    by_name = compared(model, "q8_0")
    for same in ("Q8_0", formats.get("Q8_0"), wb.plan_for(model, "Q8_0")):
        np.testing.assert_array_equal(compared(model, same).by_token, by_name.by_token)
    some = compared(model, {"model.layers.0.mlp.down_proj.weight": "Q2_K"})
    assert some.kl.value > by_name.kl.value
    models.save(tmp_path / "other", "llama", seed=1)
    for other in (tmp_path / "other", str(tmp_path / "other"), wb.load(tmp_path / "other")):
        assert compared(model, other).kl.value > some.kl.value


def test_an_importance_is_given_to_the_formats_that_use_it(wide):
    importance = calibrate(wide, TEXT, tokens=256, context=128).importance()
    one = {"model.layers.0.mlp.down_proj.weight": "Q2_K"}
    assert compared(wide, one, importance=importance).kl.value != compared(wide, one).kl.value
    with pytest.raises(wb.WorkbenchError, match="importance"):
        compared(wide, "IQ2_XXS")


def test_models_that_do_not_fit_are_streamed_with_the_same_figures(model, monkeypatch, tmp_path):
    whole = compared(model, "INT4")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "another"))
    small = fit.Device("small", "cpu", 1000, 1000, "for a test")
    monkeypatch.setattr(lockstep.room, "here", lambda device: small)
    monkeypatch.setattr(lockstep, "STREAMED", 3 * CONTEXT)
    monkeypatch.setattr(build, "model_of_steps", lambda *_, **__: pytest.fail("a whole model was built"))
    streamed = compared(model, "INT4")
    np.testing.assert_allclose(streamed.by_token["kl"], whole.by_token["kl"], rtol=1e-3, atol=1e-9)


def test_memory_that_runs_out_is_told_with_the_estimate(model, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("tried to allocate much")

    monkeypatch.setattr(lockstep, "_by_token", fails)
    with pytest.raises(fit.DoesNotFit, match="comparing model and INT4"):
        compared(model, "INT4")


def test_an_interrupted_comparison_keeps_its_chunks_and_goes_on(model, monkeypatch):
    assert compare_so_far(model, "INT4", TEXT, context=CONTEXT) is None
    steps = compare_steps(model, "INT4", TEXT, context=CONTEXT)
    measured = []
    original = lockstep._by_token
    monkeypatch.setattr(
        lockstep, "_by_token", lambda task, number, *a: measured.append(number) or original(task, number, *a)
    )
    monkeypatch.setattr(lockstep, "EVERY", 0.0)
    for step in steps:
        if step.unit == "chunk" and step.done >= 3:
            break
    steps.close()
    kept = compare_so_far(model, "INT4", TEXT, context=CONTEXT)
    assert 3 <= kept.chunks < len(chunks_of(model, TEXT, CONTEXT))
    measured.clear()
    whole = compared(model, "INT4")
    assert len(measured) == whole.chunks - kept.chunks
    np.testing.assert_array_equal(whole.by_token[: kept.chunks], kept.by_token)
    measured.clear()
    compared(model, "INT4")
    assert measured == []


def test_what_other_weights_or_settings_gave_is_not_taken_from_the_cache(model, tmp_path):
    found = compared(model, "INT4")
    other = models.opened(tmp_path / "other", rms_norm_eps=1e-3)
    assert compared(other, "INT4").kl != found.kl
    assert compared(model, "INT8").kl != found.kl
    assert compared(model, "INT4", dtype="bfloat16").kl != found.kl


def broken(tmp_path):
    weights = tiny.weights(hidden=256)
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    return wb.load(tiny.folder(tmp_path / "broken", weights, dtype="F32"))


def test_logits_that_are_not_numbers_name_the_model_and_the_chunk(wide, tmp_path):
    with pytest.raises(wb.WorkbenchError, match=r"broken, chunk 1 of \d+: its logits are not finite"):
        compared(wide, broken(tmp_path))


def test_models_with_other_vocabularies_are_refused_with_their_sizes(model, tmp_path):
    fewer = models.opened(tmp_path / "fewer", vocab_size=260)
    with pytest.raises(wb.WorkbenchError, match=r"it knows 260 tokens, and model knows 264"):
        compared(model, fewer)


def test_a_vocabulary_of_the_same_size_with_other_tokens_is_refused(model, tmp_path):
    folder = tmp_path / "other"
    models.save(folder, "llama")
    file = folder / "tokenizer.json"
    file.write_text(
        file.read_text().replace('"a": 67', '"x": 67').replace('"b": 68', '"a": 68').replace('"x": 67', '"b": 67')
    )
    other = wb.load(folder)
    assert other.tokenizer.convert_ids_to_tokens(67) != model.tokenizer.convert_ids_to_tokens(67)
    with pytest.raises(wb.WorkbenchError, match="of the text's"):
        compared(model, other)


def test_bad_input_is_named_before_a_model_is_built(wide, model, monkeypatch):
    monkeypatch.setattr(build, "model_of_steps", lambda *_, **__: pytest.fail("a model was built"))
    for candidate, settings, said in (
        ("Q8_0", {"text": ""}, "empty"),
        ("Q8_0", {"text": "Too short."}, "only 10 tokens"),
        ("Q8_0", {"context": 4096}, "512"),
        ("Q8_0", {"context": 2}, "none to score"),
        ("Q8_0", {"dtype": "int3"}, "int3"),
        ("Q9_X", {}, "no recipe or format"),
        ("IQ1_M", {}, "not made here"),
        (wb.plan_for(model, "Q8_0"), {}, "another model"),
        (Path("there/is/none"), {}, "there/is/none"),
        (7, {}, "it is a int"),
    ):
        with pytest.raises(wb.WorkbenchError, match=said):
            compared(wide, candidate, **settings)


# --- what is given back -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(model):
    return compared(model, "INT4")


def test_errors_over_tokens_and_over_chunks_are_standard_errors_of_means():
    values = np.random.default_rng(0).normal(size=(40, 25)) + np.random.default_rng(1).normal(size=(40, 1))
    found = Estimate.of(values.mean(), values)
    assert found.error == pytest.approx(values.std(ddof=1) / 1000**0.5)
    assert found.error_by_chunk == pytest.approx(values.mean(1).std(ddof=1) / 40**0.5)
    assert found.error_by_chunk > 2 * found.error  # what chunks have in common is not 1,000 times measured
    assert np.isnan(Estimate.of(1.0, values[:1]).error_by_chunk)


def test_the_table_has_the_percentiles_that_llama_perplexity_prints(report):
    table = report.table().set_index("figure")
    assert table.loc["99.9 % KL", "value"] == pytest.approx(np.percentile(report.by_token["kl"], 99.9))
    assert table.loc["median Δp", "value"] == pytest.approx(100 * np.median(report.delta_p))
    ends = [table.loc[f"{end} KL", "value"] for end in ("minimum", "maximum")]
    assert ends == pytest.approx([report.by_token["kl"].min(), report.by_token["kl"].max()])
    ppl = np.exp(report.by_token["nll_candidate"].mean(dtype=float))
    assert table.loc["PPL(candidate)", "value"] == pytest.approx(ppl)


def test_it_says_what_it_was_measured_on(report, model):
    said = repr(report)
    assert f"INT4 against {model.name}" in said
    assert f"{report.scored:,} tokens scored: the second half of {report.chunks} chunks of {CONTEXT}" in said
    assert "float32 on cpu" in said
    assert report.versions["torch"] == torch.__version__
    assert report.fingerprints[0] == model.fingerprint


def test_names_from_strangers_are_escaped(report):
    hostile = replace(report, reference="<script>x</script>", notes=("<img>",))
    shown = hostile._repr_html_() + hostile.figure().to_json()
    assert "<script" not in shown
    assert "<img" not in shown


def test_the_figure_counts_every_token(report):
    figure = report.figure()
    assert [sum(trace.y) for trace in figure.data] == [report.scored] * 2
