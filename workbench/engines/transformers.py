"""The engine of Hugging Face transformers: the original, bitsandbytes' own layers, or any format by decoded weights."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import fit, formats
from workbench.checkpoint import Checkpoint
from workbench.checkpoint.checkpoint import CONTEXT_NAMES
from workbench.engines import build, room
from workbench.engines.answering import Draft, check_known
from workbench.engines.base import Can
from workbench.engines.generate import Decoding, stoppable
from workbench.engines.keeping import Kept, cache_of, kept_as
from workbench.engines.tokenwise import TokenByToken, ends_of
from workbench.exceptions import need
from workbench.formats import Format
from workbench.formats.bitsandbytes import library
from workbench.planning import Plan, plan_for
from workbench.progress import Progress, Steps

if TYPE_CHECKING:
    import torch

QUALITY = "the quality of the format, not its speed or its memory"


def open_steps(
    checkpoint: Checkpoint,
    format: str | Format | Plan | Mapping[str, Any] | None = None,
    *,
    decoded: bool = False,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    kv: str | tuple[str, str] | None = None,
    anyway: bool = False,
) -> Steps[TransformersEngine]:
    """An engine for `checkpoint`; the arguments are those of `workbench.run`."""
    kept = kept_as(kv, checkpoint.config)
    where = build.device_of(device)
    kind = build.dtype_of(dtype, where)
    native = None if decoded else _bitsandbytes_name(format)
    plan, quantization = None, None
    if native is not None:
        quantization = _bitsandbytes_config(native, kind)
    elif format is not None:
        plan = plan_for(checkpoint, format)
    fit.guard.free()
    needs = build.needed(checkpoint, plan, kind, where, quantization)
    room.ask(needs, checkpoint, f"running {checkpoint.name}", where, anyway=anyway)
    yield Progress(0, 0, "B", "opening the tokenizer")
    tokenizer = checkpoint.tokenizer
    before = memory_held(where)
    model = yield from build.model_of_steps(
        checkpoint, plan, kind, where, importance=importance, quantization=quantization, anyway=True
    )
    if native is not None:
        _mind_odd_shapes(model)
        label, what = native, _what_native(native, model, kind)
    elif plan is not None:
        label, what = plan.name, _what_decoded(checkpoint, plan, kind)
    else:
        label, what = "", _what_original(checkpoint, kind)
    if kept is not None:
        cache_of(model, kept)
        label += f" kv {'/'.join(kept)}"
        what += f"; keys and values rounded to {' and '.join(dict.fromkeys(kept))}, whose memory this does not show"
    name = f"{checkpoint.name} {label.strip()}".rstrip()
    return TransformersEngine(
        checkpoint,
        model,
        tokenizer,
        name,
        what,
        before,
        needs,
        anyway,
        dtype=kind,
        plan=plan,
        importance=importance,
        native=native or "",
        kept=kept,
    )


class TransformersEngine(TokenByToken):
    """A transformers model that answers; see `engines.base.Engine`. Made by `workbench.run`.

    Attributes:
        dtype: what it computes in.
        plan, importance: what its decoded weights were made by; None: the weights are the checkpoint's.
        native: the name of bitsandbytes' format where its layers run, else "".
        kept: the types that keys and values are rounded to; None: they are kept in `dtype`.
    """

    can = Can(logits=True, token_ids=True, seed=True)

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        tokenizer: Any,
        name: str,
        what: str,
        memory_before: int,
        needs: fit.Memory | None = None,
        anyway: bool = False,
        *,
        dtype: torch.dtype | None = None,
        plan: Plan | None = None,
        importance: Mapping[str, np.ndarray] | None = None,
        native: str = "",
        kept: Kept = None,
    ) -> None:
        ends = ends_of(checkpoint, model.config, tokenizer)
        super().__init__(name, what, memory_before, memory_held(model.device), checkpoint, tokenizer, ends)
        self.model = model
        self.dtype, self.plan, self.importance, self.native = dtype or model.dtype, plan, importance, native
        self.kept = kept
        self.device = model.device
        self.context = _context(model.config)
        self.needs, self.anyway = needs, anyway

    @property
    def where(self) -> str:
        return str(self.device)

    def _free(self) -> None:
        self.model = self.tokenizer = None
        fit.guard.free()

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        check_known(ids, self.known, self.name)
        torch = need("torch")
        with torch.inference_mode():
            text = torch.from_numpy(ids)[None].to(self.device)
            return self.model(input_ids=text, **cache_of(self.model, self.kept)).logits[0].float().cpu().numpy()

    @property
    def known(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    @contextlib.contextmanager
    def _guarded(self, ids: list[int], draft: Draft) -> Iterator[None]:
        room.ask_for_prompt(self.needs, len(ids), self.device, anyway=self.anyway)

        def needs() -> fit.Memory | None:
            return self.needs and self.needs.at(context=len(ids) + len(draft.ids))

        with fit.guarded(needs, f"a reply of {self.name}", str(self.device)):
            yield

    @contextlib.contextmanager
    def _decoding(self, ids: list[int], stop: threading.Event) -> Iterator[Decoding]:
        with stoppable(self.model, stop):
            yield Decoding(self.model, ids, cache_of(self.model, self.kept))


# --- which weights ------------------------------------------------------------------------------


def _bitsandbytes_name(format: object) -> str | None:
    """NF4, FP4 or LLM.int8 if that is what was asked for, by name or as a format."""
    if not isinstance(format, str | Format):
        return None
    names = {name.lower(): name for name, known in formats.FORMATS.items() if known.family == "bitsandbytes"}
    return names.get(str(format).lower())


def _bitsandbytes_config(name: str, dtype: torch.dtype) -> Any:
    library()
    config = need("transformers").BitsAndBytesConfig
    if name == "LLM.int8":
        return config(load_in_8bit=True)
    return config(load_in_4bit=True, bnb_4bit_quant_type=name.lower(), bnb_4bit_compute_dtype=dtype)


def _mind_odd_shapes(model: Any) -> None:
    """Keep bitsandbytes from a packing for CPUs that fails an assertion on shapes like 96 x 80."""
    layer = library().nn.Linear4bit
    for module in model.modules():
        if isinstance(module, layer) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def _what_native(name: str, model: Any, dtype: torch.dtype) -> str:
    layers = library().nn
    count = sum(isinstance(module, layers.Linear4bit | layers.Linear8bitLt) for module in model.modules())
    return f"bitsandbytes {name} as that library loads it: {count} matrices in its layers, the rest in {_short(dtype)}"


def _what_decoded(checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype) -> str:
    used = Counter(format.name for format in plan.formats.values())
    mix = ", ".join(f"{count} in {name}" for name, count in used.most_common())
    return f"{plan.name} by decoded weights ({mix}), computed in {_short(dtype)}: {QUALITY}"


def _what_original(checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    stored = Counter(info.encoding for info in checkpoint.matrices)
    kinds = " and ".join(stored)
    if set(stored) <= {"F32", "F16", "BF16"}:
        return f"the original weights ({kinds}), computed in {_short(dtype)}"
    return f"the file's own weights ({kinds}), decoded and computed in {_short(dtype)}: {QUALITY}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- what the model's files say -----------------------------------------------------------------


def memory_held(device: torch.device) -> int:
    """Bytes in use: of PyTorch's allocator on a GPU, else of this process."""
    fit.guard.free()
    if device.type == "cuda":
        return int(need("torch").cuda.memory_allocated(device))
    return int(need("psutil").Process().memory_info().rss)


def _context(config: Any) -> int | None:
    """The most tokens the model was made for; None: it has no limit."""
    text = config.get_text_config()
    sizes = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)
