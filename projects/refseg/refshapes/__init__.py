"""RefShapes: a generated benchmark for referring segmentation, with ground truth by construction."""

from refseg.refshapes.generate import generate
from refseg.refshapes.presets import PRESETS, Preset
from refseg.refshapes.vocabulary import word_list

__all__ = ["PRESETS", "Preset", "generate", "word_list"]
