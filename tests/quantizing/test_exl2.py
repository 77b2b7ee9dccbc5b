"""EXL2 by the library's converter, which needs a CUDA device: what is asked of it, and what is said without one."""

from __future__ import annotations

import argparse
import ast
import json
import sys
import zipfile
from pathlib import Path

import pytest

import workbench as wb
from benchmarks import gpu
from tests.engines import models
from tests.engines.test_exllamav2 import WHEEL, put_in_place
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
    sample = exl2.Sample(("a", "b"), 40, 2048)
    command = exl2.command_of(Path("in"), Path("work"), Path("out"), exl2.Exl2(4.25, 8), sample)
    assert {each for each in command if each.startswith("--")} <= known
    assert command[command.index("--bits") + 1] == "4.25"
    assert all(f'"{stage}"' in stages for stage in exl2.STAGES)
    assert (value(command, "--dataset_rows"), value(command, "--measurement_rows")) == ("40", "16")
    with zipfile.ZipFile(archive) as opened:
        for stage, name in exl2.AT.items():
            assert f'job["{name}"] = index' in opened.read(f"exllamav2/conversion/{MODULES[stage]}.py").decode()


MODULES = {"measure_quant": "measure", "quant": "quantize"}


def value(command, option):
    return command[command.index(option) + 1]


def test_without_a_gpu_it_says_what_is_missing_and_touches_nothing(model, tmp_path):
    with pytest.raises(wb.WorkbenchError, match="NVIDIA GPU"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


CONVERTER = """
import json, shutil, sys
from pathlib import Path

said = dict(zip(sys.argv[1::2], sys.argv[2::2]))
job = Path(said["--out_dir"]) / "job_new.json"
if job.exists():  # as the real one, it goes by the paths of the job that it finds
    found = json.loads(job.read_text())
    if "invalid" in found or found["progress"] == "finished":
        print(" ** Error: Corrupted job")
        sys.exit()
    Path(found["compile_full"]).mkdir(exist_ok=True)
    for file in Path(found["in_dir"]).iterdir():
        shutil.copyfile(file, Path(found["compile_full"]) / file.name)
else:
    paths = {"in_dir": said["--in_dir"], "compile_full": said["--compile_full"]}
    job.write_text(json.dumps({"progress": "quant", **paths}))
    print("out of luck", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def converter(tmp_path_factory, monkeypatch):
    """A script stands in for the converter: it fails once, and goes on when it finds its folder again."""
    script = tmp_path_factory.mktemp("script") / "converter.py"
    script.write_text(CONVERTER)
    real = exl2.command_of
    monkeypatch.setattr(exllamav2_library, "missing", lambda: [])
    monkeypatch.setattr(exl2, "command_of", lambda *given: [sys.executable, str(script), *real(*given)[4:]])


@pytest.fixture
def library(monkeypatch):
    return put_in_place(monkeypatch)


@pytest.fixture
def work(tmp_path_factory, monkeypatch):
    """Where the converter works: below a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(exl2.files, "cache_dir", lambda: cache)
    return cache / "exl2"


def test_what_was_measured_is_kept_for_the_next_call_whatever_folder_that_asks_for(model, tmp_path, converter, work):
    with pytest.raises(wb.WorkbenchError, match="out of luck"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    made = wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "elsewhere" / "other")
    assert made.scheme == "EXL2-4bpw"
    assert json.loads((made.path / "config.json").read_text())["model_type"] == "llama"
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["other"]
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("left", ['{"progress": "qu', '{"progress": "quant", "invalid": true}', "[]", "{}"])
def test_a_job_that_was_cut_while_it_was_written_begins_anew(left, model, tmp_path, converter, work):
    with pytest.raises(wb.WorkbenchError, match="out of luck"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    job = next(work.rglob("job_new.json"))
    job.write_text(left)
    with pytest.raises(wb.WorkbenchError, match="out of luck"):  # as the first time
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made").path.is_dir()


def test_a_job_that_finished_without_its_folder_is_compiled_again(model, tmp_path, converter, work):
    with pytest.raises(wb.WorkbenchError, match="out of luck"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    job = next(work.rglob("job_new.json"))
    job.write_text(json.dumps(json.loads(job.read_text()) | {"progress": "finished"}))
    assert wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made").path.is_dir()


def test_the_benchmark_for_a_gpu_runs_through(model, tmp_path, converter, work, library, capsys):
    """With stand-ins for the library and for the converter, which copies floats: its calls are seen, no figures."""
    text = tmp_path / "text.txt"
    text.write_text("the lamp is on the table and the sea is far away\n" * 200)
    with pytest.raises(wb.WorkbenchError, match="out of luck"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    found = gpu.exllamav2(argparse.Namespace(model=model.path, text=text))
    rows = capsys.readouterr().out
    assert found.missed == 0, rows
    assert all(f"cache in {kv}" in rows for kv in ("f16", "q8", "q6", "q4"))
    assert "greatest difference of a weight" in rows


def test_a_weight_that_our_reader_decodes_otherwise_is_found(model, library):
    with wb.run(model, engine="exllamav2") as engine:
        off, count = gpu.decoded_apart(engine, model)
        assert off < 0.001  # float16's rounding
        assert count == sum(info.layer is not None for info in model.matrices)
        module = engine._loaded.model.modules_dict["model.layers.1.mlp.up_proj"]
        module.linear.weight.data[3, 5] += 0.1
        assert gpu.decoded_apart(engine, model)[0] > 0.1


def test_an_error_that_ends_the_converter_with_success_is_told(model, tmp_path, converter, work, monkeypatch):
    monkeypatch.setattr(exl2, "command_of", lambda *given: [sys.executable, "-c", "print(' ## Error: no such head')"])
    with pytest.raises(wb.WorkbenchError, match="## Error: no such head"):
        wb.quantize(model, "EXL2-4.0bpw", to=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_as_many_samples_as_it_fills(model):
    """The converter fails where it is told to take more; the tiny model was made for 256 tokens."""
    sample = exl2.Sample.of(model, "the lamp is on the table and the sea is far away\n\n" * 100)
    tokens = 100 * len(
        model.tokenizer("the lamp is on the table and the sea is far away", add_special_tokens=False)["input_ids"]
    )
    assert sample.length == 256
    assert 1 <= sample.samples <= tokens // 256
    assert len(sample.rows) == 100
    with pytest.raises(wb.WorkbenchError, match="262 or more"):
        exl2.Sample.of(model, "the lamp")


def test_progress_is_read_from_a_job_that_may_be_half_written():
    before = exl2.progress_of('{"progress": "begin"}', None)
    text = json.dumps({"progress": "measure_quant", "last_module_idx": 7, "measurement": {"a": [1]}}, indent=4)
    found = exl2.progress_of(text, before)
    assert (found.done, found.total) == (2, 8)
    assert "module 7 done" in found.message
    assert exl2.progress_of('{"in_dir": "x", "prog', found) is found


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
