from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refseg.datasets.tokenizers import TextTokenizer, word_list_tokenizer
from refseg.errors import DataError

WORDS = ["the", "red", "circle", "left", "of"]


@pytest.fixture
def word_file(tmp_path: Path) -> str:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS))
    return str(file)


def test_ids_by_hand(word_file: str) -> None:
    """Specials are 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP]; then the words from 4 on. Case and punctuation are split off."""
    ids, cut = TextTokenizer(word_list=word_file)(["The red circle", "of, blue"])
    assert ids == [[2, 4, 5, 6, 3], [2, 8, 1, 1, 3]]
    assert cut == 0


def test_truncation_is_counted_and_keeps_the_end_or_not(word_file: str) -> None:
    """Five words and two specials, cut to 4: [CLS] the red + [SEP], or [CLS] the red circle."""
    texts = ["the red circle left of", "red"]
    assert TextTokenizer(word_list=word_file, max_words=4)(texts) == ([[2, 4, 5, 3], [2, 5, 3]], 1)
    assert TextTokenizer(word_list=word_file, max_words=4, keep_end=False)(texts)[0][0] == [2, 4, 5, 6]


@given(st.text(max_size=60), st.integers(2, 12))
def test_any_text_gives_ids_within_the_limit(text: str, max_words: int) -> None:
    tokenizer = TextTokenizer.__new__(TextTokenizer)
    tokenizer.tokenizer = word_list_tokenizer(WORDS)
    tokenizer.max_words, tokenizer.keep_end = max_words, True
    (ids,), cut = tokenizer([text])
    assert 2 <= len(ids) <= max_words
    assert ids[0] == 2 and ids[-1] == 3
    assert cut in (0, 1)


def test_a_tokenizer_folder(tmp_path: Path) -> None:
    word_list_tokenizer(WORDS).save_pretrained(tmp_path)
    assert TextTokenizer(pretrained=str(tmp_path))(["red"])[0] == [[2, 5, 3]]


def test_bad_arguments_name_the_remedy(tmp_path: Path, word_file: str) -> None:
    with pytest.raises(ValueError, match="either pretrained or word_list"):
        TextTokenizer()
    with pytest.raises(DataError, match="--allow-download"):
        TextTokenizer(pretrained="nobody/no-such-model")
    with pytest.raises(DataError, match="refseg data refshapes"):
        TextTokenizer(word_list=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="max_words"):
        TextTokenizer(word_list=word_file, max_words=1)
