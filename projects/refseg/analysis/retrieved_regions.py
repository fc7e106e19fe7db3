"""What the tokens of an expression retrieve, as numbers: whether it is the target, and whether it is one and the same.

Letters: E expressions, L tokens, P pixels of the level that is retrieved from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Retrieved(NamedTuple):
    """(E,) each. Of the target's pixels the share that is found by the first token, `by_first`, and by the others,
    `by_words`; by chance it is `chance`, the share of all pixels. `alike`: of a word's pixels the share that the first
    token retrieves too. NaN where there is no target, or no such token."""

    by_first: Tensor
    by_words: Tensor
    chance: Tensor
    alike: Tensor


def retrieved_shares(retrieved: Tensor, relevant: Tensor, valid: Tensor) -> Retrieved:
    """retrieved (E, L, P) bool, nothing for what is no cue; relevant (E, P); valid (E, P), False on padding."""
    found = (retrieved & relevant[:, None]).sum(-1) / relevant.sum(-1, keepdim=True)  # (E, L), NaN without a target
    number = retrieved.sum(-1)
    is_cue = number > 0
    found = found.where(is_cue, torch.nan)
    shared = ((retrieved & retrieved[:, :1]).sum(-1) / number).where(is_cue & is_cue[:, :1], torch.nan)
    chance = (number / valid.sum(-1, keepdim=True)).where(is_cue, torch.nan)
    return Retrieved(found[:, 0], found[:, 1:].nanmean(1), chance.nanmean(1), shared[:, 1:].nanmean(1))
