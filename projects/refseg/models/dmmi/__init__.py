"""DMMI: dual multi-modal interaction (Hu et al., ICCV 2023, the paper of Ref-ZOM)."""

from refseg.models.dmmi.fusion import MultiScaleFusion
from refseg.models.dmmi.segmentor import DMMI

__all__ = ["DMMI", "MultiScaleFusion"]
