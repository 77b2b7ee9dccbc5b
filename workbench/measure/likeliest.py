"""A server as the candidate of a comparison: what its likeliest next tokens say, and no more.

With the listed tokens told apart and all others taken as one, both distributions become coarser, and

    KL(coarse reference ‖ coarse candidate) ≤ KL(reference ‖ candidate),

whatever is told apart (the data-processing inequality; Cover and Thomas, Elements of Information Theory,
2.8). So what is told apart may be chosen by what the server lists, but each side's probability of it must be
known in full: a text that several tokens have (parts of characters, say) counts as one thing only where all
of them are listed, and belongs to the others elsewhere.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from workbench import __version__, files, fit
from workbench.engines import room
from workbench.engines.listing import Listed, Listing
from workbench.engines.server import ServerEngine
from workbench.exceptions import WorkbenchError, need
from workbench.fit.guard import free
from workbench.measure import divergence
from workbench.measure import text as texts
from workbench.measure.coarse import Coarse, Position
from workbench.measure.lockstep import EVERY, MARGIN
from workbench.measure.pair import Computed
from workbench.progress import Progress, Steps, in_thread

if TYPE_CHECKING:
    import torch

POSITIONS = 64  # that are asked, unless more are wanted: a question for each
FEW = 8  # positions without a list, after which a server is taken to give none
LEAST = 1e-6  # of the others' probability: what 1 less a sum of rounded numbers can be trusted for

Key = tuple[str, int, int]  # a hash of the tokens, the chunk, the position of the token that is predicted
# What servers listed, for as long as their engines live: the same address may have another model tomorrow.
_LISTINGS: WeakKeyDictionary[ServerEngine, dict[str, Listing]] = WeakKeyDictionary()
_MEASURED: WeakKeyDictionary[ServerEngine, dict[str, Position]] = WeakKeyDictionary()


def likeliest_steps(
    reference: Computed, engine: ServerEngine, chunks: np.ndarray, positions: int = POSITIONS
) -> Steps[Coarse]:
    """Ask a server for its likeliest tokens at some positions of a text, and hold them against the reference's.

    Yields the positions asked, then those measured. Closing it keeps both, for as long as the engine lives.

    Args:
        chunks: token ids, int64 [chunks, context].
        positions: how many are asked at most.

    Raises:
        WorkbenchError: a server that lists nothing, reads every text as other tokens, or fails.
    """
    task = Task(reference, engine, chunks, positions)
    yield Progress(0, 0, "", f"reading the tokens of {reference.checkpoint.name}")
    yield from in_thread(task.ask)
    if task.unmeasured:
        yield from _measure_steps(task)
    return task.answer()


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that decides a `Coarse`; see `likeliest_steps`."""

    reference: Computed
    engine: ServerEngine
    chunks: np.ndarray
    positions: int

    @cached_property
    def asked(self) -> list[tuple[int, int]]:
        """(chunk, position of the token that is predicted), spread evenly over all that `wb.compare` scores."""
        context = self.chunks.shape[1]
        each = context - 1 - context // 2
        every = each * len(self.chunks)
        count = min(self.positions, every)
        spread = [int((number + 0.5) * every / count) for number in range(count)]
        return [(at // each, context // 2 + 1 + at % each) for at in spread]

    def prefix(self, at: tuple[int, int]) -> str | None:
        """The text before a position; None where that is read as other tokens."""
        chunk, position = at
        tokenizer, ids = self.reference.checkpoint.tokenizer, self.chunks[chunk, :position].tolist()
        ids = ids[texts.beginning(self.reference.checkpoint) is not None :]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        back = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # special ones as a server does
        return text if back == ids else None

    # --- what the server lists --------------------------------------------------------------------

    @cached_property
    def listings(self) -> dict[str, Listing]:
        return _LISTINGS.setdefault(self.engine, {})

    @cached_property
    def prefixes(self) -> dict[tuple[int, int], str]:
        """The text before each position that is read as the same tokens."""
        found = ((at, self.prefix(at)) for at in self.asked)
        return {at: text for at, text in found if text is not None}

    def ask(self, report: Callable[[Progress], None]) -> None:
        """Have the server list what is not known yet; a position at a time."""
        if not self.prefixes:
            raise WorkbenchError(
                "text", f"the tokenizer reads none of its beginnings at {len(self.asked)} positions as the same tokens"
            )
        for number, text in enumerate(self.prefixes.values()):
            report(Progress(number, len(self.prefixes), "position", f"asking {self.engine.name}"))
            if text not in self.listings:
                self.listings[text] = self.engine.likeliest(text)
            if number + 1 == min(FEW, len(self.prefixes)):
                self._check_listed(number + 1)
        self._check_read()

    def _check_listed(self, count: int) -> None:
        if not any(self.listings[text].tokens for text in list(self.prefixes.values())[:count]):
            raise WorkbenchError(
                self.engine.connection.url,
                f"{self.engine.connection.name} lists no likely tokens (`logprobs` of /v1/completions)",
                allowed="servers that do, such as llama-server and vLLM",
                do="compare the file that it runs, in llama.cpp or by its weights; or by words: wb.side_by_side(a, b)",
            )

    def _check_read(self) -> None:
        if not self.known:
            (_, place), text = next(iter(self.prefixes.items()))
            raise WorkbenchError(
                self.engine.connection.url,
                f"{self.engine.connection.name} reads a text of {place} tokens as {self.listings[text].prompt_tokens}",
                do="see that it runs a model with the same tokenizer, and takes texts without a chat template",
            )

    @cached_property
    def known(self) -> dict[tuple[int, int], Listing]:
        """The lists of positions up to which the server read as many tokens as there are."""
        found = ((at, self.listings[text]) for at, text in self.prefixes.items())
        return {at: each for at, each in found if each.tokens and each.prompt_tokens in (0, at[1])}

    # --- held against the reference ---------------------------------------------------------------

    @cached_property
    def code(self) -> str:
        return files.code_version(sys.modules[__name__], divergence)

    @cached_property
    def measured(self) -> dict[str, Position]:
        return _MEASURED.setdefault(self.engine, {})

    def key(self, at: tuple[int, int]) -> str:
        chunk, position = at
        basis = self.reference.fingerprint, self.reference.how, self.code
        return files.digest(*basis, position, self.chunks[chunk].tobytes())

    @property
    def unmeasured(self) -> list[tuple[int, int]]:
        return [at for at in self.known if self.key(at) not in self.measured]

    @cached_property
    def spelled(self) -> Spelled:
        return Spelled.by(self.reference.checkpoint.tokenizer)

    def measure(self, at: tuple[int, int], logits: torch.Tensor) -> None:
        """Hold the reference's logits [vocabulary] at a position against what the server listed there."""
        chunk, position = at
        p = logits.double().log_softmax(-1).exp().cpu().numpy()
        listed, spelled, top = self.known[at].tokens, self.spelled, int(p.argmax())
        apart = {ids: q for ids, q in spelled.told_apart(listed).items() if max(ids) < len(p)}
        here = np.array([p[list(ids)].sum() for ids in apart])
        there = np.array(list(apart.values()))
        following = int(self.chunks[chunk, position])
        self.measured[self.key(at)] = Position(
            chunk=chunk,
            position=position,
            kl=coarse_kl(here, there),
            told_apart=len(apart),
            covered=float(there.sum()),
            same_top=spelled.is_same(top, listed[0]),
            delta_p=float(apart[(following,)] - p[following]) if (following,) in apart else math.nan,
            top_reference=spelled.text(top),
            top_candidate=spelled.text(listed[0].number) if listed[0].text is None else listed[0].text,
        )

    def answer(self) -> Coarse:
        known, engine, reference = self.known, self.engine, self.reference
        unsure = any(not each.prompt_tokens for each in known.values())
        note = "the server does not tell as how many tokens it read the text: that it read the same ones is assumed"
        told = sum(bool(self.listings[text].tokens) for text in self.prefixes.values())
        return Coarse(
            reference=reference.name,
            candidate=engine.name,
            fingerprint=reference.fingerprint,
            text=files.digest(self.chunks.tobytes()),
            context=self.chunks.shape[1],
            by_position=tuple(
                replace(self.measured[self.key(at)], chunk=at[0]) for at in known if self.key(at) in self.measured
            ),
            listed=engine.preset.listed,
            reread=len(self.asked) - len(self.prefixes) + told - len(known),
            untold=len(self.prefixes) - told,
            computed=(reference.computed, f"{engine.preset.title} at {engine.connection.url}"),
            versions={"workbench": __version__, "measure": self.code, **reference.versions},
            notes=(*reference.checkpoint.notes, *([note] if unsure else [])),
        )


def _measure_steps(task: Task) -> Steps[None]:
    """Have the reference read the chunks with positions that are not measured yet."""
    reference, missing = task.reference, defaultdict[int, list[int]](list)
    for chunk, position in task.unmeasured:
        missing[chunk].append(position)
    needed = int(MARGIN * reference.nbytes) + 20 * divergence.SLICE
    streamed = needed > room.here(reference.device).usable
    done, last = 0, 0.0
    report: Callable[[Progress], None] | None = None

    def tick() -> None:
        nonlocal last
        if report and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            report(Progress(done, len(task.known), "position", f"reading with {reference.name}"))

    def measure(to: Callable[[Progress], None]) -> None:
        nonlocal done, report
        done, report = len(task.known) - sum(map(len, missing.values())), to
        for chunk, positions in missing.items():
            _measure(task, predictor, chunk, positions)
            done += len(positions)

    with fit.guarded(needed, f"reading with {reference.name}", str(reference.device), instead="dtype='bfloat16'"):
        predictor = yield from reference.open_steps(task.chunks.shape[1], tick, streamed=streamed)
        try:
            yield from in_thread(measure)
        finally:
            predictor.close()
            free()


def _measure(task: Task, predictor: Any, chunk: int, positions: list[int]) -> None:
    """One chunk: the logits before each of the positions, a run of them at a time."""
    scored = slice(min(positions) - 1, max(positions))
    (rows,) = predictor.read(need("torch").from_numpy(task.chunks[chunk : chunk + 1]), scored)
    wide = texts.vocabulary(task.reference.checkpoint) or 1 << 18
    for run in divergence.slices(scored.stop - scored.start, wide):
        logits = rows(run)
        for position in positions:
            row = position - 1 - scored.start
            if run.start <= row < run.stop:
                if not logits[row - run.start].isfinite().any():
                    raise WorkbenchError(task.reference.name, "its logits are not finite numbers")
                task.measure((chunk, position), logits[row - run.start])


def coarse_kl(p: np.ndarray, q: np.ndarray) -> float:
    """Σ p (log p − log q) in nats, over things told apart, by their probabilities [things], and over the rest."""
    p, q = (np.append(each, max(LEAST, 1 - each.sum())) for each in (p, q))
    some = p > 0
    return max(0.0, float((p[some] * np.log(p[some] / q[some])).sum()))


@dataclass(frozen=True)
class Spelled:
    """The texts of a tokenizer's tokens, as a server may spell them.

    Attributes:
        pieces: the text of each token within a text, by number.
        ids: text -> the numbers of all tokens that have it: within a text, alone, or cut where a character begins.
    """

    pieces: list[str]
    ids: Mapping[str, frozenset[int]]

    @classmethod
    def by(cls, tokenizer: Any) -> Spelled:
        """Of all tokens. Alone, some drop their first space; llama-server drops special names and half characters."""
        plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        start, count = tokenizer.decode(before, **plain), len(tokenizer)
        within = tokenizer.batch_decode([[*before, number] for number in range(count)], **plain)
        pieces = [text.removeprefix(start) for text in within]
        alone = tokenizer.batch_decode([[number] for number in range(count)], **plain)
        ids: dict[str, set[int]] = defaultdict(set)
        for spelled in (pieces, alone, [text.rstrip("\ufffd") for text in pieces]):
            for number, text in enumerate(spelled):
                ids[text].add(number)
        ids[""].update(tokenizer.all_special_ids)
        return cls(pieces, {text: frozenset(numbers) for text, numbers in ids.items()})

    def text(self, number: int | None) -> str:
        return self.pieces[number] if number is not None and number < len(self.pieces) else ""

    def number(self, listed: Listed) -> int | None:
        """The number of a listed token, if it is told and nothing speaks against it."""
        known = listed.text is None or listed.number in self.ids.get(listed.text, ())
        return listed.number if known else None

    def is_same(self, number: int, listed: Listed) -> float:
        """1 or 0: whether a token is the listed one; not a number where several have its text."""
        told = self.number(listed)
        ids = self.ids.get(listed.text or "", frozenset()) if told is None else {told}
        return math.nan if len(ids) > 1 and number in ids else float(number in ids)

    def told_apart(self, listed: tuple[Listed, ...]) -> dict[tuple[int, ...], float]:
        """Numbers of tokens -> their probability together, where it is known in full.

        Numbers alone are believed unless one that has a text has another one here.
        """
        by_text: dict[str, list[Listed]] = defaultdict(list)
        apart: dict[tuple[int, ...], float] = {}
        other = any(each.number is not None and self.number(each) is None for each in listed)
        for each in listed:
            number = self.number(each)
            if number is not None and not (each.text is None and other):
                apart[(number,)] = math.exp(each.log_p)
            elif each.text is not None:
                by_text[each.text].append(each)
        for text, same in by_text.items():
            ids = tuple(sorted(self.ids.get(text, ())))
            if len(same) == len(ids) and not any((number,) in apart for number in ids):
                apart[ids] = sum(math.exp(each.log_p) for each in same)
        return {ids: q for ids, q in apart.items() if q > 0}
