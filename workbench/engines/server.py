"""The engine of a server that speaks OpenAI's protocol: Ollama, vLLM, TGI, llama-server, or any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.engines import listing
from workbench.engines.answering import Answering, Draft, feed
from workbench.engines.base import Can, Settings
from workbench.engines.connection import Connection, connect
from workbench.engines.listing import Listing
from workbench.engines.presets import PRESETS, Preset
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps, in_thread

if TYPE_CHECKING:
    import threading

LONGEST_PIECE = 4096  # bytes of a server's report of one token; more than any sends
SPARE = 256 << 10  # bytes of reports beside
LARGEST_LISTING = 1 << 20  # bytes of an answer with the likeliest tokens


def open_steps(
    source: str,
    preset: str | None = None,
    *,
    model: str | None = None,
    key: str | None = None,
    silence: float | None = None,
) -> Steps[ServerEngine]:
    """An engine for the server `source`; the arguments are those of `workbench.run`."""
    connection, names = yield from _asked_steps(source, preset, key, silence)
    kind = PRESETS[_kind(source, preset)]
    return ServerEngine(connection, kind, _chosen(connection, names, model))


def models_steps(source: str, preset: str | None = None, *, key: str | None = None) -> Steps[list[str]]:
    """The names of the models that the server `source` offers; the arguments are those of `workbench.run`."""
    return (yield from _asked_steps(source, preset, key, None))[1]


def _asked_steps(
    source: str, preset: str | None, key: str | None, silence: float | None
) -> Steps[tuple[Connection, list[str]]]:
    need("openai")
    kind = PRESETS[_kind(source, preset)]
    url = PRESETS[source].url if source in PRESETS else source
    connection = connect(url, kind.title, key=key, silence=silence, start=kind.start)
    yield Progress(0, 0, "", f"asking {connection.url} for its models")
    return connection, (yield from in_thread(lambda _: connection.models()))


def _kind(source: str, preset: str | None) -> str:
    return preset or (source if source in PRESETS else "openai")


def _chosen(connection: Connection, names: list[str], model: str | None) -> str:
    """The model's name as the server has it."""
    if model is None and len(names) == 1:
        return names[0]
    if model is not None and (model in names or f"{model}:latest" in names):  # Ollama's default tag
        return model
    found = "no model was named" if model is None else f"it has no model {model!r:.100}"
    shown = ", ".join(name[:100] for name in names[:20]) or "none: it has no models yet"
    raise WorkbenchError(connection.url, f"{connection.name}: {found}", allowed=f"model= one of {shown}")


class ServerEngine(Answering):
    """A model in another program that answers over HTTP; see `engines.base.Engine`. Made by `workbench.run`.

    Its memory is the server's, so both figures are 0.
    """

    can = Can(seed=True)

    def __init__(self, connection: Connection, preset: Preset, model: str) -> None:
        what = f"{preset.title} at {connection.url}: its speed includes the network and whatever else it is doing"
        super().__init__(model, what, 0, 0)
        self.connection, self.preset = connection, preset
        self._threads: list[threading.Thread] = []

    def another(self) -> ServerEngine:
        """A second engine for the same model, to be asked at the same time."""
        return ServerEngine(self.connection, self.preset, self.name)

    def _free(self) -> None:
        pass  # a connection lives for one reply

    def __repr__(self) -> str:
        return f"{self.name}{' (closed)' if self.closed else ''}: {self.what}"

    def _write(
        self, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
    ) -> Iterator[str]:
        request = self._request(messages, settings)
        began, reports, aside, ended = time.perf_counter(), 0, 0, False
        for report, now in feed(self._asking(request, settings.max_tokens), stop, self._threads):
            reports += 1
            draft.prompt_tokens = report.prompt_tokens or draft.prompt_tokens
            draft.count = report.tokens or draft.count
            draft.prompt_per_second = report.prompt_per_second or draft.prompt_per_second
            aside += len(report.thought)
            if report.text:
                draft.tokens.append(report.text)
                draft.seconds.append(now - began)
                began = now
                yield report.text
            if report.finish:
                ended, draft.finish = True, "length" if report.finish == "length" else "stop"
        if not reports:
            raise self.connection.rubbish("nothing of a reply")
        draft.note = _note(draft, aside, ended)

    def _request(self, messages: list[dict[str, str]], settings: Settings) -> dict[str, Any]:
        if settings.top_k and not self.preset.top_k:
            raise WorkbenchError(
                "top_k",
                f"{self.preset.title} has no such setting over this protocol",
                do='leave it out; of a vLLM or llama-server behind a url, say so: engine="vllm"',
            )
        return {
            "model": self.name,
            "messages": messages,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
            **({"stop": list(settings.stop)} if settings.stop else {}),
            **({"extra_body": {"top_k": settings.top_k}} if settings.top_k else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def likeliest(self, text: str, count: int | None = None) -> Listing:
        """The likeliest tokens after `text`, which is taken as it is, without a chat template; waits for the server.

        Args:
            count: how many are asked for; None: as many as such a server lists, unless it is set up otherwise.

        Raises:
            WorkbenchError: a server that refuses, is down or silent, or answers what is no list.
        """
        if self.closed:
            raise WorkbenchError(self.name, "this engine was closed", do="open it again with workbench.run(...)")
        request = {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0}
        beside = {"extra_body": {self.preset.numbers: True}} if self.preset.numbers else {}
        with self.connection.told(), self.connection.client(LARGEST_LISTING) as client:
            asked = client.completions.with_raw_response
            return listing.read(
                asked.create(**request, **beside, logprobs=count or self.preset.listed).http_response.text
            )

    def _asking(self, request: dict[str, Any], tokens: int) -> Callable[[Callable[[Report], bool]], None]:
        """The work that hands over the server's reports of a reply."""

        def work(take: Callable[[Report], bool]) -> None:
            with self.connection.client(SPARE + tokens * LONGEST_PIECE) as client:
                try:
                    with client.chat.completions.create(**request) as stream:
                        for chunk in stream:
                            if take(_report(chunk)):
                                return
                except Exception as error:
                    raise self.connection.refusal(error) from None

        return work


@dataclass(frozen=True)
class Report:
    """What one event of a server's stream says; 0 and "" for what it does not."""

    text: str
    thought: str
    finish: str
    prompt_tokens: int
    tokens: int
    prompt_per_second: float


def _report(chunk: Any) -> Report:
    """Read an event, of which the client has checked nothing; raises AttributeError or TypeError for rubbish."""
    choice = next(iter(chunk.choices or ()), None)
    delta, usage = getattr(choice, "delta", None), getattr(chunk, "usage", None)
    timings = (chunk.model_extra or {}).get("timings")  # llama-server's own
    speed = timings.get("prompt_per_second") if isinstance(timings, dict) else 0
    return Report(
        text=_text(getattr(delta, "content", None)),
        thought=_text(getattr(delta, "reasoning_content", None)),
        finish=_text(getattr(choice, "finish_reason", None)),
        prompt_tokens=_count(getattr(usage, "prompt_tokens", None)),
        tokens=_count(getattr(usage, "completion_tokens", None)),
        prompt_per_second=float(speed) if isinstance(speed, int | float) else 0.0,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _note(draft: Draft, aside: int, ended: bool) -> str:
    notes = []
    if aside:
        notes.append(f"the server kept {aside:,} characters apart, which the model thought before it answered")
    if not ended:
        notes.append("the server broke off")
    if draft.count and draft.count > len(draft.tokens) + 1:
        notes.append(f"the {draft.count} tokens came in {len(draft.tokens)} pieces")
    return "; ".join(notes)
