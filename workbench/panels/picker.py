"""The fields by which one side of Chat is chosen: what answers, in which engine, with which options."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from workbench.engines.options import CONTEXT
from workbench.engines.presets import PRESETS
from workbench.engines.weights import cores
from workbench.fit.cache import TYPES_OF
from workbench.panels import parts
from workbench.panels.answerer import Answerer
from workbench.panels.chosen import offered
from workbench.panels.parts import tag
from workbench.panels.session import Session
from workbench.panels.side import FILE, LLAMA_CPP, NOBODY, SERVER, TRANSFORMERS, Side, engines_of

ELSEWHERE = (("a GGUF file ...", FILE), ("a server ...", SERVER))
NOTHING = ("nothing", NOBODY)
OWN_TYPE = {LLAMA_CPP: "f16", TRANSFORMERS: ""}  # of keys and values, unless told otherwise; "": as it computes
ALL_LAYERS = -1  # in the menu, for llama.cpp's own choice
MOST_LAYERS = 160  # of a model that is not open, in the menu; the largest have about 130
KEYS = re.compile(r"KEY|TOKEN")  # in the name of an environment variable that may hold one


class Picker:
    """A view of `session.first` or `session.second`.

    Args:
        side: "first" or "second".
        picked: tells the session of a choice: its name and its value.
        ask: called to ask a server for its models.
        export: called with the choice that has to be exported before llama.cpp can run it.
    """

    def __init__(
        self,
        session: Session,
        side: str,
        title: str,
        picked: Callable[[str, Any], None],
        ask: Callable[[Picker], None],
        export: Callable[[str], None],
    ) -> None:
        self.session, self.side, self._picked = session, side, picked
        self.optional = side == "second"
        self.names: list[str] = []  # of the models that the server told
        self.what = widgets.Dropdown(description=title)
        self.engine = widgets.Dropdown(description="in")
        self.what.add_class("wb-pick")
        self.engine.add_class("wb-in")
        self.what.observe(lambda change: self._pick(change.new), "value")
        self._sets("engine", self.engine)
        self.file = self._sets("file", widgets.Text(placeholder="the path of a .gguf file", continuous_update=False))
        self.file.description = "File"
        self.context = widgets.BoundedIntText(CONTEXT, min=1, max=1 << 30, description="Context, tokens")
        self.keys, self.values = widgets.Dropdown(description="Keys"), widgets.Dropdown(description="Values")
        self.threads = widgets.BoundedIntText(cores(), min=1, max=1024, description="Threads")
        self._sets("context", self.context)
        self._sets("threads", self.threads)
        self.gpu_layers = widgets.Dropdown(description="Layers on a GPU")
        self.gpu_layers.observe(
            lambda change: self._set(gpu_layers=None if change.new == ALL_LAYERS else change.new), "value"
        )
        for menu in (self.keys, self.values):
            menu.observe(lambda _: self._set(kv=self._kept()), "value")
        self.url = self._sets("url", widgets.Text(description="Address", continuous_update=False))
        self.model = self._sets("model", widgets.Dropdown(description="Model"))
        self.key = self._sets("key", widgets.Dropdown(description="Key in"))
        self.ask = parts.button("List models", lambda: ask(self))
        for wide in (self.file, self.url):
            wide.add_class("wb-grow")
        for short in (self.context, self.keys, self.values, self.threads, self.gpu_layers):
            short.add_class("wb-short")
        self.said = parts.html_box("wb-grow")
        self.export = parts.button("Export it", lambda: export(Answerer(session, self._now).to_export))
        self.decode = parts.button("Use transformers", lambda: self._set(engine=TRANSFORMERS))
        self.more = widgets.ToggleButton(description="Options")
        self.more.layout.width = "auto"
        self.more.add_class("wb-link")
        self.more.observe(lambda _: self._show_options(self._now), "value")
        self._of_local = parts.box(self.context, self.threads, self.gpu_layers, self.keys, self.values, cls="wb-row")
        self._of_server = parts.box(self.url, self.model, self.ask, self.key, cls="wb-row")
        self.widget = parts.box(
            parts.box(self.what, self.engine, self.file, self.more, cls="wb-row"),
            self._of_local,
            self._of_server,
            parts.box(self.said, self.export, self.decode, cls="wb-row"),
            cls="wb-stack wb-side",
        )

    @property
    def _now(self) -> Side:
        return getattr(self.session, self.side)

    def _sets(self, name: str, widget: Any) -> Any:
        """A widget whose value is the side's `name`."""
        widget.observe(lambda change: self._set(**{name: change.new}), "value")
        return widget

    def _set(self, **changes: Any) -> None:
        cleaned: dict[str, Any] = {
            name: value.strip() if isinstance(value, str) else value for name, value in changes.items()
        }
        if {"engine", "url"} & set(cleaned) and self._now.what == SERVER:
            cleaned["model"], self.names = "", []  # those of another server
        self._picked(self.side, replace(self._now, **cleaned))

    def _pick(self, what: str | None) -> None:
        if what is not None:
            side = self._now.asking(what)
            side = replace(side, file=self.session.file) if what == FILE and not side.file else side
            self._picked(self.side, side)

    def _kept(self) -> tuple[str, str] | None:
        """The types of keys and values; None for what the engine does by itself."""
        own = OWN_TYPE.get(self._now.engine, "")
        chosen = (self.keys.value or own, self.values.value or own)
        return None if chosen == (own, own) else (chosen[0] or "f16", chosen[1] or "f16")

    @property
    def server(self) -> tuple[str, str | None, str | None]:
        """(address or kind, kind, variable of the key), as the server's list of models is asked for."""
        side = self._now
        return side.url or side.engine, side.engine if side.url else None, side.key or None

    def show(self, busy: bool) -> None:
        """Say what the session says."""
        session, side = self.session, self._now
        answerer = Answerer(session, side)
        asked = side.what != NOBODY
        parts.choose(self.what, [*([NOTHING] if self.optional else []), *self._offered(side), *ELSEWHERE], side.what)
        parts.choose(self.engine, engines_of(side.what) if asked else (), side.engine if asked else None)
        self._show_options(side)
        hindrance = answerer.hindrance if asked else None
        said = tag("div", answerer.meaning, cls="wb-hint") if asked else tag("span")
        parts.fill(self.said, parts.error_markup(hindrance, kind="note") if hindrance else said)
        parts.show(self.said, asked)
        parts.show(self.export, bool(hindrance and answerer.to_export))
        self.export.description = f"Export {answerer.to_export}" if answerer.to_export else "Export it"
        parts.show(self.decode, bool(hindrance and side.engine == LLAMA_CPP))
        chosen = (self.what, self.more, self.engine, self.file, self.url, self.model, self.key)
        options = (self.context, self.threads, self.gpu_layers, self.keys, self.values)
        for widget in (*chosen, *options, self.ask, self.export, self.decode):
            widget.disabled = busy

    def _offered(self, side: Side) -> list[tuple[str, str]]:
        """What is not elsewhere; without an opened model there is nothing, and what is chosen waits for one."""
        if self.session.checkpoint is not None:
            return offered(self.session)
        return [] if side.what in (FILE, SERVER, NOBODY) else [(f"{side.what}, of an opened model", side.what)]

    def _layers(self, side: Side) -> list[tuple[str, int]]:
        """The numbers of layers that may lie on a GPU; of another file than the opened one they are not known."""
        model = self.session.checkpoint
        known = [info.layer for info in model.tensors.values() if info.layer is not None] if model is not None else []
        most = 1 + max(known) if known and side.what != FILE else MOST_LAYERS
        chosen = [side.gpu_layers] if side.gpu_layers is not None and side.gpu_layers > most else []
        counted = ((str(number), number) for number in (*range(1, most + 1), *chosen))
        return [("all, if there is one", ALL_LAYERS), ("none", 0), *counted]

    def _show_options(self, side: Side) -> None:
        parts.show(self.engine, side.what != NOBODY)
        parts.show(self.file, side.what == FILE)
        local = side.engine in OWN_TYPE and side.what != NOBODY
        parts.show(self.more, local)
        parts.show(self._of_local, local and self.more.value)
        parts.show(self.context, side.engine == LLAMA_CPP)
        parts.show(self.threads, side.engine == LLAMA_CPP)
        parts.show(self.gpu_layers, side.engine == LLAMA_CPP)
        parts.choose(self.gpu_layers, self._layers(side), ALL_LAYERS if side.gpu_layers is None else side.gpu_layers)
        parts.show(self._of_server, side.what == SERVER)
        self.file.value, self.url.value = side.file, side.url
        longest = self.session.checkpoint.config.get("max_position_embeddings") if self.session.checkpoint else None
        self.context.value = side.context or (min(CONTEXT, longest) if isinstance(longest, int) else CONTEXT)
        self.threads.value = side.threads or cores()
        own = OWN_TYPE.get(side.engine, "")
        types = [(name, name) for name in TYPES_OF[LLAMA_CPP]]
        for menu, name in zip((self.keys, self.values), side.kv or (own, own), strict=True):
            parts.choose(menu, types if own else [("as computed", ""), *types], name)
        self.engine.description = "at" if side.what == SERVER else "in"
        if side.what == SERVER:
            preset = PRESETS[side.engine]
            self.url.placeholder = preset.url or "http://host:port/v1"
            models = dict.fromkeys([*self.names, *([side.model] if side.model else [])])
            parts.choose(self.model, [("its only one", ""), *((name, name) for name in models)], side.model)
            held = [name for name in sorted(os.environ) if KEYS.search(name)]
            known = dict.fromkeys([*held, *([side.key] if side.key else [])])
            parts.choose(self.key, [("none wanted", ""), *((f"${name}", name) for name in known)], side.key)
