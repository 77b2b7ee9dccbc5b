"""Held against llama.cpp itself: full-vocabulary logits from its own library, on the same files.

llama.cpp multiplies quantized weights with activations that it rounds to 8 bits too, so its figures of such
a file say a little more than what the weights lost. With the same lossy weights stored in F32 nothing but
float rounding is between the two.
"""

from __future__ import annotations

import pytest

import workbench as wb
from tests import tiny
from tests.measure import llama_cpp
from workbench import formats
from workbench.measure.text import chunks_of

TEXT = "The ferry left at seven, the fog at eight, and nobody on the pier could say which of them was late. " * 30
CONTEXT = 128


@pytest.fixture(scope="module")
def weights():
    return tiny.weights(hidden=256)


@pytest.fixture(scope="module")
def reference(weights, tmp_path_factory):
    return tiny.gguf(tmp_path_factory.mktemp("reference") / "model.gguf", weights, "F32", begins=True)


@pytest.fixture(scope="module")
def chunks(reference):
    return llama_cpp.chunks(reference, TEXT, CONTEXT)


@pytest.fixture(scope="module")
def base(reference, chunks):
    return llama_cpp.logits(reference, chunks)


def figures(report):
    """Every figure of the table by name, and its standard error as name and "±"."""
    table = report.table().set_index("figure")
    return dict(table.value) | {f"{name} ±": error for name, error in table.error.items()}


def test_the_text_is_cut_and_begun_as_llama_cpp_does(reference, chunks):
    assert (chunks[:, 0] == 1).all()
    assert chunks_of(wb.load(reference), TEXT, CONTEXT).tolist() == chunks.tolist()


def test_every_figure_is_that_of_llama_perplexity_on_llama_cpps_own_logits(weights, reference, chunks, base, tmp_path):
    lossy = formats.get("Q4_K")
    lost = {name: lossy.roundtrip(each) if each.ndim == 2 else each for name, each in weights.items()}
    other = tiny.gguf(tmp_path / "lossy.gguf", lost, "F32", begins=True)
    said = llama_cpp.perplexity_figures(base, llama_cpp.logits(other, chunks), chunks)
    for candidate in (other, lossy):
        found = figures(wb.compare(reference, candidate, TEXT, context=CONTEXT))
        close = {name: pytest.approx(value, rel=0.02, abs=1e-4) for name, value in said.items()}
        assert {name: found[name] for name in said} == close
        assert found["mean KL"] == pytest.approx(said["mean KL"], rel=1e-3)


@pytest.mark.parametrize("type_name", ["Q4_K", "Q2_K"])
def test_a_quantized_file_diverges_as_far_as_in_llama_cpp(weights, reference, chunks, base, tmp_path, type_name):
    file = tiny.gguf(tmp_path / "model.gguf", weights, type_name, begins=True)
    said = llama_cpp.perplexity_figures(base, llama_cpp.logits(file, chunks), chunks)
    found = figures(wb.compare(reference, file, TEXT, context=CONTEXT))
    for name in ("mean KL", "median KL", "99 % KL", "RMS Δp"):
        assert found[name] == pytest.approx(said[name], rel=0.04)
    assert found["PPL ratio"] == pytest.approx(said["PPL ratio"], rel=0.005)
    assert found["same top token"] == pytest.approx(said["same top token"], abs=2)
