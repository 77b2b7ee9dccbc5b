"""A matrix that several tensors hold together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from workbench.exceptions import WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoint.tensors import TensorInfo

Weights = NDArray[np.float32]
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"}


@dataclass(frozen=True)
class Packed:
    """One matrix [out, in], or a stack of them, in a layout of its own.

    Attributes:
        name: the matrix's, ending in `.weight`.
        parts: what the layout calls a tensor -> the tensor.
        shape: [out, in], or [experts, out, in].
        scheme: what it is stored as, for readers: "GPTQ 4-bit g128".
    """

    name: str
    parts: Mapping[str, TensorInfo]
    shape: tuple[int, ...]
    scheme: str

    NEEDED: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    SCALES: ClassVar[tuple[str, ...]] = ()  # the parts that are scales, where there are such parts

    @property
    def code_bits(self) -> float:
        """Bits of a weight's code, without its share of the scales; of codes of several widths their mean."""
        raise NotImplementedError

    @property
    def per_scale(self) -> int:
        """Inputs of a row that share a scale."""
        return self.shape[-1]

    @property
    def shared(self) -> str:
        """What shares a scale, for readers: "128" inputs of a row, or the "row"."""
        return str(self.per_scale) if self.per_scale < self.shape[-1] else "row"

    @classmethod
    def of(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Packed:
        """The matrix that these parts are, by their headers and the settings of `quantization_config`.

        Raises:
            WorkbenchError: they do not fit each other, or the settings.
        """
        raise NotImplementedError

    @classmethod
    def sketch(cls, name: str, parts: dict[str, TensorInfo], settings: dict[str, Any]) -> Packed:
        """The same where only headers are here: a shape that counts as many weights, if the exact one is a value."""
        return cls.of(name, parts, settings)

    def read(self, rows: slice) -> Weights:
        """The weights of some rows along the first axis, float32."""
        raise NotImplementedError

    # --- for the layouts ------------------------------------------------------------------------

    def integers(self, part: str) -> NDArray:
        """A part of whole numbers as it is stored."""
        from workbench.checkpoint import values

        info = self.parts[part]
        return values.bytes_at(info, 0, info.nbytes).view(INTEGERS[info.encoding]).reshape(info.shape)

    def floats(self, part: str) -> Weights:
        """A part of floats as float32.

        Raises:
            WorkbenchError: one of them is not a finite number.
        """
        from workbench.checkpoint import values

        found = values.read(self.parts[part])
        if not np.isfinite(found).all():
            raise self.wrong(part, "it has values that are not finite numbers")
        return found

    def scales(self, part: str) -> Weights:
        """A part of scales, none of which may be zero: no writer of such a layout makes one.

        Raises:
            WorkbenchError: one of them is zero, or no finite number.
        """
        found = self.floats(part)
        zeros = found.size - np.count_nonzero(found)
        if zeros:
            raise self.wrong(part, f"{zeros:,} of its {found.size:,} scales are zero")
        return found

    def wrong(self, part: str, found: str, allowed: str = "") -> WorkbenchError:
        """The error for a part that does not fit the others."""
        info = self.parts.get(part)
        where = f"{info.file.name}, tensor {info.name!r}" if info else f"{self.name}: {part}"
        return WorkbenchError(where, found, allowed=allowed, do="get the file again from its author; it is damaged")

    def check(self, part: str, shape: tuple[int, ...], encodings: tuple[str, ...]) -> None:
        """Raise unless a part has this shape and one of these data types."""
        info = self.parts[part]
        if info.shape != shape or info.encoding not in encodings:
            kinds = " or ".join(encodings)
            raise self.wrong(part, f"it is {info.encoding} {list(info.shape)}", f"{kinds} {list(shape)}")


FLOATS = ("F16", "BF16", "F32")


def check_groups(name: str, groups: int, inputs: int, settings: Mapping[str, Any]) -> None:
    """Raise unless the scales are for as many groups of inputs as the config's `group_size` makes; -1 is a row."""
    size = settings.get("group_size")
    if size is None:
        return
    if type(size) is not int or size == 0 or size < -1:
        raise WorkbenchError(
            name, f"config.json says group_size {size!r:.20}", allowed="-1, or inputs that share a scale"
        )
    expected = 1 if size == -1 else -(-inputs // size)
    if groups != expected:
        found = f"its scales are for {groups:,} groups of its {inputs:,} inputs"
        raise WorkbenchError(name, f"{found}, and config.json says group_size {size}: {expected:,} groups")


def words(count: int, bits: int) -> int:
    """Words of 32 bits that hold so many codes."""
    return -(-count * bits // 32)
