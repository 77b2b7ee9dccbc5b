"""What only an NVIDIA GPU can show: the same figures as on a processor, sooner; and its libraries against our reading.

    python -m benchmarks.gpu [equal] [seven] [bitsandbytes] [jobs] [exllamav2] [--model demo] [--text FILE]

equal         error table, card, plan and KL of one model on the processor and on the GPU: how far they differ, and
              how long they take;
seven         a card of a random Llama of seven billion weights in bfloat16: seconds and peak memory;
bitsandbytes  its CUDA kernels in NF4 and LLM.int8: logits against our decoded weights, tokens per second and memory
              against bfloat16; and `wb.memory` against PyTorch's allocator and nvidia-smi;
jobs          a cancelled job gives its memory back, and running out of it is said;
exllamav2     its extension compiled, a conversion to EXL2 at 4 bits, its scores and speed, and the weights that our
              reader decodes of the same folder on the processor against what it computes with them.

Each prints a table; a row that misses what it should is marked, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sensitivity import halves

SEVEN = {
    **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "pad_token_id": 0},
}
FORMATS = ["Q4_0", "Q5_0", "Q8_0"]
MB = 1e6


class Table:
    """Rows of a figure, what was found, and what it should be."""

    def __init__(self, title: str) -> None:
        self.missed = 0
        print(f"\n### {title}\n\n| figure | found | should be |\n|---|---|---|", flush=True)

    def row(self, figure: str, found: str, should: str = "", good: bool = True) -> None:
        self.missed += not good
        print(f"| {figure} | {found} | {should}{'' if good else ' (missed)'} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    options.add_argument("--model", default="demo")
    options.add_argument("--text", type=Path, default=os.environ.get("WORKBENCH_WIKITEXT"))
    options.add_argument("--tokens", type=int, default=1024, help="of the card that is made on both")
    options.add_argument("--device", default="cuda", help="cpu: to see that the script works")
    options.add_argument("--layers", type=int, default=32, help="of the random Llama")
    chosen = options.parse_args()
    import torch

    if chosen.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        print(f"{found.name}, {found.total_memory / 1e9:.0f} GB; PyTorch {torch.__version__}; {os.cpu_count()} cores")
    raise SystemExit(min(1, sum(PARTS[part](chosen).missed for part in chosen.parts)))


# --- the same figures ------------------------------------------------------------------------------


def equal(chosen: argparse.Namespace) -> Table:
    import workbench as wb

    model = wb.load(chosen.model)
    own, fresh = halves(chosen.text)
    table = Table(f"{model.name} on the processor and on the GPU, float32")
    cards, plans, kls = [], [], []
    for device in ("cpu", chosen.device):
        began = time.perf_counter()
        reset(chosen.device)
        cards.append(wb.sensitivity(model, own, tokens=chosen.tokens, device=device))
        table.row(f"card of {chosen.tokens} tokens, {device}", f"{time.perf_counter() - began:.1f} s{most(device)}")
        plans.append(wb.plan(cards[-1], FORMATS, bits=5.0))
        began = time.perf_counter()
        reset(chosen.device)
        kls.append(wb.compare(model, plans[0], fresh, tokens=2048, device=device, dtype="float32").kl.value)
        table.row(f"KL of 2,048 tokens, {device}", f"{time.perf_counter() - began:.1f} s{most(device)}")
    one, other = cards
    sums = np.array([[card.matrices[name].total for name in one.matrices] for card in cards])
    shares = np.abs(sums[1] / sums[0] - 1)
    table.row(
        "Fisher information of a matrix, largest difference", f"{shares.max():.2%}", "below 2 %", shares.max() < 0.02
    )
    anchors = [np.array([each.kl for each in card.measured]) for card in cards]
    apart = np.abs(anchors[1] / anchors[0] - 1).max()
    table.row("exact KL of the card, largest difference", f"{apart:.2%}", "below 2 %", apart < 0.02)
    curve = abs(other.curve.kl(0.1) / one.curve.kl(0.1) - 1)
    table.row("prediction at a sum of 0.1 nats", f"{curve:.2%}", "below 2 %", curve < 0.02)
    same = np.mean([plans[0].formats[name] == plans[1].formats[name] for name in plans[0].formats])
    table.row("matrices with the same format in both plans", f"{same:.1%}", "at least 95 %", same >= 0.95)
    gap = abs(plans[1].predicted.kl / plans[0].predicted.kl - 1)
    table.row("predicted KL of the plans", f"{gap:.2%}", "below 2 %", gap < 0.02)
    table.row(
        "measured KL of the same plan", f"{abs(kls[1] / kls[0] - 1):.3%}", "below 1 %", abs(kls[1] / kls[0] - 1) < 0.01
    )
    errors_alike(model, own, chosen, table)
    return table


def errors_alike(model: Any, text: str, chosen: argparse.Namespace, table: Table) -> None:
    """The error table with inputs that were seen on the GPU, by default, and with those seen on the processor."""
    from unittest.mock import patch

    import torch

    import workbench as wb

    frames = []
    for there in (True, False):
        began = time.perf_counter()
        seen = patch.object(torch.cuda, "is_available", lambda there=there: there and chosen.device == "cuda")
        with seen, tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, WORKBENCH_CACHE=cache):
            frames.append(wb.errors(model, FORMATS[:1], text, tokens=512).frame)
        table.row(
            f"error table, inputs of the {'GPU' if there else 'processor'}", f"{time.perf_counter() - began:.1f} s"
        )
    numbers = [frame.select_dtypes("float").to_numpy() for frame in frames]
    gap = float(np.nanmax(np.abs(numbers[0] / numbers[1] - 1)))
    table.row("error table, largest difference", f"{gap:.2%}", "below 2 %", gap < 0.02)


# --- seven billion weights ---------------------------------------------------------------------------


def seven(chosen: argparse.Namespace) -> Table:
    import workbench as wb

    text, _ = halves(chosen.text)
    with tempfile.TemporaryDirectory() as name:
        folder = random_llama(Path(name) / "seven", chosen)
        model = wb.load(folder)
        weights, block = model.nbytes, sum(info.nbytes for info in model.matrices if info.layer == 0)
        table = Table(f"a card of {model.params / 1e9:.2f}B weights, bfloat16, 5,120 tokens")
        reset(chosen.device)
        before = held(chosen.device)
        began = time.perf_counter()
        card = wb.sensitivity(model, text, tokens=5120, dtype="bfloat16", device=chosen.device)
        seconds, peak = time.perf_counter() - began, peaked(chosen.device) - before
    table.row("seconds, all from the files on", f"{seconds:.1f} s", "under 60 s", seconds < 60)
    bound = 1.3 * weights + block
    table.row(
        "peak memory over the weights",
        f"{peak / weights:.3f} ({peak / MB:,.0f} of {weights / MB:,.0f} MB)",
        f"below 1.3 and a block of gradients ({bound / weights:.3f})",
        peak < bound,
    )
    table.row("forward passes", f"{card.provenance['forwards']:.2f}", "at most 6", card.provenance["forwards"] <= 6)
    return table


def random_llama(folder: Path, chosen: argparse.Namespace) -> Path:
    """Write a model of seven billion random weights, with the demo's tokenizer."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import workbench as wb

    demo = wb.load(chosen.model)
    config = AutoConfig.for_model(
        **{**SEVEN, "num_hidden_layers": chosen.layers, "vocab_size": demo.config["vocab_size"]}
    )
    with torch.device(chosen.device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(folder)
    for file in demo.hf_folder().glob("*token*"):
        shutil.copy(file, folder)
    return folder


# --- bitsandbytes --------------------------------------------------------------------------------------


def bitsandbytes(chosen: argparse.Namespace) -> Table:
    import torch

    import workbench as wb

    model = wb.load(chosen.model)
    _, text = halves(chosen.text)
    table = Table(f"{model.name} in bitsandbytes' layers, bfloat16")
    speeds = {}
    for format in (None, "NF4", "LLM.int8"):
        reset(chosen.device)
        before, smi = held(chosen.device), in_use()
        chat = wb.run(model, format, dtype="bfloat16", device=chosen.device)
        weights, seen = held(chosen.device) - before, in_use() - smi
        chat("Count from one to ten.", max_tokens=32)
        reply = chat("Tell me a long story about a river.", max_tokens=256)
        speeds[format] = reply.tokens_per_second
        fit = wb.memory(
            model,
            format or "BF16",
            dtype="bf16",
            engine="bitsandbytes" if format else "transformers",
            device=chosen.device,
        )
        chat.close()
        share = fit.weights / weights - 1
        what = format or "bfloat16"
        table.row(
            f"weights of {what}, wb.memory to PyTorch's",
            f"{share:+.2%} of {weights / MB:.0f} MB",
            "within 5 %",
            abs(share) < 0.05,
        )
        table.row(f"weights of {what} by nvidia-smi", f"{seen / MB:.0f} MB")
        table.row(
            f"{what}, tokens per second", f"{speeds[format]:.1f} ({speeds[format] / speeds[None]:.2f} of bfloat16)"
        )
    for format in ("NF4", "LLM.int8"):
        found = wb.compare(
            wb.run(model, format, decoded=True, dtype="bfloat16", device=chosen.device),
            wb.run(model, format, dtype="bfloat16", device=chosen.device),
            text,
            tokens=2048,
        )
        lost = wb.compare(model, format, text, tokens=2048, dtype="bfloat16", device=chosen.device).kl.value
        share = found.kl.value / lost
        table.row(
            f"KL of {format}'s kernels to our decoded weights",
            f"{found.kl.value:.5f}, {share:.1%} of what the format costs ({lost:.4f})",
        )
    torch.cuda.empty_cache()
    return table


# --- the panels' jobs ------------------------------------------------------------------------------------


def jobs(chosen: argparse.Namespace) -> Table:
    import torch

    import workbench as wb
    from workbench.measure.sensitivity import sensitivity_steps
    from workbench.panels import Session

    model = wb.load(chosen.model)
    text, _ = halves(chosen.text)
    table = Table("the panels' job runner")
    session = Session()
    start = settled(chosen.device)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["WORKBENCH_CACHE"] = cache
        session.jobs.start(
            "a card", sensitivity_steps(model, text, tokens=20480, device=chosen.device), lambda card: None
        )
        while session.jobs.status.busy and held(chosen.device) < start + model.params:
            time.sleep(0.05)
        time.sleep(1.0)
        amid = held(chosen.device)
        began = time.perf_counter()
        session.jobs.cancel()
        session.jobs.wait()
        seconds, state = time.perf_counter() - began, session.jobs.status.state
        after = settled(chosen.device)
    table.row(
        "cancel", f"{state}, after {seconds:.2f} s", "cancelled within a second", state == "cancelled" and seconds < 1
    )
    share = abs(after - start) / max(start, amid - start)
    table.row(
        "memory held before, amid, after",
        f"{start / MB:.1f}, {amid / MB:.1f}, {after / MB:.1f} MB",
        "back within 1 %",
        share < 0.01,
    )
    if chosen.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(free - 300_000_000, dtype=torch.uint8, device="cuda")
        said = "nothing"
        try:
            wb.run(model, dtype="float32", device="cuda", anyway=True)("Hello", max_tokens=4)
        except wb.WorkbenchError as error:
            said = f"{type(error).__name__}: {str(error)[:150]}"
        del hog
        freed = settled(chosen.device)
        table.row("out of memory", said, "said by name", "DoesNotFit" in said)
        table.row("memory held after it", f"{freed / MB:.1f} MB", "back within 1 %", abs(freed - start) < 0.01 * amid)
    return table


# --- memory ------------------------------------------------------------------------------------------------


def held(device: str) -> int:
    """Bytes that PyTorch's allocator has handed out; on a processor, those of the process."""
    import torch

    from workbench.engines.transformers import memory_held

    return memory_held(torch.device(device))


def settled(device: str, seconds: float = 5.0) -> int:
    """`held`, once what a job leaves behind is gone."""
    end = time.monotonic() + seconds
    least = held(device)
    while time.monotonic() < end:
        gc.collect()
        least = min(least, held(device))
        time.sleep(0.2)
    return held(device)


def reset(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaked(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def most(device: str) -> str:
    return f", at most {peaked(device) / MB:,.0f} MB" if device == "cuda" else ""


def in_use() -> int:
    """Bytes that nvidia-smi says are in use; 0 where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) << 20
    except (OSError, subprocess.CalledProcessError):
        return 0


def exllamav2(chosen: argparse.Namespace) -> Table:
    """EXL2 by the library itself, against our reading of what it wrote."""
    import workbench as wb
    from workbench.engines import exllamav2_library

    table = Table("ExLlamaV2")
    began = time.perf_counter()
    exllamav2_library.library()
    table.row("its extension, compiled or found", f"{time.perf_counter() - began:.0f} s")
    model, text = wb.load(chosen.model), halves(chosen.text)[1]
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        made = wb.quantize(model, "EXL2-4.0bpw", to=Path(scratch) / "exl2")
        layers = [info for info in wb.load(made.path).matrices if info.layer is not None]
        bits = 8 * sum(info.nbytes for info in layers) / sum(info.params for info in layers)
        table.row("conversion at 4.0 bits", f"{time.perf_counter() - began:.0f} s, {bits:.2f} bits", "3.9 to 4.2")
        decoded = wb.compare(model, wb.load(made.path), text, tokens=1024, context=256)
        for kv in ("f16", "q8", "q6", "q4"):
            with wb.run(made.path, engine="exllamav2", kv=kv) as engine:
                whole = wb.compare(model, engine, text, tokens=1024, context=256)
                reply = engine("Write a long story about a lighthouse.", max_tokens=256)
                grown = (engine.memory_after - engine.memory_before) / MB
                speed = f"{reply.prompt_per_second:.0f} and {reply.tokens_per_second:.0f} tokens/s"
                found = f"KL {whole.kl}, prompt and reply {speed}, {grown:.0f} MB"
                near = abs(whole.kl.value - decoded.kl.value) < 0.1 * decoded.kl.value + 0.002
                should = f"within 10 % of decoded weights, {decoded.kl}" if kv in ("f16", "q8") else ""
                table.row(f"engine, cache in {kv}", found, should, near or not should)
                if kv == "f16":
                    off, count = decoded_apart(engine, wb.load(made.path))
                    found, should = f"{off:.2g} of the largest, {count} matrices", "below 0.002, all but the embedding"
                    table.row(
                        "greatest difference of a weight to our reader's", found, should, off < 0.002 and count > 0
                    )
                    ids = np.arange(64)
                    with wb.run(made.path, dtype="float32", device="cpu") as ours:
                        off = float(np.abs(engine.logits(ids) - ours.logits(ids)).max())
                    table.row(
                        "greatest difference of a logit to our decoded weights", f"{off:.3g}", "below 0.5", off < 0.5
                    )
    return table


def decoded_apart(engine: Any, folder: Any) -> tuple[float, int]:
    """The weights that the library makes of a folder against those that our reader decodes on the processor.

    Returns the greatest difference, as a share of its matrix's largest weight, and the number of matrices. The
    library's are float16; a step of 8 bits is 0.008 of the largest.
    """
    worst, count = 0.0, 0
    for info in folder.matrices:
        module = engine._loaded.model.modules_dict.get(info.name.removesuffix(".weight"))
        if module is None or not hasattr(module, "get_weight_tensor_dq"):
            continue
        theirs = module.get_weight_tensor_dq().T.float().cpu().numpy()[: info.shape[0]]  # its columns are padded
        ours = folder.read(info.name)
        worst, count = max(worst, float(np.abs(theirs - ours).max() / np.abs(ours).max())), count + 1
    return worst, count


PARTS = {"equal": equal, "seven": seven, "bitsandbytes": bitsandbytes, "jobs": jobs, "exllamav2": exllamav2}

if __name__ == "__main__":
    main()
