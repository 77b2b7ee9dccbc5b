"""Models by their hub id: what is downloaded, what never is, and what happens without the hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

import workbench as wb
from tests import tiny
from tests.checkpoint.fake_hub import COMMIT, GATED, FakeHub
from workbench import files as on_disk
from workbench.checkpoint import load_steps

Weights = dict[str, np.ndarray]


WANTED = {
    *("config.json", "README.md", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
}


@pytest.fixture
def model(hub: FakeHub, weights: Weights) -> Path:
    """org/tiny on that hub: sharded, with a card, and with files that nobody should want."""
    made = tiny.folder(hub.folder / "org" / "tiny", weights, shards=2)
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    (made / "modeling_tiny.py").write_text("raise SystemExit")
    (made / "pytorch_model.bin").write_bytes(b"pickle")
    (made / "consolidated.safetensors").write_bytes(b"the same again")
    (made / "onnx").mkdir()
    (made / "onnx" / "model.safetensors").write_bytes(b"x")
    return made


def test_a_hub_id_brings_weights_config_tokenizer_and_card_and_nothing_else(hub: FakeHub, model: Path) -> None:
    found = wb.load("org/tiny")
    assert (found.name, found.revision, found.licence) == ("org/tiny", COMMIT, "mit")
    assert list(found.tensors) == list(wb.load(model).tensors)
    assert np.array_equal(found.read("model.norm.weight"), wb.load(model).read("model.norm.weight"))
    assert found.tokenizer("the").input_ids == wb.load(model).tokenizer("the").input_ids
    assert hub.downloaded() == WANTED


def test_what_was_downloaded_is_not_downloaded_again(hub: FakeHub, model: Path) -> None:
    wb.load("org/tiny")
    hub.asked.clear()
    wb.load("org/tiny")
    assert hub.downloaded() == set()


@pytest.mark.parametrize("source", ["org/tiny@v1", f"org/tiny@{COMMIT}"])
def test_a_revision_stands_after_the_at_sign(hub: FakeHub, model: Path, source: str) -> None:
    assert wb.load(source).revision == COMMIT
    assert wb.load("org/tiny", revision=source.partition("@")[2]).name == "org/tiny"
    asked = source.partition("@")[2]
    assert any(line.endswith(f"org/tiny/revision/{asked}") for line in hub.asked)


@pytest.mark.parametrize("offline", ["the hub is gone", "HF_HUB_OFFLINE"])
def test_without_the_hub_its_cache_serves(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    wb.load("org/tiny")
    hub.asked.clear()
    if offline == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert wb.load("org/tiny").revision == COMMIT
    assert hub.asked == []


def test_without_the_hub_and_its_cache_it_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        wb.WorkbenchError, match=r"org/tiny: there is no file or folder .* gave no answer \(ConnectError"
    ):
        wb.load("org/tiny")


REFUSED = {
    "org/nothing": "the hub has no such model, or keeps it from you",
    "org/tiny@nowhere": "the hub has no such revision",
    GATED: "gives it only to those who accept the terms",
    "org/pickles": "this is a pickle checkpoint",
    "org/empty": "it has no weights",
    "org/ggufs": r"it has 2 GGUF files\nAllowed: org/ggufs/a.gguf, org/ggufs/b.gguf",
    "org/ggufs/c.gguf": r"org/ggufs/c.gguf: the hub has no such file\nAllowed: a.gguf, b.gguf",
    "org/-/x": "it is not a hub id",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_cannot_be_had_is_refused_before_anything_is_downloaded(hub: FakeHub, model: Path, source: str) -> None:
    for name, files in {
        "pickles": ["pytorch_model.bin"],
        "empty": ["README.md"],
        "ggufs": ["a.gguf", "b.gguf"],
    }.items():
        (hub.folder / "org" / name).mkdir()
        for file in files:
            (hub.folder / "org" / name / file).write_bytes(b"x")
    with pytest.raises(wb.WorkbenchError, match=REFUSED[source]):
        wb.load(source)
    assert hub.downloaded() == set()


def test_one_file_of_many_can_be_named(hub: FakeHub, weights: Weights) -> None:
    folder = hub.folder / "org" / "ggufs"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    tiny.gguf(folder / "a.gguf", weights, "Q4_0")
    tiny.gguf(folder / "b.gguf", weights, "Q8_0", split=8)
    found = wb.load("org/ggufs/a.gguf")
    assert (found.name, found.kind, found.licence) == ("org/ggufs/a.gguf", "gguf", "mit")
    assert hub.downloaded() == {"a.gguf", "README.md"}
    assert len(wb.load("org/ggufs/b-00001-of-00003.gguf").tensors) == len(found.tensors)


def test_a_download_shows_its_progress_and_its_process_ends_when_it_is_stopped(hub: FakeHub, model: Path) -> None:
    hub.seconds_a_block = 0.3
    others = set(psutil.Process().children())
    steps = load_steps("org/tiny")
    step = next(steps)
    while not 0 < step.done < step.total:
        step = next(steps)
    assert (step.unit, step.message) == ("B", "downloading org/tiny")
    assert step.total == sum((model / name).stat().st_size for name in WANTED)
    hub.seconds_a_block = 120.0  # from here on it would take the better part of an hour
    assert set(psutil.Process().children()) > others
    steps.close()
    assert set(psutil.Process().children()) <= others
    hub.seconds_a_block = 0
    assert list(wb.load("org/tiny").tensors) == list(wb.load(model).tensors)


def test_a_model_larger_than_the_disk_is_refused_before_anything_is_downloaded(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(wb.WorkbenchError, match=r"are to be downloaded, and the disk has 1 kB free") as caught:
        wb.load("org/tiny")
    assert "HF_HOME" in caught.value.do
    assert hub.downloaded() == set()


def test_what_is_on_the_disk_already_needs_no_room(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wb.load("org/tiny")
    monkeypatch.setattr(on_disk, "free_bytes", lambda folder: 0)
    assert wb.load("org/tiny").revision == COMMIT
