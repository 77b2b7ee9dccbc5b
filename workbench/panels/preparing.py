"""What there must be before a plan can be edited: the model's card, measured or from a file, and prices of formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench import formats
from workbench.allocation import Draft
from workbench.exceptions import WorkbenchError
from workbench.measure.text import SAMPLE
from workbench.panels import parts
from workbench.panels.drafting import ENGINE_FORMATS, PROGRAMS, draft_steps, measured_steps
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag

TOKENS = 5120  # of a card, as `wb.sensitivity` takes them
HINT = (
    "The card says what an error in each matrix costs, in nats of KL divergence per token. It is measured once for a "
    "model, in about five forward passes over the text. What is done stays in the cache, so a cancelled one goes on."
)


class Preparing:
    """The part of the Plan panel that makes a draft.

    Args:
        panel: the panel it is part of.
        begin: called with a new draft and the lines of code that make its `card`.
    """

    def __init__(self, panel: Panel, begin: Callable[[Draft, str], None]) -> None:
        self.panel, self.session, self._begin = panel, panel.session, begin
        self.text = widgets.Textarea(
            placeholder="Optional. Paste a text like those the model will read, or give the path of a .txt file.",
            description="Text",
            continuous_update=False,
            rows=2,
        )
        self.text.add_class("wb-grow")
        self.text.observe(lambda change: panel.picked("text", change.new.strip()), "value")
        self.tokens = widgets.BoundedIntText(TOKENS, min=64, max=1_000_000, description="Tokens")
        self.tokens.add_class("wb-short")
        self.measure = parts.button("Measure the card", self.run, primary=True)
        self.path = widgets.Text(placeholder="model.card", description="Card file")
        self.path.add_class("wb-grow")
        self.open = parts.button("Open card", lambda: panel.attempt(self._open))
        self.save = parts.button("Save card", lambda: panel.attempt(self._save))
        self.engine = widgets.Dropdown(options=list(PROGRAMS), description="Engine")
        self.engine.observe(lambda change: panel.picked("engine", change.new), "value")
        self.names = widgets.Text(description="Formats", continuous_update=False)
        self.names.add_class("wb-grow")
        self.price = parts.button("Price formats", lambda: panel.attempt(self.start_pricing))
        self.more = widgets.ToggleButton(description="Card and formats")
        self.more.layout.width = "auto"
        self.more.add_class("wb-link")
        self.more.observe(lambda _: panel.refresh(), "value")
        self.said = parts.html_box()
        self._card = parts.box(
            parts.hint(HINT),
            parts.box(self.text, self.tokens, self.measure, cls="wb-row wb-top"),
            parts.box(self.path, self.open, self.save, cls="wb-row"),
            cls="wb-stack",
        )
        self._formats = parts.box(self.engine, self.names, self.price, cls="wb-row")
        head = parts.box(self.more, self.said, cls="wb-row")
        self.widget = parts.box(head, self._card, self._formats, cls="wb-stack")

    def run(self) -> None:
        """Measure the card, and price the formats."""
        self.panel.attempt(self._measure)

    def _measure(self, anyway: bool = False) -> None:
        session, model = self.session, self.session.checkpoint
        text = session.calibration_text or SAMPLE
        said = session.text_code if session.text else "from workbench.measure.text import SAMPLE as text"
        more = ", anyway=True" if anyway else ""
        code = f"{said}\ncard = wb.sensitivity(model, text, tokens={self.tokens.value}{more})"
        self.panel.strip.go_ahead = lambda: self.panel.attempt(lambda: self._measure(anyway=True))

        def done(found: tuple[Any, Draft]) -> None:
            if session.checkpoint is model:  # else another was opened in the meantime
                self._begin(found[1], code)

        steps = measured_steps(model, text, self.tokens.value, self.asked(), PROGRAMS[session.engine], anyway)
        session.jobs.start("Measuring the card", steps, done, owner=self.panel)

    def start_pricing(self) -> None:
        """Price the formats that are named, and begin a draft of them."""
        session, card, code = self.session, self.session.card, self.session.card_code
        if card is None:
            raise WorkbenchError("card", "there is none yet", do="measure it, or open a file that has it")

        def done(draft: Draft) -> None:
            if session.card is card:
                self._begin(draft, code)

        steps = draft_steps(card, self.asked(), PROGRAMS[session.engine], session.plan)
        session.jobs.start("Pricing formats", steps, done, owner=self.panel)

    def _open(self) -> None:
        from workbench.measure.card import Card

        path = Path(self.path.value.strip()).expanduser()
        card = Card.load(path, self.session.checkpoint)
        with self.session.hold_trait_notifications():
            self.session.card_code, self.session.card = f"card = wb.Card.load({str(path)!r}, model)", card
        self.start_pricing()

    def _save(self) -> None:
        path = Path(self.path.value.strip() or "model.card").expanduser()
        self.session.card.save(path)
        parts.fill(self.said, tag("div", f"The card is saved: {path}", cls="wb-hint"))

    def asked(self) -> list[str]:
        """The formats that the field names.

        Raises:
            WorkbenchError: an unknown name, or none.
        """
        names = [each.strip() for each in self.names.value.split(",") if each.strip()]
        if not names:
            raise WorkbenchError("formats", "none is named", allowed=", ".join(formats.FORMATS))
        return [formats.get(name).name for name in names]

    def update(self, ready: bool) -> None:
        """Say what the session says; `ready`: there is a draft."""
        session, card, busy = self.session, self.session.card, self.panel.busy
        parts.show(self.widget, session.checkpoint is not None)
        parts.show(self.more, ready)
        parts.show(self._card, (not ready and card is None) or self.more.value)
        parts.show(self._formats, not ready or self.more.value)
        parts.show(self.save, card is not None)
        parts.fill(self.said, card_said(card) if card is not None else Markup(""))
        self.measure.disabled = self.open.disabled = busy
        self.price.disabled = busy or card is None
        self.price.button_style = "primary" if card is not None and not ready else ""
        self.text.value = session.text
        if self.engine.value != session.engine or not self.names.value:
            self.engine.value = session.engine
            self.names.value = ", ".join(ENGINE_FORMATS[session.engine])


def card_said(card: Any) -> Markup:
    """A card in a line."""
    tokens = card.provenance.get("tokens")
    many = f"{tokens:,} tokens, " if isinstance(tokens, int) else ""
    told = f"{many}{card.curve}, with S the sum of all costs"
    return tag("div", told, cls="wb-hint")
