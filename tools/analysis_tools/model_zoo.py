"""Write docs/model_zoo.md: one row per model, from configs/*/model-index.yml, with its size and speed measured here.

    python tools/analysis_tools/model_zoo.py
    python tools/analysis_tools/model_zoo.py --reuse     # keep the measured columns of models that are in the page

Sizes are of random weights. Configs that differ in data only are measured once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from refseg.analysis.flops import count, longest_expression
from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import RunOptions, build_model, input_size, load_config
from refseg.paths import configs_dir

REPOSITORY = configs_dir().resolve().parent
PAGE = REPOSITORY / "docs/model_zoo.md"
MEASURED = ("params", "GMAC", "CPU s")
# Weights that exist, by collection. None of them has been run here: no machine of ours had them.
WEIGHTS = {
    "LAVT": "the authors', [converted](convert.md)",
    "ReLA": "the authors', [converted](convert.md)",
    "CGFormer": "the authors', [converted](convert.md)",
    "DeRIS": "the authors', [converted](convert.md)",
    "DMMI": "the authors', [converted](convert.md)",
}
SHIPPED = {"instalign_tiny_refshapes": "ship with refseg: `refshapes`"}
INTRO = """# Model zoo

One row per model. A config of another data set with the same model shares its size. The command
`python tools/analysis_tools/model_zoo.py` writes this page: parameters, multiply-accumulates (GMAC) for one image of
the config's size with one phrase, and the processor time of that with one thread ({machine}; other jobs
beside it, which lengthen it a little).
"The authors'" weights are published for the method, though not for each of its rows, and were not at hand here; "-": we
know of none.
Published numbers are of the papers' tables, named in the READMEs of `configs/`. "Ours" are in
[results](results/refshapes.md). None of these configs was trained on photographs by us, so no row has
both. Zero-shot models are in [a page of their own](zero_shot.md).

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reuse", action="store_true", help="measure only models that the page does not have")
    parser.add_argument("--runs", type=int, default=3, help="timed runs per model (default: 3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = read_page() if args.reuse and PAGE.is_file() else {}
    models = [model for file in sorted(REPOSITORY.glob("configs/*/model-index.yml")) for model in read_index(file)]
    measured: dict[str, tuple[str, ...]] = {}
    lines = []
    for model in tqdm(models, desc="models"):
        name = model["Name"]
        if name in known:
            sizes = known[name]
        else:
            cfg = load_config(str(REPOSITORY / model["Config"]), RunOptions())
            key = json.dumps([cfg.model.to_dict(), input_size(cfg)], sort_keys=True, default=str)
            if key not in measured:
                measured[key] = measure(cfg, args.runs)
            sizes = measured[key]
        lines.append(row(model, sizes))
    head = ["model", "data", *MEASURED, "weights", "published", "ours"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]
    machine = f"{cpu_name()}, torch {torch.__version__.partition('+')[0]}"
    PAGE.write_text(INTRO.format(machine=machine) + "\n".join(table) + "\n", encoding="utf-8")
    print(PAGE)


def read_index(file: Path) -> list[dict[str, Any]]:
    """Return the models of a file, without zero-shot ones and the parts that `refseg finetune` completes."""
    models = yaml.safe_load(file.read_text(encoding="utf-8"))["Models"]
    return [] if file.parent.name in ("zero_shot", "finetune") else models


def read_page() -> dict[str, tuple[str, ...]]:
    """Return the measured columns of the page by model."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[0].startswith("`"):
            found[cells[0].strip("`")] = tuple(cells[2:5])
    return found


@torch.no_grad()
def measure(cfg: Any, runs: int) -> tuple[str, ...]:
    """Return parameters, GMAC and CPU seconds of a config's model, as cells."""
    work = count(cfg)
    model = build_model(cfg).eval()
    data = dummy_batch(shape=input_size(cfg), num_words=longest_expression(cfg), vocab_size=vocabulary_size(model))
    batch = model.data_preprocessor(data, False)["batch"]
    times = []
    for _ in range(runs + 1):  # the first one warms up
        start = time.process_time()
        model(batch, mode="tensor")
        times.append(time.process_time() - start)
    return f"{work['params'] / 1e6:.1f} M", f"{work['macs'] / 1e9:.1f}", f"{statistics.median(times[1:]):.2f}"


def row(model: dict[str, Any], sizes: tuple[str, ...]) -> str:
    """Return the line of a model."""
    published, ours = [], []
    for result in model.get("Results", []):
        numbers = ", ".join(f"{name} {value}" for name, value in result["Metrics"].items() if name != "unknown")
        if numbers:
            (published if result["Source"] == "paper" else ours).append(f"{result['Dataset']}: {numbers}")
    name = model["Name"]
    data = model["Metadata"]["Training Data"]
    theirs = "-" if "RefShapes" in data else WEIGHTS.get(model["In Collection"], "-")
    cells = [f"`{name}`", data, *sizes, SHIPPED.get(name, theirs)]
    return f"| {' | '.join([*cells, '; '.join(published) or '-', '; '.join(ours) or '-'])} |"


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")


if __name__ == "__main__":
    main()
