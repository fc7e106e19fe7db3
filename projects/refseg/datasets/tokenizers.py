"""Text -> token ids, with fast tokenizers, in the data workers.

Nothing is downloaded unless the user asks for it (`REFSEG_ALLOW_DOWNLOAD=1`, or `--allow-download` of the tools).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from refseg.errors import DataError
from refseg.paths import data_path

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def downloads_allowed() -> bool:
    return os.environ.get("REFSEG_ALLOW_DOWNLOAD", "0") not in ("", "0")


def load_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained` on a local folder, the local hub cache, or, on request, the hub."""
    try:
        return auto_class.from_pretrained(name, local_files_only=not downloads_allowed(), **kwargs)
    except (OSError, ValueError) as error:
        raise DataError(
            f"pretrained text model {name!r} is neither a folder nor in the local hub cache. Download it once with "
            f"`hf download {name}`, or allow it here with --allow-download (REFSEG_ALLOW_DOWNLOAD=1), or put a "
            f"folder's path in its place. (transformers says: {str(error)[:200]})"
        ) from None


def word_list_tokenizer(words: Sequence[str]) -> Any:
    """A fast word-level tokenizer over a closed word list, lower-casing, with BERT's special tokens first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


class TextTokenizer:
    """Tokens of phrases, cut at `max_words` tokens (special ones counted).

    Either `pretrained` (hub name or folder) or `word_list` (file with a word per line). `keep_end`: a cut phrase keeps
    its end token; False cuts it off as LAVT's and ReLA's code does, which their weights need.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        word_list: str | None = None,
        max_words: int = 20,
        keep_end: bool = True,
    ) -> None:
        if (pretrained is None) == (word_list is None):
            raise ValueError("TextTokenizer needs either pretrained or word_list (and not both)")
        if max_words < 2:
            raise ValueError(f"TextTokenizer.max_words must be at least 2, not {max_words}")
        self.max_words = max_words
        self.keep_end = keep_end
        if word_list is not None:
            self.tokenizer = word_list_tokenizer(read_word_list(word_list))
        else:
            from transformers import AutoTokenizer

            self.tokenizer = load_pretrained(AutoTokenizer, pretrained, use_fast=True)
            if not self.tokenizer.is_fast:
                raise DataError(f"{pretrained}: no fast tokenizer (tokenizer.json) for this model")
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids per text, and how many texts were cut."""
        encoded = self.tokenizer(list(texts), padding=False, truncation=False, return_attention_mask=False)["input_ids"]
        cut = sum(len(ids) > self.max_words for ids in encoded)
        return [self._cut(ids) for ids in encoded], cut

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_words:
            return ids
        if self.keep_end:
            return [*ids[: self.max_words - 1], ids[-1]]
        return ids[: self.max_words]


def read_word_list(path: str) -> list[str]:
    file = data_path(path)
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        raise DataError(
            f"word list not found: {file}. RefShapes writes it: "
            f"`refseg data refshapes --preset mini --out {file.parent}`"
        ) from None
