"""Pictures of plans: every cell, every mark, nothing from a file run."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from tests.allocation import synthetic
from workbench.allocation import figure, plan


@pytest.fixture(scope="module")
def mix():
    return plan(synthetic.card(), bits=4.5)


def test_a_plans_heatmap_names_the_format_of_each_matrix(mix):
    drawn = mix.figure()
    layers, apart = drawn.data
    column = list(layers.x).index("down_proj")
    for layer in range(4):
        assert layers.text[layer][column] == mix[f"model.layers.{layer}.mlp.down_proj.weight"].name
    assert list(apart.x) == ["embed_tokens", "lm_head"]
    labels = drawn.layout.coloraxis.colorbar.ticktext
    assert [float(label.split(", ")[1].split()[0]) for label in labels] == sorted(
        {used.bits for used in mix.formats.values()}
    )


def test_experts_of_one_layer_share_a_cell():
    drawn = plan(synthetic.experts(), bits=4.5).figure()
    roles = list(drawn.data[0].x)
    assert roles == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert len(drawn.data[0].z) == 12
    assert "one of 64 matrices" in drawn.data[0].customdata[0][roles.index("gate_proj")]


def test_the_front_has_a_mark_for_each_plan_that_people_make(mix):
    drawn = mix.front().figure()
    marks = {trace.name: trace for trace in drawn.data}
    assert set(marks["one format for all"].text) == {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    assert "Q4_K_M" in marks["named rules"].text
    assert list(marks["this plan"].x) == [mix.bits]
    assert drawn.layout.yaxis.type == "log"


def test_predictions_stand_against_measurements_with_their_bands():
    frame = pd.DataFrame(
        [("a", 10, 4.0, 0.1, 0.08, 0.125, 0.11, 0.01), ("b", 20, 5.0, 0.02, float("nan"), float("nan"), 0.03, 0.01)],
        columns=["name", "nbytes", "bits", "predicted", "low", "high", "measured", "error"],
    )
    line, points = figure.agreement(frame).data
    assert list(line.x) == list(line.y)
    assert list(points.error_x.array) == pytest.approx([0.025, 0])


def test_markup_in_names_is_shown_not_run(mix):
    hostile = "<img src=x onerror=alert(1)>"
    table = mix.table.assign(tensor=hostile)
    pictures = [figure.heatmap(table, title=hostile), replace(mix, name=hostile).front().figure()]
    assert not any("<img" in picture.to_json().replace("\\u003c", "<") for picture in pictures)
    assert "<img" not in replace(mix, name=hostile)._repr_html_()
