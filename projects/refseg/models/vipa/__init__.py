"""VIPA (Cho et al., "Visual Informative Part Attention for Referring Image Segmentation")."""

from refseg.models.vipa.segmentor import VIPA

__all__ = ["VIPA"]
