"""What can be run where: a side of Chat as an engine, as code, or why it cannot answer and what to do."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench import files, formats
from workbench.engines import Engine, run_steps
from workbench.engines.presets import PRESETS
from workbench.exceptions import WorkbenchError, absent
from workbench.panels.chosen import Chosen
from workbench.panels.session import ORIGINAL, PLAN, Session
from workbench.panels.side import FILE, LLAMA_CPP, SERVER, TRANSFORMERS, Side
from workbench.progress import Steps
from workbench.writing import unwritable

NEEDS = {TRANSFORMERS: "transformers", LLAMA_CPP: "xllamacpp"}  # else a server, which needs a client


@dataclass(frozen=True)
class Answerer:
    """A side of a session's Chat.

    Attributes:
        side: what is asked for.
    """

    session: Session
    side: Side

    @property
    def chosen(self) -> Chosen:
        return Chosen(self.session, self.side.what)

    @property
    def label(self) -> str:
        """What a reader is told: "Q4_K_M in llama.cpp"."""
        return f"{self.thing} {'at' if self.side.what == SERVER else 'in'} {self.engine}"

    @property
    def thing(self) -> str:
        """What answers."""
        side = self.side
        if side.what == SERVER:
            return side.model or "its model"
        return Path(side.file).name or "a file" if side.what == FILE else self.chosen.label

    @property
    def engine(self) -> str:
        """What runs it."""
        return _server(self.side) if self.side.what == SERVER else self.side.engine

    @property
    def decoded(self) -> bool:
        """Whether it runs by decoded weights, whose speed and memory are not the format's."""
        side = self.side
        return side.engine == TRANSFORMERS and side.what != ORIGINAL and not self._native

    @property
    def file(self) -> str:
        """The path of the GGUF that holds what is asked for; empty if there is none yet."""
        side, model = self.side, self.session.checkpoint
        if side.what == FILE:
            return side.file
        if side.what == ORIGINAL:
            return str(model.path) if model is not None and model.kind == "gguf" else ""
        return str(self.session.files.get(side.what, ""))

    @property
    def meaning(self) -> str:
        """What its answers and figures stand for, in a sentence."""
        side = self.side
        if side.what == SERVER:
            return f"What {_server(side)} runs already; its speed includes the network."
        if side.engine == LLAMA_CPP:
            return f"{Path(self.file).name}: the quality, speed and memory that the file has in llama.cpp."
        if side.what == FILE:
            return f"{Path(side.file).name}: its weights decoded, at the speed of the original."
        if side.what == ORIGINAL:
            return "The weights as they are published."
        if self._native:
            return f"{side.what} in bitsandbytes' own layers."
        return f"{self.chosen.label} by its decoded weights: the quality of the format, not its speed or memory."

    @property
    def _native(self) -> bool:
        name = self.side.what
        return name in formats.FORMATS and formats.FORMATS[name].family == "bitsandbytes"

    # --- whether it can answer -------------------------------------------------------------------

    @property
    def hindrance(self) -> WorkbenchError | None:
        """Why it cannot answer and what to do; None if nothing is known to speak against it."""
        side = self.side
        module = NEEDS.get(side.engine, "openai")
        if find_spec(module) is None:
            return absent(module, "it is not installed")
        if side.what == SERVER:
            return _no_address(side)
        if side.what != FILE and self.session.checkpoint is None:
            return WorkbenchError("model", "none is open", do="open one under Load, or choose a file or a server here")
        if side.what == FILE or side.engine == LLAMA_CPP:
            return self._no_file()
        return None

    def _no_file(self) -> WorkbenchError | None:
        path = self.file
        if not path:
            return self._not_written()
        if not path.endswith(".gguf"):
            return WorkbenchError(path, "it is no GGUF file", allowed="a path that ends in .gguf")
        try:
            there = files.place(path).is_file()
        except WorkbenchError as error:
            return error
        if not there:
            return WorkbenchError(path, "there is no such file", do="give the path of one that is there, or export one")
        return None

    def _not_written(self) -> WorkbenchError:
        side, session = self.side, self.session
        if side.what == FILE:
            return WorkbenchError("file", "none is named", do="give the path of a GGUF file, or export one")
        if side.what == ORIGINAL:
            do = "export it as BF16, or let transformers run it"
            return WorkbenchError(session.checkpoint.name, "it is no GGUF file, and llama.cpp runs nothing else", do=do)
        cannot = self._unwritable
        if cannot:
            found = f"llama.cpp runs GGUF files, and they cannot hold {', '.join(cannot)}"
            return WorkbenchError(
                self.chosen.label, found, do="let transformers run it, or choose a format of llama.cpp"
            )
        do = "export it first; or let transformers answer with its decoded weights"
        return WorkbenchError(self.chosen.label, "llama.cpp runs files, and it is not one yet", do=do)

    @property
    def to_export(self) -> str:
        """The choice whose export would make it possible; empty if that is not the way."""
        side = self.side
        if side.engine != LLAMA_CPP or side.what in (FILE, SERVER) or self.file or self.session.checkpoint is None:
            return ""
        if side.what == ORIGINAL:
            return "BF16"
        return "" if self._unwritable else side.what

    @property
    def _unwritable(self) -> list[str]:
        plan = self.chosen.plan
        return unwritable(plan) if plan is not None else []

    # --- running ---------------------------------------------------------------------------------

    @property
    def key(self) -> Hashable:
        """What an engine that runs already must have been made of, to be this one."""
        side, session = self.side, self.session
        if side.what == SERVER:
            return side
        if side.engine == LLAMA_CPP or side.what == FILE:
            there = files.place(self.file).stat()  # it may have been written anew
            asked = side.context, side.kv, side.threads, side.gpu_layers
            return side.engine, self.file, there.st_mtime_ns, there.st_size, *asked
        known = (id(session.card), session.errors and session.errors.calibration) if self.chosen.weighed else ()
        return side.engine, side.what, side.kv, id(session.plan) if side.what == PLAN else 0, *known

    def run_steps(self, *, anyway: bool = False) -> Steps[Engine]:
        """`wb.run` of it.

        Raises:
            WorkbenchError: the hindrance, or what `wb.run` says.
        """
        if hindrance := self.hindrance:
            raise hindrance
        side = self.side
        source: Any = self.session.checkpoint
        if side.what == SERVER:
            source = side.url or side.engine
        elif side.what == FILE or (side.engine == LLAMA_CPP and side.what != ORIGINAL):
            source = str(files.place(self.file))
        spec, importance = None, None
        if side.engine == TRANSFORMERS and side.what != FILE:
            spec, importance = self.chosen.spec, self.chosen.importance
        return (yield from run_steps(source, spec, importance=importance, anyway=anyway, **self._options))

    @property
    def _options(self) -> dict[str, Any]:
        """The options of `wb.run` that differ from its own."""
        side = self.side
        given: dict[str, Any] = {}
        if side.what == SERVER:
            named = {"engine": side.engine if side.url and PRESETS[side.engine].url else ""}
            given = named | {"model": side.model, "key": side.key}
        elif side.engine == LLAMA_CPP:
            given = {name: getattr(side, name) for name in ("engine", "context", "kv", "threads", "gpu_layers")}
        else:
            given = {"kv": side.kv}
        return {name: value for name, value in given.items() if value or value == 0}

    # --- as code -------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[str]:
        """What the call needs before it, `import workbench as wb` aside."""
        side = self.side
        if side.what in (SERVER, FILE) or (side.engine == LLAMA_CPP and side.what != ORIGINAL):
            return []
        opened = self.session.load_code.partition("\n\n")[2]
        return [opened, *(self.chosen.blocks if side.engine == TRANSFORMERS else ())]

    def call(self, *, anyway: bool = False) -> str:
        """`wb.run(...)` with what it takes."""
        side = self.side
        if side.what == SERVER:
            given = [repr(side.url or side.engine)]
        elif side.what == FILE or (side.engine == LLAMA_CPP and side.what != ORIGINAL):
            given = [repr(self.file)]
        else:
            given = [*self.chosen.arguments, *self.chosen.given] if side.engine == TRANSFORMERS else ["model"]
        given += [f"{name}={value!r}" for name, value in self._options.items()]
        return f"wb.run({', '.join([*given, *['anyway=True'] * anyway])})"


def _server(side: Side) -> str:
    address = urlsplit(side.url).netloc.rpartition("@")[2] if side.url else ""
    return address or PRESETS[side.engine].title


def _no_address(side: Side) -> WorkbenchError | None:
    if not side.url and not PRESETS[side.engine].url:
        return WorkbenchError("address", "none is given", allowed="http://host:port/v1 or https://...")
    if "@" in side.url or "?" in side.url:
        do = "put the key into an environment variable, and choose that"
        return WorkbenchError("address", "it has a name, a key or a question in it", do=do)
    if side.url and not side.url.startswith(("http://", "https://")):
        return WorkbenchError("address", f"it is {side.url!r:.100}", allowed="http://host:port/v1 or https://...")
    if side.key and not os.environ.get(side.key):
        return WorkbenchError("key", "no environment variable of that name is set", do="set it, and choose it again")
    return None
