"""The four tasks in data/tasks: distinct, well formed, and right by an independent way to every answer."""

from __future__ import annotations

import ast
import contextlib
import io
import operator
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import workbench as wb
from workbench.engines import Reply
from workbench.progress import drain
from workbench.tasks.asking import Said
from workbench.tasks.scoring import outcomes_steps

FOLDER = Path(__file__).parents[2] / "data" / "tasks"
FILES = sorted(FOLDER.glob("*.jsonl"))
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def value(node: ast.expr) -> Fraction:
    """A sum of plain numbers, exactly."""
    if isinstance(node, ast.BinOp):
        left, right = value(node.left), value(node.right)
        return OPERATORS[type(node.op)](left, int(right) if isinstance(node.op, ast.Pow) else right)
    if isinstance(node, ast.UnaryOp):
        return -value(node.operand)
    return Fraction(str(ast.literal_eval(node)))


def test_there_are_four():
    assert [path.stem for path in FILES] == ["arithmetic", "code", "extraction", "instructions"]


@every_file
def test_a_file_has_sixty_distinct_examples_or_more(path):
    task = wb.task(path)
    assert len(task) >= 60
    assert not task.notes
    assert len({" ".join(one.prompt.casefold().split()) for one in task.examples}) == len(task)
    longest = Counter(one.shown_answer for one in task.examples).most_common(1)[0][1]
    assert longest <= len(task) / 10, "one answer fits too many questions"


@every_file
def test_the_answer_that_a_file_gives_is_scored_as_right_and_another_as_wrong(path):
    task = wb.task(path)
    for text, score in ((None, 1.0), ("Who knows?", 0.0)):
        said = [Said(Reply(text or one.shown_answer, (), (), 1, 0.1, 1.0, "stop")) for one in task.examples]
        wrong = [
            one.id
            for one, found in zip(task.examples, drain(outcomes_steps(task, said)), strict=True)
            if found.score != score
        ]
        assert not wrong


def test_the_working_of_every_sum_gives_its_answer():
    for one in wb.task(FOLDER / "arithmetic.jsonl").examples:
        assert value(ast.parse(one.row["working"], mode="eval").body) == one.wanted, one.prompt


def test_every_program_prints_its_answer():
    for one in wb.task(FOLDER / "code.jsonl").examples:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(one.row["code"], {"__name__": "snippet"})
        assert said.getvalue().strip("\n") == one.answer
        assert one.row["code"] in one.prompt


def test_what_is_to_be_extracted_stands_in_the_text_and_its_fields_in_the_prompt():
    for one in wb.task(FOLDER / "extraction.jsonl").examples:
        text = one.row["text"]
        for key, found in one.answer.items():
            assert f'"{key}"' in one.prompt
            if isinstance(found, str):
                assert found in text
            elif isinstance(found, list):
                assert all(each in text for each in found)


def test_instructions_are_in_three_languages():
    counts = Counter(one.row["language"] for one in wb.task(FOLDER / "instructions.jsonl").examples)
    assert set(counts) == {"de", "en", "es"}
    assert min(counts.values()) >= 20
