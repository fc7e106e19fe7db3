"""Swap left and right in a phrase, for the mirrored image, unless that is unsafe.

`mirror_text` swaps all side words at once: "left of the right door" becomes "right of the left door". The difficulty is
other senses of the two words ("right behind her", "one slice left"), and things that a mirror changes without a side
word. The rules are few and prefer None: a skipped phrase costs a flip, a wrong one teaches the model the wrong side.

The result is None for a phrase that contains
1. digits other than an ordinal ("2nd from left"), quotation marks, or words about lettering, because text cannot be
   read in a mirrored image;
2. clock or compass words, or a driver's or a ship's sides;
3. a side word in an unknown spelling ("rigth", "rt", "bottomleftish", mixed case), or a single letter l or r;
4. "left" or "right", without an article or owner before it, before a word that makes it an adverb or a participle
   ("right next to", "right on", "left over"); before "in" only if a place follows ("right in front", "left in the
   box"), and before "to" unless the other side follows ("left to right");
5. "left" or "right" after a verb of being or a word for a rest ("is left", "slice left", "all right"), unless "of" or
   "most" follows; or before "of" and after "what" or a word for a rest, even with a verb of being or "that" in between
   ("what is left of the pizza", "all that's left of it", "a piece left of it");
6. "left" or "right" before a posture ("left standing"), unless an article, an owner or a preposition is before it ("the
   left sitting man", "on right standing");
7. "left" or "right" next to "turn" ("turn left", "right turn lane"), or next to "sign" or "arrow" ("left arrow")
   without an article or owner before it or "of" after it, because the sign may say it.

"left" and "right" follow the same rules, so mirroring twice returns the original text. No word is added or removed, so
tags that tie words to instances stay true.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OTHER_SIDE = {"left": "right", "right": "left", "lhs": "rhs", "rhs": "lhs"}

TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+[^\W\d_]*")
SIDE_WORD = re.compile(
    r"(?:top|bottom|upper|lower|far|mid|middle|center|centre|front|back)?(left|right)"
    r"(?:most|ward|wards|hand|handed|hander|side|er|est|y|s)?|(lhs|rhs)"
)
ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")
QUOTATION = re.compile(r"[\"“”„«»`]|(?<!\w)['‘]\w")
SAME_LETTERS = re.compile(r"(?:b|f|up)right(?:er|est|ly|ness|en|ened|ened|ening)?")  # bright, fright, upright
MISSPELLED = _words("l r rt lt lf lft rgt rht rght rite rigt righ rigth rihgt rghit lef letf lfet leftt")

UNREADABLE_IN_A_MIRROR = _words(
    "number numbers numbered numeral digit digits letter letters lettered lettering say says said saying word words "
    "wording read reads reading write writes writing written text label labels labeled labelled spell spells "
    "spelled spelling initial initials name names named titled caption"
)
OTHER_FRAMES = _words(
    "clockwise counterclockwise anticlockwise oclock east west eastern western easterly westerly northeast "
    "northwest southeast southwest starboard portside copyright"
)
POSSESSIVE = re.compile(r"['’]s?$")
OTHER_PHRASES = re.compile(
    r"\bo['’ ]? ?clock\b|\b(?:driver|passenger)(?:['’]?s['’]?)? side\b|\bport side\b|\bstage (?:left|right)\b"
)

DETERMINERS = _words("the his her their your my our")
PREPOSITIONS = _words("on to at from in by with of near")
# After "left" or "right": it means "directly", "remaining" or "correct" rather than a side.
AFTER_OTHER_SENSE = _words(
    "next behind by beside besides there here under underneath beneath above below at on onto upon before after "
    "near up now away against over between around down off across outside inside into within through where when "
    "while along about past out alone open empty uneaten unattended untouched for as if back ahead beyond among "
    "amongst amid opposite alongside until till"
)
POSTURES = _words(
    "standing stood sitting sat seated lying laying laid leaning kneeling crouching crouched squatting hanging resting "
    "sleeping waiting perched propped parked"
)
TURNS = _words("turn turns")
SIGNS = _words("sign signs arrow arrows")
AFTER_ALWAYS_OTHER = _words("over overs angle angles angled way")  # even with an article
PLACES_AFTER_IN = _words("front back the middle center centre between line a an this that there here his her")
BEING = _words("is are was were be been being am has had have having isn't aren't isnt arent there's")
REST_WORDS = _words(
    "what whats what's all any some nothing anything something everything much none few half slice slices piece pieces "
    "bite bites portion portions"
)
BEFORE_OTHER_SENSE = (
    BEING
    | REST_WORDS
    | _words("thats whos its it's that's who's here's he's she's they're only just many little more time")
)
BETWEEN_REST_AND_LEFT = BEING | _words("that that's thats there")


def mirror_text(text: str) -> str | None:
    """Return the phrase for the mirrored image, or None if that is unsafe by the rules of this module."""
    lower = text.lower()
    if QUOTATION.search(text) or OTHER_PHRASES.search(lower) or len(lower) != len(text):
        return None
    matches = list(TOKEN.finditer(text))
    words = [match.group().lower().replace("’", "'") for match in matches]
    pieces, end = [], 0
    for i, match in enumerate(matches):
        swapped = _mirror_word(words, i, match.group())
        if swapped is None:
            return None
        pieces += [text[end : match.start()], swapped]
        end = match.end()
    return "".join(pieces) + text[end:]


def _mirror_word(words: list[str], i: int, written: str) -> str | None:
    word = words[i]
    if word[0].isdigit():
        return written if ORDINAL.fullmatch(word) else None
    stem = POSSESSIVE.sub("", word)
    if stem in MISSPELLED or stem in UNREADABLE_IN_A_MIRROR or stem in OTHER_FRAMES:
        return None
    match = SIDE_WORD.fullmatch(stem)
    if match is None:
        other_word = ("left" not in word and "right" not in word) or SAME_LETTERS.fullmatch(stem)
        return written if other_word else None
    if stem in ("left", "right") and not _is_a_side(words, i):
        return None
    side = match.group(1) or match.group(2)
    mirrored = written.lower().replace(side, OTHER_SIDE[side])
    # Keep lower, UPPER or Title case. Other mixtures are unsafe.
    for style in (str.lower, str.upper, str.capitalize):
        if written == style(written):
            return style(mirrored)
    return None


def _is_a_side(words: list[str], i: int) -> bool:
    """Return whether "left" or "right" at index `i` certainly names a side (rules 4 to 7)."""
    before = words[i - 1] if i else ""
    is_owned = before in DETERMINERS or (before.endswith("'s") and before not in BEFORE_OTHER_SENSE)
    if before == "its" and i > 1:  # "to its left", not "its left" for "it is left"
        is_owned = words[i - 2] in PREPOSITIONS
    after, later = [*words[i + 1 : i + 3], "", ""][:2]
    if after in AFTER_ALWAYS_OTHER or (after == "side" and later == "up") or not TURNS.isdisjoint((before, after)):
        return False
    if after == "of":
        # "left of" after "what" or a word for a rest, except for verbs of being and "that" in between.
        start = i
        while start and words[start - 1] in BETWEEN_REST_AND_LEFT:
            start -= 1
        if start and words[start - 1] in REST_WORDS:
            return False
    if is_owned or after in ("of", "most"):
        return True
    if before in BEFORE_OTHER_SENSE or after in AFTER_OTHER_SENSE or not SIGNS.isdisjoint((before, after)):
        return False
    if after in POSTURES:
        return before in PREPOSITIONS
    if after == "in":
        return later not in PLACES_AFTER_IN
    if after == "to":
        return later in OTHER_SIDE and later != words[i]
    return True
