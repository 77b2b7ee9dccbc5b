"""What a header says of each tensor, and the checks that every header has to pass before a byte of it is trusted."""

from __future__ import annotations

import contextlib
import math
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from workbench.checkpoint import names
from workbench.exceptions import WorkbenchError

if TYPE_CHECKING:
    from workbench.checkpoint.packed.layout import Packed

# More than any published file holds. They bound the memory that a hostile header can ask for.
MOST_TENSORS = 32_768  # in one file
MOST_DIMENSIONS = 8
LONGEST_NAME = 1024  # characters


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it; the values stay on disk.

    `shape` is the logical one, [out, in] for a matrix and [experts, out, in] for a stack of
    experts, whatever order the file uses. `nbytes` and `offset` count bytes in `file`.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str  # "BF16", "F8_E4M3", "Q4_1", ...
    nbytes: int
    file: Path
    offset: int
    layer: int | None
    role: str
    problem: str = ""  # why the values cannot be read; empty when they can
    packed: Packed | None = None  # for a matrix that several tensors of the file hold together, which `file` begins

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """The tensors of the file that hold it: itself, or its parts."""
        return tuple(self.packed.parts.values()) if self.packed else (self,)

    @property
    def params(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether a quantizer would touch it: a layer's matrix (or stack of experts), the embedding or the head."""
        flat = len(self.shape) < 2 or min(self.shape[-2:]) < 2
        if self.problem or flat or not names.holds_matrix(self.name, self.layer, self.role):
            return False
        return len(self.shape) == 2 or (len(self.shape) == 3 and "exp" in self.name)


@dataclass(frozen=True)
class Header:
    """The tensors of one file, in its order, its metadata, and the (first byte, end) of each GGUF key's entry."""

    tensors: list[TensorInfo]
    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


def size_of(path: Path) -> int:
    """The bytes in a regular file that is not empty; raises WorkbenchError for anything else."""
    try:
        found = path.stat()
    except (OSError, ValueError) as reason:
        raise WorkbenchError(path, f"it cannot be opened ({reason})", do="check the path") from reason
    if not stat.S_ISREG(found.st_mode):
        raise WorkbenchError(path, "it is not a regular file", allowed="a file on a disk")
    if found.st_size == 0:
        raise WorkbenchError(path, "the file is empty", do="download or copy it again")
    return found.st_size


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file for reading, and its bytes; what the system refuses becomes a WorkbenchError."""
    size = size_of(path)
    try:
        with path.open("rb", buffering=1 << 20) as file:
            yield file, size
    except OSError as reason:
        raise WorkbenchError(path, f"it cannot be read ({reason})", do="check its permissions and the disk") from reason


def truncated(path: Path, what: str, needed: int, actual: int) -> WorkbenchError:
    """The error for a file that ends before something its header promises."""
    return WorkbenchError(
        path,
        f"the file is cut short: {what} needs {needed:,} bytes and the file has {actual:,}",
        do="download or copy it again",
    )


def malformed(path: Path, found: str, *, allowed: str = "") -> WorkbenchError:
    """The error for a header that contradicts itself or its format."""
    return WorkbenchError(path, found, allowed=allowed, do="get the file again from its author; it is damaged")


def check_name(path: Path, name: object) -> str:
    """`name` as a tensor's name; it may hold any character, since it is only ever shown escaped."""
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
        shown = repr(name)[:60]
        raise malformed(path, f"a tensor is named {shown}", allowed=f"names of 1 to {LONGEST_NAME} characters")
    try:
        name.encode()
    except UnicodeEncodeError as reason:
        raise malformed(path, f"the tensor name {ascii(name)[:60]} is not valid Unicode") from reason
    return name


def check_spans(path: Path, spans: Iterable[tuple[int, int, str]], size: int) -> None:
    """Raise unless the (first byte, end, name) spans lie in a file of `size` bytes, none on top of another."""
    before_end, before_name = 0, ""
    for start, end, name in sorted(spans):
        if end > size:
            raise truncated(path, f"the tensor {name!r}", end, size)
        if start < before_end:
            raise malformed(path, f"the tensors {before_name!r} and {name!r} overlap at byte {start:,}")
        if end > start:
            before_end, before_name = end, name
