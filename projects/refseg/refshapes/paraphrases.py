"""Phrases of val and test in words that training never shows: "the red circle" becomes "the crimson disk".

Only synonyms replace words. Targets, expression ids, and the other words stay, so an answer to a paraphrase and an
answer to its original are a pair.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from refseg.files import open_to_replace
from refseg.refshapes import vocabulary as v

SPLITS = ("val", "test")

# Group -> synonym -> the words of the vocabulary that it replaces. No synonym fits another meaning of RefShapes. Raise
# GENERATOR_VERSION with every change. Nouns are in the singular; the plural of each synonym ends in "s".
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {
        "disk": ("circle", "disc"),
        "cube": ("square", "box"),
        "pyramid": ("triangle",),
        "pentagram": ("star",),
        "kite": ("diamond", "rhombus"),
    },
    "noun": {"figure": ("shape",), "item": ("object", "thing")},
    "color": {
        "crimson": ("red",),
        "emerald": ("green",),
        "cobalt": ("blue",),
        "golden": ("yellow",),
        "plum": ("purple", "violet"),
        "pumpkin": ("orange",),
        "ivory": ("white",),
        "ebony": ("black",),
    },
    "size": {"miniature": ("small", "tiny", "little"), "huge": ("large", "big")},
    "texture": {"solid": ("plain",), "banded": ("striped", "stripy"), "bands": ("stripes",)},
    "pose": {"leaning": ("tilted", "slanted", "rotated")},
    "relation": {
        "enclosed by": ("inside", "inside of", "within"),
        "surrounding": ("around",),
        "partly obscured by": ("behind", "partly behind", "partly hidden by"),
        "blocking": ("in front of",),
        "partly blocking": ("partly covering",),
    },
    "rank": {"starting": ("counting",)},
}


class Rule(NamedTuple):
    """The replacement of a word or a few words."""

    group: str
    synonym: str  # as in SYNONYMS
    words: tuple[str, ...]  # the synonym in the number of the words it replaces


def _rules() -> dict[tuple[str, ...], Rule]:
    plurals = dict(pair for pairs in (*v.KIND_NOUNS.values(), v.ANY_NOUNS) for pair in pairs)
    rules = {}
    for group, synonyms in SYNONYMS.items():
        for synonym, originals in synonyms.items():
            for original in originals:
                rules[tuple(original.split())] = Rule(group, synonym, tuple(synonym.split()))
                if original in plurals:
                    rules[(plurals[original],)] = Rule(group, synonym, (f"{synonym}s",))
    return rules


RULES = _rules()
LONGEST = max(map(len, RULES))


def reword(words: list[str]) -> tuple[list[str], list[list[int]], list[Rule]]:
    """Replace all words that have synonyms.

    Returns:
        The new words; for each old word, the indices of its new words; and the rules that were applied, in order.
    """
    new: list[str] = []
    places: list[list[int]] = []
    applied: list[Rule] = []
    while len(places) < len(words):
        # The longest span that starts here and has a synonym: "partly behind" rather than "behind".
        at = len(places)
        spans = (tuple(words[at : at + length]) for length in range(LONGEST, 0, -1))
        span = next((span for span in spans if span in RULES), None)
        if span is None:
            places.append([len(new)])
            new.append(words[at])
            continue
        rule = RULES[span]
        places += [list(range(len(new), len(new) + len(rule.words)))] * len(span)
        new += rule.words
        applied.append(rule)
    return new, places, applied


def paraphrase(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of refshapes.jsonl with its text reworded, word indices that fit, and tags about the replacement."""
    new, places, applied = reword(row["text"].split())
    tags = dict(row["tags"])
    # Word indices
    for name in ("words", "anchor_words"):
        if name in tags:
            tags[name] = {
                instance: sorted({place for index in indices for place in places[index]})
                for instance, indices in tags[name].items()
            }
    # What was replaced: the groups, and for each group its synonyms in the order of SYNONYMS
    tags |= {"original": row["text"], "num_replaced": len(applied), "replaced": "nothing"}
    used = {(rule.group, rule.synonym) for rule in applied}
    groups = {
        group: ", ".join(synonym for synonym in synonyms if (group, synonym) in used)
        for group, synonyms in SYNONYMS.items()
    }
    groups = {group: synonyms for group, synonyms in groups.items() if synonyms}
    if groups:
        tags["replaced"] = ", ".join(groups)
        tags |= {f"replaced_{group}": synonyms for group, synonyms in groups.items()}
    return row | {"text": " ".join(new), "tags": tags}


def write_paraphrases(expressions: Path, file: Path) -> None:
    """Write the paraphrases of a refshapes.jsonl file, row by row."""
    with open_to_replace(file) as out:
        for row in _rows(expressions):
            out.write(json.dumps(paraphrase(row)).encode("ascii") + b"\n")


def _rows(expressions: Path) -> Iterator[dict[str, Any]]:
    with expressions.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] in SPLITS:
                yield row
