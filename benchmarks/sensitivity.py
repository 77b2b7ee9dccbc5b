"""How well a sensitivity card predicts: exact KL divergences of single matrices and of random plans.

    python -m benchmarks.sensitivity [MODEL] [--text FILE] [--device cuda] [--tokens 5120] [--measured 8192]

MODEL is whatever `wb.load` takes, a Llama (by default the demo), and is first moved off its grid
(`benchmarks.offgrid`). The first half of the text (WikiText-2 at FILE or $WORKBENCH_WIKITEXT, else
data/calibration.txt) makes the card, and the second half is what is measured on: every layer matrix alone,
rounded to the nearest of 16 and of 8 even levels in groups of 64 inputs, and plans that give each matrix 3 to
8 bits at random. The card has never seen that rounding: the few measurements it makes itself are of other groups.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.formats import Format
from workbench.formats.base import Layout, Shape, Weights

ROOT = Path(__file__).parents[1]
GROUP = 64
BITS = (3, 4, 5, 6, 8)  # that plans are made of
PLANS_FROM, PLANS_TO = 3.5, 5.5  # mean bits of a plan, scales not counted


@dataclass(frozen=True)
class Rounding(Format):
    """Round to the nearest of 2^bits even levels between the least and the greatest of a group."""

    family = "integer"

    def layout(self, shape: Shape) -> Layout:
        codes = (shape[0], -(-shape[1] * round(self.bits) // 8))
        return {
            "codes": (np.dtype(np.uint8), codes),
            "range": (np.dtype(np.float16), (shape[0], 2 * shape[1] // GROUP)),
        }

    def roundtrip(self, weights: Weights, importance: Weights | None = None) -> Weights:
        import torch

        return self.of(torch.from_numpy(weights)).numpy()

    def of(self, weights):
        """The same on any device."""
        from workbench.measure.anchors import rounded

        return rounded(weights, 2 ** round(self.bits), GROUP)

    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights:
        raise NotImplementedError


ROUNDINGS = {bits: Rounding(f"round{bits}", bits, "") for bits in BITS}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--text", type=Path, default=os.environ.get("WORKBENCH_WIKITEXT"))
    options.add_argument("--device")
    options.add_argument("--tokens", type=int, default=5120, help="that the card is made of")
    options.add_argument("--context", type=int, help="of the card's sequences")
    options.add_argument("--measured", type=int, default=8192, help="held-out tokens that KL is measured on")
    options.add_argument("--bits", type=int, nargs="*", default=[4, 3], help="that single matrices are rounded to")
    options.add_argument("--plans", type=int, default=20)
    options.add_argument("--every", type=int, default=1, help="measure only each n-th matrix: for a quick look")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--table", type=Path, help="write predicted and exact KL of each matrix as CSV")
    chosen = options.parse_args()

    import torch

    import workbench as wb
    from benchmarks.offgrid import made_once
    from workbench.engines import build
    from workbench.engines.places import places
    from workbench.measure.probe import Probe
    from workbench.measure.sensitivity import sequences_of

    model = made_once(wb.load(chosen.model), chosen.seed)
    own, held_out = halves(chosen.text)
    context = {"context": chosen.context} if chosen.context else {}
    began = time.perf_counter()
    card = wb.sensitivity(model, own, tokens=chosen.tokens, seed=chosen.seed, device=chosen.device, **context)
    print(
        card,
        f"in {time.perf_counter() - began:.0f} s (0: from the cache); {card.curve.spread:.2f} around it",
        flush=True,
    )

    began = time.perf_counter()
    names = [name for name in card.matrices if model.tensors[name].layer is not None]
    prices = card.prices(list(ROUNDINGS.values())).frame.pivot(index="tensor", columns="format", values="cost")
    print(
        f"priced {len(names)} matrices in {len(ROUNDINGS)} formats in {time.perf_counter() - began:.0f} s", flush=True
    )

    ids = torch.from_numpy(sequences_of(model, held_out, chosen.measured, min(256, chosen.measured)))
    with torch.no_grad():
        loaded = build.model_of(model, dtype="float32", device=chosen.device)
        where, probe = places(loaded, model), Probe(loaded, ids)
        exact = singles(probe, where, names[:: chosen.every], chosen.bits)
        points = plans(probe, where, names, prices, chosen.plans, chosen.seed)
    if chosen.table:
        write(chosen.table, prices, exact, card)
    report(chosen, card, prices, exact, points, ids.numel())


def halves(path: Path | None) -> tuple[str, str]:
    text = Path(path or ROOT / "data" / "calibration.txt").read_text()
    text = plain(text) if path else text
    middle = text.index("\n", len(text) // 2)
    return text[:middle], text[middle:]


def plain(text: str) -> str:
    """WikiText-2's tokens as ordinary text."""
    text = re.sub(r" @(.)@ ", r"\1", text)
    text = re.sub(r" ([.,;:!?)\]'])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return text.replace(" n't", "n't").replace('" ', '"').replace("<unk>", "X")


def singles(probe, where: dict, names: list[str], bits: list[int]) -> dict:
    """(tensor, bits) -> the exact KL divergence of rounding that matrix alone."""
    found = {}
    for number, name in enumerate(names):
        place = where[name]
        for each in bits:
            with probe.changed(place, ROUNDINGS[each].of(place.part)):
                found[name, each] = probe.kl([place])
        if number % 30 == 29:
            print(f"  {number + 1} of {len(names)} matrices", flush=True)
    return found


def plans(probe, where: dict, names: list[str], prices, count: int, seed: int) -> list[tuple[float, float]]:
    """(sum of costs, exact KL divergence) of random plans, written over the model."""
    random = np.random.default_rng([seed, 1])
    before = {name: where[name].part.clone() for name in names}
    sizes = np.array([part.numel() for part in before.values()])
    points = []
    for wanted in np.linspace(PLANS_FROM, PLANS_TO, count):
        levels = mixed(random, sizes, wanted)
        for name, bits in zip(names, levels, strict=True):
            where[name].part.copy_(ROUNDINGS[bits].of(before[name]))
        cost = sum(prices.at[name, f"round{bits}"] for name, bits in zip(names, levels, strict=True))
        points.append((cost, probe.kl([where[name] for name in names])))
    for name, part in before.items():
        where[name].part.copy_(part)
    return points


def mixed(random: np.random.Generator, sizes: np.ndarray, wanted: float) -> list[int]:
    """Bits for each matrix, at random, with a mean over weights near `wanted`."""
    shares = random.dirichlet(np.ones(len(BITS)))
    low, high = -4.0, 4.0
    for _ in range(40):  # tilt the shares until the mean fits
        tilt = (low + high) / 2
        weights = shares * np.exp(tilt * np.array(BITS))
        low, high = (tilt, high) if weights @ BITS / weights.sum() < wanted else (low, tilt)
    return [int(bits) for bits in random.choice(BITS, len(sizes), p=weights / weights.sum())]


def report(chosen, card, prices, exact: dict, points: list, tokens: int) -> None:
    print(f"\nheld-out tokens: {tokens:,}; card: {card.provenance['tokens']:,} tokens, {card.provenance['device']}")
    print("| figure | reached | must | aim |\n|---|---|---|---|")
    needed = {4: ("0.92", "0.97"), 3: ("0.85", "0.93")}
    for bits in chosen.bits:
        names = [name for name, each in exact if each == bits]
        predicted = np.array([prices.at[name, f"round{bits}"] for name in names])
        true = np.array([exact[name, bits] for name in names])
        must, aim = needed.get(bits, ("", ""))
        print(f"| Spearman, {len(names)} matrices, {bits} bit | {spearman(predicted, true):.3f} | {must} | {aim} |")
        near = np.mean(np.abs(np.log2(predicted / true)) < 1)
        print(f"| within 2x, {bits} bit | {near:.1%} | {'90 %' if bits == 4 else ''} | {'97 %' if bits == 4 else ''} |")
    print(f"| forward passes of a card | {card.provenance['forwards']:.2f} | 6 | 4 |")
    if points:
        cost, true = np.array(points).T
        predicted = np.array([card.curve.kl(each) for each in cost])
        error = np.abs(predicted / true - 1)
        print(f"| Spearman, {len(points)} random plans | {spearman(cost, true):.3f} | 0.93 | 0.98 |")
        median, worst = np.median(error), np.percentile(error, 90)
        print(f"| plan KL error, median / 90th percentile | {median:.1%} / {worst:.1%} | 20 % / 40 % | 8 % / 20 % |")
        print("plans, sum of costs and exact KL: " + ", ".join(f"{s:.3f} {kl:.3f}" for s, kl in sorted(points)))
        print("anchors: " + ", ".join(f"{s:.3f} {kl:.3f}" for name, s, kl in card.measured if not name))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(each)) for each in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def write(path: Path, prices, exact: dict, card) -> None:
    lines = [f"{n},{b},{prices.at[n, f'round{b}']},{kl},{card.matrices[n].ratio}" for (n, b), kl in exact.items()]
    path.write_text("\n".join(["tensor,bits,predicted,exact,ratio", *lines]) + "\n")


if __name__ == "__main__":
    main()
