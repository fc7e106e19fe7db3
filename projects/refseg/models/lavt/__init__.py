"""LAVT: language-aware vision transformer (Yang et al., CVPR 2022)."""

from refseg.models.lavt.segmentor import LAVT

__all__ = ["LAVT"]
