"""Plans as pictures: which matrix gets which format, what the best mixes are, and whether the prediction held."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench import figures, formats

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# From few bits to many, dark to light: in this order colour-blind readers, and a grey print, keep them apart.
SCALE = "Plasma"
ENDS = (0.05, 0.93)  # of the scale: its first step is hardly a colour, its last one glares
MARKS = {
    # kind -> what it is called, its colour (Okabe and Ito's), its symbol
    "uniform": ("one format for all", "#D55E00", "square"),
    "rule": ("named rules", "#009E73", "diamond"),
    "plan": ("this plan", "#CC79A7", "star"),
}
LETTERED = 48  # layers up to which the cells of a heatmap are lettered too


def heatmap(table: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Layer x matrix, a colour for each format, in the order of their bits.

    Args:
        table: tensor, layer, role, format, nbytes and cost, as in `PricedPlan.table`. Several matrices of one cell
            (experts) show the format that most of them have.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    found = colours(table.format.unique())
    used = list(found)
    number = {name: place for place, name in enumerate(used)}
    steps = [[(place + side) / len(used), colour] for place, colour in enumerate(found.values()) for side in (0, 1)]
    roles = figures.roles_of(table)
    apart = list(table.loc[table.layer.isna(), "role"].unique())
    widths = [max(len(roles), 1), max(len(apart), 1) * 0.9]
    figure = make_subplots(1, 2, column_widths=widths, horizontal_spacing=0.06)
    lettered = table.layer.nunique() <= LETTERED
    for column, (rows, columns) in enumerate(((table[table.layer.notna()], roles), (table[table.layer.isna()], apart))):
        cells = _cells(rows)
        layers = sorted({layer for layer, _ in cells})
        figure.add_trace(
            go.Heatmap(
                z=[[number.get(cells.get((layer, role), ("", ""))[0]) for role in columns] for layer in layers],
                x=columns,
                y=[str(layer) if layer >= 0 else "apart" for layer in layers],
                text=[[cells.get((layer, role), ("", ""))[0] for role in columns] for layer in layers],
                texttemplate="%{text}" if lettered else None,
                textfont={"size": 9},
                customdata=[[cells.get((layer, role), ("", ""))[1] for role in columns] for layer in layers],
                hovertemplate="%{customdata}<extra></extra>",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
            ),
            1,
            column + 1,
        )
    figure.update_layout(
        title=html.escape(title),
        coloraxis={
            "colorscale": steps,
            "cmin": -0.5,
            "cmax": len(used) - 0.5,
            "colorbar": {"tickvals": list(number.values()), "ticktext": [f"{n}, {_bits(n)} bits" for n in used]},
        },
        height=max(360, 15 * int(table.layer.nunique()) + 150),
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        template="plotly_white",
    )
    figure.update_yaxes(title_text="layer", autorange="reversed", type="category", row=1, col=1)
    figure.update_yaxes(showticklabels=False, row=1, col=2)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """Format -> its colour, "rgb(r, g, b)", ascending in bits."""
    from plotly.colors import sample_colorscale

    ordered = sorted(names, key=lambda name: (formats.get(name).bits, name))
    step = (ENDS[1] - ENDS[0]) / max(len(ordered) - 1, 1)
    places = [ENDS[0] + place * step for place in range(len(ordered))]
    return dict(zip(ordered, sample_colorscale(SCALE, places), strict=True))


def _bits(name: str) -> str:
    return f"{formats.get(name).bits:g}"


def _cells(rows: pd.DataFrame) -> dict[tuple[int, str], tuple[str, str]]:
    """(layer, -1 for none; role) -> its format, and what the pointer says."""
    found = {}
    for (layer, role), group in rows.assign(layer=rows.layer.fillna(-1)).groupby(["layer", "role"], sort=False):
        counts = group.format.value_counts()
        which = ", ".join(f"{count} {name}" for name, count in counts.items()) if len(counts) > 1 else counts.index[0]
        said = f"<b>{html.escape(group.tensor.iloc[0])}</b>" + (
            f", one of {len(group)} matrices" if len(group) > 1 else ""
        )
        size = figures.size(group.nbytes.sum())
        found[int(layer), role] = (
            str(counts.index[0]),
            f"{said}<br>{which}, {size}<br>predicted cost {group.cost.sum():.3g} nats per token",
        )
    return found


def pareto(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Bits per weight against predicted KL: the front as a line, uniform formats, rules and the plan as marks.

    Args:
        frame: of `Front`.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    front = frame[(frame.kind == "front") & (frame.kl > 0)]
    figure.add_scatter(
        x=front.bits,
        y=front.kl,
        name="the best mixes",
        line={"color": figures.BEFORE, "width": 2},
        customdata=front.nbytes.map(figures.size),
        hovertemplate="%{x:.3f} bits per weight, %{customdata}<br>KL %{y:.3g}<extra>a best mix</extra>",
    )
    for kind, (label, colour, symbol) in MARKS.items():
        rows = frame[(frame.kind == kind) & (frame.kl > 0)]
        if rows.empty:
            continue
        figure.add_scatter(
            x=rows.bits,
            y=rows.kl,
            name=label,
            mode="markers" if kind == "plan" else "markers+text",
            text=[html.escape(name) for name in rows.name],
            textposition="top right",
            textfont={"size": 10},
            marker={"color": colour, "symbol": symbol, "size": 15 if kind == "plan" else 9},
            customdata=rows.nbytes.map(figures.size),
            hovertemplate="%{x:.3f} bits per weight, %{customdata}<br>KL %{y:.3g}<extra>%{text}</extra>",
        )
    figure.update_layout(
        title=html.escape(title),
        height=480,
        margin={"l": 70, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        template="plotly_white",
    )
    figure.update_xaxes(title_text="bits per weight, of the whole model")
    figure.update_yaxes(title_text="predicted KL, nats per token", type="log")
    return figure


def agreement(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Predicted against measured KL, with the band of each prediction and the line on which they agree.

    Args:
        frame: a row for each plan: name, bits, predicted, low, high, measured, error, as `Verified.frame` has them.
    """
    import plotly.graph_objects as go

    rows = frame[(frame.predicted > 0) & (frame.measured > 0)]
    figure = go.Figure()
    if len(rows):
        ends = [min(rows.predicted.min(), rows.measured.min()) / 2, 2 * max(rows.predicted.max(), rows.measured.max())]
        line = {"color": figures.CHANNEL, "dash": "dash"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, name="as predicted", hoverinfo="skip")
    figure.add_scatter(
        x=rows.predicted,
        y=rows.measured,
        mode="markers+text",
        name="plans",
        text=[html.escape(name) for name in rows.name],
        textposition="top center",
        textfont={"size": 10},
        marker={"color": figures.BEFORE, "size": 9},
        error_x={
            "array": (rows.high - rows.predicted).fillna(0),
            "arrayminus": (rows.predicted - rows.low).fillna(0),
            "color": figures.CHANNEL,
            "thickness": 1,
        },
        error_y={"array": rows.error, "thickness": 1},
        customdata=rows.bits,
        hovertemplate="%{text}, %{customdata:.2f} bits<br>predicted %{x:.3g}, measured %{y:.3g}<extra></extra>",
    )
    figure.update_layout(
        title=html.escape(title),
        height=460,
        margin={"l": 70, "r": 20, "t": 60, "b": 50},
        showlegend=False,
        template="plotly_white",
    )
    figure.update_xaxes(title_text="predicted KL, nats per token", type="log")
    figure.update_yaxes(title_text="measured KL, nats per token", type="log")
    return figure
