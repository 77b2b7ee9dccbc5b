"""Benchmark: a file of the user's own questions, put to the model in several formats; what changed, one by one."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets as widgets

from workbench.exceptions import WorkbenchError
from workbench.panels import parts
from workbench.panels.chosen import Chosen
from workbench.panels.conversation import marked
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, sentence, tag, together
from workbench.panels.session import ADVICE, ORIGINAL, PLAN, Session
from workbench.tasks import shown
from workbench.tasks.benchmarking import benchmark_so_far, benchmark_steps
from workbench.tasks.result import Benchmark as Found
from workbench.tasks.result import Flip
from workbench.tasks.task import Task, task_steps

OFFERED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "NF4", "INT8")
FIRST = 5  # rows of the file that are shown
DIFFERENCE = shown.HEADS.index("difference, points")
ALL = ("all", "")  # of the candidates, in the menu of what changed


class Benchmark(Panel):
    """Asks several formats the user's own questions: `wb.benchmark([model, ...], task)`."""

    title = "Benchmark"
    lead = (
        "Is the quantized model still good at what you do? Bring a file of your own questions and answers; every "
        "format is asked the same, and the table says what the difference is and how sure that is."
    )

    def __init__(self, session: Session | None = None) -> None:
        self.task: Task | None = None
        self.found: Found | None = None
        self.anyway = False  # whether the last run went ahead although it did not fit
        self._asked: tuple[object, tuple[str, ...], Task] | None = None  # what `found` is about
        self._at = 0  # of the examples that changed
        super().__init__(session)

    def build(self) -> list[widgets.Widget]:
        wide: dict[str, Any] = {"style": {"description_width": "110px"}}
        self.file = widgets.Text(
            placeholder="a .jsonl, .csv or .json file: a prompt and an answer on each row", description="File"
        )
        self.file.add_class("wb-grow")
        self.open = parts.button("Open", self.read)
        self.limit = widgets.BoundedIntText(60, min=1, max=100_000, description="At most", **wide)
        self.shots = widgets.BoundedIntText(0, min=0, max=50, description="Shown first", **wide)
        self.max_tokens = widgets.BoundedIntText(64, min=1, max=100_000, description="Most tokens", **wide)
        self.kl = widgets.Checkbox(value=True, description="KL divergence too", indent=False)
        for one in (self.file, self.limit, self.shots, self.max_tokens, self.kl):
            one.observe(lambda _: self.refresh(), "value")
        self.understood = parts.html_box()
        self.chips = {name: self._chip(name) for name in (PLAN, *OFFERED)}
        self.start = parts.button("Ask them all", self.run, primary=True)
        self.strip.go_ahead = lambda: self.attempt(lambda: self._start(anyway=True))
        self.table = parts.html_box()
        self.of = widgets.Dropdown(description="What changed")
        self.of.observe(lambda _: self._turned(0), "value")
        self.before = parts.button("‹ Previous", lambda: self._turned(self._at - 1))
        self.after = parts.button("Next ›", lambda: self._turned(self._at + 1))
        self.where, self.flip = parts.html_box("wb-grow"), parts.html_box()
        self.results = parts.box(
            self.table,
            parts.box(self.of, self.before, self.after, self.where, cls="wb-row"),
            self.flip,
            cls="wb-stack",
        )
        self.empty = parts.hint("Open a model first.")
        self.asking = parts.box(
            self.understood,
            parts.box(*self.chips.values(), cls="wb-row"),
            parts.box(self.start, self.kl, cls="wb-row"),
            cls="wb-stack",
        )
        self.body = parts.box(
            parts.box(self.file, self.open, cls="wb-row wb-top"),
            parts.box(self.limit, self.shots, self.max_tokens, cls="wb-fields"),
            parts.hint(
                "At most so many rows are drawn from the file; so many are shown before each question with their "
                "answers; a reply has at most so many tokens."
            ),
            self.asking,
            self.strip.widget,
            self.results,
            cls="wb-stack",
        )
        return [self.empty, self.body]

    def _chip(self, name: str) -> widgets.ToggleButton:
        made = widgets.ToggleButton(value=name in (ADVICE, "Q8_0"), description=name)
        made.layout.width = "auto"
        made.observe(lambda _: self.refresh(), "value")
        return made

    # --- doing ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Open the file that is named, and say what was understood of it."""
        self.attempt(self._read)

    def _read(self) -> None:
        if not self.file.value.strip():
            raise WorkbenchError("file", "none is named", do="give the path of a .jsonl, .csv or .json file")
        self.task = None
        steps = task_steps(self.file.value.strip(), **self.options)
        self.session.jobs.start("Reading the file", steps, self._took, owner=self, stopped=self.refresh)

    def _took(self, task: Task) -> None:
        self.task = task
        self.refresh()

    def run(self) -> None:
        """Ask the original and every format that is picked."""
        self.attempt(self._start)

    def _start(self, anyway: bool = False) -> None:
        session, model, task = self.session, self.session.checkpoint, self.task
        if task is None:
            raise WorkbenchError("file", "none is open", do="open a file of questions first")
        chosen = [Chosen(session, name) for name in self.names]
        candidates = {one.label: model if one.spec is None else one.spec for one in chosen}
        importance = next((one.importance for one in chosen if one.importance is not None), None)
        given: dict[str, Any] = {"importance": importance, "kl": self.kl.value, "anyway": anyway}
        self.anyway, about = anyway, (model, self.names, task)

        def stopped() -> None:
            so_far = benchmark_so_far(candidates, task, importance=importance)
            if so_far is not None:
                self._keep(so_far, about)

        session.jobs.start(
            f"Asking {len(candidates)} candidates",
            benchmark_steps(candidates, task, **given),
            lambda found: self._keep(found, about),
            owner=self,
            stopped=stopped,
        )

    def _keep(self, found: Found, about: tuple[object, tuple[str, ...], Task]) -> None:
        if about[0] is self.session.checkpoint:  # else another model was opened in the meantime
            self.found, self._asked, self._at = found, about, 0
            self.refresh()

    def _turned(self, place: int) -> None:
        self._at = place
        self.refresh()

    # --- what is chosen ------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Who is asked: the original, and what is picked."""
        there = (name for name, chip in self.chips.items() if chip.value)
        return (ORIGINAL, *(name for name in there if name != PLAN or self.session.plan is not None))

    @property
    def options(self) -> dict[str, Any]:
        """How the file is read, as `wb.task` takes it."""
        shots = {"shots": self.shots.value} if self.shots.value else {}
        return {"limit": self.limit.value, **shots, "max_tokens": self.max_tokens.value}

    @property
    def flips(self) -> list[Flip]:
        """The examples that changed, of the candidate that is picked or of all."""
        return self.found.flips(self.of.value or None) if self.found is not None else []

    # --- showing -------------------------------------------------------------------------------

    def update(self) -> None:
        model = self.session.checkpoint
        parts.show(self.empty, model is None)
        parts.show(self.body, model is not None)
        parts.show(self.asking, self.task is not None)
        parts.show(self.chips[PLAN], self.session.plan is not None)
        if self.found is not None and self._asked is not None and self._asked[0] is not model:
            self.found = self._asked = None
        parts.show(self.results, self.found is not None)
        parts.fill(self.understood, told(self.task) if self.task is not None else Markup(""))
        self.open.disabled = self.busy
        self.start.disabled = self.busy or len(self.names) < 2
        for chip in self.chips.values():
            chip.disabled = self.busy
        if self.found is not None:
            self._show(self.found)

    def _show(self, found: Found) -> None:
        parts.fill(self.table, tables(found))
        names = [(each.name, each.name) for each in found.entries[1:]]
        parts.choose(self.of, [ALL, *names], self.of.value if self.of.value in dict(names) else "")
        flips = self.flips
        self._at = min(max(self._at, 0), max(len(flips) - 1, 0))
        self.before.disabled, self.after.disabled = self._at == 0, self._at >= len(flips) - 1
        if not flips:
            parts.fill(self.where, tag("div", "No example changed between right and wrong.", cls="wb-hint"))
            parts.fill(self.flip, Markup(""))
            return
        flip = flips[self._at]
        kind = "won" if flip.gained else "lost"
        said = f"{self._at + 1} of {len(flips)}: {flip.candidate} {kind} example {flip.example.id} of {flip.task.name}"
        parts.fill(self.where, tag("div", said, cls="wb-hint"))
        parts.fill(self.flip, side_by_side(flip))

    @property
    def code(self) -> str:
        if self.session.checkpoint is None or not self.file.value.strip():
            return ""
        chosen = [Chosen(self.session, name) for name in self.names]
        blocks = list(dict.fromkeys(block for one in chosen for block in one.blocks))
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        names = ", ".join("model" if one.spec is None else one.arguments[-1] for one in chosen)
        further = sorted({text for one in chosen for text in one.given})
        further += [] if self.kl.value else ["kl=False"]
        further += ["anyway=True"] if self.anyway else []
        return "\n".join(
            [
                self.session.load_code,
                *blocks,
                f"task = wb.task({self.file.value.strip()!r}, {given})",
                f"found = wb.benchmark([{names}], {', '.join(['task', *further])})",
                "found",
            ]
        )

    def still(self) -> Markup:
        if self.found is None:
            return told(self.task) if self.task is not None else tag("p", "No file is open yet.")
        changed = [side_by_side(flip) for flip in self.flips[self._at : self._at + 1]]
        return together(tables(self.found), *changed)


def told(task: Task) -> Markup:
    """What was understood of a file, and its first rows."""
    said = [tag("div", sentence(line) + ".") for line in task.said]
    rows = [(one.id, one.prompt[:200], one.shown_answer[:80], one.check) for one in task.examples[:FIRST]]
    head = tag("b", task.headline)
    table = parts.table(("Row", "Prompt", "Answer", "Check"), rows, cls="wb-rows")
    return tag("div", head, *said, table)


def tables(found: Found) -> Markup:
    """The table of each task, differences drawn beside their figures, and what it does and does not say."""
    made = []
    for place, task in enumerate(found.tasks):
        rows = shown.cells(found, place)
        kept = [column for column in range(len(shown.HEADS)) if any(row[column] for row in rows)]
        heads = [sentence(shown.HEADS[column]) for column in kept]
        drawn = [
            [together(row[at], interval(found, task, row[0])) if at == DIFFERENCE else row[at] for at in kept]
            for row in rows
        ]
        lines = [tag("div", line, cls="wb-hint") for line in (*shown.remarks(found, place), *found.notes)]
        made.append(tag("div", tag("b", task.headline), parts.table(heads, drawn), *lines, cls="wb-benchmark"))
    return together(*made)


def interval(found: Found, task: Task, name: str) -> Markup:
    """A candidate's difference as a dot on a line, with its interval; the middle is no difference."""
    pair = found.pairs.get((task.name, name))
    if pair is None or math.isnan(pair.difference.low):
        return Markup("")
    ends = [abs(end) for each in found.pairs.values() for end in (each.difference.low, each.difference.high)]
    reach = max([end for end in ends if not math.isnan(end)] + [0.05])

    def at(value: float) -> float:
        return 50 + 48 * value / reach

    low, high = at(pair.difference.low), at(pair.difference.high)
    line = tag("i", style=f"left: {low:.1f}%; width: {high - low:.1f}%")
    dot = tag("b", style=f"left: {at(pair.difference.value):.1f}%")
    kind = {"better": " wb-better", "worse": " wb-worse"}.get(pair.verdict, "")
    return tag("div", line, dot, cls=f"wb-forest{kind}", aria_hidden="true")


def side_by_side(flip: Flip) -> Markup:
    """An example that changed: the question, the answer, and both replies with the first token that differs marked."""
    compared = flip.replies
    answers = [
        tag(
            "div",
            tag("div", tag("b", name), " ", verdict, cls="wb-answer-head"),
            tag("div", marked(compared, side), cls="wb-text"),
            cls="wb-answer",
        )
        for side, (name, verdict) in enumerate(zip(compared.names, compared.whats, strict=True))
    ]
    asked = tag("div", flip.example.prompt, cls="wb-asked")
    answer = tag("div", "Answer: ", tag("b", flip.example.shown_answer), cls="wb-hint")
    return tag("div", asked, answer, tag("div", *answers, cls="wb-answers"), cls="wb-turn")
