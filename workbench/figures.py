"""Results to pictures: pure functions from tidy frames to plotly figures.

One look throughout: a log colour scale that colour-blind readers can follow (viridis for
magnitudes, a blue-orange scale for ratios), units on every axis, and every string that
came from a model file escaped before it reaches a figure.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.exceptions import WorkbenchError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go

METRICS: dict[str, str] = {
    "weight_error": "relative squared weight error",
    "importance_error": "importance-weighted relative squared error",
    "output_error": "relative squared output error",
    "cost": "predicted cost, nats per token",
    "bits_per_weight": "bits per weight",
    "bytes": "bytes",
}
SCALE = "Viridis"
BEFORE, AFTER, CHANNEL, MARK = "#0072B2", "#D55E00", "#56606b", "#CC79A7"  # Okabe and Ito's palette, and a grey
RATIO_SCALE = [[0.0, "#2166ac"], [0.5, "#f7f7f7"], [1.0, "#e08214"]]

DECADES = 5  # that a colour scale spans at most: one matrix that came through whole must not pale the others
DOUBLINGS = 10  # that a ratio scale reaches to each side at most
LEAST_KL = 1e-7  # nats: below it float32 itself is heard
EXACT = -99.0  # stands for log10(0): the lowest colour, since a cell without one would look unmeasured
APART = ("embed_tokens", "lm_head")


def roles_of(frame: pd.DataFrame) -> list[str]:
    """The matrix kinds of a model's layers, in the order that data meets them, which is the table's."""
    return list(frame.loc[frame.layer.notna(), "role"].unique())


def size(nbytes: float) -> str:
    """Bytes as a reader wants them: 98.4 MB (decimal units, as file managers and the hub count)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:.3g} {unit}" if abs(nbytes) < 999.5 * scale else f"{nbytes / scale:,.0f} {unit}"
    return f"{nbytes:.0f} B"


def heatmap(frame: pd.DataFrame, metric: str, formats: Sequence[str], *, title: str = "") -> go.Figure:
    """Layer x matrix, one panel of cells for each format, all on one log colour scale.

    Args:
        frame: the tidy table of `wb.errors` (a row for each matrix and format).
        metric: one of `METRICS`.
        formats: one format, or several to switch between (a menu) on the same scale.

    The embedding and the head stand apart on the right, since one of them holds as many
    weights as dozens of layer matrices.
    """
    from plotly.subplots import make_subplots

    _check_metric(frame, metric)
    apart = [role for role in APART if (frame.role == role).any()]
    roles = roles_of(frame)
    widths = [max(len(roles), 1), max(len(apart), 1) * 0.9]
    figure = make_subplots(1, 2, column_widths=widths, horizontal_spacing=0.06)
    for number, name in enumerate(formats):
        rows = frame[frame.format == name]
        shown = number == 0
        figure.add_trace(_cells(rows[rows.layer.notna()], roles, metric, shown), 1, 1)
        figure.add_trace(_cells(rows[rows.layer.isna()], apart, metric, shown), 1, 2)
    figure.update_layout(
        title=html.escape(title or f"{METRICS[metric].capitalize()}, {formats[0]}"),
        coloraxis=log_axis(frame.loc[frame.format.isin(list(formats)), metric], metric),
        height=max(360, 15 * int(frame.layer.nunique()) + 150),
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        template="plotly_white",
    )
    figure.update_yaxes(title_text="layer", autorange="reversed", row=1, col=1)
    figure.update_yaxes(showticklabels=False, row=1, col=2)
    if len(formats) > 1:
        figure.update_layout(updatemenus=[_format_menu(formats, metric, title)])
    return figure


def compare(frame: pd.DataFrame, metric: str, first: str, second: str) -> go.Figure:
    """Two formats in one picture: each on the same log scale, and the ratio between them.

    The ratio panel shows second / first by doublings: orange where the second is worse,
    blue where it is better, white where they are equal.
    """
    import numpy as np
    from plotly.subplots import make_subplots

    _check_metric(frame, metric)
    roles = roles_of(frame) + [role for role in APART if (frame.role == role).any()]
    figure = make_subplots(
        1,
        3,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=tuple(html.escape(title) for title in (first, second, f"{second} against {first}")),
    )
    grids = {name: _grid(frame[frame.format == name], roles, metric) for name in (first, second)}
    for column, name in enumerate((first, second), start=1):
        figure.add_trace(_cells(frame[frame.format == name], roles, metric, True), 1, column)
    a, b = (grids[name].to_numpy(dtype=float) for name in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(b / a)
    ratio = np.where(a == b, 0.0, np.clip(ratio, -DOUBLINGS, DOUBLINGS))
    reach = max(1.0, float(np.nanmax(np.abs(ratio))))
    layers = [_layer_label(layer) for layer in grids[first].index]
    cells: dict[str, object] = {
        "z": _blank(ratio),
        "x": roles,
        "y": layers,
        "coloraxis": "coloraxis2",
        "hovertemplate": "%{x}, layer %{y}<br>ratio 2^%{z:.2f}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }
    figure.add_heatmap(**cells, row=1, col=3)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_layout(
        title=METRICS[metric].capitalize(),
        coloraxis=log_axis(frame.loc[frame.format.isin([first, second]), metric], metric),
        coloraxis2=ratio_axis(reach),
        height=max(360, 15 * len(layers) + 150),
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
        template="plotly_white",
    )
    figure.layout.coloraxis.colorbar.title = None  # the figure's own title says it
    return figure


def matrix(
    *,
    title: str,
    edges: np.ndarray,
    original: np.ndarray,
    stored: np.ndarray,
    channel_error: np.ndarray,
    outliers: Sequence[int],
    stacked: bool = False,
) -> go.Figure:
    """One matrix opened: how its weights are spread before and after, and which input channels lose most.

    Args:
        edges: [bins + 1] histogram edges, in units of the weights.
        original, stored: [bins] counts of weights before and after quantization.
        channel_error: [in] squared error of each input channel over that of the mean channel.
        outliers: the input channels to mark, worst first.
        stacked: one plot below the other, for a narrow place.
    """
    from plotly.subplots import make_subplots

    shape, (row, col) = ((2, 1), (2, 1)) if stacked else ((1, 2), (1, 2))
    titles = ("weights", "error by input channel")
    figure = make_subplots(*shape, horizontal_spacing=0.1, vertical_spacing=0.24, subplot_titles=titles)
    middles = (edges[1:] + edges[:-1]) / 2
    figure.add_scatter(x=middles, y=original, name="original", line={"shape": "hvh", "color": BEFORE}, row=1, col=1)
    figure.add_scatter(x=middles, y=stored, name="as stored", line={"shape": "hvh", "color": AFTER}, row=1, col=1)
    channels = list(range(len(channel_error)))
    dots = {"size": 3, "color": CHANNEL}
    figure.add_scatter(x=channels, y=channel_error, name="each channel", mode="markers", marker=dots, row=row, col=col)
    marked = list(outliers)
    figure.add_scatter(
        x=marked,
        y=channel_error[marked],
        name="outlier channels",
        mode="markers",
        marker={"symbol": "circle-open", "size": 11, "color": MARK, "line_width": 2},
        row=row,
        col=col,
    )
    figure.update_xaxes(title_text="weight", row=1, col=1)
    figure.update_yaxes(title_text="number of weights", type="log", row=1, col=1)
    figure.update_xaxes(title_text="input channel", row=row, col=col)
    figure.update_yaxes(title_text="squared error / mean channel's", type="log", row=row, col=col)
    figure.update_layout(
        title=html.escape(title),
        height=560 if stacked else 380,
        template="plotly_white",
        legend={"orientation": "h", "y": -0.12 if stacked else -0.2},
    )
    return figure


def divergence(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """How the KL divergence and the change of chance are spread over the tokens of a text.

    Args:
        frame: a row for each token, with its kl in nats and its delta_p, from −1 to 1.

    On the left, tokens by KL on a log scale (tokens with less than `LEAST_KL` stand at its low end), with the
    median, the mean, and what 1 % of tokens exceed. On the right, tokens by Δp, with a log count, since a
    few tokens far out matter and nearly all lie about 0.
    """
    import numpy as np
    from plotly.subplots import make_subplots

    kl, delta = frame.kl.to_numpy(dtype=float), 100 * frame.delta_p.to_numpy(dtype=float)
    figure = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("KL divergence", "chance of the next token"))
    reach = max(1.0, float(np.abs(delta).max()))
    for column, (values, edges, colour) in enumerate(
        (
            (np.log10(np.clip(kl, LEAST_KL, None)), np.linspace(math.log10(LEAST_KL), 1.5, 61), BEFORE),
            (delta, np.linspace(-reach, reach, 61), AFTER),
        ),
        start=1,
    ):
        counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        middles = (edges[1:] + edges[:-1]) / 2
        shown = 10**middles if column == 1 else middles
        figure.add_scatter(
            x=shown, y=counts.astype(float), line={"shape": "hvh", "color": colour}, fill="tozeroy", row=1, col=column
        )
    marks = {"median": np.median(kl), "mean": kl.mean(), "1 % exceed": np.percentile(kl, 99)}
    for (name, value), height in zip(marks.items(), (1.0, 0.9, 0.8), strict=True):
        figure.add_vline(x=max(value, LEAST_KL), line={"color": MARK, "dash": "dot"}, row=1, col=1)
        figure.add_annotation(
            x=math.log10(max(value, LEAST_KL)),
            y=height,
            yref="y domain",
            xanchor="left",
            showarrow=False,
            text=f"{name} {value:.2g}",
            bgcolor="rgba(255, 255, 255, 0.7)",
            row=1,
            col=1,
        )
    figure.update_xaxes(title_text="nats", type="log", dtick=1, exponentformat="power", row=1, col=1)
    figure.update_yaxes(title_text="tokens", row=1, col=1)
    figure.update_xaxes(title_text="Δp, percentage points", row=1, col=2)
    figure.update_yaxes(title_text="tokens", type="log", row=1, col=2)
    figure.update_layout(
        title=html.escape(title),
        height=380,
        template="plotly_white",
        showlegend=False,
        margin={"l": 60, "r": 20, "t": 80, "b": 50},
    )
    return figure


def _check_metric(frame: pd.DataFrame, metric: str) -> None:
    measured = [name for name in METRICS if name in frame and frame[name].notna().any()]
    if metric not in measured:
        reason = "needs a calibration text" if metric in METRICS else "is not a metric"
        raise WorkbenchError(metric, reason, allowed=", ".join(measured), do="wb.errors(model, formats, text=...)")


def _grid(rows: pd.DataFrame, roles: Sequence[str], metric: str) -> pd.DataFrame:
    """Layers x roles; where a layer has several matrices of a role (experts), their mean by weights; costs add up."""
    weighed = rows.assign(params=rows.rows * rows.cols, layer=rows.layer.astype(object).where(rows.layer.notna(), -1))
    weighed = weighed.assign(product=weighed[metric].astype(float) * weighed.params)
    total = weighed.groupby(["layer", "role"], sort=True)[["product", "params", metric]].sum(min_count=1)
    values = total["cost"] if metric == "cost" else total["product"] / total.params
    grid = values.unstack("role").reindex(columns=list(roles))
    return grid.sort_index()


def _cells(rows: pd.DataFrame, roles: Sequence[str], metric: str, visible: bool) -> go.Heatmap:
    import numpy as np
    import plotly.graph_objects as go

    if rows.empty:
        return go.Heatmap(z=[], x=list(roles), coloraxis="coloraxis", visible=visible)
    grid = _grid(rows, roles, metric)
    values = grid.to_numpy(dtype=float)
    with np.errstate(divide="ignore"):
        z = np.where(values == 0, EXACT, np.log10(values))
    hover = _hover(rows, metric)
    text = [[hover.get((layer, role), "") for role in roles] for layer in grid.index]
    return go.Heatmap(
        z=_blank(z),
        x=list(roles),
        y=[_layer_label(layer) for layer in grid.index],
        text=text,
        hovertemplate="%{text}<extra></extra>",
        coloraxis="coloraxis",
        visible=visible,
        xgap=1,
        ygap=1,
    )


def _hover(rows: pd.DataFrame, metric: str) -> dict[tuple[int, str], str]:
    """What the pointer says of each cell: tensor, format (and what it fell back to), bytes, error."""
    said: dict[tuple[int, str], str] = {}
    for row in rows.itertuples():
        where = (-1 if missing(row.layer) else int(row.layer), row.role)
        if where in said:
            said[where] = said[where].split("<br>…")[0] + "<br>… and others of this kind in the layer"
            continue
        used = row.used if row.used == row.format else f"{row.used} (instead of {row.format}: the shape does not fit)"
        used = getattr(row, "scheme", used)  # of a checkpoint, whose matrices may each have their own
        value = getattr(row, metric)
        lines = [
            f"<b>{html.escape(row.tensor)}</b>",
            f"{row.rows} x {row.cols}, {html.escape(used)}",
            f"{size(row.bytes)}, {row.bits_per_weight:.4g} bits per weight",
            f"{METRICS[metric]}: {value:.3g}" if not missing(value) else "not measured for this tensor",
        ]
        said[where] = "<br>".join(lines)
    return said


def log_axis(values: pd.Series, metric: str) -> dict[str, object]:
    """A colour axis from the smallest to the largest value above zero, labelled with the values themselves."""
    positive = values[values > 0].astype(float)
    low, high = (math.log10(positive.min()), math.log10(positive.max())) if len(positive) else (-1.0, 0.0)
    low = max(low, high - DECADES)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    # Whole decades where there are enough of them; else a few steps of the 1-2-5 series.
    decades = [float(exponent) for exponent in range(math.ceil(low), math.floor(high) + 1)]
    steps = (
        [math.log10(m) + e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        if len(decades) < 3
        else decades
    )
    ticks = [tick for tick in steps if low - 1e-9 <= tick <= high + 1e-9] or [low, high]
    labels = [size(10**tick) if metric == "bytes" else f"{10**tick:.2g}" for tick in ticks]
    return {
        "colorscale": SCALE,
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": {"text": METRICS[metric], "side": "right"}, "tickvals": ticks, "ticktext": labels},
    }


def ratio_axis(reach: float) -> dict[str, object]:
    """A colour axis around "equal", in doublings, that reaches equally far to both sides."""
    step = max(1, math.ceil(reach / 4))
    ticks = list(range(-step * int(reach // step), int(reach) + 1, step))
    labels = ["equal" if tick == 0 else f"{2**tick:g}x" if tick > 0 else f"1/{2**-tick:g}" for tick in ticks]
    colorbar = {"tickvals": ticks, "ticktext": labels, "x": 1.12}
    return {"colorscale": RATIO_SCALE, "cmin": -reach, "cmax": reach, "colorbar": colorbar}


def _format_menu(formats: Sequence[str], metric: str, title: str) -> dict[str, object]:
    buttons = [
        {
            "label": html.escape(name),
            "method": "update",
            "args": [
                {"visible": [chosen == name for chosen in formats for _ in range(2)]},
                {"title.text": html.escape(title or f"{METRICS[metric].capitalize()}, {name}")},
            ],
        }
        for name in formats
    ]
    return {"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.0, "yanchor": "bottom", "pad": {"b": 12}}


def _blank(values: np.ndarray) -> list[list[float | None]]:
    """Nested lists with None for what is not a number: plotly draws NaN badly, and -inf not at all."""
    return [[float(v) if math.isfinite(v) else None for v in row] for row in values]


def _layer_label(layer: object) -> str:
    return "apart" if layer == -1 else str(layer)


def missing(value: object) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
