"""The same tiny model as a folder, as a GGUF and as its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.checkpoint.conftest import hub as hub


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    return tiny.weights(256, layers=4, tied=False)


@pytest.fixture(scope="session")
def config(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    return tiny.llama_config(weights)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny", weights)


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    return tiny.gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", weights, "Q8_0")
