"""A sensitivity card as pictures: what each layer costs, and predictions held against measurements."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench import figures

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.measure.card import Curve, Measured

NATS = "KL divergence, nats per token"


def heatmap(prices: pd.DataFrame, formats: Sequence[str], *, title: str = "") -> go.Figure:
    """Layer x matrix, coloured by predicted cost in a format; a menu switches between the formats."""
    sized = prices.assign(bytes=prices.nbytes, bits_per_weight=8 * prices.nbytes / prices.params)
    return figures.heatmap(sized, "cost", formats, title=title)


def by_layer(prices: pd.DataFrame, formats: Sequence[str], *, title: str = "") -> go.Figure:
    """A line for each format: the summed cost of each layer's matrices, on a log scale."""
    import plotly.graph_objects as go

    inside = prices[prices.layer.notna()]
    figure = go.Figure()
    for name in formats:
        total = inside[inside.format == name].groupby("layer").cost.sum(min_count=1)
        figure.add_scatter(
            x=[int(layer) for layer in total.index],
            y=[float(cost) if cost > 0 else None for cost in total],
            name=html.escape(name),
            mode="lines+markers",
            hovertemplate="layer %{x}: %{y:.3g} nats per token<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(title=html.escape(title or "Predicted cost by layer"), template="plotly_white", height=400)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="predicted cost, nats per token", type="log", exponentformat="power")
    return figure


def measured(found: Sequence[Measured], curve: Curve, *, title: str = "") -> go.Figure:
    """Predicted against measured: single matrices and whole plans as points, and the curve through the plans."""
    import numpy as np
    import plotly.graph_objects as go

    figure = go.Figure()
    kinds = {
        "single matrices": ([each for each in found if each.tensor], figures.BEFORE),
        "whole plans": ([each for each in found if not each.tensor], figures.AFTER),
    }
    for name, (points, colour) in kinds.items():
        figure.add_scatter(
            x=[each.predicted for each in points],
            y=[each.kl for each in points],
            text=[html.escape(each.tensor) for each in points],
            name=name,
            mode="markers",
            marker={"color": colour, "size": 8},
            hovertemplate="%{text}<br>predicted %{x:.3g}, measured %{y:.3g} nats<extra></extra>",
        )
    reach = [each.predicted for each in found if each.predicted > 0]
    if reach:
        x = np.geomspace(min(reach), max(reach), 30)
        figure.add_scatter(x=x, y=x, name="equal", mode="lines", line={"color": figures.CHANNEL, "dash": "dot"})
        figure.add_scatter(x=x, y=[curve.kl(s) for s in x], name=str(curve), mode="lines", line_color=figures.AFTER)
    figure.update_layout(title=html.escape(title or "Predicted against measured"), template="plotly_white", height=460)
    figure.update_xaxes(title_text="predicted: sum of costs, nats per token", type="log", exponentformat="power")
    figure.update_yaxes(title_text=f"measured {NATS}", type="log", exponentformat="power")
    return figure
