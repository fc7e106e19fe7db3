"""Evaluation: pure functions, and metrics on mmengine."""

from refseg.evaluation.functions import ExpressionRow, score_expression, summarise
from refseg.evaluation.metrics import ReferringMetric

__all__ = ["ExpressionRow", "ReferringMetric", "score_expression", "summarise"]
