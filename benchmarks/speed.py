"""Tokens per second of `wb.run(engine="llama.cpp")` against llama.cpp's bare loop, on the same file and threads.

    python -m benchmarks.speed [FILE.gguf] [--threads 2] [--tokens 128] [--runs 5]

The bare loop calls `llama_decode` of the same library from C's own interface, takes the likeliest token, and asks for
the next; it makes no text of them and checks nothing. It runs in a process of its own, in turn with replies of the
engine; the ratio is of medians. Without a file the demo is written in Q8_0 first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUESTION = "Tell a long story about a heron that stands in the reeds and waits. " * 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, nargs="?")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.bare:
        print(*bare(chosen.file, chosen.threads, chosen.bare, chosen.tokens))
        return
    import workbench as wb

    with tempfile.TemporaryDirectory() as folder:
        path = chosen.file or wb.export("demo", Path(folder) / "demo-Q8_0.gguf", "Q8_0").path
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        with wb.run(str(path), engine="llama.cpp", threads=chosen.threads, context=2048) as engine:
            engine("hello", max_tokens=2)
            for _ in range(chosen.runs):
                reply = engine(QUESTION, max_tokens=chosen.tokens)
                ours.append((reply.prompt_per_second, reply.tokens_per_second))
                command = [sys.executable, "-m", "benchmarks.speed", str(path), "--bare", str(reply.prompt_tokens)]
                command += ["--threads", str(chosen.threads), "--tokens", str(len(reply.tokens))]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                theirs.append((float(said[-2]), float(said[-1])))
        print(f"{path.name}, {chosen.threads} threads, {len(reply.tokens)} tokens, median of {chosen.runs}")
        print("| tokens per second | bare loop | wb.run | ratio |")
        print("|---|---|---|---|")
        for number, what in enumerate(("prompt", "generation")):
            a, b = (statistics.median(run[number] for run in runs) for runs in (theirs, ours))
            print(f"| {what} | {a:.1f} | {b:.1f} | {b / a:.3f} |")


def bare(path: Path, threads: int, prompt: int, tokens: int) -> tuple[float, float]:
    """(prompt, generation) in tokens per second; the prompt is any `prompt` tokens of the vocabulary."""
    import numpy as np

    import workbench as wb
    from workbench.engines import llama_c
    from workbench.engines.options import options_of

    options = options_of(wb.load(str(path)), 2048, None, threads, None)
    with llama_c.opened(options) as model:
        functions, context = model._functions, model._context

        def decode(ids: np.ndarray) -> int:
            """The likeliest token after `ids`, which follow what was decoded before."""
            batch = llama_c._Batch(len(ids), ids.ctypes.data, None, None, None, None, None)
            assert not functions.llama_decode(context, batch)
            return int(np.ctypeslib.as_array(functions.llama_get_logits(context), (model.width,)).argmax())

        decode(np.arange(2, dtype=np.int32))
        functions.llama_memory_clear(functions.llama_get_memory(context), True)
        began = time.perf_counter()
        token = decode(np.arange(100, 100 + prompt, dtype=np.int32))
        read = time.perf_counter()
        for _ in range(tokens - 1):
            token = decode(np.array([token], np.int32))
        return prompt / (read - began), (tokens - 1) / (time.perf_counter() - read)


if __name__ == "__main__":
    main()
