"""Will it fit: exact memory of a model before anything is downloaded or loaded."""

from workbench.fit.devices import TABLE, Device, device
from workbench.fit.guard import ask, guarded
from workbench.fit.memory import ENGINES, Memory, Offload, memory, memory_steps

__all__ = ["ENGINES", "TABLE", "Device", "Memory", "Offload", "ask", "device", "guarded", "memory", "memory_steps"]
