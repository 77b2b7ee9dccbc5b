"""Load: open a model, see what is in it, and what it will need before any weight is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import ipywidgets as widgets

from workbench import checkpoint as checkpoints
from workbench import figures
from workbench.checkpoint import tree
from workbench.exceptions import WorkbenchError
from workbench.fit import Memory, device
from workbench.panels import parts
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag, together
from workbench.panels.session import ADVICE, ADVICE_EXACT

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint


class Load(Panel):
    """Opens a model: `wb.load(source)`."""

    title = "Load"
    lead = "Open a model. Only its headers are read; the weights stay on disk until they are needed."

    def build(self) -> list[widgets.Widget]:
        self.source = widgets.Text(
            value=self.session.source or "demo",
            placeholder="demo, org/name, a folder, or a .gguf file",
            description="Model",
            continuous_update=False,
        )
        self.source.add_class("wb-grow")
        self.open = parts.button("Open", self.run, primary=True)
        hint = tag(
            "div",
            *(tag("span", tag("code", what), f" {means}") for what, means in SOURCES),
            cls="wb-hint wb-sources",
        )
        self.found = parts.html_box()
        self._model: Checkpoint | None = None
        return [parts.box(self.source, self.open, cls="wb-row"), widgets.HTML(str(hint)), self.strip.widget, self.found]

    def run(self) -> None:
        """Open what the box names."""
        self.attempt(self._start)

    def _start(self) -> None:
        source = self.source.value.strip() or "demo"
        self.session.jobs.start(
            f"Opening {source}",
            checkpoints.load_steps(source),
            lambda opened: self.session.open(opened, source),
            owner=self,
        )

    def update(self) -> None:
        self.open.disabled = self.source.disabled = self.busy
        if self.session.checkpoint is not self._model:  # else what was typed stays, a mistyped path too
            self._model, self.source.value = self.session.checkpoint, self.session.source
        parts.fill(self.found, self.still())

    @property
    def code(self) -> str:
        return f"{self.session.load_code}\nmodel" if self.session.checkpoint is not None else ""

    def still(self) -> Markup:
        model = self.session.checkpoint
        if model is None:
            return Markup("")
        facts = tag("dl", *(together(tag("dt", name), tag("dd", value)) for name, value in facts_of(model)))
        contents = parts.fold("Every tensor", Markup(model._repr_html_()))
        return together(
            tag("div", tag("div", facts, cls="wb-facts"), tag("div", self._memory()), cls="wb-columns"), contents
        )

    def _memory(self) -> Markup:
        try:
            return memory_table(self.session.memory())
        except WorkbenchError as error:  # a model whose bytes cannot be counted is open all the same
            return tag("div", f"What it needs cannot be said: {error.item}: {error.found}.", cls="wb-hint")


SOURCES = (
    ("demo", "a small chat model, 98 MB"),
    ("org/name", "or org/name@revision from the Hugging Face hub"),
    ("/a/folder", "with safetensors files"),
    ("model.gguf", "a file for llama.cpp or Ollama"),
)


def facts_of(model: Checkpoint) -> list[tuple[str, str]]:
    """What was found, as (name, value) pairs; what the files do not say is left out."""
    config = model.config
    encodings = Counter(info.encoding for info in model.tensors.values())
    stored = ", ".join(f"{number} × {name}" for name, number in encodings.most_common())
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    context = config.get("max_position_embeddings")
    unreadable = sum(bool(info.problem) for info in model.tensors.values())
    told = [
        ("Model", model.name),
        ("Kind", " ".join([{"gguf": "GGUF", "safetensors": "safetensors"}[model.kind], model.architecture])),
        ("Weights", parts.count(model.params)),
        ("On disk", f"{figures.size(model.nbytes)}, {8 * model.nbytes / max(model.params, 1):.3g} bits per weight"),
        ("Tensors", stored),
        ("Layers", f"{config.get('num_hidden_layers', '?')}, {config.get('hidden_size', '?')} wide"),
        ("Heads", f"{heads}, {kv_heads} for keys and values" if heads and kv_heads else ""),
        ("Context", f"{context:,} tokens" if isinstance(context, int) else ""),
        ("Revision", model.revision or ""),
        ("Licence", model.licence or "not named by the model"),
        ("Cannot be read", f"{unreadable} tensors, marked below" if unreadable else ""),
    ]
    return [(name, tree.shown(value)) for name, value in told if value]


def memory_table(counted: Memory) -> Markup:
    """Bytes of the weights, and of all that running them takes, as published and in the usual formats."""
    rows = []
    for name in (None, "BF16", ADVICE_EXACT, ADVICE):
        there = counted.at(format=name, device="cpu")
        bits = f"{8 * there.weights / max(there.params, 1):.2f}"
        rows.append((there.format, bits, figures.size(there.weights), figures.size(there.total)))
    heads = ("Format", "Bits per weight", "Weights", "To run")
    free = figures.size(device("cpu").usable)
    basis = f"To run: in {counted.engine}, {counted.context:,} tokens; more under Fit. This machine has {free} free."
    return together(parts.table(heads, rows), tag("div", basis, cls="wb-hint"))
