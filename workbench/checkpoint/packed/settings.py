"""What config.json says of a folder's quantization, module by module: as claims, to be held against the tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.checkpoint import bounded_json
from workbench.exceptions import WorkbenchError

# Files that older writers put beside config.json -> the method that they belong to
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
OLD_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
UNREAD = ("marlin", "bitblas")  # layouts that are made anew from others, for one kernel
MOST_PATTERNS = 2000
LONGEST_PATTERN = 1000  # characters
PATIENCE = 1.0  # seconds for all patterns and modules: a stranger's pattern may take for ever


@dataclass
class Settings:
    """The quantization that a folder claims.

    Attributes:
        place: the file that says it.
        said: `quantization_config`, or what an older file has.
        method: "gptq", "awq", "compressed-tensors", ...; "" where nothing is said.
    """

    place: Path
    said: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    _patience: float = PATIENCE

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> Settings:
        """The settings of a folder, whose config.json is `config`.

        Raises:
            WorkbenchError: they are no object, their bits are no number, or two files contradict each other.
        """
        place, said = folder / "config.json", config.get("quantization_config")
        if said is None and isinstance(config.get("text_config"), Mapping):
            said = config["text_config"].get("quantization_config")  # of a model that sees, too
        if said is None:
            said = config.get("compression_config")  # its name in the first versions of compressed-tensors
        if said is not None and not isinstance(said, Mapping):
            raise WorkbenchError(place, f"its quantization_config is a {type(said).__name__}", allowed="an object")
        found = cls(place, dict(said or {}))
        for name, method in BESIDE.items():
            if (folder / name).is_file():
                found = found._with(folder / name, bounded_json.read(folder / name), method)
        method = found.said.get("quant_method", found.said.get("quant_type", ""))
        found.method = str(method).lower().replace("intel/", "")[:40]
        packing = str(found.said.get("packing_format", "")).lower()
        if found.method == "auto-round" and packing.startswith("auto_round:auto_"):
            found.method = packing.removeprefix("auto_round:auto_")
        found._check_numbers()
        for name in ("format", "checkpoint_format"):
            if any(kind in str(found.said.get(name)).lower() for kind in UNREAD):
                said = f"it is {str(found.said[name])[:40]!r}: weights in the order of one kernel, which is not read"
                raise found.wrong(name, said, "the layout that the model was published in before")
        return found

    def _with(self, place: Path, older: Mapping[str, Any], method: str) -> Settings:
        """These settings and those of an older file: one of them is enough, and they must agree."""
        renamed = {OLD_NAMES.get(name, name): value for name, value in older.items()}
        if not self.said:
            return Settings(place, {"quant_method": method, **renamed})
        for name in ("bits", "group_size"):
            ours = self.said.get(name, self.said.get("w_bit" if name == "bits" else "q_group_size"))
            if name in renamed and ours is not None and renamed[name] != ours:
                raise WorkbenchError(
                    place,
                    f"it says {name} {renamed[name]!r:.20}, and {self.place.name} {ours!r:.20}",
                    do="get both files again from the model's author",
                )
        return self

    def _check_numbers(self) -> None:
        for old, name in OLD_NAMES.items():
            if old in self.said and name not in self.said:
                self.said[name] = self.said[old]
        for name in ("bits", "group_size"):
            value = self.said.get(name)
            whole = type(value) is int or (type(value) is float and name == "bits")  # EXL2's are a mean
            if value is not None and not whole:
                raise self.wrong(name, f"it is {value!r:.40}", "a whole number")

    def wrong(self, name: str, found: str, allowed: str = "") -> WorkbenchError:
        """The error for a setting that means nothing, or not what the tensors are."""
        return WorkbenchError(
            f"{self.place}, quantization_config.{name}",
            found,
            allowed=allowed,
            do="get config.json again from the model's author",
        )

    def of_module(self, module: str) -> dict[str, Any]:
        """What holds for one module: the settings, with what `dynamic` or a group of `config_groups` has for it."""
        dynamic, groups = self.said.get("dynamic"), self.said.get("config_groups")
        if isinstance(dynamic, Mapping):
            return {**self.said, **self._dynamic(dynamic, module)}
        if isinstance(groups, Mapping):
            return {**self.said, **self._group(groups, module)}
        return self.said

    def _dynamic(self, dynamic: Mapping[str, Any], module: str) -> dict[str, Any]:
        """GPTQModel's overrides: patterns of names, "+:" before those that change something, "-:" those left out."""
        self._count("dynamic", len(dynamic))
        for pattern, changes in dynamic.items():
            kind, rest = (pattern[:2], pattern[2:]) if pattern[:2] in ("+:", "-:") else ("+:", pattern)
            if kind == "-:" or not self._matches("dynamic", rest, module):
                continue
            if not isinstance(changes, Mapping):
                raise self.wrong("dynamic", f"for {pattern!r:.60} it has {changes!r:.40}", "an object")
            for name in ("bits", "group_size"):
                if name in changes and type(changes[name]) is not int:
                    raise self.wrong(
                        "dynamic", f"for {pattern!r:.60} {name} is {changes[name]!r:.40}", "a whole number"
                    )
            return dict(changes)
        return {}

    def _group(self, groups: Mapping[str, Any], module: str) -> dict[str, Any]:
        """The weights' settings of the group of compressed-tensors that names the module most closely.

        Where several name it as closely, such as by its class, which the file does not tell, or none does, "widths" has
        the bits of each.
        """
        best = 0
        found: list[dict[str, Any]] = []
        self._count("config_groups", sum(1 for _ in _targets(groups)))
        for target, group in _targets(groups):
            if target.startswith("re:"):
                rank = 2 if self._matches("config_groups", target[3:], module) else 0
            else:
                rank = 3 if target == module else 1 if "." not in target else 0  # a class, such as Linear
            weights = group.get("weights")
            if rank < best or not isinstance(weights, Mapping):
                continue
            found = [*(found if rank == best else ()), dict(weights)]
            best = rank
        return {**found[0], "widths": [each.get("num_bits") for each in found]} if found else {}

    def _count(self, name: str, count: int) -> None:
        if count > MOST_PATTERNS:
            raise self.wrong(name, f"it has {count:,} patterns", f"up to {MOST_PATTERNS:,}")

    def _matches(self, name: str, pattern: str, module: str) -> bool:
        """Whether a pattern matches the beginning of a module's name, within the folder's patience."""
        import regex

        began = time.perf_counter()
        try:
            if len(pattern) > LONGEST_PATTERN:
                raise self.wrong(name, f"it has a pattern of {len(pattern):,} characters", f"up to {LONGEST_PATTERN:,}")
            return regex.match(pattern, module, timeout=max(self._patience, 1e-3)) is not None
        except TimeoutError as reason:
            raise self.wrong(name, f"its pattern {pattern!r:.60} takes too long to match", "plain patterns") from reason
        except (regex.error, RecursionError, OverflowError) as reason:
            raise self.wrong(name, f"its pattern {pattern!r:.60} is no pattern ({reason!s:.60})") from reason
        finally:
            self._patience -= time.perf_counter() - began


def _targets(groups: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for group in groups.values():
        targets = group.get("targets") if isinstance(group, Mapping) else None
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, str):
                yield target, group
