"""What is chosen is the same in every panel: a recipe, a format, the original, or the session's plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from workbench import panels
from workbench.panels.chosen import Chosen, offered


@pytest.fixture
def session(tmp_path: Path) -> panels.Session:
    path = tiny.folder(tmp_path / "model", tiny.weights())
    return panels.Session(wb.load(path), source=str(path), threaded=True)


@pytest.fixture
def plan(session: panels.Session) -> wb.Plan:
    mix = {info.name: "Q8_0" if info.role == "v_proj" else "Q4_K" for info in session.checkpoint.matrices}
    return dataclasses.replace(wb.plan_for(session.checkpoint, mix), name="my mix")


def test_a_plan_is_chosen_in_every_panel_and_gone_with_its_model(session, plan, tmp_path):
    app = wb.app(session=session)
    assert "plan" not in dict(app.chat.first.what.options).values()
    session.use(plan)
    assert session.format == "plan"
    assert ("plan: my mix", "plan") in app.chat.first.what.options
    assert app.chat.first.what.value == app.fit.format.value == "plan"
    assert app.fit.answer().weights == pytest.approx(plan.nbytes, rel=0.02)
    session.open(wb.load(tiny.folder(tmp_path / "another", tiny.weights(seed=1))))
    assert session.plan is None
    assert session.format == "Q4_K_M"
    with pytest.raises(wb.WorkbenchError, match="another model"):
        session.use(plan)


@pytest.mark.parametrize("code", ["", 'plan = wb.plan_for(model, "Q4_K_M")'])
def test_the_code_of_a_plan_makes_that_plan(session, code):
    session.use(wb.plan_for(session.checkpoint, "Q4_K_M"), code)
    for panel in (panels.Fit(session), panels.Chat(session)):
        before = panel.code.partition("\nfit = ")[0].partition("\nchat = ")[0]
        assert "plan" in panel.code.removeprefix(before)
        namespace: dict = {}
        exec(before, namespace)
        assert namespace["plan"].formats == session.plan.formats
        assert namespace["plan"].model == session.plan.model


def test_a_card_gives_its_importance_to_what_makes_use_of_it(session, plan):
    session.use(plan)
    assert Chosen(session, "plan").importance is None
    session.card = SimpleNamespace(importance={"a": np.ones(3)})
    assert Chosen(session, "plan").importance is session.card.importance
    assert Chosen(session, "NF4").importance is None  # bitsandbytes has no use for one
    assert Chosen(session, "original").importance is None
    assert Chosen(session, "Q4_K").blocks == [session.card_code, "importance = card.importance"]


def test_names_are_offered_once_with_the_original_first(session):
    names = [name for _, name in offered(session)]
    assert names[0] == "original"
    assert len(names) == len(set(names))
    assert {*wb.RECIPES, *wb.formats.FORMATS} < set(names)


def test_a_plan_that_is_let_go_leaves_a_choice_behind(session, plan):
    app = wb.app(session=session)
    session.use(plan)
    session.use(None)
    assert session.format == app.chat.first.what.value == "Q4_K_M"
