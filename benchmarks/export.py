"""What `wb.export` takes against llama.cpp's own quantizer: the same file, types and threads, in the same run.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    python -m benchmarks.export package/bins/linux-x64/libllama.v0.5.0.so [--threads 2] [--runs 3] [--hidden 2048]

A Llama of random weights in F16 is written by both, in turn; the ratios are of medians of wall and of CPU time.
The times of `wb.export` have all in them: encoding, hashes, reading the file back, decoding a piece of each matrix
against the source, and waiting for the disk; those of `llama_model_quantize` what it does, which is the first of
these. That both write the same bytes is tested (tests/writing). Peak memory is how far a process rises above what
it was before, for a model and for one of four times its layers.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.errors import rise, timed
from tests import llama_cpp, tiny

RECIPES = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "IQ4_XS": 30}
LAYERS = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("library", type=Path, help="libllama of another build of llama.cpp")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--hidden", type=int, default=2048)
    options.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.peak:
        print(peak(chosen.peak, chosen.threads))
        return
    library = opened(chosen.library)
    with tempfile.TemporaryDirectory() as folder:
        source, large = (written(Path(folder), chosen.hidden, layers) for layers in (LAYERS, 4 * LAYERS))
        print(f"{source.stat().st_size / 1e6:.0f} MB in F16, {chosen.threads} threads, median of {chosen.runs}")
        print("| | llama.cpp | wb.export | ratio |")
        print("|---|---|---|---|")
        for name in RECIPES:
            theirs, ours = [], []
            for _ in range(chosen.runs):
                theirs.append(timed(partial(by_llama_cpp, library, source, name, chosen.threads)))
                ours.append(timed(partial(by_workbench, source, name, chosen.threads)))
            for number, what in enumerate(("wall", "CPU")):
                a, b = (statistics.median(run[number] for run in runs) for runs in (theirs, ours))
                print(f"| {name}, {what} | {a:.2f} s | {b:.2f} s | {b / a:.2f} |", flush=True)
        for path in (source, large):
            command = [sys.executable, "-m", "benchmarks.export", str(chosen.library), "--peak", str(path)]
            command += ["--threads", str(chosen.threads)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
            print(f"peak memory {int(found) / 1e6:.0f} MB above the start, for {path.stat().st_size / 1e6:.0f} MB")


def written(folder: Path, hidden: int, layers: int) -> Path:
    weights = tiny.weights(hidden, layers, intermediate=11 * hidden // 4 // 256 * 256)
    return tiny.gguf(folder / f"{layers}.gguf", weights, "F16")


def opened(path: Path) -> ctypes.CDLL:
    """llama.cpp, silent."""
    library = llama_cpp.opened(path)
    library.silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(library.silent, None)
    return library


def by_llama_cpp(library: ctypes.CDLL, source: Path, name: str, threads: int) -> None:
    settings = library.llama_model_quantize_default_params()
    settings.threads, settings.file_type = threads, RECIPES[name]
    target = bytes(source.with_name("theirs.gguf"))
    assert not library.llama_model_quantize(bytes(source), target, ctypes.byref(settings))


def by_workbench(source: Path, name: str, threads: int) -> None:
    import workbench as wb

    wb.export(str(source), source.with_name("ours.gguf"), name, threads=threads)


def peak(source: Path, threads: int) -> int:
    """Bytes that `wb.export` rises above what the process was after a first, small one."""
    with tempfile.TemporaryDirectory() as folder:
        by_workbench(written(Path(folder), 512, 1), "Q4_K_M", threads)  # libraries are loaded
    return rise(lambda: by_workbench(source, "Q4_K_M", threads))


if __name__ == "__main__":
    main()
