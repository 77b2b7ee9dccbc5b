"""Checkpoints in the formats of GPUs: a folder of safetensors that transformers and vLLM load."""

from workbench.quantizing.making import Quantized, quantize, quantize_steps

__all__ = ["Quantized", "quantize", "quantize_steps"]
