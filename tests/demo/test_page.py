"""Images and phrases of the web page with a real model: sessions, limits, HTML, and downloads."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refseg.datasets.masks import decode
from refseg.demo import rendering
from refseg.demo.limits import Limits, check_mask
from refseg.demo.page import Correction, Page, Question, Sessions, reduce_to
from refseg.errors import DataError, UsageError
from refseg.inference.clicks import Clicks
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.results import ImageAnswer, PhraseAnswer
from refseg.instance import Instance
from refseg.models.postprocess import LogitMask
from refseg.structures import SampleMeta
from refseg.visualization.answers import GridMap


@pytest.fixture(scope="module")
def inferencer(work_dir: Callable[[str], Path]) -> ReferringInferencer:
    """InstAlign, with every query as an instance, because random weights might find none."""
    options = {"instance_threshold": 0.0, "no_target": "none"}
    return ReferringInferencer(work_dir("instalign_tiny_refshapes"), device="cpu", postprocess=options)


@pytest.fixture
def page(inferencer: ReferringInferencer) -> Page:
    return Page(inferencer, Limits(kept_images=2))


class TestSessions:
    def encodings(self, page: Page, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return a list that grows by one with each encoded image."""
        counted: list[int] = []
        encode = page.inferencer.encode

        def counting(batch: object) -> object:
            counted.append(1)
            return encode(batch)

        monkeypatch.setattr(page.inferencer, "encode", counting)
        return counted

    def test_image_is_encoded_once(
        self, page: Page, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = self.encodings(page, monkeypatch)
        assert page.open(refshapes_images[0], "a.png").seconds > 0
        first = page.ask(Question(refshapes_images[0], "a.png", "the red circle", 0.5))
        second = page.ask(Question(refshapes_images[0], "a.png", "a square\nthe red circle", 0.3))
        assert len(counted) == 1 and first.opened.seconds == second.opened.seconds == 0
        page.open(refshapes_images[1], "a.png")
        assert len(counted) == 2, "images are identified by content and name"

    def test_most_recent_images_stay_open(
        self, page: Page, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two images stay open. After 0, 1, 0, 2 these are 0 and 2, because 0 was used after 1."""
        counted = self.encodings(page, monkeypatch)
        for number in (0, 1, 0, 2):
            page.open(refshapes_images[number], "a.png")
        assert len(counted) == 3
        page.open(refshapes_images[0], "a.png")
        assert len(counted) == 3
        page.open(refshapes_images[1], "a.png")
        assert len(counted) == 4

    def test_unused_images_are_deleted(self, inferencer: ReferringInferencer, refshapes_images: list[str]) -> None:
        """An image stays for a minute after its last use, which is second 50 here."""
        now = 0.0
        sessions = Sessions(inferencer, Limits(kept_minutes=1), clock=lambda: now)
        sessions.open(Path(refshapes_images[0]).read_bytes(), "a.png", "a")
        now = 50.0
        assert sessions.get("a") is not None and sessions.get("b") is None
        now = 109.0
        sessions.delete_old()
        assert len(sessions) == 1
        now = 110.0
        sessions.delete_old()
        assert len(sessions) == 0 and sessions.get("a") is None

    def test_names_are_private(self, page: Page, refshapes_images: list[str]) -> None:
        page.open(refshapes_images[0], "private name.png")
        assert page.ask(Question(refshapes_images[0], "other.png", "a square", 0.5)).answer.name == "other.png"


def test_same_answers_as_the_inferencer(page: Page, refshapes_images: list[str]) -> None:
    asked = page.ask(Question(refshapes_images[0], "a.png", "the red circle\n\na small triangle", 0.5))
    expected = page.inferencer(refshapes_images[0], ["the red circle", "a small triangle"])
    assert [phrase.text for phrase in asked.answer] == ["the red circle", "a small triangle"]
    for found, wanted in zip(asked.answer, expected, strict=True):
        assert np.array_equal(found.mask, wanted.mask)


def test_threshold_of_pixels(page: Page, refshapes_images: list[str]) -> None:
    areas = [
        page.ask(Question(refshapes_images[0], "a", "a square", t)).answer[0].mask.sum() for t in (0.05, 0.5, 0.95)
    ]
    assert areas[0] > areas[2] and areas[0] >= areas[1] >= areas[2]


def test_number_of_objects(inferencer: ReferringInferencer, refshapes_images: list[str]) -> None:
    """The best objects stay. The merged mask is that of all objects."""
    phrases = [
        Page(inferencer, Limits(objects=most)).ask(Question(refshapes_images[0], "a", "a square", 0.5)).answer[0]
        for most in (2, 100)
    ]
    assert len(phrases[0].instances) == 2 < len(phrases[1].instances)
    assert [one.score for one in phrases[0].instances] == [one.score for one in phrases[1].instances[:2]]
    assert np.array_equal(phrases[0].mask, phrases[1].mask)


def test_photos_are_turned_upright_and_reduced(inferencer: ReferringInferencer, tmp_path: Path) -> None:
    """A photo of 300 x 200 pixels to be turned by 90 degrees, reduced to 0.015 megapixels (a quarter)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.jpg", exif=exif)
    opened = Page(inferencer, Limits(answered_megapixels=0.015)).open(str(tmp_path / "a.jpg"), "a.jpg")
    assert (opened.full_size, opened.size) == ((300, 200), (150, 100))
    assert rendering.image_summary(opened).startswith(
        "a.jpg: 200 x 300 pixels, reduced to 100 x 150 (also the size of its masks);"
    )


def test_reduced_images_have_at_least_one_pixel_per_side() -> None:
    assert reduce_to(np.zeros((1, 10_000, 3), np.uint8), 0.0001).shape == (1, 1000, 3)
    small = np.zeros((10, 10, 3), np.uint8)
    assert reduce_to(small, 0.0001) is small


def test_error_messages(page: Page, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No image"):
        page.ask(Question(None, None, "a square", 0.5))
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"unknown format: b\.png"):
        page.open(str(tmp_path / "bad"), "../b.png")
    buffer = io.BytesIO()
    Image.effect_noise((50, 50), 50).save(buffer, "PNG")
    (tmp_path / "cut").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(DataError, match=r"truncated or corrupt: c\.png"):
        page.open(str(tmp_path / "cut"), "c.png")


class TestClicks:
    @pytest.fixture
    def clickable(self, inferencer: ReferringInferencer, tiny_sam2: str) -> Page:
        """A page whose model has SAM 2 beside it."""
        with_sam = ReferringInferencer(inferencer.loaded, postprocess={"no_target": "none"}, clicks=tiny_sam2)
        return Page(with_sam, Limits(clicks=3))

    def test_only_with_a_mask_model(self, page: Page, clickable: Page, refshapes_images: list[str]) -> None:
        assert clickable.can_correct and not page.can_correct
        page.ask(Question(refshapes_images[0], "a", "a square", 0.5))
        assert not page._answers, "answers are kept for clicks only"

    def test_corrections_in_order(self, clickable: Page, refshapes_images: list[str]) -> None:
        """The page's answer equals that of the API. The other phrase stays as it is."""
        corrections = (
            Correction(1, 0, Clicks(((20, 30, True),))),
            Correction(1, None, Clicks(((50, 60, False),))),
            Correction(1, None, Clicks(box=(5, 5, 60, 70))),
        )
        question = Question(refshapes_images[0], "a", "a square\nthe red circle", 0.4, corrections)
        asked = clickable.ask(question)
        session = clickable.inferencer.session(refshapes_images[0])
        before = session(["a square", "the red circle"], postprocess={"threshold": 0.4, "max_instances": 20})
        (expected,) = session.refine(before[1], points=[(20, 30, True)], instance=0)
        (expected,) = session.refine(expected, points=[(50, 60, False)])
        (expected,) = session.refine(expected, box=(5, 5, 60, 70))
        assert (asked.answer[1].mask == expected.mask).all() and asked.answer[1].clicks == expected.clicks
        assert (asked.answer[0].mask == before[0].mask).all() and asked.answer[0].clicks == ()
        assert "Corrected by clicks" not in rendering.phrase_summary(asked.answer[0])
        assert "; corrected by clicks" in rendering.phrase_summary(asked.answer[1])
        assert "refine" in rendering.time_summary(asked)

    def test_one_pass_for_a_click_and_none_to_undo(
        self, clickable: Page, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes = []
        decode = clickable.inferencer.prompted.decode
        monkeypatch.setattr(
            clickable.inferencer.prompted, "decode", lambda *args, **more: passes.append(1) or decode(*args, **more)
        )
        question = Question(refshapes_images[0], "a", "a square", 0.5)
        corrections: tuple[Correction, ...] = ()
        for x in (10, 20, 30):
            corrections += (Correction(0, None, Clicks(((x, 20, True),))),)
            clickable.ask(replace(question, corrections=corrections))
        assert len(passes) == 3
        undone = clickable.ask(replace(question, corrections=corrections[:1]))
        assert len(passes) == 3 and len(undone.answer[0].clicks[0].points) == 1
        # Answers that were dropped are made again
        clickable._answers.clear()
        again = clickable.ask(replace(question, corrections=corrections[:1]))
        assert len(passes) == 4 and (again.answer[0].mask == undone.answer[0].mask).all()
        for number in range(20):
            clickable.ask(replace(question, text=f"a square {number}"))
        assert len(clickable._answers) == clickable.limits.kept_answers

    def test_limits(self, clickable: Page, refshapes_images: list[str]) -> None:
        question = Question(refshapes_images[0], "a", "a square", 0.5)
        click = Correction(0, None, Clicks(((5, 5, True),)))
        with pytest.raises(UsageError, match=r"Too many clicks \(limit: 3\)"):
            clickable.ask(replace(question, corrections=(click,) * 4))
        for wrong in (replace(click, phrase=1), replace(click, instance=999)):
            with pytest.raises(UsageError, match=r"No such mask|no instance 999"):
                clickable.ask(replace(question, corrections=(wrong,)))

    def test_masks_to_choose_from(self, clickable: Page, refshapes_images: list[str]) -> None:
        question = Question(refshapes_images[0], "a", "a square\na circle", 0.5)
        answer = clickable.ask(question).answer
        choices = rendering.mask_choices(answer)
        assert choices[0] == ("1. \u201ca square\u201d", "0") and ("2. \u201ca circle\u201d", "1") in choices
        assert len(choices) == 2 + sum(len(phrase.instances) for phrase in answer)
        assert all(check_mask(value) for _, value in choices)

    def test_pictures_show_clicks(self, clickable: Page, refshapes_images: list[str]) -> None:
        """Points and boxes lie on the pixels of the image that were clicked, and only for the chosen mask."""
        points, box = Clicks(((20, 30, True), (70, 80, False))), Clicks(box=(5, 10, 60, 70))
        corrections = tuple(Correction(0, None, clicks) for clicks in (points, box))
        question = Question(refshapes_images[0], "a", "a square\na circle", 0.5)
        plain, drawn = (clickable.ask(replace(question, corrections=corrections[:count])).answer for count in (0, 2))
        picture = rendering.click_picture(drawn, 0, None, None)
        scale = picture.shape[0] / 96

        def color(x: float, y: float) -> tuple[int, ...]:
            return tuple(picture[round((y + 0.5) * scale) + 4, round((x + 0.5) * scale) + 3].tolist())

        assert color(20, 30) == rendering.ON and color(70, 80) == rendering.BESIDE
        assert tuple(picture[round(10 * scale) + 1, round(30 * scale)]) == rendering.ON
        other, before = (rendering.click_picture(answer, 1, None, None) for answer in (drawn, plain))
        assert np.array_equal(other, before)
        assert not np.array_equal(rendering.click_picture(plain, 1, None, (3, 4)), before), "the corner of a box"
        if plain[1].instances:
            assert np.array_equal(rendering.click_picture(plain, 1, 0, None), before)
        rejected = replace(plain[0], reason="no")
        answer = replace(plain, phrases=(rejected,))
        assert rendering.click_picture(answer, 0, None, None).shape == picture.shape


class TestRendering:
    """An answer with two instances on 4 x 4 pixels, and two empty answers."""

    @pytest.fixture
    def answer(self) -> ImageAnswer:
        one, other, none = (np.zeros((4, 4), bool) for _ in range(3))
        one[:2, :2], other[3, 3] = True, True
        meta = SampleMeta("a", "a.png", (4, 4), (4, 4), (), ())

        def drawn(mask: np.ndarray) -> LogitMask:
            return LogitMask(torch.where(torch.from_numpy(mask), 4.0, -4.0), (4, 4), meta)

        instances = (
            Instance(drawn(one), 0.9, (0.1, 0.6, 0.3), "<b>red</b> ${7*7}"),
            Instance(drawn(other), 0.8, (0.0, 0.0, 0.0)),
        )
        grid = GridMap(np.full((4, 4), 0.75), (4, 4))

        def phrase(
            text: str, mask: LogitMask, prob: float | None, instances: tuple | None, **more: object
        ) -> PhraseAnswer:
            return PhraseAnswer("0", mask, prob, None, instances, text=text, probability=grid, **more)

        phrases = (
            phrase("the <b>red</b> ${7*7}", drawn(one | other), 0.25, instances, reason="", aligned=True),
            phrase("a dog", drawn(one), 0.9, (), reason="no-target probability 0.90, above 0.5"),
            phrase(
                "a <cat>", drawn(none), None, None, reason="the model does not know: <cat>", unknown_words=("<cat>",)
            ),
        )
        return ImageAnswer("../a&b.png", np.zeros((4, 4, 3), np.uint8), phrases)

    def test_phrase_summaries(self, answer: ImageAnswer) -> None:
        """Five of 16 pixels are 31.25 %."""
        assert [rendering.phrase_summary(phrase) for phrase in answer] == [
            "2 objects, 31.2 % of the image, score 0.75.",
            "Nothing here: no-target probability 0.90, above 0.5.",
            "Nothing here: the model does not know: <cat>.",
        ]

    def test_html_is_complete_and_escaped(self, answer: ImageAnswer) -> None:
        """The first object has bars under "<b>red</b>", with 0.6 of 0.1, 0.6, and 0.3, and under "${7*7}"."""
        html = rendering.answers_html(answer)
        assert html.count("<article>") == 3 and html.count("<img ") == 1
        assert html.count('class="nothing"') == 2 and html.count("Nothing here") == 2
        assert html.count('<i class="bar hue-0">') == 2 and "hue-1" not in html
        assert "1: <bdi>&lt;b&gt;red&lt;/b&gt; ${7*7}</bdi> (0.90) \u00b7 2 (0.80)</p>" in html
        assert "<b>" not in html and "&lt;b&gt;red&lt;/b&gt;" in html
        assert "http" not in html and "<cat>" not in html

    def test_unmeasured_words_are_not_shown(self, answer: ImageAnswer) -> None:
        unmeasured = replace(answer[0], aligned=False)
        html = rendering.answers_html(replace(answer, phrases=(unmeasured,)))
        assert "bar hue" not in html and "<table" not in html and html.count("<img ") == 1

    def test_table_of_word_weights(self, answer: ImageAnswer) -> None:
        """The largest weight has the strongest color, 45 %. Weights of zero have no color."""
        html = rendering.answers_html(answer)
        assert '<td style="background: rgb(0 114 178 / 45%)">0.60</td>' in html
        assert html.count("<table>") == 1 and html.count("<tr>") == 3 and html.count("/ 0%)") == 3

    def test_downloads(self, answer: ImageAnswer, tmp_path: Path) -> None:
        masks, json_file = rendering.write_downloads(answer, tmp_path)
        assert (masks.name, json_file.name) == ("a_b_masks.zip", "a_b.json")
        with zipfile.ZipFile(masks) as archive:
            assert archive.namelist() == [
                "0_the_b_red_b_7_7.png", "0_the_b_red_b_7_7_object1.png", "0_the_b_red_b_7_7_object2.png",
                "1_a_dog.png", "2_a_cat.png",
            ]  # fmt: skip
            first = np.asarray(Image.open(io.BytesIO(archive.read("0_the_b_red_b_7_7.png"))))
            assert np.array_equal(first, answer[0].mask)
            assert not np.asarray(Image.open(io.BytesIO(archive.read("1_a_dog.png")))).any()
        found = json.loads(json_file.read_text())
        assert np.array_equal(decode(found["phrases"][0]["mask"]), answer[0].mask)
        assert [phrase["nothing_here"] for phrase in found["phrases"]] == [False, True, True]

    def test_time_summary(self, page: Page, refshapes_images: list[str]) -> None:
        first = page.ask(Question(refshapes_images[0], "a.png", "a square", 0.5))
        assert "1 phrase in" in rendering.time_summary(first) and "image encoded in" in rendering.time_summary(first)
        second = page.ask(Question(refshapes_images[0], "a.png", "a square\na circle", 0.5))
        assert rendering.time_summary(second).endswith("the image was already encoded.")

    def test_models_that_fuse_text_into_the_encoder(
        self, work_dir: Callable[[str], Path], refshapes_images: list[str]
    ) -> None:
        fused = Page(ReferringInferencer(work_dir("lavt_tiny_refshapes"), device="cpu"), Limits())
        asked = fused.ask(Question(refshapes_images[0], "a.png", "a square", 0.5))
        assert "encodes the image again" in rendering.time_summary(asked)
        assert "<table" not in rendering.answers_html(asked.answer)
