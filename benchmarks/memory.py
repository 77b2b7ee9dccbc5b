"""What `wb.memory` says, against what the engines take: a row for each model, format, context and type of cache.

    python benchmarks/memory.py [--device cuda] [--only transformers] [--write benchmarks/memory.md]

Each measurement is a process of its own. "weights" is what the engine holds once the model
is loaded; "all" is the most it held while it read a prompt of the whole context and wrote
two tokens.

transformers, bitsandbytes: a random model of the shapes in MODELS (or the demo), written
by transformers, opened by `wb.load` and loaded as `wb.run` loads it. On a processor:
"weights" are the bytes of the tensors that the loaded model holds, "all" is private memory
of the process beyond what it was when a tiny model had run once. With `--device cuda`,
both are PyTorch's own count of allocated bytes.

llama.cpp: "weights" by its own report; "all" for the demo is what the process grows by until
it has answered a prompt, for random models its own report of the buffers that it
allocates, and for published models of any size its own plan from a file whose tensors are
holes (nothing is allocated; of weights a plan says nothing).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LLAMA = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16},
    **{"num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 131072, "pad_token_id": 0},
}
LARGE = {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
WINDOW = {"sliding_window": 512}
MOE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 768, "head_dim": 64}
LATENT = {
    **{"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    **{"num_key_value_heads": 16, "head_dim": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 1024},
}
STATE = {"mamba_d_ssm": 1024, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
MODELS: dict[str, dict[str, Any]] = {
    "Llama 0.2B": {"model_type": "llama", **LLAMA},
    "Llama 1.1B": {"model_type": "llama", **LARGE},
    "Mistral, window 512": {"model_type": "mistral", **LLAMA, **WINDOW},
    "Gemma 3, window 512": {"model_type": "gemma3_text", **LLAMA, **WINDOW, "head_dim": 64},
    "Gemma 2, soft caps": {"model_type": "gemma2", **LLAMA, "num_attention_heads": 8, "head_dim": 128, **WINDOW},
    "Qwen 3, wide heads": {"model_type": "qwen3", **LLAMA, "head_dim": 128},
    "Phi 3": {"model_type": "phi3", **LLAMA},
    "GPT-NeoX": {"model_type": "gpt_neox", **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}},
    "Qwen 3 MoE, 4 of 16": {"model_type": "qwen3_moe", **LLAMA, **MOE},
    "DeepSeek V3, latent": {"model_type": "deepseek_v3", **LLAMA, **LATENT},
    "Falcon H1, hybrid": {"model_type": "falcon_h1", **LLAMA, **STATE},
}
PUBLISHED = (
    *("Llama 3.1 8B", "Mistral 7B v0.1", "Mixtral 8x7B", "Qwen2.5 7B", "Qwen3 8B", "Qwen3 30B A3B", "Gemma 2 9B"),
    *("Gemma 3 1B", "Phi 4", "DeepSeek V3", "gpt-oss 20B", "Qwen3 Next 80B A3B", "Falcon H1 1.5B"),
)


@dataclass(frozen=True)
class Case:
    model: str
    engine: str
    context: int
    format: str | None = None
    dtype: str = "f32"
    kv: tuple[str, str] = ("f16", "f16")
    batch: int = 1

    def label(self) -> str:
        torch = self.engine in ("transformers", "bitsandbytes")
        kinds = [self.format or "", self.dtype if torch else f"keys/values {'/'.join(self.kv)}"]
        several = f" x {self.batch}" if self.batch > 1 else ""
        return f"{self.model} | {', '.join(filter(None, kinds))} | {self.context:,}{several}"


@dataclass(frozen=True)
class Row:
    """Bytes: (predicted, measured) of the weights and of everything."""

    case: Case
    weights: tuple[float, float]
    everything: tuple[float, float]

    def line(self) -> str:
        cells = []
        for predicted, measured in (self.weights, self.everything):
            off = f"{predicted / measured - 1:+.2%}" if measured else ""
            cells.append(f"{predicted / 1e6:,.1f} | {measured / 1e6:,.1f} | {off}" if measured else "- | - | -")
        return f"| {self.case.label()} | {' | '.join(cells)} |"


HEAD = (
    "| model | format | context | weights, MB: predicted | measured | off | all, MB: predicted | measured | off |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--only", choices=["transformers", "bitsandbytes", "llama.cpp", "plans"])
    options.add_argument("--write", type=Path)
    options.add_argument("--measure", help=argparse.SUPPRESS)
    options.add_argument("--make", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.make:
        make(*json.loads(chosen.make))
    elif chosen.measure:
        print(json.dumps(measure(*json.loads(chosen.measure))))
    else:
        lines = list(tables(chosen.device, chosen.only))
        if chosen.write:
            chosen.write.write_text("\n".join(lines) + "\n")


def tables(device: str, only: str | None) -> Iterator[str]:
    """The lines of the report, printed as they come."""
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("transformers", "bitsandbytes", "llama.cpp", "plans"):
            if (only and only != engine) or (device == "cuda" and engine not in ("transformers", "bitsandbytes")):
                continue
            yield said(f"\n{TITLES[engine]}{' on ' + gpu() if device == 'cuda' else ''}\n\n{HEAD}")
            worst = [0.0, 0.0]
            for row in rows(engine, device, Path(folder)):
                yield said(row.line())
                for number, (predicted, measured) in enumerate((row.weights, row.everything)):
                    worst[number] = max(worst[number], abs(predicted / measured - 1) if measured else 0.0)
            yield said(f"\nThe largest difference: weights {worst[0]:.2%}, all {worst[1]:.2%}.")


TITLES = {
    "transformers": "## transformers",
    "bitsandbytes": "## bitsandbytes",
    "llama.cpp": "## llama.cpp",
    "plans": "## llama.cpp's plans for published models (all: cache and compute buffers)",
}


def said(line: str) -> str:
    print(line, flush=True)
    return line


def gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"


def cases(engine: str, device: str) -> Iterable[Case]:
    contexts = (512, 2048, 8192)
    half = ("bf16",) if device == "cuda" else ("f32", "bf16")
    demo = () if device == "cuda" else ("demo",)  # a machine with a GPU may have no network
    if engine == "transformers":
        yield from (
            Case(name, engine, size, dtype=kind) for name in (*demo, *MODELS) for size in (1024, 4096) for kind in half
        )
        yield from (Case("Llama 0.2B", engine, size, dtype="f32") for size in contexts)
        yield Case("Llama 0.2B", engine, 1024, dtype=half[0], batch=4)
    elif engine == "bitsandbytes":
        for format in ("NF4", "FP4", "LLM.int8"):
            for name in (*demo, "Llama 0.2B", "Llama 1.1B"):
                yield from (Case(name, engine, size, format, dtype=half[-1]) for size in (1024, 4096))
        yield from (Case(name, engine, 2048, "NF4", dtype=half[-1]) for name in ("Qwen 3 MoE, 4 of 16", "Phi 3"))
    elif engine == "llama.cpp":
        kinds = [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("f32", "f32"), ("q5_1", "iq4_nl")]
        yield from (Case("demo", engine, size, kv=kv) for size in contexts for kv in kinds)
        yield Case("demo", engine, 2048, batch=4)
        for format in ("F16", "Q8_0", "Q4_K"):
            yield from (Case("Llama 0.2B", engine, size, format) for size in contexts)
    else:
        for name in PUBLISHED:
            latent = name == "DeepSeek V3"
            yield from (Case(name, engine, size, "Q4_0") for size in (8192, 131072))
            yield Case(name, engine, 32768, "Q4_0", kv=("f16", "f16") if latent else ("q8_0", "q8_0"))


def rows(engine: str, device: str, folder: Path) -> Iterator[Row]:
    for case in cases(engine, device):
        if engine == "plans":
            yield planned(case, folder)
        elif engine == "llama.cpp":
            yield reported(case, folder)
        else:
            yield measured(case, device, folder)


# --- transformers and bitsandbytes ------------------------------------------------------------


def measured(case: Case, device: str, folder: Path) -> Row:
    from workbench.fit import memory

    source = made(case.model, folder)
    where = device if device == "cpu" else "cuda"
    found = memory(source, case.format, case.context, case.batch, None, case.engine, where, dtype=case.dtype)
    said = json.loads(own_process("--measure", [asdict(case), source, device]).splitlines()[-1])
    outside = found.parts["overhead"] if device == "cuda" else 0  # of the driver: PyTorch's count leaves it out
    return Row(case, (found.weights, said["weights"]), (found.total - outside, said["all"]))


def made(model: str, folder: Path) -> str:
    """Where the model is: "demo", or the folder of a random one that is written first."""
    if model == "demo":
        return model
    path = folder / model.replace(" ", "_")
    if not path.exists():
        own_process("--make", [MODELS[model], str(path)])
    return str(path)


def own_process(option: str, asked: object) -> str:
    # large blocks come from the system and go back to it at once, so that its count is of what is in use
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, option, json.dumps(asked)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{asked}: {run.stderr[-1500:]}")
    return run.stdout


def make(config: dict[str, Any], path: str) -> None:
    """A random model of that config, in bfloat16, as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.save_pretrained(path)


def measure(case: dict[str, Any], source: str, device: str) -> dict[str, float]:
    """Load and run in this process; bytes held after loading, and the most held at any moment."""
    import torch

    import workbench as wb
    from workbench.engines import build
    from workbench.engines.transformers import _bitsandbytes_config

    torch.set_num_threads(1)
    dtype = build.dtype_of(
        {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[case["dtype"]], torch.device(device)
    )
    quantization = _bitsandbytes_config(case["format"], dtype) if case["engine"] == "bitsandbytes" else None
    count = OnGpu() if device == "cuda" else InProcess()
    with tempfile.TemporaryDirectory() as folder:  # the libraries' own memory is there before the count begins
        tiny = dict.fromkeys(("hidden_size", "intermediate_size"), 128) | {"num_hidden_layers": 1, "vocab_size": 512}
        make({"model_type": "llama", **LLAMA, **tiny, "num_attention_heads": 2, "num_key_value_heads": 2}, folder)
        torch.set_default_dtype(torch.float32)
        warm = build.model_of(wb.load(folder), None, dtype, device, quantization=quantization)
        run(warm, 300, 1)
        del warm
    model = wb.load(source)
    count.start()
    loaded = build.model_of(model, None, dtype, device, quantization=quantization)
    weights = count.now(loaded)
    run(loaded, case["context"], case["batch"])
    return {"weights": weights, "all": count.most()}


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

    def now(self, model: Any) -> int:
        self._held()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading holds a matrix more for a moment
        return sum(size for _, size in set(tensors(model)))

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
        torch.cuda.reset_peak_memory_stats()

    def now(self, model: Any) -> int:
        import torch

        gc.collect()
        found = torch.cuda.memory_allocated() - self.before
        torch.cuda.reset_peak_memory_stats()  # loading holds a matrix more for a moment
        return found

    def most(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() - self.before


# --- llama.cpp --------------------------------------------------------------------------------


def reported(case: Case, folder: Path) -> Row:
    from tests.fit.llama_cpp import report
    from workbench.fit import memory

    path = gguf_of(case, folder)
    found = memory(path, None, case.context, case.batch, case.kv)
    if case.model == "demo":
        said = report(path, case.context, kv=case.kv, batch=case.batch, words=min(case.context - 64, 1000))
        return Row(case, (found.weights, said.weights), (found.total, said.process))
    said = report(path, case.context, kv=case.kv, batch=case.batch)
    return Row(case, (found.weights, said.weights), (found.total - found.parts["overhead"], said.total))


def gguf_of(case: Case, folder: Path) -> Path:
    import workbench as wb
    from tests.fit import holes

    if case.model == "demo":
        return wb.load("demo").path
    path = folder / f"{case.model} {case.format}.gguf"
    if not path.exists():
        holes.write(path, MODELS[case.model], str(case.format))
    return path


def planned(case: Case, folder: Path) -> Row:
    """llama.cpp's plan from the shapes: of the weights it says nothing, so only what lies beside them is compared."""
    from tests.fit import holes
    from tests.fit.llama_cpp import report
    from tests.fit.published import CONFIGS
    from workbench.fit import memory

    path = folder / f"{case.model}.gguf"
    if not path.exists():
        holes.write(path, CONFIGS[case.model], "Q4_0")
    found = memory(CONFIGS[case.model], "Q4_0", case.context, case.batch, case.kv)
    said = report(path, case.context, kv=case.kv, batch=case.batch, dry=True)
    return Row(case, (found.weights, 0), (found.cache + found.parts["compute"], said.total - said.weights))


if __name__ == "__main__":
    main()
