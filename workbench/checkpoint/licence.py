"""The licence that a model's author names: in the model card's front matter, or in a GGUF's metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_CARD = 64 << 10  # bytes of the card that are read: front matter comes first
_LONGEST = 100


def of_card(folder: Path) -> str | None:
    """`license` (or `license_name`, where that says "other") in the front matter of README.md."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open("rb") as file:
        text = file.read(_CARD).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    front_matter = _FRONT_MATTER.match(text)
    entries = dict(_ENTRY.findall(front_matter[1])) if front_matter else {}
    return _chosen(entries.get("license"), entries.get("license_name"))


def of_metadata(metadata: Mapping[str, Any]) -> str | None:
    """`general.license` (or `general.license.name`, where that says "other") of a GGUF."""
    return _chosen(metadata.get("general.license"), metadata.get("general.license.name"))


def _chosen(licence: Any, name: Any) -> str | None:
    found = name if licence in (None, "other") and name else licence
    return found.strip("'\"")[:_LONGEST] if isinstance(found, str) else None
