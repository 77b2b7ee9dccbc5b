"""How a GGUF file is run by other programs, as commands to copy."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PORT = 8080  # where llama-server and wb.serve listen here


@dataclass(frozen=True)
class Way:
    """One way to run a file.

    Attributes:
        title: the program.
        text: what to type there, or the path to open there.
    """

    title: str
    text: str


def ways(path: str, modelfile: str = "") -> list[Way]:
    """The ways to run the GGUF `path`; with a Modelfile's path, Ollama's too.

    Paths are quoted as a shell and as Python want them, whatever is in their names.
    """
    file, name = shlex.quote(_no_option(path)), ollama_name(path)
    found = [
        Way("llama.cpp, as a server", f"llama-server -m {file} --port {PORT}"),
        Way("llama.cpp, in a terminal", f"llama-cli -m {file}"),
    ]
    if modelfile:
        create = f"ollama create {name} -f {shlex.quote(_no_option(modelfile))}"
        found.append(Way("Ollama", f"{create}\nollama run {name}"))
    found.append(Way("Python, as a server", f"served = wb.serve({path!r}, port={PORT})"))
    return [*found, Way("LM Studio, Jan, others", str(Path(path).expanduser().absolute()))]


def ollama_name(path: str) -> str:
    """A name for Ollama: small letters, digits, and - . _ between them."""
    return re.sub(r"[^a-z0-9._-]+", "-", Path(path).stem.lower()).strip("-._") or "model"


def _no_option(path: str) -> str:
    """A path that no program takes for an option."""
    return f"./{path}" if path.startswith("-") else path
