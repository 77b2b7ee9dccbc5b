"""What holds for every format alike: names, bytes, runs of rows, threads, and input that is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.formats import material
from workbench import formats
from workbench.exceptions import WorkbenchError
from workbench.formats import Encoded, Format

ALL = list(formats.FORMATS.values())
SLOW_TABLES = {"IQ1_S", "IQ2_S"}  # ggml takes seconds to build theirs; test_ggml.py has them
MADE = [format for format in ALL if format.encodable and format.name not in SLOW_TABLES]
IMPORTANCE = np.linspace(0.1, 2, 512, dtype=np.float32)


def matrix(rows: int, cols: int) -> np.ndarray:
    return dict(material.matrices(rows, cols))["heavy tails"]


@pytest.mark.parametrize("format", ALL, ids=str)
def test_a_format_is_found_by_its_name_in_any_case(format: Format):
    assert formats.get(format.name) is formats.get(format.name.lower()) is formats.get(format) is format


@pytest.mark.parametrize("name", ["Q4", "", "__class__", "<b>", None, 4])
def test_an_unknown_name_lists_the_choices(name: object):
    with pytest.raises(WorkbenchError, match=r"Allowed: F32, F16, .*NF4.*INT4"):
        formats.get(name)  # type: ignore[arg-type]


def test_formats_go_from_more_bits_to_fewer_within_a_family():
    families = {format.family: [f.bits for f in ALL if f.family == format.family] for format in ALL}
    assert list(families) == ["float", "ggml", "bitsandbytes", "fp8", "integer"]
    assert all(bits == sorted(bits, reverse=True) for bits in families.values())


@pytest.mark.parametrize("format", ALL, ids=str)
def test_a_newcomer_is_told_what_a_format_is_and_where_it_runs(format: Format):
    assert format.summary.endswith(".")
    assert "\n" not in format.summary
    assert len(format.summary) < 90
    assert format.runs_on


@pytest.mark.parametrize("format", MADE, ids=str)
@pytest.mark.parametrize("shape", [(3, 512), (7, 576), (5, 255), (4, 31), (1, 1)], ids=str)
def test_predicted_bytes_are_the_stored_ones(format: Format, shape: tuple[int, int]):
    used = format.used_for(shape)
    encoded = used.encode(matrix(*shape), np.ones(shape[1], np.float32))
    assert encoded.nbytes == sum(part.nbytes for part in encoded.parts.values()) == used.nbytes(shape)
    assert used.decode(encoded).shape == shape
    assert used.decode(encoded).dtype == np.float32


@pytest.mark.parametrize("format", MADE, ids=str)
def test_bits_are_bytes_of_a_large_matrix(format: Format):
    assert format.bits == pytest.approx(8 * format.nbytes((128, 2**19)) / 2**26, rel=1e-4)


@pytest.mark.parametrize("format", MADE, ids=str)
@pytest.mark.parametrize("cols", [512, 31], ids=str)
def test_runs_of_rows_are_encoded_as_in_the_whole(format: Format, cols: int):
    step = format.row_multiple
    rows = 2 * step + 3
    format = format.used_for((rows, cols))
    weights, importance = matrix(rows, cols), IMPORTANCE[:cols]
    whole = format.roundtrip(weights, importance)
    stored = format.encode(weights, importance)
    for first, end in ((0, step), (step, 2 * step), (2 * step, rows)):
        run = format.encode(weights[first:end], importance)
        np.testing.assert_array_equal(format.decode(run), whole[first:end])
        for name, part in run.parts.items():
            of_whole = stored.parts[name]
            start = first * len(of_whole) // rows if first < 2 * step else len(of_whole) - len(part)
            np.testing.assert_array_equal(part, of_whole[start : start + len(part)])


@pytest.mark.parametrize("format", MADE, ids=str)
def test_encoding_again_is_closer_than_noise(format: Format):
    """A codec that mixed up its rows, signs or scales would not come near its own input."""
    weights = dict(material.matrices(2, 512))["bell curve"]
    error = format.roundtrip(weights, np.ones(512, np.float32)) - weights
    assert (error**2).sum() < 0.7 * (weights**2).sum()


@pytest.mark.parametrize("format", MADE, ids=str)
def test_threads_get_what_one_thread_gets(format: Format):
    weights = matrix(2 * format.row_multiple, 512)
    alone = format.roundtrip(weights, IMPORTANCE)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: format.roundtrip(weights, IMPORTANCE), range(8)):
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("format", MADE, ids=str)
def test_a_transposed_or_strided_matrix_is_read_as_numpy_shows_it(format: Format):
    weights = matrix(4, 512)
    np.testing.assert_array_equal(
        format.roundtrip(np.asfortranarray(weights), IMPORTANCE), format.roundtrip(weights, IMPORTANCE)
    )
    np.testing.assert_array_equal(
        format.roundtrip(weights[::2], IMPORTANCE), format.roundtrip(weights[::2].copy(), IMPORTANCE)
    )


@pytest.mark.parametrize("format", MADE, ids=str)
def test_the_input_is_left_as_it_was(format: Format):
    weights, importance = matrix(2, 512), IMPORTANCE.copy()
    format.roundtrip(weights, importance)
    np.testing.assert_array_equal(weights, matrix(2, 512))
    np.testing.assert_array_equal(importance, IMPORTANCE)


@pytest.mark.parametrize("format", MADE, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_a_number_is_refused(format: Format, value: float):
    weights = matrix(2, 512)
    weights[1, 300] = value
    with pytest.raises(WorkbenchError, match="there are NaN or infinite values"):
        format.encode(weights, IMPORTANCE)


@pytest.mark.parametrize("format", MADE, ids=str)
@pytest.mark.parametrize(
    "weights",
    [
        np.ones((2, 512), np.float64),
        np.ones((2, 512), np.float16),
        np.ones((2, 512), np.int32),
        np.ones((2, 512), ">f4"),
        np.ones((2, 512), object),
        np.ones(512, np.float32),
        np.ones((2, 2, 512), np.float32),
        np.ones((0, 512), np.float32),
        np.ones((2, 0), np.float32),
        [[1.0, 2.0]],
        None,
    ],
    ids=["float64", "float16", "int32", "big-endian", "objects", "1-D", "3-D", "no rows", "no columns", "list", "None"],
)
def test_anything_but_a_float32_matrix_is_refused(format: Format, weights: np.ndarray):
    with pytest.raises(WorkbenchError, match="float32 matrix"):
        format.encode(weights, IMPORTANCE)


@pytest.mark.parametrize("format", MADE, ids=str)
@pytest.mark.parametrize(
    ("importance", "found"),
    [
        (np.ones(511), "shape"),
        (np.ones((1, 512)), "shape"),
        (np.array(1.0), "shape"),
        (np.where(np.arange(512) == 5, np.nan, 1), "NaN or infinite"),
        (np.where(np.arange(512) == 5, np.inf, 1), "NaN or infinite"),
        (np.where(np.arange(512) == 5, -1e-9, 1), "negative"),
        (np.full(512, 1e15), "the largest value"),
    ],
    ids=["too short", "2-D", "one number", "NaN", "infinite", "negative", "huge"],
)
def test_an_importance_that_is_not_a_weighting_is_refused(format: Format, importance: np.ndarray, found: str):
    with pytest.raises(WorkbenchError, match=found):
        format.encode(matrix(2, 512), importance)


@pytest.mark.parametrize("format", MADE, ids=str)
def test_parts_of_other_sizes_are_not_decoded(format: Format):
    encoded = format.encode(matrix(2, 512), IMPORTANCE)
    longer = Encoded(format, (3, 512), encoded.parts)
    shorter = Encoded(format, (2, 512), {name: part[:1] for name, part in encoded.parts.items()})
    for wrong in (longer, shorter, Encoded(format, (2, 512), {})):
        with pytest.raises(WorkbenchError, match=f"{format} of shape"):
            format.decode(wrong)


def test_a_matrix_is_not_decoded_as_another_format():
    encoded = formats.get("Q4_0").encode(matrix(2, 512))
    with pytest.raises(WorkbenchError, match="stored as Q4_0"):
        formats.get("IQ4_NL").decode(encoded)


@pytest.mark.parametrize("format", MADE, ids=str)
def test_parts_that_are_not_contiguous_are_decoded(format: Format):
    encoded = format.encode(matrix(2, 512), IMPORTANCE)
    spread = {name: np.repeat(part, 2, axis=-1)[..., ::2] for name, part in encoded.parts.items()}
    np.testing.assert_array_equal(format.decode(Encoded(format, (2, 512), spread)), format.decode(encoded))
