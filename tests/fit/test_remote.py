"""A hub model by its headers: nothing of its weights is downloaded. The hub is posed by a server on this machine."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import packed, tiny
from workbench.checkpoint import hub as hub_room
from workbench.exceptions import WorkbenchError
from workbench.fit import memory, memory_steps


@pytest.fixture
def published(hub, folder, gguf_file):
    """The tiny model under org/tiny, and two GGUFs of it under org/quants."""
    shutil.copytree(folder, hub.folder / "org" / "tiny")
    (hub.folder / "org" / "quants").mkdir()
    for name in ("tiny-Q8_0.gguf", "other.gguf"):
        shutil.copy(gguf_file, hub.folder / "org" / "quants" / name)
    return hub


def test_a_hub_model_is_priced_as_its_folder_is(published, folder):
    for format, engine in ((None, "llama.cpp"), ("Q4_K_M", "llama.cpp"), ("NF4", "bitsandbytes")):
        there = memory("org/tiny", format, engine=engine)
        here = memory(folder, format, engine=engine)
        assert there.parts == here.parts
        assert not there.estimate


@pytest.mark.parametrize("kind", packed.KINDS)
def test_packed_models_are_priced_as_their_folders_are(hub, weights, kind, tmp_path):
    packed.folder(hub.folder / "org" / "packed", kind, weights)
    for engine in ("llama.cpp", "transformers", "vllm"):
        there = memory("org/packed", engine=engine, context=128)
        here = memory(hub.folder / "org" / "packed", engine=engine, context=128)
        assert there.parts == here.parts
        assert there.params == here.params


def test_one_gguf_of_several_is_named_and_priced_to_the_byte(published, gguf_file):
    assert memory("org/quants/tiny-Q8_0.gguf@main").parts == memory(gguf_file).parts
    with pytest.raises(WorkbenchError, match="2 GGUF files") as caught:
        memory("org/quants")
    assert "org/quants/tiny-Q8_0.gguf" in caught.value.allowed


def test_of_large_files_only_the_beginnings_are_fetched(hub, weights, config):
    there = hub.folder / "org" / "large"
    there.mkdir(parents=True)
    (there / "config.json").write_text(json.dumps(config))
    tensors = {name: values.astype(np.float32) for name, values in weights.items()}
    tensors["model.embed_tokens.weight"] = np.zeros((20_000, 256), np.float32)
    save_file(tensors, there / "model.safetensors")
    size = (there / "model.safetensors").stat().st_size
    assert memory("org/large").weights > 20_000_000
    assert hub.sent < 1_000_000 < size


def test_a_header_longer_than_the_first_request_is_fetched_whole(hub, config):
    there = hub.folder / "org" / "wordy"
    there.mkdir(parents=True)
    (there / "config.json").write_text(json.dumps(config))
    names = {f"model.layers.0.extra.{'x' * 400}.{number}": np.zeros((1, 1), np.float32) for number in range(1500)}
    save_file(names, there / "model.safetensors")
    assert memory("org/wordy").params == 1500


def test_a_vocabulary_longer_than_the_first_request_is_read_past(hub, gguf_file, monkeypatch):
    from workbench.fit import remote

    monkeypatch.setitem(remote.FIRST, ".gguf", 1024)
    (hub.folder / "org" / "tiny-gguf").mkdir(parents=True)
    shutil.copy(gguf_file, hub.folder / "org" / "tiny-gguf" / "model.gguf")
    assert memory("org/tiny-gguf").parts == memory(gguf_file).parts


def test_a_malformed_header_on_the_hub_is_named(hub, config):
    there = hub.folder / "org" / "broken"
    there.mkdir(parents=True)
    (there / "config.json").write_text(json.dumps(config))
    (there / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(WorkbenchError, match=r"model\.safetensors"):
        memory("org/broken")


def test_no_such_model_and_no_network_are_different_errors(published, monkeypatch):
    with pytest.raises(WorkbenchError, match="no such model"):
        memory("org/absent")
    monkeypatch.setattr(hub_room, "PATIENCE", 5.0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkbenchError, match="the hub does not answer") as caught:
        memory("org/tiny")
    assert "config" in caught.value.do


def test_the_weights_of_a_model_known_by_its_headers_cannot_be_read(published):
    outline = memory("org/tiny").question.subject.checkpoint
    name = next(iter(outline.tensors))
    for attempt in (lambda: outline.read(name), lambda: outline.digest(name), outline.hf_folder):
        with pytest.raises(WorkbenchError, match="were not downloaded"):
            attempt()


def test_reading_headers_can_be_stopped(published):
    steps = memory_steps("org/tiny")
    for step in steps:
        if step.unit == "header":
            break
    published.seconds_a_block = 30.0
    assert next(steps).unit == "header"
    steps.close()


def test_a_folder_of_that_name_goes_before_the_hub(published, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.folder(tmp_path / "org" / "tiny", tiny.weights(512))
    assert memory("org/tiny").weights > memory(folder).weights
