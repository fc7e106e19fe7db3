"""InstAlign ("Phrase-Instance Alignment for Generalized Referring Segmentation")."""

from refseg.models.instalign.decoder import ObjectTextDecoder
from refseg.models.instalign.segmentor import InstAlign

__all__ = ["InstAlign", "ObjectTextDecoder"]
