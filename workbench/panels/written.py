"""What Export tells: of a file before it is written, and of what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workbench import figures, files
from workbench.checkpoint.tree import shown
from workbench.exceptions import WorkbenchError
from workbench.panels import parts
from workbench.panels.chosen import Chosen
from workbench.panels.parts import Markup, tag, together
from workbench.planning import RECIPES, Plan, fallbacks, plan_for
from workbench.writing import Exported


@dataclass(frozen=True)
class Written:
    """What an export made.

    Attributes:
        what: the name of the choice, and what a reader is told for it.
        path: as it was asked for.
        seconds: that it took.
    """

    what: str
    label: str
    path: str
    file: Exported
    seconds: float


def facts_markup(chosen: Chosen, plan: Plan, weighed: bool, nbytes: int, target: str) -> Markup:
    """What the file will be."""
    mix = Counter(format.name for format in plan.formats.values())
    other = Counter(format.name for format in fallbacks(plan, chosen.spec).values())
    moved = ", ".join(f"{count} as {name}" for name, count in other.most_common())
    about = "" if plan.checkpoint.kind == "gguf" else "about "
    told = [
        ("Matrices", ", ".join(f"{count} × {name}" for name, count in mix.most_common())),
        ("Do not fit", f"{moved}: their rows are no multiple of the format's block" if other else ""),
        ("Importance", _importance(chosen, plan, weighed)),
        ("Size", f"{about}{nbytes:,} bytes ({figures.size(nbytes)}), {plan.bits:.2f} bits per weight"),
        ("Free on disk", _free(target, nbytes)),
    ]
    facts = [together(tag("dt", name), tag("dd", shown(value))) for name, value in told if value]
    return tag("div", tag("dl", *facts), cls="wb-facts")


def _free(target: str, nbytes: int) -> str:
    """What may be written where a file shall go; empty where none can go."""
    try:
        free = files.free_bytes(files.place(target).absolute().parent)
    except (WorkbenchError, OSError):
        return ""
    return figures.size(free) + (", which is not enough" if free < nbytes else "")


def _importance(chosen: Chosen, plan: Plan, weighed: bool) -> str:
    if weighed:
        return f"each input counts as it did in {chosen.importance_of}"
    if chosen.weighed:
        return "one is known and not used"
    if all(format.importance == "unused" for format in plan.formats.values()):
        return "these formats take none"
    return "none is known: every input counts alike. Measured with a text under Quantize, there is one"


def result_markup(written: Written) -> Markup:
    """What came of an export."""
    file, others = written.file, [path.name for path in written.file.beside.values()]
    mix = ", ".join(f"{count} × {name}" for name, count in file.types.items())
    size = f"{file.nbytes:,} bytes ({figures.size(file.nbytes)})"
    lines = [
        tag("p", tag("b", f"Written and checked: {written.path}")),
        tag("p", f"{written.label}, {size} in {parts.duration(written.seconds)}: {mix}"),
        *([tag("p", f"Beside it: {', '.join(others)}")] if others else []),
    ]
    return tag("div", *lines, cls="wb-done", role="status")


def nearest(plan: Plan) -> str:
    """The mix of llama.cpp that is nearest in bytes."""
    return min(RECIPES, key=lambda name: abs(plan_for(plan.checkpoint, name).nbytes - plan.nbytes))


def plain(name: str) -> str:
    """A part of a file's name, whatever a stranger called the model."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-._") else "-" for letter in name)
    return "-".join(part for part in kept.split("-") if part).strip("-.")[:80] or "model"
