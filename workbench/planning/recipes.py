"""llama.cpp's mixes: rules that give some matrices of a model more bits than others.

After `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp, for the file types in `RECIPES`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from workbench.checkpoint import Checkpoint
from workbench.formats import Format
from workbench.formats.ggml import BY_NAME, RUNS_ON
from workbench.planning.mix import touched


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


def by_recipe(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Format]:
    """Tensor name -> the format that the rule asks for."""
    model = _model(checkpoint)
    found = [(info, "v_proj" if info.role in _VALUES else info.role) for info in touched(checkpoint, BY_NAME["Q8_0"])]
    tied = all(kind != "lm_head" for _, kind in found)
    total = Counter(kind for _, kind in found)
    seen: Counter[str] = Counter()
    planned: dict[str, Format] = {}
    for info, kind in found:
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
