"""Keys and values of transformers' models in llama.cpp's types."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

import workbench as wb
from tests import tiny
from tests.engines import models
from workbench import formats
from workbench.engines import build
from workbench.engines.generate import Decoding
from workbench.engines.keeping import cache_of, turn_of

IDS = list(range(10, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return wb.load(tiny.folder(tmp_path_factory.mktemp("model") / "tiny", tiny.weights(), dtype="F32"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return build.model_of(checkpoint, dtype="float32", device="cpu")


def test_what_is_attended_to_is_what_the_formats_give_back(model):
    random = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 5, 64, generator=random) for _ in range(2))
    cache = cache_of(model, ("q8_0", "q4_0"))["past_key_values"]
    for begin in (0, 3):  # one after the other, as tokens come
        part = slice(begin, begin + 3)
        found = cache.update(keys[:, :, part], values[:, :, part], 0)
    turn = scipy.linalg.hadamard(64) / 8
    for states, name, each in zip((keys, values), ("Q8_0", "Q4_0"), found, strict=True):
        turned = (states.numpy() @ turn).astype(np.float32).reshape(-1, 64)
        expected = (formats.get(name).roundtrip(turned) @ turn).reshape(states.shape)
        np.testing.assert_allclose(each.numpy(), expected, atol=2e-2)  # a value between two steps may fall either way
        assert np.mean(np.abs(each.numpy() - expected) < 1e-5) > 0.9
        assert 0 < np.abs(each.numpy() - states.numpy()).mean() < 0.15


def test_heads_are_turned_as_llama_cpp_turns_them():
    assert [turn_of("q4_0", what, 128) for what in ("keys", "values")] == [128, 64]
    assert [turn_of(*each) for each in (("q4_0", "keys", 96), ("f16", "keys", 64), ("q8_0", "keys", 192))] == [1, 1, 64]


def test_a_text_read_at_once_is_a_text_read_token_by_token(model):
    kept = ("q4_0", "q4_1")
    with torch.inference_mode():
        at_once = model(input_ids=torch.tensor([IDS]), **cache_of(model, kept)).logits[0]
        plain = model(input_ids=torch.tensor([IDS])).logits[0]
    decoding = Decoding(model, IDS[:1], cache_of(model, kept))
    for number, following in enumerate([*IDS[1:], 0]):
        torch.testing.assert_close(decoding.logits(), at_once[number], rtol=1e-3, atol=1e-3)
        decoding.append(following)
    assert (at_once - plain).abs().max() > 0.01


def test_an_engine_answers_and_scores_with_them(checkpoint):
    with (
        wb.run(checkpoint, dtype="float32", device="cpu") as plain,
        wb.run(checkpoint, dtype="float32", device="cpu", kv="f32") as same,
        wb.run(checkpoint, dtype="float32", device="cpu", kv=("q8_0", "q4_0")) as fewer,
    ):
        np.testing.assert_allclose(same.logits(IDS), plain.logits(IDS), rtol=1e-4, atol=1e-5)
        assert np.abs(fewer.logits(IDS) - plain.logits(IDS)).max() > 0.01
        assert fewer.name == "tiny kv q8_0/q4_0"
        assert "keys and values rounded to q8_0 and q4_0, whose memory this does not show" in fewer.what
        assert len(fewer("hello", max_tokens=5).tokens) == 5
        assert same("hello", max_tokens=5).text == plain("hello", max_tokens=5).text


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gemma3", "phi3", "mixtral", "gpt_neox"])
def test_models_of_other_architectures_keep_them_too(tmp_path, architecture):
    grown = {"head_dim": 32} if architecture not in ("phi3", "gpt_neox") else {"hidden_size": 128, "head_dim": 32}
    checkpoint = models.opened(tmp_path / "model", architecture, **grown)
    with (
        wb.run(checkpoint, dtype="float32", device="cpu") as plain,
        wb.run(checkpoint, dtype="float32", device="cpu", kv="q8_0") as fewer,
    ):
        off = np.abs(fewer.logits(IDS) - plain.logits(IDS)).max()
        assert 0 < off < 0.1 * np.abs(plain.logits(IDS)).max()


@pytest.mark.parametrize(
    ("kv", "said"),
    [
        ("q9_9", "'q9_9'"),
        ("fp8", "'fp8'"),
        (("f16",) * 3, "one type, or two"),
        ("q8_0", "this model's heads are 16 wide"),
        (("f16", "q4_0"), "values as q4_0 come in blocks of 32"),
    ],
)
def test_types_that_cannot_be_are_refused_before_a_model_is_built(tmp_path, monkeypatch, kv, said):
    checkpoint = models.opened(tmp_path / "model")
    monkeypatch.setattr(build, "model_of_steps", lambda *_, **__: pytest.fail("a model was built"))
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.run(checkpoint, kv=kv)


def test_a_model_without_keys_and_values_says_so(tmp_path):
    with pytest.raises(wb.WorkbenchError, match="keeps no keys and values"):
        wb.run(models.opened(tmp_path / "model", "mamba"), kv="f16")
