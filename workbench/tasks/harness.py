"""Tasks of lm-evaluation-harness: that library writes the questions and scores the replies, and the asking is ours.

It is called twice, each time through its own `simple_evaluate`. First with a model that only notes what it is asked,
which gives the examples; later, for every candidate, with one that says what the candidate said, which gives the
scores. In between, answers are cached, batched and paired as those of any other task.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Settings
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, in_thread
from workbench.tasks.understanding import HARNESS, Example

if TYPE_CHECKING:
    from workbench.tasks.asking import Said

PREFIX = "lm-eval:"  # before the name of one of that library's own tasks
YAML = (".yaml", ".yml")
TOKENS = 256  # of a reply, where the task does not say


@dataclass(frozen=True)
class Harness:
    """Where a task comes from, and what of its scores is used.

    Attributes:
        name: that library's name of it.
        folder: of the YAML file; None: one of its own tasks.
        shots, limit, seed: as `wb.task` takes them; None leaves them to the task.
        metric, filter: of its scores; None: the first.
    """

    name: str
    folder: str | None
    shots: int | None
    limit: int | None
    seed: int
    metric: str | None = None
    filter: str | None = None

    @property
    def what(self) -> str:
        """What decides the score, in words."""
        by = f"{self.metric or 'its first metric'}" + (f" after its filter {self.filter!r}" if self.filter else "")
        return f"lm-evaluation-harness, task {self.name}: {by}"


def is_harness(source: object) -> bool:
    """Whether `wb.task` is given such a task: a YAML file, or "lm-eval:" and a name."""
    text = str(source) if isinstance(source, str | Path) else ""
    return text.startswith(PREFIX) or text.lower().endswith(YAML)


def opened(source: str | Path, check: object, shots: int | None, limit: int | None, seed: int) -> Harness:
    """What was asked for; raises WorkbenchError for a file that is none, or a check that is no metric's name."""
    if check is not None and not isinstance(check, str):
        raise WorkbenchError(
            "check", "lm-evaluation-harness scores its tasks itself", allowed='a metric, such as "exact_match,none"'
        )
    metric, _, filter = (check or "").partition(",")
    chosen: dict[str, Any] = {"shots": shots, "limit": limit, "seed": seed}
    chosen |= {"metric": metric or None, "filter": filter or None}
    if str(source).startswith(PREFIX):
        return Harness(str(source).removeprefix(PREFIX), None, **chosen)
    path = Path(source).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise WorkbenchError(path, f"it cannot be read ({reason})", allowed="a YAML file of a task") from reason
    named = re.search(r"^task:\s*[\"']?([\w.-]+)", text, flags=re.MULTILINE)
    if named is None:
        raise WorkbenchError(path, "it names no task", allowed="a line such as task: my_task")
    return Harness(named[1], str(path.resolve().parent), **chosen)


def examples_steps(harness: Harness) -> Steps[tuple[list[Example], Settings]]:
    """The task's questions, and how replies to them are generated.

    Raises:
        WorkbenchError: the library cannot open it, or it asks for what no engine here gives.
    """
    noted = Noted()
    samples = yield from _samples_steps(harness, noted)
    documents = {sample["doc_id"]: sample for sample in samples}
    asked: dict[int, list[Any]] = {}
    for request in noted.requests:
        asked.setdefault(request.doc_id, []).append(request)
    settings = [_settings(request.args[1]) for request in noted.requests if request.request_type == "generate_until"]
    if len({json.dumps(vars(one)) for one in settings}) > 1:
        raise WorkbenchError(harness.name, "its questions are generated with different settings")
    examples = [_example(harness, number, requests, documents[number]) for number, requests in sorted(asked.items())]
    return examples, settings[0] if settings else Settings()


def scores_steps(harness: Harness, examples: Sequence[Example], said: Sequence[Said]) -> Steps[list[float]]:
    """Its score of every answer; not a number where there is no answer or no score."""
    answers = {int(example.id): one for example, one in zip(examples, said, strict=True)}
    samples = yield from _samples_steps(harness, Replayed(answers))
    found = {}
    for sample in samples:
        metrics = [name for name in sample["metrics"] if isinstance(sample.get(name), int | float | bool)]
        wanted = harness.metric or next(iter(metrics), None)
        if harness.filter not in (None, sample.get("filter")) or sample["doc_id"] in found:
            continue
        if wanted is None or wanted not in metrics:
            raise WorkbenchError("check", f"{harness.name} has no metric {wanted!r}", allowed=", ".join(metrics))
        found[sample["doc_id"]] = float(sample[wanted])
    return [
        math.nan if one.reply is None else found.get(int(example.id), math.nan)
        for example, one in zip(examples, said, strict=True)
    ]


def _samples_steps(harness: Harness, answers: Any) -> Steps[list[dict[str, Any]]]:
    """What the library makes of a model's answers, an entry for each document and filter."""
    need("lm_eval")

    def work(report: Callable[[Progress], None]) -> list[dict[str, Any]]:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        report(Progress(0, 0, "", f"lm-evaluation-harness: {harness.name}"))
        own = {"include_path": harness.folder, "include_defaults": False} if harness.folder else {}
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        found: Any = simple_evaluate(
            model=_model(answers),
            tasks=[harness.name],
            num_fewshot=harness.shots,
            limit=harness.limit,
            task_manager=TaskManager(**own),
            apply_chat_template=True,
            bootstrap_iters=0,
            **dict.fromkeys(seeds, harness.seed),
        )
        samples = found["samples"]
        if len(samples) != 1:
            names = ", ".join(samples)
            raise WorkbenchError(harness.name, "it is a group of tasks", allowed=names, do="take them one by one")
        return next(iter(samples.values()))

    try:
        return (yield from in_thread(work))
    except WorkbenchError:
        raise
    except Exception as error:  # of that library, of datasets, or of code that the YAML names
        told = str(error).strip().splitlines() or [""]
        raise WorkbenchError(
            harness.name,
            f"lm-evaluation-harness cannot run it ({type(error).__name__}: {told[-1][:300]})",
            do="run it with that library's own command to see why",
        ) from error


class Noted:
    """Answers nothing, and notes what was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def replies(self, requests: Sequence[Any]) -> list[str]:
        self.requests += requests
        return [""] * len(requests)

    def likelihoods(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        self.requests += requests
        return [(0.0, False)] * len(requests)


class Replayed:
    """Answers what a candidate answered, by the number of the document."""

    def __init__(self, answers: dict[int, Said]) -> None:
        self.answers = answers

    def replies(self, requests: Sequence[Any]) -> list[str]:
        said = [self.answers[request.doc_id].reply for request in requests]
        return [reply.text if reply is not None else "" for reply in said]

    def likelihoods(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        found = [self.answers[request.doc_id].likelihoods for request in requests]
        return [(each[request.idx] if each else 0.0, False) for request, each in zip(requests, found, strict=True)]


def _model(answers: Noted | Replayed) -> Any:
    """The library's kind of model, over answers that are there already."""
    from lm_eval.api.model import LM

    class Model(LM):
        tokenizer_name = "workbench"

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.replies(requests)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return answers.likelihoods(requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise WorkbenchError(
                "task", "it measures the perplexity of texts", do="wb.compare(reference, candidate, text)"
            )

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return json.dumps(chat_history)  # the engine applies the model's own

        def chat_template(self, chat_template: Any = False) -> str:
            return ""

    return Model()


def _example(harness: Harness, number: int, requests: Sequence[Any], sample: dict[str, Any]) -> Example:
    first = requests[0]
    choices: tuple[str, ...] = ()
    if first.request_type == "loglikelihood":
        in_order = sorted(requests, key=lambda request: request.idx)
        choices = tuple(str(request.args[1]).strip() for request in in_order)
    elif len(requests) > 1:
        raise WorkbenchError(
            harness.name, f"it asks {len(requests)} times for each document", do="set its repeats to 1"
        )
    row = sample["doc"] if isinstance(sample["doc"], dict) else {"document": sample["doc"]}
    where = f"document {number} of {harness.name}"
    return Example(where, str(number), _messages(first.args[0]), sample["target"], None, choices, HARNESS, row)


def _messages(context: str) -> tuple[dict[str, str], ...]:
    """The conversation that `apply_chat_template` wrote, or a text as a message."""
    try:
        turns, end = json.JSONDecoder().raw_decode(context)
        rest = context[end:].strip()
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    except (ValueError, TypeError, KeyError):
        return ({"role": "user", "content": context},)
    if rest:
        messages[-1]["content"] += f"\n{rest}"
    return tuple(messages)


def _settings(generation: dict[str, Any]) -> Settings:
    until = generation.get("until") or []
    until = [until] if isinstance(until, str) else until
    sampled = bool(generation.get("do_sample")) and generation.get("temperature", 0)
    return Settings(
        max_tokens=int(generation.get("max_gen_toks") or TOKENS),
        temperature=float(generation["temperature"]) if sampled else 0.0,
        stop=[text for text in until if text],
    )
