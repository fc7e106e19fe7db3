import json
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from distributed import run_distributed
from refseg.evaluation import ReferringMetric
from refseg.structures import GroundTruth, ImageResult, SampleMeta


def make_result(number: int) -> ImageResult:
    """Image `number` has 1 + number % 3 expressions; masks and truth depend on the number alone."""
    draw = torch.Generator().manual_seed(number)
    count = 1 + number % 3
    masks = torch.rand(count, 6, 7, generator=draw) > 0.4
    truth = torch.rand(2, 6, 7, generator=draw) > 0.5
    rles = [coco_mask.encode(mask.numpy().astype("uint8", order="F")) for mask in truth]
    names = tuple(f"{number}:{k}" for k in range(count))
    meta = SampleMeta(str(number), "", (6, 7), (6, 7), names, names, tuple({"skill": "s"} for _ in names))
    referents = [(0, 1), (), (1,)][:count]
    return ImageResult(meta, masks, torch.tensor([False, True, False])[:count], None, GroundTruth(rles, referents))


def evaluate(rank: int, world_size: int, size: int, out: str) -> None:
    """As mmengine's loop does it: rank-interleaved, padded by wrapping to equal lengths."""
    metric = ReferringMetric(rows_file=f"{out}/{world_size}_rows.jsonl")
    per_rank = -(-size // world_size)
    for i in range(per_rank):
        metric.process(None, [make_result((i * world_size + rank) % size)])
    scores = metric.evaluate(size)
    Path(out, f"{world_size}_{rank}.json").write_text(json.dumps(scores))


def test_one_two_and_three_processes_agree_exactly(tmp_path: Path) -> None:
    """7 images: neither 2 nor 3 divides them, and an image has 1 to 3 rows."""
    evaluate(0, 1, 7, str(tmp_path))
    expected = json.loads((tmp_path / "1_0.json").read_text())
    rows = (tmp_path / "1_rows.jsonl").read_text()
    assert len(rows.splitlines()) == sum(1 + n % 3 for n in range(7))
    for world_size in (2, 3):
        run_distributed(evaluate, world_size, 7, str(tmp_path))
        for rank in range(world_size):
            assert json.loads((tmp_path / f"{world_size}_{rank}.json").read_text()) == expected
        assert (tmp_path / f"{world_size}_rows.jsonl").read_text() == rows


def test_no_ground_truth_is_an_error() -> None:
    result = make_result(0)
    result.ground_truth = None
    with pytest.raises(ValueError, match="with_ground_truth=True"):
        ReferringMetric().process(None, [result])
