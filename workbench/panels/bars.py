"""A model's memory as markup: the verdict, a bar of its parts, the figures beside it, other devices, what would fit.

All of it is text and plain boxes, so it is one change of the page for each move of a slider,
and the same picture stands in a saved notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench import figures
from workbench.checkpoint.tree import shown
from workbench.fit import Device, Memory
from workbench.fit.figure import COLOURS
from workbench.panels import parts
from workbench.panels.parts import Markup, sentence, tag, together

REACH = 3  # a device with more than this times what is needed is not drawn to its end, or the parts would be slivers
HERE = {"cpu": "this machine's memory", "mps": "this machine's GPU"}  # devices whose own name says nothing to a reader
SPELT = {"kv cache": "KV cache", "mlp": "MLP"}
UNITS = "1 GB is 10⁹ bytes, as in the sizes of files: a card that is sold with 24 GB has 25.8 of them."


def drawn(memory: Memory, others: Sequence[Device], notes: Sequence[str]) -> Markup:
    """All that there is to say of `memory` on its device, and in short on the others."""
    device = memory.device
    assert device is not None
    held = parts_on(memory, device)
    beside = together(answers(memory, device), *(tag("div", f"Note: {each}.", cls="wb-hint") for each in notes))
    picture = together(bar(held, device.usable, height=26, reach=REACH), scale(held, device.usable))
    return together(
        verdict(memory, device),
        tag("div", picture, cls="wb-bars"),
        tag("div", parts_table(held), tag("div", beside, cls="wb-beside"), cls="wb-columns"),
        elsewhere(memory, others, device),
        tag("div", UNITS, cls="wb-hint"),
    )


def name_of(device: Device) -> str:
    return HERE.get(device.name, device.name)


def spare(room: int) -> str:
    """What is left of a device's memory in words; `room` is negative where it is too little."""
    return f"{figures.size(room)} to spare" if room >= 0 else f"{figures.size(-room)} too much"


def parts_on(memory: Memory, device: Device) -> dict[str, int]:
    """Bytes by part that the device itself must hold; they add up to `memory.needed(device)`."""
    there = memory.at(device=device)
    elsewhere = there.total - there.needed(device)  # llama.cpp leaves an embedding in main memory
    held = there.parts | {"embedding": there.parts.get("embedding", 0) - elsewhere}
    return {part: held[part] for part in COLOURS if held.get(part)}


def verdict(memory: Memory, device: Device) -> Markup:
    """Whether it fits, in words: the answer that everything else explains."""
    room = memory.room(device)
    where = f"{'in' if device.kind == 'cpu' else 'on'} {name_of(device)}"
    told = f"{figures.size(memory.needed(device))} of {figures.size(device.usable)}, {spare(room)}"
    return tag(
        "div",
        tag("b", "✓" if room >= 0 else "✗", cls="wb-sign", aria_hidden="true"),
        tag("b", f"{'Fits' if room >= 0 else 'Does not fit'} {where}"),
        tag("span", "estimate", cls="wb-badge") if memory.estimate else "",
        tag("span", told, cls="wb-room"),
        tag("div", asked(memory), cls="wb-asked-of"),
        cls=f"wb-verdict-fit {'wb-fits' if room >= 0 else 'wb-misfit'}",
    )


def asked(memory: Memory) -> str:
    """What the figures are about, in a line."""
    several = f", {memory.batch:,} sequences at once" if memory.batch > 1 else ""
    kept = f"keys and values in {' and '.join(dict.fromkeys(memory.kv))}"
    what = f"{shown(memory.model)} as {memory.format} in {memory.engine}"
    return f"{what}, {memory.context:,} tokens{several}, {kept}"


def bar(held: Mapping[str, int], usable: int, *, height: int, reach: float = float("inf")) -> Markup:
    """The parts stacked from left to right against what is usable, which is marked; what is beyond it is hatched.

    Args:
        held: bytes by part. usable: bytes that the device has.
        reach: how many times the parts the bar may be long; a larger device goes on beyond its end.
    """
    needed, whole = sum(held.values()), _length(held, usable, reach)
    pieces = [
        tag("i", title=f"{part}: {figures.size(nbytes)}", style=_box(nbytes / whole, COLOURS[part]))
        for part, nbytes in held.items()
    ]
    if needed > usable:
        left = f"left: {100 * usable / whole:.2f}%"
        pieces.append(tag("span", cls="wb-beyond", style=left))
        pieces.append(tag("span", cls="wb-edge", style=left))
    said = ", ".join(f"{part} {figures.size(nbytes)}" for part, nbytes in held.items())
    return tag(
        "div",
        *pieces,
        cls="wb-stackbar wb-endless" if usable > whole else "wb-stackbar",
        role="img",
        aria_label=f"{said}; {figures.size(usable)} usable",
        style=f"display: flex; position: relative; height: {height}px",
    )


def scale(held: Mapping[str, int], usable: int) -> Markup:
    """What the ends of a `bar` of that reach stand for: nothing, and what is usable."""
    whole = _length(held, usable, REACH)
    at = min(1.0, usable / whole)
    edge = f"{figures.size(usable)} usable{', beyond the end of the bar' if usable > whole else ''}"
    zero = tag("span", "0", cls="wb-at-left") if at > 0.05 else ""
    return tag(
        "div",
        zero,
        tag("span", edge, cls="wb-at-left" if at < 0.25 else None, style=f"left: {100 * at:.2f}%"),
        cls="wb-scale",
    )


def parts_table(held: Mapping[str, int]) -> Markup:
    """The figures of the bar: bytes and share of each part."""
    total = sum(held.values())
    rows: list[Sequence[object]] = [
        (together(swatch(part), SPELT.get(part, sentence(part))), figures.size(nbytes), f"{nbytes / total:.1%}")
        for part, nbytes in held.items()
    ]
    rows.append((tag("b", "Together"), tag("b", figures.size(total)), ""))
    return parts.table(("Part", "Bytes", "Share"), rows)


def swatch(part: str) -> Markup:
    style = f"display: inline-block; width: 10px; height: 10px; background: {COLOURS[part]}"
    return tag("i", cls="wb-swatch", style=style)


def answers(memory: Memory, device: Device) -> Markup:
    """The inverse questions, and the rule of thumb beside them."""
    told = [("Longest context", longest(memory, device)), ("Best format", best(memory, device))]
    if memory.engine == "llama.cpp" and device.kind == "cuda":
        told.append(("On the GPU", str(memory.offload(device)).replace(" on the GPU", "")))
    off = memory.rule_is_off_by
    rule = f"{figures.size(memory.rule_of_thumb)}: {abs(off):.0%} too {'much' if off > 0 else 'little'}"
    told.append(("Rule of thumb", together(rule, tag("span", "parameters × bits / 8 × 1.2", cls="wb-hint"))))
    if memory.active_weights < memory.weights:
        told.append(("A token passes", f"{figures.size(memory.active_weights)} of the weights; all must be there"))
    facts = tag("dl", *(together(tag("dt", name), tag("dd", value)) for name, value in told))
    return tag("div", facts, cls="wb-facts")


def longest(memory: Memory, device: Device) -> str:
    found, limit = memory.longest_context(device), memory.question.subject.architecture.context
    if not found:
        return "none fits"
    return f"{found:,} tokens{', all the model was made for' if found == limit else ''}"


def best(memory: Memory, device: Device) -> str:
    found = memory.best_format(device)
    return "none fits" if found is None else f"{found.format}: {figures.size(found.needed(device))}"


def elsewhere(memory: Memory, devices: Sequence[Device], chosen: Device) -> Markup:
    """A line for each device: how full it would be, and by how much it fits or does not."""
    rows = []
    for device in devices:
        held, room = parts_on(memory, device), memory.room(device)
        name = sentence(name_of(device))
        rows.append(
            (
                tag("b", name) if device.name == chosen.name else name,
                bar(held, device.usable, height=10),
                figures.size(sum(held.values())),
                figures.size(device.usable),
                tag("span", f"{'✓' if room >= 0 else '✗'} {spare(room)}", cls="wb-fits" if room >= 0 else "wb-misfit"),
            )
        )
    return parts.table(("Device", "How full", "Needed", "Usable", "Fits"), rows, cls="wb-table wb-devices")


def _length(held: Mapping[str, int], usable: int, reach: float) -> float:
    """Bytes that a bar is long: the device's, or more if more is needed, or less if most of it would be empty."""
    needed = sum(held.values())
    return max(needed, min(usable, reach * needed), 1)


def _box(share: float, colour: str) -> str:
    return f"width: {100 * share:.3f}%; background: {colour}"
