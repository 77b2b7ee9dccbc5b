"""A config.json read with care: its numbers decide sizes, and its author may be careless or hostile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.exceptions import WorkbenchError

# Several times the largest model there is. They keep every product finite and every loop short.
MOST_LAYERS = 4_096
MOST_WIDTH = 1 << 22  # of a matrix, a head, a number of experts
MOST_VOCABULARY = 1 << 24

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
VOCABULARY = ("vocab_size",)
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk")


@dataclass(frozen=True)
class Config:
    """The values of one config, and what its family takes for those that are missing.

    Attributes:
        values: config.json, or the part of it that describes the text model.
        item: what messages call it.
        defaults: the family's own, as transformers' configuration class documents them.
    """

    values: Mapping[str, Any]
    item: str = "config.json"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def raw(self, *names: str) -> Any:
        """The value of the first of `names` that is given and not null; else the family's default; else None."""
        for source in (self.values, self.defaults):
            for name in names:
                if source.get(name) is not None:
                    return source[name]
        return None

    def whole(self, *names: str, default: int | None = None, least: int = 1, most: int = MOST_WIDTH) -> int:
        """A whole number from `least` to `most`.

        Raises:
            WorkbenchError: it is missing without a default, not a whole number, or out of range.
        """
        found = self.raw(*names)
        if found is None:
            if default is None:
                raise WorkbenchError(
                    self.item,
                    f"it does not say {names[0]}",
                    allowed=f"a config with {' or '.join(names)}",
                    do="take the config.json that was published with the weights",
                )
            return default
        return checked(self.item, names[0], found, least, most)

    def flag(self, *names: str, default: bool = False) -> bool:
        found = self.raw(*names)
        if found is None:
            return default
        if not isinstance(found, bool):
            raise self.refuse(names[0], found, "true or false")
        return found

    def word(self, *names: str, default: str = "") -> str:
        found = self.raw(*names)
        return found if isinstance(found, str) else default

    def sizes(self, name: str, count: int, default: int) -> list[int]:
        """A size for each of `count` layers, from a list or one number for all of them."""
        found = self.raw(name)
        if not isinstance(found, list):
            return [self.whole(name, default=default)] * count
        if len(found) != count:
            raise self.refuse(name, f"a list of {len(found)}", f"one size for each of {count} layers")
        return [checked(self.item, name, one, 1, MOST_WIDTH) for one in found]

    def words(self, name: str, count: int) -> list[str] | None:
        """A word for each of `count` layers, or None if the config does not give them."""
        found = self.raw(name)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.refuse(name, found, "a list of words, one for each layer")
        if len(found) != count:
            raise self.refuse(name, f"a list of {len(found)}", f"one word for each of {count} layers")
        return found

    def numbers(self, name: str) -> list[int]:
        """A list of layers' numbers; empty if the config does not give it."""
        found = self.raw(name)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.refuse(name, found, "a list of layers")
        return [checked(self.item, name, one, 0, MOST_LAYERS) for one in found]

    def refuse(self, name: str, found: object, allowed: str) -> WorkbenchError:
        return WorkbenchError(
            self.item,
            f"{name} is {_shown(found)}",
            allowed=allowed,
            do="take the config.json that was published with the weights",
        )


def checked(item: str, name: str, found: object, least: int, most: int) -> int:
    """`found` as a whole number from `least` to `most`; 4096.0 is one, True and "4096" are not."""
    number = found if isinstance(found, int | float) and not isinstance(found, bool) else math.nan
    if not least <= number <= most or int(number) != number:
        raise WorkbenchError(
            item,
            f"{name} is {_shown(found)}",
            allowed=f"a whole number from {least:,} to {most:,}",
            do="take the config.json that was published with the weights",
        )
    return int(number)


def _shown(found: object) -> str:
    if isinstance(found, int) and abs(found) > 1 << 62:
        return f"a number of {len(bin(found)) - 2} bits"
    return found if isinstance(found, str) and found.startswith("a list") else repr(found)[:60]


def text_config(values: object, item: str = "config.json") -> tuple[Mapping[str, Any], bool]:
    """The part of a config that describes the text model, and whether there is another part beside it."""
    if not isinstance(values, Mapping):
        raise WorkbenchError(item, f"it is a {type(values).__name__}", allowed="a JSON object, {...}")
    for name in ("text_config", "llm_config", "language_config"):
        inner = values.get(name)
        if isinstance(inner, Mapping):
            outer = {key: values[key] for key in ("tie_word_embeddings", "torch_dtype", "dtype") if key in values}
            return {**outer, **inner}, True
    return values, False
