"""What `wb.errors` costs over the bare kernels: the demo's layer matrices in eight formats.

    python benchmarks/errors.py [--threads 2] [--runs 3]

The bare side is given every advantage: weights already in memory as float32, each
library's own encode and decode called once for each matrix and stored format, no error
computed, nothing written. Both sides run in the same process, in turn, on the same
number of threads, with an empty result cache; the ratio is of medians of CPU and of wall
time. Peak memory is how far the process's resident memory rises above what it was before
`wb.errors`, looked at 500 times a second in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

FORMATS = ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "NF4", "INT8"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    import torch

    import workbench as wb

    torch.set_num_threads(1)  # bitsandbytes computes in torch: the worker threads are the parallelism of both sides
    model = wb.load("demo")
    matrices = [info for info in model.matrices if info.layer is not None]
    pattern = "blk.*" if model.kind == "gguf" else "model.layers.*"
    if chosen.peak:
        once(model, FORMATS, "*.0.*", chosen.threads)  # libraries are loaded, buffers of the first use exist
        print(rise(lambda: once(model, FORMATS, pattern, chosen.threads)))
        return
    weights = {info.name: model.read(info.name) for info in matrices}
    bare(weights, chosen.threads)
    once(model, FORMATS, pattern, chosen.threads)
    kernels, ours = [], []
    for _ in range(chosen.runs):
        kernels.append(timed(lambda: bare(weights, chosen.threads)))
        ours.append(timed(lambda: once(model, FORMATS, pattern, chosen.threads)))
    command = [sys.executable, __file__, "--peak", "--threads", str(chosen.threads)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    largest = max(values.nbytes for values in weights.values())
    print(f"{len(matrices)} matrices x {len(FORMATS)} formats, {chosen.threads} threads, median of {chosen.runs}")
    print("| | bare kernels | wb.errors | ratio |")
    print("|---|---|---|---|")
    for number, what in enumerate(("wall", "CPU")):
        a, b = (statistics.median(run[number] for run in runs) for runs in (kernels, ours))
        print(f"| {what} | {a:.2f} s | {b:.2f} s | {b / a:.2f} |")
    print(f"peak memory {peak / 1e6:.0f} MB above the start; the largest matrix is {largest / 1e6:.1f} MB in float32")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def rise(work: Callable[[], None]) -> int:
    """How far resident memory rises above its present value during `work`, in bytes."""
    import psutil

    process, ended = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return highest - before


def once(model, names: list[str], pattern: str, threads: int) -> None:
    """One `wb.errors` with an empty result cache."""
    import workbench as wb

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("WORKBENCH_CACHE")
        os.environ["WORKBENCH_CACHE"] = folder
        try:
            wb.errors(model, names, tensors=pattern, threads=threads)
        finally:
            os.environ.pop("WORKBENCH_CACHE")
            if before is not None:
                os.environ["WORKBENCH_CACHE"] = before


def bare(weights: dict, threads: int) -> None:
    """Each library's own encode and decode, once for each matrix and stored format."""
    from workbench import formats

    jobs = [
        (matrix, used)
        for matrix in weights.values()
        for used in dict.fromkeys(formats.get(name).used_for(matrix.shape) for name in FORMATS)
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: kernel(*job), jobs))


def kernel(matrix, used) -> None:
    if used.family == "ggml":
        import libgguf

        libgguf.dequantize_rows(libgguf.quantize_rows(matrix, used.number), used.number, matrix.shape[1])
    elif used.name == "NF4":
        import torch
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(torch.from_numpy(matrix), blocksize=64, quant_type="nf4")
        functional.dequantize_4bit(codes, state)
    else:  # the project's own codecs: there is no other library's to call
        used.decode(used.encode(matrix))


if __name__ == "__main__":
    main()
