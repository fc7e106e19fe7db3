"""LGFormer: linguistic query-guided mask generation (Wei et al., 2022)."""

from refseg.models.lgformer.segmentor import LGFormer

__all__ = ["LGFormer"]
