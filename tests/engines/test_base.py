"""Settings, conversations and replies."""

from __future__ import annotations

import math

import pytest

from workbench.engines.base import Reply, Settings, messages_of
from workbench.exceptions import WorkbenchError

REPLY = Reply("<b>hi</b>", (5, 6), ("<b>hi", "</b>"), 12, 0.5, 20.0, "stop")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 2.5),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("max_tokens", None),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["", "x"]),
        ("stop", [1]),
        ("stop", 7),
        ("system", 7),
        ("temprature", 1),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(name, value):
    with pytest.raises(WorkbenchError) as caught:
        Settings.of(**{name: value})
    assert caught.value.item == name
    assert caught.value.allowed


def test_the_defaults_are_greedy():
    assert Settings.of().temperature == 0


def test_one_stop_string_and_a_list_of_one_are_the_same():
    assert Settings(stop="\n") == Settings(stop=["\n"])


def test_a_text_is_one_message_of_the_user_after_the_system_instruction():
    assert messages_of("hi", "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize("prompt", [[], [{"role": "robot", "content": "x"}], [{"role": "user"}], ["hi"]])
def test_a_conversation_that_is_none_is_refused(prompt):
    with pytest.raises(WorkbenchError, match=r"conversation|message 0"):
        messages_of(prompt, None)


def test_a_reply_shows_its_text_its_speed_and_no_markup_of_the_model():
    assert str(REPLY) == "<b>hi</b>"
    assert repr(REPLY) == "<b>hi</b>\n[2 tokens: first after 0.50 s, then 20.0 tokens/s]"
    assert "&lt;b&gt;hi&lt;/b&gt;" in REPLY._repr_html_()
    assert "<b>" not in REPLY._repr_html_()
