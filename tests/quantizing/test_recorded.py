"""Folders that the real libraries made or read once, recorded by make.py: ours are still those, and theirs open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import workbench as wb
from tests import tiny
from tests.quantizing import make
from workbench.checkpoint import Checkpoint

KNOWN = json.loads((make.RECORDED / "compressed-tensors.json").read_text())


@pytest.mark.parametrize("name", make.ROUNDED)
def test_folders_are_those_that_compressed_tensors_decompressed_to_the_same_weights(tmp_path: Path, name: str) -> None:
    model = wb.load(tiny.folder(tmp_path / "source", tiny.weights()))
    scheme, overrides = make.ROUNDED[name]
    made = wb.quantize(model, scheme, to=tmp_path / "made", overrides=overrides)
    assert make.digest(made.path) == KNOWN[name]["digest"]


def test_one_way_or_another_transformers_loads_every_folder_that_is_not_a_mix_with_int4() -> None:
    assert {name for name, each in KNOWN.items() if not any(each["transformers"].values())} == {"mixed"}


def recorded(folder: Path, name: str) -> Checkpoint:
    """What gptqmodel made, with the embedding that it left alone put back."""
    source = tiny.weights(128, 1, intermediate=128)
    folder.mkdir()
    embedding = {"model.embed_tokens.weight": source["model.embed_tokens.weight"].astype(tiny.DTYPES["BF16"])}
    save_file(embedding | load_file(make.RECORDED / f"{name}.safetensors"), folder / "model.safetensors")
    (folder / "config.json").write_text((make.RECORDED / f"{name}.json").read_text())
    tiny.write_tokenizer(folder)
    return wb.load(folder)


SCHEMES = {  # role -> scheme, of the matrices that are not as the scheme says
    "gptq": ("GPTQ 4-bit g32", {}),
    "gptq-mixed": ("GPTQ 4-bit g64", {"up_proj": "GPTQ 8-bit g32", "gate_proj": "GPTQ 8-bit g32", "down_proj": "BF16"}),
    "awq": ("AWQ 4-bit g32", {}),
    "awq-in-part": ("AWQ 4-bit g32", {"down_proj": "BF16"}),
}


@pytest.mark.parametrize("name", make.CALIBRATED)
def test_what_gptqmodel_makes_of_our_settings_is_what_was_asked_for(tmp_path: Path, name: str) -> None:
    made = recorded(tmp_path / "made", name)
    most, others = SCHEMES[name]
    found = {info.role: info.encoding for info in made.matrices if info.layer is not None}
    assert found == {role: others.get(role, most) for role in found}
    assert str(tmp_path.anchor + "tmp") not in (make.RECORDED / f"{name}.json").read_text()


@pytest.mark.parametrize("name", make.CALIBRATED)
def test_it_is_closer_to_the_original_than_rounding(tmp_path: Path, name: str) -> None:
    original = make.small(tmp_path / "source")
    _, overrides = make.CALIBRATED[name]
    rounded = {info.name: "INT4-g128" for info in original.matrices if info.layer is not None} | overrides
    text = make.text()[:6000]
    loss = wb.compare(original, recorded(tmp_path / "made", name), text, context=128, tokens=1024).kl.value
    assert loss < wb.compare(original, rounded, text, context=128, tokens=1024).kl.value


def test_gptq_leaves_a_matrix_alone_and_awq_moves_its_scales_only(tmp_path: Path) -> None:
    original = make.small(tmp_path / "source")
    mixed = recorded(tmp_path / "gptq", "gptq-mixed")
    assert np.array_equal(mixed.read(make.DOWN), original.read(make.DOWN))
    error = mixed.read(make.UP) - original.read(make.UP)
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(original.read(make.UP))  # 8 bits
    said = json.loads((make.RECORDED / "awq-in-part.json").read_text())["quantization_config"]
    assert said["modules_to_not_convert"] == [make.DOWN.removesuffix(".weight")]
