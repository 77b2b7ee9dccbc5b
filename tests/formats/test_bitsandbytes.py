"""NF4, FP4 and LLM.int8 against the layers that bitsandbytes puts into a model."""

from __future__ import annotations

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from tests.formats import material
from workbench import formats

torch.set_num_threads(1)
SHAPES = [(4, 128), (3, 96), (5, 31), (1, 1), (64, 66)]


def linear4bit(weights: np.ndarray, kind: str) -> bnb.nn.Linear4bit:
    rows, cols = weights.shape
    layer = bnb.nn.Linear4bit(cols, rows, bias=False, quant_type=kind, compress_statistics=False)
    layer.weight = bnb.nn.Params4bit(torch.from_numpy(weights), False, quant_type=kind, compress_statistics=False)
    return layer.to("cpu")


def linear8bit(weights: np.ndarray) -> bnb.nn.Linear8bitLt:
    rows, cols = weights.shape
    layer = bnb.nn.Linear8bitLt(cols, rows, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(torch.from_numpy(weights), False, has_fp16_weights=False)
    return layer.to("cpu")


@pytest.mark.parametrize("name", ["NF4", "FP4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bits_are_stored_as_in_a_linear_layer(name: str, shape: tuple[int, int]):
    for what, weights in material.matrices(*shape):
        layer = linear4bit(weights, name.lower())
        encoded = formats.get(name).encode(weights)
        assert np.array_equal(encoded.parts["codes"], layer.weight.data.numpy().ravel()), what
        assert np.array_equal(encoded.parts["absmax"], layer.weight.quant_state.absmax.numpy()), what
        assert encoded.nbytes == layer.weight.nbytes + layer.weight.quant_state.absmax.nbytes


@pytest.mark.parametrize("name", ["NF4", "FP4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bits_decode_to_the_code_times_the_blocks_maximum(name: str, shape: tuple[int, int]):
    values = bnb.functional.get_4bit_type(name.lower(), device="cpu").numpy()
    for what, weights in material.matrices(*shape):
        encoded = formats.get(name).encode(weights)
        codes = np.stack([encoded.parts["codes"] >> 4, encoded.parts["codes"] & 15], axis=1).ravel()[: weights.size]
        plain = values[codes] * np.repeat(encoded.parts["absmax"], 64)[: weights.size]
        np.testing.assert_array_equal(formats.get(name).decode(encoded), plain.reshape(shape), what)


@pytest.mark.parametrize("name", ["NF4", "FP4"])
def test_a_layer_multiplies_with_the_decoded_weights(name: str):
    weights = dict(material.matrices(16, 128))["bell curve"]
    layer = linear4bit(weights, name.lower())
    seen = layer(torch.eye(128)).detach().numpy().T
    np.testing.assert_allclose(seen, formats.get(name).roundtrip(weights), rtol=0.01, atol=1e-6)  # a bfloat16 kernel


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_stored_as_in_a_linear_layer(shape: tuple[int, int]):
    for what, weights in material.matrices(*shape):
        if not weights.astype(np.float16).any(axis=1).all():
            continue  # for a row that is zero in float16 the library's codes are those of NaN, times a scale of zero
        layer = linear8bit(weights)
        encoded = formats.get("LLM.int8").encode(weights)
        assert np.array_equal(encoded.parts["codes"], layer.weight.CB.numpy()), what
        assert np.array_equal(encoded.parts["absmax"], layer.weight.SCB.numpy()), what
        assert encoded.nbytes == layer.weight.CB.nbytes + layer.weight.SCB.nbytes


def test_int8_decodes_to_the_code_times_the_rows_maximum_over_127():
    for what, weights in material.matrices(3, 96):
        encoded = formats.get("LLM.int8").encode(weights)
        plain = encoded.parts["codes"] * (encoded.parts["absmax"][:, None].astype(np.float64) / 127)
        np.testing.assert_allclose(formats.get("LLM.int8").decode(encoded), plain, rtol=1e-6, err_msg=what)


def test_weights_that_are_read_only_are_stored_without_a_warning(recwarn: pytest.WarningsRecorder):
    weights = np.ones((2, 64), np.float32)
    weights.setflags(write=False)
    for name in ("NF4", "FP4", "LLM.int8"):
        np.testing.assert_allclose(formats.get(name).roundtrip(weights), 1, rtol=1e-6)
    assert not list(recwarn)
