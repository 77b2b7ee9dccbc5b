"""Two engines on one prompt."""

from __future__ import annotations

import math
import threading

import pytest

from tests.engines import models
from workbench.engines import run, side_by_side, side_by_side_steps
from workbench.engines.base import Reply
from workbench.engines.sidebyside import END, SideBySide
from workbench.exceptions import WorkbenchError


def reply(*tokens):
    return Reply(
        "".join(tokens), tuple(range(len(tokens))), tokens, 3, 0.25, 10.0 if len(tokens) > 1 else math.nan, "stop"
    )


def compared(a, b):
    return SideBySide(("A<i>", "B"), ("as it is", "Q4_K"), (reply(*a), reply(*b)))


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        (["The", " sky"], ["The", " sky"], None),
        (["The", " sky"], ["The", " sea"], 1),
        (["The", " sky"], ["The"], 1),
        (["A"], ["The"], 0),
        ([], ["The"], 0),
        ([], [], None),
    ],
)
def test_the_first_difference_is_a_token_or_an_end(a, b, first):
    assert compared(a, b).first_difference == compared(b, a).first_difference == first


def test_the_text_marks_where_the_replies_part():
    text = repr(compared(["The", " sky", " is"], ["The", " sea", "!"]))
    assert "The⟦ sky⟧ is" in text
    assert "The⟦ sea⟧!" in text
    assert text.endswith("the replies part at token 2, after 1 that are the same")
    assert "[3 tokens: first after 0.25 s, then 10.0 tokens/s]" in text


def test_a_reply_that_ends_first_is_marked_at_its_end():
    assert f"The⟦{END}⟧" in repr(compared(["The"], ["The", " sea"]))


def test_a_token_without_text_of_its_own_is_marked_with_the_character_it_begins():
    assert "a⟦é⟧b" in repr(compared(["a", "", "é", "b"], ["a", "x"]))


def test_equal_replies_are_said_to_be_equal():
    assert repr(compared(["The", " sky"], ["The", " sky"])).endswith("the same reply, 2 tokens")


def test_hostile_replies_and_names_are_shown_literally():
    shown = compared(["<script>", "alert(1)"], ["<script>", "<img src=x>"])._repr_html_()
    assert "&lt;script&gt;<mark>alert(1)</mark>" in shown
    assert "&lt;img src=x&gt;" in shown
    assert "A&lt;i&gt;" in shown
    assert "<script" not in shown
    assert "<img" not in shown


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    checkpoint = models.opened(tmp_path_factory.mktemp("model") / "tiny")
    with run(checkpoint) as a, run(checkpoint, "Q4_0") as b:
        a.ends = b.ends = frozenset()
        yield a, b


def test_both_answer_with_the_same_settings(engines):
    result = side_by_side(*engines, "hello", max_tokens=8, seed=3, temperature=0.5)
    assert result.names == ("tiny", "tiny Q4_0")
    for engine, got in zip(engines, result.replies, strict=True):
        assert got.token_ids == engine("hello", max_tokens=8, seed=3, temperature=0.5).token_ids


def test_the_steps_show_each_piece_with_its_side(engines):
    shown = ["", ""]

    def show(side, piece):
        shown[side] += piece

    steps = side_by_side_steps(*engines, "hello", max_tokens=30, show=show)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result = end.value
            break
        assert step.fraction is None or 0 <= step.fraction <= 1
    assert tuple(shown) == tuple(got.text for got in result.replies)


def test_closing_the_steps_stops_the_engine_that_answers(engines, monkeypatch):
    first, streams, passes = engines[0], [], []
    begun, stopped = threading.Event(), threading.Event()

    def stream(*asked, **settings):
        streams.append(type(first).stream(first, *asked, **settings))
        return streams[-1]

    def stop():
        type(first).stop(first)
        stopped.set()

    def slow(*_):
        passes.append(stopped.is_set())
        if len(passes) == 3:
            begun.set()
            stopped.wait(120)

    monkeypatch.setattr(first, "stream", stream)
    monkeypatch.setattr(first, "stop", stop)
    hook = first.model.register_forward_pre_hook(slow)
    try:
        steps = side_by_side_steps(*engines, "hello", max_tokens=200)
        while not begun.is_set():
            next(steps)
        steps.close()
        streams[0].close()  # waits for its end
    finally:
        hook.remove()
    assert passes == [False] * 3
    assert streams[0].reply.finish == "stopped"
    assert first("hello", max_tokens=1).token_ids


def test_an_engine_is_not_compared_with_itself(engines):
    with pytest.raises(WorkbenchError, match="same engine"):
        side_by_side(engines[0], engines[0], "hello")
