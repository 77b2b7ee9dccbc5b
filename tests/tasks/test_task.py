"""`wb.task`: what is read, what is understood, what is refused with its row and field."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import workbench as wb
from workbench.tasks import reading
from workbench.tasks.task import task_steps


def jsonl(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def refused(source, **options):
    with pytest.raises(wb.WorkbenchError) as caught:
        wb.task(source, **options)
    return f"{caught.value.item}: {caught.value.found}"


def test_the_same_rows_are_understood_the_same_from_every_kind_of_file(tmp_path):
    rows = [{"question": "Two and two?", "answer": "4"}, {"question": 'Say "a, b".', "answer": "5"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "c.csv", index=False, sep=";", encoding="utf-8-sig")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    sources = [*(tmp_path / name for name in ("a.csv", "b.tsv", "c.csv", "d.json")), frame, rows]
    for source in (jsonl(tmp_path / "e.jsonl", [*rows, ""]), *sources):
        task = wb.task(source)
        assert [one.prompt for one in task.examples] == ["Two and two?", 'Say "a, b".']
        assert task.checks == {"number": 2}
        assert "prompt: 'question'" in task.understood


def test_the_check_that_suits_the_answers_is_taken():
    def kind(*answers, **more):
        return wb.task([{"prompt": "?", "answer": answer} | more for answer in answers]).checks

    assert kind(3, 4.5, "1,000") == {"number": 3}
    assert kind("She has 3.\n#### 3") == {"number": 1}
    assert kind("Paris", "7") == {"contains": 2}
    assert kind({"name": "Ada"}) == {"json": 1}
    assert kind("b", 0, "B", choices=["a", "b"]) == {"choice": 3}
    own = wb.task(
        [{"prompt": "?", "answer": "x", "check": "exact"}, {"prompt": "?", "answer": "[0-9]", "check": "regex"}]
    )
    assert own.checks == {"exact": 1, "regex": 1}


def test_choices_are_named_by_text_letter_or_number():
    rows = [{"prompt": "?", "answer": answer, "choices": ["red", "green", "blue"]} for answer in ("green", "B", 1)]
    assert [one.wanted for one in wb.task(rows).examples] == [1, 1, 1]
    lettered = wb.task([{"prompt": "Which?", "answer": "blue", "choices": "red|green|blue"}], check="letter")
    assert lettered.examples[0].prompt == "Which?\nA. red\nB. green\nC. blue\nAnswer with the letter alone."
    assert lettered.examples[0].shown_answer == "C"


def test_a_prompt_may_be_a_conversation_or_a_template():
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi."}]
    asked = wb.task([{"messages": turns, "answer": "hello"}, {"messages": json.dumps(turns), "answer": "hello"}])
    assert [list(one.messages) for one in asked.examples] == [turns, turns]
    filled = wb.task([{"q": "2+2", "a": 4}], prompt="Q: {q} =", answer="a")
    assert filled.examples[0].prompt == "Q: 2+2 ="
    assert "it is missing" in refused([{"q": "2+2", "a": 4}], prompt="{q} {z.__class__}", answer="a")


def test_shots_are_shown_with_their_answers_and_not_scored():
    rows = [{"prompt": f"{number}?", "answer": number} for number in range(6)]
    task = wb.task(rows, shots=2, system="Count.")
    assert (len(task.shots), len(task)) == (2, 4)
    assert not {one.id for one in task.shots} & {one.id for one in task.examples}
    asked = task.messages(task.examples[0])
    assert [turn["role"] for turn in asked] == ["user", "assistant", "user", "assistant", "user"]
    assert asked[1]["content"] == task.shots[0].shown_answer
    assert [one.id for one in wb.task(rows, shots=2).shots] == [one.id for one in task.shots]
    assert "leave none to ask" in refused(rows, shots=6)


def test_a_sample_is_drawn_by_its_seed_from_the_whole_file(tmp_path):
    file = jsonl(tmp_path / "many.jsonl", [{"prompt": f"{number}?", "answer": number} for number in range(500)])
    drawn = [one.id for one in wb.task(file, limit=20).examples]
    assert len(drawn) == 20
    assert drawn == [one.id for one in wb.task(file, limit=20).examples] == sorted(drawn, key=int)
    assert drawn != [one.id for one in wb.task(file, limit=20, seed=1).examples]
    assert int(drawn[-1]) > 300
    assert "drawn from 500" in repr(wb.task(file, limit=20))


def test_more_rows_than_anybody_waits_for_are_priced_first_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST", 5000)
    file = jsonl(tmp_path / "huge.jsonl", ['{"prompt": "1?", "answer": 1}'] * 20_000 + ["broken"])
    assert "20,001 rows: at about 1 s for an answer, 6 hours for each candidate" in refused(file)
    assert any(step.unit == "row" for step in task_steps(file, limit=3))
    assert len(wb.task(file, limit=100, seed=2)) == 100


BAD = {
    "no rows": ([], "it has no rows"),
    "no prompt": ([{"text": "a", "answer": 1}], "row 1 of the list: none of its fields is the prompt"),
    "no answer": ([{"prompt": "a"}], "row 1 of the list: none of its fields is the answer"),
    "a missing answer": (
        [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": None}],
        "row 2 of the list, field 'answer': its answer is None, and that of row 1 of the list is 1",
    ),
    "a missing prompt": (
        [{"prompt": "a", "answer": 1}, {"answer": 1}],
        "row 2 of the list, field 'prompt': it is missing",
    ),
    "an empty prompt": ([{"prompt": " ", "answer": 1}], "row 1 of the list, field 'prompt': it is ' '"),
    "a prompt of another type": ([{"prompt": {"a": 1}, "answer": 1}], "row 1 of the list, field 'prompt': it is {'a'"),
    "mixed types": (
        [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": {"x": 1}}],
        "row 2 of the list, field 'answer': its answer is {'x': 1}, and that of row 1 of the list is 1",
    ),
    "not among the choices": (
        [{"prompt": "a", "choices": ["x", "y"], "answer": "z"}],
        "row 1 of the list, field 'answer': 'z' is not among the choices x, y",
    ),
    "a number that is no choice": ([{"prompt": "a", "choices": ["x", "y"], "answer": 2}], "numbered from 0 to 1"),
    "one choice": (
        [{"prompt": "a", "choices": ["x"], "answer": "x"}],
        "row 1 of the list, field 'choices': it is ['x']",
    ),
    "an unknown check": (
        [{"prompt": "a", "answer": 1, "check": "vibes"}],
        "row 1 of the list, field 'check': there is no check 'vibes'",
    ),
    "a pattern that is none": (
        [{"prompt": "a", "answer": "(", "check": "regex"}],
        "row 1 of the list, field 'answer': '(' is no regular expression",
    ),
    "a row that is none": ([{"prompt": "a", "answer": 1}, "b"], "row 2 of the list: it is 'b'"),
    "a role that is none": ([{"messages": [{"role": "me", "content": ""}], "answer": 1}], "message 0: it is"),
}


@pytest.mark.parametrize(("rows", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_names_its_row_and_field(rows, said):
    assert said in refused(rows)


def test_files_that_cannot_be_read_say_where(tmp_path):
    broken = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": 1}, '{"prompt": '])
    assert "row 2 of a.jsonl: it is no JSON" in refused(broken)
    (tmp_path / "b.csv").write_text("prompt,answer\na,1\nb\n")
    assert "row 2 of b.csv: it has 1 cells" in refused(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text('prompt,answer\n"a,1\n' + "x" * 200_000)
    assert "row 1 of c.csv: it is no CSV" in refused(tmp_path / "c.csv")
    (tmp_path / "d.jsonl").write_bytes(b'{"prompt": "\xff", "answer": 1}')
    assert "it cannot be read as text" in refused(tmp_path / "d.jsonl")
    assert "does not say how it is written" in refused(tmp_path / "e.parquet")
    assert "there is no such file" in refused(tmp_path / "gone.jsonl")
    assert "there is no check 'vibes'" in refused([{"prompt": "a", "answer": 1}], check="vibes")
    assert "it is 0" in refused([{"prompt": "a", "answer": 1}], limit=0)


def test_one_example_and_questions_asked_twice_are_said():
    assert "one example settles nothing" in repr(wb.task([{"prompt": "a", "answer": 1}]))
    assert "1 question is asked more than once" in repr(wb.task([{"prompt": "a", "answer": 1}] * 2))


def test_the_text_of_a_task_is_a_text_to_calibrate_on():
    task = wb.task([{"prompt": "Two and two?", "answer": 4}, {"prompt": "And three?", "answer": 7}])
    assert task.text == "Two and two?\n4\n\nAnd three?\n7"
