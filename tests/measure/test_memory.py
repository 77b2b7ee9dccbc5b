"""Measuring asks first whether it fits, and keeps what it has when memory runs out all the same."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import workbench as wb
from tests import tiny
from workbench import formats
from workbench.checkpoint import Checkpoint
from workbench.fit import DoesNotFit
from workbench.measure import calibration as calibrating
from workbench.measure.calibration import calibrate
from workbench.measure.errors import errors_so_far

TEXT = "The ferry leaves at seven, and the crossing takes as long as the wind and the tide allow it. " * 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    return wb.load(tiny.folder(tmp_path / "model", tiny.weights(hidden=256)))


@pytest.fixture
def memory_of(monkeypatch):
    """Makes the system say that this many bytes are available: real memory cannot be used up here."""

    def say(nbytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes, total=nbytes))

    return say


def test_a_table_that_does_not_fit_is_refused_before_a_weight_is_read(model, memory_of, monkeypatch):
    a_thread = 4 * 4 * 512 * 256  # four copies, in float32, of the largest matrix
    memory_of(8 * a_thread - 1)
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(DoesNotFit) as caught:
        wb.errors(model, ["Q8_0"], threads=8)
    assert caught.value.item == "measuring model in 8 threads"
    assert "it needs 16.8 MB, and cpu has 16.8 MB" in caught.value.found
    assert "threads=1 (2.1 MB)" in caught.value.do


def test_the_override_measures_all_the_same_with_a_text_too(model, memory_of):
    memory_of(1000)
    with pytest.raises(DoesNotFit, match="calibrating model: it needs"):
        wb.errors(model, "Q8_0", TEXT)
    with pytest.raises(DoesNotFit):
        calibrate(model, TEXT)
    assert wb.errors(model, "Q8_0", TEXT, anyway=True).frame.output_error.notna().any()


def test_rows_that_were_measured_before_memory_ran_out_are_kept(model, monkeypatch):
    original, seen = type(formats.get("Q8_0")).roundtrip, []

    def roundtrip(self, weights, importance=None):
        seen.append(weights)
        if len(seen) == 5:
            held = np.ones(1000, np.float32)
            seen.append(weakref.ref(held))
            raise MemoryError("Unable to allocate 2.00 GiB for an array")
        return original(self, weights, importance)

    monkeypatch.setattr(type(formats.get("Q8_0")), "roundtrip", roundtrip)
    with pytest.raises(DoesNotFit, match=r"memory ran out \(Unable to allocate 2.00 GiB .* the estimate was"):
        wb.errors(model, "Q8_0", threads=1)
    gc.collect()
    assert seen[5]() is None
    assert errors_so_far(model, "Q8_0").frame.weight_error.notna().sum() == 4


def test_a_calibration_that_runs_out_leaves_nothing_half_done(model, monkeypatch):
    def take(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(calibrating._Inputs, "take", take)
    with pytest.raises(DoesNotFit, match="calibrating model: memory ran out"):
        calibrate(model, TEXT)
    assert not list((calibrating.files.cache_dir() / "calibration").glob("*"))
