"""Who answers in Chat: formats and files in transformers and llama.cpp, and servers; each as code, or why it cannot."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

import workbench as wb
from tests import tiny
from tests.engines.servers import Asked, running, says
from tests.panels.driving import asked, finished, html_of, result_of, until
from workbench import panels
from workbench.panels import answerer
from workbench.panels.answerer import Answerer
from workbench.panels.side import FILE, SERVER, Side

SEEDS = itertools.count(700)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.gguf(tmp_path / "tiny.gguf", tiny.weights(seed=next(SEEDS)), "F32")


@pytest.fixture
def session(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> panels.Session:
    monkeypatch.chdir(tmp_path)
    made = panels.Session(wb.load(path), source=str(path), threaded=True)
    yield made
    made.close_engines()


def two_pieces(given: Asked) -> None:
    given.begin()
    given.piece("one ")
    given.piece(f"two {HOSTILE}")
    given.piece(None, "stop")
    given.write("data: [DONE]\n\n")


def chat_of(session: panels.Session, tokens: int = 5) -> panels.Chat:
    panel = panels.Chat(session)
    panel.sampling.max_tokens.value = tokens
    return panel


# --- files in llama.cpp ------------------------------------------------------------------------


def test_what_was_exported_answers_in_llama_cpp_beside_its_decoded_weights(session):
    app = wb.app(session=session)
    session.format = "Q8_0"
    app.export.run()
    finished(session)
    app.export.talk.click()
    assert app.shown is app.chat
    app.chat.sampling.max_tokens.value = 5
    session.second = Side("Q8_0")
    turn = asked(app.chat, "hi there")
    assert turn.names == ("Q8_0 in llama.cpp", "Q8_0 in transformers")
    assert turn.replies[0].prompt_tokens == turn.replies[1].prompt_tokens
    assert turn.compared.verdict in html_of(app.chat).lower()
    assert result_of(app.chat.code).verdict == turn.compared.verdict


def test_llama_cpp_and_a_format_that_is_no_file_yet_leads_to_export_or_back(session):
    app = wb.app(session=session)
    session.first = Side("Q5_K_M", "llama.cpp")
    assert session.format == "Q5_K_M"
    picker = app.chat.first
    assert "it is not one yet" in picker.said.value
    assert app.chat.send.disabled
    assert app.chat.code == ""
    picker.export.click()
    assert app.shown is app.export
    assert app.export.what.value == "Q5_K_M"
    picker.decode.click()
    assert session.first == Side("Q5_K_M")
    assert not app.chat.send.disabled


def test_the_opened_file_runs_as_it_is_with_the_options_that_were_chosen(session):
    panel = chat_of(session)
    picker = panel.first
    picker.what.value, picker.engine.value = "original", "llama.cpp"
    picker.context.value, picker.keys.value, picker.threads.value = 256, "q8_0", 1
    assert session.first == Side("original", "llama.cpp", context=256, kv=("q8_0", "f16"), threads=1)
    turn = asked(panel, "hi there")
    assert "context 256, keys and values in q8_0 and f16, 1 threads" in turn.whats[0]
    assert turn.code.splitlines()[-2] == (
        "chat = wb.run(model, engine='llama.cpp', context=256, kv=('q8_0', 'f16'), threads=1)"
    )
    assert result_of(panel.code).text == turn.replies[0].text


def test_keys_and_values_are_kept_as_chosen_in_transformers_too(session):
    session.first = Side("original")
    panel = chat_of(session)
    picker = panel.first
    assert picker.keys.value == ""
    assert picker.context.layout.display == "none"
    picker.keys.value = "q8_0"
    assert session.first.kv == ("q8_0", "f16")
    turn = asked(panel, "hi there")
    assert "chat = wb.run(model, kv=('q8_0', 'f16'))" in turn.code
    assert "q8_0" in turn.whats[0]
    picker.keys.value, picker.values.value = "", ""
    picker.values.value = ""
    assert session.first.kv in (None, ("f16", "f16"))


def test_any_gguf_file_can_be_named_and_one_that_is_not_there_is_told(session, path):
    panel = chat_of(session)
    panel.first.what.value = FILE
    assert session.first.engine == "llama.cpp"
    assert session.format == "Q4_K_M"  # what Export writes is as it was
    for wrong, said in (
        ("x" * 300 + ".gguf", "no file can be there"),
        ("", "none is named"),
        ("other.txt", "no GGUF file"),
        ("none.gguf", "no such file"),
    ):
        panel.first.file.value = wrong
        assert said in panel.first.said.value
        assert panel.send.disabled
    panel.first.file.value = path.name
    turn = asked(panel, "hi")
    assert turn.names == ("tiny.gguf in llama.cpp",)
    assert result_of(panel.code).text == turn.replies[0].text


def test_a_file_that_was_written_anew_is_opened_anew(session, path):
    session.first = Side(FILE, "llama.cpp", file=path.name)
    panel = chat_of(session)
    asked(panel, "hi")
    (first,) = session.engines.values()
    tiny.gguf(path, tiny.weights(seed=next(SEEDS)), "F32")
    asked(panel, "hi")
    (second,) = session.engines.values()
    assert first.closed
    assert not second.closed


def test_a_file_that_llama_cpp_refuses_is_told_and_the_question_goes_back(session, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    session.first = Side(FILE, "llama.cpp", file="bad.gguf")
    panel = chat_of(session)
    panel.prompt.value = "hi"
    panel.run()
    assert session.jobs.wait(60)
    assert "bad.gguf" in panel.strip.said.value
    assert panel.prompt.value == "hi"
    assert panel.speeds == []


@pytest.mark.parametrize(
    ("side", "said", "export"),
    [
        (Side("NF4", "llama.cpp"), "they cannot hold NF4", ""),
        (Side("original", "llama.cpp"), "no GGUF file", "BF16"),
        (Side("Q4_K_M", "llama.cpp"), "it is not one yet", "Q4_K_M"),
        (Side(SERVER, "openai"), "address: none is given", ""),
        (Side(SERVER, "vllm", url="ftp://host"), "http://host:port/v1", ""),
        (Side(SERVER, "vllm", url="http://me:secret@host/v1"), "a key", ""),
        (Side(SERVER, "vllm", key="NO_SUCH_KEY"), "no environment variable", ""),
    ],
    ids=str,
)
def test_what_cannot_be_run_there_says_why_and_what_to_do(tmp_path, side, said, export):
    session = panels.Session(wb.load(tiny.folder(tmp_path / "model", tiny.weights())), threaded=True)
    session.first = side
    panel = panels.Chat(session)
    found = Answerer(session, side)
    assert said in str(found.hindrance)
    assert found.hindrance.allowed or found.hindrance.do
    assert found.to_export == export
    assert panel.code == ""
    assert "secret" not in html_of(panel) + repr(panel)


@pytest.mark.parametrize(
    ("side", "extra"),
    [(Side("Q8_0"), "transformers"), (Side("original", "llama.cpp"), "llama.cpp"), (Side(SERVER, "ollama"), "server")],
    ids=str,
)
def test_an_engine_that_is_not_installed_says_how_to_install_it(session, monkeypatch, side, extra):
    monkeypatch.setattr(answerer, "find_spec", lambda name: None)
    session.first = side
    panel = panels.Chat(session)
    assert f"quantization-workbench[{extra}]" in panel.first.said.value
    assert panel.send.disabled


# --- servers -----------------------------------------------------------------------------------


def test_a_server_lists_its_models_answers_and_stands_beside_a_format(session):
    models = {"object": "list", "data": [{"id": "small"}, {"id": HOSTILE}]}
    with running(chat=two_pieces, models=says(models)) as server:
        panel = chat_of(session)
        picker = panel.second
        picker.what.value = SERVER
        picker.engine.value = "vllm"
        picker.url.value = f"{server.url} "
        picker.ask.click()
        finished(session)
        assert dict(picker.model.options) == {"its only one": "", "small": "small", HOSTILE: HOSTILE}
        picker.model.value = HOSTILE
        turn = asked(panel, "hi")
        assert json.loads(server.seen[-1].body)["model"] == HOSTILE
        assert turn.compared.first_difference is not None
        assert "<img src=x" not in html_of(panel)
        assert f"second = wb.run({server.url!r}, engine='vllm', model={HOSTILE!r})" in turn.code
        assert result_of(panel.code).verdict == turn.compared.verdict
        picker.engine.value = "tgi"  # another server has other models
        assert session.second.model == ""
        assert dict(picker.model.options) == {"its only one": ""}


def test_a_preset_is_asked_where_it_listens(session):
    session.first = Side(SERVER, "ollama", model="smollm2")
    panel = panels.Chat(session)
    assert "chat = wb.run('ollama', model='smollm2')" in panel.code
    assert "wb.load" not in panel.code
    assert panel.first.url.placeholder == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize("ask", ["send", "list"])
def test_a_server_that_is_down_is_named_and_the_panel_goes_on(session, ask):
    with running() as server:
        gone = server.url
    session.first = Side(SERVER, "openai", url=gone)
    panel = chat_of(session)
    panel.prompt.value = "hi"
    (panel.run if ask == "send" else panel.first.ask.click)()
    assert session.jobs.wait(60)
    assert "does not answer" in panel.strip.said.value
    assert panel.prompt.value == "hi"
    assert not panel.send.disabled
    session.first = Side("original", "llama.cpp")
    assert asked(panel, "hi").replies


def test_a_model_that_a_server_does_not_have_is_told_with_those_it_has(session):
    with running(chat=two_pieces) as server:
        session.first = Side(SERVER, "openai", url=server.url, model="large")
        panel = chat_of(session)
        panel.run()
        assert session.jobs.wait(60)
        assert "no model &#x27;large&#x27;" in panel.strip.said.value
        assert "tiny" in panel.strip.said.value


def test_a_key_is_chosen_by_its_variable_and_shown_nowhere(session, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "geheim")
    with running(chat=two_pieces) as server:
        session.first = Side(SERVER, "openai", url=server.url)
        panel = chat_of(session)
        assert ("$SOME_API_KEY", "SOME_API_KEY") in panel.first.key.options
        panel.first.key.value = "SOME_API_KEY"
        asked(panel, "hi")
        assert server.seen[-1].headers["authorization"] == "Bearer geheim"
        assert "key='SOME_API_KEY'" in panel.code
        states = json.dumps([widget.get_state() for widget in _widgets(panel)], default=str)
        assert "geheim" not in html_of(panel) + repr(panel) + states


def _widgets(panel):
    queue = [panel.widget]
    while queue:
        widget = queue.pop()
        queue.extend(getattr(widget, "children", ()))
        yield widget


# --- what is held, and how fast it was ---------------------------------------------------------


def test_every_reply_adds_a_line_to_the_table_with_units(session):
    session.first = Side("original", "llama.cpp")
    panel = chat_of(session, 8)
    asked(panel, "hi there")
    session.second = Side("Q4_K")
    asked(panel, "hi there")
    first, second, third = panel.speeds
    assert (first.what, first.engine) == (second.what, second.engine) == ("original", "llama.cpp")
    assert (third.what, third.engine) == ("Q4_K", "transformers, decoded weights")
    assert all(each.prompt > 0 and each.first > 0 for each in panel.speeds)
    page = html_of(panel)
    assert "Reply, tokens/s" in page
    assert "not of the format" in page
    head, _, *rows = panel.copied.code.splitlines()
    assert head.count("|") == 7
    assert len(rows) == 3
    panel.forget()
    assert len(panel.speeds) == 3
    session.open(wb.load(tiny.gguf(session.checkpoint.path.with_name("b.gguf"), tiny.weights(), "F32")))
    assert panel.speeds == []
    assert panel.copied.code == ""


def test_what_a_server_does_not_tell_is_not_made_up(session):
    with running(chat=two_pieces) as server:
        session.first = Side(SERVER, "openai", url=server.url)
        panel = chat_of(session)
        asked(panel, "hi")
    (line,) = panel.speeds
    assert math.isnan(line.prompt)
    assert line.cells[2] == line.cells[5] == "not told"


def test_both_sides_may_be_the_same_format_but_not_the_same_thing(session):
    session.format, session.second = "Q8_0", Side("Q8_0")
    panel = chat_of(session)
    panel.run()
    assert "compared with itself" in panel.strip.said.value
    assert session.engines == {}


# --- no model, and what goes wrong ---------------------------------------------------------------


def another(given: Asked) -> None:
    given.begin()
    given.piece("one ")
    given.piece("three", "stop")


def test_servers_answer_without_any_model_open(path):
    session = panels.Session(threaded=True)
    panel = chat_of(session)
    assert "none is open" in panel.first.said.value
    assert panel.send.disabled
    with running(chat=two_pieces) as one, running(chat=another) as other:
        panel.first.what.value = SERVER
        panel.first.engine.value, panel.first.url.value = "vllm", one.url
        assert asked(panel, "hi").replies[0].text.startswith("one two")
        assert f"chat = wb.run({one.url!r}, engine='vllm')" in panel.code
        panel.first.ask.click()
        finished(session)
        assert "tiny" in dict(panel.first.model.options)
        panel.second.what.value = SERVER
        panel.second.engine.value, panel.second.url.value = "openai", other.url
        turn = asked(panel, "hi")
        assert turn.compared.first_difference == 1
        assert result_of(panel.code).verdict == turn.compared.verdict
        assert [each.what for each in panel.speeds] == ["its model"] * 3
        panel.first.what.value = FILE
        panel.first.file.value = str(path)
        assert asked(panel, "hi").names[0] == "tiny.gguf in llama.cpp"
    session.open(wb.load(path))
    assert "Q4_K_M" in dict(panel.first.what.options).values()
    session.close_engines()


def endless(given: Asked) -> None:
    given.begin()
    given.piece("so ")
    while not given.server.over.is_set():
        given.write(": still here\n\n" * 1000)


BAD = {
    "busy": (says({"error": {"message": "slow down"}}, 429, retry_after="7"), "wait 7 seconds"),
    "rubbish": (says(["no reply"]), "not the OpenAI protocol"),
    "endless": (endless, "does not stop sending"),
    "slow": (lambda given: given.server.over.wait(60), "silent for too long"),
    "broken": (says({"error": {"message": HOSTILE}}, 500), "answers 500"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_server_that_misbehaves_is_told_and_the_panel_goes_on(session, monkeypatch, how):
    monkeypatch.setattr("workbench.engines.connection.SILENCE", 0.3)
    answer, said = BAD[how]
    with running(chat=answer) as server:
        session.first = Side(SERVER, "openai", url=server.url)
        panel = chat_of(session)
        panel.prompt.value = "hi"
        panel.run()
        assert session.jobs.wait(60)
        assert said in panel.strip.said.value
        assert "<img src=x" not in html_of(panel)
        assert panel.prompt.value == ("" if how == "endless" else "hi")  # what was said is kept, with its question
        server.answers["/v1/chat/completions"] = two_pieces
        assert asked(panel, "hi").replies[0].text.startswith("one two")
        assert panel.strip.said.value == ""


def test_a_silent_server_is_stopped_at_once_and_can_be_asked_again(session):
    with running(chat=lambda given: given.server.over.wait(60)) as server:
        session.first = Side(SERVER, "openai", url=server.url)
        panel = chat_of(session)
        panel.prompt.value = "hi"
        panel.run()
        until(lambda: len(server.seen) == 2)
        panel.stop.click()
        assert session.jobs.wait(5)
        assert panel.prompt.value == "hi"
        server.answers["/v1/chat/completions"] = two_pieces
        assert asked(panel, "hi").replies


def test_a_context_longer_than_trained_is_refused_with_what_is_allowed(session):
    session.first = Side("original", "llama.cpp")
    panel = chat_of(session)
    panel.first.context.value = 100_000
    panel.prompt.value = "hi"
    panel.run()
    assert session.jobs.wait(60)
    said = panel.strip.said.value
    assert "the model was made for 512 tokens" in said
    assert "a whole number from 1 to 512" in said
    assert panel.prompt.value == "hi"
    panel.first.context.value = 512
    assert asked(panel, "hi").replies


def test_layers_on_a_gpu_are_chosen_and_refused_where_there_is_none(session, monkeypatch):
    monkeypatch.setattr("workbench.engines.options.has_gpu", lambda: False)
    session.first = Side("original", "llama.cpp")
    panel = chat_of(session)
    picker = panel.first
    assert dict(picker.gpu_layers.options) == {"all, if there is one": -1, "none": 0, "1": 1, "2": 2}
    assert picker.gpu_layers.value == -1
    picker.gpu_layers.value = 2
    assert session.first.gpu_layers == 2
    assert "gpu_layers=2)" in panel.code
    panel.run()
    assert session.jobs.wait(60)
    assert "finds no GPU" in panel.strip.said.value
    picker.gpu_layers.value = 0
    assert asked(panel, "hi").replies
    assert "gpu_layers=0)" in panel.code
    picker.what.value = FILE
    assert len(picker.gpu_layers.options) > 100
    session.first = Side("original")
    assert picker.gpu_layers.layout.display == "none"


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_a_model_without_a_tokenizer_is_told_and_another_can_be_asked(tmp_path, engine):
    bare = tiny.gguf(tmp_path / "bare.gguf", tiny.weights(seed=next(SEEDS)), "F32", tokenizer=False)
    whole = tiny.gguf(tmp_path / "whole.gguf", tiny.weights(seed=next(SEEDS)), "F32")
    session = panels.Session(wb.load(bare), source=str(bare), threaded=True)
    session.first = Side("original", engine)
    panel = chat_of(session)
    panel.prompt.value = "hi"
    panel.run()
    assert session.jobs.wait(60)
    assert "tokenizer" in panel.strip.said.value
    assert "Traceback" not in panel.strip.said.value
    assert panel.prompt.value == "hi"
    session.open(wb.load(whole))
    assert asked(panel, "hi").replies
    session.close_engines()
