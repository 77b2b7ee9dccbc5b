"""What to run: a format, an engine, a cache, with the reasons and the figures behind each."""

from workbench.advice.advising import advise
from workbench.advice.answer import Advice, Reason

__all__ = ["Advice", "Reason", "advise"]
