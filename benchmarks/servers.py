"""Our engine against a server of OpenAI's protocol that runs: what `wb.run` promises, asked of it one by one.

    python -m benchmarks.servers http://127.0.0.1:8000/v1 --engine vllm [--model NAME] [--key VARIABLE]

The model should be a chat model; its answers are only held against each other. Prints a line for each promise
and ends with 1 if one was not kept. docs/engines.md says which servers it was run against, and how they started.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import workbench as wb
from workbench.engines.base import Engine
from workbench.engines.presets import PRESETS

QUESTION = "Name three uses of copper."
STORY = "Tell a long story about a heron."


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("url")
    options.add_argument("--engine", choices=[name for name in PRESETS if PRESETS[name].url])
    options.add_argument("--model")
    options.add_argument("--key", help="the environment variable that holds the key")
    chosen = options.parse_args()
    with wb.run(chosen.url, engine=chosen.engine, model=chosen.model, key=chosen.key) as engine:
        print(repr(engine))
        kept = [check(engine, promise) for promise in PROMISES]
        kept.append(refuses_another_model(chosen))
    print(f"{sum(kept)} of {len(kept)} kept")
    sys.exit(not all(kept))


def check(engine: Engine, promise: Callable[[Engine], str]) -> bool:
    """Whether a promise is kept; prints what was seen."""
    try:
        seen, kept = promise(engine), True
    except (AssertionError, wb.WorkbenchError) as reason:
        seen, kept = f"{type(reason).__name__}: {reason}", False
    print(f"{'kept' if kept else 'NOT KEPT':9}{promise.__name__.replace('_', ' ')}: {seen}")
    return kept


def answers(engine: Engine) -> str:
    reply = engine(QUESTION, max_tokens=60)
    assert reply.text.strip(), "no text"
    speed = f"{reply.prompt_tokens} + {len(reply.tokens)} tokens, {reply.tokens_per_second:.1f} tokens per second"
    return f"{reply.text[:60]!r} ({speed})"


def its_pieces_join_to_the_reply(engine: Engine) -> str:
    stream = engine.stream(QUESTION, max_tokens=40)
    pieces = list(stream)
    assert stream.reply is not None
    assert "".join(pieces) == stream.reply.text, "other text"
    assert len(pieces) > 1, "all at once"
    return f"{len(pieces)} pieces"


def ends_at_the_most_tokens(engine: Engine) -> str:
    reply = engine(STORY, max_tokens=12)
    assert reply.finish == "length", reply.finish
    return f"{reply.finish} after {len(reply.tokens)} pieces"


def the_seed_repeats_a_reply(engine: Engine) -> str:
    first, again, other = (engine(STORY, max_tokens=24, temperature=1, seed=seed).text for seed in (1, 1, 2))
    assert first == again, f"{first!r} and {again!r}"
    assert first != other, "another seed says the same"
    return repr(first[:40])


def a_stop_word_ends_it(engine: Engine) -> str:
    whole = engine(QUESTION, max_tokens=40).text
    word = whole.split()[4]
    reply = engine(QUESTION, max_tokens=40, stop=[word])
    assert word not in reply.text, reply.text
    assert reply.text == whole.partition(word)[0], reply.text
    assert reply.finish == "stop", reply.finish
    return f"before {word!r}"


def the_system_message_counts(engine: Engine) -> str:
    plain, told = (engine(QUESTION, max_tokens=40, system=system).text for system in (None, "Answer in French."))
    assert plain != told, "no difference"
    return repr(told[:40])


def turns_are_remembered(engine: Engine) -> str:
    talk = [("user", "My name is Ada."), ("assistant", "Hello Ada."), ("user", "What is my name?")]
    reply = engine([{"role": role, "content": content} for role, content in talk], max_tokens=20)
    alone = engine(talk[-1][1], max_tokens=20)
    assert reply.prompt_tokens > alone.prompt_tokens, "the earlier turns were not read"
    return repr(reply.text[:40])


def the_likeliest_of_one_is_the_likeliest(engine: Engine) -> str:
    if not PRESETS[preset_of(engine)].top_k:
        return "no top_k over this protocol; it is refused"
    first, again = (engine(QUESTION, max_tokens=20, temperature=1, top_k=1, seed=seed).text for seed in (1, 2))
    assert first == again, f"top_k=1 says {first!r} and {again!r}"
    return "top_k=1, whatever the seed"


def preset_of(engine: Engine) -> str:
    return next(name for name, preset in PRESETS.items() if engine.what.startswith(preset.title))


def stops_within_a_second(engine: Engine) -> str:
    stream = engine.stream(STORY, max_tokens=2000)
    next(stream)
    began = time.perf_counter()
    threading.Timer(0.2, engine.stop).start()
    list(stream)
    took = time.perf_counter() - began
    assert stream.reply is not None
    assert stream.reply.finish in ("stopped", "stop"), stream.reply.finish
    assert took < 1.2, f"it took {took:.1f} s"
    assert engine("Hello.", max_tokens=2).text is not None, "nothing after it"
    return f"{took:.1f} s"


def lists_its_likeliest_tokens(engine: Any) -> str:
    found = engine.likeliest("The capital of France is")
    assert len(found.tokens) > 1, "no list"
    assert found.prompt_tokens, "it does not tell as how many tokens it read the text"
    covered = sum(math.exp(each.log_p) for each in found.tokens)
    return f"{len(found.tokens)}, {covered:.0%} of the probability, first {found.tokens[0].text!r:.20}"


def a_prompt_longer_than_its_context_is_told(engine: Engine) -> str:
    try:
        engine("a heron " * 200_000, max_tokens=4)
    except wb.WorkbenchError as refusal:
        return refusal.found[:100]
    raise AssertionError("it answered")


def refuses_another_model(chosen: argparse.Namespace) -> bool:
    try:
        wb.run(chosen.url, engine=chosen.engine, model="no-such-model", key=chosen.key)
    except wb.WorkbenchError as refusal:
        print(f"{'kept':9}a model it does not have is told with those it has: {refusal.allowed[:80]}")
        return True
    print("NOT KEPT a model it does not have is taken")
    return False


PROMISES = (
    answers,
    its_pieces_join_to_the_reply,
    ends_at_the_most_tokens,
    the_seed_repeats_a_reply,
    a_stop_word_ends_it,
    the_system_message_counts,
    turns_are_remembered,
    the_likeliest_of_one_is_the_likeliest,
    stops_within_a_second,
    lists_its_likeliest_tokens,
    a_prompt_longer_than_its_context_is_told,
)

if __name__ == "__main__":
    main()
