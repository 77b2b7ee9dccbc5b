"""What formats cost on tasks: problems of GSM8K and the project's own, original against formats and a plan.

    python -m benchmarks.tasks [MODEL] [--gsm8k FILE.jsonl] [--device cuda] [--quick]

MODEL is whatever `wb.load` takes (by default the demo); a model of the Llama family is first moved off its grid
(`benchmarks.offgrid`), unless `--as-is`. Asked are the original, Q8_0, llama.cpp's rule Q4_K_M, and the plan of
least predicted KL divergence within the bytes of that rule, from a card on data/calibration.txt (or --text). All that
use an importance matrix use the card's. The tasks are data/tasks and, with `--gsm8k`, 100 problems of GSM8K (Cobbe et
al. 2021), a row for each with "question" and "answer". Answers are cached: an interrupted run goes on where it stopped.
`--quick` asks 8 of each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.offgrid import made_once

ROOT = Path(__file__).parents[1]
CANDIDATES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
RULE = "Q4_K_M"
TOKENS = {"arithmetic": 64, "code": 48, "extraction": 96, "instructions": 48}  # of a reply, at most
STEP_BY_STEP = "Solve the problem step by step, and end with: The answer is NUMBER.\n\n{question}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--gsm8k", type=Path, help="a JSON Lines file of its problems")
    options.add_argument(
        "--text", type=Path, default=ROOT / "data" / "calibration.txt", help="what the card is made of"
    )
    options.add_argument("--device")
    options.add_argument("--dtype")
    options.add_argument("--limit", type=int, help="ask so many of each task at most")
    options.add_argument("--problems", type=int, default=100, help="of GSM8K")
    options.add_argument("--parallel", type=int, help="replies made at once")
    options.add_argument("--no-kl", action="store_true", help="leave the KL divergence out")
    options.add_argument("--as-is", action="store_true", help="leave the weights where they are")
    options.add_argument("--quick", action="store_true", help="8 of each task")
    options.add_argument("--report", type=Path, help="write the page of HTML there")
    chosen = options.parse_args()
    limit = 8 if chosen.quick else chosen.limit

    import workbench as wb

    model = wb.load(chosen.model)
    if not chosen.as_is:
        model = made_once(model)
    card = wb.sensitivity(model, chosen.text, device=chosen.device)
    rule = wb.plan_for(model, RULE)
    plan = wb.plan(card, list(CANDIDATES), budget=rule.nbytes)
    print(f"{RULE}: {rule.nbytes:,} bytes; the plan: {plan.nbytes:,}, {plan.predicted}", flush=True)

    tasks = [
        wb.task(ROOT / "data" / "tasks" / f"{name}.jsonl", limit=limit, max_tokens=tokens)
        for name, tokens in TOKENS.items()
    ]
    if chosen.gsm8k:
        problems = min(chosen.problems, limit or chosen.problems)
        given = {"prompt": STEP_BY_STEP, "max_tokens": 300, "name": "GSM8K"}
        tasks.insert(0, wb.task(chosen.gsm8k, limit=problems, **given))
    began = time.perf_counter()
    found = wb.benchmark(
        {"original": model, "Q8_0": "Q8_0", RULE: rule, "our plan": plan},
        tasks,
        importance=card.importance,
        dtype=chosen.dtype,
        device=chosen.device,
        parallel=chosen.parallel,
        kl=not chosen.no_kl,
    )
    print(f"\n{found}\n\nin {time.perf_counter() - began:.0f} s (answers that were cached took none)")
    print("\n" + markdown(found))
    if chosen.report:
        print(found.report(chosen.report))


def markdown(found) -> str:
    """The figures as a table for a page."""
    from workbench.tasks.shown import points, share

    lines = ["| task | candidate | score (95 %) | difference, points | won | lost | p | KL, nats per token |"]
    lines.append("|" + "---|" * 8)
    for place, task in enumerate(found.tasks):
        for each in found.entries:
            pair, kl = found.pairs.get((task.name, each.name)), found.kl(place, each)
            paired = [points(pair.difference), pair.wins, pair.losses, f"{pair.holm:.2g}"] if pair else ["", "", "", ""]
            score, divergence = share(found.accuracies[task.name, each.name]), f"{kl.value:.3g}" if kl else ""
            cells = (f"{task.name}, {len(task)}", each.name, score, *paired, divergence)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
