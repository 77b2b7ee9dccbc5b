"""wb.advise: what fits is counted, what is known is told apart by where it is from, what was measured comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

import workbench as wb
from tests.engines import models
from workbench.advice import Advice, Reason
from workbench.tasks.paired import Interval

LLAMA = {
    **{"model_type": "llama", "dtype": "bfloat16", "hidden_size": 4096, "intermediate_size": 14336},
    **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "max_position_embeddings": 131072,
}
TEXT = "The sea is far away. A lamp is on the table, and nobody looks at it.\n" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("advice") / "tiny")


def said(advice: Advice) -> str:
    return "\n".join(reason.text for reason in advice.reasons)


def bases(advice: Advice) -> set[str]:
    return {reason.basis for reason in advice.reasons}


# --- the seed's tips ----------------------------------------------------------------------------


def test_chat_starts_with_q4_k_m_and_says_how_to_measure_it():
    advice = wb.advise(LLAMA, "RTX 3060", use="chat")
    assert (advice.format, advice.engine, advice.context, advice.fits) == ("Q4_K_M", "llama.cpp", 8192, True)
    assert "0.0313" in said(advice)
    assert "measured" not in bases(advice)
    assert any("wb.compare" in reason.check for reason in advice.reasons)
    assert any("wb.benchmark" in reason.check for reason in advice.reasons)


@pytest.mark.parametrize("use", ["math", "code"])
def test_mathematics_and_code_take_eight_bits_where_they_fit_and_less_where_not(use):
    assert wb.advise(LLAMA, "24 GB", use=use).format == "Q8_0"
    small = wb.advise(LLAMA, "8 GB", use=use)
    assert small.format in ("Q6_K", "Q5_K_M", "Q4_K_M")
    assert small.fits
    assert small.memory.fits("8 GB")
    assert "Q8_0 would need" in said(small)


def test_a_long_context_takes_fewer_bits_for_keys_and_values_before_fewer_for_weights():
    roomy, tight = (wb.advise(LLAMA, device, use="long context") for device in ("24 GB", "12 GB"))
    assert (roomy.format, roomy.kv) == ("Q4_K_M", ("f16", "f16"))
    assert tight.format == "Q4_K_M"
    assert tight.kv != ("f16", "f16")
    assert tight.memory.fits("12 GB")
    assert "save" in said(tight)
    assert repr(tight.kv) in tight.code


def test_serving_goes_to_vllm_on_an_nvidia_gpu_and_to_llama_cpp_elsewhere():
    served = wb.advise(LLAMA, "RTX 4090", use="serving")
    assert (served.engine, served.format, served.memory.batch) == ("vllm", "FP8", 8)
    assert "wb.serve_command" in served.code
    other = wb.advise(LLAMA, "Mac 32 GB", use="serving")
    assert other.engine == "llama.cpp"
    assert "is none" in said(other)


def test_serving_on_a_card_without_kernels_for_fp8_goes_to_llama_cpp_one_at_a_time():
    advice = wb.advise(LLAMA, "T4", use="serving")
    assert (advice.engine, advice.format, advice.memory.batch) == ("llama.cpp", "Q4_K_M", 1)
    assert "before Ampere" in said(advice)
    assert 'wb.serve("model-Q4_K_M.gguf", context=8192)' in advice.code


def test_a_rule_of_thumb_is_called_that_with_the_call_that_tests_it():
    advice = wb.advise(LLAMA, "24 GB", use="math")
    assert "[published, not measured on your model]" in repr(advice)
    assert advice.reasons[0].check == 'wb.benchmark([model, "Q8_0", "Q4_K_M"], wb.task("mine.jsonl"))'
    assert "[a rule of thumb, not measured on your model]" in repr(wb.advise(LLAMA, "RTX 4090", use="serving"))


def test_a_file_that_is_larger_than_its_formats_name_says_is_said_to_be(model):
    """The tiny model's rows are no whole blocks of K-quants."""
    counted = [reason for reason in wb.advise(model, "8 GB").reasons if "no whole blocks" in reason.text]
    assert [reason.basis for reason in counted] == ["counted"]
    assert f"{wb.plan_for(model, 'Q4_K_M').bits:.2f} bits" in counted[0].text
    assert "no whole blocks" not in said(wb.advise(LLAMA, "RTX 3060"))


def test_of_a_model_on_the_hub_only_headers_are_read(model, monkeypatch):
    from workbench.advice import advising
    from workbench.fit import subject
    from workbench.fit.outline import from_config

    def outline(name, revision):
        yield from ()
        return from_config(LLAMA)[0]

    monkeypatch.setattr(subject, "outline_steps", outline)
    monkeypatch.setattr(advising, "load", lambda source: pytest.fail(f"{source} was downloaded"))
    assert wb.advise("org/name", "RTX 3060").format == "Q4_K_M"


@pytest.mark.parametrize("context", [0, 131073, True, "long"])
def test_a_context_that_the_model_was_not_made_for_is_refused(context):
    with pytest.raises(wb.WorkbenchError, match="1 to 131,072"):
        wb.advise(LLAMA, "24 GB", context=context)
    assert wb.advise(LLAMA, "24 GB", context=131072, use="long context").context <= 131072


def test_what_fits_nowhere_is_said_with_what_would():
    shorter = wb.advise(LLAMA, "4.9 GB", use="chat")
    assert shorter.fits
    assert shorter.memory.fits("4.9 GB")
    assert shorter.format != "Q2_K"
    assert 2048 <= shorter.context < 8192
    assert "fit in no format" in said(shorter)
    assert wb.advise(LLAMA, "4.5 GB", use="chat").format == "Q2_K"  # a last resort
    nothing = wb.advise(LLAMA, "2 GB", use="chat")
    assert not nothing.fits
    assert "Nothing fits" in said(nothing)
    assert "does not fit" in repr(nothing)


# --- this model's own measurements --------------------------------------------------------------


def test_a_measurement_takes_the_place_of_what_was_published(model):
    found = wb.compare(model, "Q4_K_M", TEXT, context=64, device="cpu")
    advice = wb.advise(model, "8 GB", use="chat", measured=[found])
    assert f"{found.kl.value:.3g}" in said(advice)
    assert "measured" in bases(advice)
    assert "0.0313" not in said(advice)


def test_a_start_that_costs_this_model_much_is_not_advised(model, monkeypatch):
    from workbench.advice import evidence

    costs = {"Q4_K_M": 0.3, "Q5_K_M": 0.2, "Q6_K": 0.01, "Q8_0": 0.001}
    found = lambda self, format: evidence.Known(costs[format], "measured", f"{costs[format]}")  # noqa: E731
    monkeypatch.setattr(evidence.Evidence, "kl", found)
    advice = wb.advise(model, "8 GB", use="chat")
    assert advice.format == "Q6_K"
    assert "Q4_K_M, the usual start, costs this model 0.3" in said(advice)


def test_a_task_on_which_four_bits_do_as_well_overrules_the_advice_of_eight(model):
    task = wb.task([{"prompt": "What is it?", "choices": ["a lamp", "the sea"], "answer": "the sea"}] * 2)
    found = wb.benchmark([model, "Q4_K_M"], task, kl=False)
    pair = next(iter(found.pairs.values()))
    assert wb.advise(model, "8 GB", use="math", measured=[found]).format == "Q8_0"  # two questions settle nothing
    settled = type(pair)(500, Interval(0.0, -0.01, 0.01), 2, 2, 496, 1.0, 1.0, 0)
    found.pairs[next(iter(found.pairs))] = settled
    advice = wb.advise(model, "8 GB", use="math", measured=[found])
    assert settled.verdict.startswith("as good")
    assert advice.format == "Q4_K_M"
    assert "did as well as the original on your task" in said(advice)


def test_four_bits_that_do_worse_at_a_task_are_not_the_start(model):
    task = wb.task([{"prompt": "What is it?", "choices": ["a lamp", "the sea"], "answer": "the sea"}] * 2)
    found = wb.benchmark([model, "Q4_K_M"], task, kl=False)
    pair = next(iter(found.pairs.values()))
    found.pairs[next(iter(found.pairs))] = type(pair)(500, Interval(-0.2, -0.25, -0.15), 5, 105, 390, 1e-20, 1e-20, 0)
    advice = wb.advise(model, "8 GB", use="chat", measured=[found])
    assert advice.format in ("Q5_K_M", "Q6_K", "Q8_0")
    assert "does worse than the original" in said(advice)


def test_where_the_better_format_does_not_fit_the_one_between_is_taken(monkeypatch):
    from workbench.advice import evidence

    known = evidence.Known(0.3, "predicted", "0.3")
    monkeypatch.setattr(evidence.Evidence, "kl", lambda self, format: known)  # none is good enough
    assert wb.advise(LLAMA, "24 GB", use="chat").format == "Q8_0"
    assert wb.advise(LLAMA, "8 GB", use="chat").format in ("Q6_K", "Q5_K_M")


def test_a_published_figure_is_scaled_by_what_was_measured(model, monkeypatch):
    """Where Q4_K_M costs ten times what it costs Llama 3 8B, Q5_K_M's 0.0108 there is no promise."""
    from workbench.advice import evidence

    real = evidence.Evidence.kl
    four = evidence.Known(0.313, "measured", "0.313")
    monkeypatch.setattr(
        evidence.Evidence, "kl", lambda self, format: four if format == "Q4_K_M" else real(self, format)
    )
    assert wb.advise(model, "8 GB", use="chat").format == "Q8_0"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Heads of 32, which are whole blocks of a cache's types."""
    return models.opened(tmp_path_factory.mktemp("advice") / "wide", hidden_size=128, head_dim=32)


def tight(model) -> str:
    """A device on which a cache in 16 bits does not fit, and one in eight does."""
    needed = [fit_of(model, kv).needed("8 GB") for kv in ("f16", "q8_0")]
    return f"{sum(needed) / 2e9:.3f} GB"


def fit_of(model, kv):
    return wb.memory(model, "Q4_K_M", 200_000, kv=kv, device="8 GB")


def test_what_a_cache_was_measured_to_cost_takes_the_place_of_the_rule(wide, monkeypatch):
    from workbench.advice import advising

    monkeypatch.setitem(wide.config, "max_position_embeddings", 200_000)
    monkeypatch.setitem(advising.USES, "long context", replace(advising.USES["long context"], context=200_000))
    device = tight(wide)
    without = wb.advise(wide, device, use="long context")
    assert without.kv == ("q8_0", "q8_0")
    assert next(each for each in without.reasons if "save" in each.text).check.startswith("wb.compare(model, wb.run(")
    with wb.run(wide, kv=("q8_0", "q8_0"), device="cpu") as engine:
        found = wb.compare(wide, engine, TEXT, context=64, device="cpu")
    advice = wb.advise(wide, device, use="long context", measured=[found])
    assert advice.kv == ("q8_0", "q8_0")
    assert f"{found.kl.value:.3g}" in said(advice)
    assert "docs/quality.md" not in said(advice)


def test_a_cache_that_costs_this_model_much_is_not_advised(wide, monkeypatch):
    from workbench.advice import advising, evidence

    monkeypatch.setitem(wide.config, "max_position_embeddings", 200_000)
    monkeypatch.setitem(advising.USES, "long context", replace(advising.USES["long context"], context=200_000))
    much = evidence.Known(0.5, "measured", "0.5")
    monkeypatch.setattr(evidence.Evidence, "cache", lambda self, kv: much)
    advice = wb.advise(wide, tight(wide), use="long context")
    assert advice.kv == ("f16", "f16")
    assert "are not advised" in said(advice)


def test_a_card_predicts_what_a_format_costs_and_offers_a_better_mix(model):
    card = wb.sensitivity(model, TEXT, tokens=256, context=64, device="cpu")
    advice = wb.advise(model, "8 GB", use="chat", card=card)
    assert "predicted" in bases(advice)
    assert "0.0313" not in said(advice)


# --- what does not fit together -----------------------------------------------------------------


def test_results_of_another_model_are_refused(model, tmp_path):
    other = models.opened(tmp_path / "other", seed=1)
    found = wb.compare(other, "Q8_0", TEXT, context=64, device="cpu")
    with pytest.raises(wb.WorkbenchError, match="its reference is"):
        wb.advise(model, "8 GB", measured=[found])
    with pytest.raises(wb.WorkbenchError, match="its reference is"):
        wb.advise(LLAMA, "8 GB", measured=[found])
    with pytest.raises(wb.WorkbenchError, match="holds a str"):
        wb.advise(model, "8 GB", measured=["Q4_K_M is fine"])


@pytest.mark.parametrize(("options", "match"), [({"use": "poetry"}, "chat, math"), ({"device": "abacus"}, "no device")])
def test_what_there_is_none_of_lists_what_there_is(options, match):
    with pytest.raises(wb.WorkbenchError, match=match):
        wb.advise(LLAMA, **{"device": "8 GB", **options})


def test_everything_shown_is_escaped(model):
    advice = wb.advise(model, "8 GB")
    hostile = Advice(
        "<script>", "chat", "Q4_K_M", "llama.cpp", ("f16", "f16"), 1, advice.memory, True,
        (Reason("<img>", "counted", "<b>"),), "<i>",
    )  # fmt: skip
    page = hostile._repr_html_()
    assert not any(tag in page for tag in ("<script>", "<img>", "<b><", "<i>"))
