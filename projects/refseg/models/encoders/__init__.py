"""Vision and text encoders."""

from refseg.models.encoders.beit3 import BEiT3Encoder
from refseg.models.encoders.conv import ConvEncoder
from refseg.models.encoders.fused import FusedEncoder
from refseg.models.encoders.swin import SwinEncoder
from refseg.models.encoders.text import TextEncoder

__all__ = ["BEiT3Encoder", "ConvEncoder", "FusedEncoder", "SwinEncoder", "TextEncoder"]
