"""The demo model, which says something: its own template, its own end, sense in what it answers."""

from __future__ import annotations

import pytest

from workbench.engines import run, side_by_side

CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


@pytest.fixture(scope="module")
def engine(demo):
    with run(demo) as made:
        yield made


def test_it_answers_and_ends_by_itself(engine):
    reply = engine(CHAT[:1], max_tokens=40)
    assert "Paris" in reply.text
    assert reply.finish == "stop"
    assert "<|im_end|>" not in reply.text
    assert engine.tokenizer.decode(list(engine.ends)[:1]) == "<|im_end|>"


def test_it_follows_a_conversation(engine):
    assert "Rome" in engine(CHAT, max_tokens=20).text


@pytest.mark.parametrize("chat", [CHAT[:1], CHAT, [{"role": "system", "content": "Be kind."}, *CHAT]])
def test_its_prompt_is_that_of_transformers(demo, engine, chat):
    theirs = demo.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt, ids = engine.prompt(chat)
    assert prompt.text == theirs
    assert ids == demo.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_four_bits_in_the_librarys_layers_still_answer_and_take_less_memory(engine, demo):
    with run(demo, "NF4") as small:
        assert small.memory_after - small.memory_before < 0.6 * demo.params * 2
        result = side_by_side(engine, small, "What is the capital of France?", max_tokens=20)
    assert all("Paris" in reply.text for reply in result.replies)
