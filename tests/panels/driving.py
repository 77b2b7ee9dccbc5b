"""Panels driven as a user does, and read as one does."""

from __future__ import annotations

import time
from collections.abc import Callable

from workbench import panels
from workbench.panels.conversation import Turn


def html_of(panel) -> str:
    """Everything the panel puts on the page as markup, live and still."""
    import ipywidgets as widgets

    found, queue = [str(panel.snapshot())], [panel.widget]
    while queue:
        widget = queue.pop()
        queue.extend(getattr(widget, "children", ()))
        if isinstance(widget, widgets.HTML):
            found.append(widget.value)
    return "".join(found)


def finished(session: panels.Session) -> None:
    assert session.jobs.wait(60)
    assert session.jobs.status.error is None, session.jobs.status.error


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def result_of(code: str):
    """What a notebook shows for this code: the value of its last line."""
    *before, last = code.splitlines()
    namespace: dict = {}
    exec("\n".join(before), namespace)
    return eval(last, namespace)


def asked(panel: panels.Chat, prompt: str) -> Turn:
    panel.prompt.value = prompt
    panel.run()
    finished(panel.session)
    return panel.turns[-1]
