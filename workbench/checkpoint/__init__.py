"""Opened models: every tensor's name, shape, encoding and bytes from checked headers; weights on request."""

from workbench.checkpoint.checkpoint import Checkpoint
from workbench.checkpoint.sources import load, load_steps
from workbench.checkpoint.tensors import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "load", "load_steps"]
