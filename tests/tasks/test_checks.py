"""How replies are scored, by the kinds of check and by a user's function."""

from __future__ import annotations

import os
import threading
import time
from fractions import Fraction

import pytest

import workbench as wb
from workbench.engines import Reply
from workbench.progress import drain
from workbench.tasks import apart, checks
from workbench.tasks.asking import Said
from workbench.tasks.numbers import number_in, number_of
from workbench.tasks.scoring import outcomes_steps

NUMBERS = [
    ("7", 7),
    ("3 + 4 = 7", 7),
    ("The answer is 7. There were 12 apples.", 7),
    ("She has 12, so the answer is $1,250.50.", Fraction("1250.5")),
    ("#### 18", 18),
    ("Thus \\boxed{\\frac{3}{4}}", Fraction(3, 4)),
    ("about 1/2 of them", Fraction(1, 2)),
    ("25%", Fraction(1, 4)),
    ("x = -3", -3),
    ("from 10-3 we get 7", 7),
    ("It costs 1 234 567 in all", 1234567),
    ("6.02e23 of them", Fraction("6.02e23")),
    ("**42** dollars", 42),
    ("La respuesta: 9 días", 9),
    ("no number", None),
    ("1/0", None),
    ("9" * 200, None),
    ("9^9^9^9^9", 9),
]


@pytest.mark.parametrize(("reply", "number"), NUMBERS)
def test_the_number_that_a_reply_comes_to(reply, number):
    assert number_in(reply.replace("1 234 567", "1\u202f234\u202f567")) == number


def test_answers_are_numbers_only_if_they_are_nothing_else():
    assert number_of("1,000") == 1000
    assert number_of(0.1) == Fraction(1, 10)
    assert [number_of(value) for value in ("7 apples", True, None, float("nan"), "")] == [None] * 5


@pytest.mark.parametrize(
    ("check", "answer", "right", "wrong"),
    [
        ("exact", "Paris", ["paris", " Paris. ", "**Paris**"], ["It is Paris", "", "Pari s"]),
        ("exact", ["yes", "y"], ["Yes!", "y"], ["no"]),
        ("contains", "cat", ["A CAT sat.", "cat"], ["concatenate", "cats"]),
        ("contains", "東京", ["それは東京です"], ["大阪"]),
        ("contains", "16", ["It is 16."], ["116", "160"]),
        ("regex", r"^\d{4}-\d\d$", ["2024-05"], ["in 2024-05"]),
        ("number", "1,000", ["1000", "a thousand: 1000.0"], ["1001", "none"]),
        ("json", {"a": 1, "b": ["x", "y"]}, ['```json\n{"a": 1, "b": ["X", "y"], "c": 0}\n```'], ["{}", "a: 1"]),
        ("letter", 1, ["B", "(B)", "The answer is B.", "B. red"], ["A", "b", "Banana"]),
    ],
)
def test_replies_by_the_kinds_of_check(check, answer, right, wrong):
    kind = checks.CHECKS[check]
    wanted = kind.expected(answer, ("red", "blue"))
    assert [kind.score(reply, wanted) for reply in right] == [1.0] * len(right)
    assert all(kind.score(reply, wanted) < 1 for reply in wrong)


def test_json_is_scored_by_its_fields():
    kind = checks.CHECKS["json"]
    wanted = {"name": "Ada", "born": 1815, "address": {"city": "London"}, "tags": [1, 2]}
    assert kind.score('{"name": "ada", "born": "1815", "address": {"city": "Paris"}, "tags": [1]}', wanted) == 0.4
    assert kind.score("{" * 100_000, wanted) == 0
    assert kind.score('{"name": true}', {"name": 1}) == 0


def outcomes(check, replies, **row):
    task = wb.task([{"prompt": f"{number}?", "answer": "a"} | row for number in range(len(replies))], check=check)
    said = [Said(Reply(text, (), (), 1, 0.1, 1.0, "stop")) for text in replies]
    return drain(outcomes_steps(task, said))


def test_a_users_function_sees_the_reply_and_the_row():
    found = outcomes(lambda reply, row: row["name"] in reply, ["Ada L.", "Bob"], name="Ada")
    assert [one.score for one in found] == [1.0, 0.0]


def test_a_pattern_that_searches_for_ever_costs_its_example_only():
    task = wb.task([{"prompt": "?", "answer": "(a|aa)+$"}, {"prompt": "!", "answer": "b"}], check="regex")
    said = [Said(Reply("a" * 60 + "b", (), (), 1, 0.1, 1.0, "stop"))] * 2
    found = drain(outcomes_steps(task, said))
    assert "still searching" in found[0].error
    assert found[1].right


def hostile(reply, row):
    """A user's checker that goes wrong in every way, by what the reply says."""
    if reply == "loop":
        while True:
            pass
    if reply == "regex":
        import re

        return bool(re.search("(a|aa)+$", "a" * 60 + "b"))  # holds the interpreter's lock for ever
    if reply == "exit":
        os._exit(3)
    if reply == "sleep":
        time.sleep(10_000)
    if reply == "print":
        print("{}")
    return {"raise": lambda: 1 / 0, "text": lambda: "good"}.get(reply, lambda: 0.5)()


def test_a_function_that_raises_or_never_returns_costs_its_example_only(monkeypatch):
    monkeypatch.setattr(apart, "SECONDS", 1.0)
    monkeypatch.setattr(apart.Apart.__init__, "__defaults__", (None, 1.0))
    replies = ["fine", "raise", "loop", "regex", "exit", "text", "print", "fine"]
    found = outcomes(hostile, replies)
    assert [one.score for one in found if not one.error] == [0.5] * 3
    errors = dict(zip(replies, (one.error for one in found), strict=True))
    assert "ZeroDivisionError" in errors["raise"]
    assert "had not returned after 1 s" in errors["loop"]
    assert "had not returned after 1 s" in errors["regex"]
    assert "ended the process" in errors["exit"]
    assert "where True, False or a number" in errors["text"]


def test_a_function_that_cannot_be_sent_runs_here_and_is_ended_too(monkeypatch):
    monkeypatch.setattr(apart.Apart.__init__, "__defaults__", (None, 1.0))
    lock, threads = threading.Lock(), threading.active_count()  # a lock cannot be pickled

    def check(reply, row):
        with lock:
            while reply == "loop":
                pass
            return reply == "good"

    found = outcomes(check, ["loop", "good", "bad"])
    assert "had not returned" in found[0].error
    assert [one.score for one in found[1:]] == [1.0, 0.0]
    until = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= threads, "its loop goes on"
