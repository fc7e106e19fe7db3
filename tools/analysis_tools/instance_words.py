"""Measure phrase-object alignment (POA) of a trained InstAlign, and which of its matrices tells an instance's words.

    python tools/analysis_tools/instance_words.py CONFIG CHECKPOINT [--split val] [--json words.json]

The first table is section 9.1's, beside the paper's values on gRefCOCO val. The second needs data that say which words
describe an instance (RefShapes). Choose `model.words` (block and heads) by it on val.
"""

from refseg.analysis.instalign import PAPER, measure_instalign
from refseg.analysis.trained_model import measuring_parser, run_measurement


def main() -> None:
    numbers = run_measurement(measuring_parser(__doc__).parse_args(), measure_instalign)
    print("POA                  mean median    min    max   paper")
    for name, values in numbers["poa"].items():
        shown = "no such query         " if values is None else " ".join(f"{value:6.3f}" for value in values.values())
        print(f"{name:18s} {shown}   {' '.join(f'{value:.3f}' for value in PAPER[name])}")
    if "words" in numbers:
        print(f"\n{numbers['instances']} matched, {numbers['instances with own words']} with words of their own")
        print("matrix             pointing     AP    own")
        for name, scores in numbers["words"].items():
            print(
                f"{name:18s} " + " ".join("       -" if value is None else f"{value:8.1f}" for value in scores.values())
            )


if __name__ == "__main__":
    main()
