"""From prediction to file: the KL divergence that a card predicts, that the decoded weights have, and llama.cpp's.

    python -m benchmarks.confirmed [MODEL] [--text FILE] [--tokens 2048] [--measured 4096] [--threads 2] [--off-grid]

MODEL is whatever `wb.load` takes (by default the demo). The first half of the text (WikiText-2 at FILE or
$WORKBENCH_WIKITEXT, else data/calibration.txt) makes the card, the second half is measured on. Five plans are
priced, measured by their decoded weights, exported, and the files measured as llama.cpp computes them: all against
the model itself in float32. The last row is the model itself in llama.cpp, the file as it is or in F16: what llama.cpp
adds of its own. On quantized files that is the rounding of activations to 8 bits, which no choice of formats avoids.

`--off-grid` moves a model of the Llama family off the grid it was published on first (`benchmarks.offgrid`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.offgrid import made_once
from benchmarks.sensitivity import halves

CHOICES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
RULES = ("Q8_0", "Q5_K_M", "Q4_K_M")
BITS = (6.0, 5.0)  # of our plans, per weight of the whole model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--text", type=Path, default=os.environ.get("WORKBENCH_WIKITEXT"))
    options.add_argument("--tokens", type=int, default=2048, help="that the card is made of")
    options.add_argument("--measured", type=int, default=4096, help="tokens that KL is measured on")
    options.add_argument("--threads", type=int, help="of llama.cpp")
    options.add_argument("--rules", nargs="*", default=list(RULES))
    options.add_argument("--bits", nargs="*", type=float, default=list(BITS))
    options.add_argument("--off-grid", action="store_true")
    chosen = options.parse_args()

    import workbench as wb

    model = wb.load(chosen.model)
    if chosen.off_grid:
        model = made_once(model)
    own, held_out = halves(chosen.text)
    card = wb.sensitivity(model, own, tokens=chosen.tokens)
    print(card, card.curve, sep="\n", flush=True)
    plans = [wb.plan(card, rule) for rule in chosen.rules]
    plans += [wb.plan(card, CHOICES, bits=bits) for bits in chosen.bits]

    def measured(candidate):
        return wb.compare(model, candidate, held_out, tokens=chosen.measured)

    def in_llama_cpp(path):
        with wb.run(str(path), engine="llama.cpp", threads=chosen.threads) as engine:
            return measured(engine)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate(plans):
            began = time.perf_counter()
            decoded = measured(plan)
            path = Path(folder) / f"{number}.gguf"
            wb.export(plan, path)
            found = in_llama_cpp(path)
            path.unlink()
            said = plan.predicted
            rows.append(
                f"| {plan.name} | {plan.nbytes:,} | {said.kl:.4f} ({said.low:.4f} to {said.high:.4f}) | {decoded.kl} "
                f"| {found.kl} | {found.same_top.percent.value:.1f} % |"
            )
            print(f"  {plan.name}: {time.perf_counter() - began:.0f} s", flush=True)
        if model.kind == "gguf":
            path = model.path
        else:
            wb.export(model, path := Path(folder) / "whole.gguf", "F16")
        itself = in_llama_cpp(path)
    rows.append(
        f"| the model itself | {model.nbytes:,} | 0 | 0 | {itself.kl} | {itself.same_top.percent.value:.1f} % |"
    )
    print(f"\n{itself.scored:,} tokens scored; KL in nats per token, ± one standard error")
    print("| plan | bytes | predicted (range) | decoded weights | in llama.cpp | same top token there |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
