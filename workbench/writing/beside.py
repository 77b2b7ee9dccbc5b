"""What other programs want beside a GGUF: a Modelfile, a recipe for llama-quantize, an importance matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from workbench import files
from workbench.checkpoint import load
from workbench.engines.modelfile import modelfile
from workbench.exceptions import WorkbenchError
from workbench.planning import Plan
from workbench.writing import converter, header


def tensor_types(plan: Plan) -> str:
    """The plan of a GGUF as `llama-quantize --tensor-type-file` reads it: a line `name=type` for each tensor.

    The names are regular expressions there, so their dots are escaped and their ends marked.
    """
    lines = (f"^{re.escape(name)}$={format.name.lower()}" for name, format in plan.formats.items())
    return "\n".join(lines) + "\n"


# what may be written beside a GGUF -> the ending that its name gets
ENDINGS = {
    "Modelfile": ".Modelfile",  # for Ollama
    "plan": ".plan.json",  # for this workbench
    "recipe": ".tensor-types.txt",  # for llama-quantize
    "importance": ".imatrix.gguf",  # for llama-quantize
}


def paths(path: str | Path, kinds: Iterable[str]) -> dict[str, Path]:
    """Where `write` puts each of the kinds: "Modelfile", "plan", "recipe", "importance"."""
    for kind in kinds:
        if kind not in ENDINGS:
            raise WorkbenchError(kind, "nothing of that name is written beside a file", allowed=", ".join(ENDINGS))
    return {kind: Path(path).with_suffix(ENDINGS[kind]) for kind in kinds}


def write(
    path: str | Path,
    kinds: Iterable[str],
    plan: Plan,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    tokens: int = 0,
    dataset: str = "",
) -> dict[str, Path]:
    """Write what other programs want beside the GGUF `path` that `wb.export` wrote by `plan`.

    Args:
        kinds: some of "Modelfile", "plan" (its JSON), "recipe" (for llama-quantize --tensor-type-file) and
            "importance" (for llama-quantize --imatrix).
        plan: the one that was exported.
        importance: by the plan's tensor names; by default the plan's own.
        tokens, dataset: what it was measured on; see `write_importance`.

    Returns:
        Where each of them is.
    """
    opened, targets = load(str(path)), paths(path, kinds)
    names = {name: name for name in plan.formats}
    if plan.checkpoint.kind != "gguf":
        names = converter.as_gguf(plan, plan.checkpoint, opened)
    there = replace(plan, formats={names[name]: used for name, used in plan.formats.items()})
    texts = {
        "Modelfile": lambda: modelfile(opened, Path(path)),
        "plan": plan.to_json,
        "recipe": lambda: tensor_types(there),
    }
    for kind, target in targets.items():
        if kind in texts:
            with files.whole(target) as temporary:
                temporary.write_text(texts[kind](), encoding="utf-8")
            continue
        given = plan.importance if importance is None else importance
        if not given:
            raise WorkbenchError("importance", "there is none to write", do="pass importance=..., or leave it out")
        named = {names[name]: values for name, values in given.items() if name in names}
        write_importance(named, target, tokens=max(tokens, 1), dataset=dataset)
    return targets


def write_importance(
    importance: Mapping[str, np.ndarray], path: str | Path, *, tokens: int, dataset: str = "", chunk: int = 512
) -> Path:
    """An importance matrix in llama.cpp's GGUF form, for `llama-quantize --imatrix`.

    Args:
        importance: a GGUF's tensor name -> float32 [in] (or [experts, in]), the mean square of each input channel.
        tokens: that the means were taken over: llama.cpp keeps sums and counts (tools/imatrix/imatrix.cpp).
        dataset: what the text was; `chunk`: tokens of a sequence.
    """
    target = Path(path)
    parts: list[tuple[header.Entry, np.ndarray]] = []
    for name, mean in importance.items():
        squares = np.ascontiguousarray(np.atleast_2d(mean) * np.float32(tokens), np.float32)
        counts = np.full((len(squares), 1), tokens, np.float32)
        for kind, values in (("in_sum2", squares), ("counts", counts)):
            parts.append((header.Entry(f"{name}.{kind}", values.shape, "F32", values.nbytes), values))
    metadata = header.entries_of(
        {"general.type": "imatrix", "imatrix.chunk_count": -(-tokens // chunk), "imatrix.chunk_size": chunk}
    ) | header.texts_of("imatrix.datasets", [dataset or "not named"])
    head, _ = header.head(metadata, [entry for entry, _ in parts], 32)
    with files.whole(target) as temporary, temporary.open("wb") as file:
        file.write(head)
        for entry, values in parts:
            file.write(values.tobytes().ljust(header.padded(entry.nbytes, 32), b"\0"))
    return target
