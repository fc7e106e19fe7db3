"""The small reference model of the quick start; no paper."""

from refseg.models.baseline.segmentor import CrossAttentionBaseline

__all__ = ["CrossAttentionBaseline"]
