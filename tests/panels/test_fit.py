"""The Fit panel: the figures of `wb.memory` as its controls move, for opened models and for those known by a config."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import workbench as wb
from tests import tiny
from tests.fit.published import CONFIGS
from workbench import figures, panels
from workbench.fit import TABLE

LLAMA = CONFIGS["Llama 3.1 8B"]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def session() -> panels.Session:
    """About Llama 3.1 8B, of which only the config is known."""
    made = panels.Session(threaded=True)
    made.outline = ("org/llama", wb.memory(LLAMA))
    made.device = "RTX 3060"
    return made


@pytest.fixture
def fit(session) -> panels.Fit:
    return panels.Fit(session)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "model", tiny.weights(hidden=256))


def words(panel: panels.Fit) -> str:
    """What the picture says, without its markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", panel.picture.value).split())


def finished(session: panels.Session) -> None:
    assert session.jobs.wait(60)
    assert session.jobs.status.error is None, session.jobs.status.error


# --- what is shown ------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_call(fit):
    expected = wb.memory(LLAMA, "Q4_K_M", context=4096, device="RTX 3060")
    assert fit.answer().parts == expected.parts
    said = words(fit)
    assert f"{figures.size(expected.needed())} of {figures.size(TABLE['RTX 3060'].usable)}" in said
    assert f"{figures.size(expected.room())} to spare" in said
    for part in ("mlp", "kv cache", "compute"):
        assert figures.size(expected.parts[part]) in said
    assert f"{expected.longest_context():,} tokens" in said
    assert f"{expected.best_format().format}: " in said
    assert "33 of 33 layers" in said
    assert f"{-expected.rule_is_off_by:.0%} too little" in said


def test_a_move_of_the_slider_changes_the_figures_and_the_session(fit, session):
    before = fit.answer()
    fit.context.value = 65536
    assert session.context == 65536
    assert fit.answer().cache > 10 * before.cache
    assert "Does not fit on RTX 3060" in words(fit)
    assert f"{figures.size(-fit.answer().room())} too much" in words(fit)


def test_the_slider_goes_beyond_what_the_model_was_made_for_and_says_so(fit, session):
    steps = [value for _, value in fit.context.options]
    assert steps[0] == 512
    assert 131072 in steps
    assert steps[-1] > 131072
    assert steps == sorted(steps)
    assert "131,072 tokens; beyond" not in words(fit)
    fit.context.value = steps[-1]
    assert "made for 131,072 tokens; beyond" in words(fit)


def test_the_bar_is_as_long_as_what_is_needed_and_marks_what_is_usable(fit, session):
    session.context = 65536
    first = fit.picture.value.partition("wb-scale")[0]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%; background", first)]
    assert sum(widths) == pytest.approx(100, abs=0.1)
    (edge,) = re.findall(r'wb-edge" style="left: ([\d.]+)%', first)
    assert float(edge) == pytest.approx(100 * TABLE["RTX 3060"].usable / fit.answer().needed(), abs=0.1)
    session.device = "RTX 5090"
    first = fit.picture.value.partition("wb-scale")[0]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%; background", first)]
    assert sum(widths) == pytest.approx(100 * fit.answer().needed() / TABLE["RTX 5090"].usable, abs=0.1)
    assert "wb-edge" not in first


def test_common_devices_stand_below_each_with_its_own_verdict(fit):
    said = words(fit)
    for name in ("T4", "RTX 4090", "Mac 16 GB"):
        there = fit.answer().at(device=name)
        assert f"{figures.size(there.needed())} {figures.size(TABLE[name].usable)}" in said
        assert f"{figures.size(abs(there.room()))} {'to spare' if there.fits() else 'too much'}" in said


def test_an_estimate_is_marked_and_its_reasons_are_given(fit, session):
    assert "estimate" not in words(fit)
    session.engine = "vllm"
    assert "estimate" in words(fit)
    assert "not held against a run" in words(fit)


def test_of_a_mixture_of_experts_it_says_what_a_token_passes(session):
    session.outline = ("org/mixtral", wb.memory(CONFIGS["Mixtral 8x7B"]))
    assert "of the weights; all must be there" in words(panels.Fit(session))


# --- controls and the session -------------------------------------------------------------------


def test_the_format_stays_in_step_with_the_one_chosen_under_quantize(folder):
    app = wb.app(wb.load(folder))
    app.fit.format.value = "Q6_K"
    assert app.session.format == app.quantize.table.chosen == "Q6_K"
    app.session.format = "IQ4_XS"
    assert app.fit.format.value == "IQ4_XS"
    assert app.fit.answer().format == "IQ4_XS"


def test_a_format_that_the_engine_does_not_hold_stays_chosen_and_another_is_counted(fit, session):
    fit.engine.value = "bitsandbytes"
    assert fit.answer().format == fit.format.value == "NF4"
    assert session.format == "Q4_K_M"
    assert "does not hold Q4_K_M" in words(fit)
    fit.format.value = "LLM.int8"
    assert session.format == "LLM.int8"
    assert "does not hold" not in words(fit)
    fit.engine.value = "llama.cpp"
    assert fit.format.value == "original"


def test_keys_and_values_are_kept_in_types_that_the_engine_knows(fit, session):
    before = fit.answer().cache
    fit.keys.value = "q8_0"
    assert session.kv == ("q8_0", "f16")
    fit.values.value = "q4_0"
    assert fit.answer().kv == ("q8_0", "q4_0")
    assert fit.answer().cache < before
    fit.engine.value = "transformers"
    assert "q8_0" not in fit.keys.options
    assert fit.answer().kv == (fit.keys.value, fit.values.value)


def test_a_device_may_be_a_size_of_ones_own(fit, session):
    fit.device.value = "another size"
    assert session.device == "24 GB"
    fit.size.value = "10.5 GB"
    assert fit.answer().device.usable == 10_500_000_000
    fit.size.value = HOSTILE
    assert "no device of that name" in words(fit)
    assert "<img" not in fit.picture.value
    fit.device.value = "T4"
    assert "on T4" in words(fit)


def test_a_context_set_from_code_is_a_step_of_the_slider_and_stays_one(fit, session):
    session.context = 5000
    assert fit.context.value == 5000
    fit.context.value = 8192
    assert 5000 in [value for _, value in fit.context.options]  # else a slider that is being dragged would jump


def test_the_longest_context_and_the_best_format_that_fit_can_be_taken(fit, session):
    session.context, session.format = 131072, "Q8_0"
    assert not fit.answer().fits()
    session.context = 8192
    best = fit.answer().best_format().format
    fit.best.click()
    assert session.format == best
    fit.longest.click()
    assert session.context == fit.answer().longest_context() > 8192
    assert fit.answer().fits()
    assert fit.longest.disabled
    session.device = "1 GB"
    assert fit.longest.disabled
    assert fit.best.disabled


def test_more_sequences_take_more(fit, session):
    before = fit.answer().cache
    fit.batch.value = 4
    assert fit.answer().cache == 4 * before


def test_what_cannot_be_is_said_in_the_panel(fit, session):
    session.outline = ("org/odd", wb.memory({**LLAMA, "head_dim": 80}))
    session.kv = ("q8_0", "q8_0")
    assert "blocks of 32" in words(fit)
    session.kv = ()
    assert "of the type llama" in words(fit)


def test_moves_of_the_slider_redraw_no_other_panel(folder, monkeypatch):
    app = wb.app(wb.load(folder))
    drawn = []
    for panel in app.panels:
        monkeypatch.setattr(panel, "update", lambda panel=panel: drawn.append(panel))
    app.session.context = 1024
    assert drawn == [app.fit]


# --- the model ----------------------------------------------------------------------------------


def test_it_follows_the_opened_model(folder, tmp_path):
    app = wb.app(wb.load(folder))
    assert app.fit.answer().weights == wb.memory(folder, "Q4_K_M").weights
    other = tiny.folder(tmp_path / "other", tiny.weights(hidden=512))
    app.session.open(wb.load(other))
    assert app.fit.answer().weights == wb.memory(other, "Q4_K_M").weights


def test_load_and_fit_name_the_same_bytes(folder):
    app = wb.app(wb.load(folder))
    app.session.device = "cpu"
    total = figures.size(app.fit.answer().total)
    assert total in words(app.fit)
    assert total in app.load.found.value


def test_a_model_whose_bytes_cannot_be_counted_is_open_all_the_same(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9, "model_type": HOSTILE}))
    app = wb.app(wb.load(folder))
    assert "num_hidden_layers" in app.load.found.value
    assert "num_hidden_layers" in app.fit.picture.value
    assert app.fit.code == ""
    assert app.load.code


def test_without_a_model_it_says_what_to_do():
    panel = panels.Fit()
    assert panel.code == ""
    assert panel.body.layout.display == "none"
    assert "Load" in panel.empty.value
    panel.run()
    assert "org/name" in panel.strip.said.value


def test_the_text_of_a_config_is_enough():
    panel = panels.Fit(panels.Session(threaded=True))
    panel.source.value = json.dumps(LLAMA, indent=2)
    panel.run()
    finished(panel.session)
    assert panel.answer().weights == wb.memory(LLAMA, "Q4_K_M").weights
    namespace: dict = {}
    exec(panel.code, namespace)
    assert namespace["fit"].parts == panel.answer().parts


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "llama", "hidden_size": -1}'])
def test_a_config_that_cannot_be_is_refused_in_the_panel(text):
    panel = panels.Fit(panels.Session(threaded=True))
    panel.source.value = text
    panel.run()
    panel.session.jobs.wait(60)
    assert "wb-error" in panel.strip.said.value
    assert panel.code == ""


def test_a_folder_is_read_by_its_headers_beside_the_model_that_is_open(folder, tmp_path):
    other = tiny.folder(tmp_path / "other", tiny.weights(hidden=512))
    app = wb.app(wb.load(folder))
    opened = app.session.checkpoint
    app.fit.source.value = str(other)
    app.fit.run()
    finished(app.session)
    assert app.session.checkpoint is opened
    assert app.fit.answer().weights == wb.memory(other, "Q4_K_M").weights
    app.load.source.value = str(folder)
    app.load.run()
    finished(app.session)
    assert app.fit.answer().weights == wb.memory(folder, "Q4_K_M").weights
    assert app.fit.source.value == str(folder)


# --- code, and without widgets ------------------------------------------------------------------


def test_the_code_run_as_it_stands_gives_the_same_answer(folder):
    panel = panels.Fit(panels.Session(wb.load(folder), source=str(folder)))
    session = panel.session
    for engine, format, kv in (
        ("llama.cpp", "Q6_K", ("q8_0", "q4_0")),
        ("llama.cpp", "original", ()),
        ("bitsandbytes", "Q6_K", ()),
        ("transformers", "original", ("f32", "f32")),
    ):
        session.engine, session.format = engine, format
        session.kv, session.context, session.batch, session.device = kv, 300, 3, "8 GB"
        namespace: dict = {}
        exec(panel.code, namespace)
        assert namespace["fit"].parts == panel.answer().parts
        assert namespace["fit"].device == panel.answer().device


def test_without_widgets_the_page_and_the_text_have_the_figures(fit):
    bundle, _ = fit._repr_mimebundle_()
    for page in (bundle["text/html"], bundle["text/plain"]):
        assert figures.size(fit.answer().parts["kv cache"]) in page
        assert "RTX 3060" in page
    assert "<script" not in bundle["text/html"]


def test_markup_in_a_models_name_is_shown_literally(fit, session):
    session.outline = (HOSTILE, wb.memory({**LLAMA, "model_type": HOSTILE}))
    assert "<img" not in fit.picture.value + str(fit.snapshot())
    assert "&lt;img" in fit.picture.value
