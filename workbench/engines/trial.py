"""A GGUF opened in a process of its own before it is opened in this one.

llama.cpp ends its process at many a contradiction in a file (a model of no layers, say, fails an
assertion). So a file that it has not seen yet is first loaded, and two tokens asked of it, where that
ends nothing else; what llama.cpp says of the file is the error that the user reads.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import files
from workbench.checkpoint import child
from workbench.exceptions import WorkbenchError, need
from workbench.progress import Progress, Steps

SAID = re.compile(r"(?:error loading model|GGML_ASSERT|llama_init_from_model|error)[^\n]*")
BATCH = 128  # tokens of a prompt between two chances to stop; a processor is no faster with more
BATCH_ON_GPU = 512


def open_steps(name: str, options: Mapping[str, Any]) -> Steps[None]:
    """Let llama.cpp open the file with `options` elsewhere, unless it did before; closing it stops that.

    Raises:
        WorkbenchError: what llama.cpp said of the file, or how it ended.
    """
    cache = files.cache("llama.cpp")
    about = Path(options["path"]).stat()
    version = getattr(need("xllamacpp"), "__version__", "")
    key = files.digest(dict(options), about.st_size, about.st_mtime_ns, version)
    if cache.get([key]):
        return
    command, environment = child.module("workbench.engines.trial", json.dumps(dict(options)))
    trying = Progress(0, 0, "", f"trying {name} in a process of its own")
    try:
        yield from child.run_steps(command, lambda: trying, environment=environment)
    except child.Failed as failed:
        raise WorkbenchError(
            name,
            f"llama.cpp does not run this file: {_said(str(failed))}",
            do="get the file again or convert it anew; a file of a newer kind may need a newer xllamacpp",
        ) from failed
    cache.put({key: True})


def _said(text: str) -> str:
    """The first line of llama.cpp's that gives a reason, else the last of all."""
    found = SAID.search(text)
    return (found[0] if found else text.strip().rpartition("\n")[2])[:300]


def server_of(options: Mapping[str, Any], *, key: str, port: int = 0, verbosity: int = -1) -> Any:
    """llama.cpp with a model open: an `xllamacpp.Server`, which also listens on a port of this machine.

    Args:
        options: the fields of `llamacpp.Options`.
        key: without it the port answers nobody; "": it answers all programs of this machine.
        port: 0 takes any that is free.
        verbosity: of llama.cpp's log on the error stream; -1: silent, 1: errors.

    Raises:
        RuntimeError: llama.cpp could not open it.
    """
    library = need("xllamacpp")
    params = library.CommonParams()
    params.model.path = options["path"]
    params.n_ctx, params.n_parallel = options["context"], 1
    params.n_batch = BATCH_ON_GPU if options["gpu_layers"] else BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    params.n_gpu_layers, params.fit_params = options["gpu_layers"], False
    kinds = library.ggml_type
    params.cache_type_k, params.cache_type_v = (getattr(kinds, f"GGML_TYPE_{each.upper()}") for each in options["kv"])
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], port, [key] if key else []
    params.ui = params.endpoint_slots = False
    params.use_jinja, params.chat_template = False, "chatml"  # never the file's own: that is a program of a stranger
    params.verbosity = verbosity
    return library.Server(params)


if __name__ == "__main__":
    server = server_of(json.loads(sys.argv[1]), key="unused", verbosity=1)
    server.handle_completions({"prompt": "a", "max_tokens": 2, "temperature": 1.0})
