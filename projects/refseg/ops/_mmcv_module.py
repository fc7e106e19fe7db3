"""The attention module as a subclass of mmcv's, for `use_refseg_deformable_attention`. Needs `mmcv.ops`."""

from mmcv.ops import MultiScaleDeformableAttention as _Theirs

from refseg.ops.module import MultiScaleDeformableAttention as _Ours


class InMmcv(_Ours, _Theirs):
    """All behavior is that of our class, which comes first. mmdet's `isinstance` checks for mmcv's class succeed."""
