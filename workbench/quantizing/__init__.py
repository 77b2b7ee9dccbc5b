"""Checkpoints in the formats of GPUs: a folder of safetensors that transformers and vLLM load."""

from workbench.quantizing.exl2 import exl2_bits
from workbench.quantizing.making import Quantized, quantize, quantize_steps

__all__ = ["Quantized", "exl2_bits", "quantize", "quantize_steps"]
