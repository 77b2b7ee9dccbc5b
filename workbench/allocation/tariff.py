"""The prices of a question as arrays: a row for each matrix, a column for each format it may be asked to have.

A plan is then a column for each row, and its bytes, its cost and any change to them are sums over arrays: a
fraction of a millisecond for tens of thousands of matrices, where a table of a million prices would take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import inf

import numpy as np
from numpy.typing import NDArray

from workbench import formats
from workbench.allocation.choices import Choices
from workbench.formats import Format
from workbench.planning import left_as_is, touched

Mix = NDArray[np.int16]  # [matrices] the column of each


class Tariff:
    """All that matrices may be asked for, and what they are really stored in.

    Attributes:
        tensors: names of the model's matrices, the rows.
        formats: the columns: formats asked for, then those that only come about as fallbacks. One more column,
            the last, means that a matrix stays as it is in the file.
        nbytes: [matrices, columns] int, exact bytes; 0 where there is no price.
        cost: [matrices, columns] float, nats per token, predicted; infinite where there is no price.
        used: [matrices, columns] int, the column of what is really stored; -1 where there is no price.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices, model = choices, choices.model
        self.tensors = [info.name for info in model.matrices]
        self.row = {name: number for number, name in enumerate(self.tensors)}
        met = {name for quotes in choices.quotes.values() for name in quotes}
        asked = [each.name for each in choices.asked]
        rest = sorted(met - set(asked), key=lambda name: (formats.get(name).bits, name))
        self.formats: list[Format] = [formats.get(name) for name in (*asked, *rest)]
        self.column = {each.name: number for number, each in enumerate(self.formats)}
        shape = (len(self.tensors), len(self.formats) + 1)
        self.nbytes = np.zeros(shape, np.int64)
        self.cost = np.full(shape, inf)
        self.used = np.full(shape, -1, np.int16)
        for tensor, quotes in choices.quotes.items():
            row = self.row[tensor]
            for name, (used, nbytes, cost) in quotes.items():
                column = self.column[name]
                self.used[row, column] = self.column[used]
                self.nbytes[row, column], self.cost[row, column] = nbytes, cost
        for number, each in enumerate(self.formats):  # what its programs do not store in it has no price
            stored = {info.name for info in touched(model, each)}
            out = [row for name, row in self.row.items() if name not in stored]
            self.used[out, number] = -1
        self.used[:, self.stays], self.cost[:, self.stays] = self.stays, 0.0

    @property
    def stays(self) -> int:
        """The column of a matrix that stays as it is."""
        return len(self.formats)

    def name(self, column: int) -> str:
        """A column's format; empty for what stays as it is."""
        return "" if column == self.stays else self.formats[column].name

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """[matrices] the number of the group that a matrix belongs to; -1 for one that can have no format."""
        found = np.full(len(self.tensors), -1, np.int64)
        for number, names in enumerate(self.choices.groups):
            found[[self.row[name] for name in names]] = number
        return found

    # --- mixes ------------------------------------------------------------------------------------

    def mix(self, formats: Mapping[str, Format]) -> Mix:
        """A plan's formats as columns."""
        found = np.full(len(self.tensors), self.stays, np.int16)
        rows = [self.row[name] for name in formats]
        found[rows] = [self.column[each.name] for each in formats.values()]
        return found

    def by_tensor(self, mix: Mix) -> dict[str, Format]:
        """The columns as a plan's formats; what stays is not named."""
        named = zip(self.tensors, mix.tolist(), strict=True)
        return {name: self.formats[column] for name, column in named if column != self.stays}

    def total(self, mix: Mix) -> int:
        """Exact bytes of the whole model in a mix."""
        return int(self._at(self.nbytes, mix).sum()) + self._left(mix)

    def spent(self, mix: Mix) -> float:
        """The sum of a mix's costs, nats per token."""
        return float(self._at(self.cost, mix).sum())

    def stored(self, mix: Mix) -> Mix:
        """[matrices] the columns of what is really stored."""
        return self._at(self.used, mix)

    def sizes(self, mix: Mix) -> NDArray[np.int64]:
        """[matrices] bytes of each; of what stays, as it is in the file."""
        return np.where(mix == self.stays, self._own, self._at(self.nbytes, mix))

    def costs(self, mix: Mix) -> NDArray[np.float64]:
        """[matrices] the cost of each, nats per token."""
        return self._at(self.cost, mix)

    def _at(self, table: np.ndarray, mix: Mix) -> np.ndarray:
        return table[np.arange(len(mix)), mix]

    @cached_property
    def _own(self) -> NDArray[np.int64]:
        return np.array([self.choices.model.tensors[name].nbytes for name in self.tensors], np.int64)

    def _left(self, mix: Mix) -> int:
        """Bytes of what a mix does not name. They depend on what stays, and on whether the file becomes a GGUF."""
        stay = mix == self.stays
        key = stay.tobytes(), bool(self._ggml[self.stored(mix)].any())
        if key not in self._known:
            self._known[key] = left_as_is(self.choices.model, self.by_tensor(mix))
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[bytes, bool], int]:
        return {}

    @cached_property
    def _ggml(self) -> NDArray[np.bool_]:
        return np.array([*(each.family == "ggml" for each in self.formats), False])
