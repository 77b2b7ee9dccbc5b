"""Plans as files that other programs run: written whole, checked, or not at all."""

from workbench.writing.exporting import Exported, export, export_steps

__all__ = ["Exported", "export", "export_steps"]
