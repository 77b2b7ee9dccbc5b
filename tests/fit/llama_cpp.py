"""What llama.cpp says it allocates: its own log of buffers, from a process of its own.

Started as a program it loads a model by xllamacpp, as `llama-server` would, and ends.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
_SIZE = r"= +([\d.]+) MiB"


@dataclass(frozen=True)
class Report:
    """Bytes, to the hundredth of a MiB that llama.cpp prints."""

    weights: float
    cache: float
    states: float
    compute: float
    output: float
    process: int  # that the whole process grew by; 0 when nothing was allocated

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.states + self.compute + self.output


def report(
    model: Path,
    context: int,
    *,
    kv: tuple[str, str] = ("f16", "f16"),
    batch: int = 1,
    words: int = 0,
    dry: bool = False,
) -> Report:
    """Load `model` with room for `batch` sequences of `context` tokens, and have it read a prompt of `words`.

    `dry`: only plan it, and allocate nothing. That takes no more than the shapes in the
    header, so the file may be one whose tensors are holes.
    """
    rounded = -(-context // 256) * 256
    asked = {"n_ctx": rounded * batch, "n_parallel": batch, "cache_type_k": kv[0], "cache_type_v": kv[1]}
    asked["fit_params"] = dry  # that plans, and may then change the context to what is free just now
    command = [sys.executable, __file__, str(model), json.dumps(asked), str(words)]
    last = "projected to use" if dry else "stop processing" if words else "all slots are idle"
    lines = []
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, errors="replace") as run:
        for line in run.stderr:
            lines.append(line)
            if last in line:
                break
        else:
            raise RuntimeError(f"llama.cpp did not load {model}: {''.join(lines)[-800:]}")
        grown = 0 if dry else int(run.stdout.readline())
        run.kill()
    return _parsed("".join(lines), grown, planned=dry)


def _parsed(log: str, process: int, *, planned: bool) -> Report:
    def total(pattern: str) -> float:
        return MIB * sum(float(size) for size in re.findall(pattern + _SIZE, log))

    # a plan that allocates nothing says 0 for its buffers, but what their tensors add up to
    cache = r"llama_kv_cache: size " if planned else r"KV buffer size "
    states = r"llama_memory_recurrent: size " if planned else r"RS buffer size "
    return Report(
        weights=total(r"model buffer size "),
        cache=total(cache),
        states=total(states),
        compute=total(r"compute buffer size "),
        output=total(r"output buffer size "),
        process=process,
    )


def _load(model: str, asked: dict[str, object], words: int) -> None:
    import psutil
    import xllamacpp

    types = {name.removeprefix("GGML_TYPE_").lower(): name for name in dir(xllamacpp.ggml_type)}
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.cache_ram_mib = 0
    parameters.no_extra_bufts = True  # else some weights are repacked for this processor, in buffers beside the file
    parameters.verbosity = 5
    for name, value in asked.items():
        if name.startswith("cache_type"):
            value = getattr(xllamacpp.ggml_type, types[str(value)])
        setattr(parameters, name, value)
    before = psutil.Process().memory_info().rss
    server = xllamacpp.Server(parameters)
    if words:
        prompt = {"prompt": "word " * words, "max_tokens": 2, "stream": False}
        server.handle_completions(prompt, lambda reply: False)
    print(psutil.Process().memory_info().rss - before, flush=True)
    sys.stdin.read()  # its log is written by a thread of its own: who reads it ends this process when it has all


if __name__ == "__main__":
    _load(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
