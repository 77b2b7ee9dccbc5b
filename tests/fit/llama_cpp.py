"""What llama.cpp says it allocates: its own log of buffers, from a process of its own.

Started as a program it loads a model by xllamacpp, as `llama-server` would, and ends.
"""

from __future__ import annotations

import json
import os
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
    command = [sys.executable, __file__, str(model), json.dumps(asked), str(words)]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout
        for line in run.stdout:
            lines.append(line)
            if dry and "projected to use" in line:
                run.kill()
    said = "".join(lines)
    if dry:
        return _parsed(said.partition("projected to use")[0], 0, planned=True)
    grown = re.search(r"^grown (\d+);", said, re.MULTILINE)
    if grown is None:
        raise RuntimeError(f"llama.cpp did not load {model}: {said[-800:]}")
    return _parsed(said.rpartition("loading model tensors")[2], int(grown[1]), planned=False)


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
    os.write(1, b"\ngrown %d;\n" % (psutil.Process().memory_info().rss - before))
    os._exit(0)  # its threads need no orderly end


if __name__ == "__main__":
    _load(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
