"""Measure how focused the attention of a trained VIPA's decoder is (Fig. 6 c of the paper, as numbers).

    python tools/analysis_tools/attention_entropy.py CONFIG CHECKPOINT [--split val] [--json entropy.json]

Relative entropies by stage, from the coarsest level to the finest (stage 1), averaged over the phrases of the config's
test set. "over tokens": of a pixel's attention over the key-value set. "over pixels": of the pixels' attention to a
token. 0: all the weight is in one place. 1: all places weigh the same. Run it on two models to compare key-value sets.
"""

from refseg.analysis.trained_model import measuring_parser, run_measurement
from refseg.analysis.vipa import measure_attention


def main() -> None:
    for name, row in run_measurement(measuring_parser(__doc__).parse_args(), measure_attention).items():
        print(f"{name:10s} over tokens {row['over_tokens']:.3f}  over pixels {row['over_pixels']:.3f}")


if __name__ == "__main__":
    main()
