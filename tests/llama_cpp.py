"""What llama.cpp's own quantizer does, as recorded from its library, to hold plans against.

No package that pip can install carries `llama_model_quantize` for every system this runs on, so its answers
lie in `recorded/llama_cpp.json`: those of llama.cpp v0.5.0, as in the npm package @node-llama-cpp/linux-x64
3.22.1 (`npm pack` fetches it). To record them again, from that library or one built by hand:

    python -m tests.llama_cpp path/to/libllama.so
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import tiny
from workbench.checkpoint import Checkpoint, load
from workbench.planning import Plan, plan_for
from workbench.writing import beside

RECORDED = Path(__file__).parent / "recorded" / "llama_cpp.json"
RECORDED_BYTES = RECORDED.with_name("llama_cpp_bytes.json")

# llama.cpp's numbers of file types (`enum llama_ftype`), which are not those of ggml's types
MIXED = {
    **{"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q4_K_M": 15, "Q4_K_S": 14},
    **{"Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "Q2_K": 10},
}
PURE = {"F16": 1, "Q8_0": 7, "Q4_0": 2, "Q6_K": 18, "Q5_K": 16, "Q4_K": 14, "Q3_K": 11, "Q2_K": 10}

MODELS: dict[str, dict[str, Any]] = {
    **{f"{layers} layers": {"layers": layers} for layers in (1, 2, 3, 4, 7, 8, 15, 16, 17, 33)},
    "tied": {"tied": True, "layers": 9},
    "a key and value head for each query head": {"kv_heads": 4},
    "4 query heads for a key and value head": {"heads": 8, "kv_heads": 2},
    "8 query heads for a key and value head": {"heads": 8, "kv_heads": 1},
    "no rows of whole 256": {"hidden": 288, "middle": 320, "layers": 9},
    "no rows of whole 256, tied": {"hidden": 288, "middle": 320, "tied": True},
    "SmolLM2's shapes": {"hidden": 576, "middle": 1536, "heads": 9, "kv_heads": 3, "tied": True, "layers": 4},
    "an MLP of 96": {"middle": 96},
    "4 experts": {"experts": 4, "layers": 9},
    "8 experts": {"experts": 8, "layers": 9},
    "8 experts, tied, 8 query heads for one": {"experts": 8, "tied": True, "heads": 8, "kv_heads": 1},
    "8 experts of another architecture": {"architecture": "qwen3moe", "experts": 8},
    "queries, keys and values in one": {"fused": True, "layers": 9, "architecture": "phi3"},
    "Falcon": {"architecture": "falcon", "fused": True, "layers": 17, "tied": True},
    "Falcon with a head": {"architecture": "falcon", "fused": True, "layers": 33},
    "Qwen2": {"architecture": "qwen2", "layers": 9},
    "Gemma 2": {"architecture": "gemma2", "tied": True, "layers": 9},
    "Llama 70B": {"layers": 80, "middle": 32},
    "Llama 65B, whose heads do not share": {"layers": 80, "middle": 32, "kv_heads": 4},
    "Qwen2 72B": {"layers": 80, "middle": 32, "architecture": "qwen2"},
    "OLMo of 80 layers": {"layers": 80, "middle": 32, "architecture": "olmo"},
    "Gemma 2 of 80 layers": {"layers": 80, "middle": 32, "architecture": "gemma2"},
}
FOR_PURE = ("3 layers", "tied", "no rows of whole 256", "SmolLM2's shapes", "8 experts")


def write(
    path: Path,
    architecture: str = "llama",
    *,
    layers: int = 3,
    hidden: int = 256,
    middle: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    experts: int = 0,
    tied: bool = False,
    fused: bool = False,
) -> Path:
    """A GGUF of zeros with the header, names and shapes of a model: all that the rule looks at."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(64)
    writer.add_vocab_size(32)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(1)
        writer.add_expert_feed_forward_length(middle)
    for name, shape in _shapes(layers, hidden, middle, hidden // heads * kv_heads, experts, tied, fused).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(
    layers: int, hidden: int, middle: int, kv: int, experts: int, tied: bool, fused: bool
) -> dict[str, tuple[int, ...]]:
    """llama.cpp's name of every tensor -> its shape."""
    stack, ending = ((experts,), "_exps") if experts else ((), "")
    inside: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_output": (hidden, hidden),
        f"ffn_gate{ending}": (*stack, middle, hidden),
        f"ffn_up{ending}": (*stack, middle, hidden),
        f"ffn_down{ending}": (*stack, hidden, middle),
    }
    if fused:
        inside["attn_qkv"] = (hidden + 2 * kv, hidden)
    else:
        inside |= {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    if experts:
        inside["ffn_gate_inp"] = (experts, hidden)
    named = {f"blk.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in inside.items()}
    head = {} if tied else {"output.weight": (32, hidden)}
    return {"token_embd.weight": (32, hidden), **named, "output_norm.weight": (hidden,), **head}


def runs(types: Mapping[str, str]) -> str:
    """Tensor name -> type, shortened, the tensors of a kind side by side in the order of their layers.

    "attn_k.weight 4*Q4_K, attn_v.weight Q6_K 2*Q4_K Q6_K"
    """
    kinds: dict[str, list[tuple[int, str]]] = {}
    for name, type_name in types.items():
        _, _, rest = name.partition("blk.")
        layer, _, kind = rest.partition(".")
        kinds.setdefault(kind or name, []).append((int(layer or 0), type_name))
    return ", ".join(f"{kind} {_counted(type_name for _, type_name in sorted(kinds[kind]))}" for kind in sorted(kinds))


def _counted(names: Iterable[str]) -> str:
    lengths = [(name, sum(1 for _ in same)) for name, same in groupby(names)]
    return " ".join(name if length == 1 else f"{length}*{name}" for name, length in lengths)


class _Importance(ctypes.Structure):
    """`llama_model_imatrix_data`; a list of them ends with one that has no name."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


class _TypeOf(ctypes.Structure):
    """`llama_model_tensor_override`; a list of them ends with one that has no pattern."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int32))


class _Settings(ctypes.Structure):
    """`llama_model_quantize_params`, with room for fields that later versions add."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("threads", "file_type", "head_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "head_too", "copy", "pure", "keep_split", "dry_run")),
        ("importance", ctypes.POINTER(_Importance)),
        ("metadata", ctypes.c_void_p),
        ("types", ctypes.POINTER(_TypeOf)),
        ("later", ctypes.c_uint64 * 14),
    )


def opened(library_path: Path) -> ctypes.CDLL:
    for other in sorted(library_path.parent.glob("libggml*")):
        if "cpu" not in other.name:
            ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(library_path))
    library.llama_model_quantize_default_params.restype = _Settings
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Settings)]
    return library


def record(library: ctypes.CDLL) -> dict[str, Any]:
    """Quantize every model by every rule: model -> "mixed" or "pure" -> file type -> types and bytes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.gguf", Path(folder) / "target.gguf"
        for model, described in MODELS.items():
            write(source, **described)
            for pure, file_types in ((False, MIXED), (True, PURE if model in FOR_PURE else {})):
                for name, number in file_types.items():
                    settings = library.llama_model_quantize_default_params()
                    settings.threads, settings.file_type, settings.pure = 1, number, pure
                    failed = library.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings))
                    assert not failed, (model, name)
                    tensors = gguf.GGUFReader(target).tensors
                    types = {tensor.name: tensor.tensor_type.name for tensor in tensors}
                    answer = {"types": runs(types), "bytes": sum(int(tensor.n_bytes) for tensor in tensors)}
                    found.setdefault(model, {}).setdefault("pure" if pure else "mixed", {})[name] = answer
    return found


# --- the bytes it writes ----------------------------------------------------------------------

WRITTEN = {  # model with weights -> (its sizes, ggml's type of the source)
    "in single precision": ({"hidden": 256}, "F32"),
    "no rows of whole 256": ({"hidden": 192, "intermediate": 320}, "F32"),
    "quantized already": ({"hidden": 256}, "Q8_0"),
}


def write_model(path: Path, described: str) -> dict[str, np.ndarray]:
    """A tiny GGUF with random weights; gives an importance for each of its matrices."""
    sizes, type_name = WRITTEN[described]
    tiny.gguf(path, tiny.weights(**sizes), type_name)
    random = np.random.default_rng(1)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in gguf.GGUFReader(path).tensors}
    matrices = sorted(name for name, shape in shapes.items() if len(shape) == 2)
    return {name: random.uniform(0.1, 4, shapes[name][0]).astype(np.float32) for name in matrices}


def digest_of(path: Path) -> str:
    """A hash of every tensor's name, type and bytes, whatever their order in the file."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        total.update(f"{tensor.name} {tensor.tensor_type.name} ".encode() + tensor.data.tobytes())
    return total.hexdigest()


def record_bytes(library: ctypes.CDLL) -> dict[str, Any]:
    """Quantize the models of `WRITTEN`: model -> file type, with and without importance -> digest."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.gguf", Path(folder) / "target.gguf"
        for described in WRITTEN:
            importance = write_model(source, described)
            entries = (_Importance * (len(importance) + 1))(
                *(
                    _Importance(name.encode(), each.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), each.size)
                    for name, each in importance.items()
                )
            )
            for name, number in MIXED.items():
                for weighed in (False, True):
                    settings = library.llama_model_quantize_default_params()
                    settings.threads, settings.file_type, settings.requantize = 1, number, True
                    if weighed:
                        settings.importance = entries
                    failed = library.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings))
                    assert not failed, (described, name)
                    found.setdefault(described, {})[f"{name}{' by importance' if weighed else ''}"] = digest_of(target)
            found[described][PLANNED] = digest_by_recipe(library, source, target)
    return found


PLANNED = "each matrix in another format"


def planned(model: Checkpoint) -> Plan:
    """A plan that no rule makes."""
    kinds = ("Q4_K", "Q8_0", "IQ4_XS", "Q5_K", "Q3_K", "Q6_K", "Q4_0")
    return plan_for(model, {info.name: kinds[at % len(kinds)] for at, info in enumerate(model.matrices)})


def digest_by_recipe(library: ctypes.CDLL, source: Path, target: Path) -> str:
    """What llama.cpp writes by the lines that `beside.tensor_types` gives of that plan, read as llama-quantize does."""
    lines = beside.tensor_types(planned(load(str(source)))).split()
    asked = [line.rpartition("=")[::2] for line in lines]
    types = (_TypeOf * (len(asked) + 1))(
        *((pattern.encode(), gguf.GGMLQuantizationType[name.upper()].value) for pattern, name in asked)
    )
    settings = library.llama_model_quantize_default_params()
    settings.threads, settings.file_type, settings.requantize, settings.types = 1, MIXED["Q4_K_M"], True, types
    assert not library.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings))
    return digest_of(target)


if __name__ == "__main__":
    library = opened(Path(sys.argv[1]))
    RECORDED.write_text(json.dumps(record(library), indent=1) + "\n")
    RECORDED_BYTES.write_text(json.dumps(record_bytes(library), indent=1) + "\n")
