"""The plan editor without a page: cells, commands, what is shown and refused, what is handed on."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

import workbench as wb
from tests import tiny
from tests.allocation import synthetic
from tests.panels.test_panels import HOSTILE, finished, html_of
from workbench import panels
from workbench.allocation import Draft, plan
from workbench.panels.sheet import MOST_OPEN

K = ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0"]
TEXT = "the quick brown fox jumps over the lazy dog, and the hen sees it. " * 12


def opened(card, names=K, bits: float = 5.0, program: str = "llama.cpp") -> panels.Plan:
    """A panel with a draft on a card whose prices are made up."""
    session = panels.Session(threaded=False)
    session.checkpoint = card.checkpoint
    panel = panels.Plan(session)
    panel._begin(Draft(plan(card, names, bits=bits), program), "card = ...")
    return panel


@pytest.fixture
def panel() -> panels.Plan:
    return opened(synthetic.card())


def look(panel: panels.Plan, key: str) -> dict:
    return panel.editor.paint["cells"][key]


def command(panel: panels.Plan, do: str, *cells: str, **more) -> dict:
    """Send what the grid sends; the answer."""
    panel._command({"do": do, "cells": list(cells), **more})
    return panel.editor.paint


# --- the sheet ------------------------------------------------------------------------------------------


def test_every_matrix_is_in_one_cell_and_the_embedding_and_the_head_stand_apart(panel):
    sheet = panel.editor.sheet
    rows = [row for cell in sheet.cells.values() for row in cell.rows.tolist()]
    assert sorted(rows) == list(range(len(sheet.tariff.tensors)))
    view = panel.editor.view
    assert [row["label"] for row in view["rows"]] == ["embedding", "0", "1", "2", "3", "head"]
    assert [column["name"] for column in view["columns"]] == ["q", "k", "v", "o", "gate", "up", "down"]
    drawn = {cell["key"] for row in view["rows"] for cell in row["cells"] if cell}
    assert drawn == set(panel.editor.paint["cells"])


def test_a_cell_tells_beforehand_what_each_format_would_make_of_it(panel):
    """By this the page draws a change before Python has answered."""
    for pressed in range(len(K)):
        for row in panel.editor.view["rows"]:
            for cell in filter(None, row["cells"]):
                command(panel, "give", cell["key"], format=K[pressed])
                assert look(panel, cell["key"])["text"] == cell["as"][pressed]


def test_colours_are_those_of_the_figure_and_tell_formats_apart(panel):
    from workbench.allocation.figure import colours

    found = {name: each["color"] for name, each in panel.editor.view["colors"].items()}
    assert found == colours(found)
    assert len(set(found.values())) == len(found)
    command(panel, "give", "1|q_proj", format="Q8_0")
    assert look(panel, "1|q_proj")["color"] == found["Q8_0"]


def test_a_fallback_and_a_lock_are_marked_and_said():
    panel = opened(synthetic.card(synthetic.AWKWARD), bits=6)
    command(panel, "give", "1|q_proj", format="Q4_K")
    cell = look(panel, "1|q_proj")
    assert (cell["text"], cell["fallback"]) == ("Q5_0", True)
    assert "because Q4_K does not fit this shape" in cell["lines"][0]
    command(panel, "lock", "1|q_proj")
    assert look(panel, "1|q_proj")["locked"]
    assert "locked" in look(panel, "1|q_proj")["lines"]


def test_by_cost_a_colour_keeps_its_meaning_and_has_a_scale(panel):
    panel.by.value = "cost"
    scale = panel.editor.view["scale"]
    assert "nats" in scale["label"]
    before = look(panel, "1|q_proj")["color"]
    command(panel, "give", "2|q_proj", format="Q2_K")
    assert panel.editor.view["scale"] == scale
    assert look(panel, "1|q_proj")["color"] == before
    at = look(panel, "2|q_proj")["at"]
    command(panel, "give", "2|q_proj", format="Q8_0")
    assert look(panel, "2|q_proj")["at"] < at


def test_experts_are_one_cell_which_opens_and_one_of_them_alone_is_refused():
    panel = opened(synthetic.experts(), bits=4.4)
    assert len(panel.editor.paint["cells"]) == 12 * 7 + 2
    command(panel, "open", row="3")
    inner = [row for row in panel.editor.view["rows"] if row.get("inner")]
    assert len(inner) == 64
    assert "3|up_proj|7" in panel.editor.paint["cells"]
    answer = command(panel, "give", "3|up_proj|7", format="Q8_0")
    assert answer["refused"]
    assert "llama.cpp keeps it and 63 more as one" in answer["said"]
    answer = command(panel, "give", "3|up_proj", format="Q8_0")
    assert not answer["refused"]
    assert look(panel, "3|up_proj|7")["text"] == look(panel, "3|up_proj")["text"] == "Q8_0"
    for layer in range(8):
        command(panel, "open", row=str(layer))
    assert len(panel.editor.sheet.open) == MOST_OPEN
    command(panel, "open", row="7")
    assert 7 not in panel.editor.sheet.open


def test_some_are_selected_by_kind(panel):
    sheet = panel.editor.sheet
    assert set(sheet.some("all")) == set(sheet.cells)
    assert set(sheet.some("v_proj")) == {f"{layer}|v_proj" for layer in range(4)}
    both = sheet.some("attention") + sheet.some("feed-forward")
    assert len(both) == 4 * 7
    assert sheet.some("locked") == []
    command(panel, "lock", "0|q_proj")
    assert sheet.some("locked") == ["0|q_proj"]
    panel.select.value = "attention"
    assert len(panel.editor.chosen) == 16
    assert panel.select.value == ""


# --- what is shown moves with it ----------------------------------------------------------------------------


def test_a_change_moves_size_quality_front_and_code(panel):
    before = [box.value for box in (panel.figures, panel.front, panel.deltas)]
    code = panel._code.code
    answer = command(panel, "give", *panel.editor.sheet.some("down_proj"), format="Q2_K")
    assert all(box.value != was for box, was in zip((panel.figures, panel.front, panel.deltas), before, strict=True))
    assert panel._code.code != code
    assert "4 matrices: Q2_K" in answer["said"]
    assert "Since the last change" in panel.deltas.value
    assert "Q4_K_M" in panel.deltas.value
    assert f"{panel.draft.bits:.2f} bits per weight" in panel.figures.value


def test_every_answer_is_a_change_even_of_nothing(panel):
    """The page may have drawn what is then refused: it must hear of it."""
    command(panel, "lock", "0|q_proj")
    first = panel.editor.paint
    second = command(panel, "give", "0|q_proj", format="Q2_K")
    assert second["refused"]
    assert "it is locked" in second["said"]
    assert (first["answer"], first["cells"]) != (second["answer"], first["cells"])
    assert first["cells"] == second["cells"]


def test_the_budget_in_mb_in_bits_and_on_the_slider_is_one(panel):
    low, high = panel.draft.span
    panel.slider.value = 250
    assert panel.draft.nbytes <= (low + high) / 2
    assert panel.mb.value == pytest.approx(panel.draft.nbytes / 1e6, abs=0.01)
    panel.bits.value = 6.0
    assert 5.8 < panel.draft.bits <= 6.0
    assert panel.slider.value == pytest.approx(500 * (panel.draft.nbytes - low) / (high - low), abs=1)
    panel.mb.value = low / 1e6 / 2
    assert panel.editor.paint["refused"]
    assert "less than the smallest mix" in panel.editor.paint["said"]


def test_undo_redo_rules_and_uniform_formats(panel):
    start = panel.editor.paint["cells"]
    panel.reset.value = "rule Q4_K_M"
    assert panel.draft.plan.formats == wb.plan_for(panel.draft.model, "Q4_K_M").formats
    panel.reset.value = "uniform Q6_K"
    assert {look(panel, f"{layer}|q_proj")["text"] for layer in range(4)} == {"Q6_K"}
    panel.undo.click()
    panel.undo.click()
    assert panel.editor.paint["cells"] == start
    assert panel.undo.disabled
    panel.redo.click()
    assert panel.draft.name == "Q4_K_M"


def test_what_the_chosen_engine_does_not_run_is_refused_with_the_reason(panel):
    panel.session.engine = "vllm"
    assert all("vLLM does not run" in each["why"] for each in panel.editor.view["formats"])
    answer = command(panel, "give", "0|q_proj", format="Q8_0")
    assert answer["refused"]
    assert "vLLM does not run it" in answer["said"]


def test_memory_is_the_librarys_and_moves_with_the_plan():
    panel = opened(synthetic.card(), bits=5)
    from workbench.fit import device

    for _ in range(2):
        whole = panel.session.memory().at(format=panel.draft.plan, context=panel.session.context, device="RTX 3060")
        panel.session.device = "RTX 3060"
        held = panel._held[1].parts()
        assert held == {part: n for part, n in whole.parts_on(device("RTX 3060")).items() if n}
        assert "Fits on RTX 3060" in panel.memory.value
        command(panel, "give", *panel.editor.sheet.some("all"), format="Q8_0")


def test_predicted_figures_are_told_apart_from_exact_ones(panel):
    assert 'class="wb-a-predicted"' in panel.figures.value
    assert "≈" in panel.figures.value
    assert "wb-a-measured" not in panel.figures.value


def test_messages_that_are_no_commands_do_nothing(panel):
    before = panel.draft.now
    for odd in (None, [], "x", {}, {"do": 3}, {"do": "give", "cells": [1, None, "9|none"], "format": ["Q4_K"]}):
        panel._command(odd)
    panel._command({"do": "open", "row": "../3"})
    assert panel.draft.now is before


def test_markup_in_names_is_shown_literally():
    import dataclasses

    card = synthetic.card()
    tensors = {
        name.replace("v_proj", HOSTILE): dataclasses.replace(info, name=name.replace("v_proj", HOSTILE))
        for name, info in card.checkpoint.tensors.items()
    }
    model = dataclasses.replace(card.checkpoint, tensors=tensors, name=HOSTILE)
    panel = opened(synthetic.of(model))
    panel.as_table.value = True
    assert HOSTILE not in html_of(panel)
    assert html.escape(HOSTILE) in html_of(panel)


def test_an_80_layer_model_and_its_still_picture():
    panel = opened(synthetic.card(synthetic.SEVENTY), bits=4.5)
    assert len(panel.editor.view["rows"]) == 82
    page = str(panel.snapshot())
    assert "<script" not in page
    assert page.count("<td") == 80 * 7 + 2


# --- with a real model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "m", tiny.weights(seed=77), dtype="F32")


@pytest.fixture
def session(folder: Path) -> panels.Session:
    made = panels.Session(wb.load(folder), source=str(folder), threaded=False)
    made.text = TEXT
    return made


def measured(session: panels.Session) -> panels.Plan:
    panel = panels.Plan(session)
    panel.preparing.tokens.value = 128
    panel.preparing.names.value = "Q3_K, Q4_K, Q8_0"
    panel.preparing.run()
    finished(session)
    return panel


def test_without_a_model_or_a_card_it_says_what_to_do():
    panel = panels.Plan()
    assert panel.code == ""
    assert panel.body.layout.display == "none"
    panel = panels.Plan(panels.Session(synthetic.card().checkpoint))
    assert panel.body.layout.display == "none"
    assert panel.preparing.price.disabled


def test_the_card_is_measured_and_the_code_makes_the_plan(session):
    panel = measured(session)
    assert session.card is panel.draft.choices.prices.card
    command(panel, "give", "0|q_proj", format="Q8_0")
    names: dict = {}
    exec(panel.code.removesuffix("plan").rstrip(), names)
    assert names["plan"].formats == panel.draft.plan.formats


def test_a_saved_card_is_opened_and_another_models_is_refused(session, tmp_path):
    measured(session).session.card.save(tmp_path / "a.card")
    session.card = None
    panel = panels.Plan(session)
    panel.preparing.names.value = "Q4_K, Q8_0"
    panel.preparing.path.value = str(tmp_path / "a.card")
    panel.preparing.open.click()
    finished(session)
    assert [each["name"] for each in panel.editor.view["formats"]] == ["Q4_K", "Q8_0"]
    assert "Card.load" in panel.code
    other = wb.load(tiny.folder(tmp_path / "other", tiny.weights(seed=78), dtype="F32"))
    session.open(other)
    assert panel.draft is None
    panel.preparing.open.click()
    assert "another model" in panel.strip.said.value


def test_verified_it_shows_predicted_and_measured_side_by_side_until_it_is_changed(session):
    panel = measured(session)
    panel.checked.value = 128
    panel.verify.click()
    finished(session)
    assert "wb-a-measured" in panel.figures.value
    assert "Measured KL" in panel.checked_said.value
    assert "<svg" in panel.checked_said.value
    command(panel, "give", "0|q_proj", format="Q3_K" if look(panel, "0|q_proj")["text"] != "Q3_K" else "Q8_0")
    assert "wb-a-measured" not in panel.figures.value
    assert "Measured KL" in panel.checked_said.value
    panel.undo.click()
    assert "wb-a-measured" in panel.figures.value


def test_a_plan_is_saved_opened_and_handed_to_the_session(session, tmp_path):
    panel = measured(session)
    command(panel, "give", "0|q_proj", "0|k_proj", format="Q8_0")
    kept = panel.draft.plan
    panel.path.value = str(tmp_path / "plan.json")
    panel.save.click()
    panel.reset.value = "uniform Q3_K"
    panel.open.click()
    assert panel.draft.plan.formats == kept.formats
    panel.chat.click()
    assert session.plan.formats == kept.formats
    assert session.format == "plan"
    assert session.page == "Chat"
    names: dict = {}
    exec("\n".join([session.load_code, session.card_code, session.plan_code]), names)
    assert names["plan"].formats == kept.formats
    panel.path.value = str(tmp_path / "none.json")
    panel.open.click()
    assert "there is no such file" in panel.strip.said.value


def test_a_plan_that_code_gives_the_session_is_on_the_desk(session):
    panel = measured(session)
    session.use(wb.plan(session.card, ["Q3_K", "Q8_0"], bits=6.5))
    assert panel.draft.plan.formats == session.plan.formats
    session.use(wb.plan(session.card, "Q6_K"))
    assert panel.editor.paint["refused"]  # its format was not priced here
    assert "not asked for its price" in panel.editor.paint["said"]


def test_the_app_has_the_panel_and_goes_where_its_buttons_lead(session):
    app = wb.app(session=session)
    titles = [each.title for each in app.panels]
    assert titles.index("Inspect") < titles.index("Plan") < titles.index("Chat")
    session.page = "Plan"
    assert app.shown is app.plan
