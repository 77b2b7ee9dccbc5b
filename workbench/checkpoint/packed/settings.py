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
OF_MODULES = (  # what layouts ask for
    *("bits", "group_size", "version", "format", "checkpoint_format", "num_bits", "strategy"),
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"),
)


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
    _rules: list[_Rule] | None = None
    _loose: dict[str, Any] = field(default_factory=dict)

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
        """What holds for one module: the settings, with what `dynamic` or a group of `config_groups` has for it.

        Once the folder's patience is at an end, no more patterns are tried: what they decide is left to the shapes.
        """
        began = time.thread_time()
        common = {name: self.said[name] for name in OF_MODULES if name in self.said}
        if self._rules is None:
            self._rules = list(self._read_rules())
        dynamic = isinstance(self.said.get("dynamic"), Mapping)
        if self._patience < 0 and self._rules:
            if dynamic:
                return {name: value for name, value in common.items() if name not in ("bits", "group_size")}
            self._loose = self._loose or {
                "widths": list(dict.fromkeys(rule.said.get("num_bits") for rule in self._rules))
            }
            return common | self._loose
        own = self._overridden(module) if dynamic else self._grouped(module)
        self._patience -= time.thread_time() - began
        return common | own

    def _read_rules(self) -> Iterator[_Rule]:
        """The patterns and names that single modules are told by, checked."""
        dynamic, groups = self.said.get("dynamic"), self.said.get("config_groups")
        if isinstance(dynamic, Mapping):
            self._count("dynamic", len(dynamic))
            for name, changes in dynamic.items():
                if name.startswith("-:"):
                    continue  # a module that is left as it was
                if not isinstance(changes, Mapping):
                    raise self.wrong("dynamic", f"for {name!r:.60} it has {changes!r:.40}", "an object")
                for key in ("bits", "group_size"):
                    if key in changes and type(changes[key]) is not int:
                        raise self.wrong("dynamic", f"for {name!r:.60} {key} is {changes[key]!r:.40}", "a whole number")
                pattern = self._compiled("dynamic", name.removeprefix("+:"))
                yield _Rule("dynamic", name, pattern, {key: changes[key] for key in OF_MODULES if key in changes})
        elif isinstance(groups, Mapping):
            self._count("config_groups", sum(1 for _ in _targets(groups)))
            for target, weights in _targets(groups):
                pattern = self._compiled("config_groups", target[3:]) if target.startswith("re:") else None
                said = {key: weights[key] for key in OF_MODULES if key in weights}
                yield _Rule("config_groups", target, pattern, said)

    def _overridden(self, module: str) -> dict[str, Any]:
        """By GPTQModel's overrides: of the first pattern that a name begins with."""
        return next((rule.said for rule in self._rules or () if self._matches(rule, module)), {})

    def _grouped(self, module: str) -> dict[str, Any]:
        """The weights' settings of the group of compressed-tensors that names the module most closely.

        Where several name it as closely, such as by its class, which the file does not tell, or none does, "widths" has
        the bits of each.
        """
        found: dict[int, list[dict[str, Any]]] = {}
        for rule in self._rules or ():
            if rule.pattern is not None:
                rank = 2 if self._matches(rule, module) else 0
            else:
                rank = 3 if rule.name == module else 1 if "." not in rule.name else 0  # a class, such as Linear
            found.setdefault(rank, []).append(rule.said)
        best = found[max(found)] if found else []
        return {**best[0], "widths": [each.get("num_bits") for each in best]} if best else {}

    def _count(self, name: str, count: int) -> None:
        if count > MOST_PATTERNS:
            raise self.wrong(name, f"it has {count:,} patterns", f"up to {MOST_PATTERNS:,}")

    def _compiled(self, name: str, pattern: str) -> Any:
        import regex

        if len(pattern) > LONGEST_PATTERN:
            raise self.wrong(name, f"it has a pattern of {len(pattern):,} characters", f"up to {LONGEST_PATTERN:,}")
        try:
            return regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as reason:
            raise self.wrong(name, f"its pattern {pattern!r:.60} is no pattern ({reason!s:.60})") from reason

    def _matches(self, rule: _Rule, module: str) -> bool:
        """Whether a pattern matches the beginning of a module's name, within the folder's patience."""
        try:
            return rule.pattern.match(module, timeout=max(self._patience, 1e-3)) is not None
        except TimeoutError as reason:
            raise self.wrong(
                rule.place, f"its pattern {rule.name!r:.60} takes too long to match", "plain patterns"
            ) from reason


@dataclass(frozen=True)
class _Rule:
    """What a setting says of the modules that a pattern matches, or (without one) that have a name or class."""

    place: str
    name: str
    pattern: Any
    said: dict[str, Any]


def _targets(groups: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(target, settings of its weights) of each group that has any."""
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        targets = group.get("targets") if isinstance(group, Mapping) else None
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, str) and isinstance(weights, Mapping):
                yield target, weights
