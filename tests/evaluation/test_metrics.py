import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from distributed import run_distributed
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.evaluation.metrics import DumpPredictions, ReferringMetric, masks_on
from refseg.evaluation.protocols import View, get_protocol
from refseg.records import Expression, Instance, Record
from refseg.structures import GroundTruth, ImageResult, SampleMeta

PROTOCOLS = ["refseg", "gres", "lavt", "cgformer", "rrefcoco"]


def make_result(number: int) -> ImageResult:
    """Image `number` has 1 + number % 3 expressions; logits and truth depend on the number alone."""
    draw = torch.Generator().manual_seed(number)
    count = 1 + number % 3
    logits = torch.randn(count, 6, 7, generator=draw)
    truth = (torch.rand(2, 6, 7, generator=draw) > 0.5).numpy()
    rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in truth]
    names = tuple(f"{number}:{k}" for k in range(count))
    referents = [(0, 1), (), (1,)][:count]
    expressions = [Expression(name, f"text {name}", r, object_id="o") for name, r in zip(names, referents, strict=True)]
    record = Record(
        str(number), "", (6, 7), [Instance(str(i), rle, None, None) for i, rle in enumerate(rles)], expressions
    )
    meta = SampleMeta(str(number), "", (6, 7), (6, 7), names, names)
    probs = torch.tensor([0.1, 0.9, 0.2])[:count]
    return ImageResult(meta, logits > 0, probs > 0.5, probs, GroundTruth(record, rles), logits, (6, 7))


def evaluate(rank: int, world_size: int, size: int, out: str) -> None:
    """As mmengine's loop does it: rank-interleaved, padded by wrapping to equal lengths."""
    metric = ReferringMetric(protocols=PROTOCOLS, rows_file=f"{out}/{world_size}_rows.jsonl")
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
    assert len(rows.splitlines()) == len(PROTOCOLS) * sum(1 + n % 3 for n in range(7))
    assert {name.split("/")[0] for name in expected} == set(PROTOCOLS)
    for world_size in (2, 3):
        run_distributed(evaluate, world_size, 7, str(tmp_path))
        for rank in range(world_size):
            assert json.loads((tmp_path / f"{world_size}_{rank}.json").read_text()) == expected
        assert (tmp_path / f"{world_size}_rows.jsonl").read_text() == rows


def test_scores_by_hand() -> None:
    """Logits positive on the left 3 of 7 columns of 6 rows, 18 pixels; the target are columns 2-4: I 6, U 30.
    The second expression refers to nothing and is rejected: gIoU (0.2 + 1) / 2."""
    result = make_result(1)
    result.mask_logits = torch.full((2, 6, 7), -1.0)
    result.mask_logits[:, :, :3] = 1.0
    target = np.zeros((6, 7), np.uint8, order="F")
    target[:, 2:5] = 1
    rle = coco_mask.encode(target)
    result.ground_truth.instance_rles = [rle, rle]
    metric = ReferringMetric()
    metric.process(None, [result])
    scores = metric.evaluate(1)
    assert scores["refseg/gIoU"] == pytest.approx(60) and scores["refseg/oIoU"] == pytest.approx(20)
    assert scores["refseg/N-acc"] == scores["refseg/T-acc"] == 100


def test_a_changed_rule_is_in_the_name() -> None:
    metric = ReferringMetric(protocols=["gres"], no_target=dict(rule="area", min_area=10))
    metric.process(None, [make_result(2)])
    assert {name.split("/")[0] for name in metric.evaluate(1)} == {"gres+area<10px"}
    with pytest.raises(UsageError, match="did you mean gres"):
        ReferringMetric(protocols=["gress"])
    with pytest.raises(UsageError, match="lavt has no rule"):  # as `refseg score` says
        ReferringMetric(protocols=["refseg", "lavt"], no_target=dict(rule="area"))
    with pytest.raises(ConfigError, match="unknown key 'treshold'"):
        ReferringMetric(no_target=dict(treshold=0.3))


def test_rows_are_json(tmp_path: Path) -> None:
    """Of a model that has no probability, too: null, for NaN is none."""
    metric = ReferringMetric(rows_file=str(tmp_path / "rows.jsonl"))
    result = make_result(0)
    result.no_target_prob = None
    metric.process(None, [result])
    metric.evaluate(1)
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert row["no_target_prob"] is None and row["expression_id"] == "0:0" and row["protocol"] == "refseg"


@pytest.mark.parametrize("field", ["mask_logits", "no_target_prob"])
def test_a_diverged_model_is_told(field: str, tmp_path: Path) -> None:
    """A NaN exceeds nothing: it would be an empty mask that nobody rejects. The second expression has one."""
    for metric in (ReferringMetric(), DumpPredictions(file=str(tmp_path / "p.jsonl"))):
        result = make_result(1)
        getattr(result, field)[1] = torch.nan
        with pytest.raises(CheckpointError, match=r"for expression 1:1 is not finite .*have diverged"):
            metric.process(None, [make_result(0), result])


def test_protocols_that_share_a_view_share_its_rows() -> None:
    metric = ReferringMetric(protocols=["refseg", "gsva", "lavt"])
    assert len(metric.views) == 2


def test_views_begin_from_the_logits() -> None:
    """A logit of exactly 0 is in the mask at >= 0.5 and, as argmax gives ties to the background, not for LAVT. A row of
    logits -1, 3 resized to 4 columns: without aligned corners -1, 0, 2, 3; with them -1, 1/3, 5/3, 3."""
    result = make_result(0)
    result.mask_logits, result.input_size = torch.tensor([[[-1.0, 3.0]]]), (1, 2)
    result.meta.content_size = (1, 2)

    def columns(view: View) -> list[int]:
        return coco_mask.decode(masks_on(result, view, (1, 4))[0])[0].tolist()

    assert columns(View()) == [0, 1, 1, 1]
    assert columns(View(strict=True)) == [0, 0, 1, 1]
    assert columns(View(strict=True, align_corners=True)) == [0, 1, 1, 1]
    assert get_protocol("lavt").view.strict and get_protocol("lavt").view.align_corners


def test_what_is_missing_is_named() -> None:
    result = make_result(0)
    result.mask_logits = None
    with pytest.raises(ValueError, match="no mask logits"):
        ReferringMetric().process(None, [result])
    result.ground_truth = None
    with pytest.raises(ValueError, match="with_ground_truth=True"):
        ReferringMetric().process(None, [result])
