"""Experts that no token of a text was sent to: priced as the least used one of their kind in their layer.

Nothing was measured of them, and a price of nothing would make every plan ruin them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from workbench.checkpoint import TensorInfo
from workbench.checkpoint.names import starred
from workbench.measure.card import MatrixCard


def filled(
    cards: Mapping[str, MatrixCard], importance: Mapping[str, np.ndarray], tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, MatrixCard], dict[str, np.ndarray]]:
    """Cards and importance with those of unseen experts filled in, whether experts are tensors or parts of one."""
    made, fed = {name: _stack(one) for name, one in cards.items()}, dict(importance)
    kinds: dict[tuple[int | None, str], list[str]] = {}
    for name in made:
        if starred(name) != name and ".experts." in name:
            kinds.setdefault((tensors[name].layer, starred(name)), []).append(name)
    for names in kinds.values():
        seen = [name for name in names if made[name].total > 0]
        if not seen:
            continue
        least = min(seen, key=lambda name: made[name].total)
        for name in set(names) - set(seen):
            made[name] = made[least]
            if least in fed:
                fed[name] = fed[least]
    return made, fed


def _stack(card: MatrixCard) -> MatrixCard:
    """A stack [experts, ...] with its unseen experts filled in."""
    if card.rows.ndim == 1:
        return card
    totals = card.rows.sum(-1)
    if not (totals > 0).any() or (totals > 0).all():
        return card
    least = int(np.where(totals > 0, totals, np.inf).argmin())
    unseen = (totals <= 0)[:, None]
    return replace(
        card, rows=np.where(unseen, card.rows[least], card.rows), cols=np.where(unseen, card.cols[least], card.cols)
    )
