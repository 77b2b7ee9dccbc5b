"""A plan as JSON, to be kept and shared; read back as anything from a stranger is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import formats
from workbench.checkpoint import Checkpoint, bounded_json
from workbench.exceptions import WorkbenchError
from workbench.planning.mix import planned

if TYPE_CHECKING:
    from workbench.planning.mix import Plan

VERSION = 1
LONGEST_NAME = 200
HERE = Path("the plan's JSON")  # what messages call the text


def written(plan: Plan) -> str:
    """{"workbench.plan": version, "name", "model": its fingerprint, "formats": {format: [tensor, ...]}}."""
    by_format: dict[str, list[str]] = {}
    for tensor, used in plan.formats.items():
        by_format.setdefault(used.name, []).append(tensor)
    said = {"workbench.plan": VERSION, "name": plan.name, "model": plan.model, "formats": by_format}
    return json.dumps(said, indent=1)


def read(text: str, model: Checkpoint, *, anyway: bool = False) -> Plan:
    """The plan in `text`, for `model`; its bytes are counted anew. See `Plan.from_json`."""
    if not isinstance(text, str):
        raise _wrong(f"it is {type(text).__name__}", allowed="the text that plan.to_json() gave")
    found = bounded_json.parse(HERE, text)
    version = found.get("workbench.plan")
    if version != VERSION or isinstance(version, bool):
        raise _wrong("it is no plan, or one of another version", allowed=f'"workbench.plan": {VERSION}')
    name, of, by_format = found.get("name"), found.get("model"), found.get("formats")
    if not isinstance(name, str) or len(name) > LONGEST_NAME or not isinstance(of, str):
        raise _wrong("its name or its model's fingerprint is missing or no text")
    if of != model.fingerprint and not anyway:
        raise _wrong(
            f"it was made for another model than {model.name}, or for another copy of its file",
            do="open that model; or pass anyway=True if this one has the same tensors",
        )
    return planned(model, name, _by_tensor(by_format))


def _by_tensor(by_format: Any) -> dict[str, formats.Format]:
    if not isinstance(by_format, dict) or not all(isinstance(names, list) for names in by_format.values()):
        raise _wrong('its "formats" are no lists of tensors by format')
    made: dict[str, formats.Format] = {}
    for format, names in by_format.items():
        for tensor in names:
            if not isinstance(tensor, str) or tensor in made:
                raise _wrong(f"the tensor {tensor!r:.60} is no name, or appears twice")
            made[tensor] = formats.get(format)
    return made


def _wrong(found: str, *, allowed: str = "", do: str = "save the plan again: plan.to_json()") -> WorkbenchError:
    return WorkbenchError(HERE, found, allowed=allowed, do=do)
