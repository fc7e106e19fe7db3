"""Operators: multi-scale deformable attention in PyTorch, in Triton, and by a compiled mmcv, all with the same numbers,
and a faster linear layer for inference on the CPU. `refseg.ops.module` has the attention module."""

from refseg.ops.deformable_attention import available_backends, choose_backend, deformable_attention
from refseg.ops.linear import use_fast_linear

__all__ = ["available_backends", "choose_backend", "deformable_attention", "use_fast_linear"]
