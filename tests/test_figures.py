"""Pictures: one scale, nothing hidden, and nothing from a model file executed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.exceptions import WorkbenchError

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def table(names=("Q8_0", "Q4_K"), layers=4, tensor="model.layers.{}.{}.weight") -> pd.DataFrame:
    rows = []
    for number, name in enumerate(names):
        cells = [(layer, role) for layer in range(layers) for role in ROLES] + [(None, "embed_tokens")]
        for layer, role in cells:
            error = 10.0 ** -(4 - 2 * number) * (1 + (layer or 0))
            rows.append(
                {
                    "tensor": tensor.format(layer, role),
                    "layer": layer,
                    "role": role,
                    "rows": 64,
                    "cols": 64,
                    "format": name,
                    "used": "Q5_0" if (name, role) == ("Q4_K", "q_proj") else name,
                    "bytes": 2304,
                    "bits_per_weight": 4.5,
                    "weight_error": error,
                }
            )
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def test_all_formats_share_one_scale_and_a_menu_switches_between_them():
    frame = table()
    figure = figures.heatmap(frame, "weight_error", ["Q8_0", "Q4_K"])
    axis = figure.layout.coloraxis
    assert 10**axis.cmin == pytest.approx(frame.weight_error.min())
    assert 10**axis.cmax == pytest.approx(frame.weight_error.max())
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["Q8_0", "Q4_K"]
    assert [trace.visible for trace in figure.data] == [True, True, False, False]


def test_the_embedding_stands_apart_from_the_layers():
    layers, apart = figures.heatmap(table(), "weight_error", ["Q8_0"]).data
    assert list(layers.x) == list(ROLES)
    assert list(apart.x) == ["embed_tokens"]


def test_the_pointer_tells_the_format_really_used_the_bytes_and_the_error():
    figure = figures.heatmap(table(), "weight_error", ["Q4_K"])
    said = figure.data[0].text[0][0]
    assert "Q5_0 (instead of Q4_K" in said
    assert "2.3 kB" in said
    assert "4.5 bits per weight" in said
    assert "0.01" in said


def test_a_missing_error_is_an_empty_cell_and_an_exact_copy_has_the_lowest_colour():
    frame = table(("Q4_K",))
    frame.loc[0, "weight_error"] = np.nan
    frame.loc[1, "weight_error"] = 0.0
    figure = figures.heatmap(frame, "weight_error", ["Q4_K"])
    assert figure.data[0].z[0][0] is None
    assert figure.data[0].z[0][1] < figure.layout.coloraxis.cmin
    assert "NaN" not in json.dumps(json.loads(figure.to_json()))


def test_markup_in_a_tensor_name_is_shown_not_run():
    figure = figures.heatmap(table(tensor="<img src=x onerror=alert(1)>{}{}"), "weight_error", ["Q8_0"])
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_experts_of_a_layer_share_a_cell_with_their_mean():
    frame = table(("Q4_K",), layers=1)
    expert = frame[frame.role == "up_proj"].assign(tensor="another", weight_error=0.03)
    figure = figures.heatmap(pd.concat([frame, expert]), "weight_error", ["Q4_K"])
    column = list(figure.data[0].x).index("up_proj")
    assert 10 ** figure.data[0].z[0][column] == pytest.approx((0.03 + 0.0001) / 2)
    assert "others of this kind" in figure.data[0].text[0][column]


def test_two_formats_compared_show_the_ratio_in_doublings():
    figure = figures.compare(table(), "weight_error", "Q8_0", "Q4_K")
    ratio = figure.data[2]
    assert ratio.y[1] == "0"
    assert ratio.z[1][0] == pytest.approx(np.log2(100))
    assert figure.layout.coloraxis2.cmin == -figure.layout.coloraxis2.cmax


def test_one_matrix_that_came_through_whole_does_not_pale_the_others():
    frame = table(("Q4_K",))
    frame.loc[0, "weight_error"] = 1e-15
    axis = figures.heatmap(frame, "weight_error", ["Q4_K"]).layout.coloraxis
    assert axis.cmax - axis.cmin == pytest.approx(5)


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were():
    with pytest.raises(WorkbenchError, match="needs a calibration text") as error:
        figures.heatmap(table(), "output_error", ["Q8_0"])
    assert "weight_error" in error.value.allowed


@pytest.mark.parametrize(
    ("nbytes", "said"), [(512, "512 B"), (98_362_432, "98.4 MB"), (4.37e9, "4.37 GB"), (1_234_000_000_000, "1,234 GB")]
)
def test_sizes_are_said_in_decimal_units(nbytes, said):
    assert figures.size(nbytes) == said
