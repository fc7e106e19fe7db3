"""The model that ships: its name, its notes, its example image, and its folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refseg
from refseg import shipped
from refseg.cli import main
from refseg.demo import rendering
from refseg.demo.examples import default_examples
from refseg.demo.limits import Limits
from refseg.demo.page import Page, Question
from refseg.errors import CheckpointError
from refseg.files import sha256_of
from refseg.inference.inferencer import ReferringInferencer, segment
from refseg.inference.loading import find_config, find_model, load_model
from refseg.inference.model_card import facts_of
from refseg.json_config import CONFIG
from refseg.shipped import EXAMPLES, IMAGE_NOTE, MODEL_NOTE, REFSHAPES, WEIGHTS, ShapesOnlyWarning, image_note
from work_dirs import WorkDir

MAX_BYTES = 5_000_000
SHIPPED = shipped.MODELS / REFSHAPES


@pytest.fixture
def stand_in(work_dir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put random weights in half precision in the place of the model that ships."""
    folder = tmp_path / "models" / REFSHAPES
    ReferringInferencer(work_dir("instalign_tiny_refshapes"), device="cpu").save_pretrained(folder, half=True)
    for file in SHIPPED.glob("example*"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(shipped, "MODELS", tmp_path / "models")
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture without a gray background: a sky above grass."""
    pixels = np.full((60, 80, 3), (120, 170, 220), np.uint8)
    pixels[30:] = (60, 120, 50)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class TestName:
    def test_name_is_found_from_any_folder(
        self, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / REFSHAPES).mkdir()
        assert find_model(REFSHAPES) == (stand_in / CONFIG, stand_in / WEIGHTS)
        assert find_config(REFSHAPES) == stand_in / CONFIG
        with pytest.raises(CheckpointError, match="No config in refshapes"):
            find_model("./refshapes")

    def test_missing_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shipped, "MODELS", tmp_path)
        with pytest.raises(CheckpointError, match=r"no weights for the model refshapes .*refseg quickstart"):
            find_model(REFSHAPES)


class TestNotes:
    def test_half_precision_becomes_single(self, stand_in: Path) -> None:
        """Each parameter is a float32 whose value fits into 16 bits."""
        with pytest.warns(ShapesOnlyWarning):
            inferencer = ReferringInferencer(REFSHAPES, device="cpu")
        parameters = list(inferencer.segmentor.parameters())
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        assert all(torch.equal(parameter, parameter.half().float()) for parameter in parameters)

    def test_segment_uses_the_model_and_warns_once(self, stand_in: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                answer = segment(refseg.example_image(), ["the red circle", "all stars"], device="cpu")
        mine = [warning for warning in caught if warning.category is ShapesOnlyWarning]
        assert [str(warning.message) for warning in mine] == [MODEL_NOTE]
        assert mine[0].filename == __file__
        assert len(answer) == 2 and answer.note == "" and answer[0].mask.shape == answer.size

    def test_photo_has_a_note(self, stand_in: Path, photo: Path) -> None:
        with pytest.warns(ShapesOnlyWarning, match=r"photo\.png \(and 1 more images\): this does not look like"):
            answers = segment([photo, photo, refseg.example_image()], "the red circle", device="cpu")
        assert [answer.note for answer in answers] == [IMAGE_NOTE, IMAGE_NOTE, ""]
        assert answers[0].to_dict()["note"] == IMAGE_NOTE

    def test_other_models_have_no_notes(self, work_dir: WorkDir, photo: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ShapesOnlyWarning)
            inferencer = ReferringInferencer(work_dir("instalign_tiny_refshapes"), device="cpu")
            assert inferencer(photo, "the red circle").note == ""

    def test_command(self, stand_in: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        arguments = ["predict", REFSHAPES, "--image", str(photo), str(SHIPPED / "example_0.png"), "--text", "a star"]
        assert main([*arguments, "--device", "cpu"]) == 0
        err = capsys.readouterr().err
        assert f"note: {MODEL_NOTE}\n" in err and f"note: {photo}: {IMAGE_NOTE}\n" in err
        assert "1 image unlike those that the model knows" in err and "ShapesOnlyWarning" not in err
        assert main([*arguments, "--device", "cpu", "--out", str(tmp_path / "answers")]) == 0
        rows = (tmp_path / "answers/predictions.jsonl").read_text().splitlines()[1:]
        assert [json.loads(row).get("note") for row in rows] == [IMAGE_NOTE, None]

    def test_web_page(self, stand_in: Path, photo: Path) -> None:
        with pytest.warns(ShapesOnlyWarning):
            page = Page(ReferringInferencer(REFSHAPES, device="cpu"), Limits())
        assert rendering.image_summary(page.open(str(photo), "a.png")).endswith(f"Note: {IMAGE_NOTE}.")
        assert rendering.time_summary(page.ask(Question(str(photo), "a.png", "a star", 0.5))).endswith(
            f"Note: {IMAGE_NOTE}."
        )
        example = str(refseg.example_image())
        assert "Note" not in rendering.time_summary(page.ask(Question(example, "b.png", "a star", 0.5)))


class TestImageNote:
    def test_refshapes_images(self, refshapes_images: list[str]) -> None:
        for file in refshapes_images:
            assert image_note(np.asarray(Image.open(file))) == ""

    @pytest.mark.parametrize(("color", "noted"), [((130, 130, 130), False), ((130, 130, 150), True),
                                                  ((60, 60, 60), True), ((255, 255, 255), True)])  # fmt: skip
    def test_color_of_the_background(self, color: tuple[int, int, int], noted: bool) -> None:
        assert bool(image_note(np.full((20, 30, 3), color, np.uint8))) == noted

    def test_share_of_the_background(self) -> None:
        """A gray frame is not enough: 1 - (24 / 32)^2 = 44 % of the image, below 45 %."""
        pixels = np.full((32, 32, 3), 130, np.uint8)
        assert not image_note(pixels)
        pixels[4:28, 4:28] = (200, 30, 30)
        assert image_note(pixels)


class TestFolder:
    """The folder in the repository. Without weights, only the examples are there."""

    def test_examples(self) -> None:
        """The README's phrases are those of the first example."""
        examples = default_examples(SHIPPED / CONFIG)
        assert len(examples) == 6 and all(example.image.is_file() and example.phrases for example in examples)
        assert refseg.example_image() == examples[0].image
        readme = (Path(__file__).parents[2] / "README.md").read_text()
        assert f"segment(example_image(), {json.dumps(list(examples[0].phrases[:2]))})" in readme

    def test_size(self) -> None:
        assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < MAX_BYTES

    def test_model_is_complete_and_answers(self) -> None:
        if not (SHIPPED / WEIGHTS).is_file():
            pytest.skip("this copy has no weights: tools/dev/ship_model.py writes them")
        names = {file.name for file in SHIPPED.iterdir()}
        assert {CONFIG, WEIGHTS, "words.txt", "README.md", EXAMPLES} <= names
        card = (SHIPPED / "README.md").read_text()
        assert all(word in card for word in ("never seen a", "gIoU", "seed", "Apache-2.0", "no_target"))
        assert sha256_of(SHIPPED / WEIGHTS) in card
        facts = facts_of(load_model(REFSHAPES, device="cpu"), SHIPPED / WEIGHTS)
        facts.pop("license")  # the card has it, the weights do not
        assert "unknown" not in facts.values(), "`refseg publish refshapes` writes these facts"
        assert facts["training"] == "seed 0, epochs 6, steps 1800"
        with pytest.warns(ShapesOnlyWarning):
            answer = segment(refseg.example_image(), ["the red circle", "all stars"], device="cpu")
        assert not answer[0].nothing_here and not answer[1].nothing_here
