"""What a matrix may be asked to have, and why not: the program, the shape, the prices, and what is kept together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench import formats
from workbench.allocation.tariff import Tariff
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning import Plan

Rows = NDArray[np.int64]


class Rules:
    """The rules of one question for one program.

    Args:
        tariff: the question's prices.
        program: one of `Format.runs_on`; formats that it does not run are refused. Empty: any will do.
    """

    def __init__(self, tariff: Tariff, program: str = "") -> None:
        self.tariff, self.choices, self.program = tariff, tariff.choices, program

    def runs(self, name: str) -> bool:
        """Whether the program runs a format; one that names no program is an experiment, and goes."""
        known = formats.get(name).runs_on
        return not self.program or not known or self.program in known

    def column(self, name: str) -> int:
        """A format's column.

        Raises:
            WorkbenchError: an unknown format, one that was not priced, or that the program does not run.
        """
        asked = formats.get(name)
        if asked.name not in self.tariff.column:
            known = ", ".join(self.tariff.column)
            raise WorkbenchError(asked.name, "the card was not asked for its price", allowed=known)
        if not self.runs(asked.name):
            allowed = ", ".join(each for each in self.tariff.column if self.runs(each))
            raise WorkbenchError(asked.name, f"{self.program} does not run it", allowed=allowed or "no format of these")
        return self.tariff.column[asked.name]

    def check(self, plan: Plan) -> None:
        """Raise what `column` raises for the formats of a plan."""
        for each in set(plan.formats.values()):
            self.column(each.name)

    def together(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[matrices] those chosen, and all that they are kept together with."""
        group = self.tariff.group
        return chosen | np.isin(group, group[chosen & (group >= 0)])

    def apt(self, rows: Rows, column: int, locked: NDArray[np.bool_]) -> Rows:
        """Those of the rows that can have the format: of what is kept together, all or none."""
        fits = rows[(self.tariff.used[rows, column] >= 0) & ~locked[rows]]
        number = self.tariff.group + 1  # 0: in no group
        there = np.bincount(number[fits], minlength=number.max(initial=0) + 1)
        whole = np.bincount(number, minlength=len(there))
        return fits[(there == whole)[number[fits]] | (number[fits] == 0)]

    def refusal(self, rows: Rows, column: int, locked: NDArray[np.bool_]) -> WorkbenchError:
        """Why the first of the rows, which is not apt, cannot have the format."""
        row, asked = int(rows[0]), self.tariff.formats[column]
        name = self.tariff.tensors[row]
        if locked[row]:
            return WorkbenchError(name, "it is locked", do="unlock it first")
        if self.tariff.used[row, column] < 0:
            return WorkbenchError(name, self._why_not(name, asked))
        group = next(each for each in self.choices.groups if name in each)
        kinds = sorted({self.choices.model.tensors[each].role for each in group})
        return WorkbenchError(
            name,
            f"{self.program or 'a runtime of these formats'} keeps it and {len(group) - 1} more as one "
            f"({', '.join(kinds)}), so they have one format",
            do="select them together",
        )

    def _why_not(self, name: str, asked: Format) -> str:
        quotes = self.choices.quotes.get(name, {})
        if not quotes:
            return "the card says nothing of it, so it stays as it is"
        if asked.name in quotes:
            return f"the programs that run {asked} leave it as it is"
        if asked.importance == "required":
            return f"{asked} needs the importance of each of its inputs, which the card does not have"
        return f"it was not priced in {asked}"
