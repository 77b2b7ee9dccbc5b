"""The ready command that serves a model by vLLM or Text Generation Inference, where those run: with docker or pip.

Both read most settings from the model's own `quantization_config`; what is said here is what a reader should see, and
what they need to be told. Options are those of their documentation (docs.vllm.ai, "Engine arguments";
huggingface.co/docs/text-generation-inference, "Launcher arguments"); what TGI reads is what its loaders are
(server/text_generation_server/utils/quantization.py): of bitsandbytes it makes the weights, and reads none.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from workbench.checkpoint import Checkpoint, load
from workbench.exceptions import WorkbenchError

IMAGES = {"vllm": "vllm/vllm-openai:latest", "tgi": "ghcr.io/huggingface/text-generation-inference:latest"}
TITLES = {"vllm": "vLLM", "tgi": "Text Generation Inference"}
PORTS = {"vllm": 8000, "tgi": 3000}
METHODS = {  # quantization_config's method -> what the server's option calls it; "" leaves it to the server, which
    # for GPTQ and AWQ takes the fastest kernel that the GPU has: naming the method would take the plain one
    "vllm": {"": "", "compressed-tensors": "compressed-tensors", "gptq": "", "awq": ""}
    | {"bitsandbytes": "bitsandbytes", "fp8": "fp8", "mxfp4": "mxfp4", "modelopt": "modelopt"},
    "tgi": {"": "", "compressed-tensors": "compressed-tensors", "gptq": "gptq", "awq": "awq", "exl2": "exl2"}
    | {"fp8": "fp8"},
}
CACHES = {"vllm": {"fp8": "fp8", "fp8_e5m2": "fp8_e5m2"}, "tgi": {"fp8": "fp8_e4m3fn", "fp8_e5m2": "fp8_e5m2"}}
INSIDE = "/model"  # where the container sees the folder
SNAPSHOTS = "snapshots"  # of the hub's cache: folders of links into the blobs beside them


def serve_command(
    model: Checkpoint | str | Path,
    server: str = "vllm",
    *,
    context: int | None = None,
    kv: str | None = None,
    port: int | None = None,
    docker: bool = True,
) -> str:
    """The command that serves a model on a machine with an NVIDIA GPU; run it there, and talk to it by `wb.run`.

        print(wb.serve_command("model-gptq", "vllm", context=8192, kv="fp8"))
        wb.run("vllm", model="model-gptq")

    Args:
        model: a folder of safetensors (what `wb.quantize` writes, say), or the id of a hub model.
        server: "vllm" or "tgi".
        context: tokens of prompt and reply together; None: what the model was made for.
        kv: "fp8" or "fp8_e5m2" keeps keys and values in 8 bits; None: in 16.
        port: on this machine alone; None: where `wb.run(server)` looks.
        docker: by the server's own image; False: by the program that pip installed (vLLM only).

    Raises:
        WorkbenchError: a model, a way of quantizing or a cache that the server does not have, with what does run it.
    """
    if server not in TITLES:
        raise WorkbenchError("server", f"it is {server!r:.40}", allowed='"vllm" or "tgi"')
    opened = model if isinstance(model, Checkpoint) else load(str(model))
    native = _method(opened, server)
    cache = _cache(server, kv)
    _check_context(opened, context)
    if not docker and server == "tgi":
        raise WorkbenchError("docker", "Text Generation Inference has no wheel", do="leave docker=False out")
    chosen = PORTS[server] if port is None else port
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= 65535:
        raise WorkbenchError("port", f"it is {port!r:.40}", allowed="1 to 65535")
    if server == "vllm":
        options = ["--served-model-name", served_name(opened), "--quantization", native, "--max-model-len", context]
        options += ["--kv-cache-dtype", cache]
    else:
        longest = context - 1 if context else None
        options = ["--quantize", native, "--max-input-tokens", longest, "--max-total-tokens", context]
        options += ["--kv-cache-dtype", cache]
    if not docker:
        place = str(opened.path.resolve())
        return _joined(["vllm", "serve", place, *_given(options), "--host", "127.0.0.1", "--port", str(chosen)])
    shown, place = _mounted(opened)
    inside, names = (8000, "--model") if server == "vllm" else (80, "--model-id")
    start = ["docker", "run", "--rm", "--gpus", "all", "--ipc=host", "-p", f"127.0.0.1:{chosen}:{inside}"]
    return _joined([*start, "-v", f"{shown}:{INSIDE}:ro", IMAGES[server], names, place, *_given(options)])


def served_name(model: Checkpoint) -> str:
    """What the server is to call the model: its folder's name, or its id on the hub."""
    return model.name


def _mounted(model: Checkpoint) -> tuple[Path, str]:
    """(the folder that the container is shown, where the model is for it).

    A model in the hub's cache is a folder of links, which lead nowhere unless the blobs beside it are shown too.
    """
    folder = model.path.resolve()
    linked = folder.parent.name == SNAPSHOTS and any(each.is_symlink() for each in folder.iterdir())
    shown, place = (folder.parents[1], f"{INSIDE}/{SNAPSHOTS}/{folder.name}") if linked else (folder, INSIDE)
    if ":" in str(shown):
        raise WorkbenchError(str(shown), "docker cannot be shown a folder with a colon in its path", do="rename it")
    return shown, place


def _method(model: Checkpoint, server: str) -> str:
    """What the server calls the way of quantizing; "": it need not be told."""
    if model.kind == "gguf":
        raise WorkbenchError(
            model.name,
            f"it is a GGUF file, which {TITLES[server]} does not serve well",
            do='wb.serve(path) serves it by llama.cpp; wb.quantize(model, "FP8", to=...) makes a folder for this',
        )
    method = model.quant_method or ("exl2" if any(info.encoding.startswith("EXL2") for info in model.matrices) else "")
    if method not in METHODS[server]:
        other = next((name for name in METHODS if method in METHODS[name]), None)
        anew = 'quantize it anew: wb.quantize(model, "FP8", to=...)'
        do = f"serve it by {TITLES[other]}: wb.serve_command(model, {other!r})" if other else anew
        allowed = ", ".join(name for name in METHODS[server] if name)
        raise WorkbenchError(
            model.name, f"{TITLES[server]} does not read {method[:40]!r} from a folder", allowed=allowed, do=do
        )
    return METHODS[server][method]


def _cache(server: str, kv: str | None) -> str | None:
    if kv is None:
        return None
    if kv not in CACHES[server]:
        raise WorkbenchError("kv", f"it is {kv!r:.40}", allowed=", ".join(CACHES[server]) + ", or None for 16 bits")
    return CACHES[server][kv]


def _check_context(model: Checkpoint, context: int | None) -> None:
    longest = model.longest_context or 1 << 24
    whole = isinstance(context, int) and not isinstance(context, bool)
    if context is not None and not (whole and 2 <= context <= longest):
        raise WorkbenchError(
            "context", f"it is {context!r:.40}", allowed=f"2 to {longest:,}, what the model was made for"
        )


def _given(options: list[str | int | None]) -> list[str]:
    """The options that have a value."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [str(part) for name, value in pairs if value not in (None, "") for part in (name, value)]


def _joined(words: list[str]) -> str:
    """A line for a shell, whatever the names hold."""
    return " ".join(shlex.quote(word) for word in words)
