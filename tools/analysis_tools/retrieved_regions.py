"""Measure what the words of a trained VIPA retrieve: whether it is the target, and whether words differ.

    python tools/analysis_tools/retrieved_regions.py CONFIG CHECKPOINT [--split val] [--json regions.json]

Means over the phrases of the config's test set, at the coarsest level. "by_first", "by_words": share of the target that
the whole phrase ([CLS]) and its words retrieve. "chance": share of all places that they retrieve. "alike": share of a
word's places that [CLS] retrieves too. "tau": temperature of the retrieval.
"""

from refseg.analysis.trained_model import measuring_parser, run_measurement
from refseg.analysis.vipa import measure_retrieval


def main() -> None:
    for name, value in run_measurement(measuring_parser(__doc__).parse_args(), measure_retrieval).items():
        print(f"{name:8s} {value:.3f}")


if __name__ == "__main__":
    main()
