"""cgF1 of SA-Co: the official evaluator's numbers, a re-implementation by definition, and several annotators."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from refseg.cli.main import main
from refseg.evaluation import terms
from refseg.evaluation.overlap import match_instances, without_duplicates
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.rows import Row, Rows
from refseg.evaluation.scorer import best_of
from refseg.evaluation.statistics import bootstrap

PROTOCOL = get_protocol("saco")
SIZE = (10, 10)
# Rectangles (top, left, bottom, right) of targets and predictions of six pairs, as in the official run behind GOLDEN
TARGETS = [[(0, 0, 4, 4), (5, 5, 9, 9)], [(0, 0, 5, 10), (6, 0, 10, 4)], [(2, 2, 6, 6)], [], [], [(0, 0, 5, 10)]]
PREDICTED = [[(0, 0, 4, 4), (5, 5, 9, 9)], [(0, 0, 3, 10), (6, 6, 10, 10)], [], [], [(1, 1, 4, 8)], [(0, 0, 4, 10)]]


def rle(box: tuple[int, int, int, int]) -> dict:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[box[0] : box[2], box[1] : box[3]] = 1
    found = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": found["counts"].decode()}


def write_truth(file: Path, targets: list[list]) -> Path:
    pairs = [
        {"id": n, "text_input": f"p{n}", "file_name": "x", "height": 10, "width": 10, "is_instance_exhaustive": 1}
        for n in range(1, len(targets) + 1)
    ]
    boxes = [(n, box) for n, found in enumerate(targets, start=1) for box in found]
    regions = [{"id": k, "image_id": n, "segmentation": rle(box), "iscrowd": 0} for k, (n, box) in enumerate(boxes)]
    file.write_text(json.dumps({"images": pairs, "annotations": regions}))
    return file


def write_predictions(file: Path, predicted: list[list], score: float = 0.9) -> Path:
    boxes = [(n, box) for n, found in enumerate(predicted, start=1) for box in found]
    file.write_text(json.dumps([{"image_id": n, "segmentation": rle(box), "score": score} for n, box in boxes]))
    return file


def score(tmp_path: Path, predictions: Path, truth: Path, *more: str) -> dict[str, float]:
    out = tmp_path / "out.json"
    assert main(["score", str(predictions), "--data", str(truth), "--protocol", "saco", "--json", str(out), *more]) == 0
    return json.loads(out.read_text())["metrics"]


def test_official_numbers(tmp_path: Path) -> None:
    """By the command, on SA-Co's own files."""
    found = score(
        tmp_path, write_predictions(tmp_path / "p.json", PREDICTED), write_truth(tmp_path / "t.json", TARGETS)
    )
    golden = {
        "cgF1": 13.635,
        "pmF1": 54.540,
        "positive_macro_F1": 61.659,
        "IL_MCC": 25.0,
        "IL_FPR": 50.0,
        "cgF1@0.5": 18.180,
        "cgF1@0.75": 13.635,
    }
    assert {name: found[name] for name in golden} == pytest.approx(golden, abs=5e-4)


def test_pairs_without_an_entry_in_comparisons_and_reports(tmp_path: Path) -> None:
    """They are answered with "nothing here", as for `refseg score`. The second file differs in one of them."""
    truth = write_truth(tmp_path / "t.json", TARGETS)
    files = [write_predictions(tmp_path / "a.json", PREDICTED)]
    files.append(write_predictions(tmp_path / "b.json", [*PREDICTED[:2], TARGETS[2], *PREDICTED[3:]]))
    options = ["--data", str(truth), "--protocol", "saco", "--resamples", "20", "--json", str(tmp_path / "out.json")]
    assert main(["compare", *map(str, files), *options, "--html", str(tmp_path / "c.html")]) == 0
    cgf1 = json.loads((tmp_path / "out.json").read_text())["metrics"]["cgF1"]
    assert cgf1["a"] == pytest.approx(13.635, abs=5e-4) and cgf1["b"] > cgf1["a"]
    assert main(["report", str(tmp_path), "--predictions", str(files[0]), *options]) == 0


def test_scores_below_half_and_rejections(tmp_path: Path) -> None:
    """Instances below 0.5 are no answer, and neither are those of a phrase that the model rejects."""
    truth = write_truth(tmp_path / "t.json", TARGETS)
    low = [*json.loads(write_predictions(tmp_path / "a.json", PREDICTED, 0.4).read_text())]
    low += json.loads(write_predictions(tmp_path / "b.json", [[(0, 0, 4, 4)]]).read_text())
    (tmp_path / "c.json").write_text(json.dumps(low))
    found = score(tmp_path, tmp_path / "c.json", truth)
    assert found == score(tmp_path, tmp_path / "b.json", truth)

    def row(number: int, prob: float) -> str:
        instances = [{"mask": rle(box), "score": 0.9} for box in PREDICTED[number - 1]]
        return json.dumps({"expression_id": number, "no_target_prob": prob, "instances": instances})

    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(row(n, 0.9 if n == 5 else 0.1) for n in range(1, 7)))
    found = score(tmp_path, own, truth)
    assert found["IL_FPR"] == 0 and found["IL_MCC"] > 70


def test_other_entries_and_annotators(tmp_path: Path) -> None:
    """Predictions for pairs that are not scored are left out. The annotator that agrees best counts, pair by pair."""
    wrong = [list(found) for found in TARGETS]
    wrong[0], wrong[4] = [], [(1, 1, 4, 8)]  # for pair 5, this annotator agrees with the prediction
    first, second = write_truth(tmp_path / "a.json", TARGETS), write_truth(tmp_path / "b.json", wrong)
    predictions = write_predictions(tmp_path / "p.json", [*PREDICTED, [(0, 0, 2, 2)]])
    alone = score(tmp_path, predictions, first)
    best = score(tmp_path, predictions, second, "--annotators", str(first))
    assert best == score(tmp_path, predictions, first, "--annotators", str(second))
    assert best["IL_FPR"] == 0 and best["cgF1"] > alone["cgF1"]


def test_tags_of_the_first_annotator_stay() -> None:
    """The second annotator agrees with the second answer only. Tags are columns that only the first one has."""
    columns = {name: np.zeros(2, column.dtype) for name, column in Rows.of(()).columns.items()}
    columns |= {"expression_id": np.array(["a", "b"], object), "predicted_objects": np.ones(2, int)}
    columns |= {"no_target_prob": np.full(2, np.nan), "objects": np.ones(2, int)}
    first = Rows({**columns, "matched": np.array([[1] * 10, [0] * 10]), "tag:x": np.array(["p", "q"], object)})
    second = Rows({**columns, "matched": np.array([[0] * 10, [1] * 10])})
    best = best_of([first, second], PROTOCOL)
    assert best.matched.all() and best.columns["tag:x"].tolist() == ["p", "q"]


def test_annotators_need_instances(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = write_truth(tmp_path / "t.json", TARGETS)
    predictions = write_predictions(tmp_path / "p.json", PREDICTED)
    arguments = ["score", str(predictions), "--data", str(truth), "--annotators", str(truth), "--absent-is-nothing"]
    assert main(arguments) == 1
    assert "--protocol saco" in capsys.readouterr().err


boxes = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], 10), min(b[1] + b[3], 10))
)
pairs = st.lists(st.tuples(st.lists(boxes, max_size=3), st.lists(boxes, max_size=3)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_definition(pairs: list[tuple[list, list]]) -> None:
    """The metrics agree with a plain re-implementation by the definitions."""
    thresholds = PROTOCOL.view.instances.thresholds

    def decoded(box: tuple) -> np.ndarray:
        return coco_mask.decode(rle(box)).astype(bool)

    # By definition, on decoded masks
    tp, fp, fn = np.zeros(10), np.zeros(10), np.zeros(10)
    confusion = np.zeros((2, 2))
    for targets, predicted in pairs:
        confusion[int(bool(targets)), int(bool(predicted))] += 1
        iou = np.array(
            [[(decoded(p) & decoded(t)).sum() / (decoded(p) | decoded(t)).sum() for t in targets] for p in predicted]
        )
        for k, threshold in enumerate(thresholds):
            found = iou[linear_sum_assignment(iou, maximize=True)] if iou.size else np.zeros(0)
            hits = (found >= threshold - 1e-12).sum()
            tp[k] += hits
            if targets:
                fp[k] += len(predicted) - hits
                fn[k] += len(targets) - hits
    precision, recall = tp / (tp + fp + 1e-4), tp / (tp + fn + 1e-4)
    micro = 2 * precision * recall / (precision + recall + 1e-4)
    (tn, positives), (misses, hits) = confusion
    root = np.sqrt((hits + positives) * (hits + misses) * (tn + positives) * (tn + misses))
    correlation = (hits * tn - positives * misses) / (root + 1e-6)

    # By the protocol's terms
    rows = Rows.of(())
    columns = {name: np.zeros(len(pairs), column.dtype) for name, column in rows.columns.items()}
    columns["matched"] = np.array(
        [match_instances([*map(rle_bytes, p)], [*map(rle_bytes, t)], thresholds) for t, p in pairs]
    )
    columns["predicted_objects"] = np.array([len(p) for _, p in pairs])
    columns["objects"] = np.array([len(t) for t, _ in pairs])
    columns["no_target_prob"][:] = np.nan
    rows = Rows(columns)
    found = PROTOCOL.score(rows)
    assert found["pmF1"] == pytest.approx(100 * micro.mean())
    assert found["IL_MCC"] == pytest.approx(100 * correlation)
    assert found["cgF1"] == pytest.approx(100 * micro.mean() * correlation)
    worth = terms.f1_of_pairs(rows, np.zeros(len(rows), bool))
    assert ((worth >= 0) & (worth <= 1)).all()


def rle_bytes(box: tuple) -> dict:
    found = rle(box)
    return {**found, "counts": found["counts"].encode()}


def test_intervals() -> None:
    """The bootstrap draws images and applies the formula to the sums: without variation, the interval is a point."""
    rows = Rows.of(())
    columns = {name: np.zeros(40, column.dtype) for name, column in rows.columns.items()}
    columns |= {
        "matched": np.ones((40, 10), np.int64),
        "predicted_objects": np.ones(40, int),
        "objects": np.ones(40, int),
    }
    columns["image_id"] = np.array([str(k) for k in range(40)], object)
    same = bootstrap(PROTOCOL.terms(Rows(columns)), np.arange(40), num=50)
    low, high = same["pmF1"]
    assert low == pytest.approx(100, abs=0.02) and high == pytest.approx(low, abs=1e-2)
    columns["matched"] = np.repeat((np.arange(40) % 2)[:, None], 10, axis=1)
    low, high = bootstrap(PROTOCOL.terms(Rows(columns)), np.arange(40), num=200)["pmF1"]
    assert 30 < low < 50 < high < 70


def test_pbench() -> None:
    """An answer finds two of three objects at IoU 0.5, one of them at all IoUs: F1 4/5, and its mean over ten IoUs is
    (6 * 4/5 + 4 * 2/5) / 10 = 0.64, if the second has IoU 0.75. Phrases with a target and no answer count as 0, those
    without a target do not count."""
    rows = Rows.of(
        Row(
            expression_id=str(i), image_id=str(i), object_id="o", intersection=0, predicted=0, target=0,
            has_target=objects > 0, no_target_prob=float("nan"), num_targets=objects, num_words=2, target_area=9,
            image_area=99, matched=matched, predicted_objects=predicted, objects=objects,
        )
        for i, (matched, predicted, objects) in enumerate(
            [((2,) * 6 + (1,) * 4, 2, 3), ((0,) * 10, 0, 1), ((0,) * 10, 1, 0), ((0,) * 10, 0, 0)]
        )
    )  # fmt: skip
    found = get_protocol("pbench").score(rows)
    assert found == pytest.approx({"macro_F1": 32, "macro_F1@0.5": 40, "N-acc": 50, "T-acc": 50})


def test_duplicates() -> None:
    """The second has IoU 0.8 with the first, so it goes. The third has IoU 0.625 with the second, but only 0.5 with the
    first, so it stays."""
    first, second, third = (rle((0, 0, 10, 10)), rle((0, 0, 8, 10)), rle((0, 0, 5, 10)))
    compressed = [{**one, "counts": one["counts"].encode()} for one in (third, second, first)]
    assert without_duplicates(compressed, 0.5) == [compressed[2], compressed[0]]
    assert without_duplicates(compressed, 0.9) == compressed[::-1] and without_duplicates([], 0.5) == []
