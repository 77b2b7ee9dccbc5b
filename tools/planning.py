"""The moving picture of the plan editor, from a real run: JupyterLab, Chromium, the demo model.

    python -m tools.planning docs/plan.webp [--card model.card]

The same way that tests/browser/test_plan.py goes, with llama.cpp's K-quants: a budget, three cells, a kind, the solver
around what is locked, the measurement, and a chat with the file. Without a card it is measured, which takes minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Page

from tests.browser import lab, planning
from tests.browser.planning import answered, button, cell
from tools.browser import chromium

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (1000, 1130)
FORMATS = "Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0"
TOKENS = 2048  # of the card and of the measurement
MOMENT, LONG = 1100, 3200  # milliseconds that a frame is shown


class Film:
    """Frames of a page, and how long each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[tuple[Image, int]] = []

    def take(self, milliseconds: int = MOMENT, *, of: str = ".wb-plan") -> None:
        """A frame of the page, scrolled so that an element of it is at the top."""
        from PIL import Image

        self.page.evaluate(
            "what => [...document.querySelectorAll(what)].find(each => each.offsetParent).scrollIntoView()", of
        )
        self.page.wait_for_timeout(500)
        box = self.page.locator(".jp-Notebook").first.bounding_box()
        assert box is not None
        clip: Any = {"x": box["x"] + 70, "y": box["y"], "width": box["width"] - 82, "height": box["height"]}
        image = Image.open(BytesIO(self.page.screenshot(clip=clip))).convert("RGB")
        self.frames.append((image, milliseconds))

    def save(self, path: Path) -> None:
        """As an animated picture, written whole."""
        from workbench import files

        first, *rest = (image for image, _ in self.frames)
        durations = [milliseconds for _, milliseconds in self.frames]
        with files.whole(path) as temporary:
            first.save(
                temporary,
                "WEBP",
                save_all=True,
                append_images=rest,
                duration=durations,
                loop=0,
                lossless=True,
                method=4,
            )


def run(page: Page, film: Film, card: str) -> None:
    """Go the whole way, and take a frame where something has changed."""
    planning.load(page)
    if card:
        planning.step(page, "Plan")
        page.get_by_label("Formats", exact=True).locator("visible=true").fill(FORMATS)
        page.get_by_label("Card file", exact=True).locator("visible=true").fill(card)
        page.keyboard.press("Tab")
        button(page, "Open card").click()
        page.wait_for_selector(".wbg-chip:visible", timeout=planning.LONG)
    else:
        planning.measure(page, FORMATS, TOKENS)
    for megabytes in (104, 98, 93, 90):
        planning.solve(page, megabytes)
        film.take()
    planning.change(page, planning.SELECTED, "5", film.take)
    answered(page, lambda: page.keyboard.press("l"))
    page.locator(".wbg-head:visible span", has_text="down").click()
    film.take()
    answered(page, lambda: page.keyboard.press("4"))
    film.take()
    planning.solve(page, 90)
    cell(page, planning.SELECTED[0]).hover()
    film.take(LONG)
    page.mouse.move(5, 5)
    page.keyboard.press("Escape")
    planning.verify(page, TOKENS)
    film.take(LONG)
    planning.export(page, "mine.gguf")
    planning.talk(page, "Name three uses of copper.")
    film.take(LONG, of=".wb-app")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the picture, ending in .webp")
    parser.add_argument("--card", type=Path, help="a card of the demo that was saved")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        lab.notebook(folder / "plan.ipynb", [planning.CELL])
        with (
            lab.jupyterlab(folder) as address,
            lab.opened(browser, address, "plan.ipynb", width=SIZE[0], height=SIZE[1]) as page,
        ):
            page.evaluate(lab.RUN_ALL)
            film = Film(page)
            run(page, film, str(given.card.absolute()) if given.card else "")
            film.save(given.path)
    print(f"{given.path}: {len(film.frames)} frames, {given.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
