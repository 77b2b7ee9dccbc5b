"""`wb.advise`: which format, engine and cache to take for a use, on a device.

It starts from what practitioners advise, and holds each piece of advice against what was measured on this very model:
start with Q4_K_M; eight bits for mathematics and code; keys and values in fewer bits for a long context; and a
benchmark on your own task before you believe any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from workbench import figures, fit
from workbench.advice.answer import Advice, Reason
from workbench.advice.evidence import FELT, FINE, PUBLISHED, Evidence, Known
from workbench.checkpoint import Checkpoint, load
from workbench.exceptions import WorkbenchError
from workbench.fit import Device, Memory
from workbench.fit.outline import architecture_of
from workbench.fit.subject import open_steps
from workbench.measure.card import Card
from workbench.planning import RECIPES, plan_for
from workbench.planning.spec import fallbacks
from workbench.progress import drain

Cache = tuple[str, str]
FLOAT: Cache = ("f16", "f16")
EIGHT: Cache = ("q8_0", "q8_0")
MIXED: Cache = ("q8_0", "q4_0")
DOWN = ("Q5_K_M", "Q4_K_M", "Q3_K_M")  # what is tried where the first choice does not fit
LAST = "Q2_K"  # a broken model, taken only where nothing else fits at any length
BETTER = ("Q5_K_M", "Q6_K", "Q8_0")  # what comes after Q4_K_M where that costs too much
MOST = 1 << 24  # tokens, of a model that does not say what it was made for
SHORTEST = 2048  # tokens: below this nobody wants to talk


@dataclass(frozen=True)
class Use:
    """What a model is for.

    Attributes:
        formats: the first choice, and what comes after it where that does not fit.
        context: tokens, unless asked otherwise; `batch`: conversations at once.
        engine: "llama.cpp", or "vllm" where many are served and the device is an NVIDIA GPU.
    """

    formats: tuple[str, ...]
    context: int
    batch: int = 1
    engine: str = "llama.cpp"


USES = {
    "chat": Use(("Q4_K_M", "Q3_K_M"), 8192),
    "math": Use(("Q8_0", "Q6_K", *DOWN), 8192),
    "code": Use(("Q8_0", "Q6_K", *DOWN), 16384),
    "serving": Use(("FP8", "INT4"), 8192, 8, "vllm"),
    "long context": Use(("Q4_K_M", "Q3_K_M"), 65536),
}


def advise(
    model: Checkpoint | str | Path | dict,
    device: str | Device | None = None,
    use: str = "chat",
    *,
    context: int | None = None,
    measured: Sequence[object] = (),
    card: Card | None = None,
) -> Advice:
    """What to run a model in, for a use, on a device: a recommendation with its reasons and the figures behind each.

        wb.advise(model, "RTX 3060", use="code")
        wb.advise(model, use="chat", measured=[wb.compare(model, "Q4_K_M", text)], card=card)

    Args:
        model: an opened checkpoint, what `wb.load` takes, or a config.json as a dict. Of a hub model only headers are
            read, unless something was measured of it.
        device: as in `wb.memory`; None: this machine's.
        use: "chat", "math", "code", "serving" or "long context".
        context: tokens of prompt and reply together; None: what the use asks for, at most what the model was made for.
        measured: results of `wb.compare` and `wb.benchmark` with this model as reference: advice that they contradict
            is not given. A benchmark does not say what its reference's weights were: that is yours to know.
        card: the model's sensitivity card, which predicts what each format costs.

    Raises:
        WorkbenchError: an unknown use or device, results of another model, a context longer than trained.
    """
    if use not in USES:
        raise WorkbenchError("use", f"it is {use!r:.40}", allowed=", ".join(USES))
    if isinstance(model, str | Path) and (measured or card is not None):
        model = load(model)
    opened = drain(open_steps(model), label="reading headers").checkpoint
    found = Evidence.of(opened, measured, card)
    return _Question(opened, fit.device(device), use, _context(context, opened, use), found).answer()


def _context(asked: int | None, model: Checkpoint, use: str) -> int:
    """Tokens of prompt and reply together."""
    longest = architecture_of(model).context or MOST
    if asked is None:
        return min(USES[use].context, longest)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= longest:
        raise WorkbenchError(
            "context", f"it is {asked!r:.40}", allowed=f"1 to {longest:,}, what the model was made for"
        )
    return asked


@dataclass(frozen=True)
class _Question:
    """What was asked, and how it is answered."""

    model: Checkpoint
    device: Device
    use: str
    context: int
    evidence: Evidence

    @property
    def engine(self) -> str:
        """The use's engine; vLLM where there is an NVIDIA GPU of compute capability 8.0 or more, as for bfloat16."""
        able = self.device.kind == "cuda" and self.device.dtype == "bf16"
        return USES[self.use].engine if able else "llama.cpp"

    @property
    def wanted(self) -> Use:
        """The use; where vLLM does not run, one conversation at a time in llama.cpp."""
        use = USES[self.use]
        return use if use.engine == self.engine else replace(USES["chat"], context=use.context)

    @property
    def formats(self) -> tuple[str, ...]:
        """What is tried, the first choice first, by what was measured where something was."""
        formats = self.wanted.formats
        if formats[0] == "Q4_K_M" and self.four_bits_fail:
            enough = next((place for place, name in enumerate(BETTER) if self._better(name)), len(BETTER) - 1)
            return (*reversed(BETTER[: enough + 1]), *formats)
        if formats[0] == "Q8_0" and self.four_bits_do:
            return ("Q4_K_M", *(name for name in formats if name not in ("Q8_0", "Q4_K_M")))
        return formats

    @property
    def four_bits_fail(self) -> bool:
        """Whether this model loses much in Q4_K_M, by what was measured or predicted, or does worse at a task."""
        known = self.evidence.kl("Q4_K_M")
        much = known is not None and known.basis != "published" and known.kl > FINE
        return much or any(verdict == "worse" for _, verdict in self.evidence.verdicts("Q4_K_M"))

    @property
    def four_bits_do(self) -> bool:
        """Whether the model in Q4_K_M was shown to be as good at every task that it was given."""
        verdicts = [verdict for _, verdict in self.evidence.verdicts("Q4_K_M")]
        return bool(verdicts) and all(verdict.startswith(("as good", "better")) for verdict in verdicts)

    def _better(self, name: str) -> bool:
        """Whether a format is good enough; what was published is scaled by what Q4_K_M costs here."""
        known, four = self.evidence.kl(name), self.evidence.kl("Q4_K_M")
        if any(verdict == "worse" for _, verdict in self.evidence.verdicts(name)) or known is None:
            return False
        scale = four.kl / PUBLISHED["Q4_K_M"] if four and known.basis == "published" else 1.0
        return known.kl * scale <= FINE

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Types of keys and values, the largest first, without those that were seen to cost this model much."""
        if self.engine != "llama.cpp":
            return (FLOAT,)
        known = {kv: self.evidence.cache(kv) for kv in (EIGHT, MIXED)}
        return (FLOAT, *(kv for kv, found in known.items() if found is None or found.kl <= FELT))

    def answer(self) -> Advice:
        first = self._memory(self.formats[0], FLOAT)
        chosen = next((each for each in self._tried() if each.fits(self.device)), None)
        fits, longest = chosen is not None, None
        if chosen is None:  # nothing fits at that length: the first that does at another
            for each in self._smallest():
                chosen, longest = each, each.longest_context(self.device)
                if longest >= SHORTEST:
                    chosen, fits = each.at(context=min(longest, first.context)), True
                    break
            longest = None if longest is not None and longest >= first.context else longest
        assert chosen is not None
        reasons = tuple(self._reasons(first, chosen, fits, longest))
        kv = (chosen.kv[0], chosen.kv[1])
        return Advice(
            chosen.model,
            self.use,
            chosen.format,
            self.engine,
            kv,
            chosen.context,
            chosen,
            fits,
            reasons,
            self._code(chosen),
        )

    @cached_property
    def _base(self) -> Memory:
        """What the others are asked of: the model's headers are looked at once."""
        return fit.memory(self.model, None, self.context, self.wanted.batch, engine=self.engine, device=self.device)

    def _memory(self, format: str, kv: Cache) -> Memory:
        return self._base.at(format=format, kv=kv if self.engine == "llama.cpp" else None)

    def _tried(self) -> Iterator[Memory]:
        """The first format with a full cache and with a smaller one, then the next."""
        for format in self.formats:
            for kv in self.caches:
                try:
                    yield self._memory(format, kv)
                except WorkbenchError:  # heads that are not whole blocks of a cache's type
                    continue

    def _smallest(self) -> Iterator[Memory]:
        """Each format with the smallest cache, and last what is better than nothing."""
        for format in (*self.formats, *([LAST] if self.engine == "llama.cpp" else [])):
            for kv in reversed(self.caches):
                try:
                    yield self._memory(format, kv)
                except WorkbenchError:  # heads that are not whole blocks of a cache's type
                    continue
                break

    # --- reasons ------------------------------------------------------------------------------

    def _reasons(self, first: Memory, chosen: Memory, fits: bool, longest: int | None) -> Iterator[Reason]:
        yield from self._of_format(chosen.format)
        yield self._of_memory(first, chosen, fits, longest)
        yield from self._of_cache(chosen)
        yield from self._of_engine()
        if self.evidence.card is not None:
            yield from self._of_plan(chosen)
        yield from self._of_tasks(chosen.format)

    def _of_format(self, format: str) -> Iterator[Reason]:
        known, eight = self.evidence.kl(format), self.wanted.formats[0] == "Q8_0"
        compared = f'wb.compare(model, "{format}", text)'
        if eight and self.four_bits_do:
            yield Reason(
                f"For {self.use} the advice is 8 bits, but here Q4_K_M did as well as the original on your task.",
                "measured",
            )
        elif eight:
            why = f"For {self.use} one wrong token spoils the answer, so take 8 bits, or the most that fit: {format}"
            tasks = f'wb.benchmark([model, "{format}", "Q4_K_M"], wb.task("mine.jsonl"))'
            tested = any(True for _ in self.evidence.verdicts("Q4_K_M"))
            yield _with(why, known, "" if tested else tasks)
        elif format == "Q4_K_M":
            yield _with("Start with Q4_K_M: the fewest bits at a loss that few notice", known, compared, FINE)
        else:
            yield _with(f"{format} is the first choice for {self.use} that holds here", known, compared)
        if self.four_bits_fail and format != "Q4_K_M" and self.wanted.formats[0] == "Q4_K_M":
            yield from self._against_four_bits()
        yield from self._of_shapes(format)

    def _against_four_bits(self) -> Iterator[Reason]:
        other = self.evidence.kl("Q4_K_M")
        if other and other.basis != "published" and other.kl > FINE:
            yield Reason(
                f"Q4_K_M, the usual start, costs this model {other.said} nats per token, more than {FINE}.", other.basis
            )
        for task, verdict in self.evidence.verdicts("Q4_K_M"):
            if verdict == "worse":
                yield Reason(f"Q4_K_M, the usual start, does worse than the original at {task}.", "measured")

    def _of_shapes(self, format: str) -> Iterator[Reason]:
        """Matrices whose rows are no whole blocks of a format, which makes the file larger than its name says."""
        plan = plan_for(self.model, format)
        others = fallbacks(plan, format)
        if others and format in RECIPES:
            yield Reason(
                f"{len(others)} of {len(plan.formats)} matrices have rows that are no whole blocks of {format}'s types "
                f"and take others: {plan.bits:.2f} bits per weight in all.",
                "counted",
            )

    def _of_engine(self) -> Iterator[Reason]:
        if self.engine == "vllm":
            yield Reason(
                "vLLM answers many at once. GPUs from Ada on multiply FP8; on Ampere it saves memory alone.",
                "a rule of thumb",
                'wb.run("vllm", model=...)("...").tokens_per_second, once it runs',
            )
        elif USES[self.use].engine == "vllm":
            old = self.device.kind == "cuda"
            what = "is from before Ampere, which its FP8 is not made for" if old else "is none"
            yield Reason(
                f"vLLM serves from an NVIDIA GPU, and {self.device.name} {what}; llama.cpp's server answers one at a "
                "time.",
                "a rule of thumb" if old else "counted",
            )

    def _of_memory(self, first: Memory, chosen: Memory, fits: bool, longest: int | None) -> Reason:
        needed, room = figures.size(chosen.needed(self.device)), figures.size(self.device.usable)
        if not fits:
            return Reason(f"Nothing fits {self.device.name}: even {chosen.format} needs {needed} of {room}.", "counted")
        if longest is not None:
            asked = first.context
            return Reason(
                f"{asked:,} tokens fit in no format; {chosen.context:,} do, in {needed} of {room}.", "counted"
            )
        if chosen.format != first.format:
            missing = figures.size(first.needed(self.device))
            return Reason(f"{first.format} would need {missing} of {room}; {chosen.format} needs {needed}.", "counted")
        return Reason(f"It needs {needed} of {room} at {chosen.context:,} tokens.", "counted")

    def _of_cache(self, chosen: Memory) -> Iterator[Reason]:
        kv = (chosen.kv[0], chosen.kv[1])
        if self.engine != "llama.cpp":
            return
        whole = chosen.at(kv=FLOAT)
        check = f"wb.compare(model, wb.run(model, kv={kv!r}), text, context=2048)"
        for other in (EIGHT, MIXED):
            found = self.evidence.cache(other)
            if found is not None and found.kl > FELT:
                yield Reason(
                    f"Keys and values in {' and '.join(dict.fromkeys(other))} cost this model {found.said} nats per "
                    f"token, more than {FELT}, and are not advised.",
                    "measured",
                )
        if kv == FLOAT:
            if self.use == "long context":
                yield Reason(
                    f"Keys and values in 16 bits fit: {figures.size(chosen.cache)}; 8 bits would halve it.", "counted"
                )
            return
        known, saved = self.evidence.cache(kv), figures.size(whole.cache - chosen.cache)
        said = f"Keys and values in {' and '.join(dict.fromkeys(kv))} save {saved}"
        if known is None:
            cost = "q8_0 is hard to tell from 16 bits; q4_0 for values costs little, for keys about ten times as much"
            yield Reason(f"{said}; {cost} (SmolLM2-135M, docs/quality.md).", "published", check)
        else:
            yield Reason(f"{said}, and cost {known.said} nats per token on this model.", "measured")

    def _of_plan(self, chosen: Memory) -> Iterator[Reason]:
        """What a mix of the same bytes would cost, by the card."""
        from workbench.allocation import plan

        card = self.evidence.card
        if card is None or self.engine != "llama.cpp":
            return
        rule = plan(card, plan_for(self.model, chosen.format))
        ours = plan(card, list(MIX), budget=rule.nbytes)
        if ours.predicted.kl < rule.predicted.kl:
            yield Reason(
                f"A mix of the same bytes is predicted to cost {ours.predicted.kl:.3g} nats per token instead of "
                f"{rule.predicted.kl:.3g}: wb.plan(card, {list(MIX)}, budget={rule.nbytes}).",
                "predicted",
            )

    def _of_tasks(self, format: str) -> Iterator[Reason]:
        verdicts = list(self.evidence.verdicts(format))
        for task, verdict in verdicts:
            yield Reason(f"On your task {task}, {format} against the original: {verdict}.", "measured")
        if not verdicts:
            yield Reason(
                "Perplexity and KL say how much a model changed, not whether it still does your work: try it on that.",
                "a rule of thumb",
                f'wb.benchmark([model, "{format}"], wb.task("mine.jsonl"))',
            )

    def _code(self, chosen: Memory) -> str:
        kv = (chosen.kv[0], chosen.kv[1])
        if self.engine == "vllm":
            return "\n".join(
                [
                    f'wb.quantize(model, "{chosen.format}", to="model-{chosen.format}")',
                    f'print(wb.serve_command("model-{chosen.format}", "vllm", context={chosen.context}))',
                ]
            )
        kept = f", kv={kv!r}" if kv != FLOAT else ""
        path, asked = f"model-{chosen.format}.gguf", f"context={chosen.context}{kept}"
        serving = self.use == "serving"
        runs = f'wb.serve("{path}", {asked})' if serving else f'wb.run("{path}", engine="llama.cpp", {asked})'
        return f'wb.export(model, "{path}", "{chosen.format}")\n{runs}'


MIX = ("Q3_K", "Q4_K", "IQ4_NL", "Q5_K", "Q5_0", "Q6_K", "Q8_0")


def _with(said: str, known: Known | None, check: str, limit: float | None = None) -> Reason:
    """A tip with the best figure there is for it, and what would measure it where that was not done."""
    if known is None:
        return Reason(f"{said}.", "a rule of thumb", check)
    if known.basis == "published":
        return Reason(f"{said}: KL {known.said}.", "published", check)
    against = f", {'below' if known.kl <= limit else 'above'} {limit}" if limit is not None else ""
    unmeasured = check if known.basis == "predicted" else ""
    return Reason(f"{said}: KL {known.said} nats per token on this model{against}.", known.basis, unmeasured)
