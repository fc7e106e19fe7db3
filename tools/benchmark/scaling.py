"""Measure how time and memory grow: with phrases per image, image size, queries, and rows of a prediction file.

    python tools/benchmark/scaling.py [--parts phrases memory scoring] [--iters 5] [--json result.json]

"phrases" is the time per phrase of the tiny models of RefShapes, with 1 to 32 phrases of an image, on the GPU if there
is one. "memory" is what a model keeps for the backward pass of one image: the bytes of all tensors that autograd saves,
parameters left out. It is the same on every device, up to kernels that save something else. "scoring" is the time of
`refseg score` by rows. Models have random weights; images and phrases are random. Tables are printed in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from common import write_json

METHODS = {
    "InstAlign": "instalign_tiny_refshapes",
    "ReLA": "rela_tiny_refshapes",
    "LAVT": "lavt/lavt_tiny_refshapes",
    "LGFormer": "lgformer_tiny_refshapes",
    "VIPA, late fusion": "vipa_tiny_refshapes",
    "VIPA, early fusion": "vipa/ablations/refshapes_early_fusion",
    "Latent-VG": "latentvg_tiny_refshapes",
}
PHRASES = (1, 2, 4, 8, 16, 32)
SIZES, QUERIES, FEW = (320, 480), (10, 20, 100), (1, 2, 4)
ROWS = (1_000, 10_000, 100_000)


def by_phrases(args: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds per phrase of inference and of a training step, by method and number of phrases."""
    from refseg.analysis.benchmark import benchmark
    from refseg.engine.run import load_config

    found: dict[str, Any] = {"inference": {}, "training": {}}
    for name, config in METHODS.items():
        cfg = load_config(config)
        for count in PHRASES:
            for row in benchmark(cfg, expressions=count, iters=args.iters, warmup=2):
                found[row["what"]].setdefault(name, []).append(row["latency_ms"] / count)
    for what, rows in found.items():
        print(f"\n{what}, ms per phrase\n")
        print_table(["phrases of the image", *map(str, PHRASES)], [[name, *values] for name, values in rows.items()])
    return found


def saved_mib(
    config: str, side: int, *, phrases: int = 1, queries: int | None = None, recompute: bool = False
) -> float:
    """Return the MiB that autograd keeps of one image's losses."""
    from refseg import large_models
    from refseg.analysis.synthetic import dummy_batch, vocabulary_size
    from refseg.engine.run import RunOptions, build_model, load_config

    options = {"model.decoder.num_queries": queries} if queries else {}
    model = build_model(load_config(config, RunOptions(cfg_options=options))).train()
    if recompute:
        large_models.recompute(model, True)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    held = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    shape = dict(shape=(side, side), expressions_per_image=phrases, vocab_size=vocabulary_size(model))
    data = model.data_preprocessor(dummy_batch(**shape), True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.parse_losses(model(**data, mode="loss"))
    return sum(storages.values()) / 2**20


def by_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Return the MiB that are kept, by image size, queries, phrases, and with recomputed blocks."""
    measure = lru_cache(partial(saved_mib, args.config))  # the tables share a point
    found: dict[str, Any] = {
        "image size": {side: measure(side) for side in SIZES},
        "image size, with all blocks recomputed": {side: measure(side, recompute=True) for side in SIZES},
        "queries": {count: measure(480, queries=count) for count in QUERIES},
        "phrases": {count: measure(480, phrases=count) for count in FEW},
    }
    print(f"\n{args.config}, fp32: MiB kept for the backward pass of one image\n")
    for what, row in found.items():
        print_table([what, *map(str, row)], [["MiB", *row.values()]])
        print()
    return found


def by_rows(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of scoring a file in one process, by its number of rows."""
    import numpy as np
    from scoring import blob, write_answers, write_truth

    from refseg.evaluation.protocols import get_protocol
    from refseg.evaluation.scorer import open_data, score_file

    rng, found = np.random.default_rng(0), {}
    masks = [blob(rng) for _ in range(1000)]
    with tempfile.TemporaryDirectory() as folder:
        truth, answers = Path(folder, "truth.jsonl"), Path(folder, "answers.jsonl")
        for rows in ROWS:
            write_truth(truth, [masks[i % len(masks)] for i in range(rows)])
            write_answers(answers, masks[1:], rows)
            start = time.perf_counter()
            data = open_data(f"{truth}:val")
            opened = time.perf_counter()
            score_file(answers, data.truths, [get_protocol("refseg")])
            found[rows] = {"open": opened - start, "score": time.perf_counter() - opened}
    print("\nscoring by one process, after the conversion of the annotations\n")
    rows = [[f"{count:,}", f"{one['open']:.2f} s", f"{one['score']:.2f} s"] for count, one in found.items()]
    print_table(["rows", "annotations", "scoring"], rows)
    return found


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(text, row))} |")


PARTS = {"phrases": by_phrases, "memory": by_memory, "scoring": by_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--config", default="instalign_tiny_refshapes", help="model of the part memory (default: %(default)s)"
    )
    parser.add_argument("--iters", type=int, default=5, help="timed calls (default: %(default)s)")
    args = parser.parse_args()
    write_json(args.json, {name: PARTS[name](args) for name in args.parts})


if __name__ == "__main__":
    main()
