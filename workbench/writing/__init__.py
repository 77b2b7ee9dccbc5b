"""Plans as files that other programs run: written whole, checked, or not at all."""

from workbench.writing.checks import check, unwritable
from workbench.writing.exporting import Exported, export, export_steps
from workbench.writing.layout import nbytes_of

__all__ = ["Exported", "check", "export", "export_steps", "nbytes_of", "unwritable"]
