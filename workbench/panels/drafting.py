"""From a text to a plan that can be edited, as steps: the card, the prices of formats, and where to begin."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.allocation import Draft, PricedPlan
from workbench.allocation.asking import K_QUANTS
from workbench.allocation.choices import Choices
from workbench.exceptions import WorkbenchError
from workbench.measure.sensitivity import sensitivity_steps
from workbench.planning import Plan

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint
    from workbench.measure.card import Card
    from workbench.measure.text import Text
    from workbench.progress import Steps

# What `wb.memory` calls an engine, as formats name the programs that run them.
PROGRAMS = {"llama.cpp": "llama.cpp", "transformers": "transformers", "bitsandbytes": "transformers", "vllm": "vLLM"}
ENGINE_FORMATS: dict[str, Sequence[str]] = {
    "llama.cpp": K_QUANTS,
    "transformers": ("NF4", "LLM.int8", "BF16"),
    "bitsandbytes": ("NF4", "LLM.int8"),
    "vllm": ("INT4", "FP8", "BF16"),
}


def measured_steps(
    model: Checkpoint, text: Text, tokens: int, names: Sequence[str], program: str, anyway: bool
) -> Steps[tuple[Card, Draft]]:
    """Measure the card, price the formats; what is done stays in the cache."""
    card = yield from sensitivity_steps(model, text, tokens=tokens, anyway=anyway)
    return card, (yield from draft_steps(card, names, program))


def draft_steps(card: Card, names: Sequence[str], program: str, plan: Plan | None = None) -> Steps[Draft]:
    """Price the formats, and begin: with `plan` if the prices are of its formats, else with the best mix."""
    prices = yield from card.prices_steps(names)
    draft = Draft(_first(Choices(prices, names)), program)
    draft.front, draft.yardstick  # noqa: B018  worked out here, where there is a bar of progress
    if plan is not None:
        with contextlib.suppress(WorkbenchError):  # it has other formats: what is asked for now counts
            draft.take(plan)
    return draft


def _first(choices: Choices) -> PricedPlan:
    """The best mix of Q4_K_M's size where that can be, else of the middle between the smallest and the largest."""
    from workbench.planning import plan_for

    sack = choices.knapsack
    least = choices.rest + int(sack.nbytes[sack.smallest].sum())
    most = choices.rest + int(sack.nbytes[sack.path.mix(len(sack.path.price))].sum())
    usual = plan_for(choices.model, "Q4_K_M").nbytes
    return choices.best(usual if least <= usual <= most else (least + most) // 2)
