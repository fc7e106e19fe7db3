"""Tokenizers of phrases: pretrained ones, word lists and SentencePiece models.

Nothing is downloaded unless the user asks for it (`REFSEG_ALLOW_DOWNLOAD=1`, or `--allow-download` of the tools).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refseg.errors import ConfigError, DataError
from refseg.files import write_atomically
from refseg.paths import data_path

WORD = re.compile(r"\S+")  # matches what `str.split` returns
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
XLMR_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
# Articles, pronouns, auxiliaries, conjunctions, negations and prepositions that name no place.
# Words of place and number ("left", "behind", "both") are content words.
FUNCTION_WORDS = frozenset(
    "a an the this that these those which who whom whose what it its he his him she her they their them one ones there "
    "is are was were be been being am has have had do does did can and or but as well also than then so "
    "not no non nor without except of to in on at by with from for into onto".split()
)
FILE_ARGUMENTS = ("word_list", "sentencepiece")  # of `TextTokenizer`
FOLDER = "tokenizer"  # of a pretrained tokenizer, beside the weights
VOCABULARIES = ("pretrained", *FILE_ARGUMENTS)  # a tokenizer has one of them
BEIT3 = "https://github.com/microsoft/unilm/tree/master/beit3"


def word_list_tokenizer(words: Sequence[str]) -> Any:
    """Make a fast lower-casing tokenizer of a closed word list. BERT's special tokens come first."""
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


def sentencepiece_tokenizer(path: str) -> Any:
    """Make a fast tokenizer of a SentencePiece unigram model with the special tokens and ids of XLM-R and BEiT-3.

    These are <s> 0, <pad> 1, </s> 2, <unk> 3, then the file's pieces without its own three special ones, and <mask>.
    The file's own settings apply: its character map, `remove_extra_whitespaces`, `add_dummy_prefix`, and
    `byte_fallback`.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import import_protobuf

    file = data_path(path)
    if not file.is_file():
        raise DataError(f"SentencePiece model not found: {file}. BEiT-3's is beit3.spm, next to its weights: {BEIT3}")
    content = import_protobuf().ModelProto()
    try:
        content.ParseFromString(file.read_bytes())
    except Exception:  # protobuf's own DecodeError, wherever the installed version has it
        raise DataError(f"{file} is not a SentencePiece model") from None
    trainer, text = content.trainer_spec, content.normalizer_spec
    if trainer.model_type != 1:
        raise DataError(f"{file} is a SentencePiece model of another kind than unigram, which XLM-R and BEiT-3 use")
    if trainer.treat_whitespace_as_suffix or not text.escape_whitespaces:
        name = "treat_whitespace_as_suffix=true" if trainer.treat_whitespace_as_suffix else "escape_whitespaces=false"
        raise DataError(f"{file}: the SentencePiece setting {name} is not supported. Use a model trained without it.")
    pieces = [(piece.piece, piece.score) for piece in content.pieces[3:]]
    vocabulary = [*((token, 0.0) for token in XLMR_SPECIAL), *pieces, ("<mask>", 0.0)]
    model = models.Unigram(vocabulary, unk_id=XLMR_SPECIAL.index("<unk>"), byte_fallback=trainer.byte_fallback)
    tokenizer = Tokenizer(model)
    # The steps of SentencePiece's normalizer, in its order
    steps: list[Any] = []
    if text.precompiled_charsmap:
        steps.append(normalizers.Precompiled(text.precompiled_charsmap))
    if text.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if text.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, XLMR_SPECIAL.index(token)) for token in ("<s>", "</s>")]
    )
    special = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@dataclass(slots=True)
class Tokenized:
    """Tokens of phrases.

    Args:
        token_ids: Token ids of each phrase.
        word_of: For each token, the index of its word in `text.split()` (`words_of_tokens`).
        unknown_words: For each phrase, the parts that the tokenizer does not know (`unknown_parts`).
        num_truncated: Number of phrases that were cut.
        pad_id: Token id of padding.
    """

    token_ids: list[list[int]]
    word_of: list[list[int]]
    unknown_words: list[tuple[str, ...]]
    num_truncated: int = 0
    pad_id: int = 0


class TextTokenizer:
    """Tokenize phrases. Exactly one of the first three arguments is given.

    Args:
        pretrained: Hub name or folder of a pretrained tokenizer.
        word_list: File with one word per line.
        sentencepiece: File of a SentencePiece model, used with XLM-R's ids.
        max_words: Largest number of tokens, including special ones. Longer phrases are cut.
        keep_end: Whether a cut phrase keeps its end token. The code of LAVT and ReLA drops it, and their weights need
            that.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        word_list: str | None = None,
        sentencepiece: str | None = None,
        max_words: int = 20,
        keep_end: bool = True,
    ) -> None:
        if [pretrained, word_list, sentencepiece].count(None) != 2:
            raise ConfigError("TextTokenizer needs exactly one of pretrained, word_list and sentencepiece")
        if max_words < 2:
            raise ConfigError(f"TextTokenizer.max_words must be at least 2, not {max_words}")
        self.max_words = max_words
        self.keep_end = keep_end
        if word_list is not None:
            file = data_path(word_list)
            if not file.is_file():
                raise DataError(
                    f"word list not found: {file}. Make RefShapes, which writes it, with "
                    f"`refseg data refshapes --preset mini --out {file.parent}`"
                )
            self.tokenizer = word_list_tokenizer(file.read_text(encoding="utf-8").split())
        elif sentencepiece is not None:
            self.tokenizer = sentencepiece_tokenizer(sentencepiece)
        else:
            from transformers import AutoTokenizer

            from refseg.pretrained import load_pretrained  # which imports torch

            self.tokenizer = load_pretrained(AutoTokenizer, pretrained, use_fast=True, trust_remote_code=False)
            if not self.tokenizer.is_fast:
                raise DataError(f"{pretrained}: no fast tokenizer (tokenizer.json) for this model")
            limit = self.tokenizer.model_max_length
            if max_words > limit:
                raise ConfigError(f"tokenizer.max_words {max_words} exceeds the {limit} tokens that {pretrained} takes")
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        encoded = self.tokenizer(
            list(texts), padding=False, truncation=False, return_attention_mask=False, return_token_type_ids=False
        )
        tokenized = Tokenized([], [], [], pad_id=self.pad_id)
        for text, ids, encoding in zip(texts, encoded["input_ids"], encoded.encodings or (), strict=True):
            words = words_of_tokens(text, encoding.offsets, encoding.special_tokens_mask)
            # CLIP's end token is its unknown token too, so special tokens (word -1) do not count.
            tokens = zip(ids[: self.max_words], words, encoding.offsets, strict=False)
            unknown = [span for id, word, span in tokens if id == self.tokenizer.unk_token_id and word >= 0]
            tokenized.unknown_words.append(unknown_parts(text, unknown))
            if len(ids) > self.max_words:
                tokenized.num_truncated += 1
                last = -1 if self.keep_end else self.max_words - 1
                ids, words = ([*column[: self.max_words - 1], column[last]] for column in (ids, words))
            tokenized.token_ids.append(ids)
            tokenized.word_of.append(words)
        return tokenized


def words_of_tokens(text: str, offsets: Iterable[tuple[int, int]], special: Iterable[int]) -> list[int]:
    """Return for each token the index in `text.split()` of the word in which it begins, or -1 for special tokens.

    A tokenizer's own `word_ids` cannot be used: most tokenizers count punctuation as words, and `is_split_into_words`
    changes the tokens of byte-level BPE. White space belongs to the word after it; at the end of a text it has no word.

    Args:
        text: The text.
        offsets: (start, end) of each token in the text.
        special: 1 for each token that is not part of the text.
    """
    ends = [word.end() for word in WORD.finditer(text)]
    words = [*range(len(ends)), -1]
    starts = (start for start, _ in offsets)
    return [-1 if added else words[bisect_right(ends, start)] for start, added in zip(starts, special, strict=True)]


def unknown_parts(text: str, offsets: Iterable[tuple[int, int]]) -> tuple[str, ...]:
    """Return the distinct parts of a text at these (start, end) offsets, which the tokenizer does not know.

    Punctuation is dropped unless the text consists of it: a word list knows "circle" but not the comma after it.
    """
    parts = [part for start, end in offsets if (part := text[start:end].strip())]
    text_is_punctuation = _is_punctuation("".join(text.split()))
    return tuple(dict.fromkeys(part for part in parts if text_is_punctuation or not _is_punctuation(part)))


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(letter).startswith("P") for letter in text)


def is_content_word(word: str) -> bool:
    """Return whether a word, with its punctuation, names a thing, a property, a number or a place."""
    plain = "".join(letter for letter in word if not _is_punctuation(letter)).lower()
    return bool(plain) and plain not in FUNCTION_WORDS


def all_unknown(text: str, unknown_words: Sequence[str]) -> bool:
    """Return whether a phrase has unknown words and no other content word."""
    for part in sorted(unknown_words, key=len, reverse=True):
        text = text.replace(part, " ")
    return bool(unknown_words) and not any(map(is_content_word, text.split()))


@dataclass(slots=True)
class UnknownWords:
    """Counts of phrases with unknown words, and of these words."""

    phrases: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def count(self, unknown_words: Iterable[tuple[str, ...]]) -> None:
        """Count phrases, given the unknown words of each."""
        for words in unknown_words:
            self.phrases += bool(words)
            self.words.update(words)

    def listed(self, limit: int = 10) -> str:
        """Return the most frequent words with their counts, such as "bus (7), tram (2), and 3 more"."""
        named = [f"{word} ({count})" for word, count in self.words.most_common(limit)]
        return ", ".join(named + [f"and {len(self.words) - limit} more"] * (len(self.words) > limit))


# Tokenizers in configs ------------------------------------------------------------------------------------------------


def save_tokenizer_files(config: Any, folder: str | Path) -> None:
    """Copy the files of a config's tokenizers into a folder, so that a checkpoint there can be used without its data.

    The pretrained tokenizer is saved in the folder `tokenizer`, unless there are several. Different files with the same
    name are not copied.
    """
    files = {data_path(tokenizer[key]) for tokenizer, key in _file_arguments(config)}
    names = [file.name for file in files]
    pretrained = {tokenizer["pretrained"] for tokenizer in _tokenizers(config) if tokenizer.get("pretrained")}
    if len(pretrained) == 1:
        TextTokenizer(pretrained=pretrained.pop()).tokenizer.save_pretrained(str(Path(folder, FOLDER)))
    for file in files:
        if names.count(file.name) == 1 and file.is_file():
            write_atomically(Path(folder, file.name), file.read_bytes())


def with_tokenizer_files(folder: str | Path, config: Any) -> Any:
    """Return the config with its tokenizers' files replaced by those that the folder has."""
    config = deepcopy(config)
    for tokenizer in _tokenizers(config):
        if tokenizer.get("pretrained") and Path(folder, FOLDER).is_dir():
            tokenizer["pretrained"] = str(Path(folder, FOLDER))
    for tokenizer, key in _file_arguments(config):
        copy = Path(folder, Path(tokenizer[key]).name)
        if copy.is_file():
            tokenizer[key] = str(copy)
    return config


def _file_arguments(config: Any) -> Iterator[tuple[dict, str]]:
    """Yield each tokenizer inside with its argument that names a file."""
    for tokenizer in _tokenizers(config):
        yield from ((tokenizer, key) for key in FILE_ARGUMENTS if tokenizer.get(key))


def _tokenizers(config: Any) -> Iterator[dict]:
    """Yield each `tokenizer=dict(...)` inside."""
    if isinstance(config, dict):
        if isinstance(tokenizer := config.get("tokenizer"), dict):
            yield tokenizer
        config = list(config.values())
    for value in config if isinstance(config, list | tuple) else ():
        yield from _tokenizers(value)
