"""Whole numbers of a few bits each, out of the words that hold them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # E2M1


def stream(words: NDArray, bits: int, count: int) -> Codes:
    """The first `count` codes of a little-endian stream of bits, in which a code may straddle two words.

    Args:
        words: [.., words] of 32 bits, of either sign.
        bits: of a code, 1 to 8.

    Returns:
        [.., count], 0 to 2^bits - 1.
    """
    wide = words.view(np.uint32)
    at = np.arange(count) * bits
    low, shift = at // 32, (at % 32).astype(np.uint32)
    found = wide[..., low] >> shift
    over = np.flatnonzero(shift + bits > 32)  # their upper bits lie in the next word
    if len(over):
        found[..., over] |= wide[..., low[over] + 1] << (np.uint32(32) - shift[over])
    return (found & np.uint32((1 << bits) - 1)).astype(np.int32)


def nibbles(raw: NDArray[np.uint8], *, high_first: bool = False) -> Codes:
    """Two codes of 4 bits for each byte: [.., bytes] -> [.., 2 * bytes], the low half first unless told otherwise."""
    halves = (raw >> 4, raw & 15) if high_first else (raw & 15, raw >> 4)
    return np.stack(halves, -1).reshape(*raw.shape[:-1], 2 * raw.shape[-1]).astype(np.int32)
