"""CGFormer: contrastive grouping with a transformer (Tang et al., CVPR 2023)."""

from refseg.models.cgformer.segmentor import CGFormer

__all__ = ["CGFormer"]
