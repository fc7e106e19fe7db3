"""Zero-shot models from transformers, behind refseg's API."""

from refseg.models.zero_shot.base import KeepImages, ZeroShotSegmentor
from refseg.models.zero_shot.clipseg import CLIPSeg
from refseg.models.zero_shot.grounded_sam2 import GroundedSAM2
from refseg.models.zero_shot.sam3 import SAM3

__all__ = ["SAM3", "CLIPSeg", "GroundedSAM2", "KeepImages", "ZeroShotSegmentor"]
