"""The panels: thin views over the library's calls, alone (`panels.Load()`) or together (`wb.app(model)`)."""

from workbench.panels.app import App, app
from workbench.panels.benchmark import Benchmark
from workbench.panels.chat import Chat
from workbench.panels.export import Export
from workbench.panels.fit import Fit
from workbench.panels.grid import Grid
from workbench.panels.inspect import Inspect
from workbench.panels.jobs import Jobs
from workbench.panels.load import Load
from workbench.panels.plan import Plan
from workbench.panels.quantize import Quantize
from workbench.panels.session import Session
from workbench.panels.side import Side

__all__ = [
    "App",
    "Benchmark",
    "Chat",
    "Export",
    "Fit",
    "Grid",
    "Inspect",
    "Jobs",
    "Load",
    "Plan",
    "Quantize",
    "Session",
    "Side",
    "app",
]
