"""A benchmark as pictures: differences with their intervals, and scores against size and divergence."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from workbench.figures import AFTER, BEFORE, CHANNEL
from workbench.tasks.shown import points, share

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.tasks.result import Benchmark

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, for tasks
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
AXES = {
    "bytes": "size of the weights, MB",
    "kl": "KL divergence on the reference's replies, nats per token",
}


def differences(found: Benchmark) -> go.Figure:
    """Every candidate's difference to the reference, with its interval of 95 %: a panel for each task.

    Coloured where the data support that it is better (blue) or worse (orange), grey where they do not.
    """
    from plotly.subplots import make_subplots

    names = [html.escape(each.name) for each in found.entries[1:]]
    titles = [html.escape(f"{task.name}, {len(task)} examples") for task in found.tasks]
    figure = make_subplots(
        len(found.tasks), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.3 / max(len(found.tasks), 1)
    )
    for row, task in enumerate(found.tasks, start=1):
        pairs = [found.pairs[task.name, each.name] for each in found.entries[1:]]
        for kind, colour in (("better", BEFORE), ("worse", AFTER), ("", CHANNEL)):
            some = [
                (name, pair)
                for name, pair in zip(names, pairs, strict=True)
                if (pair.verdict if pair.settled else "") == kind
            ]
            figure.add_scatter(
                x=[_known(100 * pair.difference.value) for _, pair in some],
                y=[name for name, _ in some],
                mode="markers",
                marker={"size": 11, "color": colour},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [_known(100 * (pair.difference.high - pair.difference.value)) for _, pair in some],
                    "arrayminus": [_known(100 * (pair.difference.value - pair.difference.low)) for _, pair in some],
                    "thickness": 2,
                    "color": colour,
                },
                text=[
                    f"{points(pair.difference)} points<br>won {pair.wins}, lost {pair.losses}, p {pair.holm:.2g}"
                    f"<br>{pair.verdict}"
                    for _, pair in some
                ],
                hovertemplate="%{y}<br>%{text}<extra></extra>",
                row=row,
                col=1,
            )
        figure.add_vline(x=0, line={"color": CHANNEL, "width": 1}, row=row, col=1)
        figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], row=row, col=1)
    figure.update_xaxes(title_text="difference to the reference, percentage points", row=len(found.tasks), col=1)
    return _laid_out(
        figure, f"Against {found.reference.name}", height=120 + len(found.tasks) * (50 + 34 * len(names)), legend=False
    )


def scores(found: Benchmark, against: str) -> go.Figure:
    """Every candidate's score, with its interval of 95 %, against the bytes of its weights or its divergence.

    Args:
        against: "bytes", or "kl" (the reference, which has none, is the dashed line).
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for place, task in enumerate(found.tasks):
        colour, symbol = PALETTE[place % len(PALETTE)], SYMBOLS[place % len(SYMBOLS)]
        shown = []
        for each in found.entries:
            kl, score = found.kl(place, each), found.accuracies[task.name, each.name]
            at = (each.nbytes / 1e6 if each.nbytes else None) if against == "bytes" else kl.value if kl else None
            if at is not None and (against == "bytes" or at > 0) and not math.isnan(score.value):
                shown.append((at, each.name, score))
        if against == "kl" and not math.isnan(whole := found.accuracies[task.name, found.reference.name].value):
            figure.add_hline(y=100 * whole, line={"color": colour, "width": 1, "dash": "dash"})
        shown.sort(key=lambda one: one[0])
        figure.add_scatter(
            x=[at for at, _, _ in shown],
            y=[100 * score.value for _, _, score in shown],
            name=html.escape(task.name),
            mode="markers+text",
            marker={"size": 11, "color": colour, "symbol": symbol},
            text=[html.escape(name) if place == 0 else "" for _, name, _ in shown],
            textposition="top right",
            cliponaxis=False,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_known(100 * (score.high - score.value)) for _, _, score in shown],
                "arrayminus": [_known(100 * (score.value - score.low)) for _, _, score in shown],
                "thickness": 1,
                "color": colour,
            },
            customdata=[f"{html.escape(name)}: {share(score)}" for _, name, score in shown],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_xaxes(title_text=AXES[against], **({"type": "log", "dtick": 1} if against == "kl" else {}))
    figure.update_yaxes(title_text="score, %", range=[-3, 103])
    title = "Score against size" if against == "bytes" else "Score against divergence"
    return _laid_out(figure, title, height=420, legend=len(found.tasks) > 1)


def _laid_out(figure: go.Figure, title: str, *, height: int, legend: bool) -> go.Figure:
    figure.update_layout(
        title=html.escape(title),
        template="plotly_white",
        height=height,
        showlegend=legend,
        legend={"orientation": "h", "y": -0.2},
        margin={"l": 60, "r": 60, "t": 80, "b": 60},
    )
    return figure


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
