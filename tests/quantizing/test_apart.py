"""GPTQ and AWQ by a library that lies apart: what it is asked for, what is made of its answer, its end at any moment.

The library here is a stand-in that writes down what it was asked and copies the model. What the real one makes is
recorded (test_recorded.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import workbench as wb
from tests import llama_cpp, tiny
from workbench import files, fit
from workbench.checkpoint import Checkpoint
from workbench.progress import Steps
from workbench.quantizing import calibrated, quantize_steps

TEXT = "The cat sat in the hat and that is the tale of it. " * 100
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
STAND_IN = """
import json, pathlib, shutil, time

class QuantizeConfig:
    def __init__(self, **settings):
        self.settings = settings

class GPTQModel:
    @classmethod
    def load(cls, source, config, device):
        self = cls()
        self.source, self.asked = pathlib.Path(source), {**config.settings, "device": device}
        return self

    def quantize(self, texts, **options):
        self.asked["texts"] = [text["input_ids"] for text in texts]
        pathlib.Path("gptqmodel.log").write_text("a diary")
        print("chatter")
        {behaviour}
        for layer in range(2):
            self.layer_callback(layer_idx=layer, submodule_finalized=True)

    def save(self, to):
        shutil.copytree(self.source, to, dirs_exist_ok=True)
        config = json.loads((self.source / "config.json").read_text())
        config["test_asked"] = self.asked
        meta = {"offload_to_disk_path": str(self.source), "damp_percent": 0.05}
        config["quantization_config"] = {"meta": meta}
        (pathlib.Path(to) / "config.json").write_text(json.dumps(config))
        (pathlib.Path(to) / "quantize_config.json").write_text(json.dumps({"meta": meta}))
        (pathlib.Path(to) / "quant_log.csv").write_text("a diary")
"""


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return wb.load(tiny.folder(tmp_path / "source", tiny.weights()))


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in in gptqmodel's place that does something in the midst of its work."""

    def put(behaviour: str = "pass") -> None:
        place = tmp_path_factory.mktemp("libraries")
        (place / "gptqmodel").mkdir()
        (place / "gptqmodel" / "__init__.py").write_text(STAND_IN.replace("{behaviour}", behaviour))

        def there() -> Steps[Path]:
            yield from ()
            return place

        monkeypatch.setattr(calibrated, "libraries_steps", there)

    return put


def asked(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["test_asked"]


def test_the_library_is_asked_for_what_the_scheme_says(source: Checkpoint, tmp_path: Path, library) -> None:
    library()
    made = wb.quantize(source, "GPTQ-3bit-g32", TEXT, to=tmp_path / "made")
    said = asked(made.path)
    wanted = {"bits": 3, "group_size": 32, "quant_method": "gptq", "format": "gptq", "sym": True, "dynamic": None}
    assert wanted.items() <= said.items()
    assert {len(text) for text in said["texts"]} == {calibrated.CONTEXT}
    said = asked(wb.quantize(source, "awq-4bit-g64", TEXT, to=tmp_path / "awq").path)
    assert {"bits": 4, "quant_method": "awq", "format": "gemm", "sym": False}.items() <= said.items()


def test_the_result_is_a_whole_folder_without_a_diary_or_a_path_of_this_machine(
    source: Checkpoint, tmp_path: Path, library
) -> None:
    library()
    made = wb.quantize(source, "GPTQ-4bit-g64", TEXT, to=tmp_path / "made")
    names = {file.name for file in made.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".csv", ".log"))]
    for name in ("config.json", "quantize_config.json"):
        assert str(tmp_path) not in (made.path / name).read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made", "source"]


def test_a_plan_becomes_gptqmodels_dynamic(source: Checkpoint, tmp_path: Path, library) -> None:
    library()
    overrides = {UP: "INT8-g32", GATE: "INT8-g32", DOWN: "BF16"}
    made = wb.quantize(source, "GPTQ-4bit-g64", TEXT, to=tmp_path / "made", overrides=overrides)
    assert asked(made.path)["dynamic"] == {
        r"+:^model\.layers\.0\.mlp\.up_proj$": {"bits": 8, "group_size": 32},
        r"+:^model\.layers\.0\.mlp\.gate_proj$": {"bits": 8, "group_size": 32},
        r"+:^model\.layers\.0\.mlp\.gate_up_proj$": {"bits": 8, "group_size": 32},  # as vLLM looks for it
        r"-:^model\.layers\.1\.mlp\.down_proj$": {},
    }


@pytest.mark.parametrize(
    ("scheme", "overrides", "message"),
    [
        ("GPTQ-4bit-g64", {DOWN: "NF4"}, "GPTQ has no NF4.*INT4 or INT8"),
        ("GPTQ-4bit-g64", {UP: "INT8"}, "vLLM multiplies by 2 matrices at once"),
        ("AWQ-4bit-g64", {DOWN: "INT8"}, "no INT8 for single matrices.*a float"),
    ],
)
def test_what_the_method_cannot_express_is_refused_before_anything_is_fetched(
    source: Checkpoint, tmp_path: Path, scheme: str, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(wb.WorkbenchError, match=f"(?s){message}"):
        wb.quantize(source, scheme, TEXT, to=tmp_path / "made", overrides=overrides)


def test_a_text_is_asked_for_and_groups_that_do_not_divide_are_told(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(wb.WorkbenchError, match=r"(?s)needs a text.*text=Path"):
        wb.quantize(source, "GPTQ-4bit-g64", to=tmp_path / "made")
    narrow = wb.load(tiny.folder(tmp_path / "narrow", tiny.weights(hidden=192)))
    with pytest.raises(wb.WorkbenchError, match=r"(?s)groups of 128 do not divide.*32 or 64"):
        wb.quantize(narrow, "GPTQ-4bit-g128", TEXT, to=tmp_path / "made")


def test_experts_in_a_stack_are_refused(tmp_path: Path) -> None:
    llama_cpp.write(tmp_path / "experts.gguf", "qwen3moe", layers=1, experts=3)
    with pytest.raises(wb.WorkbenchError, match=r"(?s)experts as one stack.*folder of safetensors"):
        wb.quantize(tmp_path / "experts.gguf", "GPTQ-4bit-g128", TEXT, to=tmp_path / "made")


def test_memory_is_asked_for_before_anything_is_fetched(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated, "IMPORTED", 1 << 50)
    with pytest.raises(fit.DoesNotFit, match=r"(?s)GPTQ of source.*anyway=True"):
        wb.quantize(source, "GPTQ-4bit-g64", TEXT, to=tmp_path / "made")


def test_its_last_words_are_passed_on_and_nothing_is_left(source: Checkpoint, tmp_path: Path, library) -> None:
    library("raise ValueError('no such architecture')")
    with pytest.raises(wb.WorkbenchError, match="gptqmodel gave up: ValueError: no such architecture"):
        wb.quantize(source, "GPTQ-4bit-g64", TEXT, to=tmp_path / "made")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_stopping_ends_the_process_and_leaves_nothing(source: Checkpoint, tmp_path: Path, library) -> None:
    library("self.layer_callback(layer_idx=0, submodule_finalized=True); time.sleep(600)")
    steps = quantize_steps(source, "GPTQ-4bit-g64", TEXT, to=tmp_path / "made")
    for step in steps:
        if step.unit == " layers" and step.done:
            assert (step.done, step.total) == (1, 2)
            break
    assert running()
    steps.close()
    assert not running()
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def running() -> list[int]:
    """Children of this process that run the library."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and any("gptqmodel_apart" in part for part in child.cmdline())
    ]


# --- fetching it ------------------------------------------------------------------------------


def wheel(folder: Path, name: str) -> Path:
    """A wheel with one module, as the packaging standard has it."""
    info = f"{name}-1.0.dist-info"
    inside = {
        f"{name}.py": b"there = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: torch>=99\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, data in inside.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    inside[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    made = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as opened:
        for path, data in inside.items():
            opened.writestr(path, data)
    return made


def finished(steps: Steps[Path]) -> Path:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def test_the_libraries_are_fetched_once_into_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrated, "LIBRARIES", (str(wheel(tmp_path, "workbench_stand_in")),))
    place = finished(calibrated.libraries_steps())
    assert (place / "workbench_stand_in.py").is_file()
    assert "workbench_stand_in" not in sys.modules
    assert files.cache_dir() in place.parents
    (tmp_path / "workbench_stand_in-1.0-py3-none-any.whl").unlink()
    assert finished(calibrated.libraries_steps()) == place


def test_a_fetch_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibrated, "LIBRARIES", (str(tmp_path / "nowhere-1.0-py3-none-any.whl"),))
    with pytest.raises(wb.WorkbenchError, match=r"(?s)gptqmodel: pip could not fetch it: .*nowhere"):
        finished(calibrated.libraries_steps())
    assert not list((tmp_path / "cache" / "gptqmodel").iterdir())
