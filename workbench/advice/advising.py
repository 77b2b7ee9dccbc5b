"""`wb.advise`: which format, engine and cache to take for a use, on a device.

It starts from what practitioners advise, and holds each piece of advice against what was measured on this very model:
start with Q4_K_M; eight bits for mathematics and code; keys and values in fewer bits for a long context; and a
benchmark on your own task before you believe any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import figures, fit
from workbench.advice.answer import Advice, Reason
from workbench.advice.evidence import FELT, FINE, Evidence, Known
from workbench.checkpoint import Checkpoint, load
from workbench.exceptions import WorkbenchError
from workbench.fit import Device, Memory
from workbench.measure.card import Card

Cache = tuple[str, str]
FLOAT: Cache = ("f16", "f16")
EIGHT: Cache = ("q8_0", "q8_0")
MIXED: Cache = ("q8_0", "q4_0")
DOWN = ("Q5_K_M", "Q4_K_M", "Q3_K_M")  # what is tried where the first choice does not fit
LAST = "Q2_K"  # a broken model, taken only where nothing else fits at any length
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
        model: an opened checkpoint, what `wb.load` takes, or a config.json as a dict.
        device: as in `wb.memory`; None: this machine's.
        use: "chat", "math", "code", "serving" or "long context".
        context: tokens of prompt and reply together; None: what the use asks for, at most what the model was made for.
        measured: results of `wb.compare` and `wb.benchmark` with this model as reference: advice that they contradict
            is not given.
        card: the model's sensitivity card, which predicts what each format costs.

    Raises:
        WorkbenchError: an unknown use or device, results of another model, a context longer than trained.
    """
    if use not in USES:
        raise WorkbenchError("use", f"it is {use!r:.40}", allowed=", ".join(USES))
    opened = load(str(model)) if isinstance(model, str | Path) else model
    found = Evidence.of(opened, measured, card)
    return _Question(opened, fit.device(device), use, context, found).answer()


@dataclass(frozen=True)
class _Question:
    """What was asked, and how it is answered."""

    model: Checkpoint | dict
    device: Device
    use: str
    asked: int | None
    evidence: Evidence

    @property
    def engine(self) -> str:
        """The use's engine; vLLM needs an NVIDIA GPU."""
        return "llama.cpp" if self.device.kind != "cuda" else USES[self.use].engine

    @property
    def formats(self) -> tuple[str, ...]:
        """What is tried, the first choice first, by what was measured where something was."""
        wanted = USES[self.use]
        if wanted.engine == "vllm" and self.engine != "vllm":
            wanted = USES["chat"]
        formats = wanted.formats
        if formats[0] == "Q4_K_M" and (known := self.evidence.kl("Q4_K_M")) and known.basis != "published":
            better = [name for name in ("Q5_K_M", "Q6_K", "Q8_0") if known.kl > FINE and self._fine(name)]
            formats = (*better[:1], *formats)
        if formats[0] == "Q8_0" and any(
            verdict.startswith("as good") for _, verdict in self.evidence.verdicts("Q4_K_M")
        ):
            formats = ("Q4_K_M", *(name for name in formats if name not in ("Q8_0", "Q4_K_M")))
        return formats

    def _fine(self, name: str) -> bool:
        known = self.evidence.kl(name)
        return known is not None and known.kl <= FINE

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

    def _memory(self, format: str, kv: Cache) -> Memory:
        use = USES[self.use]
        kept = kv if self.engine == "llama.cpp" else None
        made = fit.memory(self.model, format, 1, use.batch, kept, self.engine, self.device)
        longest = made.question.subject.architecture.context
        return made.at(context=self.asked or min(use.context, longest or use.context))

    def _tried(self) -> Iterator[Memory]:
        """The first format with a full cache and with a smaller one, then the next."""
        caches = (FLOAT, EIGHT, MIXED) if self.engine == "llama.cpp" else (FLOAT,)
        for format in self.formats:
            for kv in caches:
                try:
                    yield self._memory(format, kv)
                except WorkbenchError:  # heads that are not whole blocks of a cache's type
                    continue

    def _smallest(self) -> Iterator[Memory]:
        """Each format with the smallest cache, and last what is better than nothing."""
        if self.engine != "llama.cpp":
            yield from (self._memory(format, FLOAT) for format in self.formats)
            return
        for format in (*self.formats, LAST):
            try:
                yield self._memory(format, MIXED)
            except WorkbenchError:  # heads that are not whole blocks of a cache's type
                yield self._memory(format, FLOAT)

    # --- reasons ------------------------------------------------------------------------------

    def _reasons(self, first: Memory, chosen: Memory, fits: bool, longest: int | None) -> Iterator[Reason]:
        yield from self._of_format(chosen.format)
        yield self._of_memory(first, chosen, fits, longest)
        yield from self._of_cache(chosen)
        if self.engine == "vllm":
            yield Reason(
                "vLLM answers many at once, and multiplies FP8 and INT4 directly; llama.cpp is for one at a time.",
                "a rule of thumb",
            )
        elif USES[self.use].engine == "vllm":
            yield Reason(f"vLLM serves from an NVIDIA GPU, and {self.device.name} is none.", "counted")
        if self.evidence.card is not None:
            yield from self._of_plan(chosen)
        yield from self._of_tasks(chosen.format)

    def _of_format(self, format: str) -> Iterator[Reason]:
        known = self.evidence.kl(format)
        if format == "Q4_K_M" and "Q8_0" in USES[self.use].formats and self.formats[0] == "Q4_K_M":
            yield Reason(
                f"For {self.use} the advice is 8 bits, but here Q4_K_M did as well as the original on your task.",
                "measured",
            )
        elif format == "Q4_K_M":
            yield _with("Start with Q4_K_M: about a third of 16 bits, at a loss that few notice", format, known)
        elif format in ("Q8_0", "Q6_K") and self.use in ("math", "code"):
            yield _with(
                f"For {self.use} one wrong token spoils the answer, so take 8 bits, or the most that fit: {format}",
                format,
                known,
            )
        else:
            yield _with(f"{format} is what suits {self.use} here", format, known)
        other = self.evidence.kl("Q4_K_M")
        if other and other.basis != "published" and other.kl > FINE and format != "Q4_K_M":
            yield Reason(
                f"Q4_K_M, the usual start, costs this model {other.said} nats per token, more than {FINE}.",
                "measured" if other.basis == "measured" else "predicted",
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
        check = 'wb.compare(wb.run(path, engine="llama.cpp"), wb.run(path, engine="llama.cpp", kv="q8_0"), text)'
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
            felt = " That is much: take fewer bits for the weights first." if known.kl > FELT else ""
            yield Reason(f"{said}, and cost {known.said} nats per token.{felt}", "measured")

    def _of_plan(self, chosen: Memory) -> Iterator[Reason]:
        """What a mix of the same bytes would cost, by the card."""
        from workbench.allocation import plan
        from workbench.planning import plan_for

        card, model = self.evidence.card, self.evidence.model
        if card is None or model is None or self.engine != "llama.cpp":
            return
        rule = plan(card, plan_for(model, chosen.format))
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
        return "\n".join(
            [
                f'wb.export(model, "model-{chosen.format}.gguf", "{chosen.format}")',
                f'wb.run("model-{chosen.format}.gguf", engine="llama.cpp", context={chosen.context}{kept})',
            ]
        )


MIX = ("Q3_K", "Q4_K", "IQ4_NL", "Q5_K", "Q5_0", "Q6_K", "Q8_0")


def _with(said: str, format: str, known: Known | None) -> Reason:
    """A tip with the best figure there is for it."""
    if known is None:
        return Reason(f"{said}.", "a rule of thumb")
    check = f'wb.compare(model, "{format}", text)' if known.basis == "published" else ""
    figure = f"KL {known.said}" + ("" if known.basis == "published" else " nats per token on this model")
    basis = {"measured": "measured", "predicted": "predicted"}.get(known.basis, "published")
    return Reason(f"{said}: {figure}.", basis, check)  # type: ignore[arg-type]
