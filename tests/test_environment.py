"""`wb.setup`: what it finds on this machine, and what it says of one with less or other parts."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from workbench import environment


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""

    def hide(*absent: str) -> None:
        real = metadata.version

        def version(name: str) -> str:
            if name in absent:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(environment.metadata, "version", version)

    return hide


@pytest.fixture
def gpu(monkeypatch):
    """Make torch report an NVIDIA GPU of a compute capability."""

    def plug_in(name: str, capability: tuple[int, int]) -> None:
        from workbench.engines import build

        monkeypatch.setattr(build, "device_of", lambda device: torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14_000_000_000, 16_000_000_000))

    return plug_in


def whats(setup: environment.Setup) -> list[str]:
    return [limit.what for limit in setup.limits]


def test_a_machine_without_a_gpu_is_told_what_that_means():
    setup = wb.setup()
    assert setup.device == "cpu"
    assert setup.versions["numpy"] == metadata.version("numpy")
    assert 0 < setup.memory[0] < setup.memory[1]
    assert "no GPU" in whats(setup)
    assert "Degraded    no GPU: models run on the CPU" in repr(setup)


def test_a_t4_runs_in_float16_because_it_only_emulates_bfloat16(gpu):
    gpu("Tesla T4", (7, 5))
    setup = wb.setup()
    assert (setup.device, setup.dtype) == ("cuda", "float16")
    assert "no bfloat16" in whats(setup)
    assert "Tesla T4 (compute capability 7.5), models run in float16" in repr(setup)
    assert "14.0 GB free of 16.0 GB" in repr(setup)


def test_a_recent_gpu_runs_in_bfloat16_and_nothing_is_degraded(gpu, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    gpu("NVIDIA L4", (8, 9))
    setup = wb.setup()
    assert (setup.device, setup.dtype, setup.limits) == ("cuda", "bfloat16", ())
    assert repr(setup).endswith("Degraded    nothing")


def test_a_missing_extra_is_named_with_its_consequence_and_the_command(without):
    without("torch", "transformers", "bitsandbytes")
    setup = wb.setup()
    assert setup.dtype == ""
    limits = {limit.what: limit for limit in setup.limits}
    assert limits["missing: torch, transformers"].do == 'pip install "quantization-workbench[transformers]"'
    assert "NF4" in limits["missing: bitsandbytes"].why
    assert "torch" not in repr(setup).split("Degraded")[0]


def test_colab_is_told_of_its_widgets_and_not_to_install_a_front_end(without, monkeypatch):
    without("jupyterlab", "nbconvert")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    setup = wb.setup()
    assert setup.front_end == "Colab"
    assert "Colab" in whats(setup)
    assert "jupyterlab" not in repr(setup)


def test_the_widgets_of_generation_7_are_said_to_be_plainer(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda package: "7.7.1" if package == "ipywidgets" else "1")
    assert "ipywidgets 7.7.1" in whats(wb.setup())


def test_kaggle_and_a_kernel_are_recognised(monkeypatch):
    assert environment.front_end() == "plain Python"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)))
    assert environment.front_end() == "Jupyter"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert environment.front_end() == "Kaggle"


def test_the_notebooks_table_shows_hostile_names_literally(gpu):
    gpu("<script>alert(1)</script>", (9, 0))
    table = wb.setup()._repr_html_()
    assert "<script>" not in table
    assert "&lt;script&gt;" in table
