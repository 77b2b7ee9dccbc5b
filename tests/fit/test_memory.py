"""Memory by part, from a folder, a GGUF, a config or a plan; and what follows from it for a device."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests import tiny
from tests.fit.published import CONFIGS
from workbench.exceptions import WorkbenchError
from workbench.fit import TABLE, Device, device, memory
from workbench.formats import get
from workbench.planning import RECIPES, plan_for

LLAMA = CONFIGS["Llama 3.1 8B"]


def card(nbytes: int) -> Device:
    return Device("card", "cuda", nbytes, nbytes, "a test")


def test_a_gguf_takes_the_bytes_of_its_tensors_to_the_last_one(gguf_file):
    import gguf

    found = memory(gguf_file)
    assert found.weights == sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(gguf_file).tensors)
    assert found.format == "as stored"
    assert not found.estimate


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q4_0", "F16", "BF16"])
def test_a_folder_priced_for_llama_cpp_is_the_file_that_is_written_for_it(name, folder, weights, tmp_path):
    kinds = name if name != "BF16" else "F16"  # of equal bytes, and what the helper writes
    written = wb.load(tiny.gguf(tmp_path / "written.gguf", weights, kinds))
    assert memory(folder, get(name)).weights == written.nbytes


def test_the_weights_of_a_plan_are_the_bytes_the_plan_says(folder):
    model = wb.load(folder)
    for recipe in RECIPES:
        plan = plan_for(model, recipe)
        assert memory(model, plan).weights == memory(model, recipe).weights == plan.nbytes


def test_the_config_alone_gives_the_bytes_of_the_published_files(config, folder):
    for name in (None, "Q4_K_M", "Q8_0", "F32"):
        assert memory(config, name).weights == memory(folder, name).weights
    for engine in ("transformers", "bitsandbytes", "vllm"):
        assert memory(config, engine=engine).total == memory(folder, engine=engine).total


def test_a_gguf_and_its_folder_keep_the_same_between_tokens(gguf_file, folder):
    for context in (256, 5000):
        one, other = memory(gguf_file, context=context), memory(folder, context=context)
        assert one.cache == other.cache
        assert one.parts["compute"] == other.parts["compute"]


def test_transformers_holds_two_bytes_a_weight_and_four_in_float32(folder, weights):
    count = sum(values.size for values in weights.values())
    assert memory(folder, engine="transformers").weights == 2 * count
    assert memory(folder, engine="transformers", dtype="f32").weights == 4 * count


def test_transformers_runs_ggml_formats_by_decoded_weights_and_says_so(folder):
    found = memory(folder, "Q4_K", engine="transformers")
    assert found.weights == memory(folder, engine="transformers").weights
    assert any("decoded" in note for note in found.notes)


def test_bitsandbytes_leaves_embedding_and_head_as_floats(folder, weights):
    outside = sum(v.size for n, v in weights.items() if n in ("model.embed_tokens.weight", "lm_head.weight"))
    norms = sum(v.size for v in weights.values() if v.ndim == 1)
    layers = [v for n, v in weights.items() if v.ndim == 2 and n.startswith("model.layers")]
    # half a byte a weight, 4 bytes for each 64, and a table of 16 float32 levels for each matrix
    expected = sum(v.size // 2 + 4 * v.size // 64 + 64 for v in layers) + 2 * (outside + norms)
    assert memory(folder, "NF4", engine="bitsandbytes").weights == expected


def test_bitsandbytes_does_not_quantize_experts_and_says_so():
    mixtral = memory(CONFIGS["Mixtral 8x7B"], "NF4", engine="bitsandbytes")
    experts = 32 * 8 * 3 * 14336 * 4096
    assert mixtral.parts["experts"] == 2 * experts
    assert any("experts" in note for note in mixtral.notes)


def test_of_a_mixture_of_experts_all_weights_are_resident_and_some_active():
    mixtral = memory(CONFIGS["Mixtral 8x7B"], "Q4_K_M")
    assert mixtral.active_params == 12_879_925_248
    experts = mixtral.parts["experts"]
    assert mixtral.active_weights == mixtral.weights - experts + experts // 4
    assert "a token passes" in str(mixtral)


def test_the_rule_of_thumb_stands_beside_and_how_far_it_is_off():
    short, long = memory(LLAMA, "Q4_K_M", context=2048), memory(LLAMA, "Q4_K_M", context=131072)
    assert short.rule_of_thumb == long.rule_of_thumb == round(8_030_261_248 * 4 / 8 * 1.2)
    assert long.rule_is_off_by < short.rule_is_off_by < 0
    assert f"{-long.rule_is_off_by:.0%} too little" in str(long)


def test_the_parts_add_up_to_the_total():
    for engine in ("llama.cpp", "transformers", "bitsandbytes", "vllm"):
        found = memory(LLAMA, engine=engine, device="RTX 4090")
        assert found.total == found.weights + found.cache + found.parts["compute"] + found.parts["overhead"]


def test_more_context_sequences_or_bits_never_take_less():
    one = memory(LLAMA, "Q4_K_M", context=4096)
    assert one.total < one.at(context=8192).total < one.at(context=8192, batch=4).total
    assert one.at(kv="q4_0").cache < one.at(kv=("q8_0", "q4_0")).cache < one.at(kv="q8_0").cache < one.cache
    sizes = [one.at(format=name).total for name in ("Q2_K", "Q4_K_M", "Q6_K", "Q8_0", "BF16", "F32")]
    assert sizes == sorted(sizes)


def test_the_longest_context_fits_and_one_step_more_does_not():
    for engine, step in (("llama.cpp", 256), ("transformers", 16), ("bitsandbytes", 16), ("vllm", 16)):
        found = memory(LLAMA, engine=engine)
        where = card(found.at(context=20_000, device="RTX 4090").total)
        longest = found.longest_context(where)
        assert 0 < longest < 131072
        assert found.at(context=longest).fits(where)
        assert not found.at(context=longest + step).fits(where)


def test_the_longest_context_is_at_most_what_the_model_was_made_for_and_0_if_none_fits():
    found = memory(LLAMA, "Q4_K_M")
    assert found.longest_context(card(1 << 50)) == 131072
    assert found.longest_context(card(1 << 30)) == 0
    assert any("131,072" in note for note in found.at(context=200_000).notes)


def test_the_best_format_is_the_one_of_most_bits_that_fits():
    found = memory(LLAMA, context=8192)
    best = found.best_format("RTX 4060 Ti 16 GB")
    assert best is not None
    assert best.format == "Q8_0"
    assert best.fits("RTX 4060 Ti 16 GB")
    assert not found.at(format="BF16").fits("RTX 4060 Ti 16 GB")
    assert found.best_format(card(1 << 30)) is None


def test_layers_go_to_the_gpu_until_it_is_full():
    found = memory(LLAMA, "Q4_K_M", context=8192)
    whole = found.offload(card(100 << 30))
    assert (whole.layers, whole.of) == (33, 33)
    some = found.offload(card(4 << 30))
    assert 0 < some.layers < 32
    assert some.gpu <= 4 << 30
    more = found.offload(card(some.gpu))
    assert more.layers == some.layers
    assert found.offload(card(1 << 20)).layers == 0
    with pytest.raises(WorkbenchError, match="does not split"):
        found.at(engine="transformers").offload("T4")


def test_llama_cpp_leaves_an_embedding_of_its_own_in_main_memory():
    found = memory(LLAMA, "Q4_K_M")
    gpu = found.at(device="RTX 4090")
    assert found.needed("RTX 4090") == gpu.total - gpu.parts["embedding"]
    assert "embedding" not in found.parts_on("RTX 4090")
    assert found.needed("Mac 64 GB") == found.at(device="Mac 64 GB").total
    tied = memory(CONFIGS["Llama 3.2 1B"], "Q8_0")
    assert tied.needed("RTX 4090") == tied.at(device="RTX 4090").total


def test_a_device_is_named_in_the_verdict_with_what_would_fit():
    tight = memory(LLAMA, "Q8_0", context=65536, device="RTX 3060")
    assert not tight.fits()
    assert tight.room() < 0
    said = str(tight)
    assert "RTX 3060 has" in said
    assert "What would fit:" in said
    assert "tokens" in tight.nearest()
    assert memory(LLAMA, "Q4_K_M", device="RTX 3060").fits()


def test_every_device_of_the_table_has_a_source_and_less_usable_than_built_in():
    for name, one in TABLE.items():
        assert device(name.lower().replace(" ", "")) is one
        assert one.source
        assert 0 < one.usable < one.total
    assert {"T4", "P100", "RTX 3060", "RTX 4060 Ti 16 GB", "RTX 3090", "RTX 4090", "RTX 5090"} <= set(TABLE)
    assert {"A100 80 GB", "H100", "H200", "Mac 16 GB"} <= set(TABLE)


def test_this_machine_has_some_memory_free_and_no_gpu_it_does_not_have():
    here = device("cpu")
    assert 0 < here.usable <= here.total
    assert device("24 GB").usable == 24_000_000_000
    assert device("24 GiB").usable == 24 << 30
    with pytest.raises(WorkbenchError, match="no CUDA device"):
        device("cuda")


def test_the_limit_of_a_container_counts(tmp_path):
    from workbench.fit.devices import _container_limit

    assert _container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert _container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("5000\n")
    assert _container_limit(tmp_path) == (4000, 5000)


def test_an_old_gpu_holds_the_scores_of_all_pairs_of_tokens_in_transformers():
    found = memory(LLAMA, engine="transformers", context=4096)
    old, new = found.at(device="T4"), found.at(device="RTX 4090")
    assert old.parts["compute"] - new.parts["compute"] > 9 * 32 * 4096**2 - new.parts["compute"]


def test_keys_and_values_from_a_latent_hold_all_scores_on_a_processor_but_not_on_a_gpu():
    found = memory(CONFIGS["DeepSeek V2 Lite"], engine="transformers", context=4096, dtype="f32")
    pairs = 9 * 16 * 4096**2  # two copies of the scores and a mask, for each of 16 heads
    processor = Device("a processor", "cpu", 1, 1, "a test", "f32")
    assert found.at(device=processor).parts["compute"] > pairs > found.at(device="RTX 4090").parts["compute"]


def test_a_mark_far_beyond_the_bars_is_left_to_its_words():
    figure = memory(LLAMA, "Q4_K_M").figure(["RTX 3060", "H200"])
    assert [shape.y0 for shape in figure.layout.shapes] == [-0.45]
    assert [note.text.partition(":")[0] for note in figure.layout.annotations] == ["fits", "fits"]
    assert figure.layout.xaxis.range[1] < 20


def test_it_is_shown_as_text_and_as_html_with_names_from_files_escaped():
    found = memory({**LLAMA, "model_type": "<script>"}, device="RTX 4090")
    assert "kv cache" in repr(found)
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


def test_the_figure_has_a_bar_for_each_device_and_every_part():
    found = memory(LLAMA, "Q4_K_M", context=8192)
    figure = found.figure(["RTX 3060", "T4"])
    stacked = np.sum([np.array(trace.x) for trace in figure.data], axis=0)
    assert list(figure.data[0].y) == ["RTX 3060", "T4"]
    assert stacked[0] == pytest.approx(found.needed("RTX 3060") / 1e9)
    assert {trace.name for trace in figure.data} == {part for part, _ in found.rows()} - {"embedding"}
    assert any("fits" in note.text for note in figure.layout.annotations)


def test_the_growth_of_the_cache_is_drawn_for_each_type_and_device():
    figure = memory(LLAMA, "Q4_K_M").growth(["f16", ("q8_0", "q4_0")], ["RTX 3060"])
    assert [trace.name for trace in figure.data] == ["keys and values in f16", "keys and values in q8_0/q4_0"]
    first, second = (list(trace.y) for trace in figure.data)
    assert first == sorted(first)
    assert first[-1] > second[-1]
    assert "RTX 3060" in figure.layout.annotations[0].text


def test_the_table_has_a_row_for_each_format_and_device():
    table = memory(LLAMA, context=8192).table(["Q8_0", "Q4_K_M"], ["RTX 3060", "T4"])
    assert list(table.format) == ["Q8_0", "Q4_K_M"] * 2
    assert list(table.device.unique()) == ["RTX 3060", "T4"]
    assert (table.fits == (table.needed <= table.usable)).all()
    assert (table.longest_context[table.fits] >= 8192).all()


def test_what_may_be_changed_is_said():
    with pytest.raises(WorkbenchError, match="context, batch"):
        memory(LLAMA).at(contexts=5)
