"""The KL divergence between two models' predictions of the next token.

    KL(p‖q) = Σ_v p_v (log p_v − log q_v)   in nats,

p the reference's distribution over the whole vocabulary and q the candidate's: the expected
loss, per token, of predicting by q what p says (Kullback and Leibler 1951).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.exceptions import need

if TYPE_CHECKING:
    import torch

SLICE = 1 << 22  # logits handled at once: 16 MB of float32
FAR = 20.0  # nats: where logits differ by more, exp() might overflow, and the plain sum loses nothing


def kl(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """KL(reference‖candidate) of each position, in nats, a slice of positions at a time.

    Args:
        reference, candidate: logits [positions, vocabulary] of any float dtype, on one device. They
            need no normalization.

    Returns:
        [positions], float32 (float64 for float64 logits), with gradients where the logits have
        them; not a number where a row is. Equal rows give exactly 0; in float32 the error is
        about 1e-11 nats and a few millionths of the value.

    With d = (z_q − z_p) − E_p[z_q − z_p], E_p[d] is 0 and KL = log E_p[e^d]
    = log1p(E_p[e^d − 1 − d]), in which every term is ≥ 0, and the rounding of E_p[z_q − z_p]
    counts only in second order. (The plain sum of differences of large logarithms,
    in float32, gave a model −2e-4 nats against itself.)
    """
    torch = need("torch")
    parts = [_kl(reference[rows], candidate[rows]) for rows in slices(*reference.shape)]
    return torch.cat(parts) if parts else reference.new_zeros(0)


def slices(positions: int, vocabulary: int) -> Iterator[slice]:
    """Runs of positions with about `SLICE` logits."""
    step = max(1, SLICE // vocabulary)
    return (slice(first, min(positions, first + step)) for first in range(0, positions, step))


def _kl(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    torch = need("torch")
    wide = torch.promote_types(reference.dtype, torch.float32)
    z, d = reference.to(wide), candidate.to(wide) - reference.to(wide)
    p = z.softmax(-1)
    for _ in range(2):  # the first mean of large differences is itself rounded
        d = d - (p * d).sum(-1, keepdim=True)
    near = (p * (torch.expm1(d) - d)).sum(-1).log1p()
    far = ~(d.detach().abs().amax(-1) < FAR)  # or not a number, as where both give a token no chance at all
    return near.masked_scatter(far, _plain(reference[far], candidate[far]).to(wide)) if far.any() else near


def _plain(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """The sum itself in float64; a token that the reference gives no chance adds nothing."""
    torch = need("torch")
    double = (
        logits.double() if logits.device.type != "mps" else logits.cpu().double() for logits in (reference, candidate)
    )
    p, q = (logits.log_softmax(-1) for logits in double)
    terms = p.exp() * (p - q)
    return terms.masked_fill(p == -torch.inf, 0.0).sum(-1).to(reference.device, reference.dtype)
