import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from distributed import run_distributed
from refseg.cli import main
from refseg.datasets.collate import collate_samples
from refseg.datasets.dataset import ReferringDataset
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.evaluation.metrics import DumpPredictions, ReferringMetric, masks_on
from refseg.evaluation.prediction_file import read_predictions
from refseg.evaluation.protocols import View, get_protocol
from refseg.instance import Instance
from refseg.models import RefSegmentor
from refseg.models.postprocess import ImageResult
from refseg.records import AnnotatedInstance, Expression, Record
from refseg.structures import (
    Batch,
    GroundTruth,
    InstancePrediction,
    Prediction,
    SampleMeta,
)

PROTOCOLS = ["refseg", "gres", "lavt", "cgformer", "rrefcoco"]


def make_result(number: int) -> ImageResult:
    """Return random logits and ground truth for an image with 1 + number % 3 expressions. `number` is the seed."""
    draw = torch.Generator().manual_seed(number)
    count = 1 + number % 3
    logits = torch.randn(count, 6, 7, generator=draw)
    truth = (torch.rand(2, 6, 7, generator=draw) > 0.5).numpy()
    rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in truth]
    names = tuple(f"{number}:{k}" for k in range(count))
    referents = [(0, 1), (), (1,)][:count]
    expressions = [Expression(name, f"text {name}", r, object_id="o") for name, r in zip(names, referents, strict=True)]
    record = Record(
        str(number), "", (6, 7), [AnnotatedInstance(str(i), rle, None, None) for i, rle in enumerate(rles)], expressions
    )
    meta = SampleMeta(str(number), "", (6, 7), (6, 7), names, names)
    probs = torch.tensor([0.1, 0.9, 0.2])[:count]
    return ImageResult(meta, GroundTruth(record, rles), logits, (6, 7), probs)


def evaluate(rank: int, world_size: int, size: int, out: str) -> None:
    """Evaluate a process's share as mmengine does: every n-th image, wrapped around to equal lengths."""
    metric = ReferringMetric(protocols=PROTOCOLS, rows_file=f"{out}/{world_size}_rows.jsonl")
    per_rank = -(-size // world_size)
    for i in range(per_rank):
        metric.process(None, [make_result((i * world_size + rank) % size)])
    scores = metric.evaluate(size)
    Path(out, f"{world_size}_{rank}.json").write_text(json.dumps(scores))


def test_distributed_evaluation(tmp_path: Path) -> None:
    """Three processes give the same scores and rows as one. Two of the 7 images are repeated for equal shares."""
    evaluate(0, 1, 7, str(tmp_path))
    expected = json.loads((tmp_path / "1_0.json").read_text())
    rows = (tmp_path / "1_rows.jsonl").read_text()
    assert len(rows.splitlines()) == len(PROTOCOLS) * sum(1 + n % 3 for n in range(7))
    assert {name.split("/")[0] for name in expected} == set(PROTOCOLS)
    run_distributed(evaluate, 3, 7, str(tmp_path))
    for rank in range(3):
        assert json.loads((tmp_path / f"3_{rank}.json").read_text()) == expected
    assert (tmp_path / "3_rows.jsonl").read_text() == rows


def test_scores() -> None:
    """The mask is columns 0-2 of 6 rows, the target columns 2-4: I 6, U 30. The second expression refers to nothing and
    is rejected, so gIoU is (0.2 + 1) / 2."""
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


def test_changed_rule_changes_metric_names() -> None:
    names = [
        one.name for one in ReferringMetric(protocols=["refzom", "refseg"], no_target=dict(threshold=0.9)).protocols
    ]
    assert names == ["refzom", "refseg+head-or-empty>0.9"], "a threshold changes those that read one"
    metric = ReferringMetric(protocols=["gres"], no_target=dict(rule="area", min_area=10))
    metric.process(None, [make_result(2)])
    assert {name.split("/")[0] for name in metric.evaluate(1)} == {"gres+area<10px"}
    with pytest.raises(UsageError, match="did you mean gres"):
        ReferringMetric(protocols=["gress"])
    with pytest.raises(UsageError, match="lavt has no rule"):  # as `refseg score` says
        ReferringMetric(protocols=["refseg", "lavt"], no_target=dict(rule="area"))
    with pytest.raises(ConfigError, match="unknown key 'treshold'"):
        ReferringMetric(no_target=dict(treshold=0.3))


def test_rows_file(tmp_path: Path) -> None:
    """A missing probability is null, since JSON has no NaN."""
    metric = ReferringMetric(rows_file=str(tmp_path / "rows.jsonl"))
    result = make_result(0)
    result.no_target_prob = None
    metric.process(None, [result])
    metric.evaluate(1)
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert row["no_target_prob"] is None and row["expression_id"] == "0:0" and row["protocol"] == "refseg"


@pytest.mark.parametrize("field", ["mask_logits", "no_target_prob"])
def test_non_finite_outputs(field: str, tmp_path: Path) -> None:
    """A NaN would count as an empty mask that is not rejected. The second expression has one."""
    for metric in (ReferringMetric(), DumpPredictions(file=str(tmp_path / "p.jsonl"))):
        result = make_result(1)
        getattr(result, field)[1] = torch.nan
        with pytest.raises(CheckpointError, match=r"for expression 1:1 is not finite .*have diverged"):
            metric.process(None, [make_result(0), result])


def test_shared_views() -> None:
    metric = ReferringMetric(protocols=["deris", "refzom-score", "lavt"])
    assert len(metric.views) == 2


def test_masks_on_views() -> None:
    """The logits -1, 3 are resized to 4 columns: -1, 0, 2, 3, or -1, 1/3, 5/3, 3 with aligned corners. A logit of 0 is
    mask at >= 0.5, but not for LAVT, whose argmax gives ties to the background."""
    result = make_result(0)
    result.mask_logits, result.input_size = torch.tensor([[[-1.0, 3.0]]]), (1, 2)
    result.meta.content_size = (1, 2)

    def columns(view: View) -> list[int]:
        return coco_mask.decode(masks_on(result, view, (1, 4))[0])[0].tolist()

    assert columns(View()) == [0, 1, 1, 1]
    assert columns(View(strict=True)) == [0, 0, 1, 1]
    assert columns(View(strict=True, align_corners=True)) == [0, 1, 1, 1]
    assert get_protocol("lavt").view.strict and get_protocol("lavt").view.align_corners


def test_missing_ground_truth_raises() -> None:
    result = make_result(0)
    result.ground_truth = None
    with pytest.raises(ValueError, match="with_ground_truth=True"):
        ReferringMetric().process(None, [result])


# Instances ------------------------------------------------------------------------------------------------------------

LEFT, RIGHT = [[0, 0, 5, 0, 5, 10, 0, 10]], [[5, 0, 10, 0, 10, 10, 5, 10]]


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write data with a 10 x 10 image. The star is its left half, the box its right half."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((10, 10, 3), np.uint8))
    tagged = [
        ("both", "red star, box", [LEFT, RIGHT], [1, 2], {"1": [0, 1], "2": [2]}),
        ("box", "box", [RIGHT], [2], {"2": [0]}),
        ("none", "blue star", None, None, {}),
    ]
    rows = [
        {"expression_id": name, "image": "a.png", "size": [10, 10], "text": text, "targets": targets, "split": "val"}
        | {"tags": {"words": words}}
        | ({"instance_ids": ids} if ids else {})
        for name, text, targets, ids, words in tagged
    ]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("words.txt").write_text("red star box")
    return tmp_path


class Halves(RefSegmentor):
    """A model with three queries: the left half, the right half, and everything, which is also the merged mask.

    Tokens are [CLS] red star , box [SEP] for the first expression and [CLS] box [SEP] for the second one.
    """

    relevance = ([0.875, 0.75, 0.25], [0.125, 0.625, 0.25], [0.0, 0.25, 0.375])
    attention = (
        [[0.4, 0.1, 0.1, 0.3, 0.1, 0.0], [0.0, 0.5, 0.1, 0.1, 0.25, 0.05], [0.0] * 6],
        [[0.0] * 6, [0.5, 0.25, 0.25, 0.0, 0.0, 0.0], [0.0] * 6],
        [[0.0] * 6] * 3,
    )

    def infer(self, batch: Batch) -> Prediction:
        masks = torch.full((3, 4, 4), -9.0)
        masks[0, :, :2] = masks[1, :, 2:] = masks[2] = 9.0
        instances = [
            InstancePrediction(masks, torch.tensor(relevance), torch.tensor(attention))
            for relevance, attention in zip(self.relevance, self.attention, strict=True)
        ]
        return Prediction(torch.ones(3, 4, 4), torch.tensor([-9.0, -9.0, -9.0]), instances)


def results_of_halves(**postprocess: object) -> list[ImageResult]:
    pipeline = [
        dict(type="LoadImage"),
        dict(type="Resize", size=(32, 32)),
        dict(type="LoadText", tokenizer=dict(word_list="words.txt")),
        dict(type="PackSample", with_ground_truth=True),
    ]
    dataset = ReferringDataset(annotations=dict(format="jsonl", file="data.jsonl"), pipeline=pipeline)
    model = Halves(postprocess=postprocess)
    return model.test_step(collate_samples([dataset[0]]))


def test_instances_end_to_end(shapes: Path) -> None:
    """Live metrics agree with `refseg score` on the prediction file.

    Words of "red star, box": the tokens of the left instance, the star, weigh 0.1, 0.1 + 0.3 (the comma) and 0.1. It
    points to "star,", which is right. Its words are 0 and 1. One is first, and the other is at place 2 or 3, so AP is
    (1 + (2/2 + 2/3) / 2) / 2. The tokens of the right instance weigh 0.5, 0.2 and 0.25. It points to "red", which is
    wrong, and its word is at place 2. "box" has one word, which is right. Files have shares of the sum.

    Boxes of both instances of the first expression match (scores 0.875 and 0.75). The box of the second expression has
    score 0.625, enough for REC, but GREC needs 0.7. The third expression has no box. The merged masks, which cover
    everything, are not used for boxes.
    """
    results = results_of_halves()
    protocols = ["rec", "grec", "grec-iou", "refseg"]
    metric, dump = ReferringMetric(protocols=protocols), DumpPredictions(file="p.jsonl", header={"config": "x.py"})
    for one in (metric, dump):
        one.process(None, results)
    live, _ = metric.evaluate(1), dump.evaluate(1)
    for name in ("grec", "grec-iou"):
        assert live[f"{name}/Pr@(F1=1)"] == pytest.approx(200 / 3)
        assert live[f"{name}/N-acc"] == 100 and live[f"{name}/T-acc"] == 50
    assert live["rec/Acc@0.5"] == 100

    both, box, none = read_predictions("p.jsonl")
    assert [one.score for one in both.raw_instances] == [0.875, 0.75]
    assert [one.words for one in both.raw_instances] == [[0.1667, 0.6667, 0.1667], [0.5263, 0.2105, 0.2632]]
    left, right = (one.mask for one in both.raw_instances)
    assert left[:, :5].all() and not left[:, 5:].any() and np.array_equal(right, ~left)
    assert [(one.score, one.words) for one in box.raw_instances] == [(0.625, [1.0])] and none.raw_instances == []
    assert coco_mask.area(none.source) == 100

    command = ["score", "p.jsonl", "--data", "data.jsonl:val", "--protocol", ",".join(protocols)]
    assert main([*command, "--alignment", "--json", "out.json"]) == 0
    content = json.loads(Path("out.json").read_text())
    assert {f"{one['protocol']}/{k}": v for one in content["results"] for k, v in one["metrics"].items()} == live
    assert all(one["counts"]["mask_objects"] == 0 for one in content["results"])
    scores = content["alignment"]["all words"]
    assert (scores["instances"], scores["matched"], scores["coverage"]) == (3, 3, 100)
    assert scores["pointing"] == pytest.approx(200 / 3)
    assert scores["AP"] == pytest.approx(100 * (11 / 12 + 1 / 2 + 1) / 3)
    scores = content["alignment"]["distinguishing words"]  # of which a single referent has none
    assert (scores["instances"], scores["pointing"]) == (2, 50)


def test_boxes_fall_back_to_mask(shapes: Path) -> None:
    """The answer to all three is everything, with score 1. Only the second expression's box matches, with an IoU of
    exactly 1/2."""
    results = results_of_halves(instances=False)
    metric, dump = ReferringMetric(protocols=["rec", "grec-iou"]), DumpPredictions(file="p.jsonl")
    for one in (metric, dump):
        one.process(None, results)
    live, _ = metric.evaluate(1), dump.evaluate(1)
    assert live["rec/Acc@0.5"] == 100 and live["grec-iou/N-acc"] == 0
    assert live["grec-iou/Pr@(F1=1)"] == pytest.approx(100 / 3)
    assert all(row.raw_instances is None for row in read_predictions("p.jsonl"))


def test_concepts_live_and_from_coco_results(shapes: Path) -> None:
    """Instances count by SA-Co's protocol during evaluation, and in the COCO results that the command writes."""
    results = results_of_halves()
    metric, dump = ReferringMetric(protocols=["saco"]), DumpPredictions(file="p.json")
    for one in (metric, dump):
        one.process(None, results)
    live, _ = metric.evaluate(1), dump.evaluate(1)
    assert live["saco/cgF1"] > 0 and [path.name for path in Path().glob("p.*")] == ["p.json"]
    assert main(["score", "p.json", "--data", "data.jsonl:val", "--protocol", "saco", "--json", "s.json"]) == 0
    scored = json.loads(Path("s.json").read_text())["metrics"]
    assert {f"saco/{name}": value for name, value in scored.items()} == pytest.approx(live)


def test_instances_are_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only box protocols and prediction files need the instances."""
    result = make_result(0)
    monkeypatch.setattr(ImageResult, "instances", property(lambda _: pytest.fail("made")))
    ReferringMetric(protocols=PROTOCOLS).process(None, [result])
    with pytest.raises(pytest.fail.Exception, match="made"):
        ReferringMetric(protocols=["grec"]).process(None, [result])


@pytest.mark.parametrize("found", [(torch.nan, None), (0.5, [0.1, torch.nan])])
def test_non_finite_instances_raise(found: tuple, tmp_path: Path) -> None:
    for metric in (ReferringMetric(protocols=["grec"]), DumpPredictions(file=str(tmp_path / "p.jsonl"))):
        result = make_result(1)
        result.instances = [[], [Instance(np.ones((6, 7), bool), *found)]]
        with pytest.raises(CheckpointError, match=r"instance for expression 1:1 is not finite"):
            metric.process(None, [result])
