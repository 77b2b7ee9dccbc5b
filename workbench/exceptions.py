"""The one error a user meets: which item, what was found, what is allowed, what to do."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    # importable module -> the extra in pyproject.toml that installs it
    "torch": "transformers",
    "transformers": "transformers",
    "accelerate": "transformers",
    "bitsandbytes": "bitsandbytes",
    "xllamacpp": "llama.cpp",
    "openai": "server",
    "sentencepiece": "gguf",
    "math_verify": "maths",
    "lm_eval": "lm-eval",
    "jupyterlab": "notebook",
    "nbconvert": "notebook",
}


class WorkbenchError(Exception):
    """Something in the user's input or machine that they can put right.

    Args:
        item: the file, tensor, format or setting the message is about.
        found: what was there.
        allowed: what would have been accepted, if that can be listed.
        do: the way out, as an instruction.

    Raised before memory is spent or a file is touched.
    """

    def __init__(self, item: object, found: str, *, allowed: str = "", do: str = "") -> None:
        self.item, self.found, self.allowed, self.do = str(item), found, allowed, do
        super().__init__(self.message)

    @property
    def message(self) -> str:
        lines = [f"{self.item}: {self.found}"]
        if self.allowed:
            lines.append(f"Allowed: {self.allowed}")
        if self.do:
            lines.append(f"Try: {self.do}")
        return "\n".join(lines)

    def __reduce__(self):  # keeps the keyword arguments when a job hands the error between processes
        return (_rebuild, (type(self), self.item, self.found, self.allowed, self.do))


def _rebuild(cls: type[WorkbenchError], item: str, found: str, allowed: str, do: str) -> WorkbenchError:
    return cls(item, found, allowed=allowed, do=do)


class MissingExtra(WorkbenchError):
    """A part that needs an optional package which is not installed."""


def need(module: str) -> ModuleType:
    """Import an optional module, or raise `MissingExtra` naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        raise absent(module, f"it could not be imported ({reason})") from reason


def absent(module: str, why: str) -> MissingExtra:
    """The error for an optional module that is not there."""
    package = module.partition(".")[0]
    return MissingExtra(
        package,
        f"this call needs the package {package!r}: {why}",
        do=f'pip install "quantization-workbench[{EXTRAS.get(package, package)}]"',
    )
