"""Vision and text encoders."""

from refseg.models.encoders.beit3 import BEiT3Encoder
from refseg.models.encoders.conv import ConvEncoder
from refseg.models.encoders.fused import FusedEncoder
from refseg.models.encoders.side import SideEncoder
from refseg.models.encoders.swin import SwinEncoder
from refseg.models.encoders.text import TextEncoder
from refseg.models.encoders.timm import TimmEncoder
from refseg.models.encoders.transformers import TransformersVisionEncoder
from refseg.models.encoders.vision import BackboneEncoder, VisionEncoder

__all__ = [
    "BEiT3Encoder",
    "BackboneEncoder",
    "ConvEncoder",
    "FusedEncoder",
    "SideEncoder",
    "SwinEncoder",
    "TextEncoder",
    "TimmEncoder",
    "TransformersVisionEncoder",
    "VisionEncoder",
]
