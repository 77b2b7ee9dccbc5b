"""Every ggml codec against an independent build of ggml, bit for bit, and against the `gguf` library's decoder."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import gguf
import numpy as np
import pytest

from tests.formats import material, oracle
from workbench import formats
from workbench.exceptions import WorkbenchError
from workbench.formats import ggml, kernels

MADE = [type for type in ggml.TYPES if type.encodable]
RANDOM = np.random.default_rng(0)


def ids(type: ggml.Ggml) -> str:
    return type.name


@pytest.mark.parametrize("type", MADE, ids=ids)
def test_encoding_is_what_ggml_stores(type: ggml.Ggml):
    for rows, cols in material.SHAPES:
        for what, weights in material.matrices(rows, cols):
            cases = [] if type.importance == "required" else [("no importance", None)]
            for how, importance in [*cases, *material.importances(cols)]:
                ours = type.encode(weights, importance).parts["blocks"]
                theirs = oracle.quantize(type.number, weights, importance)
                assert np.array_equal(ours, theirs), f"{what}, {how}, {weights.shape}"


@pytest.mark.parametrize("type", MADE, ids=ids)
def test_whatever_is_encoded_decodes_to_finite_weights(type: ggml.Ggml):
    for what, weights in material.matrices(2, 512):
        for how, importance in material.importances(512):
            assert np.isfinite(type.roundtrip(weights, importance)).all(), f"{what}, {how}"


@pytest.mark.parametrize("type", ggml.TYPES, ids=ids)
def test_decoding_is_what_ggml_and_gguf_read_even_from_random_bytes(type: ggml.Ggml):
    raw = RANDOM.integers(0, 256, (64, oracle.row_size(type.number, 512)), dtype=np.uint8)
    ours = ggml.decode_blocks(type.name, raw, 512)
    np.testing.assert_array_equal(ours, oracle.dequantize(type.name, raw, 512))
    if type.name != "Q1_0":  # the gguf library knows its size only
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type.name])
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_floats_of_a_file_decode_as_gguf_reads_them(name: str):
    kind = gguf.GGMLQuantizationType[name]
    raw = RANDOM.integers(0, 256, (4, 64 * gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(ggml.decode_blocks(name, raw, 64), _as_rows(gguf.quants.dequantize(raw, kind)))


def _as_rows(weights: np.ndarray) -> np.ndarray:
    return weights.reshape(4, 64)


@pytest.mark.parametrize("type", ggml.TYPES, ids=ids)
def test_bytes_are_those_of_ggml_and_of_the_gguf_library(type: ggml.Ggml):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type.number)]
    assert (type.block, type.block_bytes) == (block, block_bytes)
    for cols in (256, 1024, 11008):
        assert type.nbytes((5, cols)) == 5 * oracle.row_size(type.number, cols)
        assert type.bits == 8 * type.nbytes((5, cols)) / (5 * cols)


FALLBACKS = {
    # type -> what is stored with 576, 255, 64 and 31 columns
    **dict.fromkeys(["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4", "NVFP4"], "self F16 self F16"),
    "Q6_K": "Q8_0 F16 Q8_0 F16",
    "Q5_K": "Q5_1 F16 Q5_1 F16",
    "Q4_K": "Q5_0 F16 Q5_0 F16",
    **dict.fromkeys(["Q3_K", "Q2_K", "TQ1_0", "TQ2_0"], "Q4_0 F16 Q4_0 F16"),
    **dict.fromkeys(
        ["IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"], "IQ4_NL F16 IQ4_NL F16"
    ),
    "Q1_0": "F16 F16 F16 F16",
}


@pytest.mark.parametrize("type", ggml.TYPES, ids=ids)
def test_a_row_that_is_not_whole_blocks_falls_back_as_in_llama_cpp(type: ggml.Ggml):
    expected = [type.name if name == "self" else name for name in FALLBACKS[type.name].split()]
    for cols, name in zip((576, 255, 64, 31), expected, strict=True):
        used = type.used_for((8, cols))
        assert used.name == name
        assert used.nbytes((8, cols)) > 0
        if used is not type:
            with pytest.raises(WorkbenchError, match=f"store this matrix as {name}"):
                type.nbytes((8, cols))
    assert type.used_for((8, 1024)) is type


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_types_that_need_an_importance_say_so_instead_of_ending_the_process(name: str):
    with pytest.raises(WorkbenchError, match="pass a calibration text"):
        formats.get(name).encode(np.ones((1, 256), np.float32))


def test_a_row_that_is_not_whole_blocks_is_not_encoded():
    with pytest.raises(WorkbenchError, match="rows of 576 weights are not whole blocks of 256"):
        formats.get("Q4_K").encode(np.ones((8, 576), np.float32))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_S", "Q4_K", "IQ4_NL"])
def test_an_importance_beyond_single_precision_is_refused(name: str):
    weights = np.full((1, 256), 0.37, np.float32)
    with pytest.raises(WorkbenchError, match="the largest value is 3e\\+38"):
        formats.get(name).encode(weights, np.full(256, 3e38, np.float32))
    strongest = np.full(256, 1e14, np.float32)
    assert np.isfinite(formats.get(name).roundtrip(weights, strongest)).all()


def test_iq1_m_is_read_but_not_made():
    with pytest.raises(WorkbenchError, match="not made here"):
        formats.get("IQ1_M").encode(np.ones((1, 256), np.float32))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "cols"),
    [
        ("Q4_K", (2, 143), np.uint8, 256),  # a byte short of a block
        ("Q4_K", (2, 144), np.uint8, 512),  # a block short of a row
        ("Q4_K", (2, 144), np.int8, 256),
        ("Q4_K", (144,), np.uint8, 256),
        ("Q4_0", (2, 18), np.uint8, 31),
        ("Q4_0", (2, 0), np.uint8, 0),
        ("Q4_0", (2, 18), np.uint8, -32),
        ("F16", (2, 63), np.uint8, 32),
        ("I32", (2, 64), np.uint8, 16),
        ("Q9_Z", (2, 64), np.uint8, 16),
    ],
)
def test_rows_that_are_not_of_the_type_are_refused(name: str, shape: tuple[int, ...], dtype: type, cols: int):
    with pytest.raises(WorkbenchError, match=name):
        ggml.decode_blocks(name, np.zeros(shape, dtype), cols)


def test_reading_does_not_copy_or_change_what_is_read_only():
    raw = np.frombuffer(bytes(2 * 144), np.uint8).reshape(2, 144)
    assert not ggml.decode_blocks("Q4_K", raw, 256).any()
    every_other = np.zeros((4, 288), np.uint8)[::2, ::2]
    assert ggml.decode_blocks("Q4_K", every_other, 256).shape == (2, 256)


def test_two_threads_may_be_the_first_to_use_a_type():
    script = """
        import threading
        import numpy as np
        from workbench import formats
        weights, importance = np.ones((4, 256), np.float32), np.ones(256, np.float32)
        def encode():
            for name in ("IQ3_XXS", "IQ3_S", "IQ2_XXS"):
                formats.get(name).encode(weights, importance)
        threads = [threading.Thread(target=encode) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print("done")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_a_call_works_in_the_thread_that_makes_it():
    weights = RANDOM.normal(size=(2048, 1024)).astype(np.float32)
    whole, own = time.process_time(), time.thread_time()
    formats.get("Q4_K").encode(weights)
    assert time.thread_time() - own > 0.5 * (time.process_time() - whole)


def test_the_faster_library_gives_the_same_bytes_or_is_not_called(monkeypatch):
    """xllamacpp's kernels against libgguf's, which is what encodes where xllamacpp is not installed."""
    random = np.random.default_rng(2)
    weights = (random.standard_normal((33, 768)) / 30).astype(np.float32)
    weights[0], weights[1, :300] = 0, 1e-8
    for name in kernels.FASTER:
        kind = ggml.BY_NAME[name]
        for importance in (None, random.uniform(0, 9, 768).astype(np.float32)):
            made = [np.zeros((33, 768 // kind.block * kind.block_bytes), np.uint8) for _ in range(2)]
            by_xllamacpp = kernels._by_xllamacpp(kind.number)
            assert by_xllamacpp is not None
            for encode, blocks in zip((kernels._by_libgguf(kind.number), by_xllamacpp), made, strict=True):
                encode(weights, blocks, importance)
            assert np.array_equal(made[0], made[1]), name
    own = kernels._by_libgguf(12)
    assert not kernels._agree(own, lambda weights, blocks, importance: None, 256, 144)
