"""Plans held against measurement, in the Plan panel: one job each, and all of them side by side."""

from __future__ import annotations

from collections.abc import Callable

from workbench.allocation import Draft
from workbench.allocation.verified import Verified
from workbench.measure.text import SAMPLE
from workbench.panels import chart, judged
from workbench.panels.chart import Point
from workbench.panels.panel import Panel
from workbench.panels.parts import Markup, tag

CONTEXT = 512  # tokens of a chunk, or the model's own limit


class Checks:
    """What was measured of the plans of one model.

    Args:
        panel: the panel that starts the job.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self._found: dict[bytes, Verified] = {}

    def start(self, draft: Draft, tokens: int, then: Callable[[Verified], None]) -> None:
        """Measure the draft as it stands, on the session's text."""
        session, plan, key = self.panel.session, draft.plan, _key(draft)
        limit = draft.model.config.get("max_position_embeddings")
        context = min(CONTEXT, limit) if isinstance(limit, int) and limit > 2 else CONTEXT

        def done(found: Verified) -> None:
            self._found.pop(key, None)
            self._found[key] = found
            then(found)

        steps = plan.verify_steps(session.calibration_text or SAMPLE, tokens=max(tokens, context), context=context)
        session.jobs.start(f"Verifying {plan.name}", steps, done, owner=self.panel)

    def of(self, draft: Draft) -> Verified | None:
        """What was measured of just this mix."""
        return self._found.get(_key(draft))

    def forget(self) -> None:
        """Another model, or another card: what was measured was predicted by other means."""
        self._found = {}

    @property
    def points(self) -> list[Point]:
        """The plans, and what was measured beside them, for the charts."""
        found = {}
        for each in self._found.values():
            for plan, measured in ((each.plan, each.measured), (each.uniform, each.uniform_measured)):
                if plan is not None and measured is not None:
                    p, kl = plan.predicted, measured.kl
                    found[plan.name, plan.nbytes] = Point(plan.name, plan.bits, p.kl, p.low, p.high, kl.value, kl.error)
        return list(found.values())

    def drawn(self) -> Markup:
        """Predicted and measured side by side, as figures and as a plot."""
        if not self._found:
            return Markup("")
        table = judged.beside(list(self._found.values()))
        return tag("div", tag("div", table), chart.agreement(self.points), cls="wb-columns")


def _key(draft: Draft) -> bytes:
    """The mix as it is stored: two ways to ask for it are one."""
    return bytes(draft.tariff.stored(draft.now.mix).tobytes())
