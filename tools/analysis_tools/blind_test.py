"""Score a trained model with the wrong phrases and with the wrong images, to see how much it uses either.

    python tools/analysis_tools/blind_test.py CONFIG CHECKPOINT [--split val] [--json blind.json]

The config's test set is scored three times: as it is, with the phrases of the next image, and with the next image. The
ground truth is always that of the original phrases and image. A model that ignores the text scores the same with other
phrases, and one that ignores the image scores the same with other images.
"""

from refseg.analysis.blind_test import measure_blind
from refseg.analysis.trained_model import measuring_parser, run_measurement


def main() -> None:
    parser = measuring_parser(__doc__)
    parser.add_argument("--metrics", nargs="+", default=["refseg/oIoU", "refseg/mIoU"], help="metrics to print")
    args = parser.parse_args()
    for name, metrics in run_measurement(args, measure_blind).items():
        print(f"{name:14s}" + "  ".join(f"{metric} {metrics[metric]:.1f}" for metric in args.metrics))


if __name__ == "__main__":
    main()
