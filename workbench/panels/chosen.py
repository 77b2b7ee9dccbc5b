"""What is chosen, by the one name that Quantize, Plan, Chat and Export have for it, as the library's calls take it.

A name is "original", "plan" (the session's plan), or that of a recipe or format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench import formats
from workbench.panels.session import ORIGINAL, PLAN, Session
from workbench.planning import RECIPES, Plan, Spec, plan_for

if TYPE_CHECKING:
    import numpy as np

    from workbench.measure.calibration import Calibration

NAMES = (*RECIPES, *(name for name in formats.FORMATS if name not in RECIPES))


def offered(session: Session) -> list[tuple[str, str]]:
    """(words, name) of everything that may be chosen, for a menu."""
    plan = [(Chosen(session, PLAN).label, PLAN)] if session.plan is not None else []
    return [(ORIGINAL, ORIGINAL), *plan, *((name, name) for name in NAMES)]


class Means(Mapping[str, "np.ndarray"]):
    """The importance matrices of a calibration, each read when it is asked for."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __getitem__(self, tensor: str) -> np.ndarray:
        return self._calibration.mean_square(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._calibration.inputs)

    def __len__(self) -> int:
        return len(self._calibration.inputs)


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
    def weighed(self) -> bool:
        """Whether it is made with an importance of the input channels: one is known, and a format of its takes one."""
        plan = self.plan if self._known else None
        return plan is not None and any(format.importance != "unused" for format in plan.formats.values())

    @property
    def importance(self) -> Mapping[str, np.ndarray] | None:
        """The importance of each input channel to be passed on; None for none, and for a plan that has its own."""
        if not self.weighed or self._own:
            return None
        session = self.session
        return Means(session.errors.calibration) if self._calibrated else session.card.importance

    @property
    def importance_of(self) -> str:
        """What the importance was measured on; empty if it is made without one."""
        session = self.session
        if not self.weighed:
            return ""
        if self._own:
            return str(session.plan.importance_of)
        return (
            f"{session.errors.calibration.tokens:,} tokens of a text"
            if self._calibrated
            else "a sensitivity card's text"
        )

    @property
    def _own(self) -> bool:
        return self.name == PLAN and bool(self.session.plan.importance)

    @property
    def _calibrated(self) -> bool:
        return self.session.errors is not None and self.session.errors.calibration is not None

    @property
    def _known(self) -> bool:
        return self._own or self._calibrated or self.session.card is not None

    # --- as code -------------------------------------------------------------------------------

    @property
    def arguments(self) -> list[str]:
        """What stands for the model in this format in a call; `blocks` make them."""
        return ["plan"] if self.name == PLAN else ["model"] if self.name == ORIGINAL else ["model", repr(self.name)]

    @property
    def given(self) -> list[str]:
        """The further arguments, with an importance that is not the plan's own."""
        return ["importance=importance"] if self.weighed and not self._own else []

    @property
    def blocks(self) -> list[str]:
        """What follows the session's `load_code` to make `card`, `plan` and `importance`, where it has them."""
        session, made, planned = self.session, [], self.name == PLAN and self.session.plan is not None
        weighed = self.weighed and not self._own
        if session.card is not None and ((planned and session.plan_code) or (weighed and not self._calibrated)):
            made.append(session.card_code)
        if planned:
            made.append(session.plan_code or f"plan = wb.Plan.from_json({session.plan.to_json()!r}, model)")
        if weighed and self._calibrated:
            calibrated = "from workbench.measure.calibration import calibrate\nimportance = calibrate(model, text)"
            made.append(f"{session.text_code}\n{calibrated}.importance()")
        elif weighed:
            made.append("importance = card.importance")
        return made
