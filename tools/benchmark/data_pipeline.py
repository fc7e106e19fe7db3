"""Compare the samples per second of one data worker: refseg's pipeline against a plain one.

    python tools/benchmark/data_pipeline.py [--images 32] [--repeats 7] [--json result.json]

Images are generated 640x480 JPEGs with polygon instances and about 14 expressions each. Both pipelines make batches of
480x480 inputs, masks and tokens. The plain one works like published code: Pillow decodes and resizes, numpy and torch
make a normalized float tensor, pycocotools decodes the mask of one expression at the original size, Pillow resizes it,
and a tokenizer in Python splits the words. refseg's runs with one expression per image, and with all of them.

refseg's data preprocessor normalizes on the device. The cost of doing it here is printed with the stages. There is one
process with one thread, as in a worker. Runs of the two alternate, so that a ratio compares runs of the same minute.
Every number is a median.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from common import make_parser, time_in_turns, write_json
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from refseg.datasets.collate import collate_samples
from refseg.datasets.transforms import LoadImage, LoadText, PackSample, Resize, TransformState
from refseg.models.preprocessor import IMAGENET_MEAN, IMAGENET_STD
from refseg.records import AnnotatedInstance, Expression, Record
from refseg.structures import Sample

HEIGHT, WIDTH, INPUT, MAX_WORDS, BATCH = 480, 640, 480, 20, 16
WORDS = (
    "the a man woman girl boy player dog cat horse bus car chair table plate umbrella left right top bottom middle of "
    "in on with and next to behind near wearing holding standing sitting red blue white black green brown striped "
    "shirt hat jacket big small first second third from who is facing away closest largest ##s ##er ##ing walk skate "
    "board ##board"
).split()


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=7, repeats_help="timed runs of each, after one warm-up run")
    parser.add_argument("--images", type=int, default=32, help="generated images")
    return parser.parse_args()


# Data -----------------------------------------------------------------------------------------------------------------


def draw_image(rng: np.random.Generator, polygons: list[np.ndarray]) -> np.ndarray:
    """Return smooth noise of three scales, fine grain, and the instances in flat colors: a JPEG of about 80 KB."""
    image = np.full((HEIGHT, WIDTH, 3), 120, np.float32)
    for columns, strength in ((8, 50), (32, 35), (128, 18)):
        noise = rng.standard_normal((columns * HEIGHT // WIDTH, columns, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    layer = image.copy()
    for polygon in polygons:
        cv2.fillPoly(layer, [polygon.astype(np.int32)], rng.uniform(0, 255, 3).tolist())
    image = 0.5 * image + 0.5 * layer + 3 * rng.standard_normal(image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_polygon(rng: np.random.Generator) -> np.ndarray:
    """Return a wobbly disc with 20 to 60 corners, (N, 2)."""
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(20, 61)), endpoint=False)
    radius = rng.uniform(20, 110) * (1 + 0.2 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.03 * np.sin(11 * angles))
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1) + rng.uniform((60, 60), (580, 420))
    return points.clip((0, 0), (WIDTH, HEIGHT)).round(2)


def make_records(folder: Path, images: int) -> list[Record]:
    """Make 7 instances and 14 expressions per image. Every seventh expression has two referents."""
    rng = np.random.default_rng(0)
    words = [word for word in WORDS if not word.startswith("##")] + ["skateboard", "walking", "players"]
    records = []
    for number in range(images):
        polygons = [draw_polygon(rng) for _ in range(7)]
        path = str(folder / f"{number}.jpg")
        cv2.imwrite(path, draw_image(rng, polygons), [cv2.IMWRITE_JPEG_QUALITY, 90])
        expressions = []
        for k in range(14):
            referents = (k % 7, (k + 1) % 7) if k % 7 == 6 else (k % 7,)
            text = " ".join(rng.choice(words, int(rng.integers(2, 10))))
            expressions.append(Expression(f"{number}_{k}", text, referents))
        instances = [AnnotatedInstance(str(i), [polygon.ravel().tolist()]) for i, polygon in enumerate(polygons)]
        records.append(Record(str(number), path, (HEIGHT, WIDTH), instances, expressions))
    return records


def make_tokenizers(folder: Path) -> tuple[Callable[[str], list[int]], str]:
    """Return a tokenizer in Python, and the folder of a fast one with the same small word list."""
    import transformers

    file = folder / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    vocab = {word: i for i, word in enumerate(file.read_text().split())}
    slow_class = getattr(transformers, "BertTokenizerLegacy", transformers.BertTokenizer)
    slow = slow_class(vocab_file=str(file))
    if slow.is_fast:
        raise SystemExit("this version of transformers has no tokenizer in Python. Install an older one to compare")
    fast_class = getattr(transformers, "BertTokenizerFast", transformers.BertTokenizer)
    try:
        fast = fast_class(vocab=vocab)
    except TypeError:  # transformers 4
        fast = fast_class(vocab_file=str(file))
    fast.save_pretrained(folder / "fast")
    return (lambda text: slow.encode(text, add_special_tokens=True)), str(folder / "fast")


# The two pipelines ----------------------------------------------------------------------------------------------------


def plain_sample(record: Record, expression: Expression, encode: Callable[[str], list[int]]) -> tuple[Tensor, ...]:
    image = Image.open(record.image_path).convert("RGB").resize((INPUT, INPUT), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = torch.tensor(IMAGENET_MEAN) / 255, torch.tensor(IMAGENET_STD) / 255
    pixels = pixels.sub_(mean[:, None, None]).div_(std[:, None, None])
    polygons = [polygon for i in expression.referents for polygon in record.instances[i].segmentation]
    decoded = coco_mask.decode(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))  # (H, W, polygons)
    mask = Image.fromarray((decoded.sum(axis=2) > 0).astype(np.uint8))
    target = torch.from_numpy(np.array(mask.resize((INPUT, INPUT), Image.Resampling.NEAREST))).long()
    tokens = encode(expression.text)[:MAX_WORDS]
    ids, attention = torch.zeros(MAX_WORDS, dtype=torch.long), torch.zeros(MAX_WORDS, dtype=torch.long)
    ids[: len(tokens)], attention[: len(tokens)] = torch.tensor(tokens), 1
    return pixels, target, ids, attention


def plain_batches(records: list[Record], turn: int, encode: Callable[[str], list[int]]) -> None:
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        samples = [plain_sample(record, record.expressions[turn % len(record.expressions)], encode) for record in batch]
        for column in zip(*samples, strict=True):
            torch.stack(column)


def our_sample(record: Record, expressions: list[Expression], transforms: list, rng: np.random.Generator) -> Sample:
    state = TransformState(record, expressions, rng)
    for transform in transforms:
        state = transform(state)
    return state


def our_batches(records: list[Record], turn: int | None, transforms: list) -> None:
    """Make batches with one expression per image, or with all of them (turn None)."""
    rng = np.random.default_rng(0)
    for start in range(0, len(records), BATCH):
        samples = []
        for record in records[start : start + BATCH]:
            chosen = record.expressions if turn is None else [record.expressions[turn % len(record.expressions)]]
            samples.append(our_sample(record, list(chosen), transforms, rng))
        collate_samples(samples)


# Timing ---------------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def stage_times(records: list[Record], transforms: list, every: bool) -> dict[str, float]:
    """Return the median milliseconds per image of each transform, and of collation."""
    times: dict[str, list[float]] = {}
    samples = []
    for record in records:
        expressions = list(record.expressions if every else record.expressions[:1])
        state = TransformState(record, expressions, np.random.default_rng(0))
        for transform in transforms:
            start = time.perf_counter()
            state = transform(state)
            times.setdefault(type(transform).__name__, []).append(time.perf_counter() - start)
        samples.append(state)
    batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    times["collate"] = [seconds(lambda batch=batch: collate_samples(batch)) / len(batch) for batch in batches]
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def normalize_time(repeats: int) -> float:
    """Return the milliseconds per image of the preprocessor's arithmetic on this CPU."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    image = torch.zeros(3, INPUT, INPUT, dtype=torch.uint8)
    return 1e3 * statistics.median(seconds(lambda: (image.float() - mean) / std) for _ in range(10 * repeats))


def measure(records: list[Record], encode: Callable[[str], list[int]], fast: str, repeats: int) -> dict:
    transforms = [
        LoadImage(),
        Resize(size=(INPUT, INPUT)),
        LoadText(tokenizer=dict(pretrained=fast, max_words=MAX_WORDS)),
        PackSample(),
    ]
    for record in records[:2]:
        ours = our_sample(record, record.expressions, transforms, np.random.default_rng(0)).token_ids
        if ours != [encode(expression.text) for expression in record.expressions]:
            raise SystemExit("the two tokenizers differ, so the pipelines cannot be compared")
    turn_plain, turn_ours = itertools.count(), itertools.count()  # every turn takes other expressions
    sides = {
        "plain": lambda: plain_batches(records, next(turn_plain), encode),
        "refseg, 1 expression": lambda: our_batches(records, next(turn_ours), transforms),
        "refseg, all expressions": lambda: our_batches(records, None, transforms),
    }
    counts = dict.fromkeys(sides, len(records))
    counts["refseg, all expressions"] = sum(len(record.expressions) for record in records)
    times = time_in_turns(sides, repeats, warm_ups=1)
    rates = {name: [counts[name] / seconds for seconds in values] for name, values in times.items()}
    plain = rates["plain"]
    return {
        "expressions_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {
            name: statistics.median(ours / theirs for ours, theirs in zip(values, plain, strict=True))
            for name, values in rates.items()
        },
        "stages_ms_per_image": {
            "1 expression": stage_times(records, transforms, every=False),
            "all expressions": stage_times(records, transforms, every=True),
            "normalization (on the device in refseg)": normalize_time(repeats),
        },
    }


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)  # as in a data worker
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = make_records(folder, args.images)
        encode, fast = make_tokenizers(folder)
        kilobytes = statistics.mean(Path(record.image_path).stat().st_size for record in records) / 1024
        result = {"images": len(records), "mean_kilobytes": kilobytes} | measure(records, encode, fast, args.repeats)
    print(f"{len(records)} images of {kilobytes:.0f} KB, {WIDTH}x{HEIGHT} -> {INPUT}x{INPUT}, one worker")
    for name, rate in result["expressions_per_second"].items():
        print(f"{name:24s} {rate:8.0f} expressions/s {1e3 / rate:8.3f} ms each {result['ratio'][name]:6.2f} x plain")
    for name, stages in result["stages_ms_per_image"].items():
        text = ", ".join(f"{k} {v:.3f}" for k, v in stages.items()) if isinstance(stages, dict) else f"{stages:.3f}"
        print(f"ms per image, {name}: {text}")
    write_json(args.json, result)


if __name__ == "__main__":
    main()
