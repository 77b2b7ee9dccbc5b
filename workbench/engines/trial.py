"""A GGUF opened in a process of its own before it is opened in this one.

llama.cpp ends its process at many a contradiction in a file (a model of no layers, say, fails an
assertion). So a file that it has not seen yet is first loaded, and two tokens asked of it, where that
ends nothing else; what llama.cpp says of the file is the error that the user reads.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path

from workbench import files
from workbench.checkpoint import child
from workbench.engines.options import Options, program, server_of
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps

SAID = re.compile(r"(?:error loading model|GGML_ASSERT|llama_init_from_model|error)[^\n]*")


def open_steps(name: str, options: Options) -> Steps[None]:
    """Let llama.cpp open the file with `options` elsewhere, unless it did before; closing it stops that.

    Raises:
        WorkbenchError: what llama.cpp said of the file, or how it ended.
    """
    cache = files.cache("llama.cpp")
    about = Path(options.path).stat()
    version = getattr(need("xllamacpp"), "__version__", "")
    key = files.digest(asdict(options), about.st_size, about.st_mtime_ns, version)
    if cache.get([key]):
        return
    command, environment = program("workbench.engines.trial", options.json)
    trying = Progress(0, 0, "", f"trying {name} in a process of its own")
    try:
        yield from child.run_steps(command, lambda: trying, environment=environment)
    except child.Failed as failed:
        raise WorkbenchError(
            name,
            f"llama.cpp does not run this file: {reason(str(failed))}",
            do="get the file again or convert it anew; a file of a newer kind may need a newer xllamacpp",
        ) from failed
    cache.put({key: True})


def reason(text: str) -> str:
    """The first line of llama.cpp's that gives a reason, else the last of all."""
    found = SAID.search(text)
    return (found[0] if found else text.strip().rpartition("\n")[2])[:300]


if __name__ == "__main__":
    server = server_of(Options.read(sys.argv[1]), key="unused", verbosity=1)
    server.handle_completions({"prompt": "a", "max_tokens": 2, "temperature": 1.0})
