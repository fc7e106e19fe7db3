"""RefShapes: a generated benchmark for referring segmentation, with ground truth by construction."""

from refseg.datasets.refshapes.generate import generate
from refseg.datasets.refshapes.presets import PRESETS, Preset
from refseg.datasets.refshapes.vocabulary import word_list

__all__ = ["PRESETS", "Preset", "generate", "word_list"]
