"""Servers of OpenAI's protocol: a real llama.cpp over HTTP, and small ones that misbehave."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import threading
import time
import traceback

import pytest

import workbench as wb
from tests import tiny
from tests.engines.servers import running, says
from workbench.engines import ENGINES, run, side_by_side
from workbench.engines.base import Engine
from workbench.engines.presets import PRESETS
from workbench.exceptions import WorkbenchError

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny.weights(), "F32")


@pytest.fixture(scope="module")
def served(path):
    with wb.serve(str(path), threads=1) as served:
        yield served


@pytest.fixture(scope="module")
def engine(served):
    with wb.run(served.url, engine="llama-server") as engine:
        yield engine


# --- a real one ---------------------------------------------------------------------------------


def test_it_is_an_engine_of_the_servers_only_model(engine, served):
    assert isinstance(engine, Engine)
    assert engine.name == "tiny"
    assert f"llama-server at {served.url}" in repr(engine)
    assert not engine.can.logits


def test_it_says_over_http_what_llama_cpp_says_in_this_process(engine, path):
    with run(str(path), engine="llama.cpp", threads=1) as other:
        found = side_by_side(engine, other, "hello", max_tokens=12)
    ours, theirs = found.replies
    assert ours.text == theirs.text
    assert ours.prompt_tokens == theirs.prompt_tokens
    assert ours.finish == theirs.finish == "length"
    assert "".join(ours.tokens) == ours.text
    assert ours.prompt_per_second > 0


def test_its_settings_reach_the_server(engine):
    settings = {"temperature": 1.5, "max_tokens": 12}
    first = engine("hello", seed=3, **settings).text
    assert engine("hello", seed=3, **settings).text == first
    assert engine("hello", seed=4, **settings).text != first
    likeliest = engine("hello", max_tokens=12)
    assert engine("hello", temperature=2.0, top_k=1, max_tokens=12).text == likeliest.text
    stop = likeliest.text[1:3]
    stopped = engine("hello", max_tokens=12, stop=stop)
    assert stopped.text == likeliest.text[: likeliest.text.index(stop)]
    assert stopped.finish == "stop"
    assert engine("hello", system="be brief", max_tokens=1).prompt_tokens > likeliest.prompt_tokens


def test_a_stream_that_is_closed_leaves_the_server_free(engine):
    stream = engine.stream("hello", max_tokens=400, temperature=1.0, seed=2)
    said = [next(stream), next(stream)]
    stream.close()
    assert stream.reply.text == "".join(said)
    assert stream.reply.finish == "stopped"
    assert engine("hello", max_tokens=2).text is not None


def test_a_prompt_that_is_too_long_is_told_in_the_servers_words(engine):
    with pytest.raises(WorkbenchError, match=r"answers 400: .*context size"):
        engine("hello " * 600)


def test_a_model_it_does_not_have_is_named_with_those_it_has(served):
    with pytest.raises(WorkbenchError, match="it has no model 'large'") as caught:
        wb.run(served.url, model="large")
    assert caught.value.allowed == "model= one of tiny"


# --- servers that misbehave ---------------------------------------------------------------------


def test_a_server_that_is_down_is_told_with_the_command_that_starts_it(monkeypatch):
    with socket.socket() as unheard:  # bound, and never listening
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/v1"
        with pytest.raises(WorkbenchError, match=r"Ollama does not answer .*refused") as caught:
            wb.run(url, engine="ollama", model="x")
    assert "ollama serve" in caught.value.do


@pytest.mark.parametrize("place", ["models", "chat"])
def test_a_silent_server_is_given_up(place, monkeypatch):
    monkeypatch.setattr("workbench.engines.connection.LISTING", 0.2)
    with running(**{place: lambda asked: asked.server.over.wait(60)}) as server:  # noqa: SIM117
        with pytest.raises(WorkbenchError, match="silent for too long"):
            wb.run(server.url, silence=0.2)("hello")


def test_a_silent_server_is_stopped_without_waiting_for_it():
    def slow(asked):
        asked.begin()
        asked.piece("one")
        asked.server.over.wait(60)

    with running(chat=slow) as server:
        engine = wb.run(server.url)
        stream = engine.stream("hello")
        assert next(stream) == "one"
        engine.stop()
        assert list(stream) == []
        assert stream.reply.text == "one"
        assert stream.reply.finish == "stopped"


def test_after_a_stop_the_next_question_waits_for_the_thread_that_is_leaving():
    with running(chat=lambda asked: asked.server.over.wait(60)) as server:
        engine = wb.run(server.url)
        leaving = threading.Thread(target=list, args=(engine.stream("hello"),))
        leaving.start()
        while len(server.seen) < 2:
            time.sleep(0.01)
        engine.stop()
        server.answers["/v1/chat/completions"] = rubbish('data: {"choices": [{"delta": {"content": "hi"}}]}\n\n')
        assert engine("again").text == "hi"
        leaving.join(10)
        assert not leaving.is_alive()


@pytest.mark.parametrize(
    "endless",
    [
        lambda asked: asked.piece("more "),
        lambda asked: asked.write("x" * 10_000),  # a line that never ends
        lambda asked: asked.write(": still here\n\n" * 1000),  # comments are no pieces
    ],
)
def test_an_endless_reply_is_cut_and_what_was_said_is_kept(endless):
    def chat(asked):
        asked.begin()
        asked.piece("so ")
        while not asked.server.over.is_set():
            endless(asked)

    with running(chat=chat) as server:
        stream = wb.run(server.url).stream("hello", max_tokens=2)
        with pytest.raises(WorkbenchError, match="does not stop sending"):
            list(stream)
        assert stream.reply.text.startswith("so ")


def test_an_endless_list_of_models_is_cut():
    def models(asked):
        asked.begin(kind="application/json")
        while not asked.server.over.is_set():
            asked.write(" " * 100_000)

    with running(models=models) as server, pytest.raises(WorkbenchError, match="does not stop sending"):
        wb.run(server.url)


def test_too_many_requests_are_told_and_not_repeated():
    busy = says({"error": {"message": "slow down"}}, 429, retry_after="7")
    with running(chat=busy) as server:
        engine = wb.run(server.url)
        with pytest.raises(WorkbenchError, match="429: slow down") as caught:
            engine("hello")
        assert caught.value.do == "wait 7 seconds"
        assert [asked.path for asked in server.seen] == ["/v1/models", "/v1/chat/completions"]


def rubbish(*lines):
    def chat(asked):
        asked.begin()
        asked.write("".join(lines))

    return chat


@pytest.mark.parametrize(
    "chat",
    [
        rubbish("data: {not json}\n\n"),
        rubbish("<html>a page</html>"),
        rubbish('data: {"choices": 7}\n\n'),
        rubbish("data: [1, 2]\n\n"),
        rubbish("data: null\n\n"),
        rubbish(""),
        says({"choices": []}),
    ],
)
def test_rubbish_for_a_reply_is_said_to_be_that(chat):
    with running(chat=chat) as server, pytest.raises(WorkbenchError, match="not the OpenAI protocol"):
        wb.run(server.url)("hello")


@pytest.mark.parametrize("models", [says({"models": []}), says("no"), says([]), says({"data": "x"}), rubbish("<html>")])
def test_rubbish_for_a_list_of_models_is_an_error(models):
    with running(models=models) as server, pytest.raises(WorkbenchError):
        wb.run(server.url)


def test_pieces_of_another_kind_than_text_are_left_out():
    def chat(asked):
        asked.begin()
        asked.event({"choices": [{"delta": {"content": 7}}], "usage": {"prompt_tokens": "many"}})
        asked.event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
        asked.event({"choices": [{"delta": None}], "timings": {"prompt_per_second": "fast"}})
        asked.piece("hi")

    with running(chat=chat) as server:
        reply = wb.run(server.url)("hello")
    assert reply.text == "hi"
    assert "2 characters apart" in reply.note
    assert "broke off" in reply.note
    assert reply.finish == "stopped"


def test_an_error_in_the_middle_of_a_reply_keeps_what_was_said():
    def chat(asked):
        asked.begin()
        asked.piece("so far")
        asked.event({"error": {"message": "out of memory"}})

    with running(chat=chat) as server:
        stream = wb.run(server.url).stream("hello")
        with pytest.raises(WorkbenchError, match="out of memory"):
            list(stream)
        assert stream.reply.text == "so far"


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with running(chat=lambda asked: asked.piece("stolen")) as other:
        away = says({}, 307, location=f"{other.url}/chat/completions")
        with running(chat=away) as server:
            engine = wb.run(server.url, key="MY_KEY")
            with pytest.raises(WorkbenchError, match="sends elsewhere, to http"):
                engine("hello")
        assert other.seen == []


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(monkeypatch, caplog, capsys):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def chat(asked):
        says({"error": {"message": f"the key {asked.headers['authorization']} is wrong"}}, 401)(asked)

    with running(chat=chat) as server:
        engine = wb.run(server.url, key="MY_KEY")
        with pytest.raises(WorkbenchError, match="wants another key") as caught:
            engine("hello")
        assert [asked.headers["authorization"] for asked in server.seen] == [f"Bearer {KEY}"] * 2
    error = caught.value
    shown = [repr(engine), repr(engine.connection), engine.what, str(error), "".join(traceback.format_exception(error))]
    shown += [caplog.text, *capsys.readouterr(), pickle.dumps(error).decode("latin-1")]
    assert not [text for text in shown if KEY in text]
    assert error.__cause__ is None


def test_a_key_can_be_asked_for(monkeypatch):
    monkeypatch.setattr("getpass.getpass", lambda _: KEY)
    with running() as server:
        wb.run(server.url, key="ask")
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("given", [KEY, "NOT_SET_ANYWHERE", 7])
def test_a_key_itself_is_not_taken_and_not_repeated(given):
    with pytest.raises(WorkbenchError, match="it names no environment variable") as caught:
        wb.run("http://127.0.0.1:9/v1", key=given)
    assert KEY not in str(caught.value)


def test_nothing_of_the_environment_is_sent_that_was_not_named(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # not on the way to this machine
    with running() as server:
        wb.run(server.url)
        assert KEY not in str(server.seen[0].headers)


# --- what is asked ------------------------------------------------------------------------------


def test_a_preset_has_an_address_and_is_an_engine():
    assert set(PRESETS) < set(ENGINES)
    for name, preset in PRESETS.items():
        assert preset.url.startswith("http://127.0.0.1:") or name == "openai"


def test_ollamas_default_tag_may_be_left_out():
    listed = says({"data": [{"id": "smol:latest"}, {"id": "other:1b"}]})
    with running(models=listed) as server:
        assert wb.run(server.url, model="smol").name == "smol"
        with pytest.raises(WorkbenchError, match="no model was named"):
            wb.run(server.url)


def test_a_setting_that_a_server_does_not_have_is_refused_and_one_it_has_is_sent():
    def chat(asked):
        asked.begin()
        asked.piece("hi", "stop")

    with running(chat=chat) as server:
        with pytest.raises(WorkbenchError, match="top_k"):
            wb.run(server.url)("hello", top_k=5)
        wb.run(server.url, engine="vllm")("hello", top_k=5)
        body = json.loads(server.seen[-1].body)
    assert body["top_k"] == 5
    assert body["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        ("http://", {}, "url"),
        ("http://user:sk-1@host/v1", {}, "without a key in it"),
        ("http://host:99999/v1", {}, "url"),
        ("http://host/v1?key=1", {}, "url"),
        ("http://127.0.0.1:9/v1", {"silence": 0}, "silence"),
        ("http://127.0.0.1:9/v1", {"context": 100}, "context: a server has no such option"),
        ("http://127.0.0.1:9/v1", {"format": "Q4_K"}, "format: a server has no such option"),
        ("http://127.0.0.1:9/v1", {"engine": "llama.cpp"}, "runs no server"),
        ("model.gguf", {"engine": "vllm"}, "is a server"),
        ("demo", {"model": "x"}, "model: transformers has no such option"),
    ],
)
def test_what_cannot_be_asked_is_named(source, given, said):
    with pytest.raises(WorkbenchError, match=said) as caught:
        run(source, **given)
    assert "sk-1" not in str(caught.value)
