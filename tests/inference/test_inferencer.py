"""The inferencer: agreement with `refseg test`, sessions, inputs, and the properties of answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refseg
from refseg.cli import main
from refseg.datasets.images import read_image
from refseg.datasets.masks import decode, encode
from refseg.engine.run import test as run_test
from refseg.errors import CheckpointError, ConfigError, DataError, UsageError
from refseg.evaluation.prediction_file import Answer, read_predictions, row_to_json
from refseg.inference import results
from refseg.inference.inferencer import ReferringInferencer, segment
from refseg.inference.inputs import ImageInput
from refseg.inference.results import ImageAnswer, PhraseAnswer, answers_of
from refseg.instance import Instance
from refseg.models import postprocess
from refseg.models.postprocess import ImageResult, LogitMask, PostProcess
from refseg.structures import InstancePrediction, SampleMeta
from refseg.visualization import answers
from refseg.visualization.answers import GridMap

SHARED, FUSED = "instalign_tiny_refshapes", "lavt_tiny_refshapes"
TEXTS = ["the red circle", "a small triangle", "both blue shapes"]


@pytest.fixture(scope="module")
def shared(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    """Return InstAlign, whose phrases share an image. Every query is an instance: random weights might find none."""
    return ReferringInferencer(work_dir(SHARED), device="cpu", postprocess={"instance_threshold": 0.0})


@pytest.fixture(scope="module")
def fused(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    return ReferringInferencer(work_dir(FUSED), device="cpu", batch_size=32)


def phrases_by_image(refshapes: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the ids and texts of each image of the test split, in the order of the file."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (refshapes / "refshapes.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("split") == "test":
            name = str(refshapes / row["image"])
            found.setdefault(name, []).append((str(row["expression_id"]), row["text"]))
    return found


def predicted(checkpoint: Path, images: dict[str, list[tuple[str, str]]], folder: Path) -> dict[str, Answer]:
    """Return the answers of `refseg predict`, run on one image at a time."""
    lines = [json.dumps({"image": image, "text": text, "expression_id": name}) + "\n"
             for image, phrases in images.items() for name, text in phrases]  # fmt: skip
    (folder / "tasks.jsonl").write_text("".join(lines))
    arguments = ["--jsonl", str(folder / "tasks.jsonl"), "--out", str(folder / "out"), "--batch-size", "1"]
    assert main(["predict", str(checkpoint), *arguments, "--device", "cpu"]) == 0
    return {row.expression_id: row for row in read_predictions(folder / "out" / "predictions.jsonl")}


@pytest.mark.parametrize("config", [SHARED, FUSED])
def test_api_and_predict_match_refseg_test(
    config: str, work_dir: Callable[[str], Path], refshapes_tiny: Path, tmp_path: Path
) -> None:
    """`refseg test --predictions`, the API, a session and `refseg predict` agree on every phrase of the test split.

    `refseg predict` batches the phrases of LAVT in another way, so a few pixels may round to the other side.
    """
    folder, file = work_dir(config), tmp_path / "a.jsonl"
    checkpoint = next(folder.glob("*.pth"))
    run_test(str(folder / f"{config}.py"), str(checkpoint), predictions=str(file))
    expected = {row.expression_id: row for row in read_predictions(file)}
    inferencer = ReferringInferencer(checkpoint, device="cpu", batch_size=1 if config == SHARED else 64)
    images = phrases_by_image(refshapes_tiny)
    assert len(images) == 7 and sum(map(len, images.values())) == len(expected)
    command = predicted(checkpoint, images, tmp_path)
    shares = []
    for name, phrases in images.items():
        ids, texts = zip(*phrases, strict=True)
        for answer in (inferencer(name, texts), inferencer.session(name)(texts)):
            for expression_id, phrase in zip(ids, answer, strict=True):
                row = row_to_json(expected[expression_id])
                assert row_to_json(replace(phrase, expression_id=expression_id)) == row
                assert (phrase.raw_mask != decode(command[expression_id].source)).mean() < 1e-3
                assert config != SHARED or row_to_json(command[expression_id]) == row
                shares.append(phrase.raw_mask.mean())
    assert 0.05 < np.mean(shares) < 0.95, "empty or full masks would always be equal"


def test_session_encodes_the_image_once(
    shared: ReferringInferencer, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = shared(refshapes_images[0], TEXTS)
    session = shared.session(refshapes_images[0])

    def encodes(*_: object) -> None:
        raise AssertionError("the image was encoded again")

    monkeypatch.setattr(shared.segmentor, "encode_images", encodes)
    for text, expected in zip(TEXTS, together, strict=True):
        answer = session(text)
        assert len(answer) == 1 and answer[0].text == text
        np.testing.assert_allclose(answer[0].probability.values, expected.probability.values, atol=1e-5)
        assert (answer[0].raw_mask == expected.raw_mask).mean() > 0.999


def test_session_with_early_fusion(fused: ReferringInferencer, refshapes_images: list[str]) -> None:
    together, session = fused(refshapes_images[0], TEXTS), fused.session(refshapes_images[0])
    assert not fused.shares_images
    for text, expected in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(session(text)[0].probability.values, expected.probability.values, atol=1e-5)


def test_phrases_in_chunks(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """Seven phrases, two of them equal, give the same answers at once and three at a time."""
    texts = [*TEXTS, "the red circle", "the largest shape", "a shape", "the square on the left"]
    for config in (SHARED, FUSED, "vipa_tiny_refshapes"):
        whole = ReferringInferencer(work_dir(config), device="cpu", batch_size=64)
        parts = ReferringInferencer(whole.loaded, batch_size=3, max_phrases=3)
        for a, b in zip(whole(refshapes_images[1], texts), parts(refshapes_images[1], texts), strict=True):
            assert a.text == b.text and (a.regions is None) == (b.regions is None) == (config[0] != "v")
            np.testing.assert_allclose(a.probability.values, b.probability.values, atol=1e-5)
            assert len(a.raw_instances or ()) == len(b.raw_instances or ())
            if a.regions is not None:
                assert len(a.regions.scores) == 1 + len(a.text.split())


def test_batches_keep_order(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    """Five images have one to five phrases. A pass has at most two images and six phrases."""
    texts = [[f"the red circle {n}" for n in range(k + 1)] for k in range(5)]
    small = ReferringInferencer(shared.loaded, batch_size=2, max_phrases=6)
    answers = small(refshapes_images, texts)
    assert [answer.name for answer in answers] == refshapes_images
    assert [[phrase.text for phrase in answer] for answer in answers] == texts
    for image, of_image, answer in zip(refshapes_images, texts, answers, strict=True):
        alone = small(image, of_image)
        np.testing.assert_allclose(alone[0].probability.values, answer[0].probability.values, atol=1e-5)


def test_image_types(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    from PIL import Image

    path = refshapes_images[0]
    pixels = read_image(path)
    alpha = np.concatenate([pixels, np.full_like(pixels[..., :1], 7)], 2)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = shared(path, "the circle")
    for image in (Path(path), pixels, alpha, tensor, Image.open(path), pixels[:, ::-1][:, ::-1]):
        answer = shared(image, "the circle")
        assert isinstance(answer, ImageAnswer) and (answer.image == pixels).all()
        assert (answer[0].raw_mask == expected[0].raw_mask).all()
    assert isinstance(shared([path], "the circle"), list)
    grey = shared(pixels[..., 0], "the circle")
    assert (grey.image == pixels[..., :1]).all()


def test_unreadable_image(shared: ReferringInferencer, refshapes_images: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(Path(refshapes_images[0]).read_bytes()[:200])
    names = [refshapes_images[0], str(bad), refshapes_images[1]]
    with pytest.raises(DataError, match=r"bad\.png"):
        shared(names, "a circle")
    failures = []
    tasks = [(ImageInput(name, name), ("a circle",)) for name in names]
    answers = list(shared.stream(tasks, failed=lambda source, error: failures.append((source.name, str(error)))))
    assert [answer.name for answer in answers] == [names[0], names[2]]
    assert [name for name, _ in failures] == [str(bad)] and "bad.png" in failures[0][1]


def test_postprocess_per_call(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    low = shared(refshapes_images[0], "a circle", postprocess={"threshold": 0.01})[0]
    high = shared(refshapes_images[0], "a circle", postprocess={"threshold": 0.99})[0]
    assert low.raw_mask.sum() > high.raw_mask.sum()
    with pytest.raises(UsageError, match=r"option 'treshold'\. Valid options: threshold, resize, no_target"):
        shared(refshapes_images[0], "a circle", postprocess={"treshold": 0.5})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        shared(refshapes_images[0], "a circle", postprocess={"threshold": 2.0})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dtype": "int8"}, "Unknown dtype .* float32, bfloat16, float16"),
        ({"dtype": "float16"}, "float16 needs a GPU"),
    ],
)
def test_invalid_settings(shared: ReferringInferencer, settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ReferringInferencer(shared.loaded, **settings)


def test_mixed_precision(
    shared: ReferringInferencer, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model runs under autocast with the given dtype and returns finite numbers."""
    seen = []
    infer = shared.segmentor.infer_encoded

    def infer_and_note(*args: object, **kwargs: object) -> object:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return infer(*args, **kwargs)

    monkeypatch.setattr(shared.segmentor, "infer_encoded", infer_and_note)
    half = ReferringInferencer(shared.loaded, dtype="bfloat16")
    for inferencer in (shared, half):
        answers = inferencer(refshapes_images[0], TEXTS)
        assert all(np.isfinite(answer.probability.values).all() for answer in answers)
    assert seen == [None, torch.bfloat16]


def test_diverged_weights_raise(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """A mask of NaN would be empty and look like "nothing here"."""
    broken = ReferringInferencer(work_dir(SHARED), device="cpu")
    with torch.no_grad():
        next(broken.segmentor.heads.relevance.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        broken(refshapes_images[0], "a circle")


def test_out_of_memory_message(
    shared: ReferringInferencer, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shared.segmentor, "infer_encoded", full)
    with pytest.raises(UsageError, match=r"does not hold 1 images of \[96, 96\] with 3 phrases\. Lower batch_size"):
        shared(refshapes_images[0], TEXTS)


def test_heat_maps(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """LAVT has one map per phrase, InstAlign also one per word, and VIPA also one for the whole phrase."""
    widths = []
    for config in (FUSED, SHARED, "vipa_tiny_refshapes"):
        inferencer = ReferringInferencer(work_dir(config), device="cpu", postprocess={"no_target": "none"})
        picture = inferencer(refshapes_images[0], "a circle").heat_picture(0)
        assert picture.dtype == np.uint8
        widths.append((picture.shape[0] > 700, picture.shape[1]))
    assert widths == [(False, 512), (False, 1504), (True, 1504)], "one panel, three panels, and four panels in two rows"


def test_segment_caches_the_model(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    from refseg.inference import inferencer

    inferencer._cached_inferencer.cache_clear()
    for _ in range(2):
        answer = segment(refshapes_images[0], TEXTS, model=work_dir(SHARED), device="cpu")
    assert len(answer) == 3 and inferencer._cached_inferencer.cache_info().hits == 1


def test_lazy_import() -> None:
    assert refseg.segment is segment and refseg.ReferringInferencer is ReferringInferencer
    with pytest.raises(AttributeError, match="no attribute 'segments'"):
        _ = refseg.segments
    program = "import sys, refseg; assert 'segment' in refseg.__all__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_methods_are_imported_lazily() -> None:
    program = (
        "import sys; from refseg.registry import MODELS; from refseg.models import InstAlign;"
        "assert MODELS.get('InstAlign') is MODELS.get('refseg.InstAlign') is InstAlign;"
        "assert not {'refseg.models.vipa', 'refseg.models.rela', 'refseg.evaluation.metrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# Results --------------------------------------------------------------------------------------------------------------


def drawn(mask: np.ndarray) -> LogitMask:
    """Return a mask whose logits have the image's size."""
    return LogitMask(torch.where(torch.from_numpy(mask), 4.0, -4.0), mask.shape, meta_of(mask.shape))


def meta_of(size: tuple[int, int], *texts: str) -> SampleMeta:
    return SampleMeta("a", "a.jpg", size, size, texts, texts)


def _phrase(raw: np.ndarray, *, reason: str = "", instances: tuple | None = None) -> PhraseAnswer:
    """Return an answer on 4 x 6 pixels, in which each pixel is a cell of the model's grid."""
    probability = GridMap(np.where(raw, 0.8, 0.1).astype(np.float32), raw.shape)
    return PhraseAnswer(
        "0", drawn(raw), 0.25, raw_instances=instances, text="two red dogs", reason=reason, probability=probability
    )


def _mask() -> np.ndarray:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    return mask


def test_nothing_here() -> None:
    """A rejected answer has an empty mask and no instances. Its raw mask and raw instances stay."""
    instance = Instance(drawn(_mask()), 0.9, (0.2, 0.4, 0.4), "red dogs")
    found = _phrase(_mask(), instances=(instance,))
    assert not found.nothing_here and found.mask.sum() == 6 and found.objects == (instance,)
    refused = _phrase(_mask(), reason="no-target probability 0.90, above 0.5", instances=(instance,))
    assert refused.nothing_here and not refused.mask.any() and refused.instances == refused.objects == ()
    assert refused.score == 0 and refused.raw_instances == (instance,) and refused.raw_rle == encode(_mask())
    empty = _phrase(np.zeros((4, 6), bool), reason="no pixel reaches the threshold of 0.5")
    assert empty.nothing_here and empty.to_dict()["nothing_here"] and empty.objects == ()


def test_fields_by_hand() -> None:
    """The mask is the box x 2..5, y 1..3, and each of its pixels has probability 0.8."""
    found = _phrase(_mask())
    assert found.objects[0].box == (2, 1, 5, 3) and found.score == pytest.approx(0.8)
    answer = ImageAnswer(
        "a.jpg", np.zeros((4, 6, 3), np.uint8), (found, _phrase(np.zeros((4, 6), bool), reason="no pixel"), found)
    )
    fields = answer.detections()
    assert fields["xyxy"].tolist() == [[2, 1, 5, 3]] * 2 and fields["mask"].shape == (2, 4, 6)
    assert fields["class_id"].tolist() == [0, 2] and fields["confidence"] == pytest.approx([0.8, 0.8])
    assert fields["data"]["class_name"].tolist() == ["two red dogs"] * 2
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["size"] == [4, 6] and told["phrases"][0]["mask"]["size"] == [4, 6]
    nothing = ImageAnswer("a.jpg", answer.image, answer.phrases[1:2]).detections()
    assert nothing["xyxy"].shape == (0, 4) and nothing["mask"].shape == (0, 4, 6)


def test_png(tmp_path: Path) -> None:
    from PIL import Image

    _phrase(_mask()).save_png(tmp_path / "mask.png")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == _mask()).all()


def drawn_image(
    merged: list[np.ndarray],
    texts: list[str],
    *,
    instances: list[list[tuple[np.ndarray, float]]] | None = None,
    prob: list[float] | None = None,
    unknown: tuple[tuple[str, ...], ...] = (),
    **settings: object,
) -> ImageResult:
    """Return results for an image and an input of the masks' size. The first word has the largest weight."""
    size = merged[0].shape

    def logits(masks: list[np.ndarray]) -> torch.Tensor:
        return torch.where(torch.from_numpy(np.stack(masks)), 4.0, -4.0)

    chosen = None
    if instances is not None:
        chosen = [
            InstancePrediction(
                logits([mask for mask, _ in found]),
                torch.tensor([score for _, score in found]),
                torch.tensor([[0.0, 0.9, 0.6, 0.5, 0.0]] * len(found)),
            )
            for found in instances
        ]
    meta = meta_of(size, *texts)
    meta.unknown_words = unknown
    word_of = torch.tensor([[-1, 0, 1, 2, -1]] * len(texts))
    probs = None if prob is None else torch.tensor(prob)
    return ImageResult(meta, None, logits(merged), size, probs, chosen, word_of, None, PostProcess(**settings))


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_duplicate_and_outside_instances_are_hidden() -> None:
    """The answer is a 10 x 10 square. Instances: the square without a row, the square (IoU 0.9 with the first one), a
    part of it (IoU 0.25), and one outside. The first one and the part are shown."""
    answer, most, part, outside = square(0, 0, 10), square(0, 0, 10), square(0, 0, 5), square(12, 12, 6)
    most[9] = False
    found = [(most, 0.9), (answer, 0.8), (part, 0.7), (outside, 0.6)]
    (phrase,) = answers_of(drawn_image([answer], ["the red dog"], instances=[found]))
    assert [one.score for one in phrase.instances] == pytest.approx([0.9, 0.7])
    assert [one.score for one in phrase.raw_instances or ()] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert phrase.in_words == f"2 objects, 25.0 % of the image, score {phrase.score:.2f}"


def test_tiny_instances_are_hidden() -> None:
    """Cells have 4 x 4 pixels. An instance of 3 x 5 pixels is smaller than a cell and is hidden."""
    answer, small, cell = square(0, 0, 10), square(0, 0, 5), square(4, 4, 4)
    small[3:] = False
    (phrase,) = answers_of(drawn_image([answer], ["the red dog"], instances=[[(small, 0.9), (cell, 0.8)]]))
    coarse = replace(phrase, probability=GridMap(np.ones((5, 5)), (5, 5)))
    assert [one.score for one in coarse.instances] == pytest.approx([0.8])


def test_nothing_here_reasons() -> None:
    """Reasons: the head, no pixel above the threshold, too small an area, and unknown words only."""
    found, empty = square(0, 0, 6), square(0, 0, 0)
    drawn = drawn_image([found, empty, found], ["a", "b", "c"], prob=[0.9, 0.14, 0.2])
    assert [phrase.reason for phrase in answers_of(drawn)] == [
        "no-target probability 0.90, above 0.5",
        "no pixel reaches the threshold of 0.5 (no-target probability 0.14)",
        "",
    ]
    (by_area,) = answers_of(drawn_image([found], ["a"], no_target="area"))
    assert by_area.in_words == "nothing here: fewer than 50 pixels reach the threshold of 0.5"
    texts = ["the zorbled bus", "the red bus"]
    one, other = answers_of(drawn_image([found] * 2, texts, unknown=(("zorbled", "bus"), ("bus",))))
    assert (
        one.nothing_here
        and not one.mask.any()
        and one.in_words == ("nothing here: the model does not know: zorbled, bus")
    )
    assert one.raw_rle == encode(found), "prediction files have what the model drew"
    assert not other.nothing_here and other.in_words.endswith("; the model does not know: bus")
    (empty_bus,) = answers_of(drawn_image([empty], ["the red bus"], unknown=(("bus",),)))
    assert empty_bus.in_words == ("nothing here: no pixel reaches the threshold of 0.5; the model does not know: bus")
    assert other.to_dict()["unknown_words"] == ["bus"] and other.to_dict()["reason"] == ""


def test_words_need_measured_alignment() -> None:
    """The tokens of "the red dog" weigh 0.9, 0.6 and 0.5, of a sum of 2. "the" is not a content word."""
    image = drawn_image([square(0, 0, 6)], ["the red dog"], instances=[[(square(0, 0, 6), 0.9)]])
    (hidden,), (shown,) = answers_of(image), answers_of(image, aligned=True)
    assert hidden.instances[0].phrase == "" and hidden.owners == [(), (), ()]
    assert shown.instances[0].phrase == "red dog" and shown.owners == [(), (0,), (0,)]
    assert hidden.instances[0].words == shown.instances[0].words == pytest.approx((0.45, 0.3, 0.25))


def test_unknown_words(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    texts = [
        "the zorbled frumious bandersnatch",
        "\u7ea2\u8272\u7684\u6c7d\u8f66",
        "\U0001f600",
        "the red bus",
        "the red circle",
    ]
    never = {"no_target": "none", "threshold": 0.001}
    for answer in (shared(refshapes_images[0], texts, postprocess=never), shared.session(refshapes_images[0])(texts)):
        assert [bool(phrase.unknown_words) for phrase in answer] == [True] * 4 + [False]
        assert [phrase.reason.startswith("the model does not know") for phrase in answer] == [True] * 3 + [False] * 2
    assert answer[3].unknown_words == ("bus",)
    parts = ReferringInferencer(shared.loaded, max_phrases=2)(refshapes_images[0], texts)
    assert [phrase.unknown_words for phrase in parts] == [phrase.unknown_words for phrase in answer]


def test_large_images_are_drawn_at_display_size(shared: ReferringInferencer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, pictures and heat maps need no mask at the image's size, and the image is reduced once."""
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    sizes, reduced = [], []
    restore, reduce_ = postprocess.restore_masks, results.reduce_image

    def restore_masks(*args: Any, size: tuple[int, int], **more: Any) -> torch.Tensor:
        sizes.append(size)
        return restore(*args, size=size, **more)

    def reduce_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        reduced.append(size)
        return reduce_(image, size)

    monkeypatch.setattr(postprocess, "restore_masks", restore_masks)
    monkeypatch.setattr(results, "reduce_image", reduce_image)
    answer = shared(pixels, TEXTS, postprocess={"no_target": "none"})
    assert all(phrase.in_words for phrase in answer) and answer.picture().shape[0] > 400
    for number in range(3):
        answer.heat_picture(number)
        answer.panel(number, answers.ONE_OF_FEW)
    assert reduced == [(480, 640)] and sizes and max(sizes) == (480, 640)
    assert answer[0].mask.shape == (900, 1200) and sizes[-1] == (900, 1200)
