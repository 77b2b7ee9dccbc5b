"""A recommendation, its reasons, and how they are shown."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Literal

from workbench import figures
from workbench.fit import Memory

Basis = Literal["measured", "predicted", "counted", "published", "a rule of thumb"]


@dataclass(frozen=True)
class Reason:
    """One reason.

    Attributes:
        text: a plain sentence.
        basis: "measured" on this model, "predicted" from its card, "counted" from its headers, "published" of other
            models, or "a rule of thumb".
        check: the call that would measure it on this model; "" where it was.
    """

    text: str
    basis: Basis
    check: str = ""

    @property
    def standing(self) -> str:
        """The basis, with what the reader must not take it for."""
        of_others = self.basis in ("published", "a rule of thumb")
        return f"{self.basis}, not measured on your model" if of_others else self.basis


@dataclass(frozen=True)
class Advice:
    """What to run, and why; made by `wb.advise`.

    Attributes:
        model: its name.
        use: what for.
        format: of the weights: a recipe or scheme, such as "Q4_K_M" or "FP8".
        engine: "llama.cpp" or "vllm".
        kv: the types of keys and values.
        context: tokens that were asked for, or as many as fit.
        memory: what it takes, by part.
        fits: whether it fits on the device.
        reasons: the first says why this format.
        code: lines that make and run it.
    """

    model: str
    use: str
    format: str
    engine: str
    kv: tuple[str, str]
    context: int
    memory: Memory
    fits: bool
    reasons: tuple[Reason, ...]
    code: str

    @property
    def headline(self) -> str:
        """The recommendation in one line."""
        kept = " and ".join(dict.fromkeys(self.kv))
        size = figures.size(self.memory.needed())
        device = self.memory.device.name if self.memory.device else "an unknown device"
        fit = f"{size} on {device}" if self.fits else f"does not fit: {size} on {device}"
        return f"{self.format} in {self.engine}, {self.context:,} tokens with keys and values in {kept}: {fit}"

    def __repr__(self) -> str:
        lines = [f"{self.model}, for {self.use}: {self.headline}"]
        for reason in self.reasons:
            lines.append(f"  - {reason.text} [{reason.standing}]")
            if reason.check:
                lines.append(f"    to measure it: {reason.check}")
        return "\n".join([*lines, "", self.code])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li>{html.escape(each.text)} <small>[{html.escape(each.standing)}]</small>"
            + (f"<br><small>to measure it: <code>{html.escape(each.check)}</code></small>" if each.check else "")
            + "</li>"
            for each in self.reasons
        )
        head = f"<b>{html.escape(self.model)}, for {html.escape(self.use)}:</b> {html.escape(self.headline)}"
        return f"<p>{head}</p><ul>{rows}</ul><pre>{html.escape(self.code)}</pre>"
