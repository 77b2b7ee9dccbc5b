"""From a config.json to an architecture: the shapes and caches that its numbers imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.fit import config as keys
from workbench.fit.architecture import Architecture
from workbench.fit.config import Config, text_config
from workbench.fit.families import ALIASES, FAMILIES, Family
from workbench.fit.sizes import FULL
from workbench.fit.tensors import Tensors

TEXT_ONLY = "only the text model was counted: its vision or audio part is not in the figures"


def describe(values: Mapping[str, Any], item: str = "config.json") -> Architecture:
    """The architecture that a config.json describes.

    A model type that is not known here is taken for a Llama with the sizes it names; what
    was assumed is said in `assumed`, and every figure that follows is an estimate.

    Raises:
        WorkbenchError: naming the key that is missing, not a number, or out of range.
    """
    text, beside = text_config(values, item)
    named = str(text.get("model_type") or values.get("model_type") or "")
    name = ALIASES.get(named, named)
    family = FAMILIES.get(name)
    layout = _Layout(Config(text, item, family.defaults if family else {}), name, family or Family())
    assumed = []
    if family is None:
        assumed.append(
            f"the model type {named[:60]!r} is not known here: it was taken for a Llama with the sizes its config names"
        )
    if beside:
        assumed.append(TEXT_ONLY)
    return layout.build(tuple(assumed))


class _Layout(Tensors):
    """The whole model, from the embedding to the head."""

    def build(self, assumed: tuple[str, ...]) -> Architecture:
        kinds = self._kinds()
        shared_from = self._shared_from(kinds)
        self._matrix("model.embed_tokens", self.vocabulary, self.hidden)
        if self.family.positions:
            self.tensors["model.embed_positions.weight"] = (self.config.whole(*keys.CONTEXT), self.hidden)
        caches = []
        for layer, kind in enumerate(kinds):
            self.at = f"model.layers.{layer}."
            self._norms()
            caches.append(self._mixer(kind, shared=layer >= shared_from))
            self._feed_forward(layer, kind)
            self._extras()
        self.at = ""
        self._norm("model.norm")
        self._outside()
        if not self.config.flag("tie_word_embeddings", "tie_embedding", default=self.family.tied):
            self._matrix("lm_head", self.vocabulary, self.hidden)
            if self._flag(self.family.head_bias):
                self.tensors["lm_head.bias"] = (self.vocabulary,)
        return Architecture(
            family=self.name,
            layers=tuple(caches),
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            heads=self.heads,
            head=max(self.head, self._head_of(FULL)) if self.heads else 0,
            feed_forward=max(self.wide) if self._is_dense_anywhere(kinds) else self._shared_width(),
            experts=self.experts,
            experts_used=self.used,
            expert_width=self.expert_width,
            gated=self.family.gated,
            scan=self.scan,
            context=self.config.whole(*keys.CONTEXT, default=0, least=0, most=1 << 40),
            tensors=self.tensors,
            assumed=(*assumed, *self.assumed),
        )
