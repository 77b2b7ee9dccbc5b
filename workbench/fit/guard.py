"""Asked before memory is spent, and the way out when it was not enough after all."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import traceback
from collections.abc import Callable, Iterator

from workbench import figures
from workbench.exceptions import WorkbenchError
from workbench.fit.answer import Memory
from workbench.fit.devices import Device, device

# What the libraries say, in their own words, when memory is out.
_SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


Needs = Memory | int | None  # None: there is no estimate, and so nothing to refuse


class DoesNotFit(WorkbenchError):
    """A load, a run or an export that needs more memory than there is."""


def ask(
    needs: Needs, what: str = "", where: Device | str | None = None, *, instead: str = "", anyway: bool = False
) -> None:
    """Refuse what does not fit, before memory is spent.

    Args:
        needs: a `Memory`, or plain bytes for work that holds no model; None lets everything through.
        what: what is about to be done, such as "loading org/name".
        where: the device; None: the memory's own, else where models run on this machine.
        instead: for plain bytes, what would fit.
        anyway: the override: nothing is refused.

    Raises:
        DoesNotFit: with the bytes needed and those there are, and the nearest thing that fits.
    """
    if anyway or needs is None:
        return
    found = _where(needs, where)
    nbytes = needs if isinstance(needs, int) else needs.needed(found)
    if nbytes <= found.usable:
        return
    raise DoesNotFit(
        what or _named(needs),
        f"it needs {_size(needs, nbytes)}, and {found.name} has {figures.size(found.usable)} ({found.source})",
        do=_way_out(needs, found, instead),
    )


@contextlib.contextmanager
def guarded(
    needs: Needs | Callable[[], Needs], what: str = "", where: Device | str | None = None, *, instead: str = ""
) -> Iterator[None]:
    """Turn an out-of-memory in the block into a `DoesNotFit` that holds the estimate against what was found.

    Frees what it can first: what the functions that failed held, and the GPU's cached blocks.
    The arguments are those of `ask`; `needs` may be a function, called when memory has run out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        _let_go(error)
        free()
        raise _ran_out(said, needs() if callable(needs) else needs, what, where, instead) from None


def _let_go(error: BaseException | None) -> None:
    """Drop the locals of the functions that failed, and of those whose errors led to this one."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _ran_out(said: str, needs: Needs, what: str, where: Device | str | None, instead: str) -> DoesNotFit:
    found = _where(needs, where)
    if needs is None:
        estimate = "there was no estimate"
    else:
        estimate = f"the estimate was {_size(needs, needs if isinstance(needs, int) else needs.needed(found))}"
    return DoesNotFit(
        what or _named(needs),
        f"memory ran out ({said}); {estimate}, and {found.name} has {figures.size(found.usable)} now that what could "
        "be freed is",
        do=_way_out(needs, found, instead),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is out: Python's, PyTorch's for GPUs, or its allocator's for processors."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(saying in said for saying in _SAYINGS)


def free() -> None:
    """Give back to the system what nobody holds any more, in Python, in the C library and on the GPU."""
    gc.collect()
    if sys.platform == "linux":  # glibc keeps for later what was freed; on a 100 MB model it can keep twice as much
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _where(needs: Needs, where: Device | str | None) -> Device:
    own = needs.device if isinstance(needs, Memory) else None
    return device(where) if where is not None else own or device(None)


def _named(needs: Needs) -> str:
    return f"{needs.model} in {needs.format}" if isinstance(needs, Memory) else "this"


def _size(needs: Memory | int, nbytes: int) -> str:
    if isinstance(needs, int):
        return figures.size(nbytes)
    return (
        f"{figures.size(nbytes)} ({figures.size(needs.weights)} of weights, {figures.size(needs.cache)} of cache "
        f"for {needs.context:,} tokens)"
    )


def _way_out(needs: Needs, found: Device, instead: str) -> str:
    offer = instead
    if isinstance(needs, Memory):
        with contextlib.suppress(WorkbenchError):  # a format that does not suit the model
            offer = needs.nearest(found)
    return f"{offer}{'; or ' * bool(offer)}close other models and programs, or pass anyway=True to go ahead"
