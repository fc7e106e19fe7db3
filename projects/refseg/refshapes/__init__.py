"""RefShapes: a generated benchmark for referring segmentation, with ground truth by construction.

1. placement: draws a random scene (`scene`) and lays out its shapes; `draw` makes pixels and visible masks of it.
2. skills: one function per skill ("relation", "negation", ...) proposes a meaning about the scene.
3. meaning: the types of meanings, which judge what they refer to: clearly these shapes, clearly none, or unclear.
4. grammar: takes proposals that are clear and allowed, and changes some so that they refer to nothing.
5. wording: puts meanings into words of `vocabulary`, and ties words to instances.

`presets` names data sets and makes their images; `generate` writes a data set in the `official_layouts`.
"""

from refseg.refshapes.generate import generate
from refseg.refshapes.presets import PRESETS, Preset
from refseg.refshapes.vocabulary import word_list

__all__ = ["PRESETS", "Preset", "generate", "word_list"]
