"""GPTQ and AWQ by gptqmodel, as a process of its own, with libraries that lie in a folder of their own.

gptqmodel is the one of the kept libraries that quantizes on a CPU, takes formats for single modules and writes
what vLLM reads; but it asks for newer releases of torch and others than most machines have, so it is never installed
into this Python. Its wheels go into a folder of the cache, without their dependencies on what is here, and are
imported from there by that process alone, behind everything that is installed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench import files, fit
from workbench.checkpoint import Checkpoint, child, wheel
from workbench.exceptions import WorkbenchError, need
from workbench.formats import Format
from workbench.formats.integer import FORMATS as INTEGERS
from workbench.formats.integer import Int4, Int8
from workbench.formats.rows import cores
from workbench.measure.text import Text, chunks_of
from workbench.planning import Plan
from workbench.progress import Progress, Steps
from workbench.quantizing import folder
from workbench.quantizing.schemes import Calibrated
from workbench.quantizing.settings import check_fused, fused_modules, module_of

LIBRARIES = (  # what gptqmodel imports and most environments lack; those they have stand before them
    *(
        "gptqmodel==7.7.0",
        "device-smi>=0.5.7",
        "pypcre>=0.6.4",
        "tokenicer>=0.0.14",
        "logbar>=0.4.15",
        "defuser>=0.0.28",
    ),
    *(
        "datasets>=5.1",
        "pyarrow",
        "dill",
        "multiprocess",
        "xxhash",
        "torchao>=0.18",
        "pillow",
        "protobuf",
        "threadpoolctl",
    ),
)
ABOUT = 260_000_000  # bytes of them, unpacked
CONTEXT = 512  # tokens of a sequence that is read
MOST_TOKENS = {"GPTQ": 65_536, "AWQ": 8_192}  # AWQ computes every layer twenty times over, and needs fewer
BESIDE = 1.5  # times the model in float32: it, one layer's inputs, outputs and second moments
IMPORTED = 600_000_000  # bytes of torch, transformers and gptqmodel in that process


@dataclass(frozen=True)
class Run:
    """One call of gptqmodel.

    Attributes:
        texts: token ids, a list for each sequence.
        dynamic: module pattern -> other settings, or a pattern with "-:" in front for what is left as it is.
    """

    model: Checkpoint
    asked: Calibrated
    texts: list[list[int]]
    dynamic: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, model: Checkpoint, asked: Calibrated, text: Text | None, changes: Mapping[str, Format]) -> Run:
        """Check everything that can be checked before anything is fetched.

        Raises:
            WorkbenchError: no text, rows that groups do not divide, formats that the method does not have.
        """
        for module in ("torch", "transformers"):
            need(module)
        if text is None:
            raise WorkbenchError(
                asked.name,
                "it needs a text to adjust itself to",
                do="text=Path(...), some ten thousand words of your use",
            )
        for info in layers(model):
            if len(info.shape) != 2:
                raise WorkbenchError(
                    info.name,
                    "it holds a layer's experts as one stack",
                    do="quantize the model's folder of safetensors",
                )
            if info.shape[-1] % asked.group and info.name not in changes:
                fitting = " or ".join(str(size) for size in (32, 64, 128) if info.shape[-1] % size == 0)
                raise WorkbenchError(
                    info.name,
                    f"its rows have {info.shape[-1]} weights, which groups of {asked.group} do not divide",
                    allowed=f"groups of {fitting}" if fitting else "",
                )
        ids = chunks_of(model, text, CONTEXT, least=16)
        return cls(
            model, asked, ids[: MOST_TOKENS[asked.method] // CONTEXT].tolist(), gptq_dynamic(model, asked, changes)
        )

    @property
    def nbytes(self) -> int:
        """About the bytes of the model in 16 bits, which the process reads and of which it writes a part."""
        return 2 * self.model.params

    def ask(self, anyway: bool) -> None:
        """Raise DoesNotFit where memory will not do."""
        what = f"{self.asked.method} of {self.model.name}"
        fit.ask(
            IMPORTED + int(BESIDE * 4 * self.model.params),
            what,
            "cpu",
            instead="a rounding such as INT4",
            anyway=anyway,
        )

    def steps(self, target: Path) -> Steps[None]:
        """Fill the empty folder `target`."""
        libraries = yield from libraries_steps()
        layers_count = 1 + max((info.layer for info in self.model.matrices if info.layer is not None), default=0)
        with tempfile.TemporaryDirectory(prefix="quantize.tmp-", dir=target.parent) as scratch:
            source = Path(scratch) / "source"
            source.mkdir()
            yield from folder.plain_steps(self.model, source)
            job = self._job(libraries, source, target, Path(scratch))
            (Path(scratch) / "job.json").write_text(json.dumps(job), encoding="utf-8")
            said = Path(job["said"])

            def progress() -> Progress:
                done = len(said.read_text().split()) if said.exists() else 0
                return Progress(done, layers_count, " layers", f"{self.asked.method} by gptqmodel")

            yield from self._child_steps(Path(scratch) / "job.json", progress)
            self._tidy(target)

    def _tidy(self, target: Path) -> None:
        """Take away the library's diary and the paths of this machine, and say to vLLM's AWQ what is left as it is."""
        for file in target.iterdir():
            if file.suffix in (".log", ".csv"):
                file.unlink()
        left = sorted(re.sub(r"\\(.)", r"\1", key[3:-1]) for key in self.dynamic if key.startswith("-:"))
        for name in ("config.json", "quantize_config.json"):
            said = json.loads((target / name).read_text(encoding="utf-8"))
            settings = said.get("quantization_config", said) if name == "config.json" else said
            settings.get("meta", {}).pop("offload_to_disk_path", None)
            if self.asked.method == "AWQ" and left:
                settings["modules_to_not_convert"] = left
            (target / name).write_text(json.dumps(said, indent=2), encoding="utf-8")

    def _job(self, libraries: Path, source: Path, target: Path, scratch: Path) -> dict[str, Any]:
        import torch

        return {
            "libraries": str(libraries),
            "method": self.asked.method.lower(),
            "bits": self.asked.bits,
            "group": self.asked.group,
            "dynamic": self.dynamic,
            "source": str(source),
            "to": str(target),
            "said": str(scratch / "said"),
            "scratch": str(scratch),
            "texts": self.texts,
            "threads": cores(),
            "device": "cuda:0" if torch.cuda.is_available() else "cpu",
        }

    def _child_steps(self, job: Path, progress: Any) -> Steps[None]:
        script = Path(__file__).with_name("gptqmodel_apart.py")
        environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": str(cores()), "HF_HUB_OFFLINE": "1"}
        try:
            yield from child.run_steps([sys.executable, "-P", str(script), str(job)], progress, environment=environment)
        except child.Failed as reason:
            last = [line for line in str(reason).strip().splitlines() if line.strip()][-1:] or [""]
            raise WorkbenchError(
                self.model.name,
                f"gptqmodel gave up: {last[0][:500]}",
                do="see whether it knows this architecture; INT4 rounds without it",
            ) from reason


def libraries_steps() -> Steps[Path]:
    """The folder of gptqmodel and what it imports; fetched on the first call.

    Raises:
        WorkbenchError: there is no pip, or pip could not get them; the text says why.
    """
    place = files.cache_dir() / "gptqmodel" / files.digest(LIBRARIES, sys.version_info[:2])[:16]
    if place.is_dir():
        return place
    wheel.check_pip("gptqmodel", "it")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch.tmp-", dir=place.parent) as scratch:
        made = Path(scratch) / "libraries"
        install = ["install", "--target", str(made), *LIBRARIES]
        yield from wheel.pip_steps(install, Path(scratch), ABOUT, "gptqmodel", "it")
        if not place.is_dir():  # another process may have been quicker
            made.rename(place)
    return place


# --- a plan, in gptqmodel's words ---------------------------------------------------------------


def gptq_dynamic(
    model: Checkpoint, asked: Calibrated, changes: Mapping[str, Format] | Plan
) -> dict[str, dict[str, Any]]:
    """gptqmodel's `dynamic` for matrices that get other bits or groups, or stay as they are.

    Args:
        changes: tensor name -> format; INT4 and INT8 stand for 4 and 8 bits, in groups of their size.

    Raises:
        WorkbenchError: a format that is no number of bits, any with AWQ, or fused matrices that differ.
    """
    formats = changes.formats if isinstance(changes, Plan) else changes
    found = {}
    for name, format in formats.items():
        said = _override(model, asked, name, format)
        if said is not None:
            found[name] = said
    if found:
        check_fused(model, _all_of(model, asked, formats))
    modules = {module_of(model, name): said for name, said in found.items()}
    # vLLM looks for the layers that it has fused by their own names (its get_dynamic_override).
    modules |= {module: found[names[0]] for module, names in fused_modules(model, found).items()}
    return {f"{sign}:^{re.escape(module)}$": said for module, (sign, said) in modules.items()}


def _override(model: Checkpoint, asked: Calibrated, name: str, format: Format) -> tuple[str, dict[str, int]] | None:
    """("-", {}) for a matrix that stays as it is, ("+", its settings), or None where it gets what all get."""
    info = model.tensors[name]
    if format.family == "float":
        return None if info.layer is None else ("-", {})  # embedding and head stay as they are anyway
    if asked.method == "AWQ":
        raise WorkbenchError(name, f"{asked.name} has no {format.name} for single matrices", allowed="a float")
    if info.layer is None:
        raise WorkbenchError(name, "GPTQ folders leave it as it is", allowed="a float", do="leave it out")
    if not isinstance(format, Int4 | Int8):
        allowed = "INT4 or INT8, for 4 or 8 bits in their groups; or a float"
        raise WorkbenchError(name, f"GPTQ has no {format.name}", allowed=allowed)
    bits = 4 if isinstance(format, Int4) else 8
    if info.shape[-1] % format.group:
        raise WorkbenchError(name, f"groups of {format.group} do not divide its {info.shape[-1]} inputs")
    return (
        None if (bits, format.group) == (asked.bits, asked.group) else ("+", {"bits": bits, "group_size": format.group})
    )


def _all_of(model: Checkpoint, asked: Calibrated, formats: Mapping[str, Format]) -> dict[str, Format]:
    """Every matrix's format, what was asked for standing for those that are not named."""
    rest = replace(INT4, name=asked.name, bits=float(asked.bits), group=asked.group)

    def same(format: Format | None) -> bool:
        kind = {4: Int4, 8: Int8}.get(asked.bits)
        return format is None or (kind is not None and type(format) is kind and format.group == asked.group)

    return {info.name: rest if same(formats.get(info.name)) else formats[info.name] for info in layers(model)}


INT4 = next(format for format in INTEGERS if isinstance(format, Int4))


def layers(model: Checkpoint) -> list[Any]:
    """The matrices that GPTQ and AWQ quantize: those of the layers."""
    return [info for info in model.matrices if info.layer is not None]
