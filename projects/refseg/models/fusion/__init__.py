"""Fusions of words and pixels inside an encoder: plugins of `FusedEncoder`."""

from refseg.models.fusion.base import Fused, Fusion
from refseg.models.fusion.pwam import PWAM
from refseg.models.fusion.staged import StagedCrossAttention
from refseg.models.fusion.vlba import VLBA

__all__ = ["PWAM", "VLBA", "Fused", "Fusion", "StagedCrossAttention"]
