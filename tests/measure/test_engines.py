"""`wb.compare` with engines: llama.cpp's own scores, held against those read from its library directly."""

from __future__ import annotations

import os
import signal
import struct

import numpy as np
import psutil
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines import servers
from tests.measure import llama_cpp
from tests.measure.test_llama_cpp import figures
from workbench.engines import llama_c, scoring
from workbench.engines.options import options_of
from workbench.measure import running
from workbench.measure.comparing import compare_so_far, compare_steps
from workbench.measure.text import chunks_of

TEXT = "The ferry left at seven, the fog at eight, and nobody on the pier could say which of them was late. " * 30
CONTEXT = 300


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def reference(folder):
    return wb.load(tiny.gguf(folder / "exact.gguf", tiny.weights(), "F32", begins=True))


@pytest.fixture(scope="module")
def lossy(folder):
    return wb.load(tiny.gguf(folder / "lossy.gguf", tiny.weights(), "Q4_K", begins=True))


@pytest.fixture(scope="module")
def engine(lossy):
    with wb.run(lossy, engine="llama.cpp", threads=1) as engine:
        yield engine


def compared(first, second, **settings):
    return wb.compare(first, second, TEXT, **{"context": CONTEXT, "tokens": 2 * CONTEXT} | settings)


def scorers():
    return [each for each in psutil.Process().children() if "workbench.engines.scoring" in each.cmdline()]


# --- the same scores ------------------------------------------------------------------------------


def test_an_engine_gives_the_scores_that_llama_cpps_library_gives(engine, lossy):
    ids = chunks_of(lossy, TEXT, CONTEXT)[0]
    (said,) = llama_cpp.logits(lossy.path, ids[None].astype(np.int32))
    found = engine.logits(ids)
    assert (found.dtype, found.shape) == (np.float32, (CONTEXT, tiny.VOCAB))
    np.testing.assert_allclose(found, said, atol=1e-4)


def test_every_figure_is_that_of_llama_perplexity_on_them(engine, reference, lossy):
    with wb.run(reference, engine="llama.cpp", threads=1) as exact:
        found = figures(compared(exact, engine))
    chunks = chunks_of(reference, TEXT, CONTEXT, tokens=2 * CONTEXT).astype(np.int32)
    both = (llama_cpp.logits(each.path, chunks) for each in (reference, lossy))
    said = llama_cpp.perplexity_figures(*both, chunks)
    assert {name: found[name] for name in said} == {
        name: pytest.approx(value, rel=0.02, abs=1e-4) for name, value in said.items()
    }
    assert found["mean KL"] == pytest.approx(said["mean KL"], rel=1e-3)


def test_the_file_in_llama_cpp_is_further_off_than_its_decoded_weights_by_little(engine, reference, lossy):
    found, decoded = compared(reference, engine), compared(reference, lossy)
    assert found.kl.value == pytest.approx(decoded.kl.value, rel=0.1)
    assert found.kl.value != decoded.kl.value
    assert found.fingerprints == decoded.fingerprints
    assert found.computed == ("transformers in float32 on cpu", "llama.cpp on cpu, keys and values in f16/f16")
    assert "computed by transformers in float32 on cpu; the candidate by llama.cpp on cpu, keys and" in repr(found)
    assert repr(found).startswith("lossy in llama.cpp against exact")
    assert {"torch", "transformers", "xllamacpp"} <= set(found.versions)


def test_keys_and_values_of_fewer_bits_diverge_further(reference, engine):
    diverged = {}
    with wb.run(reference, engine="llama.cpp", threads=1) as whole:
        for kv in (("q8_0", "q8_0"), ("q8_0", "q4_0")):
            with wb.run(reference, engine="llama.cpp", threads=1, kv=kv) as fewer:
                found = compared(whole, fewer, tokens=CONTEXT)
                assert found.computed[1].endswith(f"keys and values in {kv[0]}/{kv[1]}")
                assert f"in llama.cpp, kv {kv[0]}/{kv[1]} against" in repr(found)
                diverged[kv] = found.kl.value
    assert min(diverged.values()) > 0
    assert sorted(diverged, key=diverged.get) == list(diverged)


@pytest.mark.parametrize(("kv", "close"), [(("f16", "q4_0"), 0.02), (("q4_0", "f16"), 0.3)])
def test_transformers_loses_by_rounded_keys_and_values_what_llama_cpp_loses(reference, kv, close):
    """Keys lie in another order in llama.cpp's heads, so others share a scale, and it rounds the queries too."""
    diverged = []
    for how in ({"engine": "llama.cpp", "threads": 1}, {"dtype": "float32", "device": "cpu"}):
        with wb.run(reference, **how) as exact, wb.run(reference, **how, kv=kv) as fewer:
            found = compared(exact, fewer)
            diverged.append(found.kl.value)
    assert diverged[1] == pytest.approx(diverged[0], rel=close)
    assert found.computed[1] == f"transformers in float32 on cpu, keys and values rounded to {kv[0]}/{kv[1]}"
    assert repr(found).startswith(f"exact kv {kv[0]}/{kv[1]} against exact")


def test_a_model_that_transformers_runs_is_compared_as_it_runs(reference):
    ids = chunks_of(reference, TEXT, CONTEXT)[0]
    with wb.run(reference, "NF4", device="cpu", dtype="bfloat16") as engine:
        before = engine.logits(ids)
        found = compared(reference, engine, tokens=CONTEXT, device="cpu")
        assert found.computed[1] == "transformers in bfloat16 on cpu, layers of bitsandbytes NF4"
        by_hand = torch.from_numpy(before)[CONTEXT // 2 : -1].argmax(-1)
        with wb.run(reference, device="cpu", dtype="float32") as exact:
            same = torch.from_numpy(exact.logits(ids))[CONTEXT // 2 : -1].argmax(-1) == by_hand
            assert compared(reference, exact, tokens=CONTEXT, device="cpu").kl.value < 1e-9
        assert found.same_top.value == pytest.approx(float(same.float().mean()), abs=0.02)
        np.testing.assert_array_equal(engine.logits(ids), before)  # the model is as it was
        assert all(not module._forward_pre_hooks for module in engine.model.modules())


# --- a process of its own -------------------------------------------------------------------------


def test_what_was_measured_is_not_computed_again(engine, reference, monkeypatch):
    found = compared(reference, engine)
    assert not scorers()
    monkeypatch.setattr(running, "Scorer", lambda *_: pytest.fail("a process was started"))
    np.testing.assert_array_equal(compared(reference, engine).by_token, found.by_token)
    with wb.run(engine.checkpoint, engine="llama.cpp", threads=1, kv="q8_0") as other:
        assert compare_so_far(reference, other, TEXT, context=CONTEXT) is None


def test_a_comparison_that_is_closed_ends_the_process_and_keeps_its_chunks(engine, reference):
    steps = compare_steps(reference, engine, TEXT, context=64)
    for step in steps:
        if step.unit == "chunk" and step.done >= 2:
            break
    (process,) = scorers()
    steps.close()
    assert not process.is_running()
    kept = compare_so_far(reference, engine, TEXT, context=64)
    assert kept.chunks >= 2
    np.testing.assert_array_equal(compared(reference, engine, context=64).by_token[:2], kept.by_token[:2])


def test_a_fault_in_llama_cpp_ends_the_comparison_and_nothing_else(engine, reference, monkeypatch):
    original = scoring.Scorer.begin

    def dies(self, *given):
        os.kill(self._process.pid, signal.SIGSEGV)
        self._process.wait()
        original(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(scoring.Scorer, "begin", dies)
        with pytest.raises(
            wb.WorkbenchError, match=r"lossy in llama.cpp: .* does not score this file: it ended with status -11"
        ):
            compared(reference, engine)
    assert not scorers()
    assert compared(reference, engine).scored


def test_a_scorer_reads_one_text_after_the_other_from_an_empty_cache(lossy):
    first, second = chunks_of(lossy, TEXT, 40)[:2]
    scorer = scoring.Scorer("tiny", options_of(lossy, threads=1), 40)
    found = []
    for ids in (first, second, first):
        scorer.begin(ids, 30)
        found.append(np.concatenate([scorer.rows(4), scorer.rows(6)]))
    scorer.close()
    scorer.close()
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 0.1
    with pytest.raises(wb.WorkbenchError, match="closed"):
        scorer.rows(1)


# --- a library that is laid out in another way ----------------------------------------------------


def test_settings_are_found_by_their_defaults_or_not_used():
    known = struct.pack("<4I", 512, 2048, 512, 1) + b"\xff" * 24 + bytes(16) + struct.pack("<2I", 1, 1) + bytes(64)
    fields = llama_c.context_fields(known)
    assert (fields["context"], fields["keys"], fields["values"]) == (0, 56, 60)
    moved = known[:16] + b"\xff" * 8 + known[16:]
    assert llama_c.context_fields(moved)["keys"] == 64
    for other in (struct.pack("<I", 0) + known[4:], known.replace(struct.pack("<2I", 1, 1), struct.pack("<2I", 1, 2))):
        with pytest.raises(wb.WorkbenchError, match=r"xllamacpp .*: the scores of its llama\.cpp cannot be read"):
            llama_c.context_fields(other)
    with pytest.raises(wb.WorkbenchError, match="layers for a GPU"):
        llama_c.model_fields(bytes(64))


def test_types_that_llama_cpp_does_not_confirm_are_an_error(lossy):
    said = "llama_kv_cache: size = 1.00 MiB, K ({}): 0.50 MiB, V ({}): 0.50 MiB"
    options = options_of(lossy, kv=("q8_0", "q4_0"), context=128)
    llama_c._check_done(256, options, said.format("q8_0", "q4_0"))
    for found in (said.format("q4_0", "q8_0"), said.format("f16", "f16"), ""):
        with pytest.raises(wb.WorkbenchError, match="were to be kept in q8_0/q4_0"):
            llama_c._check_done(256, options, found)
    llama_c._check_done(256, options_of(lossy, context=128), "")  # a model that keeps none
    with pytest.raises(wb.WorkbenchError, match="it made one of 64"):
        llama_c._check_done(64, options, said.format("q8_0", "q4_0"))


# --- bad input ------------------------------------------------------------------------------------


def test_an_engine_without_scores_says_what_to_use_instead(reference):
    with (
        servers.running() as served,
        wb.run(served.url, engine="vllm") as engine,
    ):
        with pytest.raises(wb.WorkbenchError, match=r"wb\.side_by_side") as caught:
            compared(engine, reference)
        assert caught.value.item == engine.name
        with pytest.raises(wb.WorkbenchError, match="whole vocabulary"):
            engine.logits([1, 2])


def test_a_closed_engine_is_refused(reference, lossy):
    engine = wb.run(lossy, engine="llama.cpp", threads=1)
    engine.close()
    for call in (lambda: compared(reference, engine), lambda: engine.logits([1])):
        with pytest.raises(wb.WorkbenchError, match="this engine was closed"):
            call()


def test_an_engine_of_another_vocabulary_is_refused(reference, folder, monkeypatch):
    wider = tiny.weights()
    wider["model.embed_tokens.weight"] = np.concatenate([wider["model.embed_tokens.weight"]] * 2)
    monkeypatch.setattr(tiny, "SPECIAL", (*tiny.SPECIAL, *(f"<|{n}|>" for n in range(tiny.VOCAB))))
    monkeypatch.setattr(tiny, "VOCAB", 2 * tiny.VOCAB)
    other = tiny.gguf(folder / "wider.gguf", wider, "F32")
    with (
        wb.run(str(other), engine="llama.cpp", threads=1) as engine,
        pytest.raises(wb.WorkbenchError, match="it knows 528 tokens, and exact knows 264"),
    ):
        compared(reference, engine)


def test_other_tokens_of_the_same_number_are_refused(reference, folder, monkeypatch):
    original = tiny.vocabulary()
    swapped = [*original[:-2], original[-1], original[-2]]  # "Ġa" and "Ġthe", say
    monkeypatch.setattr(tiny, "vocabulary", lambda: swapped)
    other = tiny.gguf(folder / "swapped.gguf", tiny.weights(), "F32", begins=True)
    with (
        wb.run(str(other), engine="llama.cpp", threads=1) as engine,
        pytest.raises(wb.WorkbenchError, match="of the text's"),
    ):
        compared(reference, engine)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "1 to 512"),
        ([[1, 2]], "1 to 512"),
        ([0.5], "float64"),
        ([1] * 513, "1 to 512"),
        ([9999], "no token 9999"),
        ([-1], "no token -1"),
    ],
)
def test_tokens_that_cannot_be_scored_are_named(engine, ids, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        engine.logits(ids)


def test_a_context_longer_than_trained_is_refused(reference, engine, monkeypatch):
    monkeypatch.setattr(running, "Scorer", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(wb.WorkbenchError, match="513 tokens, more than the 512"):
        compared(reference, engine, context=513)
