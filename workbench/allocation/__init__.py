"""Mixed precision: from a sensitivity card to the plan of least predicted KL divergence within a budget."""

from workbench.allocation.asking import plan, plan_steps
from workbench.allocation.priced import Prediction, PricedPlan

__all__ = ["Prediction", "PricedPlan", "plan", "plan_steps"]
