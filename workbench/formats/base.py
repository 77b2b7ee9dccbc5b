"""What a format is: how one matrix is stored, its exact bytes, and the way there and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.exceptions import WorkbenchError

Weights = NDArray[np.float32]
Shape = tuple[int, int]
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]  # part -> its type and shape


UINT8, INT8 = np.dtype(np.uint8), np.dtype(np.int8)
FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class Encoded:
    """One matrix, or a run of its rows, as stored.

    `parts` are the arrays that a file would hold (codes, scales, ...), so their bytes are the matrix's bytes.
    """

    format: Format
    shape: Shape
    parts: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Format(ABC):
    """How a matrix of shape [rows, cols] = [outputs, inputs] is stored.

    Every format is row-local: encoding rows[a:b], with `a` a multiple of `row_multiple`, gives those rows
    of the whole encoding, so a matrix can be worked through in runs of rows and in several threads.

    Attributes:
        name: as users write it; unique in the registry.
        bits: bits per weight of a shape without remainder, scales included. For the formats with one
            scale for each row it is the limit for long rows; `nbytes` is exact for every shape.
        summary: one plain sentence for a newcomer.
        runs_on: the programs that run a model stored so.
        importance: whether `encode` makes use of, or cannot do without, the importance of each input
            (the mean of x² over a calibration text).
        largest: the greatest magnitude a weight may have.
        encodable: False for a format that is only read, because it cannot be made here as its own tool makes it.
    """

    name: str
    bits: float
    summary: str
    runs_on: tuple[str, ...] = ()
    importance: Literal["unused", "optional", "required"] = "unused"
    row_multiple: int = 1
    largest: float = 65504.0  # float16's: most formats keep a scale in it
    encodable: bool = True

    family: ClassVar[str]

    def used_for(self, shape: Shape) -> Format:
        """What the real tool stores for this shape when it is asked for this format."""
        return self

    @abstractmethod
    def layout(self, shape: Shape) -> Layout:
        """The parts that store a [rows, cols] matrix; WorkbenchError where the shape does not fit."""

    def nbytes(self, shape: Shape) -> int:
        """Exact bytes of a [rows, cols] matrix; WorkbenchError where the shape does not fit."""
        return sum(dtype.itemsize * prod(size) for dtype, size in self.layout(shape).values())

    def encode(self, weights: Weights, importance: Weights | None = None) -> Encoded:
        """Store `weights` [rows, cols], giving columns with more `importance` [cols] less error.

        Raises:
            WorkbenchError: for anything that could not be stored faithfully: a type other than float32, a NaN or
                infinity, a shape that does not fit, an importance that is missing or unusable.
        """
        if not self.encodable:
            raise WorkbenchError(
                self.name, "it is read from files, but not made here", allowed="a format with `encodable`"
            )
        weights, peak = checked_weights(self, weights)
        self.layout(shape_of(weights))
        if importance is not None:
            importance = checked_importance(self, importance, weights.shape[1], peak)
        elif self.importance == "required":
            raise WorkbenchError(
                self.name,
                "it cannot be encoded without the importance of each input",
                do="pass a calibration text, or choose a format that does not need one",
            )
        return Encoded(self, shape_of(weights), self._encode(weights, importance))

    def decode(self, encoded: Encoded) -> Weights:
        """The weights [rows, cols] as a model that is stored so uses them.

        Raises:
            WorkbenchError: another format's matrix, or parts of other sizes than the shape has, which a decoder
                would read past.
        """
        if encoded.format != self:
            raise WorkbenchError(
                self.name, f"the matrix is stored as {encoded.format}", do="decode it with its own format"
            )
        layout = self.layout(encoded.shape)
        if {name: (part.dtype, part.shape) for name, part in encoded.parts.items()} != layout:
            raise WorkbenchError(
                f"{encoded.format} of shape {encoded.shape}",
                ", ".join(f"{name}: {part.dtype} {part.shape}" for name, part in encoded.parts.items()),
                allowed=", ".join(f"{name}: {dtype} {size}" for name, (dtype, size) in layout.items()),
            )
        return self._decode({name: np.ascontiguousarray(part) for name, part in encoded.parts.items()}, encoded.shape)

    def roundtrip(self, weights: Weights, importance: Weights | None = None) -> Weights:
        """`decode(encode(weights))`: what every measurement of this format uses."""
        return self.decode(self.encode(weights, importance))

    @abstractmethod
    def _encode(self, weights: Weights, importance: Weights | None) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _decode(self, parts: dict[str, np.ndarray], shape: Shape) -> Weights: ...

    def __str__(self) -> str:
        return self.name


def shape_of(matrix: np.ndarray) -> Shape:
    rows, cols = matrix.shape
    return rows, cols


def checked_weights(format: Format, weights: Weights) -> tuple[Weights, float]:
    """`weights` in C order and their greatest magnitude, if `format` can store every one of them."""
    array = np.asarray(weights)
    if array.dtype != np.float32 or array.ndim != 2 or not array.size:
        raise WorkbenchError(
            f"weights for {format.name}",
            f"an array of {array.dtype} with shape {array.shape}",
            allowed="a float32 matrix [rows, cols] that is not empty",
            do="weights.astype(np.float32)",
        )
    peak = max(float(array.max()), -float(array.min()))
    if not peak <= format.largest:  # a NaN anywhere makes the peak NaN
        raise WorkbenchError(
            f"weights for {format.name}",
            f"the largest magnitude is {peak:g}" if np.isfinite(peak) else "there are NaN or infinite values",
            allowed=f"finite values up to {format.largest:g}",
            do="look at the checkpoint: a model with such weights is broken, or they have another scale",
        )
    return np.ascontiguousarray(array), peak


# Encoders sum importance x weight² x code² over a block in single precision, and square some of those sums.
# Past this they overflow, and the search through ggml's tables of patterns ends the process.
STRONGEST = 1e14


def checked_importance(format: Format, importance: Weights, cols: int, peak: float) -> Weights:
    """`importance` as float32 [cols], if encoders can work with it on weights up to `peak`."""
    array = np.ascontiguousarray(importance, dtype=np.float32)
    limit = STRONGEST / max(1.0, peak) ** 2
    if array.shape != (cols,):
        found = f"shape {array.shape} for a matrix with {cols} columns"
    elif not np.isfinite(array).all():
        found = "there are NaN or infinite values"
    elif array.min() < 0:
        found = "there are negative values"
    elif array.max() > limit:
        found = f"the largest value is {array.max():g}"
    else:
        return array
    raise WorkbenchError(
        f"importance for {format.name}",
        found,
        allowed=f"{cols} values, one for each input, from 0 to {limit:g}",
        do="compute it from a calibration text, as the mean of x² for each input",
    )
