"""Compare the time of a model on all phrases of an image at once, and on one phrase at a time.

    python tools/benchmark/many_phrases.py configs/instalign_swinb.py [--phrases 7 7 7 7 8] [--threads 2] [--json FILE]

The model has random weights and runs in fp32, on the GPU if there is one (`--device cpu` for the CPU), from random
images and phrases to masks at 480 x 640. The two run in turns in one process. The default has as many phrases per image
as RefCOCO's val split (7.2). The output is the time per phrase, and the largest difference between the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import make_parser, write_json

from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import build_model, input_size, load_config
from refseg.structures import Batch


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=1, repeats_help="passes over all images")
    parser.add_argument("config")
    parser.add_argument("--phrases", type=int, nargs="+", default=[7, 7, 7, 7, 8], help="phrases of each image")
    words = "tokens of a phrase (single phrases are padded to 20, as in published code)"
    parser.add_argument("--words", type=int, default=8, help=words)
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def one_phrase(batch: Batch, k: int, pad_to: int) -> Batch:
    """Return phrase k of a batch of one image, with padded tokens."""
    tokens = batch.tokens
    more = (0, max(0, pad_to - tokens.ids.shape[1]))
    ids, mask = (torch.nn.functional.pad(t[k : k + 1], more) for t in (tokens.ids, tokens.word_mask))
    word_of = torch.nn.functional.pad(tokens.word_of[k : k + 1], more, value=-1)
    meta = batch.metas[0]
    return replace(
        batch,
        tokens=replace(tokens, ids=ids, word_mask=mask, text_of=tokens.text_of[:1], word_of=word_of),
        image_of=batch.image_of[:1],
        referents=batch.referents[k : k + 1],
        metas=[replace(meta, expression_ids=meta.expression_ids[k : k + 1], texts=meta.texts[k : k + 1])],
    )


def timed(model: torch.nn.Module, batch: Batch, device: str) -> tuple[float, torch.Tensor]:
    """Return the seconds from image to masks, and the merged mask logits."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.no_grad():
        results = model.val_step({"batch": batch})
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cat([result.mask_logits for result in results])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    cfg = load_config(args.config)
    torch.manual_seed(0)
    model = build_model(cfg).to(args.device).eval()
    rows, worst = [], 0.0
    for turn in range(-1, args.repeats):  # the first turn is a warm-up
        for phrases in args.phrases if turn >= 0 else args.phrases[:1]:
            batch = dummy_batch(
                shape=input_size(cfg),
                expressions_per_image=phrases,
                num_words=args.words,
                vocab_size=vocabulary_size(model),
            )["batch"]
            batch.metas[0] = replace(batch.metas[0], original_size=(480, 640))
            together, all_logits = timed(model, batch, args.device)
            alone = [timed(model, one_phrase(batch, k, 20), args.device) for k in range(phrases)]
            difference = (all_logits - torch.cat([logits for _, logits in alone])).abs().max() / all_logits.abs().max()
            worst = max(worst, difference.item())
            if turn >= 0:
                rows.append((together / phrases, sum(seconds for seconds, _ in alone) / phrases))
    return {
        "together_ms_per_phrase": 1e3 * statistics.median(row[0] for row in rows),
        "one_by_one_ms_per_phrase": 1e3 * statistics.median(row[1] for row in rows),
        "ratio": statistics.median(alone / together for together, alone in rows),
        "largest_relative_difference": worst,
    }


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    print(
        f"{result['together_ms_per_phrase']:.0f} ms per phrase together, {result['one_by_one_ms_per_phrase']:.0f} ms "
        f"one by one: {result['ratio']:.2f} times as fast ({args.device}, {torch.get_num_threads()} threads); logits "
        f"differ by {result['largest_relative_difference']:.1e} of the largest"
    )
    write_json(args.json, {**vars(args), **result, "json": str(args.json)})


if __name__ == "__main__":
    main()
