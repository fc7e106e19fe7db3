"""Operators: multi-scale deformable attention, in PyTorch, Triton and by a compiled mmcv, with the same numbers."""

from refseg.ops.deformable_attention import available_backends, choose_backend, deformable_attention
from refseg.ops.module import MultiScaleDeformableAttention, use_refseg_deformable_attention

__all__ = [
    "MultiScaleDeformableAttention",
    "available_backends",
    "choose_backend",
    "deformable_attention",
    "use_refseg_deformable_attention",
]
