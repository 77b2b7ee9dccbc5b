"""Quantized weights in safetensors: several tensors of codes, scales and zero points that are one matrix.

Every layout is read with numpy alone, so that a checkpoint made for a GPU's kernels can be looked into anywhere.
"""
