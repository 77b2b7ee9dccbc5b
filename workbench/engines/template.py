"""From a conversation to the text a model reads: its chat template, rendered where it can do no harm."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from workbench.checkpoint import Checkpoint
from workbench.checkpoint.gguf import LongArray
from workbench.exceptions import WorkbenchError, need

PROGRAM = Path(__file__).with_name("render.py")
SECONDS = 1.5  # for a template that needs a millisecond; the whole call stays under two seconds
STARTING = 20.0  # for Python itself, on a machine that is busy
MEMORY = 64 << 20  # bytes a template may take beyond the interpreter
LONGEST = 4_000_000  # characters of a rendered conversation
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}  # in a GGUF
REMEMBERED = 64_000  # bytes of a conversation that is rendered once for every format of a model that is asked
KEPT = ("SYSTEMROOT", "TZ")  # Windows needs the first to start Python; the second is for strftime_now


@dataclass(frozen=True)
class Prompt:
    """The text given to a model. `templated`: it holds its own special tokens. `note`: what a user should know."""

    text: str
    templated: bool
    note: str = ""


def prompt_of(template: str | None, messages: list[dict[str, str]], *, model: str, tokens: Mapping[str, Any]) -> Prompt:
    """The conversation as `model` wants it; as plain text, with a note, when it has no chat template.

    Args:
        tokens: the tokenizer's special tokens by name (bos_token, ...), which templates refer to.

    Raises:
        WorkbenchError: the template loops, allocates, leaves its sandbox, is not valid Jinja,
            or refuses the conversation; it names the model and the reason.
    """
    if template is not None:
        variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **tokens}
        return Prompt(render(template, variables, model=model), templated=True)
    note = "this model has no chat template: it continues the prompt as plain text"
    return Prompt("\n\n".join(message["content"] for message in messages), templated=False, note=note)


def render(template: str, variables: Mapping[str, Any], *, model: str) -> str:
    """Render a hostile Jinja template as transformers' `apply_chat_template` would; see `prompt_of`."""
    question = {
        "template": template,
        "variables": dict(variables),
        "memory": MEMORY,
        "seconds": int(SECONDS) + 1,
        "longest": LONGEST,
    }
    raw = json.dumps(question).encode("ascii")
    timeless = len(raw) < REMEMBERED and "strftime_now" not in template
    try:
        return _remembered(raw) if timeless else _rendered(raw)
    except _Failed as reason:
        raise WorkbenchError(
            model,
            f"its chat template does not work: {reason.problem[:300]}",
            do="let user and assistant take turns, and give the instruction in the first message of the user"
            if reason.refused
            else "open another copy of the model, or one without a chat template",
        ) from None


class _Failed(Exception):
    """A template that gave no text, and why."""

    def __init__(self, problem: str, refused: bool = False) -> None:
        self.problem, self.refused = problem, refused


def _rendered(question: bytes) -> str:
    """The text that render.py makes of a question."""
    try:
        answer = json.loads(_ask(question))
        if "text" in answer:
            return str(answer["text"]).encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        problem, refused = str(answer["problem"]), "refused" in answer
    except (ValueError, TypeError, KeyError):  # killed, or no longer the program we started
        raise _Failed(f"it did not end within {SECONDS:g} s, or ended its process") from None
    raise _Failed(problem, refused)


def special_tokens(gguf: Checkpoint, which: Iterable[str] = tuple(SPECIAL)) -> dict[str, tuple[int, str]]:
    """Special tokens of a GGUF by llama.cpp's names (bos, eos, eot, ...) -> (number, text); those it does not
    have are left out."""
    listed = gguf.metadata.get("tokenizer.ggml.tokens")
    texts = listed.read() if isinstance(listed, LongArray) else listed or []
    numbers = {name: gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in which}
    return {
        name: (number, str(texts[number]))
        for name, number in numbers.items()
        if isinstance(number, int) and 0 <= number < len(texts)
    }


def by_name(special: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    """What `special_tokens` found, by the names that templates have for it: bos_token and so on -> text."""
    return {SPECIAL[name]: text for name, (_, text) in special.items() if name in SPECIAL}


_remembered = lru_cache(maxsize=2048)(_rendered)  # what fails is not remembered


def _ask(question: bytes) -> bytes:
    """Run render.py on one question; its answer, cut at what a rendered conversation may need."""
    command = [sys.executable, "-I", "-S", str(PROGRAM), *_folders("jinja2", "markupsafe")]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept
        )
    except OSError as error:
        raise _Failed(f"Python did not start ({error})") from error
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        clock = _kill_after(process, STARTING)
        try:
            ready = process.stdout.read(1)
            clock.cancel()
            clock = _kill_after(process, SECONDS)
            if not ready:
                return b""
            process.stdin.write(question)
            process.stdin.close()
            return process.stdout.read(6 * LONGEST + 100)  # a character is at most \\uXXXX in JSON
        except BrokenPipeError:
            return b""
        finally:
            clock.cancel()
            process.kill()


def _kill_after(process: subprocess.Popen[bytes], seconds: float) -> threading.Timer:
    clock = threading.Timer(seconds, process.kill)
    clock.daemon = True
    clock.start()
    return clock


def _folders(*modules: str) -> list[str]:
    """Where the modules lie, for a process that has no other path."""
    found = []
    for module in modules:
        need(module)
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        found.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(found))
