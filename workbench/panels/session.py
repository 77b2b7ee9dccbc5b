"""What the panels share: the model, what was measured, what is chosen. Panels observe it; code may set it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import Any as Anything
from traitlets import Dict, Enum, HasTraits, Int, Tuple, Unicode, default, observe

from workbench.exceptions import WorkbenchError
from workbench.fit import ENGINES, Memory, memory
from workbench.panels.jobs import Jobs
from workbench.panels.side import FILE, NOBODY, SERVER, Side
from workbench.planning import RECIPES, plan_for

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint
    from workbench.measure.errors import ErrorTable
    from workbench.planning import Plan

# What to measure first: every step from nearly exact to very small, and bitsandbytes' and integer formats beside them.
FIRST_FORMATS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "NF4", "INT8")
ADVICE = "Q4_K_M"  # the usual best trade of size and quality
ADVICE_EXACT = "Q8_0"  # for mathematics and code, where a slip is an error


ORIGINAL = "original"  # stands for the weights as they are, where a format is named
PLAN = "plan"  # stands for the session's plan there
FITTING = frozenset({"outline", "engine", "context", "batch", "kv", "device"})  # what Fit alone shows


class Session(HasTraits):
    """One model and everything the panels know about it.

    Attributes:
        checkpoint: the opened model, or None. A new one clears what was known of the last.
        source: what `wb.load` was given for it.
        formats: the formats to measure.
        text: calibration text, or the path of a file with it; empty for none.
        errors: the `ErrorTable`, whole or what a cancelled run has kept.
        card: the sensitivity `Card` that was measured, or None; `card_code`: the lines that make `card`.
        plan: a `Plan` beside the recipes, or None; see `use`. `plan_code`: the lines that make `plan`, of `card`.
        format: what is chosen, to talk to and to write: a format or recipe, "plan", or "original".
        first, second: what answers in Chat, as a `Side`; the first follows `format` while it is one of those.
        file: the path of the file that was written last; empty for none. `files`: of what was written, by choice.
        page: the title of the panel that another one leads to.
        metric, shown, against: what the grid draws: a figure of a measured format, and empty
            or another one to compare it with.
        tensor: the matrix that is selected in the grid; empty for none.
        engines: what answers in Chat, by what it was made of.
        outline: a model of which only the headers were read, for Fit: (what names it, a
            `Memory` of it); None: Fit is about the opened one.
        engine, context, batch, kv, device: what Fit asks, as `wb.memory` takes it; an empty
            `kv` is what the engine keeps by default, which another engine goes back to.
        jobs: the job runner; one job at a time.
    """

    checkpoint: Any = Anything(None)
    source = Unicode("")
    formats: Any = Tuple(FIRST_FORMATS)
    text = Unicode("")
    errors: Any = Anything(None)
    card: Any = Anything(None)
    card_code = Unicode("card = wb.sensitivity(model)")
    plan: Any = Anything(None)
    plan_code = Unicode("")
    format = Unicode(ADVICE)
    first: Any = Anything(Side(ADVICE))
    second: Any = Anything(Side(NOBODY))
    file = Unicode("")
    files: Any = Dict()
    page = Unicode("")
    metric = Unicode("")
    shown = Unicode("")
    against = Unicode("")
    tensor = Unicode("")
    engines: Any = Dict()
    outline: Any = Anything(None)
    engine = Enum(ENGINES, ENGINES[0])
    context = Int(4096, min=1)
    batch = Int(1, min=1)
    kv: Any = Tuple()
    device = Unicode()

    def __init__(self, checkpoint: Checkpoint | None = None, *, source: str = "", threaded: bool | None = None) -> None:
        super().__init__()
        self.jobs = Jobs(threaded)
        self.lock = self.jobs.lock
        self._counted: tuple[object, Memory] | None = None  # a checkpoint, and what was counted of it
        if checkpoint is not None:
            self.open(checkpoint, source)

    @observe("format")
    def _talks_to_the_chosen(self, _: Any) -> None:
        self.first = self.first.asking(self.format)

    @observe("first")
    def _chosen_in_chat(self, _: Any) -> None:
        if self.first.what not in (NOBODY, FILE, SERVER):
            self.format = self.first.what

    @observe("shown", "against")
    def _never_against_itself(self, _: Any) -> None:
        if self.against == self.shown:
            self.against = ""

    @observe("plan")
    def _another_plan(self, _: Any) -> None:
        self.files = {name: path for name, path in self.files.items() if name != PLAN}  # of the plan before

    @observe("engine")
    def _types_of_its_own(self, _: Any) -> None:
        self.kv = ()

    @default("device")
    def _where_models_run(self) -> str:
        return gpu_here() or "cpu"

    def open(self, checkpoint: Checkpoint, source: str = "") -> None:
        """Make `checkpoint` the session's model; what was measured, loaded or begun with another is let go."""
        self.jobs.cancel()
        with self.lock:
            self.close_engines()
            with self.hold_trait_notifications():
                self.source = source or checkpoint.source or str(checkpoint.path)
                self.checkpoint, self.outline = checkpoint, None
                self.use(None)
                self.card, self.file, self.files = None, "", {}
                self.errors, self.tensor, self.metric, self.shown, self.against = None, "", "", "", ""

    def use(self, plan: Plan | None, code: str = "") -> None:
        """Choose a plan for the opened model, so that Chat talks to it and Export writes it; None: have none.

        Args:
            code: the lines that make `plan`, of `model` and `card`; without them, its JSON is given as code.

        Raises:
            WorkbenchError: it was made for another model.
        """
        with self.lock, self.hold_trait_notifications():
            if plan is not None:
                plan_for(self.checkpoint, plan)
            self.format = PLAN if plan is not None else ADVICE if self.format == PLAN else self.format
            self.first = self.first.asking(self.format) if self.first.what == PLAN else self.first
            self.second = Side() if plan is None and self.second.what == PLAN else self.second
            self.plan_code, self.plan = code, plan

    def show(self, errors: ErrorTable) -> None:
        """Show an error table, and with it the model that it was measured on."""
        with self.lock:
            if errors.model is not self.checkpoint:
                self.open(errors.model)
            with self.hold_trait_notifications():
                picked = self.errors is not None and self.metric != self.errors.best_metric
                if not picked or self.metric not in errors.frame:
                    self.metric = errors.best_metric
                self.formats, self.errors = errors.formats, errors
                self.shown = self.shown if self.shown in errors.formats else self._like_the_chosen(errors)
                self.against = self.against if self.against in errors.formats else ""

    def memory(self) -> Memory:
        """The opened model's bytes, as it is published: counted once, and every other answer follows by `at`.

        Raises:
            WorkbenchError: no model is open, or its config says too little.
        """
        if self.checkpoint is None:
            raise WorkbenchError("model", "none is open", do="open one under Load")
        if self._counted is None or self._counted[0] is not self.checkpoint:
            self._counted = self.checkpoint, memory(self.checkpoint)
        return self._counted[1]

    def close_engines(self) -> None:
        """Give back the memory of every engine."""
        for engine in self.engines.values():
            engine.close()
        self.engines = {}

    def _like_the_chosen(self, errors: ErrorTable) -> str:
        """The measured format that is chosen, or that most of the chosen recipe is: Q4_K for Q4_K_M."""
        base = RECIPES[self.format].base if self.format in RECIPES else self.format
        return base if base in errors.formats else errors.formats[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of results on this model."""
        return tuple(self.checkpoint.notes) if self.checkpoint is not None else ()

    # --- as code -------------------------------------------------------------------------------

    @property
    def load_code(self) -> str:
        """The lines that open this model; every panel's code begins with them."""
        return f"import workbench as wb\n\nmodel = wb.load({self.source!r})"

    @property
    def errors_code(self) -> str:
        """The lines that measure the formats, the table as `errors`."""
        names = "[" + ", ".join(f'"{name}"' for name in self.formats) + "]"
        if not self.text:
            return f"{self.load_code}\nerrors = wb.errors(model, {names})"
        return f"{self.load_code}\n{self.text_code}\nerrors = wb.errors(model, {names}, text)"

    @property
    def text_code(self) -> str:
        return f"text = open({self.text!r}).read()" if self._text_file else f"text = {self.text!r}"

    @property
    def calibration_text(self) -> str | None:
        """The text itself, read from its file if that is what `text` names."""
        return (self._text_file.read_text() if self._text_file else self.text) if self.text else None

    @property
    def _text_file(self) -> Path | None:
        if "\n" in self.text or not self.text.endswith((".txt", ".md")):
            return None
        return Path(self.text).expanduser()


def gpu_here() -> str:
    """ "cuda" or "mps" if PyTorch has such a device; empty too while PyTorch is not loaded, which takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else ""
