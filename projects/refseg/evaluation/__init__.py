"""Scores: rows of sums per expression, metrics as ratios of sums, named protocols; from a model or a prediction file.

Light on purpose: `metrics.py`, which needs torch and mmengine, is imported by the registry.
"""

from refseg.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from refseg.evaluation.rows import Row, Rows

__all__ = ["PROTOCOLS", "Protocol", "Row", "Rows", "get_protocol"]
