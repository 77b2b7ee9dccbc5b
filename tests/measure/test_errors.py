"""The error table against plain arithmetic, and what happens when it is cut short."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from workbench import formats
from workbench.formats import rows as module
from workbench.measure.errors import errors_so_far, errors_steps

FORMATS = ["Q8_0", "Q4_K", "INT4", "FP8"]
TEXT = "The tide table hangs by the door, and nobody reads it, because the gulls are more reliable. " * 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    return wb.load(tiny.folder(tmp_path / "model", tiny.weights(hidden=256)))


def test_weight_error_is_the_relative_squared_frobenius_norm(model):
    table = wb.errors(model, FORMATS)
    for row in table.frame.itertuples():
        weights = model.read(row.tensor).astype(np.float64)
        lost = weights - formats.get(row.used).roundtrip(model.read(row.tensor))
        assert row.weight_error == pytest.approx((lost**2).sum() / (weights**2).sum(), rel=1e-4)


def test_every_matrix_and_format_has_one_row_with_exact_bytes(model):
    frame = wb.errors(model, FORMATS).frame
    assert len(frame) == len(model.matrices) * len(FORMATS)
    row = frame[(frame.format == "Q8_0") & (frame.tensor == "model.layers.1.mlp.down_proj.weight")].iloc[0]
    assert (row.layer, row.role, row.rows, row.cols) == (1, "down_proj", 256, 512)
    assert row.bytes == 256 * 512 // 32 * 34
    assert row.bits_per_weight == 8.5


def test_a_matrix_measured_in_runs_of_rows_equals_the_matrix_measured_whole(model, monkeypatch, tmp_path):
    whole = wb.errors(model, [*FORMATS, "Q6_K"]).frame
    monkeypatch.setattr(module, "CHUNK", 2048)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "another"))
    runs = wb.errors(model, [*FORMATS, "Q6_K"]).frame
    np.testing.assert_allclose(runs.weight_error, whole.weight_error, rtol=1e-5)


def test_a_format_that_does_not_fit_the_shape_names_what_is_stored_instead(tmp_path):
    odd = wb.load(tiny.folder(tmp_path / "odd", tiny.weights(hidden=128, intermediate=320)))
    frame = wb.errors(odd, "Q4_K").frame
    down = frame[frame.role == "down_proj"].iloc[0]
    assert down.format == "Q4_K"
    assert down.used == "Q5_0"
    assert down.bits_per_weight == 5.5


def test_output_and_importance_errors_follow_their_equations(model):
    table = wb.errors(model, ["Q4_K", "INT4"], TEXT)
    calibration = table.calibration
    for row in table.frame[table.frame.role.isin(["v_proj", "down_proj"])].itertuples():
        importance, x = calibration.mean_square(row.tensor), calibration.sample(row.tensor).astype(np.float64)
        weights = model.read(row.tensor)
        fmt = formats.get(row.used)
        lost = weights - fmt.roundtrip(weights, importance if fmt.importance != "unused" else None)
        lost, weights = lost.astype(np.float64), weights.astype(np.float64)
        by_importance = (importance * lost**2).sum() / (importance * weights**2).sum()
        by_output = ((x @ lost.T) ** 2).sum() / ((x @ weights.T) ** 2).sum()
        assert row.importance_error == pytest.approx(by_importance, rel=1e-4)
        assert row.output_error == pytest.approx(by_output, rel=1e-4)


def test_an_interrupted_table_keeps_its_rows_and_goes_on_where_it_stopped(model, monkeypatch):
    steps = errors_steps(model, FORMATS, threads=1)
    for step in steps:
        if step.done > 0.5 * step.total:
            break
    steps.close()
    kept = errors_so_far(model, FORMATS).frame
    finished = set(kept.tensor[kept.weight_error.notna()])
    assert 0 < len(finished) < len(model.matrices)

    read = []
    original = type(model).read
    monkeypatch.setattr(type(model), "read", lambda self, name, *rows: read.append(name) or original(self, name, *rows))
    table = wb.errors(model, FORMATS)
    assert table.frame.weight_error.notna().all()
    assert finished.isdisjoint(read)


def test_a_finished_table_is_not_measured_again(model, monkeypatch):
    first = wb.errors(model, FORMATS)
    monkeypatch.setattr(type(model), "read", lambda *_: pytest.fail("weights were read again"))
    again = wb.errors(model, FORMATS)
    assert again.frame.equals(first.frame)


def test_changed_weights_are_measured_again(tmp_path):
    first = wb.load(tiny.folder(tmp_path / "a", tiny.weights(hidden=256, seed=1)))
    other = wb.load(tiny.folder(tmp_path / "b", tiny.weights(hidden=256, seed=2)))
    assert (wb.errors(first, "Q4_K").frame.weight_error != wb.errors(other, "Q4_K").frame.weight_error).all()


def test_memory_stays_at_a_few_runs_of_rows(tmp_path):
    weights = tiny.weights(hidden=1024, layers=1, intermediate=16384)
    big = wb.load(tiny.folder(tmp_path / "big", weights))
    largest = max(values.nbytes for values in weights.values())
    names = ["Q8_0", "Q5_0", "INT8"]
    wb.errors(big, names, tensors="*k_proj*", threads=1)  # whatever is imported on the first use is not counted
    tracemalloc.start()
    wb.errors(big, names, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < largest


def test_the_summary_weighs_each_matrix_by_its_size(model):
    table = wb.errors(model, FORMATS)
    q4 = table.frame[table.frame.format == "Q4_K"]
    params = q4.rows * q4.cols
    row = table.summary.set_index("format").loc["Q4_K"]
    assert row.bytes == q4.bytes.sum()
    assert row.weight_error == pytest.approx((q4.weight_error * params).sum() / params.sum())


@pytest.mark.parametrize(
    ("asked", "text", "tensors", "said"),
    [
        (["Q4_X"], None, None, "Q4_X"),
        ([], None, None, "empty"),
        (["IQ2_XXS"], None, None, "importance"),
        (["IQ1_M"], None, None, "not made here"),
        (["Q8_0"], None, "*no_such*", "no matrix"),
        (["Q8_0"], "Too short.", None, "tokens"),
    ],
    ids=[
        "a format that does not exist",
        "no format at all",
        "a format that needs an importance matrix, without a text",
        "a format that can only be read",
        "a pattern that matches nothing",
        "a text of a few words",
    ],
)
def test_bad_input_is_named(model, asked, text, tensors, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.errors(model, asked, text, tensors=tensors)


def test_a_format_that_needs_importance_is_measured_with_a_text(model):
    frame = wb.errors(model, "IQ2_XXS", TEXT, tensors="*down_proj*").frame
    assert frame.weight_error.between(0.01, 0.9).all()


def test_one_matrix_opened_tells_which_channels_suffer(model):
    table = wb.errors(model, "Q4_K", TEXT)
    detail = table.matrix("model.layers.0.mlp.down_proj.weight", "Q4_K")
    weights = model.read(detail.tensor)
    assert detail.original.sum() == weights.size
    assert detail.channel_error.shape == (512,)
    assert detail.channel_error.mean() == pytest.approx(1)
    importance = table.calibration.mean_square(detail.tensor)
    salience = (weights**2).max(0) * importance
    assert detail.outliers[0] == int(salience.argmax())
    assert detail.tensor in repr(detail)


def test_a_matrix_too_large_to_open_whole_is_judged_by_spread_rows(tmp_path, monkeypatch):
    from workbench.measure import matrix

    big = wb.load(tiny.folder(tmp_path / "big", tiny.weights(hidden=256, intermediate=8192)))
    monkeypatch.setattr(matrix, "ROWS", 1 << 18)
    detail = matrix.open_matrix(big, "model.layers.0.mlp.up_proj.weight", formats.get("NF4"))
    assert detail.rows < detail.shape[0]
    assert "of 8192 rows" in repr(detail)


def test_of_a_large_stack_a_few_experts_are_opened_one_at_a_time(tmp_path, monkeypatch):
    from workbench.measure import matrix

    stack = "model.layers.0.mlp.experts.gate_up_proj"
    experts = np.random.default_rng(0).standard_normal((6, 512, 256)).astype(np.float32)
    model = wb.load(tiny.folder(tmp_path / "big", tiny.weights(layers=1) | {stack: experts}, dtype="F32"))
    monkeypatch.setattr(matrix, "ROWS", 1 << 17)
    read = []
    monkeypatch.setattr(type(model), "read", lambda self, name, rows=None: read.append(rows) or experts[rows])
    detail = matrix.open_matrix(model, stack, formats.get("Q8_0"))
    assert [(rows.start, rows.stop) for rows in read] == [(0, 1), (2, 3), (3, 4), (5, 6)]
    assert detail.rows == 512
    assert detail.shape == (6 * 512, 256)
    assert detail.original.sum() == detail.stored.sum() == 512 * 256
