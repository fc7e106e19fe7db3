"""Write a prediction file from the ground truth, with the kinds of errors that models make.

Use it for examples and tests of evaluation code without a model.

    python tools/analysis_tools/perturb_predictions.py data/refshapes_mini:val out.jsonl [--seed 0] [--severity 1]

Errors are drawn from the expression's id and the seed, with probabilities that grow with `--severity` s:
- The mask is moved by up to 2 s pixels in each direction, and dilated (or, half as often, eroded) by up to s pixels.
- With probability 0.1 s, the mask is on another object. With 0.1 s, one of several referents is missing.
- With probability 0.2 s, one stray pixel is added.
- Without a target, the mask is on some object.
- The logit of "no target" is drawn from N(2, 1.6 s) without a target, and from N(-2, 1.6 s) with one.
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
    """Return the mask of an expression with errors, (h, w) bool."""
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
    parser.add_argument("data", metavar="SET:SPLIT", help="data set and split, as in `refseg score --data`")
    parser.add_argument("out", help="prediction file to write (.jsonl, .jsonl.gz)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--severity", type=float, default=1.0)
    args = parser.parse_args()
    made_with = {"tool": "perturb_predictions.py", "seed": args.seed, "severity": args.severity}
    rows = perturbed(open_data(args.data).truths, seed=args.seed, severity=args.severity)
    write_predictions(args.out, rows, header=made_with)


if __name__ == "__main__":
    main()
