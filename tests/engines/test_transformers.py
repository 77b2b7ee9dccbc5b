"""The transformers engine: answers, streams, stops, and says what it is."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines import models
from workbench.checkpoint import load
from workbench.engines import Engine, run, run_steps
from workbench.exceptions import WorkbenchError

LONG = {"max_tokens": 200}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(checkpoint):
    with run(checkpoint) as made:
        made.ends = frozenset()  # a random model ends anywhere
        yield made


@contextlib.contextmanager
def stopped_in_pass(engine, number):
    """Another thread stops the engine in the middle of this pass; gives the calls of its two layers."""
    calls = [0, 0]

    def first(*_):
        calls[0] += 1
        if calls[0] == number:
            thread = threading.Thread(target=engine.stop)
            thread.start()
            thread.join()

    def second(*_):
        calls[1] += 1

    layers = engine.model.model.layers
    hooks = [layer.register_forward_hook(hook) for layer, hook in zip(layers, (first, second), strict=True)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_has_its_tokens_and_figures(engine):
    reply = engine("hello", max_tokens=12)
    assert len(reply.token_ids) == len(reply.tokens) == 12
    assert "".join(reply.tokens) == reply.text
    assert reply.finish == "length"
    assert reply.prompt_tokens == len(engine.prompt([{"role": "user", "content": "hello"}])[1])
    assert 0 < reply.seconds_to_first < 60
    assert reply.tokens_per_second > 0


def test_the_engine_is_what_the_protocol_says(engine):
    assert isinstance(engine, Engine)
    assert engine.name == "tiny"
    assert engine.what == f"the original weights (F32), computed in {str(engine.model.dtype)[6:]}"


def test_the_pieces_of_a_stream_join_to_its_reply(engine):
    stream = engine.stream("hello", max_tokens=40)
    assert stream.reply is None
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == engine("hello", max_tokens=40).text
    assert len(pieces) > 3


def test_the_prompt_is_the_chat_template_tokenized_once(engine):
    prompt, ids = engine.prompt([{"role": "user", "content": "hi"}])
    assert prompt.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == tiny.SPECIAL.index("<|im_start|>")
    assert engine.tokenizer.decode(ids) == prompt.text


def test_a_system_instruction_comes_first(engine):
    reply = engine("hi", system="be brief", max_tokens=1)
    assert reply.prompt_tokens > engine("hi", max_tokens=1).prompt_tokens


def test_the_reply_ends_at_the_models_own_end(engine, monkeypatch):
    unhindered = engine("hello", max_tokens=9)
    monkeypatch.setattr(engine, "ends", frozenset([unhindered.token_ids[4]]))
    reply = engine("hello", max_tokens=9)
    end = unhindered.token_ids.index(unhindered.token_ids[4])
    assert reply.token_ids == unhindered.token_ids[:end]
    assert reply.finish == "stop"


def test_the_reply_ends_before_a_stop_string(engine):
    whole = engine("hello", max_tokens=40)
    stop = whole.text[8:11]
    reply = engine("hello", max_tokens=40, stop=stop)
    assert reply.text == whole.text[: whole.text.index(stop)]
    assert reply.finish == "stop"
    assert "".join(reply.tokens) == reply.text


def test_sampling_is_repeated_by_its_seed(engine):
    settings = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "max_tokens": 16}
    first = engine("hello", seed=3, **settings)
    assert engine("hello", seed=3, **settings).token_ids == first.token_ids
    assert engine("hello", seed=4, **settings).token_ids != first.token_ids


def test_generation_leaves_the_random_state_of_the_session_alone(engine):
    before = torch.get_rng_state()
    engine("hello", temperature=1.0, max_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bad_setting_is_refused_when_it_is_given(engine):
    with pytest.raises(WorkbenchError, match="temperature"):
        engine.stream("hello", temperature=-1)
    assert engine("hello", max_tokens=1).token_ids  # and the engine is not left busy


def test_a_model_without_a_chat_template_continues_plain_text(tmp_path):
    models.save(tmp_path, "llama")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with run(load(tmp_path)) as engine:
        reply = engine("hello", max_tokens=2)
    assert reply.prompt_tokens == len("hello") - 1  # "he" is one token
    assert "no chat template" in reply.note
    assert "no chat template" in repr(reply)


def test_a_hostile_template_is_an_error_and_the_engine_stays_usable(tmp_path):
    models.save(tmp_path / "evil", "llama")
    (tmp_path / "evil" / "chat_template.jinja").write_text("{{ raise_exception(messages[0].content) }}")
    with run(load(tmp_path / "evil")) as engine:
        for text in ("first", "second"):
            with pytest.raises(WorkbenchError, match=f"evil: its chat template does not work: .*{text}"):
                engine(text)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(engine):
    with pytest.raises(WorkbenchError, match="tokens, and the model's context is 256"):
        engine("x" * 300)


def test_a_reply_ends_where_the_context_does(engine):
    reply = engine("x" * 200, max_tokens=100)
    assert reply.prompt_tokens + len(reply.token_ids) == 256
    assert reply.finish == "length"


def test_a_tokenizer_of_another_model_is_an_error(tmp_path):
    with (
        run(models.opened(tmp_path, "llama", vocab_size=100)) as engine,
        pytest.raises(WorkbenchError, match="it knows 100"),
    ):
        engine("\u00ff\u00fe zzz")


def test_the_ends_are_those_of_all_the_models_files(tmp_path):
    models.save(tmp_path, "llama")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 77]}')
    with run(load(tmp_path)) as engine:
        assert engine.ends == {0, 2, 77}


def test_a_gguf_answers_as_the_folder_does(tmp_path):
    weights = tiny.weights()
    sources = tiny.folder(tmp_path / "m", weights), tiny.gguf(tmp_path / "m.gguf", weights, "F32")
    replies = []
    for source in sources:
        with run(str(source), dtype="float32") as engine:
            replies.append(engine("hello", max_tokens=10))
            assert engine.ends == {2}
    assert replies[0].token_ids == replies[1].token_ids


# --- stopping -----------------------------------------------------------------------------------


def test_stop_from_another_thread_ends_the_reply_and_keeps_its_tokens(engine):
    with stopped_in_pass(engine, 8) as calls:
        reply = engine("hello", **LONG)
    assert calls == [8, 7]
    assert reply.finish == "stopped"
    assert len(reply.token_ids) == 7
    assert "".join(reply.tokens) == reply.text


def test_stop_ends_a_long_prompt_in_the_middle_of_its_pass(engine):
    with stopped_in_pass(engine, 1) as calls:
        reply = engine("hello")
    assert calls == [1, 0]
    assert reply.finish == "stopped"
    assert reply.token_ids == ()
    assert "no tokens" in reply.speed


def test_closing_the_stream_ends_it_and_keeps_what_there_is(engine):
    stream = engine.stream("hello", **LONG)
    pieces = [next(stream) for _ in range(3)]
    stream.close()
    assert stream.reply.text == "".join(pieces)
    assert stream.reply.finish == "stopped"
    assert list(stream) == []


def test_leaving_the_loop_frees_the_engine(engine):
    for _ in engine.stream("hello", **LONG):
        break
    assert engine("hello", max_tokens=1).token_ids


def test_stop_while_nobody_waits_for_a_piece_frees_the_engine(engine):
    stream = engine.stream("hello", **LONG)
    next(stream)
    engine.stop()
    assert stream.reply.finish == "stopped"
    assert engine("hello", max_tokens=1).token_ids


def test_stop_before_the_first_piece_is_not_lost(engine):
    stream = engine.stream("hello", **LONG)
    engine.stop()
    assert list(stream) == []
    assert stream.reply.finish == "stopped"
    assert engine("hello", max_tokens=1).token_ids


def test_stop_without_a_reply_does_nothing(engine):
    engine.stop()
    assert engine("hello", max_tokens=2).finish == "length"


def test_an_engine_answers_one_at_a_time(engine):
    stream = engine.stream("hello", **LONG)
    next(stream)
    with pytest.raises(WorkbenchError, match="still answering"):
        engine("hello")
    stream.close()


def test_no_hooks_are_left_on_the_model(engine):
    engine("hello", max_tokens=2)
    assert not any(module._forward_pre_hooks for module in engine.model.modules())


# --- formats ------------------------------------------------------------------------------------


def test_a_format_runs_by_decoded_weights_and_says_so(checkpoint):
    with run(checkpoint, "Q4_0") as engine:
        assert engine.name == "tiny Q4_0"
        assert "decoded weights" in engine.what
        assert "not its speed" in engine.what
        assert engine("hello", max_tokens=2).token_ids


@pytest.mark.parametrize(
    ("format", "layer"), [("NF4", "Linear4bit"), ("fp4", "Linear4bit"), ("LLM.int8", "Linear8bitLt")]
)
@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_bitsandbytes_runs_in_its_own_layers(tmp_path, source, format, layer):
    weights = tiny.weights()
    made = (
        tiny.folder(tmp_path / "m", weights) if source == "folder" else tiny.gguf(tmp_path / "m.gguf", weights, "Q8_0")
    )
    with run(load(made), format) as engine:
        kinds = {name: type(module).__name__ for name, module in engine.model.named_modules()}
        assert sum(kind == layer for kind in kinds.values()) == 14
        assert kinds["lm_head"] == "Linear"
        assert "as that library loads it: 14 matrices" in engine.what
        reply = engine("hello", max_tokens=5)
        assert len(reply.token_ids) == 5 or reply.finish == "stop"


def test_the_shapes_that_bitsandbytes_cannot_pack_run_all_the_same(checkpoint):
    with run(checkpoint, "NF4") as engine:  # 96 and 80 are no multiples of its blocks
        assert engine("hello", max_tokens=2).prompt_tokens


def test_bitsandbytes_by_decoded_weights_has_plain_layers(checkpoint):
    with run(checkpoint, "NF4", decoded=True) as engine:
        assert {type(module).__name__ for module in engine.model.modules()} & {"Linear4bit"} == set()
        assert "decoded weights" in engine.what


def test_nf4_decoded_and_in_its_own_layers_give_nearly_the_same_logits(tmp_path):
    checkpoint = load(tiny.folder(tmp_path, tiny.weights(tied=False)))
    ids = models.some_ids()
    plan = {info.name: "NF4" for info in checkpoint.matrices if info.role not in ("embed_tokens", "lm_head")}
    with (
        run(checkpoint, "NF4", dtype="float32") as native,
        run(checkpoint, plan, dtype="float32") as decoded,
        torch.inference_mode(),
    ):
        a, b = native.model(ids).logits, decoded.model(ids).logits
    assert (a - b).abs().max() < 0.05 * b.abs().max()


@pytest.mark.parametrize(("given", "item"), [({"format": "Q9"}, "Q9"), ({"engine": "abacus"}, "engine")])
def test_an_unknown_format_or_engine_lists_the_choices(checkpoint, given, item):
    with pytest.raises(WorkbenchError) as caught:
        run(checkpoint, **given)
    assert item in str(caught.value)
    assert caught.value.allowed


def test_run_steps_give_progress_and_the_engine(checkpoint):
    steps, seen = run_steps(checkpoint, "Q8_0"), []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            engine = end.value
            break
    assert engine.name == "tiny Q8_0"
    assert seen[-1].unit == "B"
    engine.close()


# --- memory -------------------------------------------------------------------------------------


def test_a_closed_engine_says_so_and_has_let_go_of_the_model(checkpoint):
    engine = run(checkpoint)
    stream = engine.stream("hello", **LONG)
    next(stream)
    engine.close()
    engine.close()
    assert stream.reply.finish == "stopped"
    assert engine.model is None
    with pytest.raises(WorkbenchError, match="closed"):
        engine("hello")
    assert "(closed)" in repr(engine)


def test_memory_is_measured_before_and_after(tmp_path):
    weights = tiny.weights(hidden=1024, layers=2)  # 84 MB in float32
    nbytes = 4 * sum(values.size for values in weights.values())
    with wb.run(load(tiny.folder(tmp_path, weights)), dtype="float32") as engine:
        assert 0.5 * nbytes < engine.memory_after - engine.memory_before < 2 * nbytes
