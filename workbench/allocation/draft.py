"""A plan on the desk: changed matrix by matrix, priced after every change, undone, and told as code.

    draft = Draft(wb.plan(card, formats, bits=4.5))
    draft.assign(draft.rows("*.3.*"), "Q6_K")    # says what was done
    draft.lock(draft.rows("*embed*"))
    draft.solve(90_000_000)                      # the rest, at its best within 90 MB
    draft.nbytes, draft.predicted, draft.plan, draft.code
    draft.undo()

It knows no widgets. A change takes a fraction of a millisecond for tens of thousands of matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench import figures, formats
from workbench.allocation.choices import Choices, too_small
from workbench.allocation.front import Front
from workbench.allocation.groups import matching
from workbench.allocation.priced import EDITED, Prediction, PricedPlan, all_priced, priced
from workbench.allocation.rules import Rows, Rules
from workbench.allocation.solver import Knapsack
from workbench.allocation.spelled import Origin, as_dict, as_list, patterned, quoted, spelled
from workbench.allocation.tariff import Mix, Tariff
from workbench.exceptions import WorkbenchError
from workbench.planning import Spec, plan_for, planned

REMEMBERED = 300  # changes that can be undone


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class State:
    """A mix and its price; what undo goes back to.

    Attributes:
        mix: [matrices] columns of the tariff. locked: [matrices] bool.
        origin: where changes by hand began, and `began` the mix then.
        nbytes: exact bytes of the whole model.
        budget: bytes that the solver was given for just this mix; 0 if it is from elsewhere.
    """

    mix: Mix
    locked: NDArray[np.bool_]
    origin: Origin
    began: Mix
    nbytes: int
    predicted: Prediction
    budget: int = 0


class _Free(NamedTuple):
    """What is not locked: which groups [groups], the knapsack of them, and its options among those of the whole."""

    groups: NDArray[np.bool_]
    sack: Knapsack
    options: NDArray[np.int64]


class Draft:
    """A plan and what may become of it.

    Args:
        plan: where it begins; its question says which formats there are to choose from, and what is kept together.
        program: one of `Format.runs_on`; formats that it does not run are refused. Empty: any will do.
    """

    def __init__(self, plan: PricedPlan, program: str = "") -> None:
        self.choices: Choices = plan.choices
        self.model = self.choices.model
        self.tariff = Tariff(self.choices)
        self.rules = Rules(self.tariff, program)
        mix = self.tariff.mix(plan.formats)
        origin, began = self._found(plan.name, mix)
        self.now = self._state(mix, np.zeros(len(mix), bool), origin, began)
        self._before: list[State] = []
        self._after: list[State] = []
        self._last_free: _Free | None = None

    # --- what it is ------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Exact bytes of the whole model."""
        return self.now.nbytes

    @property
    def bits(self) -> float:
        """Bits per weight of the whole model."""
        return 8 * self.now.nbytes / max(self.model.params, 1)

    @property
    def predicted(self) -> Prediction:
        """What it is predicted to cost in quality."""
        return self.now.predicted

    @property
    def name(self) -> str:
        """Where it began, and whether it was edited since."""
        return self.now.origin.name.removesuffix(EDITED) + (EDITED if len(self._changed()) else "")

    @property
    def plan(self) -> PricedPlan:
        """The plan as it stands, to be run, exported or verified."""
        return priced(planned(self.model, self.name, self.tariff.by_tensor(self.now.mix)), self.choices)

    @property
    def code(self) -> str:
        """Lines that give this plan as `plan`, from `model` and `card`."""
        names = self.tariff.tensors
        changes = {names[row]: self._asked(names[row]) for row in self._changed().tolist()}
        return spelled(self.now.origin, changes, self._asked, names)

    @property
    def last(self) -> State | None:
        """The last state that had another mix."""
        return next((each for each in reversed(self._before) if not np.array_equal(each.mix, self.now.mix)), None)

    @cached_property
    def yardstick(self) -> PricedPlan | None:
        """llama.cpp's Q4_K_M, which most people use; None where its formats were not priced."""
        return next(iter(all_priced([plan_for(self.model, "Q4_K_M")], self.choices)), None)

    @cached_property
    def front(self) -> Front:
        """The best mixes of the question, without locks, and what people take who do not ask it."""
        return Front.of(self.plan)

    @cached_property
    def span(self) -> tuple[int, int]:
        """Bytes of the smallest mix, and of the smallest of those that cost least: between them lies the front."""
        sack = self.choices.knapsack
        ends = sack.smallest, sack.path.mix(len(sack.path.price))
        low, high = (self.choices.rest + int(sack.nbytes[end].sum()) for end in ends)
        return low, high

    def reach(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Bytes and predicted KL of the best mixes around what is locked, from the smallest on."""
        free = self._free()
        least, path, sack = self._filled(free, free.sack.smallest), free.sack.path, free.sack
        nbytes = np.cumsum([self.tariff.total(least), *(sack.nbytes[path.after] - sack.nbytes[path.before])])
        costs = np.cumsum([self.tariff.spent(least), *(sack.cost[path.after] - sack.cost[path.before])])
        curve = self.choices.prices.curve
        return nbytes, np.array([curve.kl(max(0.0, cost)) for cost in costs.tolist()])

    def rows(self, pattern: str = "*") -> list[int]:
        """The rows of matrices whose name matches, as in `fnmatch`."""
        return [self.tariff.row[info.name] for info in matching(self.model, pattern)]

    # --- changes by hand ---------------------------------------------------------------------------

    def assign(self, rows: Iterable[int], format: str) -> str:
        """Give matrices a format; says what was done, and what was left and why.

        Raises:
            WorkbenchError: none of them can have it: it is locked, does not take the format, or is kept together
                with others; or the program does not run the format.
        """
        column, asked = self.rules.column(format), np.unique(np.fromiter(rows, np.int64))
        if not len(asked):
            raise WorkbenchError("selection", "no matrix is selected", do="click a cell, or move there with the arrows")
        apt = self.rules.apt(asked, column, self.now.locked)
        left = np.setdiff1d(asked, apt)
        if not len(apt):
            raise self.rules.refusal(left, column, self.now.locked)
        mix = self.now.mix.copy()
        mix[apt] = column
        self._change(mix)
        told = f"{self._named(apt)}: {self.tariff.name(column)}{self._instead(apt, column)}"
        if not len(left):
            return told
        why = self.rules.refusal(left, column, self.now.locked)
        return f"{told}. {_many(len(left))} not changed; of {why.item}: {why.found}"

    def lock(self, rows: Iterable[int], locked: bool = True) -> str:
        """Hold matrices as they are, with all that they are kept together with; or let them go."""
        chosen = np.zeros(len(self.now.mix), bool)
        chosen[list(rows)] = True
        chosen = self.rules.together(chosen)
        self._push(replace(self.now, locked=np.where(chosen, locked, self.now.locked)))
        return f"{self._named(np.flatnonzero(chosen))}: {'locked' if locked else 'unlocked'}"

    # --- everything that is not locked ----------------------------------------------------------------

    def solve(self, budget: int) -> str:
        """The mix of least predicted cost within `budget` bytes, around what is locked.

        Solving again at once replaces the last solution, so that a slider's way is undone in one step.

        Raises:
            WorkbenchError: the budget is below the smallest mix; it says the smallest.
        """
        free, tariff = self._free(), self.tariff
        smallest = self._filled(free, free.sack.smallest)
        least = tariff.total(smallest)
        if least > budget:
            raise too_small(budget, least, self.model.params, tariff.by_tensor(smallest).values())
        room = budget - least + int(free.sack.nbytes[free.sack.smallest].sum())
        mix = self._filled(free, free.sack.best(room))
        locked = np.flatnonzero(self.now.locked & (tariff.group >= 0)).tolist()
        keep = {tariff.tensors[row]: tariff.name(self.now.mix[row]) for row in locked}
        name = f"mix of {8 * tariff.total(mix) / max(self.model.params, 1):.2f} bits"
        origin = Origin(name, self._solving(budget, keep), "priced") if "" not in keep.values() else Origin(name)
        state = self._state(mix, self.now.locked, origin, mix, budget)
        if self.now.budget and self._before:
            self.now, self._after = state, []
        else:
            self._push(state)
        around = f" around {_many(len(locked))} that are locked" if locked else ""
        return f"The best within {figures.size(budget)}{around}: {figures.size(self.nbytes)}"

    def take(self, spec: Spec, origin: Origin | None = None) -> str:
        """Another plan, but for what is locked.

        Args:
            spec: what `wb.plan_for` takes. origin: what to call it, and the call that gives it.

        Raises:
            WorkbenchError: it has a format that was not priced, or that the program does not run; another model's.
        """
        found = priced(plan_for(self.model, spec), self.choices)
        self.rules.check(found)
        mix = self.tariff.mix(found.formats)
        origin, began = (origin, mix) if origin else self._found(found.name, mix)
        held = self.now.locked
        self._push(self._state(np.where(held, self.now.mix, mix), held, origin, began))
        return origin.name + (", but for what is locked" if held.any() else "")

    def rule(self, name: str) -> str:
        """A named rule, such as llama.cpp's "Q4_K_M", as `take`."""
        return self.take(name, Origin(name, f"wb.plan_for(model, {quoted(name)})", "formats"))

    def uniform(self, format: str) -> str:
        """One format for all, as `take`."""
        code = f"wb.plan_for(model, wb.formats.get({quoted(format)}))"
        return self.take(formats.get(format), Origin(f"{format} for all", code, "formats"))

    # --- back and forth ---------------------------------------------------------------------------------

    @property
    def undoable(self) -> bool:
        return bool(self._before)

    @property
    def redoable(self) -> bool:
        return bool(self._after)

    def undo(self) -> str:
        """Take back the last change; says so."""
        return self._step(self._before, self._after, "Undone")

    def redo(self) -> str:
        """Make the change again that was taken back last; says so."""
        return self._step(self._after, self._before, "Done again")

    def _step(self, origin: list[State], target: list[State], word: str) -> str:
        if not origin:
            return f"Nothing to be {word[0].lower()}{word[1:]}"
        target.append(self.now)
        self.now = origin.pop()
        return f"{word}: {figures.size(self.nbytes)}"

    # --- states ----------------------------------------------------------------------------------------------

    def _state(self, mix: Mix, locked: NDArray[np.bool_], origin: Origin, began: Mix, budget: int = 0) -> State:
        prediction = Prediction.by(self.choices.prices.curve, self.tariff.spent(mix))
        return State(mix, locked, origin, began, self.tariff.total(mix), prediction, budget)

    def _change(self, mix: Mix) -> None:
        if not np.array_equal(mix, self.now.mix):
            self._push(self._state(mix, self.now.locked, self.now.origin, self.now.began))

    def _push(self, state: State) -> None:
        self._before = [*self._before[-REMEMBERED + 1 :], self.now]
        self._after, self.now = [], state

    def _changed(self) -> Rows:
        """The rows in which the plan is not as it began."""
        return np.flatnonzero(self.tariff.stored(self.now.mix) != self.tariff.stored(self.now.began))

    def _asked(self, tensor: str) -> str:
        """The format that a matrix was given; empty for one that stays as it is."""
        return self.tariff.name(int(self.now.mix[self.tariff.row[tensor]]))

    def _found(self, name: str, mix: Mix) -> tuple[Origin, Mix]:
        """The origin of a plan of which only its formats are known: the best one of its size, and what differs."""
        nbytes = self.tariff.total(mix)
        try:
            best = self.choices.best(nbytes)
        except WorkbenchError:  # it is smaller than any mix of the formats asked for
            return Origin(name), mix
        return Origin(name, self._solving(nbytes, {}), "priced"), self.tariff.mix(best.formats)

    def _solving(self, budget: int, keep: dict[str, str]) -> str:
        names = as_list([each.name for each in self.choices.asked])
        told = (
            f", keep={as_dict(patterned(keep, lambda name: keep.get(name, ''), self.tariff.tensors))}" if keep else ""
        )
        return f"wb.plan(card, {names}, budget={budget:_}{told})"

    # --- the solver ------------------------------------------------------------------------------------------

    def _free(self) -> _Free:
        group = self.tariff.group
        free = np.ones(len(self.choices.groups), bool)
        free[group[self.now.locked & (group >= 0)]] = False
        if self._last_free is None or not np.array_equal(self._last_free.groups, free):
            whole = self.choices.knapsack
            sack = whole if free.all() else whole.only(free)
            self._last_free = _Free(free, sack, np.flatnonzero(free[whole.group]))
        return self._last_free

    def _filled(self, free: _Free, options: NDArray[np.int64]) -> Mix:
        """The mix with these options of the knapsack where it is free."""
        chosen, group = np.full(len(free.groups) + 1, -1, np.int16), self.tariff.group
        chosen[np.flatnonzero(free.groups)] = self._columns[free.options[options]]
        return np.where(chosen[group] >= 0, chosen[group], self.now.mix)  # of no group: -1, the last

    @cached_property
    def _columns(self) -> Mix:
        """[options] the column of each option of the knapsack."""
        return np.array([self.tariff.column[name] for names in self.choices.options for name in names], np.int16)

    # --- words -------------------------------------------------------------------------------------------------

    def _named(self, rows: Sequence[int] | Rows) -> str:
        return self.tariff.tensors[int(rows[0])] if len(rows) == 1 else _many(len(rows))

    def _instead(self, rows: Rows, column: int) -> str:
        """A word on fallbacks."""
        used = Counter(self.tariff.used[rows, column].tolist())
        others = [self.tariff.name(each) for each in used if each != column]
        if not others:
            return ""
        some = "" if column not in used else f"{len(rows) - used[column]:,} of them "
        return f", {some}stored as {' and '.join(others)}, since the shape does not fit"


def _many(number: int) -> str:
    return f"{number:,} matrix" if number == 1 else f"{number:,} matrices"
