"""What llama.cpp is asked for: a file, a context, types, threads, layers; checked, and in xllamacpp's words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from workbench import fit
from workbench.checkpoint import Checkpoint, child
from workbench.engines.weights import cores
from workbench.exceptions import WorkbenchError, need
from workbench.fit.cache import type_names

CONTEXT = 4096  # tokens, where the model was made for more
BATCH = 128  # tokens of a prompt between two chances to stop; a processor is no faster with more
BATCH_ON_GPU = 512


@dataclass(frozen=True)
class Options:
    """How llama.cpp runs a file.

    Attributes:
        path: the GGUF, or the first of its parts.
        context: tokens of prompt and reply together.
        kv: the types that keys and values are kept in, such as ("f16", "q8_0").
        threads: that compute.
        gpu_layers: how many layers a GPU holds.
    """

    path: str
    context: int
    kv: tuple[str, str]
    threads: int
    gpu_layers: int

    @property
    def json(self) -> str:
        """For another process: `read` there gives the same options."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Options:
        found = json.loads(text)
        return cls(**{**found, "kv": tuple(found["kv"])})


def options_of(
    checkpoint: Checkpoint,
    context: int | None = None,
    kv: str | tuple[str, str] | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
) -> Options:
    """What a caller asked for, checked; None takes what suits this machine and model.

    Raises:
        WorkbenchError: not a GGUF, a context longer than the model was made for, an unknown cache
            type, or layers for a GPU that this build of llama.cpp cannot use.
    """
    if checkpoint.kind != "gguf":
        raise WorkbenchError(
            checkpoint.name,
            "llama.cpp runs GGUF files, and this model is a folder of safetensors",
            do='write one with wb.export(model, "model.gguf", "Q4_K_M"), or run it with engine="transformers"',
        )
    trained = checkpoint.metadata.get(f"{checkpoint.architecture}.context_length")
    longest = trained if isinstance(trained, int) and trained > 0 else CONTEXT
    _check("context", context, 1, longest, f"the model was made for {longest:,} tokens")
    _check("threads", threads, 1, 1024)
    _check("gpu_layers", gpu_layers, 0, 100_000)
    if gpu_layers and not has_gpu():
        raise WorkbenchError(
            "gpu_layers",
            f"it is {gpu_layers}, and this build of llama.cpp finds no GPU",
            allowed="0, or None",
            do="install the wheel of xllamacpp for your GPU, which its documentation names",
        )
    layers = gpu_layers if gpu_layers is not None else 100_000 * has_gpu()
    types = type_names("f16" if kv is None else kv, "llama.cpp")
    return Options(str(checkpoint.path.resolve()), context or min(longest, CONTEXT), types, threads or cores(), layers)


def _check(name: str, value: object, least: int, most: int, why: str = "") -> None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        return
    found = f"it is {value!r:.40}" + (f", and {why}" if why else "")
    raise WorkbenchError(name, found, allowed=f"a whole number from {least} to {most:,}, or None")


def has_gpu() -> bool:
    """Whether this build of llama.cpp finds a GPU."""
    library = need("xllamacpp")
    kinds = library.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return any(device["type"] in gpus for device in library.get_device_info())


def ask(checkpoint: Checkpoint, options: Options, what: str, *, anyway: bool) -> None:
    """Refuse a file that does not fit with these options; raises `DoesNotFit`."""
    try:
        needs = fit.memory(checkpoint, None, options.context, kv=options.kv)
    except WorkbenchError:  # an architecture of which nothing is known: no estimate, which stops nobody
        return
    fit.ask(needs, what, "cuda" if options.gpu_layers else "cpu", anyway=anyway)


def program(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that run a module of this package with llama.cpp in a process of its own."""
    command, environment = child.module(module, *arguments)
    return command, {**environment, "GGML_NO_BACKTRACE": "1"}  # it would start a debugger as it dies


def server_of(
    options: Options, *, key: str, port: int = 0, name: str = "", own_template: bool = False, verbosity: int = -1
) -> Any:
    """llama.cpp with a model open: an `xllamacpp.Server`, which also listens on a port of this machine.

    Args:
        key: what the port asks of every program; "": nothing.
        port: 0 takes any that is free.
        name: the model's, for programs that ask.
        own_template: render the file's chat template, which is a program by a stranger, in this process.
        verbosity: of llama.cpp's log on the error stream; -1: silent, 1: errors.

    Raises:
        RuntimeError: llama.cpp could not open it.
    """
    library = need("xllamacpp")
    params = library.CommonParams()
    params.model.path = options.path
    params.n_ctx, params.n_parallel = options.context, 1
    params.n_batch = BATCH_ON_GPU if options.gpu_layers else BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_gpu_layers, params.fit_params = options.gpu_layers, False
    kinds = library.ggml_type
    params.cache_type_k, params.cache_type_v = (getattr(kinds, f"GGML_TYPE_{each.upper()}") for each in options.kv)
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], port, [key] if key else []
    params.model_alias, params.cors_origins = {name or "model"}, ""  # no page in a browser reads the answers
    params.ui = params.endpoint_slots = False
    params.use_jinja, params.chat_template = own_template, "" if own_template else "chatml"
    params.verbosity = verbosity
    return library.Server(params)
