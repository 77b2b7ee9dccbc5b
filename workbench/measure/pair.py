"""The two sides of a comparison, as they are computed: models to be built, and engines that run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from workbench import checkpoint as checkpoints
from workbench.checkpoint import Checkpoint
from workbench.checkpoint.gguf import LongArray
from workbench.engines.base import Engine
from workbench.exceptions import WorkbenchError
from workbench.measure import sides
from workbench.measure.built import Built
from workbench.measure.forward import Predictor
from workbench.measure.running import running
from workbench.measure.sides import Side, side_steps
from workbench.measure.text import vocabulary
from workbench.progress import Steps

Reference: TypeAlias = "Checkpoint | Engine | str | Path"
Candidate: TypeAlias = "sides.Candidate | Engine"


class Computed(Protocol):
    """A side as something computes it.

    Attributes:
        checkpoint: the model, whose tokenizer reads the text.
        fingerprint: a name for its weights.
        how: whatever else decides its predictions.
        computed: by what, in what and where, for readers.
        versions: of the packages that compute.
        device: where its logits lie.
        nbytes: bytes of main memory, or of its device's, that it takes beside what it holds already.
    """

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def how(self) -> tuple[object, ...]: ...
    @property
    def computed(self) -> str: ...
    @property
    def versions(self) -> dict[str, str]: ...
    @property
    def device(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...

    def check(self) -> None:
        """Raise WorkbenchError for what would fail once the model is built."""

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        """Make it ready for texts of `context` tokens, yielding how far that is.

        Args:
            tick: called a few times a second while it computes, where it can be; what it raises ends the call.
            streamed: read weights as they are needed rather than hold them, where it can.
        """


def pair_steps(
    reference: Reference,
    candidate: Candidate,
    importance: Mapping[str, np.ndarray] | None,
    dtype: Any,
    device: Any,
) -> Steps[tuple[Computed, Computed]]:
    """Open both sides; a recipe, format or plan is applied to the reference's weights.

    Args:
        dtype, device: what models that are built here compute in and on; engines have their own.

    Raises:
        WorkbenchError: one that cannot be opened, an engine that gives no logits, a plan of another model, a
            format without the importance it needs, vocabularies of different sizes.
    """
    second: Computed
    first = yield from reference_steps(reference, dtype, device)
    if isinstance(candidate, Engine):
        second = running(candidate)
    else:
        second = Built((yield from side_steps(candidate, first.checkpoint, importance)), dtype, device)
    check_vocabularies(first, second)
    first.check()
    second.check()
    return first, second


def reference_steps(reference: Reference, dtype: Any, device: Any) -> Steps[Computed]:
    """Open the reference alone; see `pair_steps`."""
    if isinstance(reference, Engine):
        return running(reference)
    opened = reference if isinstance(reference, Checkpoint) else (yield from checkpoints.load_steps(reference))
    return Built(Side(opened), dtype, device)


def check_vocabularies(first: Computed, second: Computed) -> None:
    """Raise WorkbenchError if one knows more tokens than the other."""
    sizes = vocabulary(first.checkpoint), vocabulary(second.checkpoint)
    if None not in sizes and sizes[0] != sizes[1]:
        raise WorkbenchError(
            second.name,
            f"it knows {sizes[1]} tokens, and {first.name} knows {sizes[0]}: their predictions cannot be held "
            "against each other",
            do="compare models with the same tokenizer",
        )


def check_tokens(first: Computed, second: Computed, chunks: np.ndarray) -> None:
    """Raise WorkbenchError if a token of the text means something else to the second model.

    Only the tokens in `chunks` are looked at: files of one model may differ in those that fill up the vocabulary.
    """
    if second.checkpoint is first.checkpoint:
        return
    used = np.unique(chunks).tolist()
    listed = _listed(second.checkpoint, used)
    if listed is not None and listed in (_listed(first.checkpoint, used), _spelled(first.checkpoint, used)):
        return
    try:
        theirs = _spelled(second.checkpoint, used)
    except WorkbenchError:  # it has none of its own, so nothing speaks against the reference's
        return
    pairs = zip(used, _spelled(first.checkpoint, used), theirs, strict=True)
    other = [(number, here, there) for number, here, there in pairs if here != there]
    if other:
        number, here, there = other[0]
        raise WorkbenchError(
            second.name,
            f"{len(other)} of the text's {len(used)} tokens are others in its vocabulary: {number} is {there!r:.40}, "
            f"and {here!r:.40} for {first.name}",
            do="compare models with the same tokenizer",
        )


def _spelled(checkpoint: Checkpoint, used: list[int]) -> list[str]:
    return list(checkpoint.tokenizer.convert_ids_to_tokens(used))


def _listed(checkpoint: Checkpoint, used: list[int]) -> list[str] | None:
    """Tokens as a GGUF lists them, which is there at once; its tokenizer takes many seconds to open."""
    listed = checkpoint.metadata.get("tokenizer.ggml.tokens") if checkpoint.kind == "gguf" else None
    texts = listed.read() if isinstance(listed, LongArray) else listed
    return [str(texts[number]) for number in used] if texts and used[-1] < len(texts) else None
