"""Towards transformers: a GGUF becomes the same model as the folder it was made from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
import transformers

import workbench as wb
from tests import tiny
from workbench.checkpoint import Checkpoint
from workbench.checkpoint.convert import unpermute

Weights = dict[str, np.ndarray]
TEXT = "the hat in a café: 12345 + 67890\n\tdon't — 日本 <|im_start|>user"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def logits(model: Checkpoint) -> np.ndarray:
    """Of transformers' model on 40 tokens, its parameters taken from the checkpoint."""
    config = transformers.AutoConfig.from_pretrained(model.hf_folder(), dtype=torch.float32)
    there = transformers.AutoModelForCausalLM.from_config(config)
    state = dict(model.to_hf(name, model.read(name)) for name in model.tensors)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    there.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in state.items()})
    with torch.no_grad():
        return there.eval()(torch.arange(40)[None] * 5).logits.numpy()


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
def test_a_gguf_computes_what_its_folder_computes(tmp_path: Path, tied: bool) -> None:
    weights = tiny.weights(256, tied=tied)
    folder = wb.load(tiny.folder(tmp_path / "folder", weights, dtype="F32"))
    quantized = wb.load(tiny.gguf(tmp_path / "m.gguf", weights, "F32"))
    assert {quantized.hf_name(name) for name in quantized.tensors} == set(folder.tensors)
    assert np.array_equal(logits(quantized), logits(folder))


def test_llama_cpps_order_of_rows_is_undone(weights: Weights) -> None:
    rows = weights["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(unpermute(tiny.permute(rows, 4), 4), rows)
    assert np.array_equal(unpermute(tiny.permute(rows[:, 0], 4), 4), rows[:, 0])
    assert unpermute(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_gemmas_norms_are_lowered_by_one(tmp_path: Path) -> None:
    writer = library.GGUFWriter(tmp_path / "m.gguf", "gemma2")
    for key, value in {
        "block_count": 1,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "context_length": 64,
    }.items():
        writer.add_uint32(f"gemma2.{key}", value)
    for key in ("head_count", "head_count_kv", "key_length", "value_length"):
        writer.add_uint32(f"gemma2.attention.{key}", 8 if "length" in key else 2)
    writer.add_float32("gemma2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_uint32("gemma2.vocab_size", 32)
    for name in ("post_attention_norm", "ffn_norm", "attn_norm", "post_ffw_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.full(64, 3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = wb.load(tmp_path / "m.gguf")
    found = {name: model.to_hf(name, model.read(name)) for name in model.tensors}
    assert {name: there for name, (there, _) in found.items()} == {
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.0.post_attention_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.pre_feedforward_layernorm.weight",
        "blk.0.post_ffw_norm.weight": "model.layers.0.post_feedforward_layernorm.weight",
    }
    assert all((w == 2).all() for _, w in found.values())


def test_llama_3s_rotary_factors_are_kept(tmp_path: Path) -> None:
    """transformers itself leaves them out when it reads a GGUF: its logits are off by a tenth then."""
    weights = tiny.weights(256)
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16, "rope_theta": 10000.0}
    config = tiny.llama_config(weights) | {"rope_scaling": rope}
    folder = wb.load(tiny.folder(tmp_path / "folder", weights, dtype="F32", config=config))
    factors = {"rope_freqs.weight": np.array(llama_3_factors(rope), np.float32)}
    scaled = wb.load(tiny.gguf(tmp_path / "m.gguf", weights, "F32", others=factors))
    plain = wb.load(tiny.gguf(tmp_path / "plain.gguf", weights, "F32"))
    assert "rope_freqs.weight" in scaled.extras
    expected = logits(folder)
    assert np.abs(logits(scaled) - expected).max() < 1e-5
    assert np.abs(logits(plain) - expected).max() > 1e-2


def llama_3_factors(rope: dict) -> list[float]:
    """As llama.cpp's converter computes them."""
    found = []
    for exponent in range(0, tiny.HEAD_DIM, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (exponent / tiny.HEAD_DIM)
        context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return found


# --- tokenizer and config ----------------------------------------------------------------------


def test_the_tokenizer_of_a_gguf_is_that_of_the_folder(gguf_file: Path, folder: Path) -> None:
    ours, theirs = wb.load(gguf_file).tokenizer, wb.load(folder).tokenizer
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert ours.decode(ours(TEXT).input_ids) == TEXT
    assert (ours.bos_token, ours.eos_token, ours.chat_template) == ("<|im_start|>", "<|im_end|>", tiny.CHAT_TEMPLATE)


def test_the_conversion_is_done_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wb.load(gguf_file).hf_folder()
    assert sorted(file.name for file in made.iterdir()) == [
        *("chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json")
    ]
    assert [each.name for each in made.parent.iterdir()] == [made.name]
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    assert wb.load(gguf_file).hf_folder() == made


def test_the_config_of_a_gguf_is_that_of_the_folder(gguf_file: Path, folder: Path) -> None:
    ours = json.loads((wb.load(gguf_file).hf_folder() / "config.json").read_text())
    theirs = transformers.AutoConfig.from_pretrained(folder).to_dict()
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "tie_word_embeddings"):
        assert ours[key] == theirs[key]
    assert ours["rope_parameters"]["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    assert ours["rms_norm_eps"] == pytest.approx(theirs["rms_norm_eps"])


def test_a_folder_is_its_own(folder: Path) -> None:
    model = wb.load(folder)
    assert model.hf_folder() == folder
    assert [model.hf_name(name) for name in model.tensors] == list(model.tensors)


# --- refused -----------------------------------------------------------------------------------


def gguf_of(file: Path, architecture: str, **numbers: int) -> Checkpoint:
    writer = library.GGUFWriter(file, architecture)
    for key, value in numbers.items():
        writer.add_uint64(f"{architecture}.{key}", value)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wb.load(file)


def test_an_architecture_that_transformers_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        wb.WorkbenchError, match=r"GGUF of the architecture 'rwkv9':(.|\n)*open the model's safetensors"
    ):
        gguf_of(tmp_path / "m.gguf", "rwkv9").hf_folder()


def test_a_layout_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(wb.WorkbenchError, match="only llama, qwen2"):
        gguf_of(tmp_path / "m.gguf", "gpt2", block_count=1).hf_name("blk.0.ffn_up.weight")


def test_a_billion_layers_are_not_built(tmp_path: Path) -> None:
    model = gguf_of(tmp_path / "m.gguf", "llama", block_count=10**9, embedding_length=64)
    with pytest.raises(wb.WorkbenchError, match="it says 1000000000 layers and has 1 tensors"):
        model.hf_name("blk.0.ffn_up.weight")


def test_numbers_that_no_config_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(wb.WorkbenchError, match="transformers cannot take a GGUF"):
        gguf_of(tmp_path / "m.gguf", "llama", block_count=2**64 - 1).hf_folder()


def test_a_folder_without_a_tokenizer_says_which_files_are_missing(tmp_path: Path, weights: Weights) -> None:
    model = wb.load(tiny.folder(tmp_path / "m", weights, tokenizer=False))
    with pytest.raises(wb.WorkbenchError, match=r"check that tokenizer.json and tokenizer_config.json"):
        _ = model.tokenizer
