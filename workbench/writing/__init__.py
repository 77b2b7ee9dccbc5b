"""Plans as files that other programs run: written whole, checked, or not at all."""

from workbench.writing.exporting import Exported, check, export, export_steps, nbytes_of, unwritable

__all__ = ["Exported", "check", "export", "export_steps", "nbytes_of", "unwritable"]
