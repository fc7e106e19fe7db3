"""LatentVG ("Latent Expression Generation for Referring Image Segmentation and Grounding", ICCV 2025)."""

from refseg.models.latent_vg.segmentor import LatentVG

__all__ = ["LatentVG"]
