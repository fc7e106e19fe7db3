"""Operators: multi-scale deformable attention in PyTorch, in Triton, and by a compiled mmcv, all with the same numbers,
and a faster linear layer for inference on the CPU."""

from refseg.ops.deformable_attention import available_backends, choose_backend, deformable_attention
from refseg.ops.linear import use_fast_linear
from refseg.ops.module import MultiScaleDeformableAttention, use_refseg_deformable_attention

__all__ = [
    "MultiScaleDeformableAttention",
    "available_backends",
    "choose_backend",
    "deformable_attention",
    "use_fast_linear",
    "use_refseg_deformable_attention",
]
