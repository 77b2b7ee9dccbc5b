"""A plan as a file: the bytes that llama.cpp's own quantizer writes, all of the metadata, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import psutil
import pytest

import workbench as wb
from tests import llama_cpp, tiny
from workbench import fit, formats
from workbench.checkpoint import Checkpoint
from workbench.planning import plan_for
from workbench.writing import beside, checks, converter, export, export_steps, exporting

RECORDED = json.loads(llama_cpp.RECORDED_BYTES.read_text())


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return wb.load(tiny.gguf(tmp_path / "source.gguf", tiny.weights(), "F32", general__license="mit"))


@pytest.mark.parametrize("weighed", [False, True], ids=["", "by importance"])
@pytest.mark.parametrize("recipe", llama_cpp.MIXED)
@pytest.mark.parametrize("described", llama_cpp.WRITTEN)
def test_every_byte_is_what_llama_cpp_writes(tmp_path: Path, described: str, recipe: str, weighed: bool) -> None:
    importance = llama_cpp.write_model(tmp_path / "source.gguf", described)
    model = wb.load(tmp_path / "source.gguf")
    made = export(plan_for(model, recipe), tmp_path / "made.gguf", importance=importance if weighed else None)
    assert llama_cpp.digest_of(made.path) == RECORDED[described][f"{recipe}{' by importance' if weighed else ''}"]


@pytest.mark.parametrize("described", llama_cpp.WRITTEN)
def test_llama_cpp_writes_the_same_by_the_plans_recipe(tmp_path: Path, described: str) -> None:
    llama_cpp.write_model(tmp_path / "source.gguf", described)
    made = export(llama_cpp.planned(wb.load(tmp_path / "source.gguf")), tmp_path / "made.gguf")
    assert llama_cpp.digest_of(made.path) == RECORDED[described][llama_cpp.PLANNED]


def test_the_file_has_the_planned_bytes_and_all_that_the_source_said(source: Checkpoint, tmp_path: Path) -> None:
    plan = plan_for(source, {"blk.0.attn_q.weight": "Q4_K", "blk.1.ffn_down.weight": "IQ4_NL"})
    made = export(plan, tmp_path / "made.gguf")
    opened = wb.load(made.path)
    assert made.data == plan.nbytes == opened.nbytes
    assert made.nbytes == made.path.stat().st_size
    assert {name: info.encoding for name, info in opened.tensors.items() if info.encoding not in ("F32",)} == {
        "blk.0.attn_q.weight": "Q4_K",
        "blk.1.ffn_down.weight": "IQ4_NL",
    }
    before, after = gguf.GGUFReader(source.path).fields, gguf.GGUFReader(made.path).fields
    kept = {name: field.contents() for name, field in before.items() if not name.startswith("GGUF.")}
    assert kept.items() <= {name: field.contents() for name, field in after.items()}.items()
    assert after["general.file_type"].contents() == 25  # IQ4_NL, which most weights are in
    assert opened.licence == "mit"


def test_the_call_that_error_messages_advise_works_as_they_say(source: Checkpoint, tmp_path: Path) -> None:
    made = wb.export(source, tmp_path / "model.gguf", "Q4_K_M")
    assert made.data == plan_for(source, "Q4_K_M").nbytes
    with pytest.raises(wb.WorkbenchError, match="no recipe or format of that name"):
        wb.export(source, tmp_path / "other.gguf", "Q4_K_XXL")
    with pytest.raises(wb.WorkbenchError, match="none was named"):
        wb.export(source, tmp_path / "other.gguf")
    with pytest.raises(wb.WorkbenchError, match="says its formats already"):
        wb.export(plan_for(source, "Q4_K_M"), tmp_path / "other.gguf", "Q8_0")
    assert not (tmp_path / "other.gguf").exists()


def test_the_importance_is_used_and_recorded(source: Checkpoint, tmp_path: Path) -> None:
    plan = plan_for(source, "Q4_K_M")
    importance = {info.name: np.linspace(0.1, 3, info.shape[1], dtype=np.float32) for info in source.matrices}
    made = export(plan, tmp_path / "made.gguf", importance=importance, about_importance="a novel")
    fields = gguf.GGUFReader(made.path).fields
    assert fields["quantize.imatrix.dataset"].contents() == "a novel"
    assert fields["quantize.imatrix.entries_count"].contents() == len(source.matrices)
    expected = formats.get("Q4_K").roundtrip(source.read("blk.0.attn_q.weight"), importance["blk.0.attn_q.weight"])
    assert np.array_equal(wb.load(made.path).read("blk.0.attn_q.weight"), expected)


def test_a_split_source_becomes_one_file(tmp_path: Path) -> None:
    model = wb.load(tiny.gguf(tmp_path / "model.gguf", tiny.weights(), "F32", split=7))
    made = export(plan_for(model, "Q8_0"), tmp_path / "made.gguf")
    assert len(wb.load(made.path).tensors) == len(model.tensors)
    assert not [name for name in gguf.GGUFReader(made.path).fields if name.startswith("split.")]


def test_experts_are_written_each_by_its_own_importance(tmp_path: Path) -> None:
    path = tmp_path / "experts.gguf"
    llama_cpp.write(path, "qwen3moe", layers=1, experts=3)
    random, name = np.random.default_rng(0), "blk.0.ffn_up_exps.weight"
    weights = random.standard_normal((3, 256, 256)).astype(np.float32)
    _overwrite(path, name, weights)
    importance = random.uniform(0.1, 4, (3, 256)).astype(np.float32)
    model = wb.load(path)
    made = export(plan_for(model, {name: "Q3_K"}), tmp_path / "made.gguf", importance={name: importance}, anyway=True)
    stored = wb.load(made.path).read(name)
    for expert in range(3):
        assert np.array_equal(stored[expert], formats.get("Q3_K").roundtrip(weights[expert], importance[expert]))


def _overwrite(path: Path, name: str, weights: np.ndarray) -> None:
    """Put weights in the place of a tensor's zeros."""
    info = wb.load(path).tensors[name]
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(weights.tobytes())


# --- whole or not at all ----------------------------------------------------------------------


def test_an_interrupted_export_leaves_the_old_file_and_nothing_else(source: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "out" / "made.gguf"
    target.parent.mkdir()
    target.write_bytes(b"the old file")
    steps = export_steps(plan_for(source, "Q4_K_M"), target)
    for _ in range(5):
        next(steps)
    assert len(list(target.parent.iterdir())) == 2
    steps.close()
    assert [file.read_bytes() for file in target.parent.iterdir()] == [b"the old file"]


def test_what_reads_back_differently_is_not_kept(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that garbles a byte cannot be had here; the byte is changed between writing and reading."""
    written = exporting._write

    def garbled(temporary: Path, *rest):
        hashes = yield from written(temporary, *rest)
        with temporary.open("r+b") as file:
            file.seek(-100, 2)
            file.write(b"x")
        return hashes

    monkeypatch.setattr(exporting, "_write", garbled)
    with pytest.raises(wb.WorkbenchError, match="reads back differently"):
        export(plan_for(source, "Q8_0"), tmp_path / "out" / "made.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_the_model_itself_is_never_overwritten_not_even_through_a_link(source: Checkpoint, tmp_path: Path) -> None:
    before = source.path.read_bytes()
    (tmp_path / "link.gguf").symlink_to(source.path)
    for target in (source.path, tmp_path / "link.gguf", tmp_path / "x" / ".." / "source.gguf"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(wb.WorkbenchError, match="file of the model itself"):
            export(plan_for(source, "Q8_0"), target)
    assert source.path.read_bytes() == before


def test_a_full_disk_is_seen_before_anything_is_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100, 90, 10))
    with pytest.raises(wb.WorkbenchError, match=r"the file will have 1.34 MB, and .* has 10 B free"):
        export(plan_for(source, "Q8_0"), tmp_path / "out" / "made.gguf")
    assert not (tmp_path / "out").exists()


def test_what_the_threads_hold_is_asked_of_memory_first(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000, total=1_000_000))
    plan = plan_for(source, "Q8_0")
    with pytest.raises(fit.DoesNotFit, match="fewer threads"):
        export(plan, tmp_path / "made.gguf")
    assert export(plan, tmp_path / "made.gguf", anyway=True).data == plan.nbytes


@pytest.mark.parametrize(
    ("spec", "message"),
    [("IQ2_XXS", "cannot be made without an importance"), ("NF4", "GGUF files have no NF4")],
)
def test_a_format_that_cannot_be_written_is_named(source: Checkpoint, tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=message):
        export(plan_for(source, spec), tmp_path / "made.gguf")


def test_a_model_without_a_tokenizer_is_written_only_on_request(tmp_path: Path) -> None:
    bare = wb.load(tiny.gguf(tmp_path / "bare.gguf", tiny.weights(), "F32", tokenizer=False))
    folder = wb.load(tiny.folder(tmp_path / "folder", tiny.weights(), tokenizer=False))
    for model in (bare, folder):
        with pytest.raises(wb.WorkbenchError, match="it has no tokenizer"):
            export(model, tmp_path / "made.gguf", "Q8_0")
    plan = plan_for(bare, "Q8_0")
    assert export(plan, tmp_path / "made.gguf", anyway=True).data == plan.nbytes


def test_a_folder_that_cannot_be_written_to_is_named(source: Checkpoint, tmp_path: Path, monkeypatch) -> None:
    def refused(**where):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", refused)  # the tests may run as one who may write everywhere
    with pytest.raises(wb.WorkbenchError, match="cannot be written to"):
        export(source, tmp_path / "made.gguf", "Q8_0")


def test_a_disk_that_fills_up_while_writing_is_told_and_nothing_is_left(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made.gguf").write_bytes(b"the old file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(wb.WorkbenchError, match="No space left"):
        export(source, tmp_path / "out" / "made.gguf", "Q8_0")
    assert [file.read_bytes() for file in (tmp_path / "out").iterdir()] == [b"the old file"]


def test_memory_stays_the_same_for_a_model_of_many_times_the_size(tmp_path: Path) -> None:
    def peak(layers: int) -> int:
        model = wb.load(tiny.gguf(tmp_path / f"{layers}.gguf", tiny.weights(512, layers), "Q8_0"))
        plan = plan_for(model, "Q4_0")
        export(plan, tmp_path / "made.gguf", threads=1)
        tracemalloc.start()
        try:
            export(plan, tmp_path / "made.gguf", threads=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(24) < 1.5 * peak(3)  # of eight times the weights; names and hashes grow with the tensors


def test_a_plan_of_another_model_and_a_folder_as_target_are_refused(source: Checkpoint, tmp_path: Path) -> None:
    other = wb.load(tiny.gguf(tmp_path / "other.gguf", tiny.weights(seed=3), "F32"))
    with pytest.raises(wb.WorkbenchError, match="made for another model"):
        export(source, tmp_path / "made.gguf", plan_for(other, "Q8_0"))
    with pytest.raises(wb.WorkbenchError, match="it is a folder"):
        export(plan_for(source, "Q8_0"), tmp_path)


# --- from a folder of safetensors --------------------------------------------------------------


def test_a_folder_is_converted_without_its_code_and_quantized(demo: Checkpoint, tmp_path: Path) -> None:
    """By llama.cpp's converter, which knows the demo's tokenizer; a model's own code must not run in it."""
    folder = tmp_path / "model"
    weights = tiny.weights()
    random = np.random.default_rng(0)
    vocabulary = demo.config["vocab_size"]
    weights["model.embed_tokens.weight"] = random.standard_normal((vocabulary, 256)).astype(np.float32) / 16
    tiny.folder(folder, weights, dtype="F32", tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": vocabulary, "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.hf_folder() / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    model = wb.load(folder)
    plan = plan_for(model, "Q4_K_M")
    made = export(plan, tmp_path / "out" / "made.gguf")
    opened = wb.load(made.path)
    assert made.data == plan.nbytes
    assert not (tmp_path / "ran").exists()
    assert [file.name for file in made.path.parent.iterdir()] == ["made.gguf"]
    query = "model.layers.1.self_attn.q_proj.weight"
    rows = formats.get("Q4_K").roundtrip(tiny.permute(model.read(query), 4))
    assert np.array_equal(opened.read("blk.1.attn_q.weight"), rows)
    assert opened.metadata["tokenizer.ggml.pre"] == "smollm"


def test_what_the_converter_does_not_know_is_said_in_its_words(tmp_path: Path, own_cache: Path) -> None:
    model = wb.load(tiny.folder(tmp_path / "model", tiny.weights()))
    with pytest.raises(wb.WorkbenchError, match=r"llama\.cpp's converter gave up: .*pre-tokenizer"):
        export(plan_for(model, "Q8_0"), tmp_path / "out" / "made.gguf")
    assert not list((tmp_path / "out").iterdir())


def test_an_expert_that_has_no_place_of_its_own_is_named(source: Checkpoint) -> None:
    plan = plan_for(source, {"blk.0.attn_q.weight": "Q8_0"})
    with pytest.raises(wb.WorkbenchError, match=r"'blk\.0\.attn_q\.weight' has no place of its own"):
        converter.as_gguf(plan, source, source)


# --- beside the file ---------------------------------------------------------------------------


def test_what_other_programs_want_is_written_beside_the_file(source: Checkpoint, tmp_path: Path) -> None:
    importance = {info.name: np.linspace(0.1, 3, info.shape[1], dtype=np.float32) for info in source.matrices}
    plan = plan_for(source, "Q4_K_M")
    made = export(
        plan, tmp_path / "out" / "my model.gguf", importance=importance, about_importance="a novel", beside=True
    )
    names = {kind: f"my model{ending}" for kind, ending in beside.ENDINGS.items()}
    assert {kind: path.name for kind, path in made.beside.items()} == names
    assert sorted(file.name for file in made.path.parent.iterdir()) == sorted([*names.values(), "my model.gguf"])
    assert "FROM ./my model.gguf" in made.beside["Modelfile"].read_text()
    assert wb.Plan.from_json(made.beside["plan"].read_text(), source).formats == plan.formats
    assert made.beside["recipe"].read_text() == beside.tensor_types(plan)
    assert gguf.GGUFReader(made.beside["importance"]).fields["imatrix.datasets"].contents() == ["a novel"]
    assert export(plan, tmp_path / "alone.gguf").beside == {}
    assert list(export(plan, tmp_path / "some.gguf", beside=["plan"]).beside) == ["plan"]
    assert "importance" not in export(plan, tmp_path / "all.gguf", beside=True).beside  # there is none


def test_the_recipe_for_llama_quantize_names_each_tensor_exactly(source: Checkpoint) -> None:
    lines = beside.tensor_types(plan_for(source, "Q4_K_M")).splitlines()
    assert r"^blk\.0\.attn_q\.weight$=q4_k" in lines
    assert len(lines) == len(source.matrices)


def test_the_importance_matrix_is_llama_cpps_sums_and_counts(tmp_path: Path) -> None:
    importance = {
        "blk.0.attn_q.weight": np.linspace(0, 2, 64, dtype=np.float32),
        "blk.0.ffn_up_exps.weight": np.ones((3, 64), np.float32),
    }
    path = beside.write_importance(importance, tmp_path / "imatrix.gguf", tokens=1000, dataset="a novel")
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, mean in importance.items():
        found = tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"]
        assert np.allclose(found.reshape(mean.shape), mean)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a novel"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
