"""Whether our plans are better than the others: measured KL divergence at the same bytes.

    python -m benchmarks.plans [MODEL] [--text FILE] [--device cuda] [--tokens 4096] [--measured 8192]

MODEL is whatever `wb.load` takes (by default the demo); a model of the Llama family is first moved off its grid
(`benchmarks.offgrid`), unless `--as-is`. The first half of the text (WikiText-2 at FILE or $WORKBENCH_WIKITEXT, else
data/calibration.txt) makes the card and the importance matrix. The second half is what is measured on. At the
bytes of llama.cpp's Q4_K_M, and of one format for all at 3.5 and 4.5 bits, stand side by side:

* that plan itself;
* ours: `wb.plan` within its bytes;
* rivals: the same candidates and the same integer program, but by another score (`benchmarks.rivals`): the
  importance-weighted error that llama.cpp's quantization to a target size minimizes, and AutoRound's DeltaLoss.

All are made with the same importance matrix. The 3.5 and 4.5 bits are round-to-nearest in groups of 64 (3 and 4 bits,
and 0.5 for scales), since ggml has no format of 3 bits for rows that are not whole blocks of 256, as the demo's.
Uniform ggml formats are in the table too.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.offgrid import made_once
from benchmarks.rivals import RIVALS
from benchmarks.sensitivity import Rounding, halves

GGML = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
ROUNDINGS = tuple(Rounding(f"round{bits}", bits, "") for bits in (2, 3, 4, 5, 6, 8))
UNIFORM = {3.5: ROUNDINGS[1], 4.5: ROUNDINGS[2]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--text", type=Path, default=os.environ.get("WORKBENCH_WIKITEXT"))
    options.add_argument("--device")
    options.add_argument("--tokens", type=int, default=4096, help="that the card is made of")
    options.add_argument("--measured", type=int, default=8192, help="held-out tokens that KL is measured on")
    options.add_argument("--formats", nargs="*", default=list(GGML), help="the candidates among ggml's formats")
    options.add_argument("--rules", nargs="*", default=["Q4_K_M", "Q4_K_S", "Q5_K_M", "Q3_K_M", "Q4_0", "IQ4_NL"])
    options.add_argument("--bits", nargs="*", type=float, default=list(UNIFORM), choices=list(UNIFORM))
    options.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    options.add_argument("--as-is", action="store_true", help="leave the weights where they are")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()

    import workbench as wb

    model = wb.load(chosen.model)
    if not chosen.as_is:
        model = made_once(model, chosen.seed)
    own, held_out = halves(chosen.text)
    began = time.perf_counter()
    card = wb.sensitivity(model, own, tokens=chosen.tokens, seed=chosen.seed, device=chosen.device)
    print(card, f"in {time.perf_counter() - began:.0f} s (0: from the cache)", flush=True)

    def measured(plan):
        """A plan's KL divergence on the held-out text, nats per token."""
        return wb.compare(
            model, plan, held_out, tokens=chosen.measured, importance=card.importance, device=chosen.device
        ).kl

    rows = []
    if chosen.rules:
        ggml = Question(card, [wb.formats.get(name) for name in chosen.formats], own, chosen)
        for name in chosen.rules:
            rows += ggml.beside(wb.plan(card, name), measured)
    if chosen.bits:
        even = Question(card, ROUNDINGS, own, chosen)
        for bits in chosen.bits:
            rows += even.beside(replace(wb.plan(card, UNIFORM[bits]), name=f"round to nearest, {bits} bits"), measured)
    print(f"\nheld-out tokens: {chosen.measured:,}; card: {card.provenance['tokens']:,}; bytes are the whole model's")
    rivals = chosen.rivals
    heads = ["at the bytes of", "bytes", "its KL", *rivals, "ours", "predicted", "ours to it"]
    heads += [f"ours to {name}'s" for name in rivals]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    print("\n".join(rows), flush=True)


class Question:
    """Candidates, priced by the card and by the rivals' scores."""

    def __init__(self, card, candidates, text: str, chosen: argparse.Namespace) -> None:
        from workbench.allocation.choices import Choices

        began = time.perf_counter()
        prices = card.prices(list(candidates))
        self.ours, self.rivals = Choices(prices, candidates), {}
        print(f"priced {len(candidates)} formats in {time.perf_counter() - began:.0f} s", flush=True)
        for name in chosen.rivals:
            began = time.perf_counter()
            scores = RIVALS[name](card, candidates, text, chosen.tokens, chosen.device)
            frame = prices.frame.drop(columns="cost").merge(scores, on=["tensor", "format"])
            self.rivals[name] = Choices(replace(prices, frame=frame), candidates)
            print(f"scored by {name} in {time.perf_counter() - began:.0f} s", flush=True)

    def beside(self, plan, measured) -> list[str]:
        """A row: the plan, and the best that each price finds within its bytes."""
        began = time.perf_counter()
        ours = self.ours.best(plan.nbytes)
        others = [measured(each) for each in (plan, *(choices.best(plan.nbytes) for choices in self.rivals.values()))]
        own = measured(ours)
        found = ", ".join(f"{name} {kl}" for name, kl in zip(self.rivals, others[1:], strict=True))
        print(f"  {plan.name}: {others[0]}; {found}; ours {own}, {time.perf_counter() - began:.0f} s", flush=True)
        shares = [f"{own.value / other.value - 1:+.0%}" for other in others]
        cells = [plan.name, f"{plan.nbytes:,}", *others, own, f"{ours.predicted.kl:.4f}", *shares]
        return [f"| {' | '.join(map(str, cells))} |"]


if __name__ == "__main__":
    main()
