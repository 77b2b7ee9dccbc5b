"""The grid of a plan as a widget: what is selected, and the commands that come from its keys and presses."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

from workbench.allocation import Draft
from workbench.panels.grid import script
from workbench.panels.sheet import By, Sheet


class Editor(anywidget.AnyWidget):
    """`view` is drawn once, `paint` after every change; `chosen` are the keys of the selected cells.

    Arrows move and select, with Shift a range, Ctrl+A all, Ctrl+Space the kind, Shift+Space the row; a number key gives
    a format, L locks, Ctrl+Z and Ctrl+Y go back and forth, Enter shows the experts of a layer. What is to be done comes
    as messages {"do": "give" | "lock" | "undo" | "redo" | "open", "cells": keys, ...}.
    """

    _esm = script("grid.js", "edit.js")
    _css = Path(__file__).with_name("grid.css")

    view = traitlets.Dict().tag(sync=True)
    paint = traitlets.Dict().tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode()).tag(sync=True)
    dark = traitlets.Bool(False).tag(sync=True)

    sheet: Sheet | None = None
    by: By = "format"
    answers = 0

    def edit(self, draft: Draft | None) -> None:
        """Show a draft; None: nothing."""
        with self.hold_sync():
            self.sheet = Sheet(draft) if draft is not None else None
            self.chosen = []
            if self.sheet is None:
                self.view, self.paint = {}, {}
            else:
                self.draw()

    def draw(self, by: By | None = None) -> None:
        """Draw the grid anew: other cells, other colours."""
        self.by = by or self.by
        if self.sheet is not None:
            with self.hold_sync():
                self.view = self.sheet.view(self.by)
                self.answer()

    def answer(self, said: str = "", refused: bool = False) -> None:
        """Tell the page how the grid looks now. Every answer is a change, so that what it drew ahead is put right."""
        if self.sheet is not None:
            self.answers += 1
            told = {"answer": self.answers, "by": self.by, "said": said, "refused": refused}
            self.paint = {**told, "cells": self.sheet.paint(self.by)}
