"""The whole way from a model to a chat with a plan of one's own, as a person goes it: for the test and the picture."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

expect.set_options(timeout=60_000)  # the machine that runs it may be slow
LONG = 600_000.0  # milliseconds, for what takes minutes on two busy cores

CELL = "import workbench as wb\n\napp = wb.app()\napp"
SELECTED = ("blk.4.ffn_gate.", "blk.12.ffn_gate.", "blk.20.ffn_gate.")  # what is changed by hand


def step(page: Page, name: str) -> None:
    page.locator(".wb-step", has_text=name).click()


def button(page: Page, name: str) -> Locator:
    return page.locator(f".jupyter-button:visible:text-is('{name}')")


def cell(page: Page, name: str) -> Locator:
    return page.locator(".wbg-cell:visible").and_(page.get_by_role("gridcell", name=name)).first


def answer(page: Page) -> int:
    """How many times the kernel has answered the grid."""
    return int(page.locator(".wbg:visible").first.get_attribute("data-answer") or 0)


def answered(page: Page, act: Callable[[], None]) -> None:
    """Do something to the plan, and wait until what is drawn is what the kernel says."""
    before = answer(page)
    act()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.wbg')].some("
        "each => each.offsetParent && Number(each.dataset.answer) > before)",
        arg=before,
    )


def load(page: Page) -> None:
    """Open the demo."""
    button(page, "Open").click()
    expect(page.locator(".wb-facts:visible")).to_contain_text("apache-2.0")


def measure(page: Page, formats: str, tokens: int) -> None:
    """Measure the card, and price these formats."""
    step(page, "Plan")
    page.get_by_label("Formats", exact=True).locator("visible=true").fill(formats)
    page.get_by_label("Tokens", exact=True).locator("visible=true").first.fill(str(tokens))
    page.keyboard.press("Tab")
    button(page, "Measure the card").click()
    expect(page.locator(".wbg-chip:visible").first).to_be_visible(timeout=LONG)
    expect(page.locator(".wb-progress:visible")).to_have_count(0)


def solve(page: Page, megabytes: float) -> None:
    """Ask for the best plan within a budget."""
    field = page.get_by_label("MB", exact=True).locator("visible=true")
    field.fill(str(megabytes))
    answered(page, lambda: page.keyboard.press("Enter"))


def change(page: Page, names: tuple[str, ...], key: str, seen: Callable[[], None] = lambda: None) -> None:
    """Give cells a format by keyboard: the first is clicked, the others are walked to with the arrows."""
    layers = [int(name.split(".")[1]) for name in names]
    cell(page, names[0]).click()
    at = layers[0]
    for layer in layers:
        for _ in range(layer - at):
            page.keyboard.press("ArrowDown")
        at = layer
        answered(page, lambda: page.keyboard.press(key))
        seen()


def verify(page: Page, tokens: int) -> None:
    """Measure the plan."""
    page.get_by_label("Tokens", exact=True).locator("visible=true").last.fill(str(tokens))
    page.keyboard.press("Tab")
    button(page, "Verify").click()
    expect(page.locator(".wb-a-measured:visible").first).to_be_visible(timeout=LONG)
    expect(page.locator(".wb-progress:visible")).to_have_count(0)


def export(page: Page, name: str) -> None:
    """Write the plan as a file."""
    button(page, "Export").click()
    expect(page.locator(".wb-step.wb-on")).to_contain_text("Export")
    path = page.locator("input[type=text]:visible").first
    expect(path).to_have_value(re.compile(r"\.gguf$"))
    path.fill(name)
    page.keyboard.press("Tab")
    button(page, "Export").click()
    expect(button(page, "Talk to it in llama.cpp")).to_be_visible(timeout=LONG)


def talk(page: Page, prompt: str) -> Locator:
    """Ask the file in llama.cpp; what it answers."""
    button(page, "Talk to it in llama.cpp").click()
    expect(page.locator(".wb-step.wb-on")).to_contain_text("Chat")
    page.locator(".widget-textarea:visible textarea").first.fill(prompt)
    page.keyboard.press("Tab")
    button(page, "Send").click()
    said = page.locator(".wb-answer:visible").last
    expect(said).to_contain_text("tokens/s", timeout=LONG)
    return said
