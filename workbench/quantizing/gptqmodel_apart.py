"""Run as a process of its own: GPTQ or AWQ of a folder, by gptqmodel, from the settings in a JSON file.

    python gptqmodel_apart.py JOB.json

Its libraries lie in a folder that is added behind this Python's own, so torch and transformers are those that are
installed. Progress goes to the file `said`, a line for each finished layer; what the library prints goes nowhere.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.append(job["libraries"])
    os.chdir(job["scratch"])  # it keeps a diary where it is started
    Path("logs").mkdir()
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.set_num_threads(job["threads"])
    settings = QuantizeConfig(
        bits=job["bits"],
        group_size=job["group"],
        quant_method=job["method"],
        format="gptq" if job["method"] == "gptq" else "gemm",
        sym=job["method"] == "gptq",  # AWQ with zero points: KL .13 on the demo, without .44
        desc_act=False,
        dynamic=job["dynamic"] or None,
        pack_impl="original",  # the others compile C++ at their first use
        offload_to_disk=False,
    )
    model = GPTQModel.load(job["source"], settings, device=job["device"])

    def layer_done(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            with Path(job["said"]).open("a", encoding="utf-8") as said:
                said.write(f"{layer_idx + 1}\n")

    model.layer_callback = layer_done
    texts = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["texts"]]
    model.quantize(texts, batch_size=1, calibration_sort=None)
    model.save(job["to"])


if __name__ == "__main__":
    main()
