"""The small reference model of the quick start; no paper."""

from refseg.models.baseline.segmentor import QueryBaseline

__all__ = ["QueryBaseline"]
