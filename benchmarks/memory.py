"""What `wb.memory` says, against what the engines take: a row for each model, format, context and type of cache.

    python -m benchmarks.memory [--only transformers] [--device cuda] [--large] [--write benchmarks/memory.md]

"weights" is what an engine holds once the model is loaded, "all" the most it holds while it
reads a prompt that fills the context and writes two tokens.

transformers, bitsandbytes: the demo, or a random model of the shapes in MODELS, opened by
`wb.load` and loaded as `wb.run` loads it, in a process of its own (see memory_of_torch).

llama.cpp: "weights" by its own report. "all": for the demo what its server's process grows
by until it has answered a prompt, for random models the buffers that it reports. For
published models of any size its plan is asked for, from a file whose tensors are holes:
nothing is allocated then, and only the cache and the work space are compared.

--large adds models of 3 and 7 billion weights, one at a time; they want 20 GB of memory and as much disk.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import memory_of_torch as torch_process
from tests.fit import holes
from tests.fit.llama_cpp import report
from tests.fit.published import CONFIGS
from workbench.fit import memory

WIDE = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 16},
    **{"num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 131072, "pad_token_id": 0},
}
DEEP = {**WIDE, "num_hidden_layers": 8}
LARGE = {**WIDE, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
HUGE = {**LARGE, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8}
HUGEST = {**HUGE, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 32}
WINDOW = {"sliding_window": 512}
MOE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 768, "head_dim": 64}
LATENT = {
    **{"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    **{"num_key_value_heads": 16, "head_dim": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 1024},
}
STATE = {"mamba_d_ssm": 1024, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
MODELS: dict[str, dict[str, Any]] = {
    "Llama 0.2B": {"model_type": "llama", **DEEP},
    "Llama 1.1B": {"model_type": "llama", **LARGE},
    "Mistral, window 512": {"model_type": "mistral", **WIDE, **WINDOW},
    "Gemma 3, window 512": {"model_type": "gemma3_text", **WIDE, **WINDOW, "head_dim": 64},
    "Gemma 2, soft caps": {"model_type": "gemma2", **WIDE, "num_attention_heads": 8, "head_dim": 128, **WINDOW},
    "Qwen 3, wide heads": {"model_type": "qwen3", **WIDE, "head_dim": 128},
    "Phi 3": {"model_type": "phi3", **WIDE, "eos_token_id": 0},
    "GPT-NeoX": {"model_type": "gpt_neox", **{k: v for k, v in WIDE.items() if k != "num_key_value_heads"}},
    "Qwen 3 MoE, 4 of 16": {"model_type": "qwen3_moe", **WIDE, **MOE},
    "DeepSeek V3, latent": {"model_type": "deepseek_v3", **WIDE, **LATENT},
    "Falcon H1, hybrid": {"model_type": "falcon_h1", **WIDE, **STATE},
}
LARGE_MODELS = {"Llama 3B": {"model_type": "llama", **HUGE}, "Llama 7B": {"model_type": "llama", **HUGEST}}
PUBLISHED = (
    *("Llama 3.1 8B", "Mistral 7B v0.1", "Mixtral 8x7B", "Qwen2.5 7B", "Qwen3 8B", "Qwen3 30B A3B", "Gemma 2 9B"),
    *("Gemma 3 1B", "Phi 4", "DeepSeek V3", "gpt-oss 20B", "Qwen3 Next 80B A3B", "Falcon H1 1.5B"),
)
KINDS = (("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("f32", "f32"), ("q5_1", "iq4_nl"))


@dataclass(frozen=True)
class Case:
    model: str
    engine: str
    context: int
    format: str | None = None
    dtype: str = "f32"
    kv: tuple[str, str] = ("f16", "f16")
    batch: int = 1

    def cells(self) -> tuple[str, ...]:
        kinds = self.dtype if self.engine in TORCH else f"keys/values {'/'.join(self.kv)}"
        several = f" x {self.batch}" if self.batch > 1 else ""
        return self.model, ", ".join(filter(None, (self.format, kinds))), f"{self.context:,}{several}"


@dataclass(frozen=True)
class Row:
    """Bytes by what they are of: (predicted, measured)."""

    case: Case
    figures: Mapping[str, tuple[float, float]]

    def off(self, what: str) -> float:
        predicted, measured = self.figures[what]
        return predicted / measured - 1

    def cells(self) -> Iterator[str]:
        yield from self.case.cells()
        for what, (predicted, measured) in self.figures.items():
            yield from (f"{predicted / 1e6:,.1f}", f"{measured / 1e6:,.1f}", f"{self.off(what):+.2%}")


@dataclass
class Report:
    """Printed as the rows come, and written whole."""

    lines: list[str] = field(default_factory=list)
    worst: list[tuple[str, ...]] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines

    def table(self, title: str, rows: Iterator[Row]) -> None:
        found: list[Row] = []
        for row in rows:
            if not found:
                heads = (f"{what}, MB: predicted | measured | off" for what in row.figures)
                self.say("", f"## {title}", "", line("model", "format", "context", *heads))
                self.say(line(*["---"] * (3 + 3 * len(row.figures))))
            self.say(line(*row.cells()))
            found.append(row)
        for what in found[0].figures:
            off = [abs(row.off(what)) for row in found]
            within = sum(one <= 0.05 for one in off)
            self.worst.append((title, what, f"{max(off):.2%}", f"{within} of {len(off)}"))

    def page(self, where: str) -> str:
        packages = ", ".join(
            f"{name} {version(name)}" for name in ("torch", "transformers", "bitsandbytes", "xllamacpp")
        )
        return "\n".join(
            [
                "# What `wb.memory` says, against what engines take",
                "",
                f"Written by `python -m benchmarks.memory`, which says how each figure is measured, on {date.today()}:",
                f"{where}, {packages}. MB are 10⁶ bytes.",
                "",
                line("", "of", "largest difference", "within 5 %"),
                line(*["---"] * 4),
                *(line(*cells) for cells in self.worst),
                *self.lines,
                "",
            ]
        )


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# --- what is measured -------------------------------------------------------------------------


def of_transformers(device: str) -> Iterator[Case]:
    """Keys and values are kept in the type that the model computes in."""
    sizes = {"Llama 0.2B": (512, 2048, 8192), "Llama 1.1B": (512,)}
    for name in MODELS if device == "cuda" else ("demo", *MODELS):  # a machine with a GPU may have no network
        yield from (Case(name, "transformers", size, dtype="bf16") for size in sizes.get(name, (512, 2048)))
        if name == "Llama 0.2B":
            yield Case(name, "transformers", 512, dtype="bf16", batch=4)
            yield from (Case(name, "transformers", size, dtype="f32") for size in (512, 2048))


def of_bitsandbytes(device: str) -> Iterator[Case]:
    """On a processor the first pass repacks the weights, so it is the one that counts."""
    demo = "Llama 0.2B" if device == "cuda" else "demo"
    for name, size, format, batch in (
        *((demo, 512, "NF4", 1), (demo, 1024, "LLM.int8", 1), ("Llama 0.2B", 2048, "NF4", 1)),
        *(("Llama 0.2B", 1024, "FP4", 2), ("Llama 0.2B", 512, "LLM.int8", 1)),
        *(("Llama 1.1B", 256, "NF4", 1), ("Qwen 3 MoE, 4 of 16", 1024, "NF4", 1), ("Phi 3", 1024, "NF4", 1)),
    ):
        yield Case(name, "bitsandbytes", size, format, dtype="bf16", batch=batch)


def of_llama_cpp() -> Iterator[Case]:
    yield from (Case("demo", "llama.cpp", size) for size in (512, 2048, 8192))
    yield from (Case("demo", "llama.cpp", 4096, kv=kv) for kv in KINDS[1:])
    yield Case("demo", "llama.cpp", 2048, batch=4)
    for format in ("F16", "Q8_0", "Q4_K"):
        yield from (Case("Llama 0.2B", "llama.cpp", size, format) for size in (512, 8192))
    yield Case("Llama 1.1B", "llama.cpp", 16384, "Q6_K", kv=("q8_0", "q8_0"), batch=2)


def of_large() -> Iterator[Case]:
    yield from (Case("Llama 3B", "transformers", size, dtype="bf16") for size in (512, 2048))
    yield Case("Llama 3B", "bitsandbytes", 512, "NF4", dtype="bf16")
    yield from (Case("Llama 7B", "transformers", size, dtype="bf16") for size in (256, 1024))


def of_large_llama_cpp() -> Iterator[Case]:
    yield from (Case("Llama 7B", "llama.cpp", size, "Q8_0") for size in (512, 32768))


def of_plans() -> Iterator[Case]:
    for name in PUBLISHED:
        yield Case(name, "llama.cpp", 8192, "Q4_0")
        kv = KINDS[0] if name == "DeepSeek V3" else KINDS[1]  # a latent has no values to quantize
        yield Case(name, "llama.cpp", 131072, "Q4_0", kv=kv)


# --- how ----------------------------------------------------------------------------------------


def by_torch(cases: Iterator[Case], device: str, folder: Path, at_once: int = 2) -> Iterator[Row]:
    """A process for each model, two at a time: what one holds does not depend on the other."""

    def held(group: list[Case]) -> dict[str, Any]:
        first, asked = group[0], [(case.context, case.batch) for case in group]
        source = made(first.model, folder)
        return torch_process.held(source, first.engine, first.format, first.dtype, asked, device)

    alike = groupby(cases, lambda case: (case.model, case.engine, case.format, case.dtype))
    groups = [list(same) for _, same in alike]
    for model in dict.fromkeys(group[0].model for group in groups):
        made(model, folder)
    with ThreadPoolExecutor(at_once) as pool:
        for group, found in zip(groups, pool.map(held, groups), strict=True):
            for case, most in zip(group, found["all"], strict=True):
                yield torch_row(case, made(case.model, folder), device, found["weights"], most)


def torch_row(case: Case, source: str, device: str, weights: float, most: float) -> Row:
    found = memory(source, case.format, case.context, case.batch, None, case.engine, device, dtype=case.dtype)
    outside = found.parts["overhead"] if device == "cuda" else 0  # of the driver: PyTorch does not count it
    return Row(case, {"weights": (found.weights, weights), "all": (found.total - outside, most)})


def made(model: str, folder: Path) -> str:
    """Where the model is: "demo", or the folder of a random one that is written first."""
    if model == "demo":
        return model
    path = folder / model.replace(" ", "_")
    if not path.exists():
        torch_process.make((MODELS | LARGE_MODELS)[model], path)
    return str(path)


def by_llama_cpp(cases: Iterator[Case], folder: Path) -> Iterator[Row]:
    for case in cases:
        path = gguf_of(case, folder)
        found = memory(path, None, case.context, case.batch, case.kv)
        words = min(case.context - 64, 520) if case.model == "demo" else 0  # more than it computes at once
        said = report(path, case.context, kv=case.kv, batch=case.batch, words=words)
        everything = (found.total, said.process) if words else (found.total - found.parts["overhead"], said.total)
        yield Row(case, {"weights": (found.weights, said.weights), "all": everything})


def gguf_of(case: Case, folder: Path) -> Path:
    import workbench as wb

    if case.model == "demo":
        return wb.load("demo").path
    path = folder / f"{case.model} {case.format}.gguf"
    if not path.exists():
        holes.write(path, (MODELS | LARGE_MODELS)[case.model], str(case.format))
    return path


def by_plan(cases: Iterator[Case], folder: Path) -> Iterator[Row]:
    for case in cases:
        path = folder / f"{case.model}.gguf"
        if not path.exists():
            holes.write(path, CONFIGS[case.model], str(case.format))
        found = memory(CONFIGS[case.model], case.format, case.context, case.batch, case.kv)
        said = report(path, case.context, kv=case.kv, batch=case.batch, dry=True)
        work = (found.parts["compute"], said.compute + said.output)
        yield Row(case, {"cache": (found.cache, said.cache + said.states), "work space": work})


TORCH = ("transformers", "bitsandbytes")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--only", choices=[*TORCH, "llama.cpp", "large", "plans"])
    options.add_argument("--large", action="store_true")
    options.add_argument("--write", type=Path)
    chosen = options.parse_args()
    found, device = Report(), chosen.device
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tables = {
            "transformers": ("transformers", by_torch(of_transformers(device), device, folder)),
            "bitsandbytes": ("bitsandbytes", by_torch(of_bitsandbytes(device), device, folder)),
            "llama.cpp": ("llama.cpp", by_llama_cpp(of_llama_cpp(), folder)),
            "large": ("transformers and bitsandbytes, large", by_torch(of_large(), device, folder, at_once=1)),
            "large llama.cpp": ("llama.cpp, large", by_llama_cpp(of_large_llama_cpp(), folder)),
            "plans": ("llama.cpp's plans for published models", by_plan(of_plans(), folder)),
        }
        for name, (title, rows) in tables.items():
            if name.startswith("large") and not chosen.large:
                continue
            if chosen.only in (None, name) and (device == "cpu" or name in (*TORCH, "large")):
                found.table(title, rows)
    page = found.page(torch_process.named(device))
    print("", *(line(*cells) for cells in found.worst), sep="\n")
    if chosen.write:
        chosen.write.write_text(page)


if __name__ == "__main__":
    main()
