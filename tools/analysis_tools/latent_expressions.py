"""Measure whether the latent expressions of a trained Latent-VG differ, and whether their subjects are head nouns.

    python tools/analysis_tools/latent_expressions.py CONFIG CHECKPOINT [--split val] [--json latents.json]

Means over the phrases of the config's test set. Cosines of a phrase's latent expressions: "among" each other, "to_text"
with their text, and "across" phrases, for comparison. "overlap": IoU of their masks. "updates": cosine of the concepts
that the injector adds to a phrase's attributes. "confidence": probability of the chosen subject, and "uniform" if all
words had the same; a low one means that the choice is noise in training. On RefShapes also the share of phrases whose
"subject" is a noun that describes the referents, and that share by "chance", if every word were equally likely.
"""

from refseg.analysis.latent_vg import measure_latents
from refseg.analysis.trained_model import measuring_parser, run_measurement


def main() -> None:
    for name, value in run_measurement(measuring_parser(__doc__).parse_args(), measure_latents).items():
        print(f"{name:10s} {value:.3f}")


if __name__ == "__main__":
    main()
