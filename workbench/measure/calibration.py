"""What flows into every matrix while the model reads a text: second moments and a sample of inputs.

The mean square of each input channel is llama.cpp's importance matrix; the sample of
whole input vectors gives the error of a matrix's *output*. Both come from one forward
pass in which the weights are read as they are needed, so a model that does not fit in
memory can be calibrated too.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import files, fit
from workbench.checkpoint import Checkpoint
from workbench.engines import build, room
from workbench.exceptions import WorkbenchError, need
from workbench.fit.architecture import part_of
from workbench.measure import text as texts
from workbench.measure.text import Text
from workbench.progress import Progress, Steps, drain, in_thread

if TYPE_CHECKING:
    import torch

LEAST_TOKENS = 64  # fewer say nothing about a channel's usual size; about 2,000 give steady figures


@dataclass(frozen=True)
class Calibration:
    """Statistics of the inputs of every matrix over one text, kept on disk.

    Attributes:
        tokens: how many tokens the text gave.
        sampled: how many of their input vectors are kept for output errors.
        inputs: tensor name -> name of its input; q, k and v share one.
    """

    folder: Path
    tokens: int
    sampled: int
    inputs: dict[str, str]

    @property
    def digest(self) -> str:
        """Names this calibration in cache keys: a hash of model, text, settings and this file."""
        return self.folder.name

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.inputs

    def mean_square(self, tensor: str) -> np.ndarray:
        """mean over tokens of x_j squared, float32 [in]: llama.cpp's importance matrix."""
        return np.load(self.folder / f"{self.inputs[tensor]}.mean_square.npy")

    def sample(self, tensor: str) -> np.ndarray:
        """Input vectors of evenly spread tokens, float32 [sampled, in]."""
        return np.load(self.folder / f"{self.inputs[tensor]}.sample.npy")

    def importance(self) -> dict[str, np.ndarray]:
        """tensor name -> importance matrix, for every format that takes one."""
        return {name: self.mean_square(name) for name in self.inputs}


def calibrate(
    checkpoint: Checkpoint,
    text: Text,
    *,
    tokens: int = 2048,
    context: int = 512,
    sampled: int = 256,
    anyway: bool = False,
) -> Calibration:
    """Run the model over `text` once and keep what its matrices are fed.

    Args:
        text: a few thousand words like those the model will be used on: a string, a list of them, or a file's Path.
        tokens: how much of the text is used at most.
        context: length of the sequences it is cut into, in tokens.
        sampled: how many input vectors are kept for output errors.
        anyway: go ahead even if it does not fit in memory.

    Raises:
        WorkbenchError: the text is too short, or the context is longer than the model's.
        DoesNotFit: before a weight is read, or when memory ran out all the same.
    """
    steps = calibrate_steps(checkpoint, text, tokens=tokens, context=context, sampled=sampled, anyway=anyway)
    return drain(steps, label="calibrating")


def calibrate_steps(
    checkpoint: Checkpoint,
    text: Text,
    *,
    tokens: int = 2048,
    context: int = 512,
    sampled: int = 256,
    anyway: bool = False,
) -> Steps[Calibration]:
    folder = _folder(checkpoint, text, tokens, context, sampled)
    if not (folder / "inputs.json").exists():
        ids = need("torch").from_numpy(texts.chunks_of(checkpoint, text, context, tokens=tokens, least=LEAST_TOKENS))
        where = build.device_of(None)
        needs, what = _needed(checkpoint, ids, where), f"calibrating {checkpoint.name}"
        instead = f"fewer tokens than {ids.numel():,}"
        fit.ask(needs, what, room.here(where), instead=instead, anyway=anyway)
        with fit.guarded(needs, what, str(where), instead=instead):
            yield from in_thread(lambda report: _collect(checkpoint, ids, sampled, folder, where, report))
    return _opened(folder)


def _needed(checkpoint: Checkpoint, ids: torch.Tensor, device: torch.device) -> int | None:
    """Bytes of the pass: a layer's activations for all tokens, and the largest module, in float32.

    The experts of a layer may be one module.
    """
    sequences, length = ids.shape
    whole = room.needed(checkpoint, None, need("torch").float32, device, context=length, batch=sequences)
    if whole is None:
        return None
    modules = Counter[object]()
    for info in checkpoint.tensors.values():
        routed = part_of(info.name, info.shape) == "experts"
        modules[info.layer if routed else info.name] += 4 * info.params
    return whole.parts["compute"] + max(modules.values(), default=0)


def calibration_so_far(
    checkpoint: Checkpoint, text: Text, *, tokens: int = 2048, context: int = 512, sampled: int = 256
) -> Calibration | None:
    """The calibration of an earlier call with the same arguments, if it was finished."""
    folder = _folder(checkpoint, text, tokens, context, sampled)
    return _opened(folder) if (folder / "inputs.json").exists() else None


def _folder(checkpoint: Checkpoint, text: Text, *settings: object) -> Path:
    code = files.code_version(sys.modules[__name__], texts)
    key = files.digest(checkpoint.fingerprint, texts.text_of(text), *settings, code)
    return files.cache_dir() / "calibration" / key


def _opened(folder: Path) -> Calibration:
    kept = json.loads((folder / "inputs.json").read_text())
    return Calibration(folder, kept["tokens"], kept["sampled"], kept["inputs"])


def _collect(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    sampled: int,
    folder: Path,
    device: torch.device,
    report: Callable[[Progress], None],
) -> None:
    torch = need("torch")
    report(Progress(0, 0, "matrix", "building the model"))
    model = build.streaming_model_of(checkpoint, dtype="float32", device=device)
    tensors = {checkpoint.hf_name(info.name): info.name for info in checkpoint.matrices}
    chosen = torch.linspace(0, ids.numel() - 1, min(sampled, ids.numel())).round().long()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="calibration-", dir=folder.parent))
    try:
        inputs = _Inputs(work, chosen, report, total=len(tensors))
        hooks = [
            module.register_forward_pre_hook(inputs.hook(tensors[f"{name}.weight"]))
            for name, module in _linears(model)
            if f"{name}.weight" in tensors
        ]
        with torch.inference_mode():
            hidden = model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
            if head := tensors.get(_head_name(model)):
                inputs.take(head, hidden)  # the logits themselves, vocabulary wide, are never needed
        for hook in hooks:
            hook.remove()
        kept = {"tokens": ids.numel(), "sampled": len(chosen), "inputs": inputs.names}
        (work / "inputs.json").write_text(json.dumps(kept))
        if not folder.exists():
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _linears(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    torch = need("torch")
    return ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))


def _head_name(model: Any) -> str:
    """The parameter that turns hidden states into logits: the head, or the embedding tied to it."""
    head = model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False)
    wanted = model.get_input_embeddings() if tied else head
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), "")


class _Inputs:
    """Writes each distinct input once: matrices that are fed the same tensor share its statistics."""

    def __init__(self, folder: Path, chosen: torch.Tensor, report: Callable[[Progress], None], total: int) -> None:
        self.folder, self.chosen, self.report, self.total = folder, chosen, report, total
        self.names: dict[str, str] = {}
        self.last: tuple[Any, str] = (None, "")

    def hook(self, tensor: str) -> Callable[[Any, tuple], None]:
        return lambda module, inputs: self.take(tensor, inputs[0])

    def take(self, tensor: str, x: torch.Tensor) -> None:
        self.report(Progress(len(self.names), self.total, "matrix", tensor))
        if x is not self.last[0]:
            name = f"{len(self.names):05d}"
            rows = x.reshape(-1, x.shape[-1]).float()
            if not len(rows):
                return  # an expert that no token of this text was sent to
            if not rows.isfinite().all():
                raise WorkbenchError(
                    tensor, "the model gives it inputs that are not finite numbers", do="calibrate with dtype float32"
                )
            chosen = self.chosen[self.chosen < len(rows)]
            np.save(self.folder / f"{name}.mean_square.npy", rows.square().mean(0).cpu().numpy())
            np.save(self.folder / f"{name}.sample.npy", rows[chosen].cpu().numpy())
            self.last = (x, name)
        self.names[tensor] = self.last[1]
