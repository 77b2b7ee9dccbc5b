"""A `Memory` as bars: what each part takes, against what devices have."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.fit.answer import Memory
    from workbench.fit.devices import Device

# Okabe and Ito's colours, which colour-blind readers can tell apart: weights in blues and greens, the rest warm.
COLOURS = {
    **{"embedding": "#0072B2", "attention": "#56B4E9", "state space": "#7FCDBB", "mlp": "#009E73"},
    **{"experts": "#66A61E", "norms": "#999999", "head": "#004C7F", "other": "#BBBBBB"},
    **{"kv cache": "#E69F00", "states": "#F0C75E", "compute": "#D55E00", "overhead": "#CC79A7"},
}
_CYCLE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"]
GB = 1e9


def bars(memory: Memory, devices: Sequence[Device]) -> go.Figure:
    """One stacked bar a device, of what the model takes there, with a mark at what the device has.

    The axis is in GB (10^9 bytes); a device on which it does not fit says so beside its bar.
    """
    import plotly.graph_objects as go

    here = [memory.at(device=device) for device in devices] or [memory]
    labels = [html.escape(device.name) for device in devices] or [html.escape(memory.model)]
    figure = go.Figure()
    parts = [part for part in COLOURS if any(one.parts.get(part) for one in here)]
    for part in parts:
        sizes = [one.parts.get(part, 0) for one in here]
        figure.add_bar(
            y=labels,
            x=[size / GB for size in sizes],
            name=part,
            orientation="h",
            marker_color=COLOURS[part],
            customdata=[figures.size(size) for size in sizes],
            hovertemplate=f"{part}: %{{customdata}}<extra>%{{y}}</extra>",
        )
    for number, device in enumerate(devices):
        fits = here[number].fits(device)
        edge = device.usable / GB
        figure.add_shape(
            {"type": "line", "x0": edge, "x1": edge, "y0": number - 0.45, "y1": number + 0.45},
            line={"color": "#222222", "width": 3},
        )
        figure.add_annotation(
            x=max(edge, here[number].total / GB),
            y=number,
            text=f"{'fits' if fits else 'does not fit'}: has {figures.size(device.usable)}",
            showarrow=False,
            xanchor="left",
            xshift=6,
        )
    widest = max([one.total for one in here] + [device.usable for device in devices]) / GB
    figure.update_layout(
        barmode="stack",
        title=html.escape(f"{memory.model}, {memory.format}, {memory.context:,} tokens"),
        height=140 + 52 * len(labels),
        margin={"l": 110, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "traceorder": "normal", "y": -0.35},
        template="plotly_white",
    )
    figure.update_xaxes(title_text="GB", range=[0, 1.3 * widest])
    figure.update_yaxes(autorange="reversed")
    return figure


def lines(memory: Memory, kv: Sequence[str | tuple[str, str]], devices: Sequence[Device]) -> go.Figure:
    """Total bytes against the context: a line for each type of keys and values, and one for what each device has."""
    import plotly.graph_objects as go

    limit = memory.question.subject.architecture.context or 1 << 17
    contexts = [max(1, limit * step // 64) for step in range(65)]
    figure = go.Figure()
    for kinds, colour in zip(kv, _CYCLE * len(kv), strict=False):
        totals = [memory.at(context=context, kv=kinds).total for context in contexts]
        figure.add_scatter(
            x=contexts,
            y=[total / GB for total in totals],
            name=f"keys and values in {kinds if isinstance(kinds, str) else '/'.join(dict.fromkeys(kinds))}",
            line_color=colour,
            customdata=[figures.size(total) for total in totals],
            hovertemplate="%{x:,} tokens: %{customdata}<extra></extra>",
        )
    for device in devices:
        figure.add_hline(
            y=device.usable / GB, line_dash="dash", annotation_text=html.escape(f"{device.name}: what it has")
        )
    figure.update_layout(
        title=html.escape(f"{memory.model}, {memory.format}, in {memory.engine}"),
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        template="plotly_white",
    )
    figure.update_xaxes(title_text="context, tokens")
    figure.update_yaxes(title_text="GB", rangemode="tozero")
    return figure
