"""A text in chunks of tokens, as llama.cpp cuts it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from workbench.measure.text import beginning, chunks_of, text_of, token_ids

TEXT = "The ferry left at seven, the fog at eight, and nobody on the pier could say which of them was late. " * 5


@pytest.fixture
def folder(tmp_path):
    return tiny.folder(tmp_path / "model", tiny.weights(hidden=256))


def with_beginning(folder):
    """The same model with a tokenizer that puts its first special token before every text."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    begin = {"SpecialToken": {"id": tiny.SPECIAL[1], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    named = {tiny.SPECIAL[1]: {"id": tiny.SPECIAL[1], "ids": [1], "tokens": [tiny.SPECIAL[1]]}}
    tokenizer["post_processor"] = {
        **{"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text]},
        "special_tokens": named,
    }
    file.write_text(json.dumps(tokenizer))
    return wb.load(folder)


def test_chunks_are_the_text_in_order_without_what_does_not_fill_one(folder):
    model = wb.load(folder)
    ids = model.tokenizer(TEXT, add_special_tokens=False).input_ids
    chunks = chunks_of(model, TEXT, 64)
    assert chunks.dtype == np.int64
    assert chunks.ravel().tolist() == ids[: len(ids) // 64 * 64]
    assert chunks_of(model, TEXT, 64, tokens=130).shape == (2, 64)


def test_a_tokenizers_beginning_takes_the_first_place_of_every_chunk(folder):
    plain = token_ids(wb.load(folder), TEXT)
    model = with_beginning(folder)
    chunks = chunks_of(model, TEXT, 64)
    assert beginning(model) == 1
    assert (chunks[:, 0] == 1).all()
    assert chunks[0, 1:].tolist() == plain[:63].tolist()
    assert chunks[1, 1:].tolist() == plain[64:127].tolist()


def test_a_gguf_says_itself_whether_a_text_begins_with_a_token(tmp_path):
    made = {said: tiny.gguf(tmp_path / f"{said}.gguf", tiny.weights(hidden=256), begins=said) for said in (None, True)}
    assert beginning(wb.load(made[None])) is None
    assert beginning(wb.load(made[True])) == 1


def test_what_looks_like_a_special_token_is_read_as_characters(folder):
    assert not set(token_ids(wb.load(folder), f"{TEXT}{tiny.SPECIAL[2]}")) & {0, 1, 2}


def test_a_text_is_a_string_a_list_of_them_or_a_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    assert text_of(file) == text_of(TEXT)
    assert text_of(["one", "two"]) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (["", " \n"], "empty"),
        ("Too short.", "only 10 tokens"),
        (7, "int"),
        ([TEXT, 7], "list"),
        ("\ud800" + TEXT, "Unicode"),
    ],
    ids=["nothing", "blanks", "a few words", "a number", "a number in a list", "half a character"],
)
def test_bad_text_is_named(folder, text, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        chunks_of(wb.load(folder), text, 64)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(wb.WorkbenchError, match="UTF-8"):
        text_of(tmp_path / "picture")
    with pytest.raises(wb.WorkbenchError, match="missing"):
        text_of(tmp_path / "missing")


@pytest.mark.parametrize(("context", "said"), [(4096, "512"), (0, "above 0"), (2.5, "above 0")])
def test_a_context_that_the_model_does_not_have_is_refused(folder, context, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        chunks_of(wb.load(folder), TEXT, context)


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    weights = tiny.weights(hidden=256)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:80]
    model = wb.load(tiny.folder(tmp_path / "few", weights, config=tiny.llama_config(weights) | {"vocab_size": 80}))
    with pytest.raises(wb.WorkbenchError, match="it knows 80"):
        chunks_of(model, TEXT, 64)
