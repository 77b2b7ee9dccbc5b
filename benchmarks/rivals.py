"""What others minimize when they mix formats: a score for every matrix in every format, to be set beside the card's.

Each takes the card (for its model and importance), the candidates, a text and a number of its tokens, and gives a
table with the columns tensor, format, cost.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

CONTEXT = 256  # tokens of a sequence that gradients are taken of


def weight_error(card, candidates, text: str, tokens: int, device=None) -> pd.DataFrame:
    """Squared error weighted by importance, relative to the weights' own, times the matrix's weights.

    What llama.cpp's quantization to a target size adds up.
    """
    import workbench as wb

    errors = wb.errors(card.checkpoint, list(candidates), text, tokens=tokens).frame
    cost = errors.importance_error.fillna(errors.weight_error) * errors.rows * errors.cols
    return errors.assign(cost=cost)[["tensor", "format", "cost"]]


def delta_loss(card, candidates, text: str, tokens: int, device=None) -> pd.DataFrame:
    """AutoRound's DeltaLoss: sum over sequences of sum_ij |g_ij (W - Q)_ij|.

    g is the gradient of the text's own cross entropy, in a model that has every matrix in the format
    (auto_round 0.16, auto_scheme/delta_loss.py).
    """
    import workbench as wb
    from workbench.engines import build
    from workbench.engines.places import places
    from workbench.measure.sensitivity import sequences_of

    model = card.checkpoint
    ids = sequences_of(model, text, tokens, min(CONTEXT, tokens))
    before = build.model_of(model, dtype="float32", device=device)
    original = {name: place.part for name, place in places(before, model).items()}
    rows = []
    for candidate in candidates:
        plan = wb.plan_for(model, candidate)
        rounded = build.model_of(model, plan, dtype="float32", device=device, importance=card.importance)
        scores = _scores(rounded, places(rounded, model), original, ids)
        rows += [(name, candidate.name, score) for name, score in scores.items()]
    return pd.DataFrame(rows, columns=["tensor", "format", "cost"])


def _scores(model, where: dict, original: dict, ids: np.ndarray) -> dict[str, float]:
    import torch

    scores = dict.fromkeys(where, 0.0)
    with torch.enable_grad():
        for sequence in ids:
            row = torch.from_numpy(sequence)[None].to(model.device)
            model(input_ids=row, labels=row, use_cache=False).loss.backward()
            for name, place in where.items():
                change = place.parameter.grad[place.index] * (original[name] - place.part)
                scores[name] += float(change.abs().sum(dtype=torch.float64))
            model.zero_grad()
    return scores


RIVALS = {"weight error": weight_error, "DeltaLoss": delta_loss}
