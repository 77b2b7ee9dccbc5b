"""The ready commands for vLLM and TGI; neither is run here, so their options are those of their documentation."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from tests.engines import models, servers
from workbench.engines.presets import PRESETS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("commands") / "a model; rm -rf")


def quantized(model, **settings):
    model.config["quantization_config"] = settings
    return model


@pytest.fixture
def plain(model):
    model.config.pop("quantization_config", None)
    return model


def value(words, option):
    return words[words.index(option) + 1]


def test_vllm_in_docker_listens_where_wb_run_looks_and_on_this_machine_alone(plain):
    words = shlex.split(wb.serve_command(plain, "vllm", context=128, kv="fp8"))
    assert value(words, "-p") == "127.0.0.1:8000:8000"
    assert ":8000/" in PRESETS["vllm"].url
    assert value(words, "-v") == f"{plain.path.resolve()}:/model:ro"
    assert (value(words, "--max-model-len"), value(words, "--kv-cache-dtype")) == ("128", "fp8")
    assert "--quantization" not in words


def test_names_with_spaces_and_semicolons_stay_one_word(plain):
    words = shlex.split(wb.serve_command(plain, "vllm", docker=False))
    assert words[:3] == ["vllm", "serve", str(plain.path.resolve())]
    assert value(words, "--served-model-name") == "a model; rm -rf"
    assert value(words, "--host") == "127.0.0.1"


@pytest.mark.parametrize(
    ("settings", "server", "option"),
    [
        ({"quant_method": "compressed-tensors"}, "vllm", ("--quantization", "compressed-tensors")),
        ({"quant_method": "bitsandbytes"}, "vllm", ("--quantization", "bitsandbytes")),
        ({"quant_method": "gptq"}, "tgi", ("--quantize", "gptq")),
        ({"quant_method": "exl2"}, "tgi", ("--quantize", "exl2")),
        ({"quant_method": "fp8"}, "tgi", ("--quantize", "fp8")),
    ],
)
def test_the_way_of_quantizing_is_named_as_the_server_names_it(settings, server, option, model):
    words = shlex.split(wb.serve_command(quantized(model, **settings), server))
    assert value(words, option[0]) == option[1]


def test_the_kernel_of_gptq_is_left_to_vllm(model):
    assert "--quantization" not in wb.serve_command(quantized(model, quant_method="gptq"), "vllm")


def test_tgi_counts_prompt_and_reply(plain):
    words = shlex.split(wb.serve_command(plain, "tgi", context=128, kv="fp8_e5m2"))
    assert (value(words, "--max-input-tokens"), value(words, "--max-total-tokens")) == ("127", "128")
    assert value(words, "-p") == "127.0.0.1:3000:80"


@pytest.mark.parametrize(
    ("settings", "server", "match"),
    [
        ({"quant_method": "exl2"}, "vllm", "serve it by Text Generation Inference"),
        ({"quant_method": "hqq"}, "vllm", "quantize it anew"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "tgi", "serve it by vLLM"),
        ({"quant_method": "<b>"}, "tgi", "quantize it anew"),
    ],
)
def test_what_a_server_does_not_have_is_refused_with_what_does(settings, server, match, model):
    with pytest.raises(wb.WorkbenchError, match=match):
        wb.serve_command(quantized(model, **settings), server)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"server": "ollama"}, '"vllm" or "tgi"'),
        ({"context": 257}, "2 to 256"),
        ({"kv": "q8_0"}, "fp8, fp8_e5m2"),
        ({"port": 0}, "1 to 65535"),
        ({"server": "tgi", "docker": False}, "no wheel"),
    ],
)
def test_options_that_it_does_not_have_are_refused(options, match, plain):
    with pytest.raises(wb.WorkbenchError, match=match):
        wb.serve_command(plain, **options)


def test_a_gguf_is_for_llama_cpp():
    with pytest.raises(wb.WorkbenchError, match=r"wb\.serve"):
        wb.serve_command("demo")


def test_a_model_in_the_hubs_cache_is_shown_with_what_its_links_lead_to(plain, tmp_path):
    """There the folder has a commit's name and holds links, which would lead nowhere in a container."""
    blobs, snapshot = tmp_path / "models--org--name" / "blobs", tmp_path / "models--org--name" / "snapshots" / "0ab"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in plain.path.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    opened = replace(wb.load(snapshot), name="org/name")
    words = shlex.split(wb.serve_command(opened, "vllm"))
    assert value(words, "-v") == f"{blobs.parent.resolve()}:/model:ro"
    assert value(words, "--model") == "/model/snapshots/0ab"
    assert value(words, "--served-model-name") == "org/name"


def test_a_folder_that_docker_cannot_be_shown_is_said(plain, tmp_path):
    shutil.copytree(plain.path, tmp_path / "a:b")
    with pytest.raises(wb.WorkbenchError, match="colon"):
        wb.serve_command(tmp_path / "a:b", "tgi")
    assert wb.serve_command(tmp_path / "a:b", "vllm", docker=False)


def test_the_engine_finds_the_model_under_the_name_that_the_command_gives(plain):
    name = value(shlex.split(wb.serve_command(plain, "vllm")), "--served-model-name")
    listed = servers.says({"object": "list", "data": [{"id": name, "object": "model"}]})
    with servers.running(models=listed) as server, wb.run(server.url, engine="vllm", model=name) as engine:
        assert engine.name == name
