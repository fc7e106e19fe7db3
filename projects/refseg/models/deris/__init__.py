"""DeRIS: perception and cognition with loopback synergy (Dai et al., ICCV 2025)."""

from refseg.models.deris.segmentor import DeRIS

__all__ = ["DeRIS"]
