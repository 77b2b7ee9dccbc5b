"""A sensitivity card: what every matrix of one model costs in KL divergence per unit of error, in one small file.

The cost of storing W as Q in one matrix, in nats per token, is predicted as

    q = 1/2 sum_ij r_i c_j (W - Q)_ij^2 / sum(r)        k = m q / (1 + q)

with r and c the row and column sums of the matrix's Fisher information (`measure.fisher`),
and m the ratio of measured to predicted KL where it was measured, else 1. For small errors k is the quadratic
form q; a large error in a single matrix does less than that. For S, the sum of k over a plan, the KL of the whole is
a S (1 + S)^b: the curve, fitted on measured plans. Small errors add up, which a quadratic form of independent
errors must give; large ones do more than that together.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from workbench import files
from workbench.checkpoint import Checkpoint, safetensors, values
from workbench.checkpoint.tensors import TensorInfo, malformed
from workbench.exceptions import WorkbenchError
from workbench.formats.rows import cores

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.formats import Format
    from workbench.measure.prices import Prices
    from workbench.progress import Steps

VERSION = "3"


class Curve(NamedTuple):
    """KL = a S (1 + S)^b, in nats per token; `spread` is the standard deviation of ln KL around it."""

    a: float = 1.0
    b: float = 0.0
    spread: float = math.nan

    def kl(self, cost: float) -> float:
        """The KL divergence predicted for a plan whose costs add up to `cost`."""
        return self.a * cost * (1 + cost) ** self.b

    def __str__(self) -> str:
        return f"KL = {self.a:.3g} S (1 + S)^{self.b:.2g}"


class Measured(NamedTuple):
    """A prediction held against a measurement, both in nats per token: of rounding one tensor, or ("") a whole plan."""

    tensor: str
    predicted: float
    kl: float


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class MatrixCard:
    """One matrix [out, in], or a stack of experts [experts, out, in].

    Attributes:
        rows: row sums of its Fisher information per token, float32 [out] or [experts, out].
        cols: column sums, float32 [in] or [experts, in].
        ratio: measured over predicted KL; 1 where it was not measured.
    """

    rows: np.ndarray
    cols: np.ndarray
    ratio: float = 1.0

    @property
    def total(self) -> float:
        """The sum of the Fisher information over all weights."""
        return float(self.rows.sum(dtype=np.float64))

    def measured(self, found: Iterable[Measured], tensor: str) -> MatrixCard:
        """The card corrected by the measurement of `tensor` among those found, if there is one."""
        ratios = [each.kl / each.predicted for each in found if each.tensor == tensor and each.predicted > 0]
        return replace(self, ratio=ratios[-1]) if ratios else self

    @cached_property
    def row_weights(self) -> np.ndarray:
        """r_i / (2 sum r), [.., out]: with `cols`, what weighs each squared error. Zero where no token came by."""
        total = self.rows.sum(-1, keepdims=True, dtype=np.float64)
        shares = np.divide(self.rows, total, out=np.zeros(self.rows.shape), where=total > 0)
        return (0.5 * shares).astype(np.float32)

    def cost(self, error: np.ndarray) -> float:
        """Nats per token that an error W - Q, [.., out, in], is predicted to cost."""
        squares = np.square(error, dtype=np.float32)
        form = np.einsum("...o,...oi,...i->...", self.row_weights, squares, self.cols)
        return self.nats(float(form.sum(dtype=np.float64)))

    def nats(self, form: float) -> float:
        """m q / (1 + q) of the quadratic form q of an error, summed over the experts of a stack, which share it."""
        return self.ratio * form / (1 + form / prod(self.rows.shape[:-1]))


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Card:
    """What `wb.sensitivity` measured of one model.

    Attributes:
        checkpoint: the opened model it is for; not in the file.
        matrices: tensor name -> its part of the card.
        importance: tensor name -> mean square of each input, float32 [in] (or [experts, in]), for the formats that
            use it; an embedding that is no head has none.
        curve: from the sum of a plan's costs to its KL divergence.
        measured: what ratios and curve rest on.
        provenance: what it was measured on: model and text hash, tokens, context, seed, versions, dtype, device,
            and what it cost in forward passes over the text.
    """

    checkpoint: Checkpoint = field(repr=False)
    matrices: dict[str, MatrixCard]
    importance: dict[str, np.ndarray]
    curve: Curve
    measured: tuple[Measured, ...]
    provenance: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.checkpoint.name

    @property
    def fingerprint(self) -> str:
        """The checkpoint's fingerprint, which plans made from this card carry."""
        return self.checkpoint.fingerprint

    def prices(self, formats: str | Format | Iterable[str | Format], *, threads: int | None = None) -> Prices:
        """Exact bytes and predicted cost of every matrix in every format; see `measure.prices`."""
        from workbench.measure.prices import prices

        return prices(self, formats, threads=threads)

    def prices_steps(
        self, formats: str | Format | Iterable[str | Format], *, threads: int | None = None
    ) -> Steps[Prices]:
        """`prices` as steps; each finished matrix stays in the cache."""
        from workbench.measure.prices import prices_steps

        return prices_steps(self, formats, threads=threads)

    def figure(self) -> go.Figure:
        """What was predicted against what was measured, and the curve through the plans."""
        from workbench.measure import figure

        return figure.measured(self.measured, self.curve)

    # --- the file -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the card as one safetensors file, whole or not at all; returns its path.

        A matrix is one array: its row sums, column sums and importance one after the other.
        """
        from safetensors.numpy import save_file

        head = {
            "curve": list(self.curve),
            "measured": [list(each) for each in self.measured],
            "provenance": dict(self.provenance),
        }
        arrays = {}
        for name, each in self.matrices.items():
            parts = [each.rows, each.cols, *([self.importance[name]] if name in self.importance else [])]
            arrays[name] = np.concatenate(parts, axis=-1).astype(np.float32)
        with files.whole(Path(path)) as temporary:
            save_file(arrays, temporary, metadata={"workbench.card": VERSION, "head": json.dumps(head)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: Checkpoint | str | Path) -> Card:
        """The card in a file, for the model it was measured on.

        Raises:
            WorkbenchError: the file is damaged or no card, or it is of another model or revision.
        """
        from workbench import checkpoint as checkpoints

        path = Path(path)
        opened = model if isinstance(model, Checkpoint) else checkpoints.load(model)
        header = safetensors.read_header(path)
        if header.metadata.get("workbench.card") != VERSION:
            raise WorkbenchError(path, "it is not a sensitivity card of this version", do="card.save(path) writes one")
        head = _head(path, header.metadata.get("head", ""))
        if head["provenance"].get("model_hash") != model_hash(opened):
            raise WorkbenchError(
                path,
                f"it was measured on another model than {opened.name}, or another revision of it: "
                f"{str(head['provenance'].get('model'))[:100]!r}",
                do="open that model, or measure this one: wb.sensitivity(model, text)",
            )
        stored = {info.name: info for info in header.tensors}
        if set(stored) - {info.name for info in opened.matrices}:
            raise malformed(path, "it speaks of tensors that are no matrices of the model")
        matrices: dict[str, MatrixCard] = {}
        importance: dict[str, np.ndarray] = {}
        for of in opened.matrices:
            if of.name in stored:
                one, own = _matrix(path, stored[of.name], of)
                matrices[of.name] = one.measured(head["measured"], of.name)
                if own is not None:
                    importance[of.name] = own
        return cls(opened, matrices, importance, **head)

    # --- shown ----------------------------------------------------------------------------------

    def __repr__(self) -> str:
        said = self.provenance
        return (
            f"<Card of {self.model}: {len(self.matrices)} matrices, {said.get('tokens', 0):,} tokens, "
            f"{sum(bool(each.tensor) for each in self.measured)} measured exactly, "
            f"{said.get('forwards', math.nan):.1f} forward passes; {self.curve}>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def model_hash(checkpoint: Checkpoint) -> str:
    """A name for the values of the model's matrices, the same on every machine; reads each once."""
    matrices = checkpoint.matrices
    with ThreadPoolExecutor(min(8, cores())) as pool:  # a hash takes longer than a disk, and releases the interpreter
        digests = pool.map(checkpoint.digest, [info.name for info in matrices])
        return files.digest([[info.name, info.shape, found] for info, found in zip(matrices, digests, strict=True)])


def _head(path: Path, text: str) -> dict[str, Any]:
    """The card's JSON: {"curve": [a, b, spread], "measured": [[tensor, predicted, kl], ...], "provenance": {...}}."""
    try:
        head = json.loads(text)
        curve = Curve(*(float(value) for value in head["curve"]))
        measured = tuple(Measured(str(name), float(predicted), float(kl)) for name, predicted, kl in head["measured"])
        provenance = dict(head["provenance"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise malformed(path, f"what it says of itself cannot be read ({reason!s:.100})") from reason
    numbers = [curve.a, curve.b, *(number for each in measured for number in each[1:])]
    bad = [number for number in numbers if not (math.isfinite(number) and number >= 0)]
    if bad:
        raise malformed(path, f"it has the figure {bad[0]}", allowed="finite figures, not below 0")
    return {"curve": curve, "measured": measured, "provenance": provenance}


def _matrix(path: Path, info: TensorInfo, of: TensorInfo) -> tuple[MatrixCard, np.ndarray | None]:
    """One entry of the file: a matrix's card and its importance."""
    *experts, out, inputs = of.shape
    shapes = [(*experts, out + inputs), (*experts, out + 2 * inputs)]
    if info.shape not in shapes or info.encoding != "F32":
        raise malformed(path, f"its entry for {info.name!r} is {info.encoding} {info.shape}", allowed=f"F32 {shapes}")
    array = values.read(info)
    if not np.isfinite(array).all() or array.min() < 0:
        raise malformed(path, f"its entry for {info.name!r} has values below 0 or not finite")
    rows, cols, importance = np.split(array, [out, out + inputs], axis=-1)
    return MatrixCard(rows, cols), importance if importance.size else None
