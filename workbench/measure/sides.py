"""What can be compared by its weights: a model, and a model with its weights in other formats."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from workbench import checkpoint as checkpoints
from workbench import files, formats
from workbench.checkpoint import Checkpoint
from workbench.engines.weights import Weights
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import RECIPES, Plan, Spec, plan_for
from workbench.progress import Steps

Candidate: TypeAlias = "Checkpoint | Spec | Path"


@dataclass(frozen=True, eq=False)
class Side:
    """Weights: those of a checkpoint as they are, or with a plan's loss.

    Attributes:
        importance: tensor name -> mean square of each input channel, for formats that use it.
    """

    checkpoint: Checkpoint
    plan: Plan | None = None
    importance: Mapping[str, np.ndarray] | None = None

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else self.checkpoint.name

    @cached_property
    def fingerprint(self) -> str:
        """A name for the values of all weights: of the file's, and of what each format makes of them."""
        if self.plan is None:
            return self.checkpoint.fingerprint
        used = self.plan.formats
        code = sorted({files.code_version(sys.modules[type(format).__module__]) for format in used.values()})
        given = {
            name: files.digest(np.asarray(self._given(name)).tobytes())
            for name in used
            if self._given(name) is not None
        }
        return files.digest(self.checkpoint.fingerprint, {name: used[name].name for name in used}, given, code)

    def _given(self, name: str) -> np.ndarray | None:
        assert self.plan
        return (self.importance or {}).get(name) if self.plan.formats[name].importance != "unused" else None

    def check(self) -> None:
        """Raise WorkbenchError for what would fail once the model is built."""
        made = self.plan.formats.values() if self.plan else ()
        unmade = sorted({format.name for format in made if not format.encodable})
        if unmade:
            raise WorkbenchError(", ".join(unmade), "it can be read but not made here", do="choose another format")
        Weights(self.checkpoint, self.plan, self.importance)


def side_steps(
    candidate: Candidate, of: Checkpoint | None, importance: Mapping[str, np.ndarray] | None = None
) -> Steps[Side]:
    """Open one side; a recipe, format or plan is applied to the weights `of` a checkpoint.

    Raises:
        WorkbenchError: it cannot be opened, a plan of another model, a format where there is no checkpoint.
    """
    if isinstance(candidate, Checkpoint):
        return Side(candidate)
    if isinstance(candidate, Path) or (isinstance(candidate, str) and is_source(candidate)):
        return Side((yield from checkpoints.load_steps(candidate)))
    if not isinstance(candidate, str | Format | Plan | Mapping):
        raise WorkbenchError(
            "candidate",
            f"it is a {type(candidate).__name__}",
            allowed="a checkpoint or what wb.load takes, a plan, a recipe's or format's name, a format, an engine",
        )
    if of is None:
        raise WorkbenchError(
            f"{candidate!s:.60}",
            "a format is applied to the reference's weights, and the reference is not a checkpoint",
            do="put a checkpoint first, or what wb.load takes",
        )
    plan = plan_for(of, candidate)
    return Side(of, plan, plan.importance if importance is None else importance)


def is_source(candidate: str) -> bool:
    """Whether a string is meant for `wb.load`, and names no recipe or format."""
    if candidate.lower() in {name.lower() for name in (*RECIPES, *formats.FORMATS)}:
        return False
    if candidate == "demo" or "/" in candidate or candidate.endswith((".gguf", ".safetensors")):
        return True
    try:
        return Path(candidate).expanduser().exists()
    except OSError:  # a name too long for the system, say
        return False
