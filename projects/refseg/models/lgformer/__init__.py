"""LGFormer (Wei et al., 2022, "Linguistic Query-Guided Mask Generation for Referring Image Segmentation")."""

from refseg.models.lgformer.segmentor import LGFormer

__all__ = ["LGFormer"]
