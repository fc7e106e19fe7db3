"""Measure and draw the attention of a trained VIPA's decoder (Figs. 1 c, 5 and 6 c of the paper, as numbers).

    python tools/analysis_tools/attention_entropy.py CONFIG CHECKPOINT [--split val] [--json FILE] [--pictures FOLDER]

Means over the phrases of the config's test set by stage, from the coarsest level to the finest (stage 1). Run it on two
models to compare key-value sets.

"over tokens": relative entropy of a pixel's attention over the key-value set. "over pixels": of the pixels' attention
to a token. 0: all the weight is in one place. 1: all places weigh the same. "to target", "to others": mean distance
(1 - cosine, of the attention's keys and queries) of the tokens to the target's pixels and to all other pixels.
"""

from functools import partial
from pathlib import Path

from refseg.analysis.trained_model import measuring_parser, run_measurement
from refseg.analysis.vipa import measure_attention


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--pictures", type=Path, help="draw maps of each token's attention into this folder")
    parser.add_argument("--count", type=int, default=12, help="number of pictures (default: 12)")
    args = parser.parse_args()
    measure = partial(measure_attention, pictures=args.pictures, count=args.count)
    for name, row in run_measurement(args, measure).items():
        print(f"{name:8s}", *(f"{key.replace('_', ' ')} {value:.3f} " for key, value in row.items()))


if __name__ == "__main__":
    main()
