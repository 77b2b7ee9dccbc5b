"""The app as a person uses it: a real JupyterLab, a real browser, the real demo model.

Screenshots of each step go to the folder that WORKBENCH_SCREENSHOTS names, if it is set. The
README's are taken anew with

    WORKBENCH_SCREENSHOTS=docs python -m pytest tests/browser/test_app.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import lab
from tests.fit.published import CONFIGS
from tools.pictures import smaller
from workbench.checkpoint import Checkpoint

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)  # the machine that runs the tests may be slow

CELL = "import workbench as wb\n\napp = wb.app()\napp"


def step(page: Page, name: str) -> None:
    page.locator(".wb-step", has_text=name).click()


def button(page: Page, name: str) -> Locator:
    return page.locator(f".jupyter-button:visible:text-is('{name}')")


def cells(page: Page) -> Locator:
    return page.locator(".wbg-cell:visible")


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("WORKBENCH_SCREENSHOTS"):
        page.evaluate("document.querySelector('.wb-app').scrollIntoView()")
        page.wait_for_timeout(1500)  # for what is still being drawn
        (Path(folder) / f"app-{name}.png").write_bytes(smaller(page.screenshot()))


def test_load_measure_cancel_look_and_chat(demo: Checkpoint, chromium: Browser, tmp_path: Path):
    lab.notebook(tmp_path / "app.ipynb", [CELL])
    with lab.jupyterlab(tmp_path) as address, lab.opened(chromium, address, "app.ipynb") as page:
        page.evaluate(lab.RUN_ALL)

        # The first step is plain: open a model.
        button(page, "Open").click()
        expect(page.locator(".wb-facts:visible")).to_contain_text("apache-2.0")
        expect(page.locator(".wb:visible").first).to_contain_text("4-bit grid")
        picture(page, "load")

        # What it needs is counted by part, anew for each press of a key on the slider.
        step(page, "Fit")
        verdict, slider = page.locator(".wb-verdict-fit:visible"), page.get_by_role("slider").locator("visible=true")
        expect(verdict).to_contain_text("SmolLM2-135M-Instruct as Q4_K_M in llama.cpp, 4,096 tokens")
        needed = page.locator(".wb-room:visible").inner_text()
        slider.focus()
        page.keyboard.press("ArrowRight")
        expect(verdict).to_contain_text("6,144 tokens")
        expect(page.locator(".wb-room:visible")).not_to_have_text(needed)

        # A model that is not here is counted from its config, against a card that is not here either.
        page.get_by_label("Model").locator("visible=true").fill(json.dumps(CONFIGS["Llama 3.1 8B"]))
        button(page, "Read headers").click()
        expect(verdict).to_contain_text("a model of the type llama")
        page.get_by_label("Device").locator("visible=true").select_option("RTX 3060, 12 GB")
        expect(verdict).to_contain_text("Fits on RTX 3060")
        slider.focus()
        page.keyboard.press("End")
        expect(verdict).to_contain_text("Does not fit on RTX 3060")
        button(page, "Longest that fits").click()
        expect(verdict).to_contain_text("Fits on RTX 3060")
        picture(page, "fit")

        # A running job is cancelled, and what it finished is kept.
        step(page, "Quantize")
        measure = page.locator(".jupyter-button.mod-primary:visible")
        expect(measure).to_have_text("Measure 8 formats")
        measure.click()
        expect(page.locator(".wb-progress:visible")).to_contain_text("blk.")
        picture(page, "measuring")
        button(page, "Cancel").click()
        expect(page.locator(".wb-progress:visible")).to_have_count(0)
        step(page, "Quantize")
        expect(page.locator(".wb-ended:visible")).to_contain_text("Cancelled")

        # Measured again, it goes on and ends with the heatmap of all 211 matrices.
        measure.click()
        expect(cells(page).first).to_be_visible(timeout=240_000)  # twenty seconds of two idle cores
        expect(page.locator(".wbg-cell:visible.wbg-unmeasured")).to_have_count(0)
        expect(cells(page)).to_have_count(len(demo.matrices))

        # A cell is selected by mouse ...
        chosen = page.get_by_role("gridcell", name="blk.5.").first
        chosen.click()
        expect(page.locator(".wb-name:visible")).to_contain_text("blk.5.")
        expect(chosen).to_have_attribute("aria-selected", "true")

        # ... and by keyboard, one layer further down.
        chosen.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator(".wb-name:visible")).to_contain_text("blk.6.")
        expect(page.locator(".wb-facts:visible")).to_contain_text("bits per weight")
        page.keyboard.press("Escape")  # the cell's hint would lie over others
        picture(page, "inspect")
        step(page, "Quantize")
        picture(page, "quantize")

        # What is chosen is written as a file, from the keyboard, with the commands that run it elsewhere.
        step(page, "Export")
        expect(page.locator(".wb-facts:visible")).to_contain_text("166 as Q5_0")
        page.get_by_label("File", exact=True).locator("visible=true").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator(".wb-done:visible")).to_contain_text(
            "Written and checked: SmolLM2-135M-Instruct-Q4_K_M.gguf"
        )
        assert (tmp_path / "SmolLM2-135M-Instruct-Q4_K_M.gguf").stat().st_size > 100e6
        expect(page.locator(".wb-way:visible")).to_have_count(5)
        picture(page, "export")

        # The file answers in llama.cpp: its reply streams in, with its speed.
        button(page, "Talk to it in llama.cpp").click()
        button(page, "Options").click()
        page.get_by_label("Threads").locator("visible=true").fill("1")  # two on a busy machine wait for each other
        button(page, "Settings").click()
        page.get_by_label("Most tokens").locator("visible=true").fill("60")
        button(page, "Settings").click()
        button(page, "Options").click()
        button(page, "Send").click()
        expect(page.locator(".wb-answer:visible")).to_contain_text("tokens/s", timeout=240_000)
        expect(page.locator(".wb-text:visible").last).not_to_be_empty()
        expect(page.locator(".wb-speeds:visible tbody tr")).to_have_count(1)

        # The same prompt to another format in another engine, with the first token that differs.
        page.get_by_label("Compare with").locator("visible=true").select_option("Q2_K")
        page.locator(".widget-textarea:visible textarea").first.fill("Name three uses of copper.")
        page.locator(".widget-textarea:visible textarea").first.blur()
        button(page, "Send").click()
        expect(page.locator(".wb-verdict:visible")).to_contain_text("token", timeout=240_000)
        expect(page.locator(".wb-speeds:visible tbody tr")).to_have_count(3)
        picture(page, "chat")
        assert page.evaluate(
            "[...document.querySelectorAll('.wb-app')].every(app => app.scrollWidth <= app.clientWidth)"
        )

        hosts = {urlsplit(url).hostname for url in page.asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
        assert hosts == {"127.0.0.1"}
