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
ROOM = 1.35  # times what is drawn, for the words beside it
FAR = 2.5  # times the longest bar: a mark out there would leave the bars too short to read
BAR, ABOVE, BELOW = 52, 50, 80  # pixels


def bars(memory: Memory, devices: Sequence[Device]) -> go.Figure:
    """One stacked bar a device, of what the model takes there, with a mark at what the device has.

    The axis is in GB (10^9 bytes), and as long as the bars need: of a device with far more
    memory the mark is left out, and its words stand beside the bar.
    """
    import plotly.graph_objects as go

    held = [memory.parts_on(device) for device in devices] or [memory.parts]
    labels = [html.escape(device.name) for device in devices] or [html.escape(memory.model)]
    ends = [sum(parts.values()) / GB for parts in held]
    near = [device.usable / GB for device in devices if device.usable / GB < FAR * max(ends)]
    limit = ROOM * max([*ends, *near])
    figure = go.Figure()
    for part, colour in COLOURS.items():
        sizes = [parts.get(part, 0) for parts in held]
        if any(sizes):
            figure.add_bar(
                y=labels,
                x=[size / GB for size in sizes],
                name=part,
                orientation="h",
                marker={"color": colour, "line": {"width": 0}},  # a thin part is not lost in its outline
                customdata=[figures.size(size) for size in sizes],
                hovertemplate=f"{part}: %{{customdata}}<extra>%{{y}}</extra>",
            )
    for number, device in enumerate(devices):
        edge, beside = device.usable / GB, ends[number]
        if edge in near:
            beside = max(edge, beside)
            figure.add_shape(
                {"type": "line", "x0": edge, "x1": edge, "y0": number - 0.45, "y1": number + 0.45},
                line={"color": "#222222", "width": 3},
            )
        verdict = "fits" if memory.fits(device) else "does not fit"
        figure.add_annotation(
            x=beside,
            y=number,
            text=f"{verdict}: has {figures.size(device.usable)}",
            showarrow=False,
            xanchor="left",
            xshift=6,
        )
    figure.update_layout(
        barmode="stack",
        title=html.escape(f"{memory.model}, {memory.format}, {memory.context:,} tokens"),
        height=ABOVE + BAR * len(labels) + BELOW,
        margin={"l": 130, "r": 20, "t": ABOVE, "b": BELOW},
        legend={"orientation": "h", "traceorder": "normal", "y": -28 / (BAR * len(labels))},
        template="plotly_white",
    )
    figure.update_xaxes(ticksuffix=" GB", range=[0, limit])
    figure.update_yaxes(autorange="reversed", ticksuffix="  ")
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
            y=device.usable / GB,
            line={"color": "#222222", "dash": "dash", "width": 1.5},
            annotation_text=html.escape(f"{device.name} has {figures.size(device.usable)}"),
            annotation_position="top left",  # the lines of the totals are low there
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
