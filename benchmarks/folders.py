"""What the schemes of `wb.quantize` cost on one model: bytes, KL divergence, and how long they take to make.

    python -m benchmarks.folders [MODEL] --text held-out.txt --calibration other.txt [--schemes FP8 NF4 ...]

The calibration text is read by GPTQ and AWQ alone, up to `--characters` of it. KL divergence is by the decoded
weights, in float32, over the second half of each chunk of 512 tokens: what activations in 8 bits cost besides (FP8,
W8A8, LLM.int8) is not in it. Bits per weight are the bytes of the quantized matrices, scales and all, over their
weights. The folders are made in `--keep` or else in a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import workbench as wb
from workbench.checkpoint import Checkpoint

ROUNDED = ("FP8", "W8A8", "LLM.int8", "INT8", "INT4-g32", "INT4", "NF4", "FP4")
CALIBRATED = ("GPTQ-4bit-g64", "AWQ-4bit-g64")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--text", type=Path, required=True, help="that is measured on")
    options.add_argument("--calibration", type=Path, required=True)
    options.add_argument("--characters", type=int, default=40_000, help="of the calibration text")
    options.add_argument("--tokens", type=int, default=2048, help="of the held-out text; half of them are scored")
    options.add_argument("--schemes", nargs="*", default=[*ROUNDED, *CALIBRATED])
    options.add_argument("--keep", type=Path, help="where the folders stay")
    chosen = options.parse_args()
    model = wb.load(chosen.model)
    calibration = chosen.calibration.read_text(encoding="utf-8")[: chosen.characters]
    print("| scheme | bits per weight | file | KL, nats per token | same top token | made in |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for scheme in chosen.schemes:
            to, started = (chosen.keep or Path(scratch)) / scheme, time.monotonic()
            made = wb.quantize(model, scheme, calibration, to=to)
            seconds = time.monotonic() - started
            found = wb.compare(model, made.path, chosen.text, tokens=chosen.tokens)
            print(
                f"| {scheme} | {bits_per_weight(wb.load(made.path)):.2f} | {made.nbytes / 1e6:.0f} MB | {found.kl} | "
                f"{found.same_top} | {seconds:.0f} s |",
                flush=True,
            )


def bits_per_weight(model: Checkpoint) -> float:
    """Of the matrices that are quantized."""
    packed = [info for info in model.matrices if info.encoding not in ("F32", "F16", "BF16")]
    return 8 * sum(info.nbytes for info in packed) / sum(info.params for info in packed)


if __name__ == "__main__":
    main()
