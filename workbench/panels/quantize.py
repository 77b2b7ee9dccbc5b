"""Quantize: every format and recipe as a line of a table; tick some, measure them, choose one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as widgets
import traitlets

from workbench import figures, formats
from workbench.measure.errors import ErrorTable, errors_so_far, errors_steps
from workbench.panels import parts
from workbench.panels.chosen import Chosen
from workbench.panels.grid import plain
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag, together
from workbench.panels.session import ADVICE, ADVICE_EXACT, FIRST_FORMATS
from workbench.planning import RECIPES, Plan, fallbacks, plan_for

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint

BADGES = {ADVICE: "suggested", ADVICE_EXACT: "for math and code"}
COMMON_RECIPES = {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"}
COMMON_FORMATS = {*FIRST_FORMATS, "LLM.int8", "FP8", "INT4", "BF16"}
NO_ERROR = "—"


class Choices(anywidget.AnyWidget):
    """The table: `ticked` are the formats to measure, `chosen` the one to use."""

    _esm = Path(__file__).with_name("choices.js")

    view = traitlets.Dict().tag(sync=True)
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)


class Quantize(Panel):
    """Measures what formats do to the model: `wb.errors(model, formats, text)`."""

    title = "Quantize"
    lead = (
        f"Choose a format. {ADVICE} suits most uses; {ADVICE_EXACT} is for mathematics and code, where a slip is an "
        "error. Tick formats and measure them to see what each does to this model."
    )

    def build(self) -> list[widgets.Widget]:
        self.table = Choices()
        self.table.observe(lambda change: self.picked("formats", in_order(change.new)), "ticked")
        self.table.observe(lambda change: self.picked("format", change.new), "chosen")
        self.text = widgets.Textarea(
            value=self.session.text,
            placeholder="Optional. Paste a text like those the model will read, or give the path of a .txt file.",
            description="Text",
            continuous_update=False,
            rows=2,
        )
        self.text.add_class("wb-grow")
        self.text.observe(lambda change: self.picked("text", change.new.strip()), "value")
        self.measure = parts.button("Measure", self.run, primary=True)
        self.anyway = False  # whether the last measurement went ahead although it did not fit
        self.strip.go_ahead = lambda: self.attempt(lambda: self._start(anyway=True))
        self.empty = parts.hint("Open a model first.")
        self.body = parts.box(
            parts.box(self.text, self.measure, cls="wb-row wb-top"),
            parts.hint(
                "With a text, the error of each matrix's output is measured too: it is nearer to what a user notices."
            ),
            self.strip.widget,
            self.table,
            cls="wb-stack",
        )
        return [self.empty, self.body]

    def run(self) -> None:
        """Measure the ticked formats."""
        self.attempt(self._start)

    def _start(self, anyway: bool = False) -> None:
        session, model = self.session, self.session.checkpoint
        names, text = session.formats, session.calibration_text
        self.anyway = anyway
        session.jobs.start(
            f"Measuring {len(names)} formats",
            errors_steps(model, names, text, anyway=anyway),
            self._keep,
            owner=self,
            stopped=lambda: self._keep(errors_so_far(model, names, text)),
        )

    def _keep(self, errors: ErrorTable) -> None:
        measured = errors.frame[errors.best_metric].notna().any()  # nothing is, if it was cancelled at once
        if measured and errors.model is self.session.checkpoint:  # else another model was opened in the meantime
            self.session.show(errors)

    def update(self) -> None:
        model = self.session.checkpoint
        parts.show(self.empty, model is None)
        parts.show(self.body, model is not None)
        self.table.disabled = self.text.disabled = self.busy
        self.measure.disabled = self.busy or not self.session.formats
        self.measure.description = f"Measure {len(self.session.formats)} formats"
        self.text.value = self.session.text
        self.table.ticked, self.table.chosen = list(self.session.formats), self.session.format
        view = view_of(rows_of(model, self.session.errors)) if model is not None else {}
        if self.table.view != view:
            self.table.view = view

    @property
    def code(self) -> str:
        if self.session.checkpoint is None:
            return ""
        call = self.session.errors_code
        return f"{call[:-1]}, anyway=True)\nerrors" if self.anyway else f"{call}\nerrors"

    def still(self) -> Markup:
        model = self.session.checkpoint
        if model is None:
            return tag("p", "No model yet.")
        heads = ("Format", "Bits per weight", "Size", "Error", "Runs on", "What it is")
        rows = [row for row in rows_of(model, self.session.errors) if not row["rare"] or row["error"] != NO_ERROR]
        table = parts.table(
            heads,
            [
                (
                    tag("b", row["name"]) if row["name"] == self.session.format else row["name"],
                    *row["figures"],
                    row["error"],
                    row["runs_on"],
                    row["summary"],
                )
                for row in rows
            ],
        )
        return together(table, tag("p", f"Chosen: {Chosen(self.session, self.session.format).label}"))


def in_order(names: list[str]) -> tuple[str, ...]:
    """Ticked formats as the registry orders them, from many bits to few."""
    return tuple(name for name in formats.FORMATS if name in names)


@dataclass(frozen=True)
class Option:
    """A line of the table: a recipe or a format, and what it makes of this model."""

    name: str
    family: str  # a key of FAMILIES
    plan: Plan
    summary: str
    runs_on: tuple[str, ...]

    @property
    def recipe(self) -> bool:
        return self.family == "recipe"

    @property
    def rare(self) -> bool:
        """Shown only on request."""
        return self.name not in (COMMON_RECIPES if self.recipe else COMMON_FORMATS)


FAMILIES = {
    # family -> title of its group in the table
    "recipe": "Recipes of llama.cpp: a mix of formats for a whole model",
    "ggml": "Formats of llama.cpp and Ollama",
    "bitsandbytes": "Formats of bitsandbytes",
    "fp8": "8-bit floats for GPU servers",
    "integer": "Plain integers, rounded to the nearest",
    "float": "Floats, not quantized",
}


@lru_cache(maxsize=4)
def options_of(model: Checkpoint) -> list[Option]:
    """Every recipe and format for this model; a name that both have is told apart as `plan_for` does."""
    recipes = [
        Option(each.name, "recipe", plan_for(model, each.name), f"{each.summary} {each.advice}", each.runs_on)
        for each in RECIPES.values()
    ]
    return recipes + [
        Option(each.name, each.family, plan_for(model, each), each.summary, each.runs_on)
        for each in formats.FORMATS.values()
    ]


def rows_of(model: Checkpoint, errors: ErrorTable | None) -> list[dict[str, Any]]:
    """The lines of the table: figures for this model, as text, and the error once it is known."""
    options = options_of(model)
    found = [error_of(option.plan, errors) for option in options]
    known = [math.log10(error) for error in found if error]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    return [
        {
            "name": option.name,
            "family": option.family,
            "rare": option.rare,
            "badge": BADGES.get(option.name, "") if option.recipe else "",
            "instead": "" if option.recipe else instead_of(option),
            "tickable": not option.recipe,
            "usable": option.recipe or option.name not in RECIPES,
            "figures": [f"{option.plan.bits:.2f}", figures.size(option.plan.nbytes)],
            "error": NO_ERROR if error is None else plain(float(f"{error:.2g}")),
            "error_at": (math.log10(error) - low) / (high - low) if error and high > low else None,
            "error_hint": hint_of(option.plan, errors, error),
            "runs_on": ", ".join(option.runs_on),
            "summary": option.summary,
        }
        for option, error in zip(options, found, strict=True)
    ]


def instead_of(option: Option) -> str:
    """How many matrices get another format because their shape does not fit: "181 as Q5_0"."""
    others = Counter(format.name for format in fallbacks(option.plan, formats.get(option.name)).values())
    return ", ".join(f"{number} as {other}" for other, number in others.most_common(2))


def view_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = [
        {"name": "Measure"},
        {"name": "Format"},
        {"name": "Bits per weight", "figure": True, "hint": "of this model, with scales and fallbacks"},
        {"name": "Size", "figure": True, "hint": "of all weights of this model"},
        {"name": "Error", "figure": True, "hint": "the share that is lost, the mean over all weights: 0 is exact"},
        {"name": "Runs on"},
        {"name": "What it is", "wide": True},
        {"name": "Use"},
    ]
    groups = [
        {"title": title, "rows": [row for row in rows if row["family"] == family]} for family, title in FAMILIES.items()
    ]
    return {"columns": columns, "groups": groups, "rare": sum(row["rare"] for row in rows)}


def error_of(plan: Plan, errors: ErrorTable | None) -> float | None:
    """The plan's error from the rows that were measured, as the mean over weights; None if one is missing."""
    if errors is None:
        return None
    lost = weights = 0.0
    found = _measured(errors)
    for info in errors.model.matrices:
        stays = info.name not in plan.formats
        row = (0.0, info.params) if stays else found.get((info.name, plan.formats[info.name].name))
        if row is None:
            return None
        lost, weights = lost + row[0] * row[1], weights + row[1]
    return lost / weights if weights else None


def _measured(errors: ErrorTable) -> dict[tuple[str, str], tuple[float, int]]:
    """(tensor, format really used) -> its error and its weights."""
    frame = errors.frame[errors.frame[errors.best_metric].notna()]
    values = zip(frame.tensor, frame.used, frame[errors.best_metric], frame.rows * frame.cols, strict=True)
    return {(tensor, used): (float(error), int(weights)) for tensor, used, error, weights in values}


def hint_of(plan: Plan, errors: ErrorTable | None, error: float | None) -> str:
    """What the error cell says when pointed at."""
    if error is not None and errors is not None:
        return f"{figures.METRICS[errors.best_metric]}: {error:.4g}, the mean over all weights"
    asked = sorted({format.name for format in plan.formats.values()})
    return f"known once {' and '.join(asked)} are measured" if len(asked) > 1 else "not measured yet"
