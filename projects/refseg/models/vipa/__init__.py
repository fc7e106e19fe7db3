"""VIPA: visual informative part attention (Cho et al.)."""

from refseg.models.vipa.segmentor import VIPA

__all__ = ["VIPA"]
