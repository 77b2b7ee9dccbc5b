"""What this machine offers, and what is degraded here and why: the first line of a notebook.

wb.setup()      # read it; nothing on the machine is changed
"""

from __future__ import annotations

import html
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata

from workbench.exceptions import EXTRAS

CORE = ("numpy", "pandas", "plotly", "ipywidgets", "anywidget", "gguf", "libgguf", "huggingface_hub")


@dataclass(frozen=True)
class Limit:
    """Something that is degraded here: `what`, its consequence, and `do`, the way out ("" if there is none)."""

    what: str
    why: str
    do: str = ""


@dataclass(frozen=True)
class Setup:
    """What `setup` found.

    Args:
        front_end: "Colab", "Kaggle", "Jupyter" or "plain Python".
        versions: installed version by package; "" for one that is missing.
        device: what models run on by default, as torch names it: "cuda" or "cpu".
        device_name: the same for a person.
        dtype: the float type that models run in by default; "" without torch.
        memory: bytes of main memory, free and in all.
        device_memory: bytes of the GPU's memory, free and in all; (0, 0) without a GPU.
        limits: what is degraded, the weightiest first.
    """

    front_end: str
    versions: dict[str, str]
    device: str
    device_name: str
    dtype: str
    memory: tuple[int, int]
    device_memory: tuple[int, int]
    limits: tuple[Limit, ...]

    def rows(self) -> list[tuple[str, str]]:
        """(label, text) pairs, as both representations show them."""
        runs_in = f", models run in {self.dtype}" if self.dtype else ""
        rows = [("Device", f"{self.device_name}{runs_in}")]
        if self.device_memory[1]:
            rows.append(("GPU memory", _of(self.device_memory)))
        rows.append(("Memory", _of(self.memory)))
        rows.append(("Front end", f"{self.front_end}, Python {platform.python_version()}, {platform.system()}"))
        rows.append(("Versions", ", ".join(f"{name} {number}" for name, number in self.versions.items() if number)))
        return rows

    def __repr__(self) -> str:
        lines = [f"{label:<12}{text}" for label, text in self.rows()]
        for number, limit in enumerate(self.limits):
            lines.append(f"{'Degraded' if not number else '':<12}{limit.what}: {limit.why}")
            if limit.do:
                lines.append(f"{'':<14}{limit.do}")
        if not self.limits:
            lines.append(f"{'Degraded':<12}nothing")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(label, html.escape(text)) for label, text in self.rows()]
        degraded = "".join(
            f"<li><b>{html.escape(limit.what)}</b>: {html.escape(limit.why)}"
            + (f"<br><code>{html.escape(limit.do)}</code>" if limit.do else "")
            + "</li>"
            for limit in self.limits
        )
        rows.append(("Degraded", f"<ul style='margin:0;padding-left:1.2em'>{degraded}</ul>" if degraded else "nothing"))
        cells = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{label}</th>"
            f"<td style='text-align:left;white-space:normal'>{text}</td></tr>"
            for label, text in rows
        )
        return f"<table>{cells}</table>"


def setup() -> Setup:
    """Look at this machine and session: versions, device, dtype, memory, and what is degraded and why.

    Reads only. With the `transformers` extra installed it imports torch to ask for the GPU
    (a second or two).
    """
    import psutil

    where = front_end()
    versions = {name: _version(name) for name in (*CORE, *EXTRAS)}
    device, name, dtype, device_memory, limits = _device(bool(versions["torch"]))
    memory = psutil.virtual_memory()
    limits += _extras(versions, where)
    limits += _widgets(versions["ipywidgets"], where)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        limits.append(Limit("HF_HUB_OFFLINE is set", "a hub id opens only if its files are already on this machine"))
    return Setup(where, versions, device, name, dtype, (memory.available, memory.total), device_memory, tuple(limits))


def front_end() -> str:
    """Who shows the results: "Colab", "Kaggle", "Jupyter" (any front end with a kernel) or "plain Python"."""
    if "google.colab" in sys.modules:
        return "Colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return "Jupyter" if hasattr(shell, "kernel") else "plain Python"


def _device(has_torch: bool) -> tuple[str, str, str, tuple[int, int], list[Limit]]:
    """(device, its name, dtype, (free, total) bytes of its memory, limits), as an engine would choose them."""
    processor = f"CPU ({os.cpu_count()} cores)"
    if not has_torch:
        return "cpu", processor, "", (0, 0), []
    import torch

    from workbench.engines.build import default_dtype, device_of

    device = device_of(None)
    dtype = str(default_dtype(device)).removeprefix("torch.")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        limits = []
        if dtype != "bfloat16":
            limits.append(Limit("no bfloat16", f"this GPU only emulates it, slowly: models run in {dtype} instead"))
        return "cuda", name, dtype, torch.cuda.mem_get_info(device), limits
    if torch.backends.mps.is_available():
        unused = Limit(
            "the Apple GPU rests", "models run on the CPU unless told otherwise", 'wb.run(..., device="mps")'
        )
        return device.type, processor, dtype, (0, 0), [unused]
    slow = Limit("no GPU", "models run on the CPU: good up to about a billion weights, slow beyond")
    return device.type, processor, dtype, (0, 0), [slow]


def _extras(versions: dict[str, str], where: str) -> list[Limit]:
    """A limit for each extra that is not (wholly) installed, with the command that installs it."""
    lost = {
        "transformers": "no model runs: wb.run, and errors weighted by a calibration text",
        "bitsandbytes": "no NF4, FP4 and LLM.int8",
        "llama.cpp": 'no GGUF runs as llama.cpp computes it: wb.run(..., engine="llama.cpp")',
        "server": 'no model of a server: wb.run("ollama", model=...)',
        "notebook": "no JupyterLab and no HTML reports from this environment",
    }
    limits = []
    for extra, why in lost.items():
        missing = [name for name in EXTRAS if EXTRAS[name] == extra and not versions[name]]
        if missing and not (extra == "notebook" and where != "plain Python"):  # a front end is already there
            do = f'pip install "quantization-workbench[{extra}]"'
            limits.append(Limit(f"missing: {', '.join(missing)}", why, do))
    return limits


def _widgets(version: str, where: str) -> list[Limit]:
    limits = []
    major = re.match(r"\d+", version)
    if major and int(major[0]) < 8:
        limits.append(Limit(f"ipywidgets {version}", "the panels show plainer tabs and cannot be reached by Tab alone"))
    if where == "Colab":
        limits.append(Limit("Colab", "it draws no widget from a background thread: a panel's job holds its cell"))
    return limits


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _of(memory: tuple[int, int]) -> str:
    return f"{memory[0] / 1e9:.1f} GB free of {memory[1] / 1e9:.1f} GB"
