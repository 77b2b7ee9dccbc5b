"""What a plan being edited comes to, as markup: its size, its predicted and measured quality, its place in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import figures
from workbench.fit import Device, Memory
from workbench.fit.architecture import PARTS, part_of
from workbench.fit.figure import COLOURS
from workbench.panels import bars, parts
from workbench.panels.parts import Markup, tag, together

if TYPE_CHECKING:
    from workbench.allocation import Draft, Prediction
    from workbench.allocation.verified import Verified
    from workbench.panels.sheet import Sheet

MOST_ROWS = 1000  # of a table in the page


def headline(draft: Draft, measured: Verified | None) -> Markup:
    """The figures that move: bytes, which are exact, and quality, which is predicted until it is measured."""
    now = draft.predicted
    shown = [
        _figure("Size", figures.size(draft.nbytes), f"{draft.bits:.2f} bits per weight", kind="exact"),
        _figure("KL", f"≈ {now.kl:.3g}", _band(now), kind="predicted"),
        _figure(
            "Perplexity",
            f"≈ × {now.perplexity:.{4 if now.perplexity < 1000 else 2}g}",
            "of the original's",
            kind="predicted",
        ),
    ]
    if measured is not None:
        kl, ratio = measured.measured.kl, measured.measured.ratio
        shown.append(tag("div"))  # so that they stand below what was predicted of them
        shown.append(_figure("KL", f"{kl.value:.3g}", f"± {kl.error:.2g} nats per token", kind="measured"))
        shown.append(_figure("Perplexity", f"× {ratio.value:.4g}", f"± {ratio.error:.2g}", kind="measured"))
    return tag("div", *shown, cls="wb-figures")


def _figure(name: str, value: str, below: str, *, kind: str) -> Markup:
    badge = tag("span", kind, cls=f"wb-kind wb-{kind}")
    head = tag("div", name, " ", badge, cls="wb-figure-name")
    return tag("div", head, tag("div", value, cls="wb-value"), tag("div", below, cls="wb-hint"), cls=f"wb-a-{kind}")


def _band(predicted: Prediction) -> str:
    band = "" if math.isnan(predicted.low) else f"{predicted.low:.3g} to {predicted.high:.3g} "
    return f"{band}nats per token"


def deltas(draft: Draft) -> Markup:
    """How much the plan differs from the one before, and from llama.cpp's usual one."""
    others = []
    if draft.last is not None:
        others.append(("Since the last change", draft.last.nbytes, draft.last.predicted))
    if draft.yardstick is not None:
        others.append(("Against Q4_K_M", draft.yardstick.nbytes, draft.yardstick.predicted))
    rows: list[Sequence[object]] = [
        (
            name,
            f"{_sign(draft.nbytes - nbytes)}{figures.size(abs(draft.nbytes - nbytes))}",
            tag("i", _difference(draft.predicted.kl, predicted.kl)),
        )
        for name, nbytes, predicted in others
    ]
    return parts.table(("", "Size", "Predicted KL"), rows) if rows else Markup("")


def _sign(number: float) -> str:
    return "−" if number < 0 else "+" if number > 0 else "±"


def _difference(now: float, before: float) -> str:
    share = f" ({_sign(now - before)}{abs(now / before - 1):.0%})" if before > 0 else ""
    return f"≈ {_sign(now - before)}{abs(now - before):.2g}{share}"


# --- measured ----------------------------------------------------------------------------------------------


def beside(verified: Sequence[Verified]) -> Markup:
    """Predicted and measured side by side, the last first, each with one format for all of no more bytes."""
    rows: list[Sequence[object]] = []
    for each in reversed(verified):
        for plan, measured in ((each.plan, each.measured), (each.uniform, each.uniform_measured)):
            if plan is not None and measured is not None:
                band = "" if math.isnan(plan.predicted.low) else f" ({_band(plan.predicted).split(' nats')[0]})"
                rows.append(
                    (
                        plan.name if plan is each.plan else f"{plan.name} for all",
                        figures.size(plan.nbytes),
                        tag("i", f"≈ {plan.predicted.kl:.3g}{band}"),
                        tag("b", f"{measured.kl.value:.3g} ± {measured.kl.error:.2g}"),
                        f"× {measured.ratio.value:.4g}",
                    )
                )
    return parts.table(("Plan", "Size", "Predicted KL", "Measured KL", "Measured perplexity"), rows)


# --- without the grid --------------------------------------------------------------------------------------


def table(draft: Draft) -> Markup:
    """The figures of every matrix; of very many those that cost most."""
    frame = draft.plan.table
    rows = [
        (row.tensor, row.format, figures.size(row.nbytes), f"≈ {row.cost:.3g}", f"{row.share:.1%}")
        for row in frame.nlargest(MOST_ROWS, "cost").sort_index().itertuples()
    ]
    heads = ("Matrix", "Format", "Size", "Predicted cost, nats per token", "Share")
    return tag("div", parts.table(heads, rows), cls="wb-scrolled")


def still_grid(sheet: Sheet | None) -> Markup:
    """The grid as a table of formats, coloured as the live one."""
    if sheet is None:
        return Markup("")
    view, paint = sheet.view("format"), sheet.paint("format")
    width = len(view["columns"])
    lines = [tag("tr", tag("th", "layer"), *(tag("th", column["name"]) for column in view["columns"]))]
    for row in view["rows"]:
        cells = [_still_cell(cell and paint[cell["key"]], width if row["apart"] else None) for cell in row["cells"]]
        lines.append(tag("tr", tag("th", row["label"]), *cells))
    return tag("table", *lines)


def _still_cell(look: dict[str, Any] | None, span: int | None) -> Markup:
    if look is None:
        return tag("td")
    style = f"background-color: {look['color']}; color: {'#fff' if look['dark'] else '#000'}" if look["color"] else None
    return tag("td", look["text"], colspan=span, style=style, title=", ".join(look["lines"]))


# --- in memory ----------------------------------------------------------------------------------------------


class Held:
    """A draft's bytes in memory by part: what is counted once for its first plan, moved by what changed since.

    Args:
        memory: of the draft's plan as it is now, on its device.
    """

    def __init__(self, draft: Draft, memory: Memory, device: Device) -> None:
        self.memory, self.device = memory, device
        self._draft, self._first = draft, memory.parts_on(device)
        infos = draft.model.matrices
        self._part = np.array([PARTS.index(part_of(info.name, info.shape)) for info in infos], np.int64)
        self._then = self._sizes()

    def parts(self) -> dict[str, int]:
        """Bytes by part, on the device itself. What an engine decodes takes the same whatever it was stored in."""
        if self.memory.engine == "transformers":
            return {part: nbytes for part, nbytes in self._first.items() if nbytes}
        more = dict(zip(PARTS, (self._sizes() - self._then).tolist(), strict=True))
        found = {part: nbytes + int(more.get(part, 0)) for part, nbytes in self._first.items()}
        return {part: found[part] for part in COLOURS if found.get(part)}

    def _sizes(self) -> np.ndarray:
        sizes = self._draft.tariff.sizes(self._draft.now.mix)
        return np.bincount(self._part, weights=sizes, minlength=len(PARTS))

    def drawn(self) -> Markup:
        """Whether it fits, and the bar of its parts against the device."""
        held, usable = self.parts(), self.device.usable
        room = usable - sum(held.values())
        where = f"{'in' if self.device.kind == 'cpu' else 'on'} {bars.name_of(self.device)}"
        told = f"{figures.size(sum(held.values()))} of {figures.size(usable)}, {bars.spare(room)}"
        verdict = tag(
            "div",
            tag("b", "✓" if room >= 0 else "✗", cls="wb-sign", aria_hidden="true"),
            tag("b", f"{'Fits' if room >= 0 else 'Does not fit'} {where}"),
            tag("span", told, cls="wb-room"),
            cls=f"wb-verdict-fit {'wb-fits' if room >= 0 else 'wb-misfit'}",
        )
        bar = bars.bar(held, usable, height=20, reach=bars.REACH)
        return together(verdict, tag("div", bar, bars.scale(held, usable), cls="wb-bars"), _legend(held))


def _legend(held: Mapping[str, int]) -> Markup:
    named = [
        tag("span", bars.swatch(part), f"{bars.SPELT.get(part, part)} {figures.size(nbytes)}")
        for part, nbytes in held.items()
    ]
    return tag("div", *named, cls="wb-legend-row")
