"""Servers of OpenAI's protocol that are known: where they listen, how they start, what they have beside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A kind of server.

    Attributes:
        title: its name.
        url: where it listens unless told otherwise.
        start: the command that starts it.
        top_k: whether it has that setting, which is not OpenAI's.
        listed: how many of the likeliest tokens it lists, unless it is set up otherwise.
        numbers: the setting that has it name these tokens by their numbers; "": it has none, or does so anyway.
    """

    title: str
    url: str = ""
    start: str = ""
    top_k: bool = False
    listed: int = 5  # OpenAI's own limit
    numbers: str = ""


PRESETS = {
    "ollama": Preset("Ollama", "http://127.0.0.1:11434/v1", "ollama serve"),
    "vllm": Preset(
        "vLLM",
        "http://127.0.0.1:8000/v1",
        "vllm serve MODEL",
        top_k=True,
        listed=20,
        numbers="return_tokens_as_token_ids",
    ),
    "tgi": Preset("TGI", "http://127.0.0.1:3000/v1", "text-generation-launcher --model-id MODEL"),
    "llama-server": Preset(
        "llama-server", "http://127.0.0.1:8080/v1", "llama-server -m FILE.gguf", top_k=True, listed=100
    ),
    "openai": Preset("the server"),
}


def is_server(source: object) -> bool:
    """Whether `wb.run` is given a server: the name of a preset that has a port, or a url."""
    if not isinstance(source, str):
        return False
    preset = PRESETS.get(source)
    return source.startswith(("http://", "https://")) or bool(preset and preset.url)
