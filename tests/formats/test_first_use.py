"""The first use of a format by several threads at once, which an unlocked table in ggml once ended with a crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from workbench import formats

weights = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
importance = np.ones(512, np.float32)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: formats.get(sys.argv[1]).roundtrip(weights, importance), range(4)))
"""


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_S", "IQ1_S"])
def test_four_threads_can_be_the_first_to_use_a_format(name):
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bitsandbytes_says_nothing_of_a_kernel_that_is_not_needed():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "NF4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gemm_4bit" not in done.stderr
