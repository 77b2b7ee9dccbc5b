"""Every test here has an empty cache; two real files of one tiny model serve all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.checkpoint.fake_hub import FakeHub


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own cache"
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    return tiny.weights(256)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    """A bfloat16 folder of one file."""
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny", weights)


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    """The same model as a GGUF with float16 matrices."""
    return tiny.gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", weights, "F16")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub of no models, which the environment names instead of the real one."""
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf home"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server
        server.shutdown()
