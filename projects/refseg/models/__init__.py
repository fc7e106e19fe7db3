"""Models: the segmentor base class, encoders, and one package per paper."""

from refseg.models.baseline import QueryBaseline
from refseg.models.encoders import TextEncoder
from refseg.models.preprocessor import ReferringDataPreprocessor
from refseg.models.segmentor import RefSegmentor

__all__ = ["QueryBaseline", "RefSegmentor", "ReferringDataPreprocessor", "TextEncoder"]
