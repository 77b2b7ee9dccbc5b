"""Which matrices a pattern of names means, and which of them have to have one format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from workbench import formats
from workbench.checkpoint import Checkpoint, TensorInfo
from workbench.exceptions import WorkbenchError
from workbench.formats import Format

Pins = dict[str, Format]  # tensor -> the format it must have


def matching(model: Checkpoint, pattern: str) -> list[TensorInfo]:
    """The matrices whose name is `pattern` or matches it, as in `fnmatch`.

    Raises:
        WorkbenchError: none does.
    """
    found = [info for info in model.matrices if info.name == pattern or fnmatchcase(info.name, str(pattern))]
    if not found:
        names = ", ".join(info.name for info in model.matrices[:3])
        raise WorkbenchError(pattern, f"no matrix of {model.name} has such a name", allowed=f"{names}, ...")
    return found


def pinned(model: Checkpoint, keep: Mapping[str, str | Format]) -> Pins:
    """Tensor -> format, for patterns of names; of several that match the last counts."""
    return {info.name: formats.get(each) for pattern, each in keep.items() for info in matching(model, pattern)}


def fused(matrices: Sequence[TensorInfo], asked: Sequence[Format]) -> list[list[str]]:
    """Sets of names that a runtime of these formats keeps as one tensor, or multiplies by at once.

    llama.cpp stacks the experts of a layer. vLLM does too, with all their matrices in one kernel, and
    multiplies by q, k, v at once, and by gate and up.
    """
    vllm = all("vLLM" in each.runs_on for each in asked)
    sets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for info in matrices:
        parent, within, _ = info.name.partition(".experts.")
        if within:
            sets[parent, "experts" if vllm else info.role].append(info.name)
        elif vllm and info.role in ONE_PRODUCT:
            sets[info.name.removesuffix(".weight").rpartition(".")[0], ONE_PRODUCT[info.role]].append(info.name)
    return list(sets.values())


ONE_PRODUCT = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv"), **dict.fromkeys(("gate_proj", "up_proj"), "up")}


def matched(matrices: Sequence[TensorInfo], patterns: Iterable[str]) -> list[list[str]]:
    """For each pattern and layer, the names it matches."""
    if isinstance(patterns, str):
        raise WorkbenchError("together", f"{patterns!r} is one pattern", allowed=f"a list of them: [{patterns!r}]")
    sets: list[list[str]] = []
    for pattern in patterns:
        by_layer: dict[int | None, list[str]] = defaultdict(list)
        for info in matrices:
            if fnmatchcase(info.name, pattern):
                by_layer[info.layer].append(info.name)
        if not by_layer:
            raise WorkbenchError(pattern, "no matrix has such a name", allowed=f"{matrices[0].name}, ...")
        sets += by_layer.values()
    return sets


def merged(names: Sequence[str], sets: Iterable[Sequence[str]]) -> list[list[str]]:
    """Every name in one group: with all it shares a set with, in the order of `names`."""
    leader = {name: name for name in names}

    def lead(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    for each in sets:
        for name in each[1:]:
            leader[lead(name)] = lead(each[0])
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[lead(name)].append(name)
    return list(groups.values())
