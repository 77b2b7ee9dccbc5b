"""What PyTorch holds of a model, measured in a process that loads it as `wb.run` does.

On a processor: "weights" are the bytes of the tensors that the loaded model holds, "all" is
the peak of the process's private memory beyond what it was when a tiny model had run once.
On a GPU both are PyTorch's own count of allocated bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = {
    **{"model_type": "llama", "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 512},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0},
}


def held(
    source: str, engine: str, format: str | None, dtype: str, sizes: Sequence[tuple[int, int]], device: str
) -> dict[str, Any]:
    """{"weights": bytes, "all": bytes for each (context, batch) of `sizes`}, from a process of its own."""
    # large blocks come from the system and go back to it at once, so that its count is of what is in use
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    asked = json.dumps([source, engine, format, dtype, sizes, device])
    command = [sys.executable, "-m", "benchmarks.memory_of_torch", asked]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{asked}: {run.stderr[-1500:]}")
    return json.loads(run.stdout.splitlines()[-1])


def make(config: dict[str, Any], path: Path | str) -> None:
    """Write a random model of that config, in bfloat16, as transformers saves it."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    described = AutoConfig.for_model(**config)
    AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16).save_pretrained(path)


def named(device: str) -> str:
    """What it was measured on, as far as that decides the figures."""
    import torch

    on = torch.cuda.get_device_name() if device == "cuda" else "processor"
    return f"on a {on}, Python {platform.python_version()}"


def measure(
    source: str, engine: str, format: str | None, dtype: str, sizes: list[tuple[int, int]], device: str
) -> dict[str, Any]:
    """Load and run in this process."""
    import torch

    import workbench as wb
    from workbench.engines import build
    from workbench.engines.transformers import _bitsandbytes_config

    torch.set_num_threads(1)
    kind = build.dtype_of({"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype], torch.device(device))
    quantization = _bitsandbytes_config(format, kind) if engine == "bitsandbytes" else None
    count = OnGpu() if device == "cuda" else InProcess()
    with tempfile.TemporaryDirectory() as folder:  # the libraries' own memory is there before the count begins
        make(TINY, folder)
        warm = build.model_of(wb.load(folder), None, kind, device, quantization=quantization)
        run(warm, 300, 1)
        del warm
    model = wb.load(source)
    count.start()
    loaded = build.model_of(model, None, kind, device, quantization=quantization)
    weights, most = count.weights(loaded), []
    for context, batch in sizes:
        count.begin()
        run(loaded, context, batch)
        most.append(count.most())
    return {"weights": weights, "all": most}


def run(model: Any, context: int, batch: int) -> None:
    """Read a prompt that fills the context but for two tokens, and write those."""
    import torch

    with torch.inference_mode():
        ids = torch.zeros(batch, context - 2, dtype=torch.long, device=model.device)
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        for _ in range(2):
            model(input_ids=ids[:, :1], use_cache=True, past_key_values=cache, logits_to_keep=1)


def tensors(model: Any) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every tensor that the model holds, bitsandbytes' scales and tables included."""
    import torch

    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            quantized = getattr(tensor, "quant_state", None)
            own = [tensor, getattr(tensor, "SCB", None)]
            for each in own if quantized is None else [*own, quantized.absmax, quantized.code]:
                if isinstance(each, torch.Tensor):
                    yield each.data_ptr(), each.untyped_storage().nbytes()


class InProcess:
    """Private memory of this process, by what Linux says of it."""

    def start(self) -> None:
        self.before = self._held()

    def weights(self, model: Any) -> int:
        return sum(size for _, size in set(tensors(model)))

    def begin(self) -> None:
        self._held()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading holds a matrix more for a moment

    def most(self) -> int:
        return self._read("VmHWM") - self._read("RssFile") - self.before

    def _held(self) -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return self._read("RssAnon")

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))


class OnGpu:
    """Bytes that PyTorch's allocator has handed out."""

    def start(self) -> None:
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated()

    def weights(self, model: Any) -> int:
        import torch

        gc.collect()
        return torch.cuda.memory_allocated() - self.before

    def begin(self) -> None:
        import torch

        gc.collect()
        torch.cuda.reset_peak_memory_stats()  # loading holds a matrix more for a moment

    def most(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() - self.before


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
