"""Paraphrases: synonyms are new words, and nothing but words changes."""

import hashlib
import importlib.util
import json

import pytest

from refseg.datasets.readers.jsonl import read_jsonl
from refseg.pretrained import PACKAGES, installed
from refseg.refshapes import PRESETS, generate, word_list
from refseg.refshapes.paraphrases import RULES, SYNONYMS, paraphrase, reword
from refseg.refshapes.presets import make_image

# It changes only together with GENERATOR_VERSION.
TINY_PARAPHRASES = "02373fed5af480398f19c863024061f649eddf0d31fa6541d32520330d70baa9"
TAGS = {"original", "num_replaced", "replaced"} | {f"replaced_{group}" for group in SYNONYMS}


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("refshapes") / "tiny"
    generate("tiny", out, workers=1, progress=False)
    return out


def test_synonyms_are_new_words_and_replace_known_ones():
    """No synonym has two meanings. Of its words, only "partly" and "by" are in the vocabulary."""
    vocabulary = set(word_list())
    for originals, rule in RULES.items():
        assert set(originals) <= vocabulary
        assert set(rule.words) - {"partly", "by"}
        assert not set(rule.words) - {"partly", "by"} & vocabulary
    synonyms = [synonym for group in SYNONYMS.values() for synonym in group]
    assert len(set(synonyms)) == len(synonyms)
    originals = [original for group in SYNONYMS.values() for words in group.values() for original in words]
    assert len(set(originals)) == len(originals)


def test_synonyms_of_kinds_fit_the_article_a():
    """Negations say "that is not a circle"; "an" is not in the vocabulary."""
    assert not any(synonym[0] in "aeiou" for synonym in SYNONYMS["kind"])


@pytest.mark.skipif(not importlib.util.find_spec(PACKAGES["minilm"].module), reason="needs refseg[pretrained]")
def test_synonyms_in_word_pieces():
    """MiniLM's vocabulary, which is BERT's, has the words that docs/refshapes.md says."""
    pieces = set((installed("minilm") / "vocab.txt").read_text(encoding="utf-8").split())
    words = {word for rule in RULES.values() for word in rule.words}
    assert words - pieces == {"pentagram", "pentagrams", "cubes", "pyramids", "kites"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("the red circle", "the crimson disk"),
        ("both little boxes", "both miniature cubes"),
        ("all things that are not rhombuses", "all items that are not kites"),
        ("the star inside of the square", "the pentagram enclosed by the cube"),
        ("star partly behind the disc", "pentagram partly obscured by the disk"),
        ("star with the disc in front of it", "pentagram with the disk blocking it"),
        ("triangle without stripes", "pyramid without bands"),
        ("the plus in the top half", "the plus in the top half"),
    ],
)
def test_reword(text, expected):
    assert " ".join(reword(text.split())[0]) == expected


def test_word_indices_and_tags():
    """The anchor moves by two words, since "partly obscured by" has three words and "behind" has one."""
    tags = {"skill": "behind", "words": {"4": [1, 2]}, "num_targets": 1, "anchor_words": {"0": [5, 6]}}
    row = {"expression_id": "val_000000_0", "text": "the red star behind the violet circle", "tags": tags}
    assert paraphrase(row) == {
        "expression_id": "val_000000_0",
        "text": "the crimson pentagram partly obscured by the plum disk",
        "tags": {
            "skill": "behind",
            "words": {"4": [1, 2]},
            "num_targets": 1,
            "anchor_words": {"0": [7, 8]},
            "original": row["text"],
            "num_replaced": 5,
            "replaced": "kind, color, relation",
            "replaced_kind": "disk, pentagram",
            "replaced_color": "crimson, plum",
            "replaced_relation": "partly obscured by",
        },
    }
    assert tags["anchor_words"] == {"0": [5, 6]}  # the original row is unchanged


def test_phrase_without_synonyms_is_kept():
    row = {"text": "the leftmost plus", "tags": {"words": {"0": [1, 2]}}}
    tags = {"words": {"0": [1, 2]}, "original": "the leftmost plus", "num_replaced": 0, "replaced": "nothing"}
    assert paraphrase(row) == row | {"tags": tags}


def test_only_words_differ_from_the_originals(tiny):
    """The rows of val and test, in order, with the same ids, images, targets, and splits."""
    originals = [row for row in read_rows(tiny / "refshapes.jsonl") if row["split"] in ("val", "test")]
    rows = read_rows(tiny / "paraphrases.jsonl")
    assert len(rows) == len(originals) == 14 * 6
    for row, original in zip(rows, originals, strict=True):
        assert row["tags"]["original"] == original["text"]
        assert (row["text"] != original["text"]) == (row["tags"]["num_replaced"] > 0)
        tags = {name: value for name, value in row["tags"].items() if name not in TAGS}
        assert len(tags.pop("words")) == len(original["tags"].pop("words"))
        tags.pop("anchor_words", None), original["tags"].pop("anchor_words", None)
        assert row | {"text": original["text"], "tags": tags} == original


def test_every_word_with_a_synonym_is_replaced():
    """In phrases of base, which have all skills."""
    replaced = {originals[0] for originals in RULES if len(originals) == 1}
    for index in range(40):
        for expression in make_image(PRESETS["base"], "val", index).expressions:
            new, places, _ = reword(expression.text.split())
            assert not set(new) & replaced, expression.text
            assert len(places) == len(expression.text.split())


def test_file_is_readable_and_deterministic(tiny):
    file = tiny / "paraphrases.jsonl"
    annotations = read_jsonl(file=file)
    assert not annotations.problems
    assert sum(len(record.expressions) for record in annotations.records) == 84
    assert hashlib.sha256(file.read_bytes()).hexdigest() == TINY_PARAPHRASES


def test_file_is_added_to_a_finished_folder(tiny):
    """Folders that were made before this file existed get it; nothing else is written."""
    file, meta = tiny / "paraphrases.jsonl", (tiny / "meta.json").stat().st_mtime_ns
    content = file.read_bytes()
    file.unlink()
    generate("tiny", tiny, workers=1, progress=False)
    assert file.read_bytes() == content
    assert (tiny / "meta.json").stat().st_mtime_ns == meta
