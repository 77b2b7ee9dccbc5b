"""The likeliest next tokens, as servers list them: OpenAI's older shape, which vLLM has too, and llama-server's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NUMBERED = re.compile(r"token_id:(\d{1,9})")  # how vLLM writes a token that it was asked to name by its number
BEYOND = 1e-3  # what rounding may add to probabilities that sum to 1; more is none


@dataclass(frozen=True)
class Listed:
    """A token of a list: the natural logarithm of its probability, and its text, its number or both."""

    text: str | None
    log_p: float
    number: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a server lists after a text.

    Attributes:
        tokens: the likeliest first; empty: it lists none.
        prompt_tokens: as how many tokens it read the text, its own beginning included; 0: it does not tell.
    """

    tokens: tuple[Listed, ...]
    prompt_tokens: int


def read(answer: str) -> Listing:
    """The list in the JSON of an answer to one token's completion.

    Raises:
        ValueError, TypeError, LookupError: it is none of OpenAI's protocol.
    """
    try:
        body = json.loads(answer)
        choice = body["choices"][0]
        said = choice.get("logprobs")
        found = sorted(_tokens(said, choice.get("text")), key=lambda each: -each.log_p) if said else []
    except (RecursionError, OverflowError):
        raise ValueError("numbers or brackets beyond reason") from None
    if sum(math.exp(each.log_p) for each in found) > 1 + BEYOND:
        raise ValueError("probabilities that sum to more than 1")
    read = (body.get("usage") or {}).get("prompt_tokens")
    return Listing(tuple(found), read if isinstance(read, int) and read > 0 else 0)


def _tokens(said: dict[str, Any], text: object) -> Iterator[Listed]:
    if said.get("content"):
        for entry in said["content"][0].get("top_logprobs") or ():
            number = entry.get("id")
            yield _listed(entry["token"], entry["logprob"], number if isinstance(number, int) else None)
    elif said.get("top_logprobs"):
        listed = said["top_logprobs"][0] or {}
        first, of_it = (said.get(field) or [None] for field in ("tokens", "token_logprobs"))
        taken = {first[0]: of_it[0]} if first[0] is not None else {}  # the likeliest: a text of several is listed once
        for name, log_p in {**listed, **taken}.items():
            numbered = NUMBERED.fullmatch(name)
            if numbered:
                yield _listed(text if name in taken else None, log_p, int(numbered[1]))
            else:
                yield _listed(name, log_p)


def _listed(text: object, log_p: object, number: int | None = None) -> Listed:
    nameless = text is None and number is not None
    if not (nameless or isinstance(text, str)) or isinstance(log_p, bool) or not isinstance(log_p, int | float):
        raise TypeError(f"a token {text!r:.40} of {log_p!r:.40}")
    if math.isnan(log_p) or log_p > BEYOND:
        raise ValueError("a probability that is none")
    return Listed(str(text) if text is not None else None, min(float(log_p), 0.0), number)
