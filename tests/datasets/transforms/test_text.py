from __future__ import annotations

import numpy as np

from refseg.datasets.transforms import RandomFlip
from transform_states import make_state

IMAGE = np.zeros((2, 2, 3), np.uint8)


def test_flip_keeps_the_tags() -> None:
    state = make_state(IMAGE, [], [("the left star", ())])
    state.expressions[0].tags["words"] = {"0": [0, 1, 2]}
    state = RandomFlip(chance=1)(state)
    assert state.expressions[0].text == "the right star" and state.expressions[0].tags == {"words": {"0": [0, 1, 2]}}
