"""A quantization workbench: open a model, see what each format does to it, choose one, talk to it.

    import workbench as wb

    model = wb.load("demo")
    fit = wb.memory(model, "Q4_K")
    errors = wb.errors(model, ["Q8_0", "Q4_K", "NF4"])
    errors.heatmap()
    chat = wb.run(model, "Q4_K")
    wb.app(model)

Names are imported when they are first used, so `import workbench` is quick and needs no extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from workbench.exceptions import WorkbenchError

if TYPE_CHECKING:  # what an editor and the type checker see; `_WHERE` says the same at run time
    from workbench import figures as figures
    from workbench import formats as formats
    from workbench import panels as panels
    from workbench.advice import advise as advise
    from workbench.allocation import plan as plan
    from workbench.checkpoint import load as load
    from workbench.engines import ollama as ollama
    from workbench.engines import run as run
    from workbench.engines import serve as serve
    from workbench.engines import serve_command as serve_command
    from workbench.engines import side_by_side as side_by_side
    from workbench.environment import setup as setup
    from workbench.fit import memory as memory
    from workbench.forensics import diff as diff
    from workbench.measure.card import Card as Card
    from workbench.measure.comparing import compare as compare
    from workbench.measure.errors import errors as errors
    from workbench.measure.sensitivity import sensitivity as sensitivity
    from workbench.panels.app import app as app
    from workbench.planning import RECIPES as RECIPES
    from workbench.planning import Plan as Plan
    from workbench.planning import plan_for as plan_for
    from workbench.quantizing import quantize as quantize
    from workbench.tasks.benchmarking import benchmark as benchmark
    from workbench.tasks.task import task as task
    from workbench.writing import export as export

__version__ = "0.1.0"

_WHERE = {
    # public name -> the module that defines it; None: it is a module itself
    "setup": "workbench.environment",
    "load": "workbench.checkpoint",
    "memory": "workbench.fit",
    "errors": "workbench.measure.errors",
    "compare": "workbench.measure.comparing",
    "diff": "workbench.forensics",
    "sensitivity": "workbench.measure.sensitivity",
    "Card": "workbench.measure.card",
    "plan": "workbench.allocation",
    "plan_for": "workbench.planning",
    "Plan": "workbench.planning",
    "RECIPES": "workbench.planning",
    "benchmark": "workbench.tasks.benchmarking",
    "task": "workbench.tasks.task",
    "run": "workbench.engines",
    "side_by_side": "workbench.engines",
    "serve": "workbench.engines",
    "ollama": "workbench.engines",
    "serve_command": "workbench.engines",
    "export": "workbench.writing",
    "quantize": "workbench.quantizing",
    "advise": "workbench.advice",
    "app": "workbench.panels.app",
    "figures": None,
    "formats": None,
    "panels": None,
}

__all__ = ["WorkbenchError", "__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _WHERE[name]
    value = import_module(f"{__name__}.{name}") if where is None else getattr(import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
