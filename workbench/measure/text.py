"""A text as a model reads it: tokens, cut into chunks as llama.cpp cuts them.

Every measure on a text takes its tokens from here, so that figures of one text are about
the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError

Text: TypeAlias = "str | Path | Sequence[str]"

# The project's own text, for whoever has none at hand: in a clone, and in the installed package.
SAMPLE = next(
    (path for up in (2, 1) if (path := Path(__file__).parents[up] / "data" / "calibration.txt").exists()), Path()
)
LONGEST = 1 << 28  # bytes of a file: WikiText-103 has twice as many, and nobody measures on all of it

# Pre-tokenizers of GGUFs after which llama.cpp adds a beginning where the file does not say (its llama-vocab.cpp).
_BEGIN_BY_DEFAULT = {
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
}


def text_of(text: Text) -> str:
    """One string: a file's contents, or several texts with an empty line between them.

    Raises:
        WorkbenchError: it is empty, not text, or a file that cannot be read.
    """
    if isinstance(text, Path):
        return _checked(_contents(text), f"the text {text}")
    if isinstance(text, str):
        return _checked(text, "text")
    if isinstance(text, Sequence) and all(isinstance(each, str) for each in text):
        return _checked("\n\n".join(text), "text")
    raise WorkbenchError("text", f"it is a {type(text).__name__}", allowed="a string, a list of strings, or a Path")


def _contents(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST:
            raise WorkbenchError(path, f"it has {path.stat().st_size:,} bytes", allowed=f"up to {LONGEST:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise WorkbenchError(path, f"it cannot be read as text ({reason})", allowed="a file of UTF-8 text") from reason


def _checked(text: str, item: str) -> str:
    if not text.strip():
        raise WorkbenchError(item, "it is empty", do="pass a text of the kind the model will be used on")
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise WorkbenchError(
            item, f"it is not valid Unicode: {reason!s:.100}", allowed="what UTF-8 can hold"
        ) from reason
    return text


def chunks_of(
    checkpoint: Checkpoint, text: Text, context: int, *, tokens: int | None = None, least: int | None = None
) -> np.ndarray:
    """The text as token ids, int64 [chunks, context], one chunk after the other.

    As llama.cpp's llama-perplexity and llama-imatrix cut it: where the model's tokenizer
    begins a text with a token of its own, that token takes the place of the first one of every
    chunk; what looks like a special token in the text is read as plain characters; the rest
    that does not fill a chunk is left out.

    Args:
        context: tokens of a chunk.
        tokens: how many tokens of the text are used at most; None: all.
        least: a text of fewer than `context` tokens, but of at least so many, gives one shorter
            chunk; None: such a text is refused.

    Raises:
        WorkbenchError: the text is empty or too short, the context is longer than the model's,
            or its tokenizer makes tokens that it does not know.
    """
    _check_count("tokens", context if tokens is None else tokens)
    check_context(checkpoint, context)
    ids = token_ids(checkpoint, text)[:tokens]
    needed = context if least is None else least
    if len(ids) < needed:
        shorter = f", or set context={len(ids)} or less" if least is None else ""
        raise WorkbenchError("text", f"only {len(ids)} tokens", allowed=f"at least {needed}", do=f"add to it{shorter}")
    length = min(context, len(ids))
    chunks = ids[: len(ids) // length * length].reshape(-1, length)
    begin = beginning(checkpoint)
    if begin is not None:
        chunks[:, 0] = begin
    known = vocabulary(checkpoint)
    if known is not None and chunks.max() >= known:
        raise WorkbenchError(
            checkpoint.name,
            f"its tokenizer makes the token {chunks.max()}, and it knows {known}",
            do="check that the tokenizer is the model's own",
        )
    return chunks


def token_ids(checkpoint: Checkpoint, text: Text) -> np.ndarray:
    """All tokens of the text, int64 [tokens], after the tokenizer's own beginning if it has one."""
    plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids = checkpoint.tokenizer(text_of(text), **plain)["input_ids"]
    begin = beginning(checkpoint)
    return np.array(ids if begin is None else [begin, *ids], np.int64)


def beginning(checkpoint: Checkpoint) -> int | None:
    """The token that the model's tokenizer puts before every text (often called BOS); None: it puts none.

    A GGUF says so itself, or llama.cpp's rule for its kind of tokenizer holds: transformers'
    conversion of such a tokenizer does not keep it.
    """
    said = checkpoint.metadata
    if checkpoint.kind == "gguf":
        sentencepiece = said.get("tokenizer.ggml.model") == "llama"
        usual = sentencepiece or said.get("tokenizer.ggml.pre") in _BEGIN_BY_DEFAULT
        begin = said.get("tokenizer.ggml.bos_token_id", 1 if sentencepiece else None)
        return begin if said.get("tokenizer.ggml.add_bos_token", usual) and isinstance(begin, int) else None
    tokenizer = checkpoint.tokenizer
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if first == [tokenizer.bos_token_id] else None


def vocabulary(checkpoint: Checkpoint) -> int | None:
    """How many tokens the model knows: the rows of its embedding; None: it names none so."""
    found = next((info for info in checkpoint.tensors.values() if info.role == "embed_tokens"), None)
    return found.shape[0] if found else None


def check_context(checkpoint: Checkpoint, context: int) -> None:
    """Raise WorkbenchError for a context that is no number of tokens, or longer than the model's."""
    _check_count("context", context)
    longest = checkpoint.longest_context
    if longest is not None and context > longest:
        raise WorkbenchError(
            "context",
            f"{context} tokens, more than the {longest} that {checkpoint.name} was made for",
            allowed=f"1 to {longest}",
        )


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkbenchError(name, f"it is {value!r:.40}", allowed="a whole number above 0")
