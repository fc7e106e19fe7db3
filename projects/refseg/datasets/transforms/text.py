"""Transforms of the texts into tokens."""

from __future__ import annotations

from refseg.datasets.tokenizers import TextTokenizer, Tokenized
from refseg.datasets.transforms.state import TransformState
from refseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadText:
    """Tokenize the texts.

    Args:
        tokenizer: Arguments of `TextTokenizer`.
    """

    def __init__(self, tokenizer: dict) -> None:
        self.tokenizer = TextTokenizer(**tokenizer)

    def __call__(self, state: TransformState) -> TransformState:
        state.tokens = self.tokenizer([expression.text for expression in state.expressions])
        return state


@TRANSFORMS.register_module()
class RawText:
    """Pass the texts on without tokens, for zero-shot models, which tokenize them themselves."""

    def __call__(self, state: TransformState) -> TransformState:
        count = len(state.expressions)
        state.tokens = Tokenized([[] for _ in range(count)], [[] for _ in range(count)], [()] * count)
        return state
