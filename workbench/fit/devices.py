"""What memory there is: this machine's, as free as it is now, and a table of common devices."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.exceptions import WorkbenchError, need

GIB = 1 << 30
KEPT = 0.03  # of a card, by its driver: the most on the cards whose figure was read (1.3 to 3 %)


@dataclass(frozen=True)
class Device:
    """Where a model may run.

    Attributes:
        name: as users write it.
        kind: "cuda": a card with memory of its own; "mps": memory shared with an Apple processor; "cpu".
        usable: bytes that a program can have there; for this machine, what is free now.
        total: bytes that are built in.
        source: where `usable` comes from.
        dtype: the float type that models run in there by default.
        flash: whether PyTorch has flash attention there, which never holds the scores of all pairs of tokens.
    """

    name: str
    kind: Literal["cuda", "mps", "cpu"]
    usable: int
    total: int
    source: str
    dtype: str = "bf16"
    flash: bool = True


def _card(name: str, gib: float, usable: float | None, source: str, dtype: str = "bf16") -> Device:
    total = round(gib * GIB)
    found = round(usable * GIB) if usable is not None else round(total * (1 - KEPT))
    return Device(name, "cuda", found, total, source, dtype, flash=dtype == "bf16")  # from compute capability 8.0 on


def _mac(gib: int) -> Device:
    share = 2 / 3 if gib <= 36 else 3 / 4
    source = "Metal's recommended share, as llama.cpp logs it: 2/3 of 32 GB (its #2011), 3/4 of 96 GB (its #3213)"
    return Device(f"Mac {gib} GB", "mps", round(gib * GIB * share), gib * GIB, source, "f16")


_SHEET = "NVIDIA's data sheet, less the 3 % that a driver keeps at most"

TABLE: dict[str, Device] = {
    device.name: device
    for device in (
        _card("T4", 16, 14.56, "PyTorch's error on a T4: Zheng-Chong/CatVTON, issue 133", "f16"),
        _card("P100", 16, None, _SHEET, "f16"),
        _card("RTX 3060", 12, None, _SHEET),
        _card("RTX 4060 Ti 16 GB", 16, None, _SHEET),
        _card("RTX 3090", 24, None, _SHEET),
        _card("RTX 4090", 24, 23.64, "PyTorch's error on a 4090: TMElyralab/MuseTalk, issue 76"),
        _card("RTX 5090", 32, 31.37, "PyTorch's error on a 5090: Wan-Video/Wan2.1, issue 465"),
        _card("A100 40 GB", 40, 39.50, "PyTorch's error on an A100: TianheWu/CoSeR, issue 10"),
        _card("A100 80 GB", 80, None, _SHEET),
        _card("H100", 80, 79.18, "read by PyTorch 2.11 on an H100 SXM, driver 580"),
        _card(
            "H200", 140.4, 139.93, "nvidia-smi on an H200 (143,771 MiB), less the 480 MiB its driver kept on an H100"
        ),
        *(_mac(gib) for gib in (8, 16, 24, 32, 48, 64, 96, 128)),
    )
}


def device(asked: str | Device | None) -> Device:
    """The device of that name: one of `TABLE`, "cpu", "cuda", "cuda:1", "mps", or a size such as "24 GB".

    None: where models run on this machine by default, its first GPU or else its processor.

    Raises:
        WorkbenchError: an unknown name, or a device that this machine does not have.
    """
    if isinstance(asked, Device):
        return asked
    if asked is None:
        return here()
    name = str(asked).strip()
    known = next((one for one in TABLE.values() if _plain(one.name) == _plain(name)), None)
    if known is not None:
        return known
    kind = name.partition(":")[0].lower()
    if kind in _HERE:
        return _HERE[kind](name.lower())
    size = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?(GB|GiB)", name, re.IGNORECASE)
    if size and float(size[1]) > 0:
        nbytes = round(float(size[1]) * (GIB if size[2].lower() == "gib" else 10**9))
        return Device(name, "cuda", nbytes, nbytes, "as given")
    allowed = ", ".join(["cpu", "cuda", "mps", *TABLE, '"24 GB"'])
    raise WorkbenchError(name or "device", "there is no device of that name", allowed=allowed)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]", "", name).lower()


def here() -> Device:
    """Where models run on this machine by default: the first GPU that PyTorch sees, else the processor."""
    if _torch_has("cuda"):
        return _cuda("cuda")
    return _cpu("cpu")


def every_here() -> list[Device]:
    """This machine's devices with what is free on each: GPUs first, the processor last."""
    found = []
    if _torch_has("cuda"):
        found += [_cuda(f"cuda:{number}") for number in range(need("torch").cuda.device_count())]
    if _torch_has("mps"):
        found.append(_mps("mps"))
    return [*found, _cpu("cpu")]


def _torch_has(kind: str) -> bool:
    from importlib.util import find_spec

    if "torch" not in sys.modules and find_spec("torch") is None:
        return False
    torch = need("torch")
    return bool(torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available())


def _cpu(name: str) -> Device:
    import psutil

    memory = psutil.virtual_memory()
    free, total, source = memory.available, memory.total, "what the system says is available now"
    allowed = _container_limit()
    if allowed is not None and allowed[0] < free:
        (free, total), source = allowed, "what is left of this container's limit now"
    return Device("cpu", "cpu", free, total, source, _cpu_dtype())


def _cpu_dtype() -> str:
    """As `engines.build.default_dtype`; without PyTorch, what a processor of unknown abilities runs in."""
    torch = sys.modules.get("torch")
    has = [getattr(getattr(torch, "cpu", None), f"_is_{what}_supported", bool) for what in ("avx512_bf16", "amx_tile")]
    return "bf16" if any(test() for test in has) else "f32"


def _container_limit(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(bytes left, limit) of the control group this process runs in, version 2 or 1; None without a limit."""
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit, used = int((root / most).read_text()), int((root / now).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < 1 << 60:
            return max(0, limit - used), limit
    return None


def _cuda(name: str) -> Device:
    if not _torch_has("cuda"):
        raise WorkbenchError(name, "PyTorch sees no CUDA device here", allowed=", ".join(["cpu", *TABLE]))
    torch = need("torch")
    try:
        where = torch.device(name)
        free, total = torch.cuda.mem_get_info(where)
        capable = torch.cuda.get_device_capability(where) >= (8, 0)
        label = torch.cuda.get_device_name(where)
    except (RuntimeError, AssertionError) as reason:
        raise WorkbenchError(name, f"it cannot be used: {reason!s:.200}", allowed="cuda, cuda:0, ...") from reason
    source = "what the driver says is free now"
    return Device(label, "cuda", free, total, source, "bf16" if capable else "f16", flash=capable)


def _mps(name: str) -> Device:
    if not _torch_has("mps"):
        raise WorkbenchError(name, "PyTorch sees no Apple GPU here", allowed=", ".join(["cpu", *TABLE]))
    import psutil

    torch = need("torch")
    most = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    total = psutil.virtual_memory().total
    return Device("mps", "mps", most, total, "what Metal recommends at most, less what is in use", "f16")


_HERE: dict[str, Callable[[str], Device]] = {"cpu": _cpu, "cuda": _cuda, "mps": _mps}
