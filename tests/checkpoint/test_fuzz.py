"""Valid files with bytes changed, cut or added: opened or refused, never anything else; and what opens can be used."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests import tiny
from tests.checkpoint.bounds import within_seconds

LONG = 1500  # bytes from the start in which most changes fall: the headers


def tiny_files() -> dict[str, bytes]:
    """A folder's three files and a GGUF, of a model with just two matrices."""
    everything = tiny.weights(256, layers=1)
    few = {name: everything[name] for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")}
    with tempfile.TemporaryDirectory() as scratch:
        one = tiny.folder(Path(scratch) / "one", few, tokenizer=False)
        two = tiny.folder(Path(scratch) / "two", few, tokenizer=False, shards=2)
        quantized = tiny.gguf(Path(scratch) / "m.gguf", few, "Q4_K")
        return {
            "model.safetensors": (one / "model.safetensors").read_bytes(),
            "config.json": (one / "config.json").read_bytes(),
            "model.safetensors.index.json": (two / "model.safetensors.index.json").read_bytes(),
            "m.gguf": quantized.read_bytes(),
        }


FILES = tiny_files()

places = st.one_of(st.integers(0, LONG), st.integers(0, 1 << 20))
tricky = st.sampled_from([bytes(8), b"\xff" * 8, b"\x00" * 7 + b"\x40", b"[" * 64, b'"a":', b"{}", b"9" * 30])
edits = st.lists(st.tuples(places, st.one_of(st.binary(min_size=1, max_size=9), tricky)), min_size=1, max_size=4)


def changed(raw: bytes, edits: list[tuple[int, bytes]], end: int | None) -> bytes:
    made = bytearray(raw)
    for place, piece in edits:
        start = place % (len(made) + 1)
        made[start : start + len(piece)] = piece
    return bytes(made[:end])


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_leaves_a_model_or_an_error(name: str, data: st.DataObject) -> None:
    end = data.draw(st.one_of(st.none(), st.integers(0, len(FILES[name]))))
    raw = changed(FILES[name], data.draw(edits), end)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if name != "m.gguf":
            (folder / "model.safetensors").write_bytes(FILES["model.safetensors"])
        (folder / name).write_bytes(raw)
        with within_seconds(60):
            use(folder)


def use(source: Path) -> None:
    """Open it and look at all of it; only a WorkbenchError may come of that."""
    try:
        model = wb.load(source)
    except wb.WorkbenchError:
        return
    assert all(line.isprintable() for line in repr(model).split("\n"))
    assert model._repr_html_()
    assert model.fingerprint
    json.dumps([model.chat_template, model.licence, model.notes, model.architecture])
    for info in model.tensors.values():
        try:
            assert model.read(info.name).dtype == np.float32
            model.digest(info.name)
        except wb.WorkbenchError as error:
            assert info.problem or "scale" in str(error)  # noqa: PT017
