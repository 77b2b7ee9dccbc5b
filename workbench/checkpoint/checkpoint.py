"""An opened model: what its headers say, and its weights on request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench import files
from workbench.checkpoint import bounded_json, convert, names, tree, values
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError

# What a file may hold beside the parameters: scales of FP8 weights and activations, factors
# of the rotary embedding, and buffers that old versions of transformers saved.
EXTRAS = (
    *(".weight_scale", ".weight_scale_inv", "_proj_scale", "_proj_scale_inv"),
    *(".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".activation_scale", ".input_scale_ub"),
    *(".input_global_scale", ".output_global_scale", ".input_zero_point", ".output_zero_point"),
    *("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "rotary_emb.inv_freq"),
    *(".attn.bias", ".attention.bias", ".masked_bias"),
)

# What configs call the length that a model was made for.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A model as `wb.load` opens it: headers in memory, weights on disk.

    Attributes:
        source: what `wb.load` was given: with it, code can open the model again.
        path: the folder, or the (first) GGUF file.
        revision: the hub's commit, when it came from there.
        config: config.json, or the same keys from a GGUF's metadata.
        metadata: a GGUF's metadata, or the safetensors files' own.
        licence: as the model card or the GGUF names it.
        notes: sentences that belong wherever the model is shown or used as a reference.
        tensors: the parameters, the embedding first, then layer by layer, the head last.
        extras: what the files hold beside the parameters: scales of FP8 weights, rotary factors, buffers.
    """

    name: str
    path: Path
    kind: Literal["safetensors", "gguf"]
    config: dict[str, Any]
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    extras: dict[str, TensorInfo] = field(default_factory=dict)
    revision: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored, scales included."""
        return sum(info.nbytes for info in (*self.tensors.values(), *self.extras.values()))

    @cached_property
    def params(self) -> int:
        """The number of parameters; a tied head is not counted twice."""
        return sum(info.params for info in self.tensors.values())

    @cached_property
    def matrices(self) -> list[TensorInfo]:
        """What a quantizer works on: the embedding, the layers' matrices in order, the head."""
        return [info for info in self.tensors.values() if info.is_matrix]

    @property
    def architecture(self) -> str:
        """The model type, by transformers' name for a folder and llama.cpp's for a GGUF."""
        return str(self.metadata.get("general.architecture") or self.config.get("model_type") or "")

    @property
    def quantization(self) -> dict[str, Any]:
        """What config.json says of how the weights are quantized; {} where it says nothing."""
        settings = self.config.get("quantization_config")
        return settings if isinstance(settings, dict) else {}

    @property
    def quant_method(self) -> str:
        """The way of quantizing that config.json names, such as "gptq"; "" where it names none."""
        return str(self.quantization.get("quant_method", "")).lower()

    @property
    def longest_context(self) -> int | None:
        """The most tokens the model was made for; None: its config does not say."""
        text = self.config.get("text_config")
        config = text if isinstance(text, dict) else self.config  # of a model with other towers beside the text's
        sizes = (config.get(name) for name in CONTEXT_NAMES)
        return next((size for size in sizes if isinstance(size, int) and size > 0), None)

    @property
    def tied_head(self) -> bool:
        """Whether the embedding serves as the head too."""
        stored = any(info.role == "lm_head" for info in self.tensors.values())
        return not stored or bool(self.config.get("tie_word_embeddings"))

    def read(self, name: str, rows: slice | None = None) -> values.Weights:
        """The weights of a tensor, or of `rows` along its first axis, as float32 in its logical shape.

        Only the bytes of those rows are read. FP8 weights come multiplied by their scale.

        Raises:
            WorkbenchError: no such tensor, one that cannot be decoded, or a file changed since it was opened.
        """
        info = self._info(name)
        weights = values.read(info, rows)
        scale = self._scale_of(info)
        if scale is None:
            return weights
        if not np.isfinite(weights).all():
            raise WorkbenchError(f"{info.file.name}, tensor {name!r}", "it has values that are not finite numbers")
        return values.apply_scale(weights, rows, info.shape, _sound_scale(scale), name, self._tile)

    def held_in(self, name: str) -> tuple[TensorInfo, ...]:
        """A tensor, and the scale beside it if it is FP8 with one: what its weights are read from."""
        info = self._info(name)
        scale = self._scale_of(info)
        return (info,) if scale is None else (info, scale)

    def digest(self, name: str) -> str:
        """A hash of a tensor's stored bytes (and of its scale's); remembered for as long as the file is unchanged."""
        parts = [_remembered_digest(part) for part in self.held_in(name)]
        return parts[0] if len(parts) == 1 else files.digest(*parts)

    @cached_property
    def fingerprint(self) -> str:
        """A name for the whole model's content, from its headers and its files' sizes and times."""
        everything = [part for info in (*self.tensors.values(), *self.extras.values()) for part in info.stored]
        stored = [(info.name, info.shape, info.encoding, info.nbytes, info.offset) for info in everything]
        versions = sorted((file.name, *_version(file)) for file in {info.file for info in everything})
        return files.digest(self.kind, self.config, stored, versions)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name) or self.extras.get(name)
        if info is None:
            close = [known for known in self.tensors if str(name) in known][:5] or list(self.tensors)[:5]
            raise WorkbenchError(self.name, f"it has no tensor {name!r}", allowed=", ".join(close) + ", ...")
        return info

    @cached_property
    def _tile(self) -> tuple[int, int] | None:
        """Rows and columns that share a scale in FP8, if the config says so."""
        settings = self.config.get("quantization_config")
        said = settings.get("weight_block_size") if isinstance(settings, dict) else None
        if said is None:
            return None
        if not isinstance(said, list) or len(said) != 2 or any(type(size) is not int or size < 1 for size in said):
            where = f"{self.path / 'config.json'}, quantization_config.weight_block_size"
            raise WorkbenchError(where, f"it is {said!r:.60}", allowed="two whole numbers, such as [128, 128]")
        return said[0], said[1]

    def _scale_of(self, info: TensorInfo) -> TensorInfo | None:
        if not info.encoding.startswith("F8_"):
            return None
        found = (self.extras.get(f"{info.name}{ending}") for ending in ("_scale", "_scale_inv"))
        return next((scale for scale in found if scale is not None), None)

    # --- towards transformers -----------------------------------------------------------------

    def hf_folder(self) -> Path:
        """A folder with config.json and the tokenizer for transformers.

        The model's own, or for a GGUF one made from its metadata on the first call and kept in the cache.
        """
        return self.path if self.kind == "safetensors" else convert.hf_folder(self)

    def hf_name(self, name: str) -> str:
        """transformers' name for the parameter that a tensor holds."""
        self._info(name)
        return name if self.kind == "safetensors" else convert.hf_name(self, name)

    def to_hf(self, name: str, weights: values.Weights) -> tuple[str, values.Weights]:
        """transformers' name and layout for the weights of a tensor, such as `read` gives.

        llama.cpp keeps the rows of a Llama's q and k in another order, and Gemma's norms
        one higher; both are undone.
        """
        return self.hf_name(name), weights if self.kind == "safetensors" else convert.to_hf(self, name, weights)

    @cached_property
    def hf_names(self) -> dict[str, str]:
        """Every tensor's name -> transformers' name for it, where it has one."""
        return {name: name for name in self.tensors} if self.kind == "safetensors" else convert.hf_names(self)

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer; code that comes with a model is never run."""
        return convert.tokenizer(self)

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, if the model has one; not rendered here."""
        if self.kind == "gguf":
            found = self.metadata.get("tokenizer.chat_template")
            return found if isinstance(found, str) else None
        own = self.path / "chat_template.jinja"
        if own.is_file():
            return bounded_json.text_of(own, bounded_json.LONGEST_DOCUMENT)
        settings = self.path / "tokenizer_config.json"
        found = bounded_json.read(settings).get("chat_template") if settings.is_file() else None
        if isinstance(found, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        return found if isinstance(found, str) else None

    # --- shown --------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return tree.plain(self)

    def _repr_html_(self) -> str:
        return tree.html_of(self)


def _sound_scale(scale: TensorInfo) -> values.Weights:
    """A scale of FP8, of which no writer makes one that is zero or no number."""
    if scale.encoding == "U8":  # an exponent alone, of MXFP8
        return np.ldexp(np.float32(1), values.bytes_at(scale, 0, scale.nbytes).astype(np.int32) - 127).reshape(
            scale.shape
        )
    found = values.read(scale)
    zeros, lost = int((found == 0).sum()), int((~np.isfinite(found)).sum())
    if zeros or lost:
        what = "zero" if zeros else "not finite numbers"
        said = f"{zeros or lost:,} of its {found.size:,} scales are {what}"
        raise WorkbenchError(f"{scale.file.name}, tensor {scale.name!r}", said, do="get the file again from its author")
    return found


def is_extra(name: str) -> bool:
    """Whether a tensor of this name serves other tensors, and is no parameter of the model."""
    return name.endswith(EXTRAS)


def ordered(tensors: list[TensorInfo]) -> dict[str, TensorInfo]:
    """By name: the embedding, the layers with attention first, what has no layer, the head."""

    def place(info: TensorInfo) -> tuple[int, int, int, list[tuple[int, str]]]:
        group = 1 if info.layer is not None else {"embed_tokens": 0, "lm_head": 3}.get(info.role, 2)
        natural = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", info.name)]
        return group, info.layer or 0, names.rank(info.role), natural

    return {info.name: info for info in sorted(tensors, key=place)}


def _version(file: Path) -> tuple[int, int]:
    """(bytes, time of the last change), which tell whether a file is still the same."""
    try:
        found = file.stat()
    except OSError as reason:
        raise WorkbenchError(file, f"it cannot be read any more ({reason})", do="load the checkpoint again") from reason
    return found.st_size, found.st_mtime_ns


def _remembered_digest(info: TensorInfo) -> str:
    cache = files.cache("digests")
    key = files.digest(
        str(info.file.resolve()), *_version(info.file), info.offset, info.nbytes, info.encoding, info.shape
    )
    known = cache.get([key]).get(key)
    if isinstance(known, str):
        return known
    found = values.digest(info)
    cache.put({key: found})
    return found
