"""Opening a model: what is found in its headers, in which order, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from workbench.checkpoint import Checkpoint, TensorInfo

Weights = dict[str, np.ndarray]


def test_a_folder_gives_its_config_and_every_tensor(folder: Path, weights: Weights) -> None:
    model = wb.load(folder)
    assert (model.name, model.kind, model.path) == ("tiny", "safetensors", folder)
    assert model.config["hidden_size"] == 256
    assert {name: info.shape for name, info in model.tensors.items()} == {n: w.shape for n, w in weights.items()}
    assert {info.encoding for info in model.tensors.values()} == {"BF16"}
    assert model.params == sum(w.size for w in weights.values())
    assert model.nbytes == 2 * model.params


def test_a_gguf_gives_the_same_model_by_its_own_names(gguf_file: Path, folder: Path) -> None:
    model, same = wb.load(gguf_file), wb.load(folder)
    assert (model.name, model.kind, model.architecture) == ("tiny", "gguf", "llama")
    assert [(i.layer, i.role, i.shape) for i in model.matrices] == [(i.layer, i.role, i.shape) for i in same.matrices]
    assert model.config.pop("rms_norm_eps") == pytest.approx(same.config["rms_norm_eps"])
    assert model.config.items() <= same.config.items()
    assert {"num_hidden_layers", "num_key_value_heads", "vocab_size", "tie_word_embeddings"} <= set(model.config)


def test_shards_are_one_model(tmp_path: Path, weights: Weights, folder: Path) -> None:
    model = wb.load(tiny.folder(tmp_path / "sharded", weights, shards=3))
    assert len({info.file for info in model.tensors.values()}) == 3
    assert list(model.tensors) == list(wb.load(folder).tensors)


def test_a_split_gguf_is_one_model_from_any_of_its_parts(tmp_path: Path, weights: Weights, gguf_file: Path) -> None:
    first = tiny.gguf(tmp_path / "whole.gguf", weights, "F16", split=6)
    last = first.with_name(first.name.replace("00001", "00004"))
    for part in (first, last, tmp_path):
        model = wb.load(part)
        assert (model.name, list(model.tensors)) == ("whole", list(wb.load(gguf_file).tensors))
        assert model.chat_template == tiny.CHAT_TEMPLATE


def test_matrices_come_embedding_first_then_by_layer_attention_first_head_last(tmp_path: Path) -> None:
    model = wb.load(tiny.folder(tmp_path / "m", tiny.weights(256, layers=11, tied=False), shards=2))
    roles = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    expected = [(layer, role) for layer in range(11) for role in roles]
    assert [(i.layer, i.role) for i in model.matrices] == [(None, "embed_tokens"), *expected, (None, "lm_head")]
    assert list(model.tensors)[-1] == "lm_head.weight"


def test_the_head_is_tied_when_it_is_not_stored_or_the_config_says_so(tmp_path: Path, folder: Path) -> None:
    untied = tiny.weights(256, tied=False)
    assert wb.load(folder).tied_head
    assert not wb.load(tiny.folder(tmp_path / "a", untied)).tied_head
    said = tiny.llama_config(untied) | {"tie_word_embeddings": True}
    assert wb.load(tiny.folder(tmp_path / "b", untied, config=said)).tied_head


def test_a_folder_with_one_gguf_opens_it_and_one_with_several_asks_which(tmp_path: Path, weights: Weights) -> None:
    tiny.gguf(tmp_path / "a.gguf", weights, "Q8_0")
    assert wb.load(tmp_path).name == "a"
    tiny.gguf(tmp_path / "b.gguf", weights, "Q4_0")
    with pytest.raises(wb.WorkbenchError, match=r"2 GGUF files\nAllowed: a.gguf, b.gguf"):
        wb.load(tmp_path)


def test_a_gguf_without_the_ending_is_known_by_its_first_bytes(tmp_path: Path, gguf_file: Path) -> None:
    blob = tmp_path / "sha256-0123"  # as Ollama stores them
    blob.write_bytes(gguf_file.read_bytes())
    assert wb.load(blob).kind == "gguf"


def test_version_2_of_gguf_is_read_as_version_3(tmp_path: Path, gguf_file: Path) -> None:
    raw = gguf_file.read_bytes()
    (tmp_path / "two.gguf").write_bytes(raw[:4] + (2).to_bytes(4, "little") + raw[8:])
    assert list(wb.load(tmp_path / "two.gguf").tensors) == list(wb.load(gguf_file).tensors)


def test_opening_reads_headers_only(tmp_path: Path, weights: Weights) -> None:
    made = tiny.folder(tmp_path / "m", weights, dtype="F32")
    file = made / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as sparse:  # a terabyte of nothing after the tensors would stop any reader of values
        sparse.truncate(1 << 40)
    assert wb.load(made).nbytes == sum(w.nbytes for w in weights.values())
    assert header < 10_000


# --- what belongs to a model -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model", "apache-2.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("# No front matter\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("\xff\xfe", None),
    ],
    ids=["named", "quoted", "of its own", "in the text only", "unfinished", "empty", "not text"],
)
def test_the_licence_is_the_model_cards(tmp_path: Path, weights: Weights, card: str, licence: str | None) -> None:
    made = tiny.folder(tmp_path / "m", weights, tokenizer=False)
    (made / "README.md").write_bytes(card.encode("latin-1"))
    assert wb.load(made).licence == licence


def test_the_licence_of_a_gguf_is_in_its_metadata(tmp_path: Path, weights: Weights, gguf_file: Path) -> None:
    assert wb.load(gguf_file).licence is None
    assert wb.load(tiny.gguf(tmp_path / "a.gguf", weights, general__license="mit")).licence == "mit"
    named = {"general__license": "other", "general__license__name": "gemma"}
    assert wb.load(tiny.gguf(tmp_path / "b.gguf", weights, **named)).licence == "gemma"


def test_the_chat_template_is_given_as_it_is(tmp_path: Path, folder: Path, gguf_file: Path, weights: Weights) -> None:
    assert wb.load(folder).chat_template == wb.load(gguf_file).chat_template == tiny.CHAT_TEMPLATE
    made = tiny.folder(tmp_path / "m", weights, tokenizer=False)
    assert wb.load(made).chat_template is None
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (made / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert wb.load(made).chat_template == "yes"
    (made / "chat_template.jinja").write_text("its own file")
    assert wb.load(made).chat_template == "its own file"


def test_a_quantized_reference_says_which_grid_it_lies_on(tmp_path: Path, weights: Weights, folder: Path) -> None:
    (note,) = wb.load(tiny.gguf(tmp_path / "q.gguf", weights, "Q4_1")).notes
    assert note.startswith("The weights are stored as Q4_1 (5 bits per weight) and lie on those grids")
    assert wb.load(folder).notes == ()


def test_the_fingerprint_changes_with_the_files_and_the_config(tmp_path: Path, weights: Weights) -> None:
    made = tiny.folder(tmp_path / "m", weights)
    first = wb.load(made).fingerprint
    assert wb.load(made).fingerprint == first
    tiny.folder(made, weights | {"model.norm.weight": weights["model.norm.weight"] + 1})
    second = wb.load(made).fingerprint
    tiny.folder(made, weights, config=tiny.llama_config(weights) | {"rope_theta": 5.0})
    assert len({first, second, wb.load(made).fingerprint}) == 3


# --- shown -------------------------------------------------------------------------------------

TREE = """\
tiny
safetensors, llama, 1.25 M parameters, 2.5 MB (16 bits per weight), no licence named
  embed_tokens                264 x 256  BF16   135 kB  model.embed_tokens.weight
  layers 0-1, each: 590 k parameters, 1.18 MB
    q_proj                    256 x 256  BF16   131 kB  model.layers.*.self_attn.q_proj.weight
    k_proj                    128 x 256  BF16  65.5 kB  model.layers.*.self_attn.k_proj.weight
    v_proj                    128 x 256  BF16  65.5 kB  model.layers.*.self_attn.v_proj.weight
    o_proj                    256 x 256  BF16   131 kB  model.layers.*.self_attn.o_proj.weight
    gate_proj                 512 x 256  BF16   262 kB  model.layers.*.mlp.gate_proj.weight
    up_proj                   512 x 256  BF16   262 kB  model.layers.*.mlp.up_proj.weight
    down_proj                 256 x 512  BF16   262 kB  model.layers.*.mlp.down_proj.weight
    input_layernorm                 256  BF16    512 B  model.layers.*.input_layernorm.weight
    post_attention_layernorm        256  BF16    512 B  model.layers.*.post_attention_layernorm.weight
  norm                              256  BF16    512 B  model.norm.weight
  lm_head                                               (the embedding serves as the head)"""


def test_the_text_is_a_tree_that_tells_equal_layers_once(folder: Path) -> None:
    assert repr(wb.load(folder)) == TREE


def test_layers_that_differ_are_told_apart(tmp_path: Path) -> None:
    weights = tiny.weights(256, layers=5)
    types = {tiny.gguf_name(name): "Q4_K" for name in weights}
    types["blk.1.ffn_down.weight"] = types["blk.2.ffn_down.weight"] = types["blk.4.ffn_down.weight"] = "Q6_K"
    shown = repr(wb.load(tiny.gguf(tmp_path / "mixed.gguf", weights, types)))
    assert "  layers 0, 3, each: 590 k parameters, 334 kB\n" in shown
    assert "  layers 1-2, 4, each: 590 k parameters, 368 kB\n" in shown


def test_in_a_notebook_the_layers_fold(folder: Path) -> None:
    shown = wb.load(folder)._repr_html_()
    assert "<details><summary>layers 0-1, each: 590 k parameters, 1.18 MB</summary><table>" in shown
    assert shown.count("model.layers.*.mlp.up_proj.weight") == 1


def test_a_thousand_experts_are_one_line_and_a_flood_of_names_is_cut(tmp_path: Path) -> None:
    def made(names: list[str]) -> Checkpoint:
        infos = [TensorInfo(n, (2, 2), "F32", 16, tmp_path, 0, 0, "up_proj") for n in names]
        return Checkpoint("m", tmp_path, "safetensors", {}, {}, {info.name: info for info in infos})

    experts = made([f"model.layers.0.mlp.experts.{n}.up_proj.weight" for n in range(1000)])
    assert "1000 of 2 x 2  F32" in repr(experts)
    assert repr(experts).count("model.layers.*.mlp.experts.*.up_proj.weight") == 1
    flood = made([f"model.layers.0.{n}" for n in range(1000)])
    assert "and 900 more" in repr(flood)
    assert len(repr(flood)) < 20_000
    assert len(flood._repr_html_()) < 50_000


def test_markup_and_control_characters_of_a_file_are_shown_literally(tmp_path: Path, weights: Weights) -> None:
    hostile = "x\0\x1b[2J<img src=x onerror=alert(1)>"
    made = tiny.folder(tmp_path / "<b>m", weights | {f"{hostile}.weight": np.ones((2, 2), np.float32)}, tokenizer=False)
    (made / "README.md").write_text("---\nlicense: <script>alert(1)</script>\n---\n")
    model = wb.load(made)
    assert hostile + ".weight" in model.tensors
    text, markup = repr(model), model._repr_html_()
    assert "\0" not in text + markup
    assert "\x1b" not in text + markup
    assert r"x\x00\x1b[2J<img src=x onerror=alert(1)>" in text
    assert "<img" not in markup
    assert "<script" not in markup
    assert "<b>m" not in markup.replace("<b>&lt;b&gt;m</b>", "")
    assert "&lt;img src=x onerror=alert(1)&gt;" in markup
