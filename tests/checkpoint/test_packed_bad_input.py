"""Packed folders that are damaged, contradict themselves or mean harm: told soon, by tensor and field, and nothing run.

Each case breaks a good folder of `tests.packed`; beside it is what the message must say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests import packed, tiny
from tests.checkpoint.bounds import within_bytes, within_seconds
from workbench.exceptions import WorkbenchError

WEIGHTS = tiny.weights(layers=1)
MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, Any]], None]


def set_value(part: str, place: Any, value: Any) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors[f"{MODULE}.{part}"] = tensors[f"{MODULE}.{part}"].copy()
        tensors[f"{MODULE}.{part}"][place] = value

    return change


def cut(part: str, *keep: slice) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        tensors[f"{MODULE}.{part}"] = np.ascontiguousarray(tensors[f"{MODULE}.{part}"][keep])

    return change


def lose(part: str) -> Change:
    return lambda tensors, config: tensors.__delitem__(f"{MODULE}.{part}")


def add(part: str, array: np.ndarray) -> Change:
    return lambda tensors, config: tensors.update({f"{MODULE}.{part}": array})


def say(**settings: Any) -> Change:
    return lambda tensors, config: config["quantization_config"].update(settings)


def say_nothing(tensors: Tensors, config: dict[str, Any]) -> None:
    del config["quantization_config"]


def say_instead(value: Any) -> Change:
    return lambda tensors, config: config.update(quantization_config=value)


def other_state(**changes: Any) -> Change:
    """What bitsandbytes says of a matrix's shape, changed."""

    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        key = next(name for name in tensors if name.startswith(f"{MODULE}.weight.quant_state"))
        state = json.loads(tensors[key].tobytes()) | changes
        tensors[key] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return change


def mixed_with(kind: str) -> Change:
    """Another matrix in another format."""

    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        other = "model.layers.0.mlp.gate_proj"
        for name in [name for name in tensors if name.startswith(f"{other}.")]:
            del tensors[name]
        parts = packed.KINDS[kind][0](WEIGHTS[f"{other}.weight"])
        tensors.update({f"{other}.{part}": array for part, array in parts.items()})

    return change


def letters(part: str, word: str) -> Change:
    return add(part, np.frombuffer(word.encode(), np.uint8))


HALF = slice(None, 100)
SLOW = "(.*)" * 9 + r"\1\2\3\d$"
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": packed.GROUP, "strategy": "group"}}
CASES: dict[str, tuple[str, Change, str]] = {
    # what is wrong -> (a folder's kind, how it is broken, what must be said)
    "no config": ("GPTQ", say_nothing, "config.json: it has no quantization_config"),
    "a config that is a list": ("GPTQ", say_instead([]), "quantization_config is a list"),
    "no bits anywhere": ("compressed", say_nothing, "num_bits None"),
    "another method": (
        "EXL2",
        say(quant_method="awq"),
        r"quantization_config.quant_method: it is 'awq', and .*q_weight",
    ),
    "GPTQ called bitsandbytes": ("GPTQ", say(quant_method="bitsandbytes"), "'bitsandbytes', and model.* GPTQ or AWQ"),
    "bitsandbytes called GPTQ": ("NF4", say(quant_method="gptq"), "quant_method: it is 'gptq'"),
    "GPTQ of 8 bits in 4": ("GPTQ", say(bits=8), "8"),
    "GPTQ of 5 bits": ("GPTQ", say(bits=5), "bits 5"),
    "GPTQ of many bits": ("GPTQ", say(bits=10**30), "bits 1"),
    "bits that are a word": ("GPTQ", say(bits="four"), "quantization_config.bits: it is 'four'"),
    "bits that are a list": ("GPTQ", say(bits=[4]), "quantization_config.bits"),
    "another group size": (
        "GPTQ",
        say(group_size=128),
        r"_proj.weight: its scales are for [0-9]+ groups .* group_size 128",
    ),
    "a group of nothing": ("GPTQ", say(group_size=0), "group_size 0"),
    "a group that is a word": ("AWQ", say(group_size="all"), "quantization_config.group_size"),
    "an AWQ group of nothing": ("AWQ", say(group_size=-5), "group_size -5"),
    "another AWQ group size": ("AWQ", say(group_size=16), "scales.*it is F16"),
    "AWQ of 8 bits": ("AWQ", say(bits=8), "AWQ of 8 bits"),
    "NF4 called FP4": ("NF4", say(bnb_4bit_quant_type="fp4"), "it is nf4, and config.json says .*'fp4'"),
    "NF4 called 8 bits": ("NF4", say(load_in_4bit=False, load_in_8bit=True), "load_in_8bit"),
    "NF4 called both": ("NF4", say(load_in_8bit=True), "load_in_4bit and load_in_8bit"),
    "LLM.int8 called 4 bits": ("LLM.int8", say(load_in_4bit=True), "it is of 8 bits"),
    "another num_bits": ("compressed", say(config_groups={"g": GROUP | {"weights": {"num_bits": 8}}}), "weight_shape"),
    "another group in a group": (
        "compressed",
        say(config_groups={"g": GROUP | {"weights": {"num_bits": 4, "group_size": 64, "strategy": "group"}}}),
        "group_size 64",
    ),
    "a pattern that takes for ever": (
        "compressed",
        say(config_groups={"g": GROUP | {"targets": [f"re:{SLOW}"]}}),
        "config_groups: its pattern .* takes too long",
    ),
    "an override that takes for ever": (
        "GPTQ",
        say(dynamic={SLOW: {"bits": 4}}),
        "dynamic: .*too long",
    ),
    "a pattern that is none": ("GPTQ", say(dynamic={"+:(": {"bits": 4}}), "dynamic: .*is no pattern"),
    "a very long pattern": ("GPTQ", say(dynamic={"a" * 5000: {}}), "dynamic: .*5,000 characters"),
    "very many patterns": ("GPTQ", say(dynamic={f"+:{n}": {} for n in range(3000)}), "dynamic: it has 3,000 patterns"),
    "an override that is a word": ("GPTQ", say(dynamic={"+:.*": "eight"}), "dynamic: .*'eight'"),
    "an override to other bits": ("GPTQ", say(dynamic={"+:.*up_proj": {"bits": 8}}), "8"),
    "codes of another shape": ("GPTQ", cut("qweight", slice(None, -1)), "qweight"),
    "zero points of another shape": ("GPTQ", cut("qzeros", slice(None), slice(None, -1)), "qzeros.*it is I32"),
    "a scale too few": ("GPTQ", cut("scales", slice(None), slice(None, -1)), "scales"),
    "too few inputs in g_idx": ("GPTQ", cut("g_idx", slice(None, 100)), "qweight"),
    "AWQ codes of another shape": ("AWQ", cut("qweight", HALF), "scales|qzeros"),
    "EXL2 scales of another shape": ("EXL2", cut("q_scale", slice(None), slice(None, 3)), "q_scale.*it is I32"),
    "EXL2 groups that do not match": ("EXL2", cut("q_groups", slice(None, 3)), "q_groups.*it is I16"),
    "compressed codes of another shape": (
        "compressed",
        cut("weight_packed", slice(None), slice(None, 9)),
        "weight_shape",
    ),
    "compressed scales of another shape": ("compressed", cut("weight_scale", HALF), "weight_scale.*it is BF16"),
    "a shape that is enormous": ("compressed", set_value("weight_shape", 1, 1 << 62), "weight_shape.*it is"),
    "a shape below nothing": ("compressed", set_value("weight_shape", 1, -8), "weight_shape.*it is"),
    "FP4 scales of another shape": ("NVFP4", cut("weight_scale", HALF), "weight_scale.*it is F8_E4M3"),
    "NF4 codes of another shape": ("NF4", cut("weight", HALF), "up_proj.weight.*it has 100 bytes"),
    "NF4 of an enormous shape": ("NF4", other_state(shape=[1 << 40, 1 << 40]), "up_proj.weight"),
    "NF4 of no shape": ("NF4", other_state(shape="all"), "shape 'all'"),
    "NF4 in blocks of nothing": ("NF4", other_state(blocksize=0), "blocks of 0"),
    "an offset that is infinite": ("NF4", other_state(nested_offset=float("inf")), "offset inf"),
    "a table too short": ("NF4", cut("weight.quant_map", slice(None, 3)), r"quant_map.*it is F32 \[3\]"),
    "a table of scales too short": ("NF4", cut("weight.nested_quant_map", slice(None, 3)), r"nested_quant_map.*\[3\]"),
    "LLM.int8 with too few scales": ("LLM.int8", cut("SCB", HALF), r"SCB.*it is F32 \[100\]"),
    "FP8 scales of another shape": ("FP8", cut("weight_scale", HALF), "its scale has shape"),
    "FP8 blocks of another shape": ("FP8 blocks", cut("weight_scale_inv", slice(None, 3)), "its scale has shape"),
    "a group past the end": ("GPTQ", set_value("g_idx", 7, 8), "tensor .*g_idx.*groups 0 to 8"),
    "a group below nothing": ("GPTQ", set_value("g_idx", 7, -1), "tensor .*g_idx.*groups -1"),
    "GPTQ scales of nothing": ("GPTQ", set_value("scales", (0, 3), 0), "scales.*1 of its 4,096 scales are zero"),
    "GPTQ scales that are no numbers": ("GPTQ", set_value("scales", (0, 3), np.nan), "scales.*not finite"),
    "AWQ scales of nothing": ("AWQ", set_value("scales", 0, 0), "scales.*are zero"),
    "AWQ scales that are no numbers": ("AWQ", set_value("scales", 0, np.inf), "scales.*not finite"),
    "EXL2 scales of nothing": ("EXL2", set_value("q_scale_max", 0, 0), "q_scale_max.*1 of its 2 scales are zero"),
    "EXL2 scales that are no numbers": ("EXL2", set_value("q_scale_max", 0, np.nan), "q_scale_max.*not finite"),
    "compressed scales of nothing": ("compressed", set_value("weight_scale", (1, 1), 0), "weight_scale.*are zero"),
    "a global scale of nothing": ("NVFP4", set_value("weight_global_scale", 0, 0), "weight_global_scale.*are zero"),
    "FP4 scales that are no numbers": ("NVFP4", set_value("weight_scale", (0, 0), np.nan), "weight_scale.*not finite"),
    "NF4 scales that are no numbers": (
        "NF4",
        set_value("weight.nested_absmax", 0, np.nan),
        "nested_absmax.*not finite",
    ),
    "LLM.int8 scales that are no numbers": ("LLM.int8", set_value("SCB", 0, np.nan), "SCB.*not finite"),
    "FP8 scales of nothing": ("FP8", set_value("weight_scale", 5, 0), "weight_scale.*1 of its 512 scales are zero"),
    "FP8 scales that are no numbers": (
        "FP8 blocks",
        set_value("weight_scale_inv", 0, np.nan),
        "weight_scale_inv.*not finite",
    ),
    "FP8 codes that are no numbers": ("FP8", set_value("weight", 0, np.nan), "up_proj.weight.*not finite"),
    "an EXL2 group past the end": ("EXL2", set_value("q_groups", 3, 9999), "q_groups.*rows"),
    "an EXL2 group that goes back": ("EXL2", set_value("q_groups", slice(1, 4, 2), [5, 3]), "q_groups.*rows"),
    "an EXL2 group of 7 bits": ("EXL2", set_value("q_groups", 0, 7), "q_groups.*7 bits"),
    "EXL2 groups for too few inputs": ("EXL2", set_value("q_groups", 0, 8), "q_groups.*inputs"),
    "an EXL2 order that is none": ("EXL2", set_value("q_invperm", 0, 1), "q_invperm.*no permutation"),
    "an EXL2 order past the end": ("EXL2", set_value("q_invperm", 0, 1 << 30), "q_invperm.*no permutation"),
    "HQQ in a packing that is code": (
        "HQQ",
        letters("packing", "__import__('os').abort()"),
        "packing.*it is .__import__",
    ),
    "HQQ in a very long packing": ("HQQ", letters("packing", "4" * 99), r"packing.*it is U8 \[99\]"),
    "HQQ whose scales are quantized": ("HQQ", set_value("quant_scale", (), 1), "quant_scale.*quantized themselves"),
    "HQQ of an enormous shape": ("HQQ", set_value("shape", (), 1 << 40), "W_q.*bytes"),
    "HQQ of a shape below nothing": ("HQQ", set_value("shape", 1, -256), "shape.*it is"),
    "HQQ in groups of nothing": ("HQQ", set_value("group_size", (), 0), "axis.*groups of 0"),
    "HQQ along a third axis": ("HQQ", set_value("axis", (), 2), "axis 2"),
    "HQQ codes of another shape": ("HQQ", cut("W_q", HALF), "W_q.*it has 3,200 bytes"),
    "HQQ scales of another shape": ("HQQ", cut("scale", HALF), r"scale.*it is F16 \[100, 1\]"),
    "HQQ scales of nothing": ("HQQ", set_value("scale", 3, 0), "scale.*1 of its 4,096 scales are zero"),
    "HQQ zero points that are no numbers": ("HQQ", set_value("zero", 3, np.nan), "zero.*not finite"),
    "torchao's codes for one kind of GPU": (
        "torchao",
        add("_weight_qdata", np.ones((512, 128), np.uint8)),
        "_weight_qdata.*torchao packed it as U8",
    ),
    "torchao's scales of another shape": ("torchao", cut("_weight_scale", HALF), "_weight_scale.*it is F32"),
    "torchao's scales alone": ("torchao", lose("_weight_qdata"), "its _weight_qdata is missing"),
    "a second scale of another shape": ("ModelOpt", add("weight_scale_2", np.ones(3, np.float32)), "weight_scale_2"),
    "a kernel's own order": ("GPTQ", say(checkpoint_format="marlin"), "checkpoint_format: it is 'marlin'"),
    "a kernel's own order of sparse weights": ("compressed", say(format="marlin-24"), "format: it is 'marlin-24'"),
    "a matrix twice": ("GPTQ", add("weight", WEIGHTS[NAME]), "it has weight beside qweight.*a mix of formats"),
    "a matrix in two formats": (
        "GPTQ",
        add("q_weight", np.ones((8, 8), np.int32)),
        "q_weight beside .*a mix of formats",
    ),
    "matrices in several formats": ("GPTQ", mixed_with("NF4"), "quant_method: it is 'gptq', and .*gate_proj"),
    "EXL2 among bitsandbytes": ("NF4", mixed_with("EXL2"), "quant_method: it is 'bitsandbytes', and .*gate_proj"),
    "a part missing": ("EXL2", lose("q_scale"), "up_proj: its q_scale is missing"),
    "the codes missing": ("GPTQ", lose("qweight"), "up_proj: its qweight is missing"),
    "bitsandbytes without its state": ("NF4", lose("weight.quant_map"), "quant_map is missing"),
    "LLM.int8 without scales": ("LLM.int8", lose("SCB"), "up_proj: its weight_scale is missing"),
    "a part that is empty": ("GPTQ", cut("scales", slice(0)), "scales.*it is empty"),
    "a part of another type": ("GPTQ", add("qweight", np.ones((32, 512), np.float32)), "qweight.*it is F32"),
}


def broken(folder: Path, case: str) -> Path:
    kind, change, _ = CASES[case]
    tensors = packed.tensors(kind, WEIGHTS)
    config = tiny.llama_config(WEIGHTS) | {"quantization_config": dict(packed.KINDS[kind][1])}
    change(tensors, config)
    return packed.written(folder, tensors, config)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_by_tensor_and_field(case: str, tmp_path: Path) -> None:
    folder = broken(tmp_path / "model", case)
    with within_seconds(2), pytest.raises(WorkbenchError) as told:
        wb.load(folder).read(NAME)
    assert re.search(CASES[case][2], told.value.message, flags=re.DOTALL), told.value.message
    with within_bytes(8 << 20), pytest.raises(WorkbenchError):
        wb.load(folder).read(NAME)


def test_many_patterns_for_many_matrices_take_no_longer(tmp_path: Path) -> None:
    tensors = {}
    for number in range(4000):
        parts = {"weight_packed": np.ones((1, 1), np.int32), "weight_scale": np.ones((1, 1), np.float32)}
        tensors |= {f"model.layers.0.experts.{number}.up_proj.{part}": array for part, array in parts.items()}
    groups = {str(n): {"targets": [rf"re:.*\.{n}\.(up|down)_proj.*$"], "weights": {"num_bits": 4}} for n in range(1900)}
    settings = {"quant_method": "compressed-tensors", "config_groups": groups} | {f"odd {n}": n for n in range(20_000)}
    folder = packed.written(tmp_path / "m", tensors, tiny.llama_config(WEIGHTS) | {"quantization_config": settings})
    with within_seconds(3):
        assert {info.encoding for info in wb.load(folder).tensors.values()} == {"INT4"}


@pytest.mark.parametrize("kind", packed.KINDS)
def test_code_that_comes_with_a_model_is_never_run(kind: str, tmp_path: Path) -> None:
    evil = "open(__file__ + '.ran', 'w').close()"
    config = tiny.llama_config(WEIGHTS) | {"quantization_config": packed.KINDS[kind][1], "model_type": "of-a-stranger"}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Config"}
    folder = packed.written(tmp_path / "model", packed.tensors(kind, WEIGHTS), config)
    (folder / "modeling_evil.py").write_text(evil)
    with within_seconds(2), pytest.raises(WorkbenchError, match=r"auto_map.*never run"):
        wb.load(folder)
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "llama"})
    )  # of which transformers has its own
    with wb.run(folder) as chat:
        assert chat("Hello", max_tokens=1).text is not None
    assert [file.name for file in folder.glob("*.ran")] == []


def test_two_files_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    folder = packed.folder(tmp_path / "model", "GPTQ", WEIGHTS)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 8, "group_size": packed.GROUP}))
    with pytest.raises(WorkbenchError, match=r"quantize_config.json: it says bits 8, and config.json 4"):
        wb.load(folder)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("GPTQ", "quantize_config.json", {"bits": 4, "group_size": packed.GROUP, "desc_act": False}),
        ("AWQ", "quant_config.json", {"w_bit": 4, "q_group_size": packed.GROUP, "version": "GEMM", "zero_point": True}),
    ],
)
def test_the_files_of_older_writers_are_read(kind: str, name: str, said: dict, tmp_path: Path) -> None:
    expected = wb.load(packed.folder(tmp_path / "new", kind, WEIGHTS)).read(NAME)
    folder = packed.folder(tmp_path / "old", kind, WEIGHTS)
    (folder / "config.json").write_text(json.dumps(tiny.llama_config(WEIGHTS)))
    (folder / name).write_text(json.dumps(said))
    np.testing.assert_array_equal(wb.load(folder).read(NAME), expected)


def test_overrides_of_single_modules_are_followed(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: 8 bits in larger groups here, nothing there; without g_idx the shape rests on it."""
    tensors = packed.tensors("GPTQ", WEIGHTS)
    eight = packed.gptq(WEIGHTS[NAME], bits=8)
    tensors.update({f"{MODULE}.{part}": array for part, array in eight.items()})
    for name in [name for name in tensors if name.endswith("g_idx")]:
        del tensors[name]
    plain = "model.layers.0.self_attn.q_proj"
    for name in [name for name in tensors if name.startswith(plain)]:
        del tensors[name]
    tensors[f"{plain}.weight"] = WEIGHTS[f"{plain}.weight"]
    settings = packed.KINDS["GPTQ"][1] | {"dynamic": {r"-:.*q_proj": {}, r"+:.*\.mlp\.up_proj": {"bits": 8}}}
    config = tiny.llama_config(WEIGHTS) | {"quantization_config": settings}
    model = wb.load(packed.written(tmp_path / "model", tensors, config))
    assert model.tensors[NAME].encoding == "GPTQ 8-bit g32"
    assert model.tensors["model.layers.0.mlp.gate_proj.weight"].encoding == "GPTQ 4-bit g32"
    np.testing.assert_array_equal(model.read(f"{plain}.weight"), WEIGHTS[f"{plain}.weight"])
    assert np.abs(model.read(NAME) - WEIGHTS[NAME]).max() < 0.003


def test_each_matrix_has_the_bits_of_its_own_group(tmp_path: Path) -> None:
    """compressed-tensors with several groups: by name before pattern before class, and by the shape in doubt."""

    def eight(weights: np.ndarray) -> packed.Parts:
        parts = weights.reshape(len(weights), -1, packed.GROUP)
        scales = np.abs(parts).max(-1) / 127
        codes = np.rint(parts / scales[..., None]).reshape(weights.shape).astype(int)
        shape = np.array(weights.shape, np.int64)
        return {"weight_packed": packed.bits_of(codes + 128, 8), "weight_scale": scales, "weight_shape": shape}

    tensors = packed.tensors("compressed", WEIGHTS)
    for module in (MODULE, "model.layers.0.self_attn.k_proj"):
        parts = eight(WEIGHTS[f"{module}.weight"])
        del parts["weight_shape"], tensors[f"{module}.weight_shape"]
        tensors.update({f"{module}.{part}": array for part, array in parts.items()})
    groups = {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}},
        "group_1": {"targets": [MODULE], "weights": {"num_bits": 8}},
        "group_2": {"targets": [r"re:.*\.k_proj$"], "weights": {"num_bits": 8}},
    }
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    model = wb.load(
        packed.written(tmp_path / "m", tensors, tiny.llama_config(WEIGHTS) | {"quantization_config": settings})
    )
    assert model.tensors[NAME].encoding == "INT8 g32"
    assert model.tensors["model.layers.0.mlp.gate_proj.weight"].encoding == "INT4 g32"
    for module in (MODULE, "model.layers.0.self_attn.k_proj"):
        assert np.abs(model.read(f"{module}.weight") - WEIGHTS[f"{module}.weight"]).max() < 0.003
