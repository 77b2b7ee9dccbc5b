"""`wb.benchmark` on tiny models: who is asked, what is kept, what a failure ends."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines import models, servers
from workbench.engines import Reply, build
from workbench.engines.base import Can
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
    steps = benchmark_steps([model], task, parallel=2)
    for step in steps:
        if step.unit == "answer" and step.done >= 2:
            break
    steps.close()
    began = next(step for step in benchmark_steps([model], task) if step.unit == "answer")
    assert 2 <= began.done < 8


def test_a_question_that_fails_is_noted_and_ends_nothing_but_itself(model):
    asked = [*rows(3), {"prompt": "x" * 2000, "answer": 1}]  # longer than the model's context
    found = wb.benchmark([model, "INT4"], wb.task(asked, max_tokens=4))
    frame = found.frame()
    assert frame[frame.example == "4"].error.str.contains("context").all()
    assert frame[frame.example != "4"].error.eq("").all()
    assert list(found.table().failed) == [1, 1]
    assert found.pairs["task", "INT4"].examples == 3
    assert "1 example has no score" in repr(found)


def test_choices_are_compared_by_log_likelihood(model):
    choices = ["a lamp", "the sea", "no"]
    found = wb.benchmark(model, wb.task([{"prompt": "What is it?", "choices": choices, "answer": "the sea"}] * 2))
    outcome = found.reference.outcomes[0][0]
    with wb.run(model) as engine:
        ids = engine.prompt([{"role": "user", "content": "What is it?"}])[1]
        expected = []
        for choice in choices:
            more = engine.tokenizer(choice)["input_ids"]
            logits = engine.model(torch.tensor([[*ids, *more]])).logits.float()[0, len(ids) - 1 : -1].log_softmax(-1)
            expected.append(float(logits.gather(-1, torch.tensor(more)[:, None]).sum().detach()))
    np.testing.assert_allclose(outcome.said.likelihoods, expected, rtol=5e-3)  # of bfloat16 on some processors
    assert outcome.text == choices[int(np.argmax(expected))]
    assert outcome.right == (outcome.text == "the sea")


class Mute:
    """An engine of the user's that gives text alone."""

    name, what, can = "mute", "a stand-in", Can()
    memory_before = memory_after = 0
    asked = 0

    def __call__(self, prompt, **settings):
        self.asked += 1
        if self.asked == 2:
            raise RuntimeError("it hiccuped")
        return Reply("It is 4.", (), ("It is 4.",), 3, 0.1, math.nan, "stop")

    def stream(self, prompt, **settings):
        raise NotImplementedError

    def stop(self):
        pass

    def close(self):
        raise AssertionError("an engine of the user's was closed")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_an_engine_that_is_open_is_asked_and_stays_open(model):
    found = wb.benchmark({"base": model, "own": Mute()}, wb.task(rows(5), max_tokens=4))
    assert [each.name for each in found.entries] == ["base", "own"]
    errors = [one.error for one in found.entries[1].outcomes[0]]
    assert errors == ["", "RuntimeError: it hiccuped", "", "", ""]
    assert [one.right for one in found.entries[1].outcomes[0]] == [False, None, False, False, True]


def test_an_engine_without_likelihoods_is_refused_before_anything_is_asked(model, monkeypatch):
    engine = Mute()
    monkeypatch.setattr(answering.Contender, "open_steps", lambda self: pytest.fail("an engine was opened"))
    with pytest.raises(wb.WorkbenchError, match="row 1 of the list, field 'choices'") as caught:
        wb.benchmark([model, engine], wb.task([{"prompt": "Is it?", "choices": ["yes", "no"], "answer": "no"}]))
    assert 'check="letter"' in caught.value.do
    assert engine.asked == 0


def test_a_format_needs_a_checkpoint_before_it():
    with pytest.raises(wb.WorkbenchError, match="the reference is not a checkpoint"):
        wb.benchmark([Mute(), "Q4_0"], rows(2))


def test_the_flips_are_shown_side_by_side_and_everything_is_escaped(model):
    task = wb.task([{"prompt": "<b>?", "answer": "x"}] * 4, check=lambda reply, row: 1.0, max_tokens=4, name="<i>")
    found = wb.benchmark([model, "INT4"], task)
    outcomes = tuple(replace(one, score=0.0) for one in found.entries[1].outcomes[0][:2])
    changed = replace(found.entries[1], outcomes=((*outcomes, *found.entries[1].outcomes[0][2:]),))
    found = replace(found, entries=(found.entries[0], changed))
    flips = found.flips("INT4")
    assert len(flips) == 2
    assert not flips[0].gained
    assert found.frame().flipped.sum() == 2
    for page in (found._repr_html_(), flips[0]._repr_html_(), task._repr_html_()):
        assert "<i>:" not in page
        assert "<b>?" not in page
    with pytest.raises(wb.WorkbenchError, match="there is none called 'other'"):
        found.flips("other")


def test_kl_is_that_of_the_candidate_on_the_references_own_replies(model):
    found = wb.benchmark([model, "INT4"], wb.task(rows(3), max_tokens=6), dtype="float32")
    plan = wb.plan_for(model, "INT4")
    both = [build.model_of(model, each, dtype="float32") for each in (None, plan)]
    expected = []
    for outcome in found.reference.outcomes[0]:
        ids = torch.tensor([[*outcome.said.prompt, *outcome.said.reply.token_ids]])
        scored = slice(len(outcome.said.prompt) - 1, ids.shape[1] - 1)
        p, q = (each(input_ids=ids).logits[0, scored].detach().double().log_softmax(-1) for each in both)
        expected.append((p.exp() * (p - q)).sum(-1))
    kl = found.entries[1].kl[0]
    assert kl.value == pytest.approx(float(torch.cat(expected).mean()), rel=1e-3)
    assert kl.error_by_chunk > 0
    assert found.table().kl.iloc[1] == kl.value


def test_a_candidate_with_other_tokens_has_no_kl_and_says_why(model, tmp_path):
    other = models.opened(tmp_path / "other", "llama", vocab_size=300)
    found = wb.benchmark([model, other], wb.task(rows(2), max_tokens=4))
    assert found.entries[1].kl == (None,)
    assert any("knows 300 tokens" in note for note in found.notes)


def test_choices_in_llama_cpp_have_the_likelihoods_that_transformers_gives(tmp_path):
    file = wb.load(tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(), "F32"))
    task = wb.task([{"prompt": "What is it?", "choices": ["a lamp", "the sea"], "answer": "the sea"}] * 2)
    with wb.run(file, engine="llama.cpp", context=128) as engine:
        found = wb.benchmark([file, engine], task, dtype="float32")
    here, there = (each.outcomes[0][0].said.likelihoods for each in found.entries)
    np.testing.assert_allclose(here, there, rtol=1e-3)


def test_a_server_is_asked_several_questions_at_once_and_its_faults_cost_their_examples():
    inside, most, lock = [0], [0], threading.Lock()

    def chat(asked):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        prompt = json.loads(asked.body)["messages"][-1]["content"]
        if "3" in prompt:
            asked.begin(500, "application/json")
        else:
            asked.begin()
            asked.piece(f"It is {prompt.split()[-1]}", "stop")
            asked.write("data: [DONE]\n\n")
        with lock:
            inside[0] -= 1

    with servers.running(chat=chat) as server:
        found = wb.benchmark(server.url, wb.task(rows(8)), parallel=3)
    assert most[0] == 3
    assert [one.right for one in found.reference.outcomes[0]] == [True] * 3 + [None] + [True] * 4
    assert found.reference.outcomes[0][3].error
    assert found.reference.nbytes is None


def test_pictures_and_the_page_hold_every_candidate_and_escape_what_strangers_wrote(model, tmp_path):
    task = wb.task([{"prompt": "<script>x</script> 1?", "answer": "1"}] * 3, max_tokens=3, name="<script>t")
    found = wb.benchmark({"base": model, "<script>c": "INT4"}, task)
    page = found.report(tmp_path / "page.html").read_text()
    without_plotly = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script" not in without_plotly
    assert "&lt;script&gt;t" in without_plotly
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["'](?!data:)""", page)
    gap = found.pairs["<script>t", "<script>c"].difference
    shown = [trace for trace in found.figure().data if trace.x]
    assert [trace.x[0] for trace in shown] == [100 * gap.value]
    assert list(found.by_bytes().data[0].x) == sorted(each.nbytes / 1e6 for each in found.entries)
    assert list(found.by_kl().data[0].x) == [found.entries[1].kl[0].value]
