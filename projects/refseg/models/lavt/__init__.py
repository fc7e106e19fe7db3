"""LAVT: Language-Aware Vision Transformer (Yang et al., CVPR 2022)."""

from refseg.models.lavt.segmentor import LAVT

__all__ = ["LAVT"]
