"""Encoders as stages."""

from refseg.models.encoders.text import TextEncoder

__all__ = ["TextEncoder"]
