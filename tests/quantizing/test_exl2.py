"""EXL2 by the library's converter, which needs a CUDA device: what is asked of it, and what is said without one."""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path

import pytest

import workbench as wb
from tests.engines import models
from tests.engines.test_exllamav2 import WHEEL
from workbench.checkpoint import wheel
from workbench.engines import exllamav2_library
from workbench.progress import drain
from workbench.quantizing import exl2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.opened(tmp_path_factory.mktemp("exl2") / "tiny")


def test_every_option_is_one_of_the_converters(tmp_path):
    archive = drain(wheel.fetch_steps(WHEEL, tmp_path, "ExLlamaV2's source"))
    with zipfile.ZipFile(archive) as opened:
        tree = ast.parse(opened.read("exllamav2/conversion/convert_exl2.py"))
        stages = opened.read("exllamav2/conversion/convert_exl2.py").decode()
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    known = {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}
    command = exl2.command_of(Path("in"), Path("work"), Path("out"), exl2.Exl2(4.25, 8), Path("text.parquet"))
    assert {each for each in command if each.startswith("--")} <= known
    assert command[command.index("--bits") + 1] == "4.25"
    assert all(f'"{stage}"' in stages for stage in exl2.STAGES)


def test_without_a_gpu_it_says_what_is_missing_and_touches_nothing(model, tmp_path):
    with pytest.raises(wb.WorkbenchError, match="NVIDIA GPU"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


CONVERTER = """
import json, shutil, sys
from pathlib import Path

said = dict(zip(sys.argv[1::2], sys.argv[2::2]))
work, target = Path(said["--out_dir"]), Path(said["--compile_full"])
(work / "job_new.json").write_text(json.dumps({"progress": "quant"}))
if (work / "once").exists():
    for file in Path(said["--in_dir"]).iterdir():
        shutil.copyfile(file, target / file.name)
else:
    (work / "once").touch()
    print("out of luck", file=sys.stderr)
    sys.exit(1)
"""


def test_what_was_measured_is_kept_for_the_next_call(model, tmp_path, monkeypatch):
    """A script stands in for the converter: it fails once, and goes on when it finds its folder again."""
    script = tmp_path / "converter.py"
    script.write_text(CONVERTER)
    real = exl2.command_of
    monkeypatch.setattr(exllamav2_library, "missing", lambda: [])
    monkeypatch.setattr(exl2, "command_of", lambda *given: [sys.executable, str(script), *real(*given)[4:]])
    with pytest.raises(wb.WorkbenchError, match="out of luck"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["converter.py"]
    made = wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert made.scheme == "EXL2-4bpw"
    assert json.loads((made.path / "config.json").read_text())["model_type"] == "llama"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converter.py", "made"]


@pytest.mark.parametrize("name", ["EXL2-1.5bpw", "EXL2-9bpw", "EXL2-4bpw-h7"])
def test_bits_that_it_does_not_reach_are_refused(name, model, tmp_path):
    with pytest.raises(wb.WorkbenchError, match="from 2 to 8"):
        wb.quantize(model, name, to=tmp_path / "made")


def test_a_plan_is_its_mean_and_overrides_are_refused_with_it(model, tmp_path):
    plan = wb.plan_for(model, "INT4-g32")
    assert exl2.of_plan(plan).bits == pytest.approx(4.625, abs=0.01)
    with pytest.raises(wb.WorkbenchError, match=r"EXL2-4\.625bpw"):
        wb.quantize(model, "EXL2-4bpw", to=tmp_path / "made", overrides=plan)
    with pytest.raises(wb.WorkbenchError, match="quantizes every"):
        exl2.of_plan(wb.plan_for(model, "F16"))
