"""The panels over a real tiny model: what is shown, kept, cancelled, escaped, and given as code."""

from __future__ import annotations

import html
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import workbench as wb
from tests import tiny
from tests.panels.driving import asked, finished, html_of, result_of, until
from workbench import panels
from workbench.measure import losses as measuring
from workbench.panels.conversation import Turn
from workbench.panels.jobs import Jobs
from workbench.panels.panel import WIDGET_VIEW
from workbench.panels.side import Side
from workbench.progress import Progress

FORMATS = ("Q8_0", "Q4_K", "INT4")
SEEDS = itertools.count(100)  # weights of its own for each test: the cache of results knows those of the others
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "model", tiny.weights(hidden=256, seed=next(SEEDS)))


@pytest.fixture
def session(folder: Path) -> panels.Session:
    made = panels.Session(wb.load(folder), source=str(folder), threaded=True)
    made.formats = FORMATS
    return made


# --- what a panel shows ---------------------------------------------------------------------


@pytest.mark.parametrize("panel", [panels.Load, panels.Quantize, panels.Inspect, panels.Chat])
def test_a_panel_works_alone_and_before_there_is_a_model(panel):
    bundle, _ = panel()._repr_mimebundle_()
    assert bundle[WIDGET_VIEW]["model_id"]
    assert bundle["text/html"]
    assert panel.title in bundle["text/plain"]


def test_without_widgets_the_measured_app_is_still_a_page_with_its_figures(session):
    session.show(wb.errors(session.checkpoint, FORMATS))
    bundle, _ = wb.app(session=session)._repr_mimebundle_()
    page = bundle["text/html"]
    assert "<script" not in page
    assert all(name in page for name in FORMATS)
    assert "wb.errors(model" in page


def test_markup_in_a_models_name_and_tensors_is_shown_literally(tmp_path):
    weights = tiny.weights(hidden=256)
    weights[f"{HOSTILE}.weight"] = weights["model.norm.weight"]
    bad = wb.load(tiny.folder(tmp_path / HOSTILE.replace("/", ""), weights))
    session = panels.Session(bad, threaded=True)
    session.show(wb.errors(bad, "Q8_0"))
    app = wb.app(session=session)
    for panel in app.panels:
        page = html_of(panel)
        assert "<img src=x" not in page
    assert "&lt;img src=x" in html_of(app.load)


def test_a_note_of_the_model_stands_in_every_panel(session):
    import dataclasses

    noted = dataclasses.replace(session.checkpoint, notes=("These weights lie on a grid.",))
    app = wb.app(noted)
    assert all("These weights lie on a grid." in html_of(panel) for panel in app.panels)


# --- loading, measuring, selecting --------------------------------------------------------------


def test_opening_another_model_lets_go_of_what_was_known_of_the_first(session, tmp_path):
    session.show(wb.errors(session.checkpoint, FORMATS))
    app = wb.app(session=session)
    session.tensor = session.checkpoint.matrices[2].name
    other = tiny.folder(tmp_path / "another", tiny.weights(hidden=512))
    app.load.source.value = str(other)
    app.load.run()
    finished(session)
    assert session.checkpoint.path == other
    assert session.errors is None
    assert session.tensor == ""
    assert app.inspect.grid.view == {}
    assert app.inspect.code == ""


def test_a_file_that_is_missing_is_named_in_the_panel_and_the_model_stays(session, tmp_path):
    panel = panels.Load(session)
    before = session.checkpoint
    panel.source.value = str(tmp_path / "missing.gguf")
    panel.run()
    session.jobs.wait(60)
    assert "missing.gguf" in panel.strip.said.value
    assert session.checkpoint is before
    assert not panel.open.disabled


def test_measuring_shows_the_grid_and_the_errors_of_the_formats_that_were_ticked(session):
    app = wb.app(session=session)
    app.quantize.run()
    finished(session)
    assert session.errors.formats == FORMATS
    assert session.errors.frame.weight_error.notna().all()
    assert app.shown is app.inspect
    cells = [cell for row in app.inspect.grid.view["rows"] for cell in row["cells"] if cell]
    assert {cell["tensor"] for cell in cells} == {info.name for info in session.checkpoint.matrices}


def test_a_second_table_in_one_session_replaces_the_first(session):
    app = wb.app(session=session)
    app.quantize.run()
    finished(session)
    session.tensor = session.checkpoint.matrices[1].name
    session.formats = ("Q8_0", "NF4")
    app.quantize.run()
    finished(session)
    assert session.errors.formats == ("Q8_0", "NF4")
    assert "error" not in app.inspect.strip.said.value.lower()


def test_selecting_a_cell_opens_its_matrix_with_what_it_is_stored_as(session):
    session.show(wb.errors(session.checkpoint, FORMATS))
    panel = panels.Inspect(session)
    panel.grid.selected = "model.layers.1.mlp.down_proj.weight"
    assert session.tensor == "model.layers.1.mlp.down_proj.weight"
    assert "256 × 512" in html_of(panel)
    assert "bits per weight" in html_of(panel)
    assert panel.picture.outputs


def test_a_cancelled_table_keeps_its_finished_rows_and_goes_on_from_there(session, monkeypatch):
    reached, release = threading.Event(), threading.Event()
    original = measuring._Workers._sums

    def slow(self, info, *rest):
        if info.layer == 1:
            reached.set()
            release.wait(180)
        return original(self, info, *rest)

    monkeypatch.setattr(measuring._Workers, "_sums", slow)
    monkeypatch.setattr(measuring, "AHEAD", 1)
    app = wb.app(session=session)
    app.quantize.run()
    assert reached.wait(60)
    session.jobs.cancel()
    assert session.jobs.wait(60)  # while the matrix it was at is still being worked on
    release.set()
    assert session.jobs.status.state == "cancelled"
    measured = session.errors.frame.groupby("tensor").weight_error.count()
    assert 0 < (measured == len(FORMATS)).sum() < len(measured)
    assert "are measured" in html_of(app.inspect)
    app.quantize.run()
    finished(session)
    assert session.errors.frame.weight_error.notna().all()


def test_while_a_job_runs_nothing_else_can_be_started_and_then_everything_can(session):
    hold = threading.Event()

    def waiting():
        while not hold.wait(0.02):
            yield Progress(1, 2, "step", HOSTILE)

    app = wb.app(session=session)
    session.jobs.start("Waiting", waiting(), lambda _: None, owner=app.quantize)
    starters = (app.load.open, app.quantize.measure, app.chat.send)
    until(lambda: all("Waiting" in panel.strip.said.value for panel in app.panels))
    assert all(button.disabled for button in starters)
    assert "<img" not in app.quantize.strip.said.value
    hold.set()
    finished(session)
    assert not any(button.disabled for button in starters)
    assert not any(panel.strip.said.value for panel in app.panels)


def test_a_recipe_has_an_error_once_its_formats_are_measured(session):
    def error_of(name):
        groups = panels.Quantize(session).table.view["groups"]
        return next(row["error"] for group in groups for row in group["rows"] if row["name"] == name)

    session.show(wb.errors(session.checkpoint, ["Q4_K"]))
    assert error_of("Q4_K_M") == "—"
    session.show(wb.errors(session.checkpoint, ["Q6_K", "Q4_K"]))
    six, mixed, four = (float(error_of(name)) for name in ("Q6_K", "Q4_K_M", "Q4_K"))
    assert six < mixed < four


def test_a_text_adds_the_output_error_and_stands_in_the_code(session, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and then it sat in the hat. " * 40)
    session.show(wb.errors(session.checkpoint, FORMATS))
    app = wb.app(session=session)
    app.quantize.text.value = str(text)
    app.quantize.run()
    finished(session)
    assert session.metric == "output_error"
    assert app.inspect.metric.value == "output_error"
    namespace: dict = {}
    exec(app.quantize.code, namespace)
    assert namespace["errors"].frame.equals(session.errors.frame)


def test_two_formats_are_compared_in_one_grid(session):
    session.show(wb.errors(session.checkpoint, FORMATS))
    panel = panels.Inspect(session)
    panel.shown.value, panel.against.value = "INT4", "Q8_0"
    assert "INT4 against Q8_0" in panel.grid.view["title"]
    assert "errors.compare('Q8_0', 'INT4'" in panel.code
    panel.shown.value = "Q8_0"  # never with itself
    assert panel.against.value == ""
    assert "against" not in panel.grid.view["title"]


def test_whoever_has_gone_elsewhere_while_a_job_ran_is_left_there(session):
    app = wb.app(session=session)
    app.quantize.run()
    app.turn_to(app.chat)
    finished(session)
    assert session.errors is not None
    assert app.shown is app.chat


# --- code ------------------------------------------------------------------------------------


def test_the_code_of_a_panel_run_as_it_stands_gives_the_same_result(session, monkeypatch):
    import plotly.graph_objects as go

    monkeypatch.setattr(go.Figure, "show", lambda figure: None)
    app = wb.app(session=session)
    app.quantize.run()
    finished(session)
    session.tensor = "model.layers.0.self_attn.v_proj.weight"
    for panel in (app.load, app.quantize, app.inspect):
        namespace: dict = {}
        exec(panel.code, namespace)
        assert namespace["model"].fingerprint == session.checkpoint.fingerprint
    assert namespace["errors"].frame.equals(session.errors.frame)


def test_a_source_with_quotes_is_quoted_in_the_code(tmp_path):
    odd = tiny.folder(tmp_path / 'it\'s "odd"', tiny.weights(hidden=256))
    session = panels.Session(wb.load(odd), source=str(odd), threaded=True)
    namespace: dict = {}
    exec(panels.Load(session).code, namespace)
    assert namespace["model"].path == odd


# --- chat ------------------------------------------------------------------------------------


def test_chat_answers_and_its_code_gives_the_same_reply(session):
    session.format = "Q8_0"
    panel = panels.Chat(session)
    panel.sampling.max_tokens.value = 5
    (reply,) = asked(panel, "hi there").replies
    assert 0 < len(reply.token_ids) <= 5
    assert "tokens/s" in panel.said.value
    assert result_of(panel.code).token_ids == reply.token_ids
    session.close_engines()
    assert session.engines == {}


def test_a_second_question_follows_from_the_first_answer(session):
    session.format = "Q8_0"
    panel = panels.Chat(session)
    panel.sampling.max_tokens.value = 5
    first = asked(panel, "hi there").replies[0]
    second = asked(panel, "and then").replies[0]
    assert second.prompt_tokens > first.prompt_tokens
    assert result_of(panel.code).token_ids == second.token_ids
    panel.forget()
    assert asked(panel, "hi there").replies[0].token_ids == first.token_ids


def test_two_formats_side_by_side_are_asked_the_same_and_the_first_difference_is_marked(session):
    session.format, session.second = "original", Side("Q2_K")
    panel = panels.Chat(session)
    panel.sampling.max_tokens.value = 20
    turn = asked(panel, "hi there")
    assert turn.compared.first_difference is not None
    assert panel.said.value.count("<mark>") == 2
    assert turn.names == ("original in transformers", "Q2_K in transformers")
    assert len(session.engines) == 2
    assert result_of(panel.code).verdict == turn.compared.verdict
    session.close_engines()


def test_stop_keeps_what_was_said_and_the_next_question_can_be_asked(session):
    session.format = "original"
    panel = panels.Chat(session)
    panel.sampling.max_tokens.value = 400
    panel.prompt.value = "hi there"
    panel.run()
    until(lambda: any(panel.turns[0].texts))
    assert panel.send.layout.display == "none"
    panel.stop.click()
    assert session.jobs.wait(5)
    assert session.jobs.status.state == "cancelled"
    assert panel.turns[0].replies[0].finish == "stopped"
    assert html.escape(panel.turns[0].texts[0]) in panel.said.value
    panel.sampling.max_tokens.value = 3
    assert asked(panel, "again").replies


def test_a_question_that_could_not_be_asked_goes_back_to_its_box(session):
    session.format = "IQ2_XXS"  # needs an importance matrix, and there is no text
    panel = panels.Chat(session)
    panel.prompt.value = "hi there"
    panel.run()
    assert session.jobs.wait(60)
    assert "IQ2_XXS" in panel.strip.said.value
    assert panel.prompt.value == "hi there"
    assert panel.turns == []


def test_a_reply_with_markup_is_shown_literally(session):
    panel = panels.Chat(session)
    panel.turns = [Turn(HOSTILE, ("Q8_0",), "", [HOSTILE], ["what"], [])]
    panel.refresh()
    assert "<img src=x" not in html_of(panel)
    assert "&lt;img src=x" in html_of(panel)


# --- jobs ------------------------------------------------------------------------------------


def steps(number=3, end="done"):
    for step in range(number):
        yield Progress(step, number, "step")
    return end


@pytest.mark.parametrize("threaded", [True, False], ids=["in a thread", "inline, as on Colab"])
def test_a_job_hands_on_its_result(threaded):
    jobs, got = Jobs(threaded), []
    jobs.start("Working", steps(), got.append)
    assert jobs.wait(10)
    assert got == ["done"]
    assert jobs.status.state == "done"


def test_one_job_at_a_time():
    jobs, hold = Jobs(True), threading.Event()

    def waiting():
        while not hold.wait(0.05):
            yield Progress(0, 0, "step")

    jobs.start("The first", waiting(), lambda _: None)
    with pytest.raises(wb.WorkbenchError, match="The first"):
        jobs.start("The second", steps(), lambda _: None)
    hold.set()
    assert jobs.wait(10)


@pytest.mark.parametrize("threaded", [True, False], ids=["in a thread", "inline, as on Colab"])
def test_an_error_is_shown_escaped_with_its_traceback_folded(session, threaded):
    def failing():
        yield Progress(0, 1, "step")
        raise ValueError(HOSTILE)

    session = panels.Session(threaded=threaded)
    panel = panels.Load(session)
    session.jobs.start("Failing", failing(), lambda _: None, owner=panel)
    assert session.jobs.wait(10)
    said = panel.strip.said.value
    assert "<details" in said
    assert "Traceback" in said
    assert "<img src=x" not in said
    assert not session.jobs.status.busy


def test_an_interrupted_kernel_cancels_an_inline_job_and_keeps_what_it_has():
    def interrupted():
        yield Progress(0, 1, "step")
        raise KeyboardInterrupt

    jobs, kept = Jobs(False), []
    jobs.start("Working", interrupted(), lambda _: None, stopped=lambda: kept.append(True))
    assert jobs.status.state == "cancelled"
    assert kept


@pytest.mark.parametrize("panel", [panels.Quantize, panels.Chat])
def test_what_does_not_fit_can_be_gone_ahead_with(session, monkeypatch, panel):
    made = panel(session)
    session.formats, session.format = ("Q8_0",), "Q8_0"
    nothing = SimpleNamespace(available=1000, total=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: nothing)
    assert made.strip.anyway.layout.display == "none"
    made.run()
    assert session.jobs.wait(60)
    assert "cpu has 1 kB" in made.strip.said.value
    assert made.strip.anyway.layout.display is None
    made.strip.anyway.click()
    finished(session)
    assert made.strip.anyway.layout.display == "none"
    assert session.engines if panel is panels.Chat else session.errors
    assert "anyway=True)" in made.code
