"""Clicks correct answers: `ImageSession.refine` on tiny random weights, beside transformers' own examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refseg.errors import UsageError
from refseg.evaluation.prediction_file import row_to_json
from refseg.inference.clicks import ClickedMask, Clicks, MaskUnion, check_clicks
from refseg.inference.inferencer import ReferringInferencer
from refseg.models.postprocess import LogitMask
from refseg.structures import SampleMeta
from tiny_models import open_model, photograph

SIZES = [(60, 80), (130, 71)]
MODELS = {  # name: (model, kinds of tiny models by option, kind of the mask model)
    "grounded-sam2": ("grounding_dino", {}, "sam2"),
    "sam3": ("sam3", {"model.tracker": "sam3_tracker"}, "sam3_tracker"),
}
EVERYTHING = {"instance_threshold": 0.0, "no_target": "none", "max_instances": 3}


def open_clickable(folders: dict[str, str], name: str) -> ReferringInferencer:
    model, options, _ = MODELS[name]
    paths = {key: folders[kind] for key, kind in options.items()}
    inferencer = open_model(folders, model, **paths, **{"model.min_score": 0.0})  # several instances
    return ReferringInferencer(inferencer.loaded, postprocess=EVERYTHING)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, folders: dict[str, str]) -> tuple[ReferringInferencer, str]:
    """A model whose answers can be corrected, and the folder of its mask model."""
    return open_clickable(folders, request.param), folders[MODELS[request.param][2]]


def official(folder: str, image: np.ndarray, masks: np.ndarray | None = None, **prompts: Any) -> np.ndarray:
    """Return (H, W) bool: the mask that transformers' example makes of prompts."""
    from transformers import AutoModelForMaskGeneration, AutoProcessor

    model = AutoModelForMaskGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=Image.fromarray(image), return_tensors="pt", **prompts)
    rough = {} if masks is None else {"input_masks": torch.from_numpy(masks)[None, None]}
    with torch.no_grad():
        outputs = model(**inputs, **rough, multimask_output=False)
    return processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][0, 0].numpy()


# Equal to transformers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_points_and_boxes_equal_those_of_transformers(model: tuple[ReferringInferencer, str], size: Any) -> None:
    inferencer, folder = model
    image = photograph(size)
    session = inferencer.session(image)
    box = [10, 5, 50, 40]
    cases = [
        (dict(points=[(30, 20, True)]), dict(input_points=[[[[30, 20]]]], input_labels=[[[1]]])),
        (
            dict(points=[(30, 20, True), (6, 50, False)]),
            dict(input_points=[[[[30, 20], [6, 50]]]], input_labels=[[[1, 0]]]),
        ),
        (dict(box=box), dict(input_boxes=[[box]])),
        (
            dict(points=[(30, 20, False)], box=box),
            dict(input_points=[[[[30, 20]]]], input_labels=[[[0]]], input_boxes=[[box]]),
        ),
    ]
    masks = []
    for clicks, prompts in cases:
        (phrase,) = session.refine(None, **clicks)
        expected = official(folder, image, **prompts)
        assert phrase.raw_mask.shape == expected.shape == size
        assert np.mean(phrase.raw_mask != expected) < 0.002
        masks.append(expected)
    assert 0 < np.mean(masks) < 1 and (masks[0] != masks[1]).any(), "the negative point changes the mask"


def test_repeated_clicks_equal_transformers(model: tuple[ReferringInferencer, str]) -> None:
    """The second call passes on the logits of the first, as they are, and both points."""
    inferencer, folder = model
    image = photograph((60, 80))
    session = inferencer.session(image)
    (first,) = session.refine(None, points=[(30, 20, True)])
    (second,) = session.refine(first, points=[(6, 50, False)])
    assert first.mask.any() and second.clicks == (Clicks(((30, 20, True), (6, 50, False))),)
    points = dict(input_points=[[[[30, 20], [6, 50]]]], input_labels=[[[1, 0]]])
    expected = official(folder, image, first.source.logits.numpy(), **points)
    assert np.mean(second.raw_mask != expected) < 0.002
    assert (expected != official(folder, image, **points)).any(), "the rough mask matters"


def test_text_answers_are_rough_masks(model: tuple[ReferringInferencer, str]) -> None:
    """The logits of an instance, at the size that SAM reads, are the rough mask. Its threshold is at 0."""
    inferencer, folder = model
    image = photograph((60, 80))
    session = inferencer.session(image)
    side, points = inferencer.prompted.mask_size, dict(input_points=[[[[30, 20]]]], input_labels=[[[1]]])
    for threshold in (0.5, 0.45):
        (phrase,) = session("the red dog", postprocess={"threshold": threshold})
        (refined,) = session.refine(phrase, points=[(30, 20, True)], instance=0)
        rough = F.interpolate(phrase.instances[0].source.logits[None, None], size=side, mode="bilinear", antialias=True)
        expected = official(folder, image, rough[0, 0].numpy() - math.log(threshold / (1 - threshold)), **points)
        assert np.mean(refined.raw_instances[0].mask != expected) < 0.002


# Answers --------------------------------------------------------------------------------------------------------------


def test_merged_masks(model: tuple[ReferringInferencer, str], tmp_path: Path) -> None:
    """A corrected merged mask has no instances, and works as any answer does."""
    inferencer, _ = model
    session = inferencer.session(photograph((60, 80)))
    (phrase,) = session("the red dog")
    assert phrase.instances and phrase.clicks == () and "clicks" not in phrase.in_words
    answer = session.refine(phrase, points=[(30, 20, True), (5, 5, False)])
    (refined,) = answer
    assert refined.text == "the red dog" and (refined.mask != phrase.mask).any()
    assert not refined.nothing_here and refined.in_words.endswith("; corrected by clicks")
    assert refined.instances == () and (refined.objects[0].mask == refined.mask).all()
    assert 0.5 <= refined.score <= 1 and refined.no_target_prob == 0.0
    assert row_to_json(refined)["expression_id"] == phrase.expression_id
    assert refined.to_dict()["clicks"] == [{"points": [[30.0, 20.0, True], [5.0, 5.0, False]], "box": None}]
    assert answer.picture().ndim == answer.heat_picture(0).ndim == 3
    assert answer.detections()["mask"].shape == (1, 60, 80)
    refined.save_png(tmp_path / "mask.png")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == refined.mask).all()


def test_instances(model: tuple[ReferringInferencer, str]) -> None:
    """Only one instance changes, and the merged mask is the union. Each instance has its own clicks."""
    inferencer, _ = model
    session = inferencer.session(photograph((60, 80)))
    (phrase,) = session("two men")
    assert len(phrase.instances) >= 2
    last = len(phrase.instances) - 1
    (once,) = session.refine(phrase, points=[(60, 50, True)], instance=last)
    corrected, others = once.raw_instances[last], once.raw_instances[:last]
    assert (corrected.mask != phrase.instances[last].mask).any() and corrected.score == phrase.instances[last].score
    assert all(one is before for one, before in zip(others, phrase.instances[:last], strict=True))
    assert (once.mask == np.any([one.mask for one in once.raw_instances], axis=0)).all()
    (twice,) = session.refine(once, box=(0, 0, 20, 20), instance=0)
    assert {clicks.box for clicks in twice.clicks} == {None, (0, 0, 20, 20)}
    (whole,) = session.refine(twice, points=[(10, 10, True)])
    assert whole.clicks == (Clicks(((10, 10, True),)),) and whole.raw_instances is None
    assert answer_is_unchanged(session, phrase)


def answer_is_unchanged(session: Any, phrase: Any) -> bool:
    return (session(phrase.text)[0].mask == phrase.mask).all() and phrase.clicks == ()


def test_nothing_here_can_be_corrected(model: tuple[ReferringInferencer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rejected mask is no rough mask: the clicks count alone."""
    inferencer, _ = model
    session = inferencer.session(photograph((60, 80)))
    (phrase,) = session("the red dog", postprocess={"no_target": "head-or-empty", "no_target_threshold": 0.0})
    assert phrase.nothing_here
    (refined,) = session.refine(phrase, points=[(30, 20, True)])
    (alone,) = session.refine(None, points=[(30, 20, True)])
    assert refined.mask.any() and not refined.nothing_here
    assert (refined.mask == alone.mask).all() and alone.text == "clicks"
    # A mask without a pixel is "nothing here", and can be corrected again
    decode = inferencer.prompted.decode
    with monkeypatch.context() as patch:
        patch.setattr(inferencer.prompted, "decode", lambda *_, **__: torch.full((1, 16, 16), -1.0))
        (empty,) = session.refine(phrase, points=[(30, 20, True)])
    assert inferencer.prompted.decode == decode and empty.no_target_prob == 1.0
    assert empty.in_words == "nothing here: the corrected mask is empty" and not empty.mask.any()
    assert len(session.refine(empty, points=[(8, 8, True)])[0].clicks[0].points) == 2


def test_several_refinements_do_not_depend_on_each_other(folders: dict[str, str]) -> None:
    """All masks of one pass equal those of passes of their own."""
    inferencer = open_clickable(folders, "grounded-sam2")
    prompted, session = inferencer.prompted, inferencer.session(photograph((60, 80)))
    phrases = session(["the red dog", "a cat", "two men"])
    points = [[(30, 20, True)], [(8, 8, False)], [(70, 50, True)]]
    refined = [session.refine(phrase, points=p)[0] for phrase, p in zip(phrases, points, strict=True)]
    again = [session.refine(phrase, points=p)[0] for phrase, p in reversed(list(zip(phrases, points, strict=True)))]
    assert all((a.mask == b.mask).all() for a, b in zip(refined, again[::-1], strict=True))
    with torch.no_grad():
        together = prompted.decode(
            session._embeddings,
            (60, 80),
            points=torch.tensor([[point[0][:2]] for point in points]),
            labels=torch.tensor([[int(point[0][2])] for point in points]),
            masks=torch.stack([phrase.source.logits_at(prompted.mask_size) for phrase in phrases]),
        )
    for logits, one in zip(together, refined, strict=True):
        torch.testing.assert_close(logits, one.source.logits, atol=1e-4, rtol=1e-4)


# Encoding -------------------------------------------------------------------------------------------------------------


def test_images_are_encoded_once(model: tuple[ReferringInferencer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """GroundedSAM2 encodes for boxes and clicks together. SAM 3 needs one more encoding, and only for clicks."""
    inferencer, _ = model
    encode, calls = inferencer.prompted.encode, []
    monkeypatch.setattr(inferencer.prompted, "encode", lambda images: calls.append(1) or encode(images))
    session = inferencer.session(photograph((60, 80)))
    (phrase,) = session("a cat")
    assert len(calls) == (inferencer.segmentor.prompt_embeddings(session._encoded) is not None)
    for point in ((3, 4, True), (30, 4, False)):
        (phrase,) = session.refine(phrase, points=[point])
    assert len(calls) == 1


@pytest.mark.parametrize("config", ["instalign_tiny_refshapes", "lavt_tiny_refshapes"])
def test_other_models_with_a_mask_model_beside_them(
    config: str, folders: dict[str, str], work_dir: Callable[[str], Path], refshapes_images: list[str]
) -> None:
    """The model's input is padded or resized, and SAM sees the image itself."""
    inferencer = ReferringInferencer(work_dir(config), device="cpu", clicks=folders["sam2"], postprocess=EVERYTHING)
    image = np.asarray(Image.open(refshapes_images[0]).convert("RGB"))[:70]
    session = inferencer.session(image)
    (alone,) = session.refine(None, points=[(20, 30, True)])
    expected = official(folders["sam2"], image, input_points=[[[[20, 30]]]], input_labels=[[[1]]])
    assert np.mean(alone.mask != expected) < 0.002
    (phrase,) = session("the red circle")
    (refined,) = session.refine(phrase, points=[(20, 30, True)])
    assert refined.mask.shape == image.shape[:2] and (refined.mask != alone.mask).any()


def test_a_named_mask_model_takes_precedence(folders: dict[str, str]) -> None:
    inferencer = open_model(folders, "grounding_dino")
    other = ReferringInferencer(inferencer.loaded, clicks=folders["sam3_tracker"])
    session = other.session(photograph((60, 80)))
    (phrase,) = session.refine(None, box=(10, 5, 50, 40))
    expected = official(folders["sam3_tracker"], photograph((60, 80)), input_boxes=[[[10, 5, 50, 40]]])
    assert np.mean(phrase.mask != expected) < 0.002


def test_mixed_precision(folders: dict[str, str]) -> None:
    """Places are not rounded to 16 bits: clicks a pixel apart on a wide image differ."""
    inferencer = open_clickable(folders, "grounded-sam2")
    session = ReferringInferencer(inferencer.loaded, dtype="bfloat16").session(photograph((60, 700)))
    boxes, encoder = [], inferencer.prompted.net.prompt_encoder
    handle = encoder.register_forward_pre_hook(lambda *args: boxes.append(args[2]["input_boxes"]), with_kwargs=True)
    (phrase,) = session.refine(None, box=(601, 5, 603, 40))
    handle.remove()
    assert phrase.raw_mask.shape == (60, 700)
    torch.testing.assert_close(boxes[0][0, 0, 0::2], torch.tensor([601.0, 603.0]) * 64 / 700)


# Masks ----------------------------------------------------------------------------------------------------------------


def test_logits_without_padding() -> None:
    """An image of 2 x 4 pixels in an input of 4 x 4: its lower half is padding. At 1 x 2, columns are averaged."""
    meta = SampleMeta("a", "a", (2, 4), (2, 4), (), ())
    logits = torch.tensor([[1.0, 3.0, 5.0, 7.0]] * 2 + [[-9.0] * 4] * 2)
    mask = LogitMask(logits, (4, 4), meta)
    assert mask.logits_at((2, 4)).tolist() == logits[:2].tolist()
    small = LogitMask(logits, (4, 4), meta).logits_at((1, 2))
    assert small.shape == (1, 2) and small[0, 0] < 4 < small[0, 1] and float(small.mean()) == pytest.approx(4)
    # The union of a map of the padded input with one of the image
    other = ClickedMask(torch.tensor([[-1.0, -1.0], [-1.0, 8.0]]), None, meta)
    union = MaskUnion((LogitMask(-logits, (4, 4), meta), other))
    assert (union.full == other.full).all() and union.full.any()
    assert union.logits_at((2, 2)).shape == (2, 2) and float(union.logits_at((2, 2))[1, 1]) == 8


# Errors ---------------------------------------------------------------------------------------------------------------


def test_bad_clicks() -> None:
    def error(points: Any = (), box: Any = None) -> str:
        with pytest.raises(UsageError) as raised:
            check_clicks(points, box, (60, 80))
        return str(raised.value)

    assert error() == "No clicks. Pass points, a box, or both."
    point = "Expected (x, y, positive) with x from 0 to 79, y from 0 to 59"
    for bad in ((80, 5, True), (-1, 5, True), (5, 60, True), (math.nan, 5, True), (5, math.inf, False), (5, 5)):
        assert point in error([(1, 1, True), bad]) and error([(1, 1, True), bad]).startswith("Point 1 is (")
    assert point in error([(5, 5, "yes")]) and point in error([("5", 5, True)]) and point in error((3, 4, True))
    for bad in ((5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 81, 9), (0, -1, 9, 9), (0, 0, math.nan, 9), (1, 2, 3), 7, "abcd"):
        assert error(box=bad).startswith("The box is ") and "x1 <= 80 and 0 <= y0 < y1 <= 60" in error(box=bad)
    assert check_clicks(np.array([[1.0, 2.0, 1.0]]), None, (60, 80)) == Clicks(((1.0, 2.0, True),))
    assert check_clicks([], (0, 0, 80, 60), (60, 80)).box == (0, 0, 80, 60)


def test_bad_answers(folders: dict[str, str]) -> None:
    inferencer = open_clickable(folders, "grounded-sam2")
    session, other = (inferencer.session(photograph(size)) for size in SIZES)
    points = [(3, 4, True)]
    answer = session("the red dog")
    with pytest.raises(UsageError, match=r"about image \(60, 80\), and the session about image \(130, 71\)"):
        other.refine(answer[0], points=points)
    with pytest.raises(UsageError, match=r"Cannot refine a ImageAnswer. Pass the answer to one phrase: answer\[0\]"):
        session.refine(answer, points=points)
    with pytest.raises(UsageError, match=r"no instance 99: the answer has instances 0 to"):
        session.refine(answer[0], points=points, instance=99)
    with pytest.raises(UsageError, match=r"no instance 0: the answer has no instances"):
        session.refine(session.refine(answer[0], points=points)[0], points=points, instance=0)
    with pytest.raises(UsageError, match=r"instance=0 needs an answer"):
        session.refine(None, points=points, instance=0)


def test_models_without_a_mask_model(folders: dict[str, str]) -> None:
    session = open_model(folders, "sam3").session(photograph((60, 80)))
    with pytest.raises(UsageError, match=r"SAM3 has no promptable .* --clicks.* grounded-sam2, .* 'facebook/sam3'"):
        session.refine(None, points=[(3, 4, True)])
