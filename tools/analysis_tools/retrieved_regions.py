"""Measure what the words of a trained VIPA retrieve: whether it is the target, and whether words differ.

    python tools/analysis_tools/retrieved_regions.py CONFIG CHECKPOINT [--split val] [--json regions.json]

Means over the phrases of the config's test set, at the coarsest level:

    by_first, by_words        share of the target that the whole phrase ([CLS]) and its words retrieve
    chance                    share of all places that they retrieve
    alike                     share of a word's places that [CLS] retrieves too
    rank                      effective rank of an image's pixels in the joint space of eq. 1
    cue_cosine, token_cosine  mean cosine of a phrase's words there, and of its visual expression
    mask_gradient             gradient of the mask's losses on the scores of [CLS], relative to that of eq. 4
    tau                       temperature of the retrieval
"""

from refseg.analysis.trained_model import measuring_parser, run_measurement
from refseg.analysis.vipa import measure_retrieval


def main() -> None:
    for name, value in run_measurement(measuring_parser(__doc__).parse_args(), measure_retrieval).items():
        print(f"{name:13s} {value:.3g}")


if __name__ == "__main__":
    main()
