"""The Chromium that is on this machine, through Playwright; no browser is downloaded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # as the Makefile looks for them
QUIET = (  # a browser that asks nothing of the network by itself
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path() -> str:
    """The browser's path.

    Raises:
        FileNotFoundError: there is none; the message says how to install it.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("No Chromium on this machine. On Debian or Ubuntu, as root: apt-get install chromium")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, closed at the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), headless=True, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()
