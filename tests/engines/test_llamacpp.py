"""The engine of llama.cpp: against transformers on the same weights, and with files that would end its process."""

from __future__ import annotations

import struct
import threading
import urllib.request
from urllib.error import HTTPError

import psutil
import pytest

import workbench as wb
from tests import tiny
from workbench.checkpoint import child, load
from workbench.engines import run, side_by_side
from workbench.engines.base import Engine
from workbench.exceptions import WorkbenchError
from workbench.fit import DoesNotFit

LOOPING = "{% for i in range(100000000) %}{% for i in range(100000000) %}x{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny.weights(), "F32")


@pytest.fixture(scope="module")
def engine(path):
    with wb.run(str(path), engine="llama.cpp", threads=1) as engine:
        yield engine


def changed(path, folder, key, old, new, kind=4, form="<I"):
    """A copy of the file in which a number of the metadata is another."""
    begin = key.encode() + struct.pack("<I", kind)
    raw = path.read_bytes()
    assert raw.count(begin + struct.pack(form, old)) == 1
    copy = folder / "changed.gguf"
    copy.write_bytes(raw.replace(begin + struct.pack(form, old), begin + struct.pack(form, new)))
    return copy


# --- replies ------------------------------------------------------------------------------------


def test_it_is_an_engine_that_says_what_it_is(engine):
    assert isinstance(engine, Engine)
    assert engine.name == "tiny"
    assert "as llama.cpp computes it, context 512, keys and values in f16, 1 threads" in engine.what
    assert engine.can.seed
    assert engine.can.logits


def test_it_says_what_transformers_says_of_the_same_weights(engine, tmp_path):
    with run(str(tiny.folder(tmp_path / "tiny", tiny.weights(), dtype="F32")), dtype="float32") as other:
        found = side_by_side(engine, other, "hello there", max_tokens=12, system="be brief")
    ours, theirs = found.replies
    assert ours.prompt_tokens == theirs.prompt_tokens
    assert ours.text == theirs.text
    assert len(ours.tokens) == len(theirs.tokens) == 12


@pytest.mark.parametrize("begins", [True, False])
def test_a_prompt_begins_with_one_token_that_begins_a_text(tmp_path, engine, begins):
    file = tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(), "F32", begins=begins)
    with run(str(file), engine="llama.cpp", threads=1) as other:
        assert engine("hello", max_tokens=1).prompt_tokens == other("hello", max_tokens=1).prompt_tokens


def test_the_pieces_and_the_tokens_join_to_the_reply(engine):
    stream = engine.stream("hello", max_tokens=20)
    pieces = list(stream)
    reply = stream.reply
    assert "".join(pieces) == "".join(reply.tokens) == reply.text
    assert len(reply.tokens) == 20
    assert reply.finish == "length"
    assert reply.prompt_per_second > 0
    assert reply.tokens_per_second > 0
    assert reply.token_ids == ()


def test_the_seed_repeats_a_reply(engine):
    settings = {"temperature": 1.5, "max_tokens": 12}
    first = engine("hello", seed=3, **settings).text
    assert engine("hello", seed=3, **settings).text == first
    assert engine("hello", seed=4, **settings).text != first
    assert engine("hello", seed=2**63 - 1, **settings).text


def test_narrow_sampling_is_the_likeliest_token(engine):
    likeliest = engine("hello", max_tokens=8).text
    assert engine("hello", max_tokens=8, temperature=2.0, top_k=1).text == likeliest
    assert engine("hello", max_tokens=8, temperature=1.0, top_p=1e-6).text == likeliest


def test_a_reply_ends_before_a_stop_string(engine):
    whole = engine("hello", max_tokens=20)
    stop = "".join(whole.tokens[5:7])
    reply = engine("hello", max_tokens=20, stop=["never", stop])
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert reply.finish == "stop"
    assert engine("hello", max_tokens=20).text == whole.text  # and the engine is free again


def test_a_full_context_ends_a_reply(engine):
    reply = engine("hello " * 80, max_tokens=1000, temperature=1.0)
    assert reply.finish in ("length", "stop")
    assert reply.prompt_tokens + len(reply.tokens) <= 512


def test_a_prompt_that_is_longer_than_the_context_is_refused(engine):
    with pytest.raises(WorkbenchError, match=r"the prompt has [\d,]+ tokens, and the context is 512"):
        engine("hello " * 600)
    assert engine("hello", max_tokens=1).tokens


def test_a_stream_is_stopped_from_another_thread(engine):
    stream = engine.stream("hello", max_tokens=400, temperature=1.0, seed=2)
    said = [next(stream)]
    threading.Thread(target=engine.stop).start()
    said += stream
    assert stream.reply.finish == "stopped"
    assert stream.reply.text == "".join(said)
    assert engine("hello", max_tokens=2).tokens


def test_one_reply_at_a_time(engine):
    stream = engine.stream("hello", max_tokens=50)
    next(stream)
    with pytest.raises(WorkbenchError, match="still answering"):
        engine("hello")
    stream.close()
    assert engine("hello", max_tokens=1).tokens


def test_keys_and_values_of_fewer_bits_answer_too(path, engine):
    with run(str(path), engine="llama.cpp", kv=("q8_0", "q4_0"), context=256, threads=1) as smaller:
        assert "context 256, keys and values in q8_0 and q4_0" in smaller.what
        assert smaller.context == 256
        assert len(smaller("hello", max_tokens=8).tokens) == 8
    assert engine("hello", max_tokens=2).tokens  # another model was closed, this one goes on


def test_a_model_without_a_template_continues_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "")
    file = tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(), "F32")
    checkpoint = load(str(file))
    checkpoint.metadata.pop("tokenizer.chat_template", None)
    with run(checkpoint, engine="llama.cpp", threads=1) as engine:
        assert "no chat template" in engine("hello", max_tokens=2).note
        with pytest.raises(WorkbenchError, match="the prompt is empty"):
            engine("")


# --- what must not reach llama.cpp --------------------------------------------------------------


def test_a_template_that_never_ends_is_not_rendered_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", LOOPING)
    file = tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(), "F32")
    with run(str(file), engine="llama.cpp", threads=1) as engine, pytest.raises(WorkbenchError, match="chat template"):
        engine("hello")


@pytest.mark.parametrize(
    ("key", "old", "new", "kind", "form", "said"),
    [
        ("llama.attention.layer_norm_rms_epsilon", 1e-5, -1.0, 6, "<f", "GGML_ASSERT"),  # it ends its process
        ("llama.block_count", 2, 3, 4, "<I", "blk.2.attn_norm.weight"),
        ("llama.rope.dimension_count", 64, 63, 4, "<I", "invalid n_rot"),
    ],
)
def test_what_llama_cpp_refuses_or_dies_of_is_an_error_here(path, tmp_path, key, old, new, kind, form, said):
    file = changed(path, tmp_path, key, old, new, kind, form)
    with pytest.raises(WorkbenchError, match=r"llama\.cpp does not run this file") as caught:
        run(str(file), engine="llama.cpp", threads=1, anyway=True)
    assert said in caught.value.found


def test_a_file_that_was_tried_is_not_tried_again(path, engine, monkeypatch):
    monkeypatch.setattr(child, "run_steps", lambda *_, **__: pytest.fail("it was tried again"))
    with run(str(path), engine="llama.cpp", threads=1) as again:
        assert again("hello", max_tokens=1).tokens


def test_other_programs_cannot_ask_it(engine):
    there = engine._server.listening_address
    assert there.startswith("http://127.0.0.1:")
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(f"{there}/v1/models", timeout=10)
    with caught.value as answer:
        assert answer.code == 401


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"context": 513}, "the model was made for 512 tokens"),
        ({"context": 0}, "context: it is 0"),
        ({"context": "long"}, "context: it is 'long'"),
        ({"kv": "q9_9"}, "'q9_9'"),
        ({"kv": ("f16", "f16", "f16")}, "one type, or two"),
        ({"threads": 0}, "threads: it is 0"),
        ({"threads": True}, "threads: it is True"),
        ({"gpu_layers": -1}, "gpu_layers: it is -1"),
        ({"gpu_layers": 10}, "finds no GPU"),
        ({"dtype": "float32"}, "has no such option"),
        ({"format": "Q4_K"}, r"wb\.export"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_loaded(path, given, said, monkeypatch):
    monkeypatch.setattr(child, "run_steps", lambda *_, **__: pytest.fail("the file was opened"))
    with pytest.raises(WorkbenchError, match=said):
        run(str(path), engine="llama.cpp", **given)


def test_an_option_of_llama_cpp_is_none_of_transformers(path):
    with pytest.raises(WorkbenchError, match="has no such option"):
        run(str(path), threads=1)


def test_a_folder_of_safetensors_is_told_to_be_exported(tmp_path):
    with pytest.raises(WorkbenchError, match=r"wb\.export"):
        run(str(tiny.folder(tmp_path / "model", tiny.weights())), engine="llama.cpp")


def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\3\4" * 100)
    with pytest.raises(WorkbenchError, match=r"model\.gguf"):
        run(str(tmp_path / "model.gguf"), engine="llama.cpp")


def test_what_does_not_fit_is_refused_before_it_is_opened(path, monkeypatch):
    available = type("Memory", (), {"available": 1000, "total": 1000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(child, "run_steps", lambda *_, **__: pytest.fail("the file was opened"))
    with pytest.raises(DoesNotFit, match="running tiny"):
        run(str(path), engine="llama.cpp")


# --- memory -------------------------------------------------------------------------------------


def test_closing_gives_the_memory_back(tmp_path):
    weights = tiny.weights(hidden=1024)
    nbytes = 4 * sum(values.size for values in weights.values())  # 84 MB
    file = tiny.gguf(tmp_path / "wide.gguf", weights, "F32")
    engine = run(str(file), engine="llama.cpp", threads=1)
    assert 0.8 * nbytes < engine.memory_after - engine.memory_before < 3 * nbytes
    stream = engine.stream("hello", max_tokens=200)
    next(stream)
    held = psutil.Process().memory_info().rss
    engine.close()
    engine.close()
    assert held - psutil.Process().memory_info().rss > 0.8 * nbytes
    assert stream.reply.finish == "stopped"
    assert "(closed)" in repr(engine)
    with pytest.raises(WorkbenchError, match="closed"):
        engine("hello")
