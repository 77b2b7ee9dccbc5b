"""`wb.benchmark` on tiny models: who is asked, what is kept, what a failure ends."""

from __future__ import annotations

import json

import pytest

import workbench as wb
from tests.engines import models
from workbench.tasks import answering
from workbench.tasks.benchmarking import benchmark_steps


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("models") / "model")


def rows(count=6):
    return [{"prompt": f"Say the number {number}.", "answer": number} for number in range(count)]


def test_a_task_over_two_formats_gives_a_paired_table(model, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows())))
    found = wb.benchmark([model, "INT4"], wb.task(file, max_tokens=5))
    table = found.table()
    assert list(table.candidate) == ["model", "INT4"]
    assert list(table.verdict) == ["the reference", "no difference shown"]
    assert list(table.bytes) == [model.nbytes, wb.plan_for(model, "INT4").nbytes]
    assert len(found.frame()) == 12
    assert (found.frame().reply != "").all()
    assert "INT4" in repr(found)


def test_answers_are_those_of_the_engine_and_are_asked_for_once(model, monkeypatch):
    task = wb.task(rows(3), max_tokens=6)
    first = wb.benchmark([model, "INT4"], task)
    with wb.run(model, wb.plan_for(model, "INT4")) as engine:
        said = [engine(row["prompt"], max_tokens=6).text for row in rows(3)]
    assert [each.text for each in first.entries[1].outcomes[0]] == said

    def no_engine(*_):
        raise AssertionError("an engine was opened")

    monkeypatch.setattr(answering.Contender, "open_steps", no_engine)
    again = wb.benchmark([model, "INT4"], task)
    assert again.frame().equals(first.frame())


def test_a_cancelled_run_goes_on_where_it_stopped(model):
    task = wb.task(rows(8), max_tokens=6)
    steps = benchmark_steps([model], task)
    for step in steps:
        if step.unit == "answer" and step.done >= 2:
            break
    steps.close()
    began = next(step for step in benchmark_steps([model], task) if step.unit == "answer")
    assert 2 <= began.done < 8
