"""A transformers model from any checkpoint, with the weights it has or those a plan leaves of them.

The weights come from `checkpoint.read`, so safetensors and GGUF sources give the same
model, and no code of the model's author is ever run. transformers places them: it knows
how each architecture names, joins and ties its parameters.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import fit
from workbench.checkpoint import Checkpoint
from workbench.engines import room
from workbench.engines.weights import Weights
from workbench.exceptions import WorkbenchError, need
from workbench.fit import guard
from workbench.planning import Plan
from workbench.progress import Progress, Steps, drain, in_thread

if TYPE_CHECKING:
    import torch

_BUILDING = threading.Lock()  # transformers sets process-wide defaults (dtype, logging) while it builds a model


def model_of(
    checkpoint: Checkpoint,
    plan: Plan | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    quantization: Any = None,
    anyway: bool = False,
) -> Any:
    """The checkpoint as a transformers causal language model, ready to run.

    Args:
        plan: tensors it names are replaced by what their format gives back for them.
        dtype: of the weights; by default what is fast on the device (`default_dtype`).
        device: "cpu", "cuda:1", ...; by default the first GPU there is, else the CPU.
        importance: tensor name -> mean square of each input channel, for formats that use it.
        quantization: a quantization config of transformers, applied by that library while it loads.
        anyway: load it even if it does not fit.

    Peak memory is the model and one matrix in float32 (for experts that transformers keeps
    in one parameter: those of one layer); a `quantization` adds what its library works in.

    Raises:
        WorkbenchError: transformers does not know the architecture, or parameters are
            missing, unexpected or of another shape; the first of them are named.
        DoesNotFit: before any weight is read, or when memory ran out all the same.
    """
    steps = model_of_steps(
        checkpoint, plan, dtype, device, importance=importance, quantization=quantization, anyway=anyway
    )
    return drain(steps, label=f"loading {checkpoint.name}")


def model_of_steps(
    checkpoint: Checkpoint,
    plan: Plan | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    quantization: Any = None,
    anyway: bool = False,
) -> Steps[Any]:
    """`model_of`, yielding the bytes of the checkpoint that were read; closing it stops within a second."""
    where = device_of(device)
    kind = dtype_of(dtype, where)
    needs, what = needed(checkpoint, plan, kind, where, quantization), f"loading {checkpoint.name}"
    room.ask(needs, checkpoint, what, where, anyway=anyway)

    def build(report: Callable[[Progress], None]) -> Any:
        weights = Weights(checkpoint, plan, importance, report)
        with building(report), fit.guarded(needs, what, str(where)):
            return _load(weights, config_of(checkpoint), kind, where, quantization)

    return (yield from in_thread(build))


def needed(checkpoint: Checkpoint, plan: Plan | None, dtype: Any, device: Any, quantization: Any) -> fit.Memory | None:
    """What the model will take, for the arguments of `model_of`; None where there is no estimate."""
    if quantization is None:
        return room.needed(checkpoint, plan, dtype, device)
    four = str(getattr(quantization, "bnb_4bit_quant_type", ""))  # of another library: no format of that name
    name = "LLM.int8" if getattr(quantization, "load_in_8bit", False) else four.upper()
    return room.needed(checkpoint, name, dtype, device, engine="bitsandbytes")


def _load(weights: Weights, config: Any, dtype: Any, device: Any, quantization: Any) -> Any:
    checkpoint = weights.checkpoint
    state = {checkpoint.hf_name(name): _Lazy(weights, name, info.shape) for name, info in checkpoint.tensors.items()}
    placed = {} if device.type == "cpu" and quantization is None else {"device_map": {"": device}}
    try:
        model, info = type(skeleton_of(config, checkpoint, dtype)).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported here, with the names
            **placed,
        )
    except (ValueError, RuntimeError, NotImplementedError, ImportError) as reason:
        if guard.is_out_of_memory(reason):
            raise
        raise WorkbenchError(checkpoint.name, f"transformers could not build it: {reason!s:.500}") from reason
    _complain(checkpoint, info)
    return model.eval()


class _Lazy:
    """Stands in a state dict for a tensor that is read when transformers takes its values, `[...]`.

    It has what transformers 4.57 to 5.x asks of a slice of a safetensors file or of a tensor.
    """

    def __init__(self, weights: Weights, name: str, shape: tuple[int, ...]) -> None:
        torch = need("torch")
        self._weights, self._name = weights, name
        self.shape, self.dtype = torch.Size(shape), torch.float32

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._weights.tensor(self._name)[index]

    def __deepcopy__(self, memo: dict) -> _Lazy:
        return self

    def to(self, *where: Any, **how: Any) -> _Lazy:
        return self  # 4.57 moves a tensor before it takes its values, and moves these again

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return "F32"

    def is_floating_point(self) -> bool:
        return True


def _complain(checkpoint: Checkpoint, info: Mapping[str, Any]) -> None:
    """Raise if what transformers reports about the parameters is not perfect."""
    wrong = []
    for key, what in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info[key])
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            wrong.append(f"{len(names)} parameters are {what} ({', '.join(names[:5])}{more})")
    if wrong:
        raise WorkbenchError(
            checkpoint.name,
            f"its tensors do not fit the architecture {checkpoint.config.get('model_type')!r}: " + "; ".join(wrong),
            do="check that config.json and the weights are of one model and the download is complete",
        )


# --- what the model is ------------------------------------------------------------------------


def config_of(checkpoint: Checkpoint) -> Any:
    """The checkpoint's transformers config, without its quantization: the weights come decoded."""
    transformers = need("transformers")
    folder = checkpoint.hf_folder()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as reason:  # a config is a stranger's, and each architecture checks its own in its own way
        raise WorkbenchError(
            checkpoint.name,
            f"transformers {transformers.__version__} cannot use its config.json "
            f"(model_type {checkpoint.config.get('model_type')!r}): {reason!s:.300}",
            do="install a newer transformers, if it is a recent model",
        ) from reason
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > len(checkpoint.tensors):  # before as many layers are built
        raise WorkbenchError(
            checkpoint.name, f"its config says {layers} layers, and it has {len(checkpoint.tensors)} tensors"
        )
    return config


def skeleton_of(config: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model without weights: parameters on the meta device, buffers computed."""
    transformers, accelerate = need("transformers"), need("accelerate")
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as reason:
        raise WorkbenchError(
            checkpoint.name,
            f"transformers has no causal language model for {config.model_type!r}: {reason!s:.300}",
            do="open a text-generation model",
        ) from reason


def device_of(device: torch.device | str | None) -> Any:
    """The device asked for, by default the first GPU, else the CPU."""
    torch = need("torch")
    try:
        found = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as reason:
        raise WorkbenchError(
            "device", f"{device!r} cannot be used: {reason!s:.200}", allowed="cpu, cuda, cuda:1, mps"
        ) from reason
    return torch.empty(0, device=found).device


def dtype_of(dtype: torch.dtype | str | None, device: torch.device) -> Any:
    """The dtype asked for, by its object or name; None: `default_dtype`."""
    torch = need("torch")
    if dtype is None:
        return default_dtype(device)
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = allowed.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise WorkbenchError("dtype", f"it is {dtype!r}", allowed=", ".join(allowed))
    return found


def default_dtype(device: torch.device) -> Any:
    """bfloat16 where the processor computes in it, else float16 on a GPU and float32 on a CPU.

    A T4 (compute capability 7.5) and CPUs without AVX512-BF16 or AMX only emulate
    bfloat16; `torch.cuda.is_bf16_supported()` is true for the T4 all the same.
    """
    torch = need("torch")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu":
        has = [getattr(torch.cpu, f"_is_{what}_supported", bool) for what in ("avx512_bf16", "amx_tile")]
        return torch.bfloat16 if any(test() for test in has) else torch.float32
    return torch.float16


@contextlib.contextmanager
def building(report: Callable[[Progress], None]) -> Iterator[None]:
    """One model at a time, quietly, tensor by tensor.

    Left to itself, transformers 5 reads with several threads ahead of what it places, up
    to a whole second model; HF_DEACTIVATE_ASYNC_LOAD is its switch for that.
    """
    transformers = need("transformers")
    logs = transformers.utils.logging
    while not _BUILDING.acquire(timeout=0.2):
        report(Progress(0, 0, "B", "waiting for another model to load"))
    switch, level, bars = "HF_DEACTIVATE_ASYNC_LOAD", logs.get_verbosity(), logs.is_progress_bar_enabled()
    before = os.environ.get(switch)
    try:
        os.environ[switch] = "1"
        logs.set_verbosity_error()
        logs.disable_progress_bar()
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
        _BUILDING.release()


def streaming_model_of(
    checkpoint: Checkpoint,
    plan: Plan | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """The model of `model_of`, with each module's weights read when it is called and dropped after.

    A forward pass needs the activations and the largest module, not the model, and gives
    the same logits. Each pass reads the whole checkpoint: give it all sequences at once.
    """
    from workbench.engines import streaming

    return streaming.model_of(checkpoint, plan, dtype, device, importance=importance)
