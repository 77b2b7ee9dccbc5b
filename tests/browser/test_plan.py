"""The plan editor as a person uses it: from the demo to a chat with the exported plan in llama.cpp."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import lab, planning
from tests.browser.planning import SELECTED, answered, button, cell, step
from tools.pictures import smaller

pytestmark = pytest.mark.browser


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        page.evaluate("document.querySelector('.wb-app').scrollIntoView()")
        page.wait_for_timeout(1000)
        (Path(folder) / f"plan-{name}.png").write_bytes(smaller(page.screenshot()))


def test_from_the_demo_to_a_chat_with_a_plan_of_ones_own(chromium: Browser, tmp_path: Path):
    lab.notebook(tmp_path / "plan.ipynb", [planning.CELL])
    with lab.jupyterlab(tmp_path) as address, lab.opened(chromium, address, "plan.ipynb", height=1300) as page:
        page.evaluate(lab.RUN_ALL)
        planning.load(page)
        planning.measure(page, "Q4_0, Q5_0, Q8_0", tokens=64)
        expect(page.locator(".wbg-cell:visible")).to_have_count(211)
        assert page.locator(".wbg-chip:visible").all_inner_texts() == ["Q4_0\n1", "Q5_0\n2", "Q8_0\n3"]

        # The best plan within a budget, which the code names.
        planning.solve(page, 92)
        size, quality = page.locator(".wb-a-exact:visible"), page.locator(".wb-a-predicted:visible").first
        expect(size).to_contain_text("92 MB")
        expect(quality).to_contain_text("≈")
        expect(page.locator(".wb-code pre:visible").last).to_contain_text("budget=92_000_000")
        picture(page, "solved")

        # Three cells by keyboard: the picture, the size and the prediction follow.
        was = size.inner_text(), quality.inner_text()
        planning.change(page, SELECTED, "3")
        for name in SELECTED:
            expect(cell(page, name)).to_have_text("Q8_0")
        assert (size.inner_text(), quality.inner_text()) != was
        expect(page.locator(".wbg-status:visible")).to_contain_text("blk.20.ffn_gate.weight: Q8_0")
        expect(page.locator(".wb-code pre:visible").last).to_contain_text('"blk.20.ffn_gate.weight": "Q8_0"')

        # Locked by a key, they refuse another format, and say why; the rest is solved around them.
        answered(page, lambda: page.keyboard.press("l"))
        expect(cell(page, SELECTED[2])).to_have_class("wbg-cell wbg-locked")
        answered(page, lambda: page.keyboard.press("1"))
        expect(page.locator(".wbg-status:visible")).to_contain_text("it is locked")
        expect(cell(page, SELECTED[2])).to_have_text("Q8_0")

        # A range by Shift and arrows, a kind by its head, everything; and back.
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Shift+ArrowLeft")
        expect(page.locator(".wbg-cell[aria-selected=true]:visible")).to_have_count(4)
        page.locator(".wbg-head:visible span", has_text="down").click()
        expect(page.locator(".wbg-cell[aria-selected=true]:visible")).to_have_count(30)
        cell(page, SELECTED[0]).click()
        page.keyboard.press("Control+a")
        expect(page.locator(".wbg-cell[aria-selected=true]:visible")).to_have_count(211)
        answered(page, lambda: page.keyboard.press("1"))
        expect(cell(page, SELECTED[0])).to_have_text("Q4_0")
        expect(cell(page, SELECTED[2])).to_have_text("Q8_0")
        answered(page, lambda: page.keyboard.press("Control+z"))
        expect(cell(page, SELECTED[0])).to_have_text("Q8_0")
        page.keyboard.press("Escape")
        expect(page.locator(".wbg-cell[aria-selected=true]:visible")).to_have_count(0)
        picture(page, "edited")

        # Measured, the figures stand beside the predicted ones.
        planning.verify(page, tokens=64)
        expect(page.locator(".wb-table:visible", has_text="Measured KL")).to_be_visible()
        picture(page, "verified")

        # Written, and asked in llama.cpp.
        planning.export(page, "mine.gguf")
        assert (tmp_path / "mine.gguf").stat().st_size > 80e6
        picture(page, "exported")
        said = planning.talk(page, "Name three uses of copper.")
        expect(said).to_contain_text("llama.cpp")
        expect(page.locator(".wb-text:visible").last).not_to_be_empty()
        picture(page, "chat")

        # Back on the desk, the plan is where it was.
        step(page, "Plan")
        expect(cell(page, SELECTED[0])).to_have_text("Q8_0")
        expect(button(page, "Undo")).to_be_enabled()
