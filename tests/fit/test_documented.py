"""The page on memory names every device, model type and type of cache there is, with the figures of the code."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.fit import ENGINES, TABLE
from workbench.fit.cache import TYPES
from workbench.fit.families import ALIASES, FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
GIB = 1 << 30


def test_the_table_of_devices_is_the_one_in_the_code():
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert rows == [(d.name, f"{d.total / GIB:.4g}", f"{d.usable / GIB:.2f}", d.source) for d in TABLE.values()]


def test_every_known_model_type_is_named():
    listed = PAGE.partition("exact number of parameters:")[2].partition("## Devices")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == {*FAMILIES, *ALIASES}


def test_every_engine_and_type_of_cache_is_named():
    assert all(f'engine="{engine}"' in PAGE for engine in ENGINES)
    assert all(re.search(rf"\b{kind}\b", PAGE) for kind in TYPES)
