"""Whether ExLlamaV2 can run here, said before it is imported: its import alone compiles CUDA code for minutes."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError, need

READS = ("exl2", "gptq")  # ways of quantizing that it decodes; and plain float16
COMPILED = "exllamav2_ext"  # its extension, where a wheel brings it ready built


def missing() -> list[str]:
    """What this machine lacks, each as a few words; nothing heavier than PyTorch is imported, and that last."""
    found = [] if importlib.util.find_spec("exllamav2") else ["the library itself, of the extra `exllamav2`"]
    if importlib.util.find_spec("torch") is None:
        return [*found, "PyTorch built for CUDA, of the extra `transformers`"]
    torch = need("torch")
    if not torch.version.cuda:
        found.append("a PyTorch that was built for CUDA")
    if not torch.cuda.is_available():
        found.append("an NVIDIA GPU that PyTorch can use")
    if importlib.util.find_spec(COMPILED) is None:
        found += [f"{what} to compile its kernels" for what, programs in TOOLS.items() if not _there(programs)]
    return found


TOOLS = {"the CUDA toolkit (nvcc)": ("nvcc",), "a C++ compiler": ("c++", "g++", "cl"), "ninja": ("ninja",)}


def check_here() -> None:
    """Raise WorkbenchError, naming all that is missing, where ExLlamaV2 cannot run."""
    lacking = missing()
    if lacking:
        raise WorkbenchError(
            "ExLlamaV2",
            "it cannot run here; missing: " + "; ".join(lacking),
            allowed="Linux or Windows with an NVIDIA GPU",
            do='run the model on such a machine, or here by decoded weights: wb.run(model), engine="transformers"',
        )


def check_model(checkpoint: Checkpoint) -> None:
    """Raise WorkbenchError for a model that ExLlamaV2 does not read."""
    if checkpoint.kind != "safetensors":
        raise WorkbenchError(
            checkpoint.name, "ExLlamaV2 reads folders of safetensors, and this is a GGUF", do='engine="llama.cpp"'
        )
    method = checkpoint.quant_method
    found = f"{method[:40]!r}" if method and method not in READS else ""
    if method == "gptq" and (
        others := _bits_of_gptq(checkpoint.quantization) - {4}
    ):  # it reads words of 4 bits, whatever is said
        found = f"GPTQ in {', '.join(sorted(map(str, others)))} bits"
    if found:
        raise WorkbenchError(
            checkpoint.name,
            f"ExLlamaV2 does not read {found}",
            allowed="EXL2, GPTQ in 4 bits, or plain 16-bit weights",
            do='engine="transformers" runs it by decoded weights',
        )


def _bits_of_gptq(settings: dict[str, Any]) -> set[int]:
    """Bits of all matrices, those with settings of their own too."""
    rules = settings.get("dynamic")
    said = [settings, *(rules.values() if isinstance(rules, dict) else ())]
    return {bits for each in said if isinstance(each, dict) and isinstance(bits := each.get("bits"), int)}


def library() -> ModuleType:
    """exllamav2, checked and imported: the first time, its kernels are compiled.

    Raises:
        WorkbenchError: something is missing, or the compilation failed; its last words are passed on.
    """
    check_here()
    try:
        return need("exllamav2")
    except (RuntimeError, OSError, ImportError) as reason:
        raise WorkbenchError(
            "ExLlamaV2",
            f"its kernels could not be compiled: {str(reason).strip()[-500:]}",
            do="see that the CUDA toolkit has the version that PyTorch was built with (torch.version.cuda)",
        ) from reason


def _there(programs: tuple[str, ...]) -> bool:
    """Whether one of these programs is on the path, or a CUDA toolkit where PyTorch looks for one."""
    kits = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    if "nvcc" in programs and any(kit and Path(kit).is_dir() for kit in kits):
        return True
    return any(shutil.which(each) for each in programs)
