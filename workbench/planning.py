"""Plans: which format each matrix of a model is stored in, and the exact bytes of the whole.

    plan_for(model, "Q4_K_M")            # a recipe: the rule by which llama.cpp mixes formats
    plan_for(model, formats.get("Q2_K")) # one format for every matrix
    plan_for(model, {"model.layers.0.mlp.down_proj.weight": "Q8_0"})

Three names, Q8_0, Q6_K and Q2_K, are both a format and one of llama.cpp's recipes. For a whole model the
name means the recipe, as it does in file names; the format itself, from `formats.get`, means just that format.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from workbench import formats
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.formats.ggml import BY_NAME, RUNS_ON

Spec: TypeAlias = "str | Format | Plan | Mapping[str, str | Format]"


@dataclass(frozen=True)
class Plan:
    """A format for each matrix of one model.

    Attributes:
        name: the recipe or format that was asked for.
        model: the fingerprint of the model it is for.
        formats: tensor name -> the format really used, fallbacks for awkward shapes included. A tensor
            that is not named here stays as it is in the file.
        nbytes: exact bytes of all the model's tensors, those that stay included.
        params: the number of the model's parameters.
    """

    name: str
    model: str
    formats: dict[str, Format]
    nbytes: int
    params: int

    def __getitem__(self, tensor: str) -> Format:
        if tensor not in self.formats:
            raise WorkbenchError(
                f"plan {self.name}", f"it says nothing of {tensor!r}", do="such a tensor stays as it is in the file"
            )
        return self.formats[tensor]

    @property
    def bits(self) -> float:
        """Bits per weight of the whole model."""
        return 8 * self.nbytes / max(self.params, 1)

    def __repr__(self) -> str:
        mix = ", ".join(f"{count} {name}" for name, count in Counter(map(str, self.formats.values())).most_common())
        return f"<Plan {self.name}: {self.nbytes:,} bytes, {self.bits:.2f} bits per weight ({mix})>"


@dataclass(frozen=True)
class Recipe:
    """A rule that gives some matrices of a model more bits than others.

    Attributes:
        base: the format of every matrix that the rule says nothing else about.
        summary: one plain sentence for a newcomer.
        advice: when to take it.
    """

    name: str
    base: str
    summary: str
    advice: str
    runs_on: tuple[str, ...] = RUNS_ON


ATTENTION_AT_Q8 = "attention at Q8, rest at Q4"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("Q8_0", "Q8_0", "8 bits everywhere: hard to tell from the original.", "Take it for math and code."),
        Recipe("Q6_K", "Q6_K", "6 bits everywhere: very close to the original.", "Nearly Q8_0, a fifth smaller."),
        Recipe(
            ATTENTION_AT_Q8,
            "Q4_K",
            "8 bits where tokens attend to each other, 4 elsewhere.",
            "If long texts suffer in Q4_K_M: attention is the smaller part of the weights.",
        ),
        Recipe("Q5_K_M", "Q5_K", "5 bits, 6 for the matrices that suffer most.", "If Q4_K_M leaves room to spare."),
        Recipe("Q5_K_S", "Q5_K", "5 bits everywhere.", "A little smaller than Q5_K_M."),
        Recipe("Q4_K_M", "Q4_K", "4 bits, 6 for the matrices that suffer most.", "Start with this one."),
        Recipe("Q4_K_S", "Q4_K", "4 bits, 5 in the first layers.", "If Q4_K_M just does not fit."),
        Recipe("Q3_K_L", "Q3_K", "3 bits, 5 for the matrices that suffer most.", "If no 4-bit recipe fits."),
        Recipe("Q3_K_M", "Q3_K", "3 bits, 4 or 5 for the matrices that suffer most.", "If no 4-bit recipe fits."),
        Recipe("Q3_K_S", "Q3_K", "3 bits everywhere.", "Rather take a smaller model in Q4_K_M."),
        Recipe("Q2_K", "Q2_K", "2 bits, 3 or 4 for the matrices that suffer most.", "A last resort for large models."),
    )
}


def plan_for(checkpoint: Checkpoint, spec: Spec) -> Plan:
    """The format of each matrix of `checkpoint`.

    Args:
        spec: a recipe's or format's name in any case, a format, or tensor name -> format for single tensors.
            One format alone goes to every matrix; bitsandbytes, INT and FP8 leave the embedding and the
            head as they are, as the programs that run them do.

    Raises:
        WorkbenchError: an unknown name or tensor, a tensor that is not a matrix, a plan made for another model.
    """
    if isinstance(spec, Plan):
        if spec.model != checkpoint.fingerprint:
            raise WorkbenchError(f"plan {spec.name}", f"it was made for another model than {checkpoint.name}")
        return spec
    if isinstance(spec, Mapping):
        return _plan(checkpoint, "by tensor", {name: formats.get(format) for name, format in spec.items()})
    recipe = _RECIPES_BY_LOWER.get(spec.lower()) if isinstance(spec, str) else None
    if recipe is not None:
        return _plan(checkpoint, recipe.name, _by_recipe(checkpoint, recipe))
    if isinstance(spec, str) and spec.lower() not in map(str.lower, formats.FORMATS):
        allowed = ", ".join([*RECIPES, *(name for name in formats.FORMATS if name not in RECIPES)])
        raise WorkbenchError(spec, "there is no recipe or format of that name", allowed=allowed)
    format = formats.get(spec)
    return _plan(checkpoint, format.name, {info.name: format for info in _touched(checkpoint, format)})


_RECIPES_BY_LOWER = {name.lower(): recipe for name, recipe in RECIPES.items()}

# Matrices that llama.cpp never quantizes: small ones of single architectures (its `tensor_allows_quantization`).
_LEFT_BY_LLAMA_CPP = re.compile(
    r"altup|laurel|indexer\.[kq]_proj|shortconv\.conv|time_mix_(first|[wvag]\d|decay_w\d|lerp_fused)"
)


def _touched(checkpoint: Checkpoint, format: Format) -> list[TensorInfo]:
    """The matrices that the programs for `format` store in it."""
    if format.family == "ggml":
        return [info for info in checkpoint.matrices if not _LEFT_BY_LLAMA_CPP.search(info.name)]
    if format.family == "float":
        return checkpoint.matrices
    return [info for info in checkpoint.matrices if info.role not in ("embed_tokens", "lm_head")]


def _plan(checkpoint: Checkpoint, name: str, asked: dict[str, Format]) -> Plan:
    matrices = {info.name: info for info in checkpoint.matrices}
    unknown = [tensor for tensor in asked if tensor not in matrices]
    if unknown:
        known = "not a matrix that can be quantized" if unknown[0] in checkpoint.tensors else "not a tensor"
        raise WorkbenchError(
            unknown[0], f"it is {known} of {checkpoint.name}", allowed=", ".join([*list(matrices)[:5], "..."])
        )
    used, nbytes = {}, 0
    for tensor, format in asked.items():
        *experts, rows, cols = matrices[tensor].shape  # each expert of a stack is a matrix of its own
        used[tensor] = format.used_for((rows, cols))
        nbytes += prod(experts) * used[tensor].nbytes((rows, cols))
    return Plan(name, checkpoint.fingerprint, used, nbytes + _bytes_left(checkpoint, used), checkpoint.params)


def _bytes_left(checkpoint: Checkpoint, used: dict[str, Format]) -> int:
    """Bytes of the tensors that the plan does not name.

    They stay as they are; but from other files to GGUF, vectors become F32, and what only served to read
    the weights (scales, buffers) is left out.
    """
    to_gguf = checkpoint.kind != "gguf" and any(format.family == "ggml" for format in used.values())
    left = 0
    for info in checkpoint.tensors.values():
        if info.name not in used:
            left += 4 * info.params if to_gguf and len(info.shape) == 1 else info.nbytes
    if not to_gguf:
        scales = {f"{name}{ending}" for name in used for ending in ("_scale", "_scale_inv")}
        left += sum(info.nbytes for info in checkpoint.extras.values() if info.name not in scales)
    return left


# --- llama.cpp's rule -----------------------------------------------------------------------------
# After `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp, for the file types in RECIPES.


@dataclass(frozen=True)
class _Model:
    """What the rule asks of a model."""

    falcon: bool
    layers: int
    experts: int
    sharing: int  # query heads that share a key and value head
    seventy: bool  # one of those that llama.cpp knows as "70B"


# architecture, by llama.cpp's and transformers' names -> the number of layers of its 70B
_LAYERS_OF_70B = {"llama": 80, "mistral": 80, "qwen2": 80, "deci": 80, "nemotron-nas": 80, "olmo": 80, "jais2": 68}

_VALUES = ("v_proj", "qkv_proj", "attn_kv_b")
_ATTENTION = ("q_proj", "k_proj", "o_proj", *_VALUES)


def _by_recipe(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Format]:
    model = _model(checkpoint)
    touched = [
        (info, "v_proj" if info.role in _VALUES else info.role) for info in _touched(checkpoint, BY_NAME["Q8_0"])
    ]
    tied = all(kind != "lm_head" for _, kind in touched)
    total = Counter(kind for _, kind in touched)
    seen: Counter[str] = Counter()
    planned: dict[str, Format] = {}
    for info, kind in touched:
        if kind == "lm_head" or (kind == "embed_tokens" and tied):
            name = _for_head(recipe, model, info.shape[-1])
        elif recipe.name == ATTENTION_AT_Q8:
            name = "Q8_0" if info.role in _ATTENTION else recipe.base
        elif kind == "v_proj":
            name = _for_values(recipe, model, seen[kind], total[kind])
        elif kind == "down_proj":
            by_name = model.experts > 1 and info.layer is not None  # there may be several in a layer
            name = _for_down(recipe, model, info.layer or 0 if by_name else seen[kind])
        elif kind == "o_proj":
            name = _for_out(recipe, model)
        else:
            name = "Q8_0" if kind == "k_proj" and model.experts == 8 else recipe.base
        seen[kind] += 1
        planned[info.name] = BY_NAME[name]
    return planned


def _for_head(recipe: Recipe, model: _Model, cols: int) -> str:
    if recipe.base == "Q8_0" or model.falcon or cols % BY_NAME[recipe.base].block:
        return "Q8_0"
    return "Q6_K"


def _for_values(recipe: Recipe, model: _Model, at: int, total: int) -> str:
    """The `at`-th of `total` matrices that make the values of attention."""
    name = recipe.base
    if recipe.name == "Q2_K":
        name = "Q4_K" if model.sharing >= 4 else "Q3_K"
    elif recipe.name == "Q3_K_M":
        name = "Q5_K" if at < 2 else "Q4_K"
    elif recipe.name == "Q3_K_L" or (recipe.name == "Q4_K_S" and at < 4):
        name = "Q5_K"
    elif recipe.name in ("Q4_K_M", "Q5_K_M") and _more_bits(at, total):
        name = "Q6_K"
    if model.experts == 8:
        return "Q8_0"
    return "Q5_K" if model.seventy and name in ("Q3_K", "Q4_K") else name


def _for_down(recipe: Recipe, model: _Model, at: int) -> str:
    """The matrix that ends the MLP of layer `at`."""
    more = _more_bits(at, model.layers)
    if recipe.name == "Q2_K":
        return "Q3_K"
    if recipe.name == "Q3_K_M":
        if at < model.layers // 16:
            return "Q5_K"
        return "Q4_K" if more or not model.falcon else "Q3_K"
    if recipe.name == "Q3_K_L":
        return "Q4_K" if model.falcon else "Q5_K"
    if recipe.name == "Q4_K_M" and model.falcon:
        return "Q6_K" if at < model.layers // 16 else "Q5_K" if more else "Q4_K"
    if recipe.name in ("Q4_K_M", "Q5_K_M") and more:
        return "Q6_K"
    if recipe.name == "Q4_K_S" and not model.falcon and at < model.layers // 8:
        return "Q5_K"
    return recipe.base


def _for_out(recipe: Recipe, model: _Model) -> str:
    """The matrix that ends attention."""
    if model.falcon:
        return "Q4_K" if recipe.name == "Q3_K_L" else recipe.base
    if model.experts == 8:
        return "Q5_K" if recipe.base in ("Q2_K", "Q3_K", "Q4_K") and recipe.name != "Q3_K_L" else recipe.base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(recipe.name, recipe.base)


def _more_bits(at: int, total: int) -> bool:
    """Whether the `at`-th of `total` is one of those with more bits: the first and last eighth, and every third."""
    first = total // 8
    return at < first or at >= 7 * total // 8 or (at - first) % 3 == 2


def _model(checkpoint: Checkpoint) -> _Model:
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) else checkpoint.config  # of a model with other towers beside the text's
    layers = _count(config, "num_hidden_layers", "n_layer")
    heads = _count(config, "num_attention_heads", "n_head")
    kv_heads = _count(config, "num_key_value_heads", "num_kv_heads") or heads
    experts = _count(config, "num_local_experts", "num_experts", "n_routed_experts")
    architecture = str(config.get("model_type", checkpoint.architecture))
    seventy = layers > 0 and layers == _LAYERS_OF_70B.get(architecture)
    if architecture in ("llama", "mistral"):
        seventy = seventy and heads != kv_heads and experts != 8
    return _Model(architecture == "falcon", layers, experts, heads // kv_heads if kv_heads else 0, seventy)


def _count(config: dict[str, Any], *keys: str) -> int:
    """The first of `keys` that the config has as a number (or, layer by layer, as a list of them); else 0."""
    for key in keys:
        found = config.get(key)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, int):
            return found
    return 0
