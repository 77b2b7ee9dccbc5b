"""The Benchmark panel: a file is opened and understood, candidates are asked, and what changed is stepped through."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import workbench as wb
from tests import tiny
from tests.panels.driving import html_of, result_of
from workbench import panels
from workbench.progress import Progress
from workbench.tasks import benchmarking

HOSTILE = "<img src=x onerror=alert(1)>"


def finished(session):
    assert session.jobs.wait(300)
    assert session.jobs.status.error is None, session.jobs.status.error


@pytest.fixture
def session(tmp_path):
    folder = tiny.folder(tmp_path / "model", tiny.weights(hidden=256, seed=4))
    return panels.Session(wb.load(folder), source=str(folder), threaded=True)


@pytest.fixture
def panel(session, tmp_path):
    made = panels.Benchmark(session)
    rows = [{"prompt": f"{HOSTILE} {number}?", "answer": ".", "check": "regex", "example": "."} for number in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made.file.value = str(tmp_path / "mine.jsonl")
    made.max_tokens.value = 3
    for name, chip in made.chips.items():
        chip.value = name == "Q2_K"
    return made


def test_a_file_is_opened_and_what_was_understood_is_said(panel, session):
    assert panel.start.disabled is False
    panel.read()
    finished(session)
    page = html_of(panel)
    assert "mine: 4 examples" in page
    assert "4 by &#x27;regex&#x27;" in page
    assert HOSTILE not in page


def test_a_file_that_does_not_fit_names_its_row(panel, session, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "answer": 1}\n{"answer": 2}')
    panel.read()
    assert session.jobs.wait(60)
    assert "row 2 of mine.jsonl, field &#x27;prompt&#x27;" in html_of(panel)


def test_candidates_are_asked_and_the_code_gives_the_same(panel, session):
    panel.read()
    finished(session)
    panel.run()
    finished(session)
    assert [each.name for each in panel.found.entries] == ["original", "Q2_K"]
    page = html_of(panel)
    assert "no difference shown" in page or "worse" in page or "as good" in page
    assert HOSTILE not in page
    found = result_of(panel.code)
    assert [one.frame().reply.tolist() for one in (found, panel.found)] == [panel.found.frame().reply.tolist()] * 2


def test_what_changed_is_stepped_through(panel, session):
    panel.read()
    finished(session)
    panel.run()
    finished(session)
    entries = panel.found.entries
    changed = [
        benchmarking.Entry(
            each.name, each.nbytes, (tuple(replace(one, score=score) for one in each.outcomes[0]),), each.kl
        )
        for each, score in zip(entries, (1.0, 0.0), strict=True)
    ]
    panel._keep(replace(panel.found, entries=tuple(changed)), panel._asked)
    assert len(panel.flips) == 4
    assert "1 of 4: Q2_K lost example 1" in panel.where.value
    panel.after.click()
    assert "2 of 4: Q2_K lost example 2" in panel.where.value
    assert "<mark>" in panel.flip.value or "Answer" in panel.flip.value
    assert HOSTILE not in panel.flip.value
    panel.of.value = "Q2_K"
    assert len(panel.flips) == 4


def test_a_cancelled_run_shows_what_was_answered(panel, session, monkeypatch):
    panel.read()
    finished(session)
    ask = benchmarking.answers_steps

    def half(contender, tasks, **options):
        answers = yield from ask(contender, tasks, **options)
        session.jobs.cancel()
        yield from (Progress(0, 0, "answer") for _ in range(3))
        return answers

    monkeypatch.setattr(benchmarking, "answers_steps", half)
    panel.run()
    finished(session)
    assert session.jobs.status.state == "cancelled"
    assert "4 of 8 answers are there" in html_of(panel)
