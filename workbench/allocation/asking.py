"""The call: what may be stored how, within which budget; and the plan that is predicted to lose least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from workbench.allocation.budgets import bytes_for
from workbench.allocation.choices import Choices
from workbench.allocation.groups import pinned
from workbench.allocation.priced import PricedPlan, priced
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.measure.card import Card
from workbench.planning import Plan, Spec, plan_for
from workbench.progress import Steps, drain

K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def plan(
    card: Card,
    formats: Spec | Iterable[str | Format] = K_QUANTS,
    *,
    budget: int | str | None = None,
    bits: float | None = None,
    keep: Mapping[str, str | Format] | None = None,
    together: Iterable[str] | None = None,
    threads: int | None = None,
) -> PricedPlan:
    """The mix of `formats` with the least predicted KL divergence within a budget, or the price of a given plan.

        wb.plan(card, ["Q3_K", "Q4_K", "Q6_K"], budget="90 MB")
        wb.plan(card, bits=4.5, keep={"*embed*": "Q8_0"})
        wb.plan(card, "Q4_K_M")              # llama.cpp's rule, priced by the card

    Args:
        card: from `wb.sensitivity`.
        formats: names of `wb.formats.FORMATS` to choose from. Without a budget it is what `wb.plan_for` takes (a
            recipe, a format, a plan, tensor -> format), and that plan is priced as it is.
        budget: the most bytes of the whole model, as a number or as "90 MB" (10^6 bytes), "4.2 GB", "3 GiB".
        bits: the same in bits per weight of the whole model, tensors that stay as they are included.
        keep: pattern of tensor names (as in `fnmatch`) -> the format that these tensors get. Of several patterns
            that match, the last counts.
        together: patterns; matrices of a layer that one of them matches get one format. By default those that a
            runtime of these formats keeps as one: the experts of a layer, and in vLLM q, k, v and gate, up.
        threads: worker threads for quantizing every matrix into every format, which is done once and cached.

    Bytes are exact, fallbacks for awkward shapes included. The cost of each matrix comes from the packer's own
    quantizer and the card's importance matrix; the choice is an integer program, solved to 1 part in 10^4.

    Raises:
        WorkbenchError: an unknown format, formats that no program runs in one model, a pattern that matches nothing, a
            budget below the smallest mix (it says the smallest), both `budget` and `bits`, another model's plan.
    """
    steps = plan_steps(card, formats, budget=budget, bits=bits, keep=keep, together=together, threads=threads)
    return drain(steps, label="pricing formats")


def plan_steps(
    card: Card,
    formats: Spec | Iterable[str | Format] = K_QUANTS,
    *,
    budget: int | str | None = None,
    bits: float | None = None,
    keep: Mapping[str, str | Format] | None = None,
    together: Iterable[str] | None = None,
    threads: int | None = None,
) -> Steps[PricedPlan]:
    """`plan`, yielding the weights that were quantized; what is done stays in the cache."""
    most = bytes_for(card.checkpoint, budget, bits)
    if most is None:
        return (yield from _priced_steps(card, formats, keep, together, threads))
    if isinstance(formats, (Plan, Mapping)):
        raise WorkbenchError(
            "formats", "with a budget it is the formats to choose from", allowed='a list such as ["Q4_K", "Q6_K"]'
        )
    asked = [formats] if isinstance(formats, (str, Format)) else list(formats)
    pins = pinned(card.checkpoint, keep or {})
    prices = yield from card.prices_steps(list(dict.fromkeys([*asked, *pins.values()])), threads=threads)
    return Choices(prices, asked, pins, together).best(most)


def _priced_steps(
    card: Card,
    spec: Spec | Iterable[str | Format],
    keep: Mapping[str, str | Format] | None,
    together: Iterable[str] | None,
    threads: int | None,
) -> Steps[PricedPlan]:
    if not isinstance(spec, (str, Format, Plan, Mapping)) or keep is not None or together is not None:
        raise WorkbenchError(
            "budget", "neither budget nor bits is given", allowed='budget="90 MB", or bits=4.5 for each weight'
        )
    given = plan_for(card.checkpoint, spec)
    used = list(dict.fromkeys(given.formats.values()))
    prices = yield from card.prices_steps(used, threads=threads)
    return priced(given, Choices(prices, used))
