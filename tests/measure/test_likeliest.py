"""`wb.compare` with a server: what its likeliest tokens say, held against what all of them say."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests import tiny
from tests.engines.servers import running, says
from workbench.engines.listing import Listed
from workbench.measure import likeliest
from workbench.measure.comparing import compare_server_steps
from workbench.measure.likeliest import Spelled, coarse_kl

TEXT = "The ferry left at seven, the fog at eight, and nobody on the pier could say which of them was late. " * 30
ASKED = {"context": 300, "tokens": 600}
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def reference(folder):
    return wb.load(tiny.gguf(folder / "exact.gguf", tiny.weights(), "F32", begins=True))


@pytest.fixture(scope="module")
def path(folder):
    """Weights a little off, in F32: llama.cpp then computes the same in its server as in `wb.compare`."""
    random = np.random.default_rng(3)
    off = {name: w * (1 + random.normal(0, 0.1, w.shape)).astype(np.float32) for name, w in tiny.weights().items()}
    return tiny.gguf(folder / "off.gguf", off, "F32", begins=True)


@pytest.fixture(scope="module")
def server(path):
    with wb.serve(str(path), threads=1) as served:
        yield served.url


@pytest.fixture(scope="module")
def full(reference, path):
    """What `wb.compare` says of the file itself: by chunk and position."""
    with wb.run(str(path), engine="llama.cpp", threads=1) as engine:
        return wb.compare(reference, engine, TEXT, **ASKED).frame().set_index(["chunk", "position"])


def asking(url, listed=100):
    engine = wb.run(url, engine="llama-server")
    engine.preset = replace(engine.preset, listed=listed)
    return engine


def compared(reference, url, listed=100, **settings):
    return wb.compare(reference, asking(url, listed), TEXT, **ASKED | settings)


def beside(found, full):
    """The positions that were measured, and the same ones of the full comparison."""
    here = found.frame().set_index(["chunk", "position"])
    return here, full.loc[here.index]


# --- a real server --------------------------------------------------------------------------------


def test_the_bound_holds_at_every_position_and_grows_with_the_list(reference, server, full):
    bounds = []
    for listed in (1, 5, 20, 100):
        found = compared(reference, server, listed)
        here, there = beside(found, full)
        assert len(here) + found.untold == 64
        assert (here["kl"] <= there["kl"] + 1e-5).all()
        assert found.kl_at_least.value == pytest.approx(here["kl"].mean())
        bounds.append(found.kl_at_least.value)
    assert bounds == sorted(bounds)
    assert bounds[-1] > 0.3 * there["kl"].mean() > 0


def test_a_list_of_every_token_gives_the_divergence_itself(reference, server, full):
    found = compared(reference, server, 300)
    here, there = beside(found, full)
    np.testing.assert_allclose(here["kl"], there["kl"], rtol=0.01)  # a server rounds a little otherwise
    np.testing.assert_allclose(here["delta_p"], there["delta_p"], atol=1e-4)
    assert found.kl_at_least.value == pytest.approx(there["kl"].mean(), rel=2e-3)
    assert found.same_top.value == pytest.approx(there["same_top"].mean(), abs=0.03)
    assert found.covered.value == pytest.approx(1, abs=1e-4)
    assert (here["told_apart"] == tiny.VOCAB).all()


def test_where_only_texts_are_told_the_bound_holds_too(reference, server, full, monkeypatch):
    """Half of the tiny model's tokens are parts of characters, which are told apart by number alone."""
    by_number = compared(reference, server)
    original = likeliest.ServerEngine.likeliest

    def without_numbers(engine, text):
        found = original(engine, text)
        return replace(found, tokens=tuple(replace(each, number=None) for each in found.tokens))

    monkeypatch.setattr(likeliest.ServerEngine, "likeliest", without_numbers)
    found = compared(reference, server)
    here, there = beside(found, full)
    assert (here["kl"] <= there["kl"] + 1e-5).all()
    assert 0 < found.kl_at_least.value < by_number.kl_at_least.value
    assert found.covered.value < by_number.covered.value


def test_an_engine_may_be_the_reference(reference, server, full):
    with wb.run(reference, engine="llama.cpp", threads=1) as engine:
        found = wb.compare(engine, asking(server), TEXT, **ASKED)
    here, there = beside(found, full)
    assert (here["kl"] <= there["kl"] + 1e-5).all()
    assert found.computed[0].startswith("llama.cpp on cpu")


def test_it_says_what_each_figure_is(reference, server):
    found = compared(reference, server, positions=20)
    told = repr(found)
    assert told.startswith("off against exact, by its likeliest tokens alone\nKL divergence at least 0.")
    assert f"{found.positions} positions, spread over the second halves of chunks of 300" in told
    assert f"the candidate by llama-server at {server}" in told
    table = found.table().set_index("figure")["value"]
    assert table["KL, at least"] == found.kl_at_least.value
    assert table["positions"] == found.positions == 20 - found.untold
    assert found.frame()["position"].between(151, 299).all()
    assert set(found.frame()["chunk"]) == {0, 1}


def test_what_was_asked_is_kept_as_long_as_the_engine(reference, server, monkeypatch):
    engine = asking(server)
    steps = compare_server_steps(reference, engine, TEXT, **ASKED)
    for step in steps:
        if step.unit == "position" and step.done >= 5:
            break
    steps.close()
    kept = dict(likeliest._LISTINGS[engine])
    assert 5 <= len(kept) < 64
    found = wb.compare(reference, engine, TEXT, **ASKED)
    assert {text: likeliest._LISTINGS[engine][text] for text in kept} == kept
    with monkeypatch.context() as patched:
        patched.setattr(likeliest.ServerEngine, "likeliest", lambda *_: pytest.fail("it was asked again"))
        patched.setattr(likeliest, "_measure_steps", lambda _: pytest.fail("it was measured again"))
        assert wb.compare(reference, engine, TEXT, **ASKED).by_position == found.by_position
    count = len(likeliest._LISTINGS)
    del engine
    gc.collect()
    assert len(likeliest._LISTINGS) < count


# --- OpenAI's older shape, and servers that misbehave ----------------------------------------------


def lists(probabilities, tokens=None, text="x"):
    """An answer in the shape of vLLM; `tokens` of a prompt: how many the server says it read; `text`: its reply."""

    def answer(asked):
        prompt = json.loads(asked.body)["prompt"]
        listed = {text: math.log(p) for text, p in probabilities.items()}
        first = max(listed, key=listed.get)
        logprobs = {"tokens": [first], "token_logprobs": [listed[first]], "top_logprobs": [listed]}
        usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens(prompt)}}
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": logprobs}
        says({"object": "text_completion", "choices": [choice], **usage})(asked)

    return answer


@pytest.fixture(scope="module")
def length(reference):
    return lambda prompt: 1 + len(reference.tokenizer(prompt, add_special_tokens=False)["input_ids"])


def vllm(reference, answer, **settings):
    with running(**{COMPLETIONS: answer}) as server:
        return wb.compare(reference, wb.run(server.url, engine="vllm"), TEXT, **ASKED | settings)


def test_the_figures_are_those_of_the_list(reference, length):
    found = vllm(reference, lists({" the": 0.5, "e": 0.25, "\ufffd": 0.125, "<b>": 0.0625}, length), positions=9)
    assert found.positions == 9
    assert found.covered.value == 0.75  # "\ufffd" are many tokens, and "<b>" is none of them
    the, e = (reference.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (" the", "e"))
    with wb.run(reference, device="cpu", dtype="float32") as engine:
        for each in found.by_position:
            ids = wb_chunks(reference)[each.chunk]
            p = torch.from_numpy(engine.logits(ids[: each.position])[-1]).double().softmax(-1).numpy()
            by_hand = coarse_kl(p[[the, e]], np.array([0.5, 0.25]))
            assert each.kl == pytest.approx(by_hand, rel=1e-3)
            assert each.same_top == (p.argmax() == the)
            followed = {the: 0.5, e: 0.25}.get(int(ids[each.position]))
            assert (followed is None) == math.isnan(each.delta_p)
            assert followed is None or each.delta_p == pytest.approx(followed - p[ids[each.position]], abs=1e-5)
    assert found.followed == sum(int(wb_chunks(reference)[p.chunk][p.position]) in (the, e) for p in found.by_position)


def test_vllm_is_asked_for_numbers_which_are_believed_if_its_reply_fits_them(reference, length):
    the = reference.tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    numbered = {f"token_id:{the}": 0.5, "token_id:200": 0.25, "token_id:201": 0.125}  # the others are half characters
    with running(**{COMPLETIONS: lists(numbered, length, " the")}) as server:
        found = wb.compare(reference, wb.run(server.url, engine="vllm"), TEXT, **ASKED, positions=5)
        assert json.loads(server.seen[-1].body)["return_tokens_as_token_ids"] is True
    assert found.covered.value == 0.875
    assert {each.top_candidate for each in found.by_position} == {" the"}
    other = vllm(reference, lists(numbered, length, "never"), positions=5)
    assert other.covered.value == other.same_top.value == 0


def test_a_text_put_first_that_several_tokens_have_is_not_taken_for_the_same(reference, length):
    found = vllm(reference, lists({"\ufffd": 0.5, " the": 0.25}, length), positions=40)
    assert 0 < found.unsure < 40  # else the reference puts a whole character first
    assert f"(not told at {found.unsure} positions)" in repr(found)
    assert found.same_top.value == 0


def wb_chunks(reference):
    return likeliest.texts.chunks_of(reference, TEXT, 300, tokens=600)


def test_token_texts_are_shown_as_text(reference, length):
    hostile = "<script>alert(1)</script>"
    found = vllm(reference, lists({hostile: 0.9}, length), positions=3)
    shown = found._repr_html_()
    assert hostile not in shown
    assert "&lt;script&gt;" in shown
    assert found.kl_at_least.value == 0  # nothing is told apart
    assert "Δp is known nowhere" in repr(found)


def test_a_server_that_does_not_count_is_believed_and_that_is_said(reference):
    assert "as how many tokens it read" in vllm(reference, lists({" the": 0.5}), positions=3).notes[-1]


def test_positions_that_are_read_as_other_tokens_are_left_out_and_counted(reference, length):
    found = vllm(reference, lists({" the": 0.5}, lambda prompt: length(prompt) + (len(prompt) % 2)), positions=20)
    assert 0 < found.positions < 20
    assert found.reread == 20 - found.positions
    assert f"{found.reread} left out, which are read as other tokens" in repr(found)


def test_a_text_of_special_tokens_is_read_otherwise_by_servers(reference, length):
    with running(**{COMPLETIONS: lists({" the": 0.5}, length)}) as server:
        text = TEXT[:1000] + "<|im_end|>" + TEXT[:1000]  # plain characters here, a token of its own in a server
        found = wb.compare(reference, wb.run(server.url, engine="vllm"), text, context=64, positions=40)
    assert 0 < found.reread < 40


def test_a_server_that_reads_all_of_it_otherwise_is_an_error(reference):
    with pytest.raises(wb.WorkbenchError, match=r"reads a text of \d+ tokens as 7") as caught:
        vllm(reference, lists({" the": 0.5}, lambda prompt: 7))
    assert "chat template" in caught.value.do


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"top_logprobs": [None]}, {"top_logprobs": []}])
def test_a_server_that_lists_nothing_is_told_so_after_a_few_questions(reference, logprobs):
    answer = says({"choices": [{"text": "x", "logprobs": logprobs}], "usage": {"prompt_tokens": 4}})
    with running(**{COMPLETIONS: answer}) as server:
        engine = wb.run(server.url, engine="vllm")
        with pytest.raises(wb.WorkbenchError, match="vLLM lists no likely tokens"):
            wb.compare(reference, engine, TEXT, **ASKED)
        assert len(server.seen) == 1 + likeliest.FEW


def listed(**entry):
    return says({"choices": [{"logprobs": {"content": [{"top_logprobs": [entry]}]}}]})


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: asked.begin(),
        says([1, 2]),
        says({"choices": []}),
        says({"choices": [{"logprobs": "many"}]}),
        says({"choices": [{"logprobs": {"top_logprobs": [7]}}]}),
        listed(token="a"),
        listed(token=7, logprob=-1.0),
        listed(token="a", logprob="-1"),
        listed(token="a", logprob=math.nan),
        listed(token="a", logprob=3.0),
        listed(token="a", logprob=-(10**400)),
        lists({"a": 0.9, "b": 0.9}),
        lambda asked: (asked.begin(kind="application/json"), asked.write('{"choices":' + "[" * 100_000)),
    ],
)
def test_rubbish_for_a_list_is_said_to_be_that(reference, answer):
    with pytest.raises(wb.WorkbenchError, match="not the OpenAI protocol"):
        vllm(reference, answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says({"error": {"message": "slow down"}}, 429), "429: slow down"),
        (says({"error": {"message": "max logprobs is 5"}}, 400), "400: max logprobs is 5"),
        (says({}, 307, location="http://127.0.0.1:9/"), "sends elsewhere"),
    ],
)
def test_what_a_server_refuses_is_told_in_its_words(reference, answer, said):
    with pytest.raises(wb.WorkbenchError, match=said):
        vllm(reference, answer)


def test_an_endless_list_is_cut(reference):
    def endless(asked):
        asked.begin(kind="application/json")
        while not asked.server.over.is_set():
            asked.write(" " * 100_000)

    with pytest.raises(wb.WorkbenchError, match="does not stop sending"):
        vllm(reference, endless)


def test_what_cannot_be_asked_is_named(reference):
    with running() as server:
        engine = wb.run(server.url)
        for settings, said in (
            ({"positions": 0}, "positions: it is 0"),
            ({"importance": {}}, "importance: a server runs what it has"),
            ({"context": 2}, "context: 2 tokens leave none to score"),
            ({"context": 100_000}, "context: 100000 tokens, more than the 512"),
        ):
            with pytest.raises(wb.WorkbenchError, match=said):
                wb.compare(reference, engine, TEXT, **settings)
        engine.close()
        with pytest.raises(wb.WorkbenchError, match="this engine was closed"):
            wb.compare(reference, engine, TEXT)
    with pytest.raises(wb.WorkbenchError, match="positions: this candidate is measured at all"):
        wb.compare(reference, "Q8_0", TEXT, positions=5)


# --- texts and tokens -----------------------------------------------------------------------------


def test_a_first_space_that_some_tokenizers_drop_is_not_told_apart_by_text():
    class Dropping:
        """As sentencepiece's do: " a" alone is "a"."""

        pieces = (" a", "a", "b", " c")
        all_special_ids = ()

        def __call__(self, text, **_):
            return {"input_ids": [0]}

        def __len__(self):
            return len(self.pieces)

        def decode(self, ids, **_):
            return "".join(self.pieces[number] for number in ids).removeprefix(" ")

        def batch_decode(self, many, **_):
            return [self.decode(ids) for ids in many]

    spelled = Spelled.by(Dropping())
    assert spelled.pieces == [" a", "a", "b", " c"]
    a, b, c = Listed("a", math.log(0.5)), Listed("b", math.log(0.25)), Listed(" c", math.log(0.125))
    assert spelled.told_apart((a, b, c)) == pytest.approx({(2,): 0.25, (3,): 0.125})  # "a" may be either of two
    assert spelled.told_apart((a, b, Listed("a", math.log(0.125)))) == pytest.approx({(2,): 0.25, (0, 1): 0.625})
    assert spelled.told_apart((replace(a, number=1), b)) == pytest.approx({(1,): 0.5, (2,): 0.25})
    assert spelled.told_apart((replace(b, number=1),)) == {(2,): 0.25}  # a number that has another text: not believed
    assert math.isnan(spelled.is_same(0, a))
    assert spelled.is_same(3, a) == spelled.is_same(0, replace(a, number=1)) == 0
    assert spelled.is_same(1, replace(a, number=1)) == spelled.is_same(2, b) == 1
