"""The engine of Hugging Face transformers: the original, bitsandbytes' own layers, or any format by decoded weights."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import fit, formats
from workbench.checkpoint import Checkpoint
from workbench.engines import build, room
from workbench.engines.answering import Answering, Draft, check_known
from workbench.engines.base import Can, Settings
from workbench.engines.generate import Decoding, Detokenizer, Until, chooser, stoppable
from workbench.engines.keeping import Kept, cache_of, kept_as
from workbench.engines.template import Prompt, prompt_of
from workbench.exceptions import WorkbenchError, need
from workbench.formats import Format
from workbench.formats.bitsandbytes import library
from workbench.planning import Plan, plan_for
from workbench.progress import Progress, Steps

if TYPE_CHECKING:
    import torch

QUALITY = "the quality of the format, not its speed or its memory"
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


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


class TransformersEngine(Answering):
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
        super().__init__(name, what, memory_before, memory_held(model.device))
        self.checkpoint, self.model, self.tokenizer = checkpoint, model, tokenizer
        self.dtype, self.plan, self.importance, self.native = dtype or model.dtype, plan, importance, native
        self.kept = kept
        self.device = model.device
        self.context = _context(model.config)
        self._template = checkpoint.chat_template
        self.ends = _ends(checkpoint, model.config, tokenizer)
        self.needs, self.anyway = needs, anyway

    @property
    def where(self) -> str:
        return str(self.device)

    def _free(self) -> None:
        self.model = self.tokenizer = None
        fit.guard.free()

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        check_known(ids, self.model.get_input_embeddings().num_embeddings, self.name)
        torch = need("torch")
        with torch.inference_mode():
            text = torch.from_numpy(ids)[None].to(self.device)
            return self.model(input_ids=text, **cache_of(self.model, self.kept)).logits[0].float().cpu().numpy()

    def prompt(self, messages: list[dict[str, str]]) -> tuple[Prompt, list[int]]:
        """The conversation as the model reads it, text and token ids.

        Raises:
            WorkbenchError: the chat template fails, or the prompt leaves no room in the context.
        """
        special = {name: token for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        prompt = prompt_of(self._template, messages, model=self.name, tokens=special)
        ids = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        known = self.model.get_input_embeddings().num_embeddings
        if not ids or max(ids) >= known:
            found = "it is empty" if not ids else f"its tokenizer makes the token {max(ids)}, and it knows {known}"
            raise WorkbenchError(
                self.name, f"the prompt cannot be read: {found}", do="check that the tokenizer is the model's own"
            )
        if self.context is not None and len(ids) >= self.context:
            raise WorkbenchError(
                self.name,
                f"the prompt has {len(ids):,} tokens, and the model's context is {self.context:,}",
                allowed=f"up to {self.context - 1:,} tokens",
                do="shorten the prompt, or leave out the oldest messages",
            )
        return prompt, ids

    def _write(
        self, messages: list[dict[str, str]], settings: Settings, draft: Draft, stop: threading.Event
    ) -> Iterator[str]:
        began = time.perf_counter()
        prompt, ids = self.prompt(messages)
        draft.note, draft.prompt_tokens = prompt.note, len(ids)
        room.ask_for_prompt(self.needs, len(ids), self.device, anyway=self.anyway)

        def needs() -> fit.Memory | None:
            return self.needs and self.needs.at(context=len(ids) + len(draft.ids))

        with fit.guarded(needs, f"a reply of {self.name}", str(self.device)):
            yield from self._tokens(ids, settings, draft, stop, began)

    def _tokens(
        self, ids: list[int], settings: Settings, draft: Draft, stop: threading.Event, began: float
    ) -> Iterator[str]:
        most = settings.max_tokens if self.context is None else min(settings.max_tokens, self.context - len(ids))
        decoding, choose = Decoding(self.model, ids, cache_of(self.model, self.kept)), chooser(settings)
        detokenizer, until = Detokenizer(self.tokenizer), Until(settings.stop)
        reading = time.perf_counter()
        with stoppable(self.model, stop):
            while len(draft.ids) < most:
                token = choose(decoding.logits())
                now = time.perf_counter()
                if not draft.seconds:
                    draft.prompt_per_second = len(ids) / (now - reading)
                draft.seconds.append(now - began)
                if token in self.ends:
                    draft.finish = "stop"
                    break
                decoding.append(token)
                draft.ids.append(token)
                draft.tokens.append(detokenizer.add(token))
                if text := until.add(draft.tokens[-1]):
                    yield text
                if until.found:
                    draft.finish = "stop"
                    return
                began = time.perf_counter()  # the time in which the reader holds a piece is not the model's
            else:
                draft.finish = "length"
        if rest := detokenizer.rest():
            draft.tokens[-1] += rest
        if text := until.add(rest) + until.rest():
            yield text


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


def _ends(checkpoint: Checkpoint, config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a reply: an instruct model often has more than its tokenizer names."""
    said: list[Any] = [getattr(config.get_text_config(), "eos_token_id", None)]
    if checkpoint.kind == "gguf":  # of its tokenizer, some versions of transformers make the end the beginning
        said += [checkpoint.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    else:
        said += [tokenizer.eos_token_id, _generation_config(checkpoint).get("eos_token_id")]
    listed = [one for value in said for one in (value if isinstance(value, list) else [value])]
    return frozenset(one for one in listed if isinstance(one, int))


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.hf_folder() / "generation_config.json"
    try:
        said = json.loads(file.read_bytes()) if file.stat().st_size < 1 << 20 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
