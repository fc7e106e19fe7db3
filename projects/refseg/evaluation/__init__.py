"""Scores of models and of prediction files, by named protocols.

This file imports neither torch nor mmengine. The registry imports `metrics.py`, which needs both.
"""

from refseg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from refseg.evaluation.rows import Row, Rows

__all__ = ["PROTOCOLS", "Protocol", "Row", "Rows", "get_protocol"]
