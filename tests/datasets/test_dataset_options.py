"""Options of data sets that choose expressions, and mixtures of data sets."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from refer_files import annotation, image, ref, write_refer
from refseg.datasets.dataset import MixedDataset, ReferringDataset
from refseg.datasets.samplers import SampleKey
from refseg.errors import ConfigError, DataError


def dataset(files: dict, **options: object) -> ReferringDataset:
    return ReferringDataset(annotations=files, **{"pipeline": [], "image_root": "images", **options})


def texts(data: ReferringDataset, epoch: int = 0) -> list[list[str]]:
    return [[e.text for e in data.record(SampleKey(i, epoch)).expressions] for i in range(len(data))]


@pytest.fixture
def files(tmp_path: Path) -> dict:
    """Write image 1 with refs 1 (three sentences), 2, and 3 (no target); image 2 with refs 4 (a dog) and 5 (val)."""
    refs = [
        ref(1, 1, "A.", "B.", "C."),
        ref(2, [2, 3], "D."),
        ref(3, [-1], "E."),
        ref(4, 4, "F.", image_id=2),
        ref(5, 4, "G.", image_id=2, split="val"),
    ]
    annotations = [annotation(1), annotation(2), annotation(3), annotation(4, 2, category_id=2)]
    return write_refer(tmp_path, refs, annotations=annotations)


def test_published_training_protocols(files: dict) -> None:
    """Train has 4 objects and 6 sentences: 4 items for LAVT, 6 for ReLA, and one item per image without a limit."""
    lavt = dataset(files, split="train", sentences="one_per_object", expressions_per_image=1)
    assert len(lavt) == 4 and all(len(item) == 1 for item in texts(lavt))
    drawn = {text for epoch in range(30) for item in texts(lavt, epoch) for text in item}
    assert drawn == {"A.", "B.", "C.", "D.", "E.", "F."}
    rela = dataset(files, split="train", expressions_per_image=1)
    assert (
        sorted(text for item in texts(rela) for text in item) == ["A.", "B.", "C.", "D.", "E.", "F."] and len(rela) == 6
    )
    assert texts(dataset(files, split="train")) == [["A.", "B.", "C.", "D.", "E."], ["F."]]
    assert texts(dataset(files, split="val")) == [["G."]]
    assert len(dataset(files)) == 2


def test_text_field(files: dict) -> None:
    """The cleaned form in these files is the phrase in lower case."""
    assert texts(dataset(files, split="val", text_field="sent")) == [["g."]]


def test_image_root(files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = dataset(files, image_root="data/coco").record(SampleKey(0))
    assert record.image_path == "data/coco/COCO_train2014_000000000001.jpg"
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    assert dataset(files, image_root="data/coco").image_root == tmp_path / "coco"
    with pytest.raises(ConfigError, match="image_root is needed"):
        dataset(files, image_root=None)


def test_categories_and_no_target(files: dict) -> None:
    assert texts(dataset(files, split="train", categories="unseen")) == [["F."]]
    assert texts(dataset(files, split="train", categories=["person"])) == [["A.", "B.", "C.", "D."]]
    assert texts(dataset(files, split="train", no_target="drop")) == [["A.", "B.", "C.", "D."], ["F."]]
    with pytest.raises(DataError, match="no expression remains"):
        dataset(files, split="val", categories=["person"])


def test_negatives_are_of_absent_categories(files: dict) -> None:
    """Image 1 has persons, image 2 a dog: only F (a dog) can become a negative of image 1, only A-D of image 2."""
    data = dataset(files, split="train", negative_rate=0.5)
    seen: dict[str, Counter] = {"1": Counter(), "2": Counter()}
    for epoch in range(200):
        for item in range(2):
            key = SampleKey(item, epoch)
            record = data.record(key)
            sample = data.make_sample(key)  # the state, as the pipeline is empty
            assert sample.expressions[-1].text in ("E.", "F.", "A.", "B.", "C.", "D.")
            for before, after in zip(record.expressions, sample.expressions, strict=True):
                if after.tags.get("negative_of"):
                    assert (
                        before.referents and not after.referents and after.expression_id == before.expression_id + "~"
                    )
                    seen[record.image_id][after.text] += 1
                else:
                    assert after == before
    assert set(seen["1"]) == {"F."} and set(seen["2"]) == {"A.", "B.", "C.", "D."}
    # 4 expressions of image 1 have referents; a donor of 20 draws is F with a chance of 1 - (4/5)^20 = 0.99.
    assert seen["1"]["F."] == pytest.approx(200 * 4 * 0.5, rel=0.15)


def test_hard_negatives_are_about_another_kind(tmp_path: Path) -> None:
    """Image 1 has a man, image 2 a dog, so all four phrases have a hard negative."""
    refs = [ref(1, 1, "the tall man", "a man"), ref(4, 4, "the old dog", "a dog", image_id=2)]
    files = write_refer(tmp_path, refs, annotations=[annotation(1), annotation(4, 2, category_id=2)])
    data = dataset(files, split="train", hard_negative_rate=0.5)
    changed = []
    for key in (SampleKey(item, epoch) for epoch in range(50) for item in range(2)):
        for before, after in zip(data.record(key).expressions, data.make_sample(key).expressions, strict=True):
            if after != before:
                assert not after.referents and after.tags == {"negative_of": before.expression_id}
                assert ("dog" in before.text) != ("dog" in after.text), (before.text, after.text)
                changed.append(after)
    assert len(changed) == pytest.approx(50 * 4 * 0.5, rel=0.25)
    assert len(data.hard_negatives) == 4 and all(new for _, new in data.hard_negatives)


def test_the_rate_of_hard_negatives_is_a_share_of_all_phrases(tmp_path: Path) -> None:
    """Nothing is absent in image 1, which has a man and a dog, so the only phrase of image 2 is replaced more often."""
    refs = [ref(1, 1, "a man"), ref(2, 2, "the old dog"), ref(4, 4, "a dog", image_id=2)]
    boxes = [annotation(1), annotation(2, category_id=2), annotation(4, 2, category_id=2)]
    data = dataset(write_refer(tmp_path, refs, annotations=boxes), split="train", hard_negative_rate=0.25)
    samples = [data.make_sample(SampleKey(item, epoch)) for item in range(2) for epoch in range(100)]
    changed = [one for sample in samples for one in sample.expressions if one.tags.get("negative_of")]
    assert {one.text for one in changed} <= {"a man", "a person"} and {one.expression_id for one in changed} == {
        "4_40~"
    }
    assert len(changed) == pytest.approx(100 * 3 * 0.25, rel=0.25)


def test_negatives_need_categories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="negative_rate needs the category of every instance"):
        dataset(write_refer(tmp_path, [ref(1, 1)], categories=[]), negative_rate=0.1)


def test_leak_filter(files: dict, tmp_path: Path) -> None:
    """COCO image 2 is in the val split of another set under another file name, so 1 of 6 expressions (F) is dropped."""
    other = write_refer(
        tmp_path / "other",
        [ref(1, 1, image_id=77, split="val"), ref(2, 2, image_id=78)],
        images=[image(77, file_name="x/COCO_val2014_000000000002.jpg"), image(78, file_name="000000000001.jpg")],
        annotations=[annotation(1, 77), annotation(2, 78)],
    )
    data = dataset(files, split="train", exclude_images_of=[dict(annotations=other, split="val")])
    assert texts(data) == [["A.", "B.", "C.", "D.", "E."]]
    assert data.metainfo["leak_filter"] == {
        "against": [f"{other['refs']} val"],
        "dropped_images": 1,
        "dropped_expressions": 1,
    }
    assert dataset(files, split="train").metainfo["leak_filter"]["dropped_images"] == 0
    with pytest.raises(ConfigError, match="exclude_images_of takes dicts of annotations and split"):
        dataset(files, exclude_images_of=[other])


def test_hold_out(tmp_path: Path) -> None:
    """30 % of 200 images are 60, within three standard deviations of 6.5 images."""
    numbers = range(1, 201)
    files = write_refer(
        tmp_path,
        [ref(i, i, image_id=i) for i in numbers],
        images=[image(i) for i in numbers],
        annotations=[annotation(i, i) for i in numbers],
    )
    rest, out = (dataset(files, hold_out=dict(share=0.3, use=use)) for use in ("rest", "held_out"))
    rest_texts, out_texts = ({text for item in texts(data) for text in item} for data in (rest, out))
    assert not rest_texts & out_texts and len(rest_texts | out_texts) == 200
    assert len(out_texts) == pytest.approx(60, abs=20)
    with pytest.raises(ConfigError, match=r"Unknown hold_out\.use 'val'"):
        dataset(files, hold_out=dict(share=0.3, use="val"))


def test_limit_of_unreadable_annotations(tmp_path: Path) -> None:
    """Train has two bad refs and val none, so only train needs a limit of 2."""
    refs = [
        ref(1, 1),
        ref(2, 77),
        ref(3, 78),
        ref(4, 2, split="val"),
        ref(5, 79, split="testA"),
        ref(6, 1, split="testA"),
    ]
    files = write_refer(tmp_path, refs)
    assert len(dataset(files, split="val")) == 1
    with pytest.raises(DataError, match=r"2 annotations cannot be used, 1 are allowed(.|\n)*ref_id 2: ann_id 77"):
        dataset(files, split="train", max_bad_samples=1)
    data = dataset(files, split="train", max_bad_samples=2)
    assert len(data) == 1 and data.metainfo["unreadable_annotations"] == 2


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr("refseg.datasets.dataset.print_log", lambda message, *_: messages.append(message))
    return messages


def test_refs_without_sentences_are_not_counted_as_unreadable(tmp_path: Path, logged: list[str]) -> None:
    """gRefCOCO's released file has such refs. They are logged in one line and do not stop training or evaluation."""
    refs = [ref(1, [1]), *(ref(i, [1, 2], sentences=[]) for i in range(10, 30)), ref(2, [-1], split="val")]
    files = write_refer(tmp_path, refs, name="grefs(unc).json")
    for split in ("train", "val"):
        data = dataset(files, split=split)
        assert len(data) == 1 and data.metainfo["unreadable_annotations"] == 0
    assert [": 20 refs without sentences are skipped (train 20)" in message for message in logged] == [True, True]


PACKS = [dict(type="LoadImage"), dict(type="LoadText", tokenizer=dict(word_list="words.txt")), dict(type="PackSample")]


class TestCrowds:
    """Ref 1 refers to annotations 1 and 2, ref 2 to annotation 2, which is a crowd, and ref 3 to nothing."""

    @pytest.fixture
    def crowded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (10, 8)).save(tmp_path / image(1)["file_name"])
        (tmp_path / "words.txt").write_text("a\nb\n")
        # A crowd's mask: columns of 8, the last two of them.
        crowd = annotation(2, iscrowd=1, bbox=[8, 0, 2, 8], segmentation={"size": [8, 10], "counts": [64, 16]})
        return write_refer(tmp_path, [ref(1, [1, 2], "a"), ref(2, [2], "b"), ref(3, [-1], "a b")],
                           annotations=[annotation(1), crowd], name="grefs(unc).json")  # fmt: skip

    def test_excluded_in_training(self, crowded: dict, logged: list[str]) -> None:
        data = dataset(crowded, pipeline=PACKS, image_root=".")
        sample = data[0]
        assert sample.meta.texts == ("a", "a b") and sample.referents.tolist() == [[True], [False]]
        assert sample.instance_masks.sum() == 4 and not sample.instance_masks[..., 8:].any()
        assert data.metainfo["crowd_targets"] == "exclude" and data.metainfo["crowd_only_expressions"] == 1
        (warning,) = logged
        assert warning.startswith("1 of 3 expressions of ") and warning.endswith("crowd_targets='include' keeps them")

    def test_included_in_training(self, crowded: dict) -> None:
        sample = dataset(crowded, pipeline=PACKS, image_root=".", crowd_targets="include")[0]
        assert sample.meta.texts == ("a", "b", "a b")
        assert sample.referents.tolist() == [[True, True], [False, True], [False, False]]
        assert sample.instance_masks.sum((1, 2)).tolist() == [4, 16]

    def test_evaluation_keeps_crowds(self, crowded: dict) -> None:
        """Protocols decide about crowds. A data set without a pipeline, as in scoring, keeps them too."""
        packs = [*PACKS[:2], dict(type="PackSample", with_ground_truth=True)]
        truth = dataset(crowded, pipeline=packs, image_root=".")[0].ground_truth
        assert truth.referents == [(0, 1), (1,), ()]
        assert [instance.is_crowd for instance in truth.record.instances] == [False, True]
        assert texts(dataset(crowded)) == [["a", "b", "a b"]]

    def test_only_crowds(self, tmp_path: Path) -> None:
        files = write_refer(tmp_path / "c", [ref(1, 1)], annotations=[annotation(1, iscrowd=1)])
        with pytest.raises(DataError, match="no expression remains"):
            dataset(files, pipeline=PACKS[::2])

    def test_invalid_choice(self, crowded: dict) -> None:
        with pytest.raises(ConfigError, match=r"Unknown crowd_targets 'drop'\. Valid values: exclude, include"):
            dataset(crowded, crowd_targets="drop")


def test_split_of_unreadable_annotations(tmp_path: Path) -> None:
    """If no row of a split can be read, the error names the mistake in the rows."""
    (tmp_path / "own.jsonl").write_text('{"image": "a.png", "size": [4, 4], "text": "x", "target": [], "split": "val"}')
    with pytest.raises(DataError, match=r"no expression has split 'val'(.|\n)*line 1: unknown field 'target'"):
        dataset(dict(format="jsonl", file=str(tmp_path / "own.jsonl")), split="val")


def test_index_past_the_end(files: dict) -> None:
    data = dataset(files, split="train")
    with pytest.raises(IndexError):
        data[len(data)]
    assert len(list(data)) == len(data)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(sentences="some"), "Unknown sentences 'some'. Valid values: all, one_per_object"),
        (dict(text_field="text"), "Unknown text_field 'text'"),
        (dict(no_target="maybe"), "Unknown no_target 'maybe'"),
        (dict(negative_rate=1.0), "negative_rate must be in"),
        (dict(max_bad_samples=-1), "max_bad_samples must be a whole number of at least 0"),
        (dict(hold_out=dict(share=0.1)), "hold_out is dict"),
        (dict(hold_out=dict(share=2, use="rest")), "hold_out is dict"),
        (dict(categories=["persn"]), "no instance is a 'persn'; did you mean 'person'"),
        (dict(pipeline=[dict(type="LoadImage")]), "PackSample must be the last transform"),
        (dict(expressions_per_image=0), "expressions_per_image must be a whole number of at least 1"),
    ],
)
def test_invalid_options(files: dict, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dataset(files, **options)


def mixed(files: dict, weights: list[float] | None) -> MixedDataset:
    common = dict(type="ReferringDataset", annotations=files, image_root="i", pipeline=[], expressions_per_image=1)
    return MixedDataset(datasets=[dict(common, split="train"), dict(common, split="val")], weights=weights)


def drawn(data: MixedDataset, epoch: int) -> Counter:
    located = [data.locate(SampleKey(i, epoch, 5)) for i in range(len(data))]
    return Counter(part.record(key).expressions[0].text for part, key in located)


def test_mixture_weights(files: dict) -> None:
    """Train has 6 items, val 1. Weights 1.5 and 3 give 9 + 3 items. Each epoch repeats three other items of train."""
    assert drawn(mixed(files, None), 0) == Counter({f"{letter}.": 1 for letter in "ABCDEFG"})
    data = mixed(files, [1.5, 3])
    assert len(data) == 12
    counts = [drawn(data, epoch) for epoch in range(20)]
    assert all(count["G."] == 3 and sorted(count.values()) == [1, 1, 1, 2, 2, 2, 3] for count in counts)
    assert len({frozenset(text for text, n in count.items() if n == 2) for count in counts}) > 5
    assert counts == [drawn(data, epoch) for epoch in range(20)]
    assert [part["split"] for part in data.metainfo["mixture"]] == ["train", "val"]
    part = mixed(files, [0.5, 1])
    assert len(part) == 4 and len({text for epoch in range(30) for text in drawn(part, epoch)}) == 7


def test_rounds_of_a_mixture_have_their_own_draws(files: dict) -> None:
    data = mixed(files, [1, 4])
    keys = [data.locate(SampleKey(i, epoch))[1] for epoch in (0, 1) for i in range(6, 10)]
    assert len({(key.item, key.epoch) for key in keys}) == 8


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1]])
def test_invalid_weights(files: dict, weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="needs a weight above 0 for each of 2 sets"):
        mixed(files, weights)
