"""The two transforms that bring things in: the image, and tokens of the texts."""

from __future__ import annotations

from refseg.datasets.images import read_image
from refseg.datasets.tokenizers import TextTokenizer
from refseg.datasets.transforms.state import TransformState
from refseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage:
    """Reads the image, which must have the annotated size."""

    def __call__(self, state: TransformState) -> TransformState:
        state.image = read_image(state.record.image_path, state.record.size)
        return state


@TRANSFORMS.register_module()
class LoadText:
    """Makes tokens in the data workers. `tokenizer`: arguments of `TextTokenizer`."""

    def __init__(self, tokenizer: dict) -> None:
        self.tokenizer = TextTokenizer(**tokenizer)

    def __call__(self, state: TransformState) -> TransformState:
        texts = [expression.text for expression in state.expressions]
        tokens = self.tokenizer(texts)
        state.token_ids, state.word_of = tokens.token_ids, tokens.word_of
        state.unknown_words, state.num_truncated = tokens.unknown_words, tokens.num_truncated
        state.pad_id = self.tokenizer.pad_id
        return state
