"""Replies made at once: those of the questions asked alone."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

import workbench as wb
from tests.engines import models
from workbench.engines import batch
from workbench.engines.answering import Stopped
from workbench.engines.base import Settings

QUESTIONS = ("Hi.", "What is in the box by the door?", "Name a town, and say in a few words why one would go there.")


def asked(engine, settings):
    prompts = [engine.prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    return batch.replies(engine, prompts, settings, threading.Event())


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "qwen3_moe"])
def test_replies_are_those_of_questions_asked_alone(architecture, tmp_path):
    model = models.opened(tmp_path / architecture, architecture)
    settings = [{"max_tokens": 12}, {"max_tokens": 20}, {"max_tokens": 9, "temperature": 1.0, "seed": 3}]
    with wb.run(model, dtype="float32") as engine:
        assert batch.batches(engine)
        alone = [engine(text, **one) for text, one in zip(QUESTIONS, settings, strict=True)]
        at_once = asked(engine, [Settings(**one) for one in settings])
    for one, other in zip(alone, at_once, strict=True):
        assert (one.text, one.token_ids, one.finish) == (other.text, other.token_ids, other.finish)
        assert "".join(other.tokens) == other.text
        assert one.prompt_tokens == other.prompt_tokens


def test_a_stop_string_ends_its_own_reply_only(tmp_path):
    with wb.run(models.opened(tmp_path / "m"), dtype="float32") as engine:
        sampled = Settings(max_tokens=40, temperature=1.0, seed=1)
        whole = asked(engine, [sampled] * 3)
        stop = next(text for text in whole[1].tokens[4:] if text.strip())
        cut = asked(engine, [sampled, replace(sampled, stop=stop), sampled])
    assert cut[1].text == whole[1].text.partition(stop)[0]
    assert cut[1].finish == "stop"
    assert [cut[place].text for place in (0, 2)] == [whole[0].text, whole[2].text]


def test_a_model_that_keeps_a_state_is_asked_one_by_one(tmp_path):
    with wb.run(models.opened(tmp_path / "m", "mamba"), dtype="float32") as engine:
        assert not batch.batches(engine)


def test_a_stop_ends_it(tmp_path):
    stop = threading.Event()
    with wb.run(models.opened(tmp_path / "m"), dtype="float32") as engine:
        prompts = [engine.prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
        with pytest.raises(Stopped):
            batch.replies(engine, prompts, [Settings(max_tokens=200)] * 3, stop, tick=stop.set)


def test_no_more_are_made_at_once_than_fit(tmp_path, monkeypatch):
    with wb.run(models.opened(tmp_path / "m"), dtype="float32") as engine:
        assert batch.fitting(engine, 100, 16) == 16
        one = engine.needs.at(context=100, batch=3)
        here = batch.room.here(engine.device)
        monkeypatch.setattr(batch.room, "here", lambda device: replace(here, usable=one.cache + one.parts["compute"]))
        assert batch.fitting(engine, 100, 16) == 2
