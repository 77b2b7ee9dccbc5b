"""Engines that run as sides of a comparison: what they compute, in the way they compute it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench import files, fit
from workbench.checkpoint import Checkpoint
from workbench.engines import exllamav2, llama_c, llamacpp, options, scoring
from workbench.engines.base import Engine
from workbench.engines.exllamav2 import ExLlamaV2Engine
from workbench.engines.scoring import Scorer
from workbench.engines.transformers import TransformersEngine
from workbench.exceptions import WorkbenchError, need
from workbench.measure.built import Held
from workbench.measure.forward import Predictor, Rows
from workbench.progress import Progress, Steps, in_thread

if TYPE_CHECKING:
    import torch


def running(engine: Engine) -> LlamaCpp | Held | Exllama:
    """An engine as a side of a comparison.

    Raises:
        WorkbenchError: it does not give the scores of the whole vocabulary, or it was closed.
    """
    if getattr(engine, "closed", False):
        raise WorkbenchError(engine.name, "this engine was closed", do="open it again with wb.run(...)")
    if isinstance(engine, llamacpp.LlamaCppEngine):
        return LlamaCpp(engine)
    if isinstance(engine, TransformersEngine):
        return Held(engine)
    if isinstance(engine, ExLlamaV2Engine):
        return Exllama(engine)
    raise WorkbenchError(
        engine.name,
        "it gives text, at most with the likeliest tokens; a KL divergence needs the scores of the whole vocabulary",
        allowed='engines whose `can.logits` is true, "transformers", "llama.cpp" and "exllamav2"; as the candidate '
        "also a server that lists its likeliest tokens",
        do='compare the file that the server runs: wb.run("model.gguf", engine="llama.cpp"); '
        "or two engines by their words: wb.side_by_side(a, b, prompt)",
    )


@dataclass(frozen=True, eq=False)
class LlamaCpp:
    """A GGUF as llama.cpp computes it, in a process that is started for the comparison and ends with it."""

    engine: llamacpp.LlamaCppEngine

    @property
    def checkpoint(self) -> Checkpoint:
        return self.engine.checkpoint

    @property
    def name(self) -> str:
        kept = self.engine.options.kv
        return f"{self.engine.name} in llama.cpp" + (f", kv {'/'.join(kept)}" if kept != ("f16", "f16") else "")

    @property
    def fingerprint(self) -> str:
        return self.checkpoint.fingerprint

    @property
    def how(self) -> tuple[object, ...]:
        asked, code = self.engine.options, files.code_version(sys.modules[__name__], scoring, llama_c, options)
        return "llama.cpp", asked.kv, asked.gpu_layers, self.versions, code

    @property
    def computed(self) -> str:
        kept = "/".join(self.engine.options.kv)
        return f"llama.cpp on {self.engine.where}, keys and values in {kept}"

    @property
    def versions(self) -> dict[str, str]:
        return {"xllamacpp": getattr(need("xllamacpp"), "__version__", "")}

    @property
    def device(self) -> Any:
        return need("torch").device("cpu")

    @property
    def nbytes(self) -> int:
        try:
            return fit.memory(self.checkpoint, None, 512, kv=self.engine.options.kv).total
        except WorkbenchError:  # an architecture of which nothing is known
            return self.checkpoint.nbytes

    def check(self) -> None:
        pass

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        scorer = Scorer(self.name, self.engine.options, context)
        try:
            yield Progress(0, 0, "", f"opening {self.name} in llama.cpp")
            yield from in_thread(lambda _: scorer.width)
        except BaseException:
            scorer.close()
            raise
        return Scored(scorer, tick)


class Scored:
    """Predictions of a `Scorer`; see `forward.Predictor`."""

    def __init__(self, scorer: Scorer, tick: Callable[[], None]) -> None:
        self.scorer, self.tick = scorer, tick

    def read(self, ids: torch.Tensor, scored: slice) -> list[Rows]:
        return [self._rows_of(text, scored) for text in ids]

    def _rows_of(self, text: torch.Tensor, scored: slice) -> Rows:
        begun = False

        def rows(run: slice) -> torch.Tensor:
            nonlocal begun
            if not begun:  # one text at a time is in the pipe
                self.scorer.begin(text[: scored.stop].numpy(), scored.start)
                begun = True
            self.tick()
            return need("torch").from_numpy(self.scorer.rows(run.stop - run.start))

        return rows

    def close(self) -> None:
        self.scorer.close()


@dataclass(frozen=True, eq=False)
class Exllama:
    """A folder as ExLlamaV2 computes it, in the engine that holds it."""

    engine: ExLlamaV2Engine

    @property
    def checkpoint(self) -> Checkpoint:
        return self.engine.checkpoint

    @property
    def name(self) -> str:
        return f"{self.engine.name} in ExLlamaV2"

    @property
    def fingerprint(self) -> str:
        return self.checkpoint.fingerprint

    @property
    def how(self) -> tuple[object, ...]:
        return "exllamav2", self.engine.kept, self.versions, files.code_version(sys.modules[__name__], exllamav2)

    @property
    def computed(self) -> str:
        return f"ExLlamaV2 on {self.engine.where}, keys and values in {self.engine.kept}"

    @property
    def versions(self) -> dict[str, str]:
        return {"exllamav2": getattr(need("exllamav2"), "__version__", "")}

    @property
    def device(self) -> Any:
        return need("torch").device("cpu")

    @property
    def nbytes(self) -> int:
        return 0  # it is there already

    def check(self) -> None:
        pass

    def open_steps(self, context: int, tick: Callable[[], None], *, streamed: bool) -> Steps[Predictor]:
        yield Progress(0, 0, "", f"reading with {self.name}")
        return Asked(self.engine, tick)


class Asked:
    """Predictions of an engine that gives the scores of a whole text at once; see `forward.Predictor`."""

    def __init__(self, engine: ExLlamaV2Engine, tick: Callable[[], None]) -> None:
        self.engine, self.tick = engine, tick

    def read(self, ids: torch.Tensor, scored: slice) -> list[Rows]:
        return [self._rows_of(text, scored) for text in ids]

    def _rows_of(self, text: torch.Tensor, scored: slice) -> Rows:
        self.tick()
        scores = need("torch").from_numpy(self.engine.logits(text[: scored.stop].tolist())[scored])
        return lambda run: scores[run]

    def close(self) -> None:
        pass
