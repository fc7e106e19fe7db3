import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from refseg.datasets.tokenizers import (
    SPECIAL,
    WORD,
    TextTokenizer,
    UnknownWords,
    all_unknown,
    save_tokenizer_files,
    with_tokenizer_files,
    word_list_tokenizer,
    words_of_tokens,
)
from refseg.errors import DataError

WORDS = ["the", "red", "circle", "left", "of"]


@pytest.fixture
def word_file(tmp_path: Path) -> str:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS))
    return str(file)


def parts(tokenizer: TextTokenizer, texts: list[str]) -> tuple[list[list[int]], list[list[int]], int]:
    """Return the token ids, the word indices, and the number of truncated texts."""
    tokens = tokenizer(texts)
    return tokens.token_ids, tokens.word_of, tokens.num_truncated


def test_word_list(word_file: str) -> None:
    """Special tokens are 0 [PAD], 1 [UNK], 2 [CLS] and 3 [SEP]. Words start at 4. Case is ignored."""
    ids, word_of, cut = parts(TextTokenizer(word_list=word_file), ["The red circle", "of, blue"])
    assert ids == [[2, 4, 5, 6, 3], [2, 8, 1, 1, 3]]
    assert word_of == [[-1, 0, 1, 2, -1], [-1, 0, 0, 1, -1]]
    assert cut == 0


def test_unknown_words_of_a_word_list(word_file: str) -> None:
    """Unknown punctuation is listed only if the text has nothing else. Truncated words are not listed."""
    texts = [
        "the red circle",
        "The red Bus, left of the bus",
        "the t-shirt",
        "\u7ea2\u8272 \U0001f600",
        "red, left",
        "?!",
        "",
    ]
    unknown = TextTokenizer(word_list=word_file)(texts).unknown_words
    assert unknown[:3] == [(), ("Bus", "bus"), ("t", "shirt")]
    assert "".join(unknown[3]) == "\u7ea2\u8272\U0001f600" and unknown[4:] == [(), ("?", "!"), ()]
    assert TextTokenizer(word_list=word_file, max_words=4)(["the red circle bus"]).unknown_words == [()]


def test_unknown_words_of_word_pieces_and_bytes() -> None:
    """Word pieces spell any word of known letters. Bytes spell everything."""
    assert word_piece()(["The skateboarder \u6f22"]).unknown_words == [("\u6f22",)]
    assert byte_level(False)(["The skateboarder \u6f22 \U0001f600"]).unknown_words == [()]


@pytest.mark.parametrize(
    ("text", "unknown", "nothing_known"),
    [
        ("the zorbled frumious bandersnatch", ("zorbled", "frumious", "bandersnatch"), True),
        ("the red bus", ("bus",), False),
        ("the Bus, please", ("Bus", "please"), True),
        ("\u7ea2\u8272\u7684\u6c7d\u8f66", ("\u7ea2", "\u8272", "\u7684", "\u6c7d", "\u8f66"), True),
        ("\U0001f600", ("\U0001f600",), True),
        ("the one that is not it", (), False),
        ("a bus left of it", ("bus",), False),
        ("us bus", ("us",), False),
    ],
)
def test_all_unknown(text: str, unknown: tuple[str, ...], nothing_known: bool) -> None:
    """Function words such as articles do not count as known. Words of place do."""
    assert all_unknown(text, unknown) == nothing_known


def test_counts_of_unknown_words() -> None:
    unknown = UnknownWords()
    unknown.count([("bus",), (), ("bus", "tram")])
    assert (
        unknown.phrases == 2 and unknown.listed() == "bus (2), tram (1)" and unknown.listed(1) == "bus (2), and 1 more"
    )


def test_truncation_with_and_without_end_token(word_file: str) -> None:
    """Five words and two special tokens are cut to 4: [CLS] the red [SEP], or [CLS] the red circle."""
    texts = ["the red circle left of", "red"]
    with_end = parts(TextTokenizer(word_list=word_file, max_words=4), texts)
    assert with_end == ([[2, 4, 5, 3], [2, 5, 3]], [[-1, 0, 1, -1], [-1, 0, -1]], 1)
    without_end = parts(TextTokenizer(word_list=word_file, max_words=4, keep_end=False), texts)
    assert without_end[0][0] == [2, 4, 5, 6] and without_end[1][0] == [-1, 0, 1, 2]


def of_fast(tokenizer: Any, max_words: int = 1000) -> TextTokenizer:
    """Return a TextTokenizer around a tokenizer object."""
    made = TextTokenizer.__new__(TextTokenizer)
    made.tokenizer, made.max_words, made.keep_end, made.pad_id = tokenizer, max_words, True, 0
    return made


@given(st.text(max_size=60), st.integers(2, 12))
def test_number_of_tokens_is_limited(text: str, max_words: int) -> None:
    (ids,), (word_of,), cut = parts(of_fast(word_list_tokenizer(WORDS), max_words), [text])
    assert 2 <= len(ids) <= max_words and len(word_of) == len(ids)
    assert ids[0] == 2 and ids[-1] == 3
    assert cut in (0, 1)


def test_tokenizer_folder(tmp_path: Path) -> None:
    word_list_tokenizer(WORDS).save_pretrained(tmp_path)
    assert TextTokenizer(pretrained=str(tmp_path))(["red"]).token_ids == [[2, 5, 3]]


def spm_file(tmp_path: Path, *, normalizer: dict | None = None, **trainer: object) -> str:
    """A SentencePiece model of a few pieces: three specials first, then pieces with scores."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type = 1  # unigram
    for spec, values in ((proto.trainer_spec, trainer), (proto.normalizer_spec, normalizer or {})):
        for name, value in values.items():
            setattr(spec, name, value)
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁the", "▁dog", "s", "d", "o", "g"]
    for piece, kind, score in zip(pieces, (2, 3, 3, *[1] * 7), (0, 0, 0, -3, -1, -1, -2, -5, -5, -5), strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    if proto.trainer_spec.byte_fallback:
        for byte in range(256):
            proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    file = tmp_path / "small.spm"
    file.write_bytes(proto.SerializeToString())
    return str(file)


def test_sentencepiece_has_the_ids_of_xlm_r(tmp_path: Path) -> None:
    """<s> 0, <pad> 1, </s> 2, <unk> 3; the file's pieces from its fourth on are 4, 5, ...: "_" 4, "_the" 5, "_dog" 6,
    "s" 7. White space counts once. "x" is no piece: unknown, after "_"."""
    tokenizer = TextTokenizer(sentencepiece=spm_file(tmp_path))
    assert tokenizer.pad_id == 1
    ids, word_of, _ = parts(tokenizer, ["the  dogs ", "dog x", ""])
    assert ids == [[0, 5, 6, 7, 2], [0, 6, 4, 3, 2], [0, 2]]
    assert word_of == [[-1, 0, 1, 1, -1], [-1, 0, 1, 1, -1], [-1, -1]]
    assert tokenizer(["the  dogs ", "dog x", ""]).unknown_words == [(), ("x",), ()]
    assert len(tokenizer.tokenizer) == 4 + 7 + 1


def test_sentencepiece_settings_are_honored(tmp_path: Path) -> None:
    """Pieces "▁" 4, "▁the" 5, "▁dog" 6, "s" 7, "d" 8, "o" 9, "g" 10. Without the prefix, the first word is spelled out.
    Without the removal, each space is a piece. With byte fallback, "é" is its two bytes, 0xC3 and 0xA9."""
    text, expected = " dog  dogs ", [0, 6, 6, 7, 2]
    assert TextTokenizer(sentencepiece=spm_file(tmp_path))([text]).token_ids == [expected]
    no_prefix = TextTokenizer(sentencepiece=spm_file(tmp_path, normalizer=dict(add_dummy_prefix=False)))
    assert no_prefix([text, ""]).token_ids == [[0, 8, 9, 10, 6, 7, 2], [0, 2]]
    all_spaces = TextTokenizer(sentencepiece=spm_file(tmp_path, normalizer=dict(remove_extra_whitespaces=False)))
    assert all_spaces([text]).token_ids == [[0, 4, 6, 4, 6, 7, 4, 2]]
    as_bytes = TextTokenizer(sentencepiece=spm_file(tmp_path, byte_fallback=True))
    found = as_bytes(["dog é"])
    assert found.token_ids == [[0, 6, 4, 11 + 0xC3, 11 + 0xA9, 2]]
    assert found.word_of == [[-1, 0, 1, 1, 1, -1]] and found.unknown_words == [()]


def test_unsupported_sentencepiece_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="treat_whitespace_as_suffix=true is not supported"):
        TextTokenizer(sentencepiece=spm_file(tmp_path, treat_whitespace_as_suffix=True))
    with pytest.raises(DataError, match="escape_whitespaces=false is not supported"):
        TextTokenizer(sentencepiece=spm_file(tmp_path, normalizer=dict(escape_whitespaces=False)))


def test_invalid_sentencepiece_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"beit3\.spm, next to its weights"):
        TextTokenizer(sentencepiece=str(tmp_path / "none.spm"))
    with pytest.raises(DataError, match="of another kind than unigram"):
        TextTokenizer(sentencepiece=spm_file(tmp_path, model_type=2))
    (tmp_path / "text.spm").write_text("no model")
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        TextTokenizer(sentencepiece=str(tmp_path / "text.spm"))


def test_errors_name_a_fix(tmp_path: Path, word_file: str) -> None:
    with pytest.raises(ValueError, match="exactly one of pretrained, word_list and sentencepiece"):
        TextTokenizer()
    with pytest.raises(DataError, match="--allow-download"):
        TextTokenizer(pretrained="nobody/no-such-model")
    with pytest.raises(DataError, match="refseg data refshapes"):
        TextTokenizer(word_list=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="max_words"):
        TextTokenizer(word_list=word_file, max_words=1)


# Words of tokens ------------------------------------------------------------------------------------------------------

LINES = [
    "the man on the left, in a blue shirt",
    "two skateboarders (not the child's)",
    "that man's 3rd orange café",
] * 3


def _with_ends(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    ends = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else processors.Sequence([before, template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


@cache
def word_piece() -> TextTokenizer:
    """Return a tokenizer like uncased BERT's, which drops accents and spells unknown words by letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'()"
    pieces = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters), "the", "skate", "##board", "##er"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return of_fast(_with_ends(tokenizer))


@cache
def byte_level(trim_offsets: bool) -> TextTokenizer:
    """Return a tokenizer like RoBERTa's, where a word's first token includes the space before it.

    With `trim_offsets`, the offsets do not include the space.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return of_fast(_with_ends(tokenizer))


@cache
def metaspace() -> TextTokenizer:
    """Return a tokenizer like SentencePiece's, where spaces are characters and each word has one before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return of_fast(_with_ends(tokenizer))


TOKENIZERS = {
    "words": lambda: of_fast(word_list_tokenizer(WORDS)),
    "word pieces": word_piece,
    "bytes": lambda: byte_level(False),
    "bytes, trimmed": lambda: byte_level(True),
    "metaspace": metaspace,
}


def pieces_of(tokenizer: TextTokenizer, text: str) -> list[tuple[str, int]]:
    (ids,), (word_of,), _ = parts(tokenizer, [text])
    return list(zip(tokenizer.tokenizer.convert_ids_to_tokens(ids), word_of, strict=True))


def test_words_of_word_pieces() -> None:
    """The text has three words by `split`. A comma belongs to the word that it touches."""
    assert pieces_of(word_piece(), " The  skateboarder,\tcafé\n") == [
        ("[CLS]", -1), ("the", 0), ("skate", 1), ("##board", 1), ("##er", 1), (",", 1),
        ("c", 2), ("##a", 2), ("##f", 2), ("##e", 2), ("[SEP]", -1),
    ]  # fmt: skip


@pytest.mark.parametrize("trim", [False, True])
def test_words_of_bytes(trim: bool) -> None:
    """A space belongs to the word after it. After the last word it belongs to no word. 漢 has three bytes."""
    pieces = pieces_of(byte_level(trim), "man,  漢 ")
    assert "".join(piece for piece, _ in pieces) == "[CLS]Ġman,ĠĠæ¼¢Ġ[SEP]"
    of_words = ["".join(piece for piece, word in pieces if word == number) for number in (0, 1, -1)]
    assert of_words == ["Ġman,", "ĠĠæ¼¢", "[CLS]Ġ[SEP]"]


def test_words_of_metaspace() -> None:
    pieces = pieces_of(metaspace(), "The man,  left")
    of_words = ["".join(piece for piece, word in pieces if word == number) for number in (0, 1, 2, -1)]
    assert of_words == ["▁the", "▁man,", "▁▁left", "[CLS][SEP]"]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["", " ", "\t \n"])
def test_text_without_words(name: str, text: str) -> None:
    (ids,), (word_of,), cut = parts(TOKENIZERS[name](), [text])
    assert set(word_of) == {-1} and len(word_of) == len(ids) >= 2 and cut == 0


WILD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")).map(str.split)
PHRASES = st.lists(st.text("abTé,.'(3漢é😀İßſﬁ", min_size=1, max_size=7), max_size=6)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(words=WILD | PHRASES, data=st.data())
def test_words_have_the_same_tokens_alone_and_in_a_text(name: str, words: list[str], data: st.DataObject) -> None:
    """Byte-level and metaspace tokenizers are tested with single spaces only, because they keep spaces as tokens."""
    tokenizer = TOKENIZERS[name]()
    spaces = [" "] if name.startswith(("bytes", "meta")) else [" ", "  ", "\t", "\n ", "\u00a0"]
    text = "".join(word + data.draw(st.sampled_from(spaces)) for word in words[:-1]) + "".join(words[-1:])
    alone = [len(ids) - 2 for ids in tokenizer(words).token_ids] if words else []
    (word_of,) = tokenizer([text]).word_of
    assert word_of == [-1, *(number for number, count in enumerate(alone) for _ in range(count)), -1]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(max_size=40), max_words=st.integers(2, 12))
def test_words_are_in_order(name: str, text: str, max_words: int) -> None:
    """Tokens of any text are in the order of its words, and truncation does not change their words."""
    whole = TOKENIZERS[name]()
    (ids,), (word_of,), _ = parts(whole, [text])
    named = [word for word in word_of if word >= 0]
    assert len(ids) == len(word_of) and named == sorted(named) and set(named) <= set(range(len(text.split())))
    (cut_ids,), (cut_words,), cut = parts(of_fast(whole.tokenizer, max_words), [text])
    assert len(cut_ids) == len(cut_words) == min(len(ids), max_words) and cut == (len(ids) > max_words)
    assert cut_words == [*word_of[: len(cut_words) - 1], -1]


def test_word_pattern_agrees_with_split() -> None:
    """The pattern and `str.split` agree about which characters are white space."""
    text = "".join(f"a{chr(code)}b " for code in range(sys.maxunicode + 1))
    assert WORD.findall(text) == text.split()


def test_words_of_tokens() -> None:
    """The words of " ab  c " end at 3 and 6.

    A token that begins in or before a word belongs to it, even an empty one. The last one begins after all words.
    Special tokens belong to no word.
    """
    offsets = [(0, 0), (0, 0), (0, 2), (1, 3), (2, 3), (3, 4), (4, 4), (5, 6), (6, 7), (0, 0)]
    special = [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert words_of_tokens(" ab  c ", offsets, special) == [-1, 0, 0, 0, 0, 1, 1, 1, -1, -1]
    assert words_of_tokens("", [(0, 0)], [1]) == [-1] and words_of_tokens("a", [], []) == []


def test_word_lists_are_copied(tmp_path: Path, word_file: str) -> None:
    """Two different files of the same name are not copied, because one would overwrite the other."""
    config = [{"tokenizer": {"word_list": word_file, "max_words": 4}}, {"tokenizer": {"max_words": 3}}]
    folder = tmp_path / "weights"
    folder.mkdir()
    save_tokenizer_files({"dataset": {"pipeline": config}}, folder)
    assert [file.name for file in folder.iterdir()] == [Path(word_file).name]
    with_copies = with_tokenizer_files(folder, config)
    assert with_copies[0]["tokenizer"] == {"word_list": str(folder / Path(word_file).name), "max_words": 4}
    assert config[0]["tokenizer"]["word_list"] == word_file and with_copies[1] == config[1]
    assert with_tokenizer_files(tmp_path / "nothing", config) == config
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / Path(word_file).name
    other.write_text("zebra")
    empty = tmp_path / "empty"
    empty.mkdir()
    save_tokenizer_files(
        [*config, {"tokenizer": {"word_list": str(other)}}, {"tokenizer": {"word_list": "gone.txt"}}], empty
    )
    assert list(empty.iterdir()) == []


def test_the_pretrained_tokenizer_is_saved(tmp_path: Path, word_file: str) -> None:
    """The copy gives the same tokens. Of two tokenizers none is saved, because one would overwrite the other."""
    word_list = TextTokenizer(word_list=word_file).tokenizer
    for name in ("one", "two"):
        word_list.save_pretrained(str(tmp_path / name))
    config = [{"tokenizer": {"pretrained": str(tmp_path / "one"), "max_words": 6}}] * 2
    save_tokenizer_files({"pipeline": config}, tmp_path / "weights")
    (copied, _) = with_tokenizer_files(tmp_path / "weights", config)
    assert copied["tokenizer"] == {"pretrained": str(tmp_path / "weights" / "tokenizer"), "max_words": 6}
    assert config[0]["tokenizer"]["pretrained"] == str(tmp_path / "one")
    phrases = ["the red circle", "zebra"]
    wanted = TextTokenizer(**config[0]["tokenizer"])(phrases)
    assert TextTokenizer(**copied["tokenizer"])(phrases).token_ids == wanted.token_ids
    both = [*config, {"tokenizer": {"pretrained": str(tmp_path / "two")}}]
    save_tokenizer_files(both, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists() and with_tokenizer_files(tmp_path / "nothing", both) == both
