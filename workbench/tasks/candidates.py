"""What can be asked: checkpoints, formats and plans of the first of them, servers, and engines that are open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from workbench import __version__, files
from workbench.checkpoint import Checkpoint
from workbench.engines import Engine, build, run_steps
from workbench.engines.presets import is_server
from workbench.exceptions import WorkbenchError
from workbench.measure.built import Built
from workbench.measure.pair import Computed
from workbench.measure.running import running
from workbench.measure.sides import Side, side_steps
from workbench.planning import Plan, Spec
from workbench.progress import Steps

if TYPE_CHECKING:
    import torch

Candidate: TypeAlias = "Checkpoint | Spec | Path | Engine"
Candidates: TypeAlias = "Candidate | Sequence[Candidate] | Mapping[str, Candidate]"


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that is asked.

    Attributes:
        name: what tables and figures call it.
        side: its weights, where they are known here.
        engine: an engine of the user's, which is not closed.
        server: a server's address.
        dtype, device: of an engine that is opened here.
    """

    name: str
    side: Side | None = None
    engine: Engine | None = None
    server: str | None = None
    dtype: Any = None
    device: Any = None
    anyway: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A name for what decides its replies beside the question."""
        if self.side is not None:
            return files.digest(self.side.fingerprint, str(self.dtype), str(self.device), __version__)
        if self.engine is not None:
            known = running(self.engine) if self.engine.can.logits else None
            return files.digest(
                [known.fingerprint, known.how] if known else [self.engine.name, self.engine.what], __version__
            )
        return files.digest(self.server, __version__)

    @property
    def nbytes(self) -> int | None:
        """Bytes of its weights; None: not known here."""
        held = self.side or self.engine
        checkpoint, plan = getattr(held, "checkpoint", None), getattr(held, "plan", None)
        return plan.nbytes if plan else checkpoint.nbytes if checkpoint else None

    def computed(self) -> Computed | None:
        """It as a side of a comparison of logits, in float32 where it is built here; None: it gives none."""
        if self.engine is not None:
            return running(self.engine) if self.engine.can.logits else None
        if self.side is None:
            return None
        where = build.device_of(self.device)
        return Built(self.side, build.dtype_of("float32", where), where)

    @property
    def likelihoods(self) -> bool:
        """Whether it gives log-likelihoods, by which choices are compared."""
        return self.side is not None or (self.engine is not None and self.engine.can.logits)

    def open_steps(self) -> Steps[Engine]:
        """The engine that answers for it."""
        if self.engine is not None:
            return self.engine
        if self.side is None:
            assert self.server is not None
            return (yield from run_steps(self.server))
        return (
            yield from run_steps(
                self.side.checkpoint,
                self.side.plan,
                dtype=self.dtype,
                device=self.device,
                importance=self.side.importance,
                anyway=self.anyway,
            )
        )

    def close(self, engine: Engine) -> None:
        if engine is not self.engine:
            engine.close()


def contenders_steps(
    candidates: Candidates,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    anyway: bool = False,
) -> Steps[list[Contender]]:
    """Everything that is to be asked, the reference first.

    Raises:
        WorkbenchError: nothing to ask, what cannot be opened, a format where the reference is no checkpoint.
    """
    named = _named(candidates)
    made: list[Contender] = []
    for name, candidate in named:
        if isinstance(candidate, str) and is_server(candidate):
            one = Contender(candidate, server=candidate)
        elif isinstance(candidate, Engine) and not isinstance(candidate, Checkpoint):
            one = Contender(candidate.name, engine=candidate)
        else:
            reference = made[0].side.checkpoint if made and made[0].side else None
            if isinstance(candidate, Plan):  # it brings its model, which need not be the reference
                reference = candidate.checkpoint
            side = yield from side_steps(candidate, reference, importance)
            side.check()
            one = Contender(side.name, side, dtype=dtype, device=device, anyway=anyway)
        made.append(one if name is None else replace(one, name=name))
    return _told_apart(made)


def _named(candidates: Any) -> list[tuple[str | None, Any]]:
    found: list[tuple[str | None, Any]]
    if isinstance(candidates, Mapping):
        found = [(str(name), each) for name, each in candidates.items()]
    elif isinstance(candidates, list | tuple):
        found = [(None, each) for each in candidates]
    else:
        found = [(None, candidates)]
    if not found:
        raise WorkbenchError("candidates", "there are none", do="pass a model, and what to hold against it")
    return found


def _told_apart(made: list[Contender]) -> list[Contender]:
    """The same with names that differ."""
    seen: Counter[str] = Counter()
    apart = []
    for one in made:
        seen[one.name] += 1
        apart.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name} ({seen[one.name]})"))
    return apart
