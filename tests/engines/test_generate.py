"""The generation loop: the tokens of transformers, whole characters, stop strings."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests import tiny
from tests.engines import models
from workbench.engines.base import Settings
from workbench.engines.generate import Decoding, Detokenizer, Until, chooser

TEXT = "naïve café — 😀👩‍👩‍👧 日本語 ﷽ the end\n\n  x"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_greedy_tokens_are_those_of_generate(tmp_path, architecture):
    model = models.save(tmp_path, architecture)
    ids = models.some_ids(sequences=1)
    theirs = model.generate(
        ids, do_sample=False, max_new_tokens=30, attention_mask=torch.ones_like(ids), eos_token_id=None
    )
    decoding, choose = Decoding(model, ids[0].tolist()), chooser(Settings())
    for _ in range(30):  # past the sliding window of the Gemmas
        decoding.append(choose(decoding.logits()))
    assert decoding.ids == theirs[0].tolist()


def draws(settings, logits, count=200):
    choose = chooser(settings)
    return [choose(logits) for _ in range(count)]


def test_sampling_follows_its_settings():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert set(draws(Settings(temperature=1), logits)) == {0, 1, 2, 3}
    assert set(draws(Settings(temperature=1, top_k=2), logits)) == {0, 1}
    assert set(draws(Settings(temperature=1, top_p=0.9), logits)) == {0, 1, 2}
    assert set(draws(Settings(temperature=0.01), logits)) == {0}
    assert set(draws(Settings(temperature=0, top_k=3), logits)) == {0}


def test_a_seed_repeats_the_draws_and_leaves_the_random_state_alone():
    logits = torch.zeros(50)
    before = torch.get_rng_state()
    assert draws(Settings(temperature=1, seed=7), logits) == draws(Settings(temperature=1, seed=7), logits)
    assert draws(Settings(temperature=1, seed=7), logits) != draws(Settings(temperature=1, seed=8), logits)
    assert torch.equal(torch.get_rng_state(), before)


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT)  # every character above ASCII is several tokens here
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    assert "".join(pieces) + detokenizer.rest() == TEXT
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_are_no_character_are_shown_once_something_follows(tokenizer):
    broken = tokenizer("é")["input_ids"][:1]
    detokenizer = Detokenizer(tokenizer)
    ids = [*broken, *broken, *tokenizer("ok")["input_ids"], *broken]
    assert [detokenizer.add(token) for token in ids] == ["", "", "\ufffd\ufffdo", "k", ""]
    assert detokenizer.rest() == "\ufffd"


def test_words_of_a_sentencepiece_tokenizer_keep_their_spaces():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["▁once", "▁upon", "▁a", "▁time", ","]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=","))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    detokenizer = Detokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=made))
    ids = [0, 1, 2, 3, 4] * 5
    assert (
        "".join(detokenizer.add(token) for token in ids)
        == ",".join(["once upon a time"] + [" once upon a time"] * 4) + ","
    )


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["Hello wor", "ld"], [], "Hello world"),
        (["a", "b", "ST", "OP", "c"], ["STOP"], "ab"),
        (["abSTO", "x STOP"], ["STOP"], "abSTOx "),
        (["aaa", "b"], ["aab"], "a"),
        (["one\n", "\ntwo"], ["\n\n"], "one"),
        (["x END y STOP"], ["STOP", "END"], "x "),
        (["S", "T", "O"], ["STOP"], "STO"),
        (["日", "本", "語"], ["本語"], "日"),
    ],
)
def test_text_ends_before_the_first_stop_string(pieces, stop, shown):
    until, said = Until(stop), ""
    for piece in pieces:
        said += until.add(piece)
        if until.found:
            break
    assert said + until.rest() == shown


def test_what_may_become_a_stop_string_is_held_back():
    until = Until(["STOP"])
    assert [until.add(piece) for piece in ("a", "ST", "O", "X")] == ["a", "", "", "STOX"]
