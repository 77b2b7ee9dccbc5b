"""Floats, FP8, INT8 and INT4 against plain readings of what they promise, weight by weight."""

from __future__ import annotations

import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench import formats
from workbench.exceptions import WorkbenchError

MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 150)),
    elements=st.floats(-1000, 1000, width=32) | st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1e-40, -1e-40]),
)


def half(value: float) -> float:
    """`value` as float16 keeps it."""
    return struct.unpack("<e", struct.pack("<e", value))[0]


def nearest(value: float) -> int:
    """The nearest whole number, ties to even: what Python's round does."""
    return round(value)


def groups(row: list[float], size: int) -> list[list[float]]:
    return [row[at : at + size] for at in range(0, len(row), size)]


def plain_int8(row: list[float], size: int) -> list[float]:
    decoded = []
    for group in groups(row, size):
        scale = half(float(np.float32(max(abs(w) for w in group)) / np.float32(127)))
        for weight in group:
            code = nearest(float(np.float32(weight) / np.float32(scale))) if scale else 0
            decoded.append(max(-127, min(127, code)) * scale)
    return decoded


def plain_int4(row: list[float], size: int) -> list[float]:
    decoded = []
    for group in groups(row, size):
        low, high = np.float32(min(0, *group)), np.float32(max(0, *group))
        scale = half(float((high - low) / np.float32(15)))
        zero = min(15, nearest(float(-low / np.float32(scale)))) if scale else 0
        for weight in group:
            code = nearest(float(np.float32(weight) / np.float32(scale))) + zero if scale else 0
            decoded.append((max(0, min(15, code)) - zero) * scale)
    return decoded


@given(MATRICES, st.sampled_from([32, 64, 128]))
def test_int8_rounds_to_the_nearest_step_of_its_group(weights: np.ndarray, size: int):
    format = formats.get("INT8" if size == 64 else f"INT8-g{size}")
    plain = [plain_int8(row, size) for row in weights.tolist()]
    np.testing.assert_array_equal(format.roundtrip(weights), np.array(plain, np.float32))


@given(MATRICES, st.sampled_from([32, 64, 128]))
def test_int4_rounds_to_the_nearest_step_of_its_group(weights: np.ndarray, size: int):
    format = formats.get("INT4" if size == 64 else f"INT4-g{size}")
    plain = [plain_int4(row, size) for row in weights.tolist()]
    np.testing.assert_array_equal(format.roundtrip(weights), np.array(plain, np.float32))


def test_int4_codes_share_a_byte_and_rows_begin_a_new_one():
    weights = np.array([[0, 1, 15], [15, 0, 2]], np.float32)
    parts = formats.get("INT4").encode(weights).parts
    assert parts["codes"].tolist() == [[0x10, 0x0F], [0x0F, 0x02]]
    assert parts["scale"].tolist() == [[1], [1]]
    assert parts["zero"].tolist() == [[0], [0]]


def test_int4_keeps_the_ends_of_a_group_that_lies_on_one_side_of_zero():
    weights = np.linspace(3, 30, 64, dtype=np.float32)[None]
    assert formats.get("INT4").roundtrip(weights).max() == pytest.approx(30, rel=1e-3)
    assert formats.get("INT4").roundtrip(-weights).min() == pytest.approx(-30, rel=1e-3)


E4M3 = sorted(
    # sign aside: seven subnormals and 15 binades of eight, without the code of NaN
    {mantissa * 2.0**-9 for mantissa in range(8)}
    | {(8 + mantissa) * 2.0 ** (exponent - 10) for exponent in range(1, 16) for mantissa in range(8)} - {480.0}
)


def plain_fp8(row: list[float]) -> list[float]:
    scale = np.float32(max(abs(w) for w in row)) / np.float32(448)
    decoded = []
    for weight in row:
        scaled = float(np.float32(weight) / scale) if scale else 0.0
        size = min(abs(scaled), 448.0)
        best = min(E4M3, key=lambda value: (abs(value - size), E4M3.index(value) % 2))
        decoded.append(float(np.float32(math.copysign(best, scaled)) * scale))
    return decoded


@given(MATRICES)
def test_fp8_rounds_to_the_nearest_of_its_numbers(weights: np.ndarray):
    plain = np.array([plain_fp8(row) for row in weights.tolist()], np.float32)
    np.testing.assert_array_equal(formats.get("FP8").roundtrip(weights), plain)


def test_fp8_of_rows_too_small_for_a_scale_is_zero_not_nan():
    weights = np.array([[1e-44, -1e-44], [0, 0], [6e-43, -9e-43]], np.float32)
    assert np.isfinite(formats.get("FP8").roundtrip(weights)).all()


@given(arrays.arrays(np.float32, (1, 20), elements=st.floats(width=32, min_value=-65504, max_value=65504)))
def test_f16_is_what_ieee_says(weights: np.ndarray):
    assert formats.get("F16").roundtrip(weights).ravel().tolist() == [half(w) for w in weights.ravel().tolist()]


@given(arrays.arrays(np.float32, (1, 20), elements=st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127)))
def test_bf16_is_the_upper_half_of_f32_rounded_to_even(weights: np.ndarray):
    bits = weights.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(formats.get("BF16").roundtrip(weights), rounded)


def test_f32_is_kept_as_it_is():
    weights = np.array([[1e-45, -0.0, np.finfo(np.float32).max, np.pi]], np.float32)
    np.testing.assert_array_equal(formats.get("F32").roundtrip(weights), weights)


@pytest.mark.parametrize(("name", "too_large"), [("F16", 65505), ("INT8", 1e6), ("Q4_K", 65504), ("BF16", 3.4e38)])
def test_a_weight_that_would_become_infinite_is_refused(name: str, too_large: float):
    weights = np.zeros((1, 256), np.float32)
    weights[0, 9] = -too_large
    with pytest.raises(WorkbenchError, match="the largest magnitude is"):
        formats.get(name).encode(weights)


def test_bf16_is_numpys_bfloat16():
    assert formats.get("BF16").encode(np.ones((1, 1), np.float32)).parts["values"].dtype == ml_dtypes.bfloat16
