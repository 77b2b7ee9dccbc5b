"""Make the files beside this one anew: what the real libraries make of, and read in, folders of `wb.quantize`.

    python -m tests.quantizing.make FOLDER [gptqmodel] [compressed-tensors]

gptqmodel: GPTQ and AWQ of a small model by the real library, which is fetched as `wb.quantize` does; the embedding,
which they leave alone, is left out of the files. compressed-tensors (pip install "compressed-tensors==0.20.0"): each
matrix that the library decompresses is held against our reading of it; the hash of the folder is noted, and how
transformers loads it. Run once; the tests read what it wrote.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import workbench as wb
from tests import tiny
from workbench.checkpoint import Checkpoint

RECORDED = Path(__file__).parent
WORDS = ("the", "cat", "sat", "in", "a", "hat", "then", "it", "hid", "attic", "with", "tin", "hen", "heat", "other")
UP, GATE, DOWN = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate", "down"))
CALIBRATED = {
    "gptq": ("GPTQ-4bit-g32", {}),
    "gptq-mixed": ("GPTQ-4bit-g64", {UP: "INT8-g32", GATE: "INT8-g32", DOWN: "BF16"}),
    "awq": ("AWQ-4bit-g32", {}),
    "awq-in-part": ("AWQ-4bit-g32", {DOWN: "BF16"}),
}
ROUNDED = {
    **{scheme: (scheme, {}) for scheme in ("FP8", "FP8-block", "W8A8", "INT8", "INT8-g32", "INT4", "INT4-g128")},
    "mixed": ("INT4", {UP: "INT8", GATE: "INT8", DOWN: "FP8"}),
    "8 bits mixed": ("FP8", {UP: "INT8-g128", GATE: "INT8-g128", DOWN: "INT8-row"}),
    "in part": ("INT4", {DOWN: "BF16"}),
}


def small(folder: Path) -> Checkpoint:
    """What is calibrated: one layer of 128."""
    return wb.load(tiny.folder(folder, tiny.weights(128, 1, intermediate=128)))


def text() -> str:
    random = np.random.default_rng(0)
    return " ".join(random.choice(WORDS, 6000))


def by_gptqmodel(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as scratch:
        model = small(Path(scratch) / "source")
        for name, (scheme, overrides) in CALIBRATED.items():
            made = wb.quantize(model, scheme, text(), to=Path(scratch) / name, overrides=overrides)
            tensors = load_file(made.path / "model.safetensors")
            kept = {key: values for key, values in tensors.items() if "embed_tokens" not in key}
            save_file(kept, folder / f"{name}.safetensors")
            config = json.loads((made.path / "config.json").read_text())
            (folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


def by_compressed_tensors(folder: Path) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = wb.load(tiny.folder(Path(scratch) / "source", tiny.weights()))
        for name, (scheme, overrides) in ROUNDED.items():
            made = wb.quantize(model, scheme, to=Path(scratch) / name, overrides=overrides)
            check_decompressed(made.path)
            found[name] = {"digest": digest(made.path), "transformers": loads_in_transformers(made.path)}
    (folder / "compressed-tensors.json").write_text(json.dumps(found, indent=1) + "\n")


def check_decompressed(folder: Path) -> None:
    """Hold every matrix that the library decompresses, by the scheme that it finds for it, against our reading."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import is_match
    from safetensors.torch import load_file

    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(said)
    tensors, opened = load_file(folder / "model.safetensors"), wb.load(folder)
    linear = torch.nn.Linear(1, 1, device="meta")
    for info in opened.matrices:
        if info.layer is None:
            continue  # an embedding is no Linear
        module = info.name.removesuffix(".weight")
        groups = config.config_groups.values()
        schemes = [group for group in groups if is_match(module, linear, group.targets, config.ignore)]
        assert len(schemes) == (f"{module}.weight_scale" in tensors), (module, schemes)
        for scheme in schemes:
            parts = {key.rpartition(".")[2]: values for key, values in tensors.items() if key.startswith(f"{module}.")}
            theirs = BaseCompressor.get_value_from_registry(scheme.format).decompress(parts, scheme)["weight"]
            ours = torch.from_numpy(opened.read(info.name))
            assert torch.equal(theirs, ours.to(theirs.dtype)), module  # it multiplies in the type of the scales


def loads_in_transformers(folder: Path) -> dict[str, bool]:
    """Whether transformers, by default and when it is told to decode at once, gives the weights that we read."""
    import torch
    import transformers

    answers = {}
    for decoded in (False, True):
        options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if decoded else {}
        try:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
            loaded(torch.arange(10, 20)[None])  # by default it decodes in the first pass
            weights, opened = loaded.state_dict(), wb.load(folder)
            pairs = [(torch.from_numpy(opened.read(info.name)), weights[info.name]) for info in opened.matrices]
            right = all(torch.allclose(ours, theirs.float(), rtol=2**-11) for ours, theirs in pairs)
        except RuntimeError as reason:
            right = False
            print(folder.name, decoded, reason)
        answers["decoded" if decoded else "by default"] = right
    return answers


def digest(folder: Path) -> str:
    """Of the weights and of what config.json says of them, but for the library's version."""
    said = json.loads((folder / "config.json").read_text())["quantization_config"] | {"version": None}
    settings = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256((folder / "model.safetensors").read_bytes() + settings).hexdigest()


MAKERS = {"gptqmodel": by_gptqmodel, "compressed-tensors": by_compressed_tensors}


def main(folder: Path, libraries: list[str]) -> None:
    for library in libraries or MAKERS:
        MAKERS[library](folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
