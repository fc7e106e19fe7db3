"""Zero-shot models answer as transformers' own examples do, on tiny random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refseg.errors import ConfigError, DataError, UsageError
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.inputs import ImageInput
from refseg.models.zero_shot import SAM3, GroundedSAM2
from refseg.models.zero_shot.prompted import PromptedMasks
from tiny_models import MODELS, open_model, photograph, sam2_video, sam3_video

SIZES = [(60, 80), (130, 71), (64, 64)]
TEXTS = ["the red dog", "two men on the left of a cat", "Blue."]
DETECTORS = ("grounding_dino", "mm_grounding_dino", "owlv2", "omdet_turbo")


@pytest.mark.parametrize("name", MODELS)
def test_batches_and_single_phrases_agree(folders: dict[str, str], name: str) -> None:
    inferencer = open_model(folders, name)
    images = [photograph(size, seed) for seed, size in enumerate(SIZES)]
    together = inferencer(images, TEXTS)
    differ = 0
    for image, answer in zip(images, together, strict=True):
        session = inferencer.session(image)
        for phrase in answer:
            for alone in (inferencer(image, [phrase.text])[0], session(phrase.text)[0]):
                assert alone.no_target_prob == pytest.approx(phrase.no_target_prob, abs=1e-4)
                assert phrase.raw_mask.shape == image.shape[:2]
                assert np.mean(alone.raw_mask != phrase.raw_mask) < 0.002
                assert len(alone.raw_instances or ()) == len(phrase.raw_instances or ())
        differ += len({phrase.no_target_prob for phrase in answer}) == len(TEXTS)
    assert differ == len(images), "every phrase has its own answer"


@pytest.mark.parametrize("name", DETECTORS)
def test_boxes_and_masks_equal_those_of_transformers(folders: dict[str, str], name: str) -> None:
    inferencer = open_model(folders, name)
    segmentor = inferencer.segmentor
    detect = official_boxes(folders[name])
    for seed, size in enumerate(SIZES):
        image = Image.fromarray(photograph(size, seed))
        for text in ("the red dog.", "a cat.") if "dino" in name else ("the red dog", "Blue."):
            scores, boxes = detect(image, text, segmentor.min_score)
            (answer,) = inferencer(image, [text], postprocess={"instance_threshold": segmentor.min_score})
            found = inferencer(image, [text], postprocess={"instance_threshold": 0.0})[0]
            assert 1 - found.no_target_prob == pytest.approx(float(scores.max(initial=0)), abs=1e-4) or not len(scores)
            masks = official_masks(folders["sam2"], image, boxes) if len(boxes) else np.zeros((0, *size), bool)
            kept = [one for one in zip(scores, masks, strict=True) if one[1].any()]
            assert [one.score for one in answer.raw_instances] == pytest.approx([s for s, _ in kept], abs=1e-4)
            for one, (_, mask) in zip(answer.raw_instances, kept, strict=True):
                assert np.mean(one.mask != mask) < 0.002
            union = masks.any(0) if len(masks) else np.zeros(size, bool)
            assert np.mean(answer.raw_mask != union) < 0.002


def official_boxes(folder: str) -> Callable[[Image.Image, str, float], tuple[np.ndarray, np.ndarray]]:
    """Return a function that detects as the documentation of transformers does, best box first."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def detect(image: Image.Image, text: str, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        inputs = processor(
            images=image, text=[[text]] if "Owlv2" in type(model).__name__ else text, return_tensors="pt"
        )
        with torch.no_grad():
            outputs = model(**inputs)
        (found,) = processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=[image.size[::-1]]
        )
        order = found["scores"].argsort(descending=True, stable=True)
        return found["scores"][order].numpy(), found["boxes"][order].numpy()

    return detect


def official_masks(folder: str, image: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """Return SAM 2's masks of boxes, as the documentation of transformers makes them."""
    from transformers import Sam2Model, Sam2Processor

    model, processor = Sam2Model.from_pretrained(folder).eval(), Sam2Processor.from_pretrained(folder)
    inputs = processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=False)
    return processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][:, 0].numpy()


@pytest.mark.parametrize("name", ["sam3", "sam3_lite_text"])
def test_sam3_equals_transformers(folders: dict[str, str], name: str) -> None:
    import transformers

    model_class = transformers.Sam3LiteTextModel if name == "sam3_lite_text" else transformers.Sam3Model
    model = model_class.from_pretrained(folders[name]).eval()
    processor = transformers.Sam3Processor.from_pretrained(folders[name])
    inferencer = open_model(folders, name)
    total = 0
    for seed, size in enumerate(SIZES):
        image = Image.fromarray(photograph(size, seed))
        for text in TEXTS:
            inputs = processor(images=image, text=text, return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs)
            (found,) = processor.post_process_instance_segmentation(
                outputs, threshold=0.15, mask_threshold=0.5, target_sizes=[size]
            )
            (answer,) = inferencer(image, [text], postprocess={"instance_threshold": 0.15})
            total += len(found["scores"])
            order = found["scores"].argsort(descending=True, stable=True)
            kept = [row for row in order.tolist() if found["masks"][row].any()]
            assert [one.score for one in answer.raw_instances] == pytest.approx(
                found["scores"][kept].tolist(), abs=1e-4
            )
            for one, row in zip(answer.raw_instances, kept, strict=True):
                assert np.mean(one.mask != found["masks"][row].bool().numpy()) < 0.002
            presence = float(outputs.presence_logits.sigmoid())
            assert answer.no_target_prob == pytest.approx(1 - presence, abs=1e-4)
    assert total > 0


def test_clipseg_equals_transformers(folders: dict[str, str]) -> None:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    model = CLIPSegForImageSegmentation.from_pretrained(folders["clipseg"]).eval()
    processor = CLIPSegProcessor.from_pretrained(folders["clipseg"])
    inferencer = open_model(folders, "clipseg")
    for seed, size in enumerate(SIZES):
        image = Image.fromarray(photograph(size, seed))
        inputs = processor(text=TEXTS, images=[image] * len(TEXTS), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        masks = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] >= 0
        for phrase, mask in zip(inferencer(image, TEXTS), masks.numpy(), strict=True):
            assert 0 < mask.mean() < 1
            assert np.mean(phrase.raw_mask != mask) < 0.002


def test_published_layouts_load(folders: dict[str, str], tmp_path: Path) -> None:
    """`facebook/sam2.1-*` and `facebook/sam3` are folders of video models: each part must get its own tensors."""
    sam2, sam3 = sam2_video(tmp_path / "sam2", folders), sam3_video(tmp_path / "sam3", folders)
    masks = PromptedMasks(str(tmp_path / "sam2"), option="masks").net
    assert all(value.equal(sam2[name]) for name, value in masks.state_dict().items())

    model = SAM3(pretrained=str(tmp_path / "sam3"), tracker=str(tmp_path / "sam3"))
    assert all(value.equal(sam3[f"detector_model.{name}"]) for name, value in model.net.state_dict().items())
    for name, value in model.prompted.net.state_dict().items():
        backbone, neck = "vision_encoder.backbone.", "vision_encoder.neck."
        if name.startswith(backbone):
            stored = f"detector_model.{name}"
        elif name.startswith(neck):
            stored = name.replace(neck, "tracker_neck.")
        else:
            stored = f"tracker_model.{name}"
        assert value.equal(sam3[stored]), name


# What they do besides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grounding_dino", "sam3"])
def test_images_are_encoded_once(folders: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inferencer = open_model(folders, name)
    backbone = (
        inferencer.segmentor.detector.net.model.backbone if name == "grounding_dino" else inferencer.segmentor.net
    )
    method = "forward" if name == "grounding_dino" else "get_vision_features"
    calls = []
    original = getattr(backbone, method)
    monkeypatch.setattr(backbone, method, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    session = inferencer.session(photograph((60, 80)))
    session(TEXTS)
    session("a cat")
    assert len(calls) == 1


def test_empty_answers_without_a_box_above_the_threshold(folders: dict[str, str]) -> None:
    inferencer = open_model(folders, "grounding_dino")
    settings = {"instance_threshold": 0.999, "no_target_threshold": 1.0}
    (answer,) = inferencer(photograph((60, 80)), ["the red dog"], postprocess=settings)
    assert answer.nothing_here and not answer.mask.any() and answer.instances == ()
    assert answer.reason.startswith("no object has a score of 0.999 or more (no-target probability 0.")


def test_one_object_per_phrase(folders: dict[str, str]) -> None:
    settings = {"max_instances": 1, "instance_threshold": 0.0, "no_target": "none"}
    for name in ("grounding_dino", "sam3"):
        (answer,) = open_model(folders, name)(photograph((60, 80)), ["the red dog"], postprocess=settings)
        assert (len(answer.raw_instances) <= 1 and not answer.nothing_here) or not answer.raw_mask.any()
        assert (answer.raw_mask == (answer.raw_instances[0].mask if answer.raw_instances else False)).all()


def test_the_best_instance_is_kept_whatever_its_score(folders: dict[str, str]) -> None:
    """Data with one object per phrase needs an answer to every phrase."""
    for name in ("grounding_dino", "sam3"):
        inferencer = open_model(folders, name, **{"model.min_score": 1.0})
        (answer,) = inferencer(photograph((60, 80)), ["the red dog"], postprocess={"instance_threshold": 0.0})
        assert len(answer.raw_instances) == 1


def test_max_boxes(folders: dict[str, str]) -> None:
    inferencer = open_model(folders, "owlv2", **{"model.max_boxes": 2})
    (answer,) = inferencer(photograph((60, 80)), ["the red dog"])
    assert 1 <= len(answer.raw_instances) <= 2


def test_long_phrases_are_cut(folders: dict[str, str]) -> None:
    for name in MODELS:
        (answer,) = open_model(folders, name)(photograph((60, 80)), ["the red dog on the left of a cat " * 20])
        assert answer.raw_mask.shape == (60, 80)


def test_training_is_refused(folders: dict[str, str]) -> None:
    segmentor = open_model(folders, "sam3").segmentor
    assert not any(parameter.requires_grad for parameter in segmentor.parameters())
    with pytest.raises(UsageError, match=r"SAM3 cannot be trained here.*refseg calibrate"):
        segmentor.losses(None, None)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with an empty hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFSEG_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


@pytest.mark.usefixtures("empty_machine")
def test_missing_weights_name_the_remedy() -> None:
    with pytest.raises(DataError, match=r"hf download facebook/sam3.*--allow-download.*data/weights/sam3\. Gated"):
        ReferringInferencer("sam3")
    both = r'Run `hf download \S+/grounding-dino-base --exclude "\*.pt" && hf download \S+/sam2.1-hiera-large .*`'
    with pytest.raises(DataError, match=both):
        ReferringInferencer("grounded-sam2")
    with pytest.raises(DataError, match=r"There is no folder data/weights/typo\. Pass"):
        ReferringInferencer("sam3", cfg_options={"model.pretrained": "data/weights/typo"})


@pytest.mark.usefixtures("empty_machine")
def test_damaged_folders_name_the_remedy(folders: dict[str, str]) -> None:
    folder = Path("data/weights/sam3")
    shutil.copytree(folders["sam3"], folder)
    (folder / "model.safetensors").write_bytes(b"half a download")
    with pytest.raises(DataError, match=r"folder data/weights/sam3 is incomplete, damaged.*Download.*header"):
        ReferringInferencer("sam3")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"folder data/weights/sam3 is incomplete: it has no config.json, or no"):
        ReferringInferencer("sam3")


def test_images_that_are_too_thin_are_named(folders: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"1 x 500 pixels.*too thin for GroundingDinoImageProcessor.*Crop"):
        open_model(folders, "grounding_dino")(photograph((1, 500)), "a cat")
    assert open_model(folders, "owlv2")(photograph((1, 500)), "a cat")[0].mask.shape == (1, 500)


def test_images_that_are_too_thin_do_not_end_a_run(folders: dict[str, str]) -> None:
    sizes, failures = {"a": (60, 80), "thin": (1, 500), "b": (40, 40)}, []
    tasks = [(ImageInput(name, photograph(size)), ("a cat",)) for name, size in sizes.items()]
    inferencer = open_model(folders, "grounding_dino")
    answers = inferencer.stream(tasks, failed=lambda source, error: failures.append(str(error)))
    assert [answer.name for answer in answers] == ["a", "b"]
    assert len(failures) == 1 and failures[0].startswith("thin: An image of 1 x 500 pixels")


def test_scores_outside_of_the_range_are_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"SAM3.min_score is 7, but must be in \[0, 1\]"):
        open_model(folders, "sam3", **{"model.min_score": 7})


def test_another_kind_of_model_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"pretrained=.* is a model of type 'clipseg'. Valid types: sam3"):
        open_model({**folders, "sam3": folders["clipseg"]}, "sam3")
    with pytest.raises(ConfigError, match=r"pretrained=.* is a model of type 'sam3'. Valid types: clipseg"):
        open_model({**folders, "clipseg": folders["sam3"]}, "clipseg")
    with pytest.raises(ConfigError, match=r"model of type 'clipseg'. Valid types: grounding-dino"):
        GroundedSAM2(detector=folders["clipseg"], masks=folders["sam2"])
    with pytest.raises(ConfigError, match=r"model of type 'clipseg'. Valid types: sam2"):
        GroundedSAM2(detector=folders["owlv2"], masks=folders["clipseg"])


def test_incomplete_weights_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in Path(folders["owlv2"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state.pop("box_head.dense0.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"does not have all weights of Owlv2ForObjectDetection: 1 tensors"):
        open_model({**folders, "owlv2": str(tmp_path)}, "owlv2")


def test_an_old_version_of_transformers_is_named(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of_the_future"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"transformers .* does not know the architecture .* pip install -U"):
        open_model({**folders, "sam3": str(tmp_path)}, "sam3")
