"""One side of Chat: what answers, in which engine, with which options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

from workbench.engines.presets import PRESETS

FILE = "file"  # stands for a GGUF file, where a format is named
SERVER = "server"  # and for a model that a server runs
NOBODY = ""  # a side that is not asked

TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"
SERVERS = tuple(PRESETS)
LOCAL = ((TRANSFORMERS, TRANSFORMERS), (LLAMA_CPP, LLAMA_CPP))


@dataclass(frozen=True)
class Side:
    """What answers, as `wb.run` is asked for it.

    Attributes:
        what: "original", "plan", a recipe's or format's name; "file", "server"; "" for nobody.
        engine: one of `wb.run`'s; of a server, its kind.
        file: for "file", the path of a GGUF.
        kv: the types that keys and values are kept in, in llama.cpp and transformers; None is their own choice.
        context, threads, gpu_layers: for llama.cpp; None is its own choice.
        url, model, key: for a server: its address (empty: where its kind listens), its model (empty: the only
            one), and the name of the environment variable with its key (empty: it wants none).
    """

    what: str = NOBODY
    engine: str = TRANSFORMERS
    file: str = ""
    context: int | None = None
    kv: tuple[str, str] | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    url: str = ""
    model: str = ""
    key: str = ""

    def asking(self, what: str) -> Side:
        """The same side with something else that answers, in an engine that runs such a thing."""
        same = _kind(what) == _kind(self.what) or self.what == NOBODY
        engine = self.engine if same and self.engine in dict(engines_of(what)).values() else usual(what)
        return replace(self, what=what, engine=engine)


def engines_of(what: str) -> tuple[tuple[str, str], ...]:
    """(words, engine) of what may run such a thing, for a menu."""
    if what == SERVER:
        return tuple((PRESETS[name].title if PRESETS[name].url else "another", name) for name in SERVERS)
    return LOCAL[::-1] if what == FILE else LOCAL


def usual(what: str) -> str:
    """The engine that such a thing is run in unless another is chosen."""
    if what == SERVER:
        return SERVERS[0]
    return LLAMA_CPP if what == FILE and find_spec("xllamacpp") is not None else TRANSFORMERS


def _kind(what: str) -> str:
    return what if what in (FILE, SERVER, NOBODY) else "weights"
