"""From a GGUF's conventions to transformers': config.json and tokenizer, parameter names, order of rows."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import files
from workbench.checkpoint import values
from workbench.checkpoint.gguf import LongArray
from workbench.checkpoint.tensors import TensorInfo
from workbench.exceptions import WorkbenchError, need

if TYPE_CHECKING:
    from workbench.checkpoint.checkpoint import Checkpoint

# --- config -----------------------------------------------------------------------------------

# config.json's key -> the GGUF's, after "<architecture>."
_CONFIG = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
}


def config_of(metadata: Mapping[str, Any], tensors: list[TensorInfo]) -> dict[str, Any]:
    """The main keys of a config.json, from a GGUF's metadata alone (transformers is not needed)."""
    architecture = str(metadata.get("general.architecture", ""))
    found = {key: metadata.get(f"{architecture}.{there}") for key, there in _CONFIG.items()}
    if found["vocab_size"] is None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        found["vocab_size"] = tokens.count if isinstance(tokens, LongArray) else None
    config: dict[str, Any] = {"model_type": architecture}
    config |= {key: value for key, value in found.items() if value is not None}
    return config | {"tie_word_embeddings": all(info.role != "lm_head" for info in tensors)}


MOST_FACTORS = 4096  # rotary frequencies of a head


def hf_folder(checkpoint: Checkpoint) -> Path:
    """config.json and the tokenizer of a GGUF as transformers saves them, made once and kept in the cache."""
    transformers = need("transformers")
    key = files.digest(checkpoint.fingerprint, transformers.__version__, files.code_version(sys.modules[__name__]))
    folder = files.cache_dir() / "transformers" / key
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=folder.name + ".tmp-", dir=folder.parent))
    try:
        _save_config(checkpoint, made)
        if "tokenizer.ggml.tokens" in checkpoint.metadata:
            _save_tokenizer(checkpoint, made)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have been quicker
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _save_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Let transformers convert the metadata, from a copy without the vocabulary, which it takes seconds to read."""
    import transformers

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            _write_metadata(checkpoint, Path(scratch) / "metadata.gguf")
            config = transformers.AutoConfig.from_pretrained(scratch, gguf_file="metadata.gguf")
        except Exception as reason:  # whatever it raises for an architecture or a value that it does not know
            raise _unsupported(checkpoint, str(reason)[:300]) from reason
    config.tie_word_embeddings = checkpoint.config["tie_word_embeddings"]
    config._name_or_path = ""
    if rope := _rope(checkpoint):
        config.rope_parameters = rope
    config.save_pretrained(folder)


def _rope(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The rotary frequencies that a GGUF scales by a tensor of factors (Llama 3, Phi 3), which transformers leaves out.

    Both use frequency_i = 1 / (factor_i * base^(2i / head_dim)); transformers calls it "longrope".
    """
    long = checkpoint.extras.get("rope_factors_long.weight") or checkpoint.extras.get("rope_freqs.weight")
    short = checkpoint.extras.get("rope_factors_short.weight") or long
    if long is None or short is None or max(long.params, short.params) > MOST_FACTORS:
        return None
    scaling = f"{checkpoint.architecture}.rope.scaling"
    longest = checkpoint.config.get("max_position_embeddings")
    return {
        "rope_type": "longrope",
        "rope_theta": checkpoint.config.get("rope_theta", 10_000.0),
        "short_factor": values.read(short).tolist(),
        "long_factor": values.read(long).tolist(),
        "factor": 1.0,
        "attention_factor": checkpoint.metadata.get(f"{scaling}.attn_factor", 1.0),
        "original_max_position_embeddings": checkpoint.metadata.get(f"{scaling}.original_context_length", longest),
    }


_OWN_KEYS = ("general.architecture", "general.alignment")  # which the writer sets itself


def _write_metadata(checkpoint: Checkpoint, path: Path) -> None:
    """A GGUF with the checkpoint's numbers, names of tensors, and nothing else."""
    import gguf

    writer = gguf.GGUFWriter(path, checkpoint.architecture)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_int64,
        float: writer.add_float64,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in checkpoint.metadata.items():
        if key not in _OWN_KEYS and not isinstance(value, LongArray) and value != []:
            add[type(value)](key, value)
    size = f"{checkpoint.architecture}.vocab_size"
    if size not in checkpoint.metadata and "vocab_size" in checkpoint.config:
        writer.add_int64(size, checkpoint.config["vocab_size"])
    for name in checkpoint.tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _unsupported(checkpoint: Checkpoint, found: str) -> WorkbenchError:
    return WorkbenchError(
        checkpoint.name,
        f"transformers cannot take a GGUF of the architecture {checkpoint.architecture!r}: {found}",
        do="open the model's safetensors folder instead, if it has one",
    )


# --- tokenizer --------------------------------------------------------------------------------


def _save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    import transformers

    file = checkpoint.path
    try:  # not AutoTokenizer, which would first take seconds to convert the config again
        made = transformers.PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        made.save_pretrained(folder)
    except Exception as reason:  # whatever it raises for a vocabulary that it does not know
        raise WorkbenchError(
            checkpoint.name, f"transformers cannot take its tokenizer: {str(reason)[:300]}"
        ) from reason


def tokenizer(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of a checkpoint, from local files and without any code of the model's author."""
    transformers = need("transformers")
    folder = checkpoint.hf_folder()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as reason:
        raise WorkbenchError(
            folder,
            f"transformers cannot open its tokenizer: {str(reason)[:300]}",
            do="check that tokenizer.json and tokenizer_config.json were downloaded with the model",
        ) from reason


# --- parameters -------------------------------------------------------------------------------


def hf_names(checkpoint: Checkpoint) -> dict[str, str]:
    """A GGUF's tensor names -> the names of the parameters of transformers' model."""
    import gguf

    torch, transformers = need("torch"), need("transformers")
    number = next((number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == checkpoint.architecture), None)
    if number is None or checkpoint.architecture not in _LAYOUTS:
        raise _unsupported(checkpoint, f"only {', '.join(_LAYOUTS)} can be laid out as it has them")
    config = transformers.AutoConfig.from_pretrained(checkpoint.hf_folder(), local_files_only=True)
    layers = config.get_text_config().num_hidden_layers
    if layers > len(checkpoint.tensors):  # before as many are built
        raise _unsupported(checkpoint, f"it says {layers} layers and has {len(checkpoint.tensors)} tensors")
    with torch.device("meta"):
        parameters = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    table = gguf.get_tensor_name_map(number, layers)
    found = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in parameters}
    return {there: name for there, name in found.items() if there is not None}


def hf_name(checkpoint: Checkpoint, name: str) -> str:
    found = checkpoint.hf_names.get(name)
    if found is None:
        raise WorkbenchError(
            f"{checkpoint.name}, tensor {name!r}",
            f"transformers' {checkpoint.architecture} model has no one parameter for it",
            do="open the model's safetensors folder instead, if it has one",
        )
    return found


def to_hf(checkpoint: Checkpoint, name: str, weights: np.ndarray) -> np.ndarray:
    return _LAYOUTS[checkpoint.architecture](checkpoint, name, weights)


def unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from llama.cpp's order (rotary pairs adjacent) to transformers' (rotary pairs half a head apart).

    Row 2i + j of a head goes to row j * head_dim / 2 + i.
    """
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _llama(checkpoint: Checkpoint, name: str, weights: np.ndarray) -> np.ndarray:
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(checkpoint.tensors[name].role)
    if key is None:
        return weights
    heads = checkpoint.config.get(key) or checkpoint.config.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1 or weights.shape[0] % (2 * heads):
        raise WorkbenchError(checkpoint.name, f"{heads} heads do not divide the {weights.shape[0]} rows of {name!r}")
    return unpermute(weights, heads)


def _lower_norm(checkpoint: Checkpoint, name: str, weights: np.ndarray) -> np.ndarray:
    return weights - 1 if name.endswith("norm.weight") else weights


def _as_it_is(checkpoint: Checkpoint, name: str, weights: np.ndarray) -> np.ndarray:
    return weights


# What llama.cpp's converter changes in the values, undone, by architecture.
_LAYOUTS: dict[str, Callable[[Checkpoint, str, np.ndarray], np.ndarray]] = {
    "llama": _llama,
    **dict.fromkeys(("qwen2", "qwen3", "phi3", "starcoder2", "stablelm"), _as_it_is),
    **dict.fromkeys(("gemma2", "gemma3", "nemotron"), _lower_norm),
}
