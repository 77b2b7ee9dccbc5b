"""Asked before memory is spent; and what happens when it runs out after all."""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.fit.published import CONFIGS
from workbench.exceptions import WorkbenchError
from workbench.fit import ask, guarded, memory

LLAMA = CONFIGS["Llama 3.1 8B"]


def test_what_fits_is_let_through():
    ask(memory(LLAMA, "Q4_K_M"), where="RTX 4090")
    ask(1000, "a small thing", "cpu")


def test_what_does_not_fit_is_refused_with_the_figures_and_what_would():
    with pytest.raises(WorkbenchError) as caught:
        ask(memory(LLAMA, "Q8_0", context=65536), "loading the model", "RTX 3060")
    said = str(caught.value)
    assert said.startswith("loading the model: it needs 17")
    assert "of weights" in said
    assert "RTX 3060 has 12.5 GB" in said
    assert "Q3_K_S" in said or "tokens" in said
    assert "anyway=True" in said


def test_the_override_lets_everything_through():
    ask(memory(LLAMA, "F32"), where="T4", anyway=True)


def test_bytes_without_a_model_are_held_against_the_device_too():
    with pytest.raises(WorkbenchError, match="an export: it needs 1,000 GB"):
        ask(10**12, "an export", "RTX 3060")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
)
def test_running_out_says_the_estimate_against_what_was_found(error):
    with pytest.raises(WorkbenchError) as caught, guarded(memory(LLAMA, "Q4_K_M"), "loading", "cpu"):
        raise error
    said = str(caught.value)
    assert "memory ran out" in said
    assert "the estimate was" in said
    assert "cpu has" in said


def test_pytorchs_own_error_for_gpus_counts():
    import torch

    with pytest.raises(WorkbenchError, match="memory ran out"), guarded(1, "x", "cpu"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), guarded(1, "x", "cpu"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(ValueError, match="x"), guarded(1, "x", "cpu"):
        raise ValueError("x")


def test_what_only_the_failed_block_held_is_freed():
    class Model:
        pass

    held = []

    def load():
        model = Model()
        held.append(weakref.ref(model))
        raise MemoryError

    with pytest.raises(WorkbenchError), guarded(1, "x", "cpu"):
        load()
    gc.collect()
    assert held[0]() is None


def test_a_real_allocation_that_cannot_be_is_caught():
    import torch

    with pytest.raises(WorkbenchError, match="memory ran out"), guarded(memory(LLAMA), "an absurd tensor", "cpu"):
        torch.empty(1 << 60, dtype=torch.uint8)
