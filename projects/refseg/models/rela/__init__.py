"""ReLA (Liu et al., CVPR 2023, "GRES: Generalized Referring Expression Segmentation")."""

from refseg.models.rela.decoder import RegionDecoder
from refseg.models.rela.segmentor import ReLA

__all__ = ["ReLA", "RegionDecoder"]
