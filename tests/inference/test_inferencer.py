"""The inferencer: the same masks as `refseg test`, by every way in; sessions; what goes in and what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
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
from refseg.evaluation.prediction_file import PredictionRow, read_predictions
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
    """InstAlign: phrases share an image. Every query is an instance, or random weights might find none."""
    return ReferringInferencer(work_dir(SHARED), device="cpu", postprocess={"instance_threshold": 0.0})


@pytest.fixture(scope="module")
def fused(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    return ReferringInferencer(work_dir(FUSED), device="cpu", batch_size=32)


def phrases_by_image(refshapes: Path) -> dict[str, list[tuple[str, str]]]:
    """Of the test split: image -> expression ids and texts, in the file's order."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (refshapes / "refshapes.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("split") == "test":
            name = str(refshapes / row["image"])
            found.setdefault(name, []).append((str(row["expression_id"]), row["text"]))
    return found


def equal_rows(a: PredictionRow, b: PredictionRow) -> bool:
    same = (a.mask, a.no_target_prob) == (b.mask, b.no_target_prob)
    found = [[(i.rle, i.score, i.words and list(i.words)) for i in row.instances or ()] for row in (a, b)]
    return same and found[0] == found[1]


def predicted(checkpoint: Path, images: dict[str, list[tuple[str, str]]], folder: Path) -> dict[str, PredictionRow]:
    """By `refseg predict`, one image at a time."""
    lines = [json.dumps({"image": image, "text": text, "expression_id": name}) + "\n"
             for image, phrases in images.items() for name, text in phrases]  # fmt: skip
    (folder / "tasks.jsonl").write_text("".join(lines))
    arguments = ["--jsonl", str(folder / "tasks.jsonl"), "--out", str(folder / "out"), "--batch-size", "1"]
    assert main(["predict", str(checkpoint), *arguments, "--device", "cpu"]) == 0
    return {row.expression_id: row for row in read_predictions(folder / "out" / "predictions.jsonl")}


@pytest.mark.parametrize("config", [SHARED, FUSED])
def test_masks_are_those_of_refseg_test(
    config: str, work_dir: Callable[[str], Path], refshapes_tiny: Path, tmp_path: Path
) -> None:
    """`refseg test --predictions`, the API, a session and `refseg predict` on every image and phrase of the test split.
    The command puts images together, and phrases of LAVT are images: a few pixels may round to the other side there."""
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
                assert equal_rows(phrase.to_row(expression_id), expected[expression_id])
                assert (phrase.raw_mask != decode(command[expression_id].mask)).mean() < 1e-3
                assert config != SHARED or equal_rows(command[expression_id], expected[expression_id])
                shares.append(phrase.raw_mask.mean())
    assert 0.05 < np.mean(shares) < 0.95, "empty masks, or full ones, would be equal whatever happened"


def test_a_second_phrase_does_not_encode_the_image(
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


def test_a_session_of_a_model_that_shares_nothing(fused: ReferringInferencer, refshapes_images: list[str]) -> None:
    together, session = fused(refshapes_images[0], TEXTS), fused.session(refshapes_images[0])
    assert not fused.shares_images
    for text, expected in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(session(text)[0].probability.values, expected.probability.values, atol=1e-5)


def test_phrases_in_chunks_are_the_same(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """Seven phrases, two of them the same, at once and three at a time; and of a model that retrieves regions."""
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


def test_batches_keep_the_order(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    """Five images with one to five phrases, in passes of two images and six phrases at most."""
    texts = [[f"the red circle {n}" for n in range(k + 1)] for k in range(5)]
    small = ReferringInferencer(shared.loaded, batch_size=2, max_phrases=6)
    answers = small(refshapes_images, texts)
    assert [answer.name for answer in answers] == refshapes_images
    assert [[phrase.text for phrase in answer] for answer in answers] == texts
    for image, of_image, answer in zip(refshapes_images, texts, answers, strict=True):
        alone = small(image, of_image)
        np.testing.assert_allclose(alone[0].probability.values, answer[0].probability.values, atol=1e-5)


def test_every_kind_of_image_is_the_same_image(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
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


def test_one_bad_image_stops_a_call_and_not_a_stream(
    shared: ReferringInferencer, refshapes_images: list[str], tmp_path: Path
) -> None:
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


def test_settings_of_a_call(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
    low = shared(refshapes_images[0], "a circle", postprocess={"threshold": 0.01})[0]
    high = shared(refshapes_images[0], "a circle", postprocess={"threshold": 0.99})[0]
    assert low.raw_mask.sum() > high.raw_mask.sum()
    with pytest.raises(UsageError, match=r"option 'treshold'\. Valid options: threshold, no_target"):
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
def test_wrong_settings(shared: ReferringInferencer, settings: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ReferringInferencer(shared.loaded, **settings)


def test_mixed_precision(
    shared: ReferringInferencer, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model runs under autocast of the given dtype, and answers with finite numbers."""
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


def test_weights_that_have_diverged_are_no_answer(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """Masks of NaN would be empty ones, and read as "nothing here"."""
    broken = ReferringInferencer(work_dir(SHARED), device="cpu")
    with torch.no_grad():
        next(broken.segmentor.heads.relevance.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        broken(refshapes_images[0], "a circle")


def test_too_little_memory_says_what_to_lower(
    shared: ReferringInferencer, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shared.segmentor, "infer_encoded", full)
    with pytest.raises(UsageError, match=r"does not hold 1 images of \[96, 96\] with 3 phrases\. Lower batch_size"):
        shared(refshapes_images[0], TEXTS)


def test_heat_maps_show_what_the_model_tells(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    """LAVT tells of pixels only; InstAlign of each word too, and VIPA of the phrase as a whole besides."""
    widths = []
    for config in (FUSED, SHARED, "vipa_tiny_refshapes"):
        inferencer = ReferringInferencer(work_dir(config), device="cpu", postprocess={"no_target": "none"})
        picture = inferencer(refshapes_images[0], "a circle").heat_picture(0)
        assert picture.dtype == np.uint8
        widths.append((picture.shape[0] > 700, picture.shape[1]))
    assert widths == [(False, 512), (False, 1504), (True, 1504)], "one panel, three, and four in two rows"


def test_segment_keeps_its_model(work_dir: Callable[[str], Path], refshapes_images: list[str]) -> None:
    from refseg.inference import inferencer

    inferencer._cached_inferencer.cache_clear()
    for _ in range(2):
        answer = segment(refshapes_images[0], TEXTS, model=work_dir(SHARED), device="cpu")
    assert len(answer) == 3 and inferencer._cached_inferencer.cache_info().hits == 1


def test_importing_the_package_stays_light() -> None:
    assert refseg.segment is segment and refseg.ReferringInferencer is ReferringInferencer
    with pytest.raises(AttributeError, match="no attribute 'segments'"):
        _ = refseg.segments
    program = "import sys, refseg; assert 'segment' in refseg.__all__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_one_method_does_not_load_the_others() -> None:
    program = (
        "import sys; from refseg.registry import MODELS; from refseg.models import InstAlign;"
        "assert MODELS.get('InstAlign') is MODELS.get('refseg.InstAlign') is InstAlign;"
        "assert not {'refseg.models.vipa', 'refseg.models.rela', 'refseg.evaluation.metrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# Results --------------------------------------------------------------------------------------------------------------


def drawn(mask: np.ndarray) -> LogitMask:
    """A mask that is drawn at the image's size."""
    return LogitMask(torch.where(torch.from_numpy(mask), 4.0, -4.0), mask.shape, meta_of(mask.shape))


def meta_of(size: tuple[int, int], *texts: str) -> SampleMeta:
    return SampleMeta("a", "a.jpg", size, size, texts, texts)


def _phrase(raw: np.ndarray, *, reason: str = "", instances: tuple | None = None) -> PhraseAnswer:
    """Instances are those of 4 x 6 pixels, the cells are pixels."""
    probability = GridMap(np.where(raw, 0.8, 0.1).astype(np.float32), raw.shape)
    return PhraseAnswer("two red dogs", drawn(raw), reason, 0.25, instances, probability)


def _mask() -> np.ndarray:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    return mask


def test_nothing_here() -> None:
    """A rejected answer has an empty mask and no instances, and keeps what was drawn for prediction files."""
    instance = Instance(drawn(_mask()), 0.9, (0.2, 0.4, 0.4), "red dogs")
    found = _phrase(_mask(), instances=(instance,))
    assert not found.nothing_here and found.mask.sum() == 6 and found.objects == (instance,)
    refused = _phrase(_mask(), reason="no-target probability 0.90, above 0.5", instances=(instance,))
    assert refused.nothing_here and not refused.mask.any() and refused.instances == refused.objects == ()
    assert refused.score == 0 and refused.to_row("7").instances[0].score == 0.9
    assert refused.to_row("7").mask == encode(_mask())
    empty = _phrase(np.zeros((4, 6), bool), reason="no pixel reaches the threshold of 0.5")
    assert empty.nothing_here and empty.to_dict()["nothing_here"] and empty.objects == ()


def test_fields_by_hand() -> None:
    """The mask's box is x 2..5, y 1..3; its pixels all have 0.8."""
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
    """Masks of one size, on an image and an input of that size, with word weights that favor the first word."""
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


def test_instances_that_make_no_sense_are_not_shown() -> None:
    """Of the answer, a 10 x 10 square, and cells of one pixel: the square itself; the square without a row, IoU 0.9;
    a part of it, IoU 0.25; what lies outside. The best of the first two is shown, and the part."""
    answer, most, part, outside = square(0, 0, 10), square(0, 0, 10), square(0, 0, 5), square(12, 12, 6)
    most[9] = False
    found = [(most, 0.9), (answer, 0.8), (part, 0.7), (outside, 0.6)]
    (phrase,) = answers_of(drawn_image([answer], ["the red dog"], instances=[found]))
    assert [one.score for one in phrase.instances] == pytest.approx([0.9, 0.7])
    assert [one.score for one in phrase.raw_instances or ()] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert phrase.in_words == f"2 objects, 25.0 % of the image, score {phrase.score:.2f}"


def test_an_instance_below_a_cell_of_the_models_grid_is_not_shown() -> None:
    """On 5 x 5 cells of 4 x 4 pixels of an input, 16 pixels are a cell: 3 x 5 are too few, though they are drawn."""
    answer, small, cell = square(0, 0, 10), square(0, 0, 5), square(4, 4, 4)
    small[3:] = False
    (phrase,) = answers_of(drawn_image([answer], ["the red dog"], instances=[[(small, 0.9), (cell, 0.8)]]))
    coarse = PhraseAnswer(phrase.text, phrase.lazy_mask, "", None, phrase.queries, GridMap(np.ones((5, 5)), (5, 5)))
    assert [one.score for one in coarse.instances] == pytest.approx([0.8])


def test_nothing_here_says_why() -> None:
    """By the head, without a pixel (the head being unsure), by the area, and since every word is unknown."""
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
    assert one.to_row("1").mask == encode(found), "prediction files have what the model drew"
    assert not other.nothing_here and other.in_words.endswith("; the model does not know: bus")
    (empty_bus,) = answers_of(drawn_image([empty], ["the red bus"], unknown=(("bus",),)))
    assert empty_bus.in_words == ("nothing here: no pixel reaches the threshold of 0.5; the model does not know: bus")
    assert other.to_dict()["unknown_words"] == ["bus"] and other.to_dict()["reason"] == ""


def test_words_are_shown_where_alignment_was_measured() -> None:
    """The weights are 0.9, 0.6, 0.5 of "the red dog": "the" is no content word."""
    image = drawn_image([square(0, 0, 6)], ["the red dog"], instances=[[(square(0, 0, 6), 0.9)]])
    (hidden,), (shown,) = answers_of(image), answers_of(image, aligned=True)
    assert hidden.instances[0].phrase == "" and hidden.owners == [(), (), ()]
    assert shown.instances[0].phrase == "red dog" and shown.owners == [(), (0,), (0,)]
    assert hidden.instances[0].words == shown.instances[0].words == pytest.approx((0.9, 0.6, 0.5))


def test_unknown_words_of_a_real_tokenizer(shared: ReferringInferencer, refshapes_images: list[str]) -> None:
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


def test_a_large_image_costs_no_more_than_a_small_one(
    shared: ReferringInferencer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, pictures and heat maps ask for no mask at the image's size, and reduce the image once each."""
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
