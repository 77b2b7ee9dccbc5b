"""Scales that were moved from one tensor into the next, as AWQ and SmoothQuant do: the model stays what it was.

A norm n before a matrix W may become n / s, and the matrix W diag(s); the rows of one matrix (up, values) may be
divided by what the columns of the next (down, output) are multiplied with. Held against the original, each of them
alone looks damaged. Here the factors are found, and are believed only if both sides agree on them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats.rows import chunks

NORMS = {
    # a norm's last name -> the roles that it feeds
    "input_layernorm": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj", "gate_up_proj"),
    "pre_feedforward_layernorm": ("gate_proj", "up_proj", "gate_up_proj"),
}
PAIRS = (("up_proj", "down_proj"), ("v_proj", "o_proj"))  # rows of one are inputs of the other
FROM_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text", "nemotron")  # model types whose norms multiply by 1 + n
CHANGED = 0.01  # relative, of the middle channel: more than any rounding
AGREED = 0.1  # of the logarithm: how far quantization may take a factor that is seen in a matrix from the norm's
MOST = 0.9  # of a matrix's rows or columns, in which a factor must be seen
SEEN = 512  # rows that are enough to see a column's factor

Vector = np.ndarray


@dataclass(frozen=True)
class Factors:
    """What a matrix [out, in] of the other checkpoint is multiplied by to be as it was: [out], [in], or None for 1."""

    rows: Vector | None = None
    columns: Vector | None = None

    def undo(self, weights: np.ndarray, rows: slice | None) -> np.ndarray:
        """Some rows of the matrix as they were."""
        if self.columns is not None:
            weights = weights * self.columns
        if self.rows is not None:
            weights = weights * self.rows[rows or slice(None), None]
        return np.asarray(weights, np.float32)


@dataclass(eq=False)
class Moved:
    """What was moved between the tensors of two checkpoints of the same names.

    Attributes:
        norms: norms whose scales went into the matrices after them.
        after: the matrices after those -> the norm.
        pairs: matrices -> the two between which scales may have been moved; looked into when one is read.
    """

    model: Checkpoint
    other: Checkpoint
    norms: list[str] = field(default_factory=list)
    after: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    _found: dict[tuple[str, str], Vector | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def between(cls, model: Checkpoint, other: Checkpoint, shared: Mapping[str, str]) -> Moved:
        """Look at the norms of two folders that `shared` tensors pair; GGUF files are left as they are."""
        found = cls(model, other)
        if model.kind != "safetensors" or other.kind != "safetensors":
            return found
        layers: dict[int, dict[str, TensorInfo]] = {}
        for info in model.matrices:
            if info.layer is not None and info.name in shared and len(info.shape) == 2:
                layers.setdefault(info.layer, {})[info.role] = info
        for name in shared:
            info = model.tensors[name]
            fed = NORMS.get(name.removesuffix(".weight").rsplit(".", 1)[-1], ())
            matrices = [layers.get(info.layer, {}).get(role) for role in fed] if info.layer is not None else []
            there = [matrix for matrix in matrices if matrix is not None and matrix.shape[1:] == info.shape]
            if there and found._is_moved(name, there[0]):
                found.norms.append(name)
                found.after |= {matrix.name: name for matrix in there}
        for roles in layers.values() if found.norms else ():
            for first, second in PAIRS:
                a, b = roles.get(first), roles.get(second)
                if a is not None and b is not None and a.shape[0] == b.shape[1]:
                    found.pairs |= dict.fromkeys((a.name, b.name), (a.name, b.name))
        return found

    def involved(self, tensor: str) -> tuple[str, ...]:
        """The tensors that decide a matrix's factors."""
        return tuple(name for name in (self.after.get(tensor, ""), *self.pairs.get(tensor, ())) if name)

    def factors(self, tensor: str) -> Factors:
        """What undoes the moves of a matrix."""
        columns = self._of_norm(self.after[tensor]) if tensor in self.after else None
        if tensor not in self.pairs:
            return Factors(columns=columns)
        first, second = self.pairs[tensor]
        with self._lock:
            if (first, second) not in self._found:
                self._found[first, second] = self._between(first, second)
        moved = self._found[first, second]
        if moved is None:
            return Factors(columns=columns)
        return Factors(moved, columns) if tensor == first else Factors(columns=1 / moved)

    def _of_norm(self, name: str) -> Vector | None:
        """[in] the norm there over the norm here; None: it is no use as a factor."""
        one = float(self.model.config.get("model_type") in FROM_ONE)
        here, there = self.model.read(name) + one, self.other.read(name) + one
        with np.errstate(all="ignore"):
            found = there / here
        return found if np.isfinite(found).all() and (found > 0).all() else None

    def _is_moved(self, norm: str, matrix: TensorInfo) -> bool:
        """Whether a norm differs, and the matrix after it makes up for that."""
        try:
            factor = self._of_norm(norm)
            if factor is None or np.median(np.abs(factor - 1)) < CHANGED:
                return False
            return _agree(factor, _by_column(*self._some(matrix.name)))
        except WorkbenchError:  # it cannot be decoded, which will be told when it is read
            return False

    def _some(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(0, SEEN)
        return self.model.read(name, rows), self.other.read(name, rows)

    def _between(self, first: str, second: str) -> Vector | None:
        """[out of first] by what its rows are to be multiplied; None: nothing was moved."""
        try:
            columns = _by_column(*self._some(second))
            info = self.model.tensors[first]
            scale = self._of_norm(self.after[first]) if first in self.after else None
            undone = Factors(columns=scale)
            runs = list(chunks(info.shape[0], info.shape[1], 1))
            both = ((self.model.read(first, run), undone.undo(self.other.read(first, run), run)) for run in runs)
            rows = np.concatenate([_by_row(before, after) for before, after in both])
        except WorkbenchError:
            return None
        seen = (rows > 0) & (columns > 0)  # a row or column may have been rounded away
        if not seen.any() or np.median(np.abs(np.log(rows[seen]))) < CHANGED or not _agree(rows, columns):
            return None
        with np.errstate(all="ignore"):
            found = np.select([seen, columns > 0, rows > 0], [np.sqrt(columns / rows), columns, 1 / rows], 1.0)
        return found.astype(np.float32)


def _by_column(before: np.ndarray, after: np.ndarray) -> Vector:
    """[in] the factor of each column, by least squares."""
    with np.errstate(all="ignore"):
        return np.einsum("ij,ij->j", before, after) / np.einsum("ij,ij->j", before, before)


def _by_row(before: np.ndarray, after: np.ndarray) -> Vector:
    return _by_column(before.T, after.T)


def _agree(ours: Vector, theirs: Vector) -> bool:
    """Whether two factors undo each other, up to what quantization adds."""
    seen = (ours > 0) & (theirs > 0)
    if seen.mean() < MOST:
        return False
    left, whole = (float(np.median(np.abs(np.log(each[seen])))) for each in (ours * theirs, ours))
    return left < min(AGREED, whole / 2)
