"""A connection to an OpenAI-compatible server that is trusted with a question and with nothing else.

Over the official `openai` client, with what that leaves open closed: no redirect is followed, every
answer has a largest size and a longest silence, nothing is tried twice, and of the environment only
the key that the caller named is sent.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from workbench.exceptions import WorkbenchError, need

CONNECTING = 5.0  # seconds
SILENCE = 120.0  # seconds: a long prompt on a slow machine takes its time
LISTING = 15.0  # seconds of silence before a list, or a sign of life, is given up
LARGEST_LIST = 4 << 20  # bytes
NO_KEY = "none"  # what programs send to servers that ask for no key
LOCAL = ("127.0.0.1", "localhost", "::1")


class TooLarge(Exception):
    """A server sends more than was allowed."""


@dataclass(frozen=True, repr=False)
class Connection:
    """Where a server is and how to speak to it; shows its address and never its key.

    Attributes:
        url: of the OpenAI-compatible interface, ending in /v1 as a rule.
        name: what messages call it.
        silence: seconds without a byte after which an answer is given up.
        start: what to do when nothing answers there.
    """

    url: str
    name: str
    silence: float
    key: str
    start: str

    def __repr__(self) -> str:
        return f"<{self.name} at {self.url}>"

    def http(self, largest: int, silence: float | None = None) -> Any:
        """An httpx client with the bounds of this connection: `largest` bytes for each answer."""
        openai = need("openai")
        return openai.DefaultHttpxClient(
            follow_redirects=False,
            timeout=openai.Timeout(silence or self.silence, connect=CONNECTING),
            trust_env=urlsplit(self.url).hostname not in LOCAL,  # no proxy on the way to this machine
            event_hooks={"response": [_bounded(largest)]},
        )

    def client(self, largest: int, silence: float | None = None) -> Any:
        """An `openai.OpenAI`; to be closed."""
        client = need("openai").OpenAI(
            api_key=self.key or NO_KEY, base_url=self.url, max_retries=0, http_client=self.http(largest, silence)
        )
        client.organization = client.project = None  # it takes both from the environment
        return client

    def models(self) -> list[str]:
        """The names of the models that the server offers."""
        with self.client(LARGEST_LIST, LISTING) as client:
            try:
                listed = client.models.list().data
            except Exception as error:
                raise self.refusal(error) from None
        names = [each.id for each in listed or () if isinstance(getattr(each, "id", None), str)]
        if not names and not isinstance(listed, list):
            raise self.rubbish("no list of models")
        return names

    def refusal(self, error: Exception) -> Exception:
        """An error of the client as one for the user, without the key; an error of another kind as it is."""
        openai = need("openai")
        chain, kinds = list(_causes(error)), {kind.__name__ for kind in type(error).__mro__}
        if any(isinstance(each, TooLarge) for each in chain):
            return WorkbenchError(
                self.url, f"{self.name} does not stop sending", do="see what runs there; it answers more than was asked"
            )
        if kinds & {"APITimeoutError", "TimeoutException"}:  # of the client, or of httpx or its successor
            return WorkbenchError(
                self.url,
                f"{self.name} was silent for too long",
                do=f"see whether it is busy, or wait longer than {self.silence:g} seconds: silence=...",
            )
        if kinds & {"APIConnectionError", "TransportError"}:
            why = self._clean(str(chain[-1]) or type(chain[-1]).__name__)
            return WorkbenchError(self.url, f"{self.name} does not answer ({why})", do=self.start)
        if isinstance(error, openai.APIStatusError):
            return self.answered(error.status_code, _message(error), error.response.headers)
        if isinstance(error, openai.OpenAIError):
            return WorkbenchError(self.url, f"{self.name} refused: {self._clean(str(error))}")
        if isinstance(error, ValueError | TypeError | AttributeError | LookupError):
            return self.rubbish(type(error).__name__)
        return error

    def rubbish(self, what: str) -> WorkbenchError:
        """The error for an answer that is none of OpenAI's protocol."""
        return WorkbenchError(
            self.url,
            f"{self.name} answers what is not the OpenAI protocol ({what})",
            do="check the url; it ends in /v1 as a rule",
        )

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of the client as those for the user; see `refusal`."""
        try:
            yield
        except WorkbenchError:
            raise
        except Exception as error:
            raise self.refusal(error) from None

    def answered(self, code: int, said: str, headers: Mapping[str, str]) -> WorkbenchError:
        """The error for an HTTP status that is no success."""
        said = self._clean(said)
        if 300 <= code < 400:
            there = self._clean(headers.get("location", "nowhere"))
            return WorkbenchError(
                self.url, f"{self.name} sends elsewhere, to {there}", do="give that address yourself if you trust it"
            )
        if code in (401, 403):
            do = 'name the environment variable that holds the key, key="MY_KEY", or key="ask" to be asked'
            return WorkbenchError(self.url, f"{self.name} wants another key ({code}: {said})", do=do)
        if code == 429:
            wait = headers.get("retry-after", "")
            do = f"wait {wait} seconds" if re.fullmatch(r"\d{1,6}", wait) else "wait, and ask again"
            return WorkbenchError(self.url, f"{self.name} has too many requests (429: {said})", do=do)
        return WorkbenchError(self.url, f"{self.name} answers {code}: {said}")

    def _clean(self, text: str) -> str:
        """What a server said, in one line of 300 characters, without the key."""
        text = " ".join(text.split())[:2000]
        return (text.replace(self.key, "[key]") if self.key else text)[:300]


def connect(
    url: str, name: str, *, key: str | None = None, silence: float | None = None, start: str = ""
) -> Connection:
    """A connection to `url`; nothing is sent yet.

    Args:
        key: the name of an environment variable that holds the key, "ask" to be asked for it, or
            None for servers that want none. The key itself is not taken here, since code is saved and shown.
        silence: seconds without a byte after which an answer is given up; None: `SILENCE`.
        start: the command that starts such a server.

    Raises:
        WorkbenchError: an address that is none, or a variable that is not set.
    """
    parts = urlsplit(url)
    try:
        hostname, _ = parts.hostname, parts.port
    except ValueError:
        hostname = None
    if parts.scheme not in ("http", "https") or not hostname or parts.username is not None or parts.query:
        shown = f"{parts.scheme}://..." if parts.username is not None else url[:200]
        raise WorkbenchError(
            "url", f"it is {shown!r}", allowed="http://host:port/v1 or https://..., without a key in it"
        )
    silence = SILENCE if silence is None else silence
    if isinstance(silence, bool) or not isinstance(silence, int | float) or not 0 < silence <= 86_400:
        raise WorkbenchError("silence", f"it is {silence!r:.40}", allowed="seconds, above 0")
    do = f"start it with `{start}`, or check the url" if start else "start it, or check the url"
    return Connection(url.rstrip("/"), name, float(silence), _key(key), do)


def _key(key: str | None) -> str:
    if key is None:
        return ""
    if key == "ask":
        return getpass.getpass("key: ").strip()
    found = os.environ.get(key) if isinstance(key, str) and key.isidentifier() else None
    if not found:  # what was given may be the key itself: it is not repeated
        raise WorkbenchError(
            "key",
            "it names no environment variable that is set",
            allowed='the name of one, such as key="OPENAI_API_KEY", or key="ask"',
        )
    return found


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _message(error: Any) -> str:
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    said = inner.get("message") if isinstance(inner, dict) else inner
    return str(said or error.message)


def _bounded(largest: int) -> Callable[[Any], None]:
    """A hook of httpx that cuts every answer at `largest` bytes, before anything of it is kept."""

    def pieces(stream: Any) -> Iterator[bytes]:
        left = largest
        for piece in stream:
            left -= len(piece)
            if left < 0:
                raise TooLarge
            yield piece

    def hook(response: Any) -> None:
        stream = response.stream  # httpx, or its successor, wants one of its own kind in its place
        kind = next(each for each in type(stream).__mro__ if each.__name__ == "SyncByteStream")
        methods = {"__iter__": lambda _: pieces(stream), "close": lambda _: stream.close()}
        response.stream = type("Bounded", (kind,), methods)()

    return hook
