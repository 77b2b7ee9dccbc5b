"""Mixed precision: from a sensitivity card to the plan of least predicted KL divergence within a budget."""

from workbench.allocation.asking import plan, plan_steps
from workbench.allocation.draft import Draft
from workbench.allocation.priced import Prediction, PricedPlan

__all__ = ["Draft", "Prediction", "PricedPlan", "plan", "plan_steps"]
