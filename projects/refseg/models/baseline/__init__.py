"""The small reference model of the quick start, without a paper."""

from refseg.models.baseline.segmentor import QueryBaseline

__all__ = ["QueryBaseline"]
