"""Asked before memory is spent, and the way out when it was not enough after all."""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
from collections.abc import Iterator

from workbench import figures
from workbench.exceptions import WorkbenchError
from workbench.fit.answer import Memory
from workbench.fit.devices import Device, device

# What the libraries say, in their own words, when memory is out.
_SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class DoesNotFit(WorkbenchError):
    """A load, a run or an export that needs more memory than there is."""


def ask(needs: Memory | int, what: str = "", where: Device | str | None = None, *, anyway: bool = False) -> None:
    """Refuse what does not fit, before memory is spent.

    Args:
        needs: a `Memory`, or plain bytes for work that holds no model.
        what: what is about to be done, such as "loading org/name".
        where: the device; None: the memory's own, else where models run on this machine.
        anyway: the override: nothing is refused.

    Raises:
        DoesNotFit: with the bytes needed and those there are, and the nearest thing that fits.
    """
    if anyway:
        return
    found = device(where) if where is not None or isinstance(needs, int) else needs.device or device(None)
    nbytes = needs if isinstance(needs, int) else needs.needed(found)
    if nbytes <= found.usable:
        return
    raise DoesNotFit(
        what or (f"{needs.model} in {needs.format}" if isinstance(needs, Memory) else "this"),
        f"it needs {_size(needs, nbytes)}, and {found.name} has {figures.size(found.usable)} ({found.source})",
        do=_way_out(needs, found),
    )


@contextlib.contextmanager
def guarded(needs: Memory | int, what: str = "", where: Device | str | None = None) -> Iterator[None]:
    """Turn an out-of-memory in the block into a `DoesNotFit` that holds the estimate against what was found.

    Frees what it can first: what the functions that failed held, and the GPU's cached blocks.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        traceback.clear_frames(error.__traceback__)  # the locals of the functions that failed
        raise _ran_out(said, needs, what, where) from None


def _ran_out(said: str, needs: Memory | int, what: str, where: Device | str | None) -> DoesNotFit:
    free()
    found = device(where) if where is not None or isinstance(needs, int) else needs.device or device(None)
    nbytes = needs if isinstance(needs, int) else needs.needed(found)
    return DoesNotFit(
        what or (f"{needs.model} in {needs.format}" if isinstance(needs, Memory) else "this"),
        f"memory ran out ({said}); the estimate was {_size(needs, nbytes)}, and {found.name} has "
        f"{figures.size(found.usable)} now that what could be freed is",
        do=_way_out(needs, found),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is out: Python's, PyTorch's for GPUs, or its allocator's for processors."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(saying in said for saying in _SAYINGS)


def free() -> None:
    """Give back what nobody holds any more, in Python and on the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _size(needs: Memory | int, nbytes: int) -> str:
    if isinstance(needs, int):
        return figures.size(nbytes)
    return (
        f"{figures.size(nbytes)} ({figures.size(needs.weights)} of weights, {figures.size(needs.cache)} of cache "
        f"for {needs.context:,} tokens)"
    )


def _way_out(needs: Memory | int, found: Device) -> str:
    offer = f"{needs.nearest(found)}; or " if isinstance(needs, Memory) else ""
    return f"{offer}close other models and programs, or pass anyway=True to go ahead"
