"""What a user asks for, as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from workbench import formats
from workbench.checkpoint import Checkpoint
from workbench.exceptions import WorkbenchError
from workbench.formats import Format
from workbench.planning.mix import Plan, planned, touched
from workbench.planning.recipes import RECIPES, by_recipe

Spec: TypeAlias = "str | Format | Plan | Mapping[str, str | Format]"

_RECIPES_BY_LOWER = {name.lower(): recipe for name, recipe in RECIPES.items()}


def plan_for(checkpoint: Checkpoint, spec: Spec) -> Plan:
    """The format of each matrix of `checkpoint`.

    Args:
        spec: a recipe's or format's name in any case, a format, or tensor name -> format for single tensors.
            One format alone goes to every matrix; bitsandbytes, INT and FP8 leave the embedding and the
            head as they are, as the programs that run them do.

    Raises:
        WorkbenchError: an unknown name or tensor, a tensor that is not a matrix, a plan made for another model.
    """
    if isinstance(spec, Plan):
        if spec.model != checkpoint.fingerprint:
            raise WorkbenchError(f"plan {spec.name}", f"it was made for another model than {checkpoint.name}")
        return spec
    if isinstance(spec, Mapping):
        return planned(checkpoint, "by tensor", {name: formats.get(format) for name, format in spec.items()})
    recipe = _RECIPES_BY_LOWER.get(spec.lower()) if isinstance(spec, str) else None
    if recipe is not None:
        return planned(checkpoint, recipe.name, by_recipe(checkpoint, recipe))
    if isinstance(spec, str) and spec.lower() not in map(str.lower, formats.FORMATS):
        allowed = ", ".join([*RECIPES, *(name for name in formats.FORMATS if name not in RECIPES)])
        raise WorkbenchError(spec, "there is no recipe or format of that name", allowed=allowed)
    format = formats.get(spec)
    return planned(checkpoint, format.name, {info.name: format for info in touched(checkpoint, format)})


def fallbacks(plan: Plan, spec: Spec | None) -> dict[str, Format]:
    """Tensor name -> what `plan` stores it in because its shape does not fit the format that `spec` asks for."""
    if spec is None or isinstance(spec, Plan):
        return {}
    model, recipe = plan.checkpoint, _RECIPES_BY_LOWER.get(spec.lower()) if isinstance(spec, str) else None
    if recipe is not None:
        asked = by_recipe(model, recipe)
    elif isinstance(spec, Mapping):
        asked = {name: formats.get(format) for name, format in spec.items()}
    else:
        asked = dict.fromkeys(plan.formats, formats.get(spec))
    return {name: used for name, used in plan.formats.items() if used.name != asked[name].name}
