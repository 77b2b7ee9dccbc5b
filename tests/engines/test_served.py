"""llama.cpp's server for other programs: a real one, over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request

import psutil
import pytest

import workbench as wb
from tests import tiny
from tests.engines.test_llamacpp import changed
from workbench.engines import run, serve_steps
from workbench.exceptions import WorkbenchError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny.weights(), "F32")


@pytest.fixture(scope="module")
def served(path):
    with wb.serve(str(path), threads=1) as served:
        yield served


def asked(url, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer), answer.headers


def test_it_answers_other_programs_as_the_engine_does(served, path):
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0}
    answer, _ = asked(f"{served.url}/chat/completions", body)
    with run(str(path), engine="llama.cpp", threads=1) as engine:
        reply = engine("hello", max_tokens=12)
    assert answer["choices"][0]["message"]["content"] == reply.text
    assert answer["usage"]["prompt_tokens"] == reply.prompt_tokens
    assert answer["model"] == "tiny"


def test_it_listens_on_this_machine_alone_and_to_no_page_of_a_browser(served):
    assert served.url.startswith("http://127.0.0.1:")
    listening = {c.laddr.ip for c in psutil.Process(served._process.pid).net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    found, headers = asked(f"{served.url}/models", origin="http://page.example")
    assert [model["id"] for model in found["data"]] == ["tiny"]
    assert not headers["Access-Control-Allow-Origin"]


def test_it_says_how_to_use_it(path, capsys):
    with wb.serve(str(path), threads=1) as served:
        said = capsys.readouterr().out
        assert said == f"{served.usage}\n"
        _, curl, client = served.usage.splitlines()
        assert curl.startswith(f"curl {served.url}/chat/completions -d ")
        body = curl.partition(" -d ")[2].strip("'")
        assert asked(f"{served.url}/chat/completions", json.loads(body) | {"max_tokens": 1})[0]["choices"]
        assert f'base_url="{served.url}"' in client
        compile(client, "usage", "eval")
        assert repr(served) == f'<"tiny" served at {served.url}>'
    assert repr(served) == '<"tiny" no longer served>'


def test_closing_it_frees_the_port(path):
    first = wb.serve(str(path), threads=1)
    port = int(first.url.split(":")[2].removesuffix("/v1"))
    with pytest.raises(WorkbenchError, match=f"port {port}: it cannot be had"):
        wb.serve(str(path), port, threads=1)
    first.close()
    first.close()
    assert not first.running
    with wb.serve(str(path), port, threads=1) as second:
        assert second.url == first.url


def test_it_ends_with_the_process_that_started_it(path):
    code = (
        "import os, sys, workbench as wb\n"
        f"served = wb.serve({str(path)!r}, threads=1)\n"
        "print(served._process.pid, flush=True)\n"
        "os._exit(1)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    number = int(found.stdout.split()[-1])
    if psutil.pid_exists(number):
        psutil.Process(number).wait(60)  # raises TimeoutExpired if it goes on


def test_steps_that_are_closed_leave_no_server(path):
    before, steps = set(psutil.Process().children()), serve_steps(str(path), threads=1)
    while next(steps).message != "opening tiny":
        pass
    (server,) = set(psutil.Process().children()) - before
    steps.close()
    assert not server.is_running()


@pytest.mark.parametrize(
    ("key", "old", "new", "kind", "form", "said"),
    [
        ("llama.attention.layer_norm_rms_epsilon", 1e-5, -1.0, 6, "<f", "GGML_ASSERT"),
        ("llama.block_count", 2, 3, 4, "<I", "blk.2.attn_norm.weight"),
    ],
)
def test_what_llama_cpp_refuses_or_dies_of_is_an_error(path, tmp_path, key, old, new, kind, form, said):
    with pytest.raises(WorkbenchError, match=r"llama\.cpp does not serve this file") as caught:
        wb.serve(str(changed(path, tmp_path, key, old, new, kind, form)), threads=1, anyway=True)
    assert said in caught.value.found


def test_a_context_longer_than_trained_is_refused_with_what_is_allowed(path):
    with pytest.raises(WorkbenchError, match="context: it is 513, and the model was made for 512 tokens") as caught:
        wb.serve(str(path), context=513)
    assert caught.value.allowed == "a whole number from 1 to 512, or None"


@pytest.mark.parametrize("port", [-1, 65536, "8080", True])
def test_a_port_that_is_none_is_refused(path, port):
    with pytest.raises(WorkbenchError, match="port: it is"):
        wb.serve(str(path), port)


def test_a_port_that_another_program_has_is_refused(path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(WorkbenchError, match=r"port=None for any that is free"):
            wb.serve(str(path), other.getsockname()[1])
