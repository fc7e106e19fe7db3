"""Models: the segmentor base class, encoders, fusions, shared layers and losses, and one package per method."""

from refseg.models.baseline import QueryBaseline
from refseg.models.encoders import BEiT3Encoder, ConvEncoder, FusedEncoder, SwinEncoder, TextEncoder
from refseg.models.fusion import PWAM, VLBA, StagedCrossAttention
from refseg.models.instalign import InstAlign, ObjectTextDecoder
from refseg.models.latent_vg import LatentVG
from refseg.models.lavt import LAVT
from refseg.models.lgformer import LGFormer
from refseg.models.preprocessor import ReferringDataPreprocessor
from refseg.models.rela import RegionDecoder, ReLA
from refseg.models.segmentor import RefSegmentor
from refseg.models.vipa import VIPA

__all__ = [
    "LAVT",
    "PWAM",
    "VIPA",
    "VLBA",
    "BEiT3Encoder",
    "ConvEncoder",
    "FusedEncoder",
    "InstAlign",
    "LGFormer",
    "LatentVG",
    "ObjectTextDecoder",
    "QueryBaseline",
    "ReLA",
    "RefSegmentor",
    "ReferringDataPreprocessor",
    "RegionDecoder",
    "StagedCrossAttention",
    "SwinEncoder",
    "TextEncoder",
]
