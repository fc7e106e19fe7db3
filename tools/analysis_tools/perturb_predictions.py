"""A prediction file made from the ground truth, with the kinds of faults that models have; for examples and for tests
of evaluation code, where no model is at hand.

    python tools/analysis_tools/perturb_predictions.py data/refshapes_mini:val out.jsonl [--seed 0] [--severity 1]

Drawn for each expression from its own id and the seed, with chances that grow with `--severity` s:
- the mask is moved by up to 2 s pixels each way, and grown (or, half as often, shrunk) by up to s pixels;
- with chance 0.1 s another object of the image is meant, with 0.1 s one of several referents is forgotten;
- one stray pixel more with chance 0.2 s;
- without a target, a mask on some object; and the probability of "nothing here" is a noisy one: logit N(2, 1.6 s) where
  there is none, N(-2, 1.6 s) where there is one.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from refseg.datasets.masks import decode
from refseg.evaluation.measure import Truth
from refseg.evaluation.prediction_file import Answer, write_predictions
from refseg.evaluation.scorer import TruthIndex, open_data
from refseg.records import Expression


def perturbed(truths: TruthIndex, *, seed: int, severity: float) -> Iterator[Answer]:
    for position in range(len(truths)):
        expression = truths.expression(position)
        rng = np.random.default_rng([seed, zlib.crc32(expression.expression_id.encode())])
        mask = wrong_mask(expression, truths.truth(position), rng, severity)
        logit = rng.normal(-2.0 if expression.referents else 2.0, 1.6 * severity)
        yield Answer(
            expression.expression_id,
            coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))),
            no_target_prob=round(float(1 / (1 + np.exp(-logit))), 6),
        )


def wrong_mask(expression: Expression, truth: Truth, rng: np.random.Generator, severity: float) -> np.ndarray:
    """(h, w) bool."""
    instances = chosen_instances(expression, len(truth.record.instances), rng, severity)
    mask = np.zeros(truth.record.size, bool)
    for index in instances:
        mask |= decode(truth.instance_rle(index))
    shift = rng.integers(-round(2 * severity), round(2 * severity) + 1, 2)
    mask = ndimage.shift(mask.astype(np.uint8), shift, order=0).astype(bool)
    steps = int(rng.integers(0, round(severity) + 1))
    if steps:
        change = ndimage.binary_erosion if rng.random() < 1 / 3 else ndimage.binary_dilation
        mask = change(mask, iterations=steps)
    if rng.random() < 0.2 * severity:
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = True
    return mask


def chosen_instances(expression: Expression, num: int, rng: np.random.Generator, severity: float) -> list[int]:
    right = list(expression.referents)
    others = [index for index in range(num) if index not in right]
    if not right or (others and rng.random() < 0.1 * severity):
        return [int(rng.choice(others))] if others else []
    if len(right) > 1 and rng.random() < 0.1 * severity:
        right.pop(int(rng.integers(len(right))))
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="SET:SPLIT", help="as of `refseg score --data`")
    parser.add_argument("out", help="prediction file to write (.jsonl, .jsonl.gz)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--severity", type=float, default=1.0)
    args = parser.parse_args()
    made_with = {"tool": "perturb_predictions.py", "seed": args.seed, "severity": args.severity}
    rows = perturbed(open_data(args.data).truths, seed=args.seed, severity=args.severity)
    write_predictions(args.out, rows, header=made_with)


if __name__ == "__main__":
    main()
