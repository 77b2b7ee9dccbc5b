"""What is chosen, by the one name that Quantize, Plan, Chat and Export have for it, as the library's calls take it.

A name is "original", "plan" (the session's plan), or that of a recipe or format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench import formats
from workbench.panels.session import ORIGINAL, PLAN, Session
from workbench.planning import RECIPES, Plan, Spec, plan_for

if TYPE_CHECKING:
    import numpy as np

NAMES = (*RECIPES, *(name for name in formats.FORMATS if name not in RECIPES))


def offered(session: Session) -> list[tuple[str, str]]:
    """(words, name) of everything that may be chosen, for a menu."""
    plan = [(Chosen(session, PLAN).label, PLAN)] if session.plan is not None else []
    return [(ORIGINAL, ORIGINAL), *plan, *((name, name) for name in NAMES)]


@dataclass(frozen=True)
class Chosen:
    """One choice of a session: what calls take for it, and the same as code.

    Attributes:
        name: "original", "plan", or a recipe's or format's name.
    """

    session: Session
    name: str

    @property
    def spec(self) -> Spec | None:
        """What `wb.run`, `wb.memory` and `wb.export` take as their format."""
        return {ORIGINAL: None, PLAN: self.session.plan}.get(self.name, self.name)

    @property
    def plan(self) -> Plan | None:
        """The format of every matrix; None for the original, which has what its file has.

        Raises:
            WorkbenchError: the session's plan is another model's.
        """
        return None if self.spec is None else plan_for(self.session.checkpoint, self.spec)

    @property
    def label(self) -> str:
        """What a reader is told."""
        return f"plan: {self.session.plan.name}" if self.name == PLAN and self.session.plan is not None else self.name

    @property
    def importance(self) -> Mapping[str, np.ndarray] | None:
        """The importance of each input channel that it is made with: the card's, else that of the measured text."""
        session = self.session
        if not self.weighed:
            return None
        return session.card.importance if session.card is not None else session.errors.calibration.importance()

    @property
    def weighed(self) -> bool:
        """Whether it is made with an importance: one is known, and a format of its takes one."""
        session = self.session
        known = session.card is not None or (session.errors is not None and session.errors.calibration is not None)
        plan = self.plan if known else None
        return plan is not None and any(format.importance != "unused" for format in plan.formats.values())

    # --- as code -------------------------------------------------------------------------------

    @property
    def argument(self) -> str:
        """What stands for it in a call; empty for the original."""
        return {ORIGINAL: "", PLAN: "plan"}.get(self.name, repr(self.name))

    @property
    def blocks(self) -> list[str]:
        """What follows the session's `load_code` to make `card`, `plan` and `importance`, where it has them."""
        session, made = self.session, []
        if session.card is not None and (self.name == PLAN or self.weighed):
            made.append(session.card_code)
        if self.name == PLAN and session.plan is not None:
            made.append(session.plan_code or f"plan = wb.Plan.from_json({session.plan.to_json()!r}, model)")
        if self.weighed and session.card is not None:
            made.append("importance = card.importance")
        elif self.weighed:
            calibrated = "from workbench.measure.calibration import calibrate\nimportance = calibrate(model, text)"
            made.append(f"{session.text_code}\n{calibrated}.importance()")
        return made
