"""Ollama's interface, and what it is told of a model. No Ollama was run: a small server answers in the shapes that its
own documentation gives (docs/api.md of the ollama repository, of August 2026)."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

import workbench as wb
from tests import tiny
from tests.engines import go_templates
from tests.engines.servers import Asked, running, says
from workbench.engines import modelfile, ollama
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress

TAGS = {
    "models": [
        {
            "name": "smollm2:latest",
            "model": "smollm2:latest",
            "modified_at": "2025-05-10T08:06:48.639712648-07:00",
            "size": 4_683_075_271,
            "digest": "0a8c266910232fd3291e71e5ba1e058cc5af9d411192cf88b6d30e92b6e73163",
            "details": {"format": "gguf", "family": "llama", "parameter_size": "7.6B", "quantization_level": "Q4_K_M"},
        }
    ]
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.gguf(tmp_path_factory.mktemp("model") / "my tiny.gguf", tiny.weights(), "Q8_0")


def lines(*things: object, code: int = 200):
    """The answer of several JSON objects, one a line."""

    def answer(asked: Asked) -> None:
        asked.begin(code, "application/x-ndjson")
        for thing in things:
            asked.write(json.dumps(thing) + "\n")

    return answer


CREATED = lines(
    {"status": "parsing GGUF"},
    {"status": "using existing layer sha256:432f310a77f4650a88d0fd59ecdd7cebed8d684bafea53cbff0473542964f0c3"},
    {"status": "writing manifest"},
    {"status": "success"},
)


def blobs(asked: Asked) -> None:
    """Has none, and takes what it is sent if it is what it was said to be."""
    if asked.command == "HEAD":
        return asked.begin(404)
    digest = f"sha256:{hashlib.sha256(asked.body).hexdigest()}"
    if not asked.path.endswith(digest):
        return says({"error": "digest mismatch"}, 400)(asked)
    return asked.begin(201)


def place(file: Path) -> str:
    return f"/api/blobs/sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


# --- the calls -----------------------------------------------------------------------------------


def test_a_file_is_sent_once_with_all_that_ollama_should_know(file: Path):
    with running(**{place(file): blobs, "/api/create": CREATED}) as server:
        assert wb.ollama.create("mine:4bit", str(file), context=256, url=server.root) == "mine:4bit"
        kinds = [(asked.command, asked.path) for asked in server.seen]
        request = json.loads(server.seen[-1].body)
        assert server.seen[1].body == file.read_bytes()
    assert kinds == [("HEAD", place(file)), ("POST", place(file)), ("POST", "/api/create")]
    assert request["model"] == "mine:4bit"
    assert request["files"] == {"my-tiny.gguf": place(file).rpartition("/")[2]}
    assert request["parameters"]["num_ctx"] == 256
    assert "<|im_end|>" in request["parameters"]["stop"]
    assert request["template"].endswith("<|im_start|>assistant\n")


def test_a_file_that_ollama_has_is_not_sent_again(file: Path):
    with running(**{place(file): lambda asked: asked.begin(200), "/api/create": CREATED}) as server:
        wb.ollama.create("mine", str(file), url=f"{server.root}/v1/")
        assert [asked.command for asked in server.seen] == ["HEAD", "POST"]


def test_models_are_a_table():
    with running(**{"/api/tags": says(TAGS)}) as server:
        table = wb.ollama.models(url=server.root)
    assert table.to_dict("records")[0] == {
        "name": "smollm2:latest",
        "nbytes": 4_683_075_271,
        "parameters": "7.6B",
        "quantization": "Q4_K_M",
        "family": "llama",
        "changed": "2025-05-10T08:06:48.639712648-07:00",
    }


def test_a_pull_tells_its_progress():
    part = {"status": "pulling 8eeb52dfb3bb", "digest": "8eeb52dfb3bb", "total": 2_142_590_208}
    pulled = lines(
        {"status": "pulling manifest"},
        part,
        part | {"completed": 241_970},
        *({"status": status} for status in ("verifying sha256 digest", "writing manifest", "success")),
    )
    with running(**{"/api/pull": pulled}) as server:
        assert wb.ollama.pull("llama3.2", url=server.root) == "llama3.2"
        assert json.loads(server.seen[0].body) == {"model": "llama3.2", "stream": True}
        seen: list[Progress] = []
        ollama._follow(ollama._connected(server.root, None), "/api/pull", {}, seen.append)
    assert Progress(241_970, 2_142_590_208, "B", "pulling 8eeb52dfb3bb") in seen


def test_a_model_is_deleted_by_name():
    with running(**{"/api/delete": lambda asked: asked.begin(200)}) as server:
        wb.ollama.delete("mine", url=server.root)
        assert (server.seen[0].command, json.loads(server.seen[0].body)) == ("DELETE", {"model": "mine"})


# --- what goes wrong -----------------------------------------------------------------------------


def test_an_ollama_that_is_down_is_told_with_the_command_that_starts_it():
    with socket.socket() as unheard:  # bound, and never listening
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(WorkbenchError, match=r"Ollama does not answer .*refused") as caught:
            wb.ollama.models(url=f"http://127.0.0.1:{unheard.getsockname()[1]}")
    assert "ollama serve" in caught.value.do


def test_a_silent_ollama_is_given_up():
    with running(**{"/api/tags": lambda asked: asked.server.over.wait(60)}) as server:  # noqa: SIM117
        with pytest.raises(WorkbenchError, match="silent for too long"):
            wb.ollama.models(url=server.root, silence=0.2)


def endless(asked: Asked) -> None:
    asked.begin()
    while not asked.server.over.is_set():
        asked.write(" " * 100_000)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lines({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}), "not exist"),
        (says({"error": "model 'x' not found"}, 404), "404: model 'x' not found"),
        (says({"error": "slow down"}, 429, retry_after="7"), "too many requests"),
        (says({}, 307, location="http://elsewhere.example/"), "sends elsewhere"),
        (lines({"status": "pulling manifest"}), r"broke off \(pulling manifest\)"),
        (lines(), "it said nothing"),
        (lines([1, 2]), "no Ollama"),
        (says("<html>"), "no Ollama"),
        (endless, "does not stop sending"),
    ],
)
def test_what_ollama_refuses_or_does_not_do_is_told(answer, said: str, monkeypatch):
    monkeypatch.setattr(ollama, "LARGEST", 1_000_000)
    with running(**{"/api/pull": answer}) as server, pytest.raises(WorkbenchError, match=said):
        wb.ollama.pull("x", url=server.root)


@pytest.mark.parametrize("answer", [says({"models": 7}), says([1]), says({}), lines()])
def test_rubbish_for_a_list_of_models_is_an_error(answer):
    with running(**{"/api/tags": answer}) as server, pytest.raises(WorkbenchError, match="no Ollama"):
        wb.ollama.models(url=server.root)


def test_a_file_that_arrives_changed_is_no_model(file: Path):
    def garbled(asked: Asked) -> None:
        if asked.command == "HEAD":
            return asked.begin(404)
        return says({"error": 'digest mismatch, expected "a", got "b"'}, 400)(asked)

    with running(**{place(file): garbled, "/api/create": CREATED}) as server:
        with pytest.raises(WorkbenchError, match="digest mismatch"):
            wb.ollama.create("mine", str(file), url=server.root)
        assert [asked.path for asked in server.seen] == [place(file)] * 2


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a:b:c", "x" * 100, 7, "a\n"])
def test_a_name_that_ollama_does_not_take_is_refused_before_anything_is_sent(name, file: Path):
    with running() as server:
        with pytest.raises(WorkbenchError, match="the model's name"):
            wb.ollama.create(name, str(file), url=server.root)
        assert not server.seen


def test_a_folder_and_a_split_model_are_told_to_be_exported(tmp_path: Path):
    folder = tiny.folder(tmp_path / "m", tiny.weights())
    split = tiny.gguf(tmp_path / "split.gguf", tiny.weights(), "F32", split=7)
    for source, said in ((folder, "a folder of safetensors"), (split, "in several files")):
        with pytest.raises(WorkbenchError, match=said) as caught:
            wb.ollama.create("mine", str(source))
        assert "wb.export" in caught.value.do


# --- the Modelfile -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [shape for shape in go_templates.SHAPES if shape not in go_templates.TOO_INVOLVED])
def test_go_renders_the_template_as_jinja_renders_the_models(shape: str):
    """As Go's own text/template did it, which tests/recorded/go_templates.json keeps."""
    known = go_templates.known(shape)
    recorded = go_templates.recorded()[shape]
    assert [known.template, known.system] == recorded["asked"]
    for talk, rendered in zip(go_templates.TALKS, recorded["rendered"], strict=True):
        expected = go_templates.by_jinja(shape, talk)
        assert expected is None or rendered == expected, talk


def test_most_templates_can_be_said_and_what_cannot_is_left_to_ollama():
    said = {shape: go_templates.known(shape) for shape in go_templates.SHAPES}
    assert {shape for shape, known in said.items() if not known.template} == set(go_templates.TOO_INVOLVED)
    assert all("Ollama makes it out" in said[shape].note for shape in go_templates.TOO_INVOLVED)
    assert said["a system message of its own"].system == 'You are Q, made by "A".'
    assert "refuses a system message" in said["refuses a system message"].note


def test_the_modelfile_has_template_stop_words_and_parameters(file: Path):
    text = wb.ollama.modelfile(str(file), context=100_000)
    assert text.splitlines()[1] == "FROM ./my tiny.gguf"
    assert (
        'TEMPLATE """{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}'
        '<|im_start|>assistant\n"""\n'
    ) in text
    assert "PARAMETER num_ctx 512\n" in text  # no more than the model was made for
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert 'PARAMETER stop "<|im_start|>user"\n' in text


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ({}, True),
        ({"add_bos_token": False}, False),
        ({"model": "gpt2"}, False),
        ({"model": "gpt2", "pre": "llama-bpe"}, True),
        ({"model": "gpt2", "add_bos_token": True}, True),
    ],
)
def test_the_token_that_llama_cpp_begins_with_is_not_in_the_template(said: dict, begins: bool):
    model = go_templates.model("refuses it and takes turns in brackets")
    model.metadata |= {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    assert go_templates.told(model).template.startswith("<s>") is not begins


def test_settings_that_the_models_author_recommends_are_passed_on():
    model = go_templates.model("ChatML")
    model.metadata |= {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": "no"}
    assert go_templates.told(model).parameters == {"num_ctx": 512, "temperature": 0.6, "top_k": 20}


def test_a_hostile_template_writes_no_line_of_its_own():
    for shape in ("ends the quotes", "Go's own braces"):
        text = modelfile.modelfile(go_templates.model(shape), Path("m.gguf"))  # in the confined process, as always
        names = {line.split()[0] for line in text.splitlines()}
        assert names == {"#", "FROM", "PARAMETER"}
    with pytest.raises(WorkbenchError, match="does not print"):
        modelfile.modelfile(go_templates.model("ChatML"), Path("m\nADAPTER x.gguf"))
