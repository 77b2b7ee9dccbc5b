"""Damaged and hostile input: a WorkbenchError that names the file and the item, soon and in little memory.

Each case is a function that breaks a good model (or makes a bad one) in an empty folder and
returns what to load; beside it is what the message must say.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.checkpoint.bounds import within_bytes, within_seconds

HUGE = 1 << 62
UP = "model.layers.0.mlp.up_proj.weight"

# --- safetensors -------------------------------------------------------------------------------


def safetensors(folder: Path, header: Any, data: int = 0, length: int | None = None) -> Path:
    """A safetensors file of any header, given as JSON text or as what JSON is made of, and `data` zero bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return folder


def entry(first: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - first) // 4] if shape is None else shape, "data_offsets": [first, end]}


def cut(folder: Path, to: int) -> Path:
    tiny.folder(folder, tiny.weights(256, layers=1), tokenizer=False)
    os.truncate(folder / "model.safetensors", to)
    return folder


def many(folder: Path, count: int) -> Path:
    entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    return safetensors(folder, f"{{{entries}}}".encode())


SAFETENSORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty file": (lambda at: cut(at, 0), "model.safetensors: the file is empty"),
    "a file of five bytes": (lambda at: cut(at, 5), "cut short: the length of the header needs 8 bytes and .* has 5"),
    "a file that ends in its header": (
        lambda at: cut(at, 300),
        "cut short: the header of [0-9,]+ bytes needs .* has 300",
    ),
    "a file that ends in its data": (
        lambda at: cut(at, 90_000),
        "cut short: the tensor 'model.embed_tokens.weight' needs [0-9,]+ bytes and the file has 90,000",
    ),
    "a header length past the end": (lambda at: safetensors(at, {}, length=500), "header of 500 bytes needs 508 bytes"),
    "a header of 2^62 bytes": (
        lambda at: safetensors(at, {}, length=HUGE),
        "the header of 4,611,686,018,427,387,904 bytes needs .* and the file has 10",
    ),
    "a header longer than any real one": (
        lambda at: safetensors(at, b" " * (17 << 20)),
        "its header has 17,825,792 bytes\nAllowed: up to 16,777,216 bytes",
    ),
    "more tensors than any real file": (lambda at: many(at, 32_769), "its header has more than 32,768 entries"),
    "a header that is not JSON": (lambda at: safetensors(at, b"\x00\x01\x02"), "JSON has .* at character 0"),
    "a header that is not text": (lambda at: safetensors(at, b'{"\xff": 1}'), "its text is not UTF-8"),
    "a header that is a list": (lambda at: safetensors(at, []), "JSON has '\\[\\]' at character 0\nAllowed: {"),
    "a header with something behind it": (lambda at: safetensors(at, b"{} {}"), "Allowed: the end of the text"),
    "a header cut inside an entry": (lambda at: safetensors(at, b'{"a": {"dtype'), "JSON is wrong at character"),
    "deeply nested JSON": (lambda at: safetensors(at, b'{"a": ' + b"[" * 1_000_000), "nested too deeply|JSON is wrong"),
    "deeply nested JSON that closes": (
        lambda at: safetensors(at, b'{"a": ' + b"[" * 1500 + b"]" * 1500 + b"}"),
        "nested too deeply|has no dtype, shape or pair",
    ),
    "a list of ten million nothings": (
        lambda at: safetensors(at, b'{"a": [' + b"[]," * 5_000_000 + b"[]]}"),
        "JSON is wrong at character",
    ),
    "two tensors of one name": (
        lambda at: safetensors(at, b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), 4),
        "model.safetensors: the name 'a' appears twice",
    ),
    "an entry with two shapes": (
        lambda at: safetensors(at, b'{"a": {"shape": [1], "shape": [2]}}'),
        "JSON is wrong after character 6: the key 'shape' appears twice",
    ),
    "an entry without a shape": (lambda at: safetensors(at, {"a": {"dtype": "F32"}}), "tensor 'a' has no dtype, shape"),
    "an entry that is a number": (lambda at: safetensors(at, {"a": 7}), "the tensor 'a' has no dtype"),
    "a negative size": (
        lambda at: safetensors(at, {"a": entry(0, 4, [-1])}, 4),
        "'a' has a dtype, shape .* wrong kind",
    ),
    "a size that is true": (
        lambda at: safetensors(at, {"a": entry(0, 4, [True])}, 4),
        "'a' has a dtype, shape .* wrong",
    ),
    "a size that is a fraction": (
        lambda at: safetensors(at, {"a": entry(0, 4, [1.0])}, 4),
        "'a' has a dtype, shape .*",
    ),
    "a thousand dimensions": (
        lambda at: safetensors(at, {"a": entry(0, 4, [1] * 1000)}, 4),
        "'a' has a dtype, shape .*",
    ),
    "a number of ten thousand digits": (
        lambda at: safetensors(at, b'{"a": {"shape": [%s]}}' % (b"9" * 10_000)),
        "JSON is wrong",
    ),
    "a tensor that ends before it starts": (
        lambda at: safetensors(at, {"a": entry(8, 4, [1])}, 8),
        "the tensor 'a' ends before it starts: data_offsets 8 and 4",
    ),
    "a tensor with too few bytes for its shape": (
        lambda at: safetensors(at, {"a": entry(0, 8, [3])}, 8),
        r"the tensor 'a' of F32 \[3\] needs 12 bytes and its data_offsets span 8",
    ),
    "a tensor of 2^62 values": (
        lambda at: safetensors(at, {"a": entry(0, 4 * HUGE, [HUGE])}, 8),
        "the tensor 'a' needs 18,446,744,073,709,551,[0-9]+ bytes and the file has",
    ),
    "tensors on top of each other": (
        lambda at: safetensors(at, {"a": entry(0, 8), "b": entry(4, 12)}, 12),
        "the tensors 'a' and 'b' overlap at byte",
    ),
    "a tensor inside another": (
        lambda at: safetensors(at, {"a": entry(0, 16), "b": entry(4, 8), "c": entry(12, 16)}, 16),
        "the tensors 'a' and 'b' overlap",
    ),
    "metadata that is not text": (
        lambda at: safetensors(at, {"__metadata__": {"a": 1}}),
        "__metadata__ is not an object",
    ),
    "a name without characters": (lambda at: safetensors(at, {"": entry(0, 4)}, 4), "a tensor is named ''"),
    "a name of a megabyte": (lambda at: safetensors(at, {"a" * 2000: entry(0, 4)}, 4), "a tensor is named 'aaa"),
    "a name with half a character": (
        lambda at: safetensors(at, b'{"\\ud800": %s}' % json.dumps(entry(0, 4)).encode(), 4),
        r"the tensor name '\\ud800' is not valid Unicode",
    ),
}


# --- folders -----------------------------------------------------------------------------------


def sharded(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tiny.folder(folder, tiny.weights(256, layers=1), tokenizer=False, shards=2)
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    change(found)
    index.write_text(json.dumps(found))
    return folder


def with_file(folder: Path, name: str, content: bytes) -> Path:
    tiny.folder(folder, tiny.weights(256, layers=1), tokenizer=False)
    (folder / name).write_bytes(content)
    return folder


def only(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


def without_shard(folder: Path) -> Path:
    sharded(folder, lambda index: None)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def remote(folder: Path) -> Path:
    config = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    (folder / "modeling_mine.py").write_text("raise SystemExit('this must never run')")
    return tiny.folder(folder, tiny.weights(256, layers=1), tokenizer=False, config=config)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.abort, ())


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder without weights": (lambda at: at, "there are no weights in this folder"),
    "a folder of pickles": (
        lambda at: only(at, "pytorch_model.bin", pickle.dumps(Bomb())),
        "pytorch_model.bin: this is a pickle checkpoint.*it was not",
    ),
    "a folder that is named like a file": (
        lambda at: make_folder(at / "m.gguf"),
        "there are no weights in this folder",
    ),
    "several files and no index": (
        lambda at: only(
            safetensors(at, {}).joinpath("model.safetensors").rename(at / "a.safetensors").parent, "b.safetensors", b"x"
        ),
        "2 safetensors files .* and no model.safetensors.index.json",
    ),
    "a weight_map that climbs out": (
        lambda at: sharded(at, lambda index: index["weight_map"].update({UP: "../x.safetensors"})),
        "refers to the file '../x.safetensors', which is not inside",
    ),
    "a weight_map with an absolute path": (
        lambda at: sharded(at, lambda index: index["weight_map"].update({UP: "/etc/x.safetensors"})),
        "refers to the file '/etc/x.safetensors'",
    ),
    "a weight_map that names a pickle": (
        lambda at: sharded(at, lambda index: index["weight_map"].update({UP: "x.bin"})),
        "x.bin: this is a pickle checkpoint",
    ),
    "a weight_map that names a number": (
        lambda at: sharded(at, lambda index: index["weight_map"].update({UP: 5})),
        f"index.json: the tensor '{UP}' is in the file 5",
    ),
    "a weight_map that names a tensor too many": (
        lambda at: sharded(at, lambda index: index["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"})),
        "model-00001-of-00002.safetensors: the tensor 'ghost' is not in it",
    ),
    "a weight_map that is empty": (lambda at: sharded(at, lambda index: index["weight_map"].clear()), "no weight_map"),
    "a weight_map that is a list": (
        lambda at: sharded(at, lambda index: index.update({"weight_map": [1]})),
        "index.json: its JSON has '\\[1\\]",
    ),
    "a missing shard": (without_shard, "model-00002-of-00002.safetensors: the shard is missing"),
    "an index that is empty": (
        lambda at: with_file(at, "model.safetensors.index.json", b""),
        "index.json: the file is empty",
    ),
    "a config that is not JSON": (lambda at: with_file(at, "config.json", b"{nope"), "config.json: its JSON is wrong"),
    "a config that is a list": (lambda at: with_file(at, "config.json", b"[]"), "config.json: it holds a JSON list"),
    "a config with a key twice": (
        lambda at: with_file(at, "config.json", b'{"model_type": "a", "model_type": "b"}'),
        "config.json: .* the key 'model_type' appears twice",
    ),
    "a config nested ninety thousand deep": (
        lambda at: with_file(at, "config.json", b'{"a":' * 90_000),
        "config.json: its JSON is nested too deeply",
    ),
    "a config that is deeper than any real one": (
        lambda at: with_file(at, "config.json", b'{"a":' * 60 + b"1" + b"}" * 60),
        "config.json: its JSON is nested too deeply\nAllowed: 50 levels",
    ),
    "a config of ten megabytes": (
        lambda at: with_file(at, "config.json", b" " * 10_000_000),
        "config.json: it has 10,000,000 bytes",
    ),
    "a config of nothing but empty lists": (
        lambda at: with_file(at, "config.json", b"[" + b"[]," * 1_000_000 + b"[]]"),
        "config.json: it has 1,000,002 opening brackets.*100,000",
    ),
    "a model that needs its author's code": (remote, "config.json: the model type 'mine' .*auto_map.*never run"),
}


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- GGUF --------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    folder: Path,
    keys: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 0,
) -> Path:
    """A GGUF file by hand: its counts need not be those of its parts; `data` zero bytes follow, well aligned."""
    head = struct.pack("<4sIQQ", b"GGUF", version, *(counts or (len(tensors), len(keys))))
    raw = head + b"".join(keys) + b"".join(tensors)
    file = folder / "model.gguf"
    file.write_bytes(raw + bytes(-len(raw) % 32) + bytes(data) if data else raw)
    return file


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def cut_gguf(folder: Path, to: int) -> Path:
    file = tiny.gguf(folder / "model.gguf", tiny.weights(256, layers=1), "Q4_0")
    os.truncate(file, to if to >= 0 else file.stat().st_size + to)
    return file


def split_without(folder: Path, part: str) -> Path:
    first = tiny.gguf(folder / "m.gguf", tiny.weights(256, layers=1), "Q8_0", split=4)
    (folder / first.name.replace("-00001-", f"-{part}-")).unlink()
    return next(iter(sorted(folder.glob("*.gguf"))))


def split_twice(folder: Path) -> Path:
    """Two parts that both hold the same tensor."""
    for part in (1, 2):
        gguf(folder, tensors=[tensor("a", [8])], data=32).rename(folder / f"m-0000{part}-of-00002.gguf")
    return folder / "m-00001-of-00002.gguf"


GGUF: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty GGUF": (lambda at: cut_gguf(at, 0), "model.gguf: the file is empty"),
    "a GGUF of three bytes": (
        lambda at: cut_gguf(at, 3),
        "the magic number at byte 0 needs 4 bytes and the file has 3",
    ),
    "a GGUF that ends in its counts": (lambda at: cut_gguf(at, 20), "the number of keys at byte 16 needs 24 bytes"),
    "a GGUF that ends in its metadata": (
        lambda at: cut_gguf(at, 700),
        "cut short: .*'.*needs [0-9,]+ bytes and .* has 700",
    ),
    "a GGUF that ends in its data": (lambda at: cut_gguf(at, -5), "cut short: the tensor '.*' needs [0-9,]+ bytes and"),
    "a file that is no GGUF": (lambda at: only(at, "m.gguf", b"PK\3\4....") / "m.gguf", "m.gguf: it starts with b'PK"),
    "a GGUF of version 1": (lambda at: gguf(at, version=1), "model.gguf: it is GGUF version 1"),
    "a GGUF of a version to come": (lambda at: gguf(at, version=4), "it is GGUF version 4\nAllowed: GGUF versions 2"),
    "a big-endian GGUF": (lambda at: gguf(at, version=3 << 24), "it is written for big-endian machines"),
    "a GGUF of 2^62 keys": (
        lambda at: gguf(at, counts=(0, HUGE)),
        "it announces 4,611,686,018,427,387,904 metadata keys",
    ),
    "a GGUF of 2^62 tensors": (lambda at: gguf(at, counts=(HUGE, 0)), "it announces 4,611,686,018,427,387,904 tensors"),
    "a GGUF with fewer keys than it announces": (
        lambda at: gguf(at, counts=(0, 9)),
        "the name of metadata key 0 at byte 24",
    ),
    "a GGUF with fewer tensors than it announces": (
        lambda at: gguf(at, tensors=[tensor("a", [0])], counts=(2, 0)),
        "cut short: the name of a tensor",
    ),
    "the 49 bytes that hang the gguf library": (
        lambda at: gguf(at, [key("a", 9, array(0, HUGE))]),
        "the metadata 'a', an array of 4,611,686,018,427,387,904 items, at byte 49 needs",
    ),
    "an array of 2^62 strings": (lambda at: gguf(at, [key("a", 9, array(8, HUGE))]), "'a', an array of 4,611,686,018,"),
    "an array of a type to come": (lambda at: gguf(at, [key("a", 9, array(13, 1))]), "'a' is an array of type 13"),
    "an array of arrays": (lambda at: gguf(at, [key("a", 9, array(9, 1))]), "metadata 'a' is an array of arrays"),
    "an array of five million items": (
        lambda at: gguf(at, [key("a", 9, array(0, 5_000_000, bytes(5_000_000)))]),
        "the metadata 'a' has 5,000,000 items\nAllowed: up to 4,000,000",
    ),
    "strings in an array that pass the end": (
        lambda at: gguf(at, [key("a", 9, array(8, 2, text("x") + struct.pack("<Q", HUGE)))]),
        "a string of the metadata 'a'",
    ),
    "a key of 2^62 bytes": (
        lambda at: gguf(at, [struct.pack("<Q", HUGE)]),
        "the name of metadata key 0 of 4,611,686,018,427,387,904 bytes needs",
    ),
    "a string of 2^62 bytes": (
        lambda at: gguf(at, [key("a", 8, struct.pack("<Q", HUGE))]),
        "'a' of 4,611,686,018,427,387",
    ),
    "a string of five megabytes": (
        lambda at: gguf(at, [key("a", 8, text("x" * 5_000_000))]),
        "'a' has 5,000,000 bytes",
    ),
    "strings of twenty megabytes together": (
        lambda at: gguf(at, [key(f"{n}", 8, text("x" * 4_000_000)) for n in range(5)]),
        "its metadata holds over 16,777,216 bytes of text",
    ),
    "a value of a type to come": (lambda at: gguf(at, [key("a", 13, b"")]), "the metadata 'a' is of type 13"),
    "a key twice": (lambda at: gguf(at, [key("a", 0, b"\1"), key("a", 0, b"\1")]), "the metadata 'a' appears twice"),
    "an alignment of zero": (
        lambda at: gguf(at, [key("general.alignment", 4, struct.pack("<I", 0))]),
        "general.alignment is 0\nAllowed: a power of two",
    ),
    "an alignment of 48": (
        lambda at: gguf(at, [key("general.alignment", 4, struct.pack("<I", 48))]),
        "general.alignment is 48",
    ),
    "an alignment that is a word": (lambda at: gguf(at, [key("general.alignment", 8, text("x"))]), "alignment is 'x'"),
    "an alignment past the end": (
        lambda at: gguf(at, [key("general.alignment", 10, struct.pack("<Q", HUGE))], [tensor("a", [8])], data=32),
        "the tensor 'a' needs 4,611,686,018,427,387,936 bytes",
    ),
    "a tensor off the alignment": (
        lambda at: gguf(at, [], [tensor("a", [8], 0, 8)], data=64),
        "'a' is at offset 8\nAll",
    ),
    "a tensor past the end": (
        lambda at: gguf(at, [], [tensor("a", [8], 0, 320)], data=64),
        "cut short: the tensor 'a'",
    ),
    "a tensor of 2^62 x 2^62 values": (
        lambda at: gguf(at, [], [tensor("a", [HUGE, HUGE])], data=64),
        "the tensor 'a' needs",
    ),
    "a tensor of 2^62 dimensions": (
        lambda at: gguf(at, [], [text("a") + struct.pack("<I", 1 << 31)]),
        "the tensor 'a' has 2,147,483,648 dimensions\nAllowed: up to 4",
    ),
    "two tensors of one name in a GGUF": (
        lambda at: gguf(at, [], [tensor("a", [8]), tensor("a", [8], 0, 32)], data=64),
        "model.gguf: the tensor 'a' appears twice",
    ),
    "overlapping tensors in a GGUF": (
        lambda at: gguf(at, [], [tensor("a", [16]), tensor("b", [8], 0, 32)], data=64),
        "the tensors 'a' and 'b' overlap",
    ),
    "a row that is not whole blocks": (
        lambda at: gguf(at, [], [tensor("a", [40], 12)], data=256),
        "the tensor 'a' has rows of 40, and Q4_K is stored in blocks of 256",
    ),
    "a single value in blocks": (lambda at: gguf(at, [], [tensor("a", [], 2)], data=64), "'a' has rows of 1, and Q4_0"),
    "a tensor without a name": (lambda at: gguf(at, [], [tensor("", [8])], data=32), "a tensor is named ''"),
    "a missing part": (lambda at: split_without(at, "00002"), "m-00002-of-0000[0-9].gguf: .* files is missing"),
    "a missing first part": (lambda at: split_without(at, "00001"), "m-00001-of-0000[0-9].gguf: .* files is missing"),
    "parts that hold the same tensor": (split_twice, "the tensor 'a' is in m-00001-of-00002.gguf and in m-00002-of"),
}


# --- sources -----------------------------------------------------------------------------------


def fifo(at: Path) -> Path:
    os.mkfifo(at / "m.gguf")
    return at / "m.gguf"


SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing file": (lambda at: at / "no.gguf", "no.gguf: it cannot be opened .*No such file"),
    "a missing folder": (
        lambda at: at / "no" / "folder",
        "no such file or folder, and it is not a hub id\nAllowed: a folder",
    ),
    "no name at all": (lambda at: "", "source: it is empty"),
    "a name with a zero byte": (lambda at: "a\0b", "no such file or folder|cannot be opened"),
    "a name too long for the system": (lambda at: "x" * 100_000, "it cannot be opened"),
    "a pickle": (lambda at: only(at, "m.pt", pickle.dumps(Bomb())) / "m.pt", "m.pt: this is a pickle checkpoint"),
    "one file of a folder": (
        lambda at: safetensors(at, {}) / "model.safetensors",
        "one file of a model\nTry: open its folder",
    ),
    "a file of something else": (lambda at: only(at, "m.txt", b"hello") / "m.txt", "m.txt: it is not a GGUF file"),
    "a pipe that nobody writes to": (fifo, "m.gguf: it is not a regular file"),
    "an endless device": (lambda at: Path("/dev/zero"), "/dev/zero: it is not a regular file"),
}


CASES = SAFETENSORS | FOLDERS | GGUF | SOURCES


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_the_file_and_the_item(tmp_path: Path, case: str) -> None:
    make, message = CASES[case]
    folder = tmp_path / "model"
    folder.mkdir()
    source = make(folder)
    with within_seconds(60), pytest.raises(wb.WorkbenchError, match=f"(?s){message}") as caught:
        wb.load(source)
    with within_bytes(100_000_000), pytest.raises(wb.WorkbenchError):
        wb.load(source)
    assert len(str(caught.value)) < 2_000


def test_a_model_whose_class_is_in_transformers_needs_none_of_its_authors_code(tmp_path: Path) -> None:
    weights = tiny.weights(256, layers=1)
    config = tiny.llama_config(weights) | {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('this must never run')")
    assert wb.load(tiny.folder(tmp_path, weights, config=config)).architecture == "llama"


def test_a_tokenizer_that_needs_its_authors_code_is_refused(tmp_path: Path) -> None:
    made = tiny.folder(tmp_path, tiny.weights(256, layers=1), tokenizer=False)
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    (made / "tokenization_mine.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(wb.WorkbenchError, match="transformers cannot open its tokenizer"):
        _ = wb.load(made).tokenizer


def test_names_may_hold_anything_and_stay_what_they_are(tmp_path: Path) -> None:
    names = ["a\0b", "<script>", "../../up", "e\u202egnp.exe", "\x1b[31m", "'; DROP TABLE tensors", "😀"]
    entries = {name: entry(4 * n, 4 * n + 4) for n, name in enumerate(names)}
    assert set(wb.load(safetensors(tmp_path, entries, 4 * len(names))).tensors) == set(names)
    (tmp_path / "g").mkdir()
    tensors = [tensor(name, [8], 0, 32 * n) for n, name in enumerate(names)]
    assert set(wb.load(gguf(tmp_path / "g", [], tensors, data=32 * len(names))).tensors) == set(names)


def test_an_ordinary_model_stays_in_the_same_bounds(tmp_path: Path) -> None:
    """So that the bounds of the cases above are known to be met by more than an early error."""
    made = tiny.folder(tmp_path, tiny.weights(512, layers=2))
    with within_seconds(60), within_bytes(100_000_000):
        assert np.isfinite(wb.load(made).read(UP)).all()
