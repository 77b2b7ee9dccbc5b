"""Tasks of lm-evaluation-harness, and expressions by math-verify: `make test` runs it where both are."""

from __future__ import annotations

import json

import pytest

import workbench as wb
from tests.engines import models
from workbench.engines import Reply
from workbench.progress import drain
from workbench.tasks.asking import Said
from workbench.tasks.scoring import outcomes_steps

YAML = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "Question: {{{{q}}}}\\nAnswer:"
{rest}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""
GENERATED = """doc_to_target: "{{a}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 6
filter_list:
  - name: number
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first"""
CHOSEN = """doc_to_choice: "{{choices}}"
doc_to_target: label"""
ROWS = [
    {"q": "What is 2 + 2?", "a": "4", "choices": ["3", "4", "5"], "label": 1},
    {"q": "What is 3 + 3?", "a": "6", "choices": ["3", "4", "6"], "label": 2},
    {"q": "What is 9 - 3?", "a": "6", "choices": ["6", "4", "5"], "label": 0},
]


@pytest.fixture
def yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))

    def made(name, kind, rest, metric):
        file = tmp_path / f"{name}.yaml"
        file.write_text(YAML.format(name=name, kind=kind, rest=rest, metric=metric, data=data))
        return file

    return made


def said(*texts, likelihoods=()):
    return [Said(Reply(text, (), (), 1, 0.1, 1.0, "stop"), likelihoods) for text in texts]


def test_a_local_task_is_asked_by_us_and_scored_by_the_library(yaml):
    task = wb.task(yaml("sums", "generate_until", GENERATED, "exact_match"))
    assert [one.prompt for one in task.examples] == [f"Question: {row['q']}\nAnswer:" for row in ROWS]
    assert (task.settings.max_tokens, task.settings.stop) == (6, ("\n\n",))
    outcomes = drain(outcomes_steps(task, [*said("It is 4.", "5"), Said(error="it failed")]))
    assert [one.right for one in outcomes] == [True, False, None]
    with pytest.raises(wb.WorkbenchError, match="no metric 'f1'"):
        drain(outcomes_steps(wb.task(yaml("s", "generate_until", GENERATED, "exact_match"), check="f1"), said(*"456")))


def test_choices_are_compared_by_our_likelihoods(yaml, tmp_path):
    task = wb.task(yaml("picks", "multiple_choice", CHOSEN, "acc"))
    assert [one.choices for one in task.examples] == [tuple(row["choices"]) for row in ROWS]
    model = models.opened(tmp_path / "model")
    found = wb.benchmark([model, "INT4"], task, kl=False)
    for one, row in zip(found.reference.outcomes[0], ROWS, strict=True):
        likeliest = max(range(3), key=one.said.likelihoods.__getitem__)
        assert one.right == (likeliest == row["label"])


def test_a_file_that_is_no_task_is_told_in_one_sentence(tmp_path):
    (tmp_path / "a.yaml").write_text("nothing: here")
    with pytest.raises(wb.WorkbenchError, match="it names no task"):
        wb.task(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("task: b\ndataset_path: json\ndataset_kwargs: {data_files: /nowhere.jsonl}")
    with pytest.raises(wb.WorkbenchError, match="lm-evaluation-harness cannot run it"):
        wb.task(tmp_path / "b.yaml")


def test_expressions_are_compared_and_one_that_is_evaluated_for_ever_costs_its_example(monkeypatch):
    from workbench.tasks.apart import Apart

    monkeypatch.setattr(Apart.__init__, "__defaults__", (None, 20.0))
    task = wb.task([{"prompt": f"{n}?", "answer": "\\frac{\\sqrt{2}}{2}"} for n in range(3)], check="maths")
    found = drain(outcomes_steps(task, said("So it is $\\frac{1}{\\sqrt{2}}$.", "$9^{9^{9^{9^9}}}$", "$2$")))
    assert found[0].right
    assert not found[1].right
    assert found[2].right is False
