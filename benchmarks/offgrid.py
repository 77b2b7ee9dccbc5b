"""The demo model off the grid its weights were published on: other weights, the same function.

    python -m benchmarks.offgrid MODEL FOLDER

The demo comes in Q4_1, and any 4-bit format near that grid looks better on it than on other models. Here
each channel between two matrices is multiplied on one side and divided on the other, and channels change places, so
that no block of weights keeps a common step:

* what a norm feeds: its scale is divided by s, the columns of the matrices it feeds are multiplied;
* between up and down, and between v and o: rows are multiplied by s, columns divided;
* the channels of the residual stream and of each MLP are permuted.

For the Llama family. `differ` checks in float64 that the logits stay the same.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

SIGMA = 0.3  # of ln s
MOST = 1e-4  # by which a logit may differ


def offgrid(model, folder: Path, seed: int = 0) -> Path:
    """Write the model, rescaled, as a folder of float32 safetensors; returns the folder."""
    from safetensors.numpy import save_file

    weights = dict(model.to_hf(name, model.read(name)) for name in model.tensors)
    moved = rescaled(weights, model.config, np.random.default_rng(seed))
    work = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(model.hf_folder(), work, ignore=shutil.ignore_patterns("*.safetensors*", "*.gguf", "*.bin"))
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in moved.items()}
    save_file(arrays, work / "model.safetensors", metadata={"format": "pt"})
    return work.rename(folder)


def rescaled(weights: dict, config: dict, random: np.random.Generator) -> dict:
    """Parameters by transformers' names -> others of the same function."""
    made = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    hidden = len(made["model.norm.weight"])
    residual = random.permutation(hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        q, k, v, o = (f"{at}self_attn.{part}_proj.weight" for part in "qkvo")
        gate, up, down = (f"{at}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        for norm, fed in (
            (f"{at}input_layernorm.weight", (q, k, v)),
            (f"{at}post_attention_layernorm.weight", (gate, up)),
        ):
            s = scales(random, hidden)
            made[norm] = (made[norm] / s)[residual]
            for name in fed:
                made[name] = (made[name] * s)[:, residual]
        s = scales(random, len(made[v]))
        made[v] *= s[:, None]
        made[o] /= np.repeat(s.reshape(kv_heads, -1), heads // kv_heads, axis=0).reshape(-1)
        s, order = scales(random, len(made[up])), random.permutation(len(made[up]))
        made[gate], made[up] = made[gate][order], (made[up] * s[:, None])[order]
        made[down] = (made[down] / s)[:, order]
        made[o], made[down] = made[o][residual], made[down][residual]
    made["model.norm.weight"] = made["model.norm.weight"][residual]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in made:
            made[name] = made[name][:, residual]
    return made


def scales(random: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(SIGMA * random.standard_normal(count))


def differ(first, second, tokens: int = 64) -> float:
    """The greatest difference of a logit between two checkpoints on a few random tokens, in float64."""
    import torch

    from workbench.engines import build

    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 20000, (1, tokens)))
    logits = []
    for checkpoint in (first, second):
        with torch.inference_mode():
            logits.append(build.model_of(checkpoint, dtype="float32", device="cpu").double()(input_ids=ids).logits)
    return float((logits[0] - logits[1]).abs().max())


def made_once(model, seed: int = 0):
    """The off-grid checkpoint of a model, from the cache or written there and checked."""
    import workbench as wb
    from workbench import files

    folder = files.cache_dir() / "offgrid" / files.digest(model.fingerprint, seed, SIGMA)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        offgrid(model, folder, seed)
        found = differ(model, wb.load(folder))
        print(f"off-grid model written: the greatest difference of a logit is {found:.1e}")
        if not found < MOST:
            shutil.rmtree(folder)
            raise SystemExit(f"that is more than {MOST:g}")
    return wb.load(folder)


def main() -> None:
    import workbench as wb

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="whatever wb.load takes")
    options.add_argument("folder", type=Path)
    chosen = options.parse_args()
    model = wb.load(chosen.model)
    made = wb.load(offgrid(model, chosen.folder))
    print(f"the greatest difference of a logit is {differ(model, made):.1e}")


if __name__ == "__main__":
    main()
