"""Export: the chosen format or plan as one file that llama.cpp, Ollama and others run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench import figures, files
from workbench.exceptions import WorkbenchError
from workbench.panels import parts
from workbench.panels.chosen import Chosen, offered
from workbench.panels.elsewhere import Way, ways
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag, together
from workbench.panels.session import ADVICE, ORIGINAL
from workbench.panels.side import LLAMA_CPP
from workbench.panels.written import Written, facts_markup, nearest, plain, result_markup
from workbench.planning import Plan
from workbench.progress import Steps
from workbench.writing import beside, check, export_steps, nbytes_of

BESIDE = {
    # what may be written beside the file -> its checkbox
    "Modelfile": "Modelfile for Ollama",
    "plan": "the plan as JSON",
    "recipe": "recipe for llama-quantize",
    "importance": "importance matrix",
}
MOST_WAYS = 5  # that `ways` gives


class Export(Panel):
    """Writes the model as a file: `wb.export(model, path, format)`."""

    title = "Export"
    lead = (
        "Write the model in a format as one GGUF file, for llama.cpp, Ollama, LM Studio and others. It takes its name "
        "only when it is whole and every tensor has been read back."
    )

    def build(self) -> list[widgets.Widget]:
        self.what = widgets.Dropdown(description="Format")
        self.what.observe(lambda change: self.picked("format", change.new), "value")
        self.path = widgets.Text(description="File", continuous_update=False)
        self.path.add_class("wb-grow")
        self.weigh = self._box("use the importance of each input", True)
        self.also = {kind: self._box(label, kind == "Modelfile") for kind, label in BESIDE.items()}
        self.replace = self._box("replace what is there", False)
        self.path.observe(self._named, "value")
        self.facts, self.refused = parts.html_box(), parts.html_box()
        self.there = parts.html_box()
        self.instead = parts.button("Use another", self._take_nearest)
        self.write = parts.button("Export", self.run, primary=True)
        self.strip.kept = "Nothing was written, and what was there before is untouched."
        self.strip.go_ahead = lambda: self.attempt(lambda: self._start(anyway=True))
        self.told = parts.html_box("wb-grow")
        self.talk = parts.button("Talk to it in llama.cpp", self._talk)
        self.ways = [(parts.html_box(), parts.Code(label="")) for _ in range(MOST_WAYS)]
        self.made = parts.box(
            parts.box(self.told, self.talk, cls="wb-row"),
            parts.hint("To run it elsewhere, in a terminal in the notebook's folder, or by opening the file:"),
            *(parts.box(title, code, cls="wb-way") for title, code in self.ways),
            cls="wb-stack",
        )
        self.written: Written | None = None
        self._default = ""  # the path that was proposed; another one is the user's own
        self._sizes: dict[tuple[object, ...], int] = {}
        self.empty = parts.hint("Open a model first.")
        self.body = parts.box(
            parts.box(self.what, self.instead, cls="wb-row"),
            self.facts,
            self.refused,
            parts.box(self.weigh, cls="wb-row"),
            parts.box(self.path, self.write, cls="wb-row"),
            self.there,
            parts.box(parts.hint("Write beside it:"), *self.also.values(), self.replace, cls="wb-row"),
            self.strip.widget,
            self.made,
            cls="wb-stack",
        )
        return [self.empty, self.body]

    def _box(self, label: str, value: bool) -> widgets.Checkbox:
        made = widgets.Checkbox(value=value, description=label, indent=False)
        made.layout.width = "auto"
        made.observe(lambda _: self.refresh(), "value")
        return made

    def _named(self, _: Any) -> None:
        self.replace.value = False  # it was said of another file
        self.refresh()

    # --- what is asked -------------------------------------------------------------------------

    @property
    def chosen(self) -> Chosen:
        """What is written: the session's choice; where that is the original, the usual one."""
        name = self.session.format
        return Chosen(self.session, ADVICE if name == ORIGINAL else name)

    @property
    def target(self) -> str:
        return self.path.value.strip()

    @property
    def kinds(self) -> list[str]:
        """What is written beside the file."""
        return [kind for kind, box in self.also.items() if box.value and (kind != "importance" or self._weighed)]

    @property
    def _weighed(self) -> bool:
        return self.weigh.value and self.chosen.weighed

    @property
    def _given(self) -> dict[str, Any]:
        """What `wb.export` is given of an importance."""
        chosen = self.chosen
        if not self._weighed:
            return {"importance": {}} if chosen.weighed else {}
        return {"importance": chosen.importance, "about_importance": chosen.importance_of}

    def _nowhere(self) -> WorkbenchError | None:
        """Why no file can have that path."""
        try:
            files.place(self.target)
        except WorkbenchError as error:
            return error
        return None

    def _refusal(self, plan: Plan) -> WorkbenchError | None:
        """Why it cannot become a file."""
        given = self._given.get("importance")
        try:
            check(plan, plan.importance if given is None else given)
        except WorkbenchError as error:
            needs = "importance" in error.found
            do = f"{nearest(plan)}, the nearest mix of llama.cpp in bytes"
            do = "measure with a text under Quantize, which gives the importance" if needs else do
            return WorkbenchError(self.chosen.label, f"{error.item}: {error.found}", do=do)
        return None

    def _in_the_way(self) -> list[Path]:
        """Files that would be replaced."""
        try:
            path = files.place(self.target)
        except WorkbenchError:
            return []
        return [each for each in (path, *beside.paths(path, self.kinds).values()) if each.is_file()]

    # --- writing -------------------------------------------------------------------------------

    def run(self) -> None:
        """Write the file."""
        self.attempt(self._start)

    def _start(self, anyway: bool = False) -> None:
        session, chosen, target = self.session, self.chosen, self.target
        if not target:
            raise WorkbenchError("file", "none is named", do="give it a name, such as model-Q4_K_M.gguf")
        if not target.endswith(".gguf"):
            raise WorkbenchError(target, "programs know a GGUF file by its ending", allowed="a name ending in .gguf")
        plan = chosen.plan
        assert plan is not None
        if refusal := self._refusal(plan):
            raise refusal
        there = self._in_the_way()
        if there and not self.replace.value:
            raise WorkbenchError(there[0], "it is there already", do="tick that it be replaced, or take another name")
        model = session.checkpoint
        steps = self._steps(plan, chosen, target, self._given, self.kinds, anyway)

        def keep(written: Written) -> None:
            if session.checkpoint is model:  # else another was opened in the meantime
                session.files = {**session.files, written.what: written.path}
                self.written, self.replace.value = written, False
                session.file = written.path

        session.jobs.start(f"Writing {Path(target).name}", steps, keep, owner=self)

    def _steps(
        self, plan: Plan, chosen: Chosen, target: str, given: dict[str, Any], kinds: list[str], anyway: bool
    ) -> Steps[Written]:
        began, path = time.monotonic(), files.place(target)
        file = yield from export_steps(plan, path, beside=kinds, anyway=anyway, **given)
        return Written(chosen.name, chosen.label, target, file, time.monotonic() - began)

    def _take_nearest(self) -> None:
        def take() -> None:
            plan = self.chosen.plan
            assert plan is not None
            self.session.format = nearest(plan)

        self.attempt(take)

    def _talk(self) -> None:
        def lead() -> None:
            assert self.written is not None
            session = self.session
            session.format = self.written.what
            session.first = replace(session.first, what=self.written.what, engine=LLAMA_CPP)
            session.page = "Chat"

        self.attempt(lead)

    # --- shown -----------------------------------------------------------------------------------

    def update(self) -> None:
        session, model = self.session, self.session.checkpoint
        parts.show(self.empty, model is None)
        parts.show(self.body, model is not None)
        if model is None:
            return
        if self.written is not None and self.written.path not in session.files.values():
            self.written = None  # of another model
        chosen = self.chosen
        parts.choose(self.what, [each for each in offered(session) if each[1] != ORIGINAL], chosen.name)
        proposed = f"{plain(model.name)}-{plain(chosen.label.removeprefix('plan: '))}.gguf"
        if self.path.value in ("", self._default):
            self.path.value = proposed
        self._default = proposed
        plan = chosen.plan
        assert plan is not None
        refusal = self._refusal(plan)
        parts.fill(self.facts, self._facts(plan))
        wrong = refusal or self._nowhere()
        parts.fill(self.refused, parts.error_markup(wrong, kind="note") if wrong else Markup(""))
        parts.show(self.instead, refusal is not None)
        if refusal is not None:
            self.instead.description = f"Use {nearest(plan)} instead"
        self.write.disabled = self.busy or wrong is not None
        parts.show(self.weigh, chosen.weighed)
        self.weigh.description = f"use the importance of each input, from {chosen.importance_of}"
        parts.show(self.also["importance"], self._weighed)
        self._tell_of_files()
        for widget in (self.what, self.path, self.weigh, self.replace, *self.also.values(), self.instead, self.talk):
            widget.disabled = self.busy

    def _tell_of_files(self) -> None:
        there = self._in_the_way()
        own = self.written is not None and self.target == self.written.path  # what it was told of already
        names = ", ".join(f"{each.name} ({figures.size(each.stat().st_size)})" for each in there)
        told = f"There already: {names}. Tick that it be replaced, or take another name." if there else ""
        parts.fill(self.there, parts.note(told) if there and not own and not self.busy else Markup(""))
        parts.show(self.replace, bool(there))
        parts.show(self.made, self.written is not None)
        if self.written is None:
            return
        parts.fill(self.told, result_markup(self.written))
        other = self.written.file.beside.get("Modelfile")
        found: list[Way | None] = [*ways(self.written.path, str(other) if other else "")]
        for (title, code), way in zip(self.ways, [*found, *[None] * (MOST_WAYS - len(found))], strict=True):
            parts.fill(title, tag("div", way.title, cls="wb-hint") if way else Markup(""))
            code.code = way.text if way else ""

    def _facts(self, plan: Plan) -> Markup:
        return facts_markup(self.chosen, plan, self._weighed, self._size(plan), self.target)

    def _size(self, plan: Plan) -> int:
        """Bytes of the file; counted once for each choice, since it reads the tokenizer."""
        chosen = self.chosen
        key = (plan.model, chosen.name, id(self.session.plan), chosen.importance_of, self._weighed)
        if key not in self._sizes:
            try:
                self._sizes = {key: nbytes_of(plan, **self._given)}
            except (WorkbenchError, KeyError, OSError):  # what cannot be written has the size of its tensors
                self._sizes = {key: plan.nbytes}
        return self._sizes[key]

    @property
    def code(self) -> str:
        """The call that Export makes."""
        chosen = self.chosen
        if self.session.checkpoint is None or not self.target:
            return ""
        plan = chosen.plan
        if plan is None or self._refusal(plan):
            return ""
        given = [] if self._weighed else ["importance={}"] * chosen.weighed
        if self._weighed:
            given = [*chosen.given, f"about_importance={chosen.importance_of!r}"]
        first, *rest = chosen.arguments
        given += [f"beside={self.kinds!r}"] * bool(self.kinds)
        blocks = [self.session.load_code, *(chosen.blocks if self._weighed or first == "plan" else ())]
        return "\n".join([*blocks, f"wb.export({', '.join([first, repr(self.target), *rest, *given])})"])

    def still(self) -> Markup:
        if self.session.checkpoint is None:
            return tag("p", "No model yet.")
        plan = self.chosen.plan
        assert plan is not None
        told = [tag("p", tag("b", self.chosen.label)), self._facts(plan)]
        return together(*told, *([result_markup(self.written)] if self.written else []))
