"""The fields of Chat that say how a reply is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ipywidgets as widgets

from workbench.engines import Settings
from workbench.panels import parts

DEFAULTS = Settings()


class Sampling:
    """System prompt, length, temperature, top p, top k and seed, folded until they are wanted.

    Args:
        changed: called when one of them has another value.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        wide: dict[str, Any] = {"style": {"description_width": "110px"}}
        asked = "an instruction before the conversation"
        self.system = widgets.Textarea(description="System", placeholder=asked, rows=1, **wide)
        self.max_tokens = widgets.BoundedIntText(
            DEFAULTS.max_tokens, min=1, max=100_000, description="Most tokens", **wide
        )
        self.temperature = widgets.BoundedFloatText(
            DEFAULTS.temperature, min=0, max=5, step=0.1, description="Temperature", **wide
        )
        self.top_p = widgets.BoundedFloatText(DEFAULTS.top_p, min=0.01, max=1, step=0.05, description="Top p", **wide)
        self.top_k = widgets.BoundedIntText(DEFAULTS.top_k, min=0, max=100_000, description="Top k", **wide)
        self.seed = widgets.BoundedIntText(DEFAULTS.seed, min=0, max=2**31 - 1, description="Seed", **wide)
        numbers = (self.max_tokens, self.temperature, self.top_p, self.top_k, self.seed)
        self.system.add_class("wb-grow")
        for widget in (self.system, *numbers):
            widget.observe(lambda _: changed(), "value")
        hint = parts.hint("Temperature 0 always takes the likeliest token. Top p 1 and top k 0 are off.")
        inside = parts.box(
            parts.box(self.system, cls="wb-row"), parts.box(*numbers, cls="wb-fields"), hint, cls="wb-stack"
        )
        self.widget = parts.folded("Settings", inside)

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that differ from the engines' own."""
        settings = Settings(
            system=self.system.value.strip() or None,
            max_tokens=self.max_tokens.value,
            temperature=self.temperature.value,
            top_p=self.top_p.value,
            top_k=self.top_k.value,
            seed=self.seed.value,
        )
        return {key: value for key, value in asdict(settings).items() if value != getattr(DEFAULTS, key)}
