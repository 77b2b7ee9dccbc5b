"""What every engine takes and gives: `Settings`, a `Stream` of text, a `Reply`, and the `Engine` itself."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self, runtime_checkable

from workbench.exceptions import WorkbenchError

Finish = Literal["stop", "length", "stopped"]
Messages = Sequence[Mapping[str, str]]
ROLES = ("system", "user", "assistant", "tool")
LONGEST_REPLY = 1_000_000  # tokens; more than any model's context


@dataclass(frozen=True)
class Settings:
    """How one reply is generated; every engine understands the same seven.

    Attributes:
        system: an instruction placed before the conversation.
        max_tokens: the most tokens a reply may have.
        temperature: 0 always takes the likeliest token; 1 samples from the model's own distribution.
        top_p: sample among the likeliest tokens that together have this probability; 1 is off.
        top_k: sample among this many of the likeliest tokens; 0 is off.
        seed: the same seed, prompt and settings give the same reply on the same machine.
        stop: the reply ends before the first of these strings; one string or several.

    Raises:
        WorkbenchError: a value outside what is allowed, named.
    """

    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.system is not None and not isinstance(self.system, str):
            raise WorkbenchError("system", f"it is {self.system!r}", allowed="a text, or None")
        _check("max_tokens", self.max_tokens, int, 1, LONGEST_REPLY)
        _check("temperature", self.temperature, float, 0, 100)
        _check("top_p", self.top_p, float, 0, 1)
        if self.top_p == 0:
            raise WorkbenchError("top_p", "it is 0, which leaves no token", allowed="above 0, to 1 (off)")
        _check("top_k", self.top_k, int, 0, LONGEST_REPLY)
        _check("seed", self.seed, int, 0, 2**63 - 1)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise WorkbenchError(
                "stop", f"it is {self.stop!r}", allowed="one text or a list of texts, none of them empty"
            )
        object.__setattr__(self, "stop", tuple(stop))

    @classmethod
    def of(cls, **settings: Any) -> Settings:
        """The settings a caller wrote as keyword arguments; an unknown name lists the known ones."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise WorkbenchError(name, "no engine has a setting of this name", allowed=", ".join(known))
        return cls(**settings)


def _check(name: str, value: object, kind: type, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        number = number and isinstance(value, int)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        what = "a whole number" if kind is int else "a number"
        raise WorkbenchError(name, f"it is {value!r}", allowed=f"{what} from {low:g} to {high:g}")


def messages_of(prompt: str | Messages, system: str | None) -> list[dict[str, str]]:
    """The conversation as a list of {"role", "content"}; a bare text is one message of the user.

    Raises:
        WorkbenchError: an empty conversation, an unknown role, or content that is no text.
    """
    conversation = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not conversation:
        raise WorkbenchError("prompt", "the conversation is empty", do="pass a text, or a list with one message")
    for number, message in enumerate(conversation):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise WorkbenchError(
                f"message {number}",
                f"it is {message!r:.200}",
                allowed='{"role": ..., "content": ...} with a role of ' + ", ".join(ROLES),
            )
        if not isinstance(message.get("content"), str):
            raise WorkbenchError(f"message {number}", "its content is not a text", allowed="a string")
    if system is not None:
        conversation = [{"role": "system", "content": system}, *conversation]
    return [dict(message) for message in conversation]


@dataclass(frozen=True)
class Reply:
    """What a model answered, and how fast.

    Attributes:
        text: the reply, without the tokens that end it and without the stop string.
        token_ids: the generated tokens, the one that ended the reply left out; empty when the
            engine does not tell them.
        tokens: the text each token completed, so that they join to the reply. A token that holds
            part of a character is "", and the token that completes the character has all of it.
        prompt_tokens: length of the prompt as the model saw it, chat template included.
        seconds_to_first: from the call to the first token: the prompt is read in this time.
        tokens_per_second: of the tokens after the first; nan when there is only one.
        finish: "stop" (the model ended, or a stop string came), "length" (max_tokens, or the
            context is full), "stopped" (by the user).
        note: what a reader of this reply should know, such as a missing chat template.
        prompt_per_second: tokens of the prompt read in a second; nan when the engine does not tell.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    prompt_tokens: int
    seconds_to_first: float
    tokens_per_second: float
    finish: Finish
    note: str = ""
    prompt_per_second: float = math.nan

    @property
    def speed(self) -> str:
        """The figures in one line."""
        ended = {"stop": "", "length": ", cut at the length limit", "stopped": ", stopped"}[self.finish]
        if not self.tokens:
            return f"no tokens{ended}"
        rate = "" if math.isnan(self.tokens_per_second) else f", then {self.tokens_per_second:.1f} tokens/s"
        count = f"{len(self.tokens)} token{'s' * (len(self.tokens) != 1)}"
        return f"{count}: first after {self.seconds_to_first:.2f} s{rate}{ended}"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "\n".join([self.text, f"[{self.speed}]", *([f"[{self.note}]"] if self.note else [])])

    def _repr_html_(self) -> str:
        note = f"<br>{html.escape(self.note)}" if self.note else ""
        return (
            f'<div style="white-space: pre-wrap">{html.escape(self.text)}</div>'
            f'<div style="opacity: .7; font-size: .9em">{html.escape(self.speed)}{note}</div>'
        )


class Stream(Protocol):
    """The pieces of a reply as they come. Closing it stops the model; then `reply` has what there is."""

    @property
    def reply(self) -> Reply | None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Can:
    """What an engine gives beside text; what it cannot give is asked of another engine, never approximated.

    Attributes:
        logits: the scores of the whole vocabulary, which an exact KL divergence needs: `logits(ids)` gives
            them, and `workbench.compare` takes the engine.
        token_ids: replies carry the numbers of their tokens.
        seed: the same seed repeats a reply.
    """

    logits: bool = False
    token_ids: bool = False
    seed: bool = False


@runtime_checkable
class Engine(Protocol):
    """Something that answers.

    Attributes:
        name: what is shown for it, such as "SmolLM2-135M-Instruct Q4_K".
        what: one plain sentence on what is running, and what its figures do and do not say.
        memory_before, memory_after: bytes held by the process (on a GPU: by its allocator there)
            before the model was built and after.
        can: what it gives beside text.
    """

    name: str
    what: str
    can: Can
    memory_before: int
    memory_after: int

    def __call__(self, prompt: str | Messages, **settings: Any) -> Reply: ...
    def stream(self, prompt: str | Messages, **settings: Any) -> Stream: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
