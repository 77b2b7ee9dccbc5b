"""What the grid draws: where each matrix stands, its colour, and what is said of it."""

from __future__ import annotations

import pandas as pd
import pytest

from workbench.panels.grid import view_of


def row(tensor, layer, role, format="Q4_K", error: float | None = 0.01, used="", rows=8, cols=256):
    return {
        "tensor": tensor,
        "layer": layer,
        "role": role,
        "rows": rows,
        "cols": cols,
        "format": format,
        "used": used or format,
        "bytes": 1152,
        "bits_per_weight": 4.5,
        "weight_error": error,
    }


def table(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"layer": "Int64", "weight_error": "float64"})


def cell_of(view, tensor):
    return next(cell for line in view["rows"] for cell in line["cells"] if cell and cell["tensor"] == tensor)


def test_layers_run_downwards_between_the_embedding_and_the_head():
    frame = table(
        row("embed", None, "embed_tokens"),
        *(row(f"{layer}.{role}", layer, role) for layer in (0, 1, 2) for role in ("q_proj", "down_proj")),
        row("head", None, "lm_head"),
    )
    view = view_of(frame, "weight_error", "Q4_K")
    assert [line["label"] for line in view["rows"]] == ["embedding", "0", "1", "2", "head"]
    assert [column["name"] for column in view["columns"]] == ["q", "down"]
    assert [column["group"] for column in view["columns"]] == ["attention", "feed-forward"]


def test_a_colour_means_the_same_in_every_format():
    frame = table(
        row("a", 0, "q_proj", "Q8_0", 1e-5),
        row("b", 1, "q_proj", "Q8_0", 1e-3),
        row("a", 0, "q_proj", "Q4_K", 1e-3),
        row("b", 1, "q_proj", "Q4_K", 1e-1),
    )
    eight, four = (view_of(frame, "weight_error", name) for name in ("Q8_0", "Q4_K"))
    assert cell_of(eight, "b")["color"] == cell_of(four, "a")["color"]
    assert eight["scale"] == four["scale"]


def test_a_fallback_is_marked_and_named():
    frame = table(row("a", 0, "q_proj", used="Q5_0"), row("b", 1, "q_proj"))
    view = view_of(frame, "weight_error", "Q4_K")
    assert cell_of(view, "a")["fallback"]
    assert "Q5_0" in cell_of(view, "a")["say"]
    assert not cell_of(view, "b")["fallback"]
    assert "1 of 2" in view["fallbacks"]


def test_what_was_not_measured_has_no_colour_and_an_exact_copy_the_lowest():
    frame = table(row("a", 0, "q_proj", error=None), row("b", 1, "q_proj", error=0.0), row("c", 2, "q_proj"))
    view = view_of(frame, "weight_error", "Q4_K")
    assert cell_of(view, "a")["color"] is None
    assert "not measured" in cell_of(view, "a")["say"]
    assert cell_of(view, "b")["at"] == 0.0


def test_a_matrix_that_a_layer_lacks_leaves_its_place_empty():
    view = view_of(table(row("a", 0, "q_proj"), row("b", 1, "k_proj")), "weight_error", "Q4_K")
    assert [[bool(cell) for cell in line["cells"]] for line in view["rows"]] == [[True, False], [False, True]]


def test_experts_share_a_place_with_their_mean_and_the_worst_is_opened():
    frame = table(row("expert.0", 0, "up_proj", error=0.01), row("expert.1", 0, "up_proj", error=0.03, rows=24))
    (line,) = view_of(frame, "weight_error", "Q4_K")["rows"]
    (cell,) = line["cells"]
    assert cell["tensor"] == "expert.1"
    assert float(cell["value"]) == pytest.approx((8 * 0.01 + 24 * 0.03) / 32)
    assert "1 more" in cell["lines"][0]


def test_against_another_format_equal_is_the_middle_and_worse_the_upper_half():
    frame = table(
        *(row(name, 0, role, "Q8_0", 0.01) for name, role in (("a", "q_proj"), ("b", "k_proj"))),
        row("a", 0, "q_proj", "Q4_K", 0.01),
        row("b", 0, "k_proj", "Q4_K", 0.04),
    )
    view = view_of(frame, "weight_error", "Q4_K", against="Q8_0")
    assert cell_of(view, "a")["at"] == pytest.approx(0.5)
    assert cell_of(view, "b")["at"] > 0.5
    assert "4×" in cell_of(view, "b")["say"]
