"""The two transforms that bring things in: the image, and tokens of the texts."""

from __future__ import annotations

from refseg.datasets.images import READ_SECONDS, read_image
from refseg.datasets.tokenizers import TextTokenizer
from refseg.datasets.transforms.state import TransformState
from refseg.errors import ConfigError
from refseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImage:
    """Read the image, which must have the annotated size.

    Args:
        timeout: seconds after which storage that does not answer makes the image a bad sample (`max_bad_samples` of the
            data set says how many of these are left out). None waits for ever.
    """

    def __init__(self, timeout: float | None = READ_SECONDS) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"LoadImage: timeout must be a number of seconds above 0, or None, not {timeout!r}")
        self.timeout = timeout

    def __call__(self, state: TransformState) -> TransformState:
        state.image = read_image(state.record.image_path, state.record.size, timeout=self.timeout)
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
