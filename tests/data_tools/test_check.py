"""`refseg data check`: a complete set is OK, and each kind of damage is reported with its file or record."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refer_files import annotation, ref, square
from refseg.cli import main
from refseg.data_tools import check_images
from refseg.data_tools.check import check_target
from refseg.data_tools.check_images import box_fault, damage_reported
from refseg.data_tools.check_splits import swapped_splits
from refseg.data_tools.issues import DataIssue, DataReport, report_lines
from refseg.datasets import images as images_module
from refseg.datasets.catalog import Counts
from refseg.datasets.images import read_image
from refseg.datasets.targets import resolve
from refseg.errors import UsageError


def check(small_set: Any, images: Any = "quick", **changes: Any) -> DataReport:
    return check_target(small_set.target(**changes), images)


def only(report: DataReport, kind: str, severity: str = "defect") -> DataIssue:
    """Return the issue of this kind, which is the only one of its severity."""
    found = [finding for finding in report.findings if finding.severity == severity]
    assert [finding.kind for finding in found] == [kind], report.findings
    return found[0]


@pytest.mark.parametrize("images", ["quick", "all", "none"])
def test_complete_set_is_ok(small_set: Any, images: str) -> None:
    report = check(small_set, images)
    assert (report.verdict, report.findings) == ("OK", [])
    assert report.counts == small_set.target().counts


# Each kind of damage --------------------------------------------------------------------------------------------------


def missing_image(small_set: Any) -> None:
    small_set.image_file(7).unlink()


def truncated_jpeg(small_set: Any) -> None:
    whole = small_set.image_file(3).read_bytes()
    small_set.image_file(3).write_bytes(whole[: len(whole) * 2 // 3])


def dangling_annotation(small_set: Any) -> None:
    small_set.change_refs(lambda refs: refs[1].update(ann_id=999_999))


def swap_two_splits(small_set: Any) -> None:
    other = {"train": "val", "val": "train"}
    small_set.change_refs(lambda refs: [r.update(split=other.get(r["split"], r["split"])) for r in refs])


def wrong_count(small_set: Any) -> None:
    small_set.change_refs(lambda refs: refs.pop())


DAMAGE: dict[str, tuple[Callable[[Any], None], str, list[str]]] = {
    "missing image": (missing_image, "missing image", ["COCO_train2014_000000000007.jpg", "image 7", "not there"]),
    "truncated JPEG": (truncated_jpeg, "unreadable image", ["COCO_train2014_000000000003.jpg", "truncated"]),
    "dangling annotation id": (dangling_annotation, "annotation", ["refs(unc).p", "ref_id 11", "999999", "train"]),
    "swapped splits": (swap_two_splits, "swapped splits", ["refs(unc).p", "'train' and 'val'"]),
    "wrong count": (wrong_count, "wrong count", ["refs(unc).p", "'testA'", "1 refs instead of 2"]),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("images", ["quick", "all"])
def test_damage_is_reported(small_set: Any, name: str, images: str) -> None:
    damage, kind, words = DAMAGE[name]
    damage(small_set)
    report = check(small_set, images)
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1 and found[0].severity == "defect" and found[0].remedy
    text = f"{found[0].place}: {found[0].message}"
    assert all(word in text for word in words), text
    # A skipped ref also changes the counts of its split. Nothing else is reported.
    others = {finding.kind for finding in report.findings} - {kind}
    assert others <= ({"wrong count"} if kind == "annotation" else set())


def test_all_damage_at_once(small_set: Any, capsys: pytest.CaptureFixture) -> None:
    """The count is wrong in testA only. The swap of train and val is reported once, as a swap."""
    for damage, _, _ in DAMAGE.values():
        damage(small_set)
    report = check(small_set)
    for _, kind, words in DAMAGE.values():
        texts = [f"{f.place}: {f.message}" for f in report.findings if f.kind == kind]
        assert any(all(word in text for word in words if word != "train") for text in texts), (kind, texts)
    assert "testA" in next(f.message for f in report.findings if f.kind == "wrong count" and "testA" in f.message)
    printed = "\n".join(report_lines(report, everything=False))
    assert all(kind in printed for _, kind, _ in DAMAGE.values())


def test_image_of_another_size(small_set: Any) -> None:
    Image.new("RGB", (4, 4)).save(small_set.image_file(2))
    finding = only(check(small_set), "unreadable image")
    assert "[4, 4]" in finding.message and "[8, 10]" in finding.message


def test_decoding_detects_damage_inside_a_png(small_set: Any) -> None:
    """Header and end are intact, so `quick` misses the damage."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3), np.uint8)
    Image.fromarray(pixels).save(small_set.image_file(2), format="PNG")
    content = bytearray(small_set.image_file(2).read_bytes())
    content[60:90] = bytes(30)
    small_set.image_file(2).write_bytes(content)
    assert check(small_set).verdict == "OK"
    assert only(check(small_set, "all"), "unreadable image").place.endswith("000000000002.jpg")


def jpeg_damaged_in_the_middle() -> bytes:
    """Return a JPEG of 80 x 60 whose third quarter of data is 0. Its header and end are intact."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(buffer, "JPEG", quality=95)
    content = bytearray(buffer.getvalue())
    start, end = len(content) // 2, len(content) * 3 // 4
    content[start:end] = bytes(end - start)
    return bytes(content)


@pytest.mark.parametrize("workers", [1, 2])
def test_decoding_detects_damage_inside_a_jpeg(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder returns half an image and reports it on stderr only."""
    monkeypatch.setattr(check_images, "CHUNK", 1)
    (tmp_path / "half.jpg").write_bytes(jpeg_damaged_in_the_middle())
    Image.new("RGB", (80, 60)).save(tmp_path / "whole.jpg")
    assert read_image(str(tmp_path / "half.jpg"), (60, 80)).shape == (60, 80, 3)
    rows = [{"image": name, "size": [60, 80], "text": "it", "targets": None} for name in ("half.jpg", "whole.jpg")]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (target,) = resolve(str(tmp_path / "my.jsonl"))
    assert check_target(target).verdict == "OK"
    finding = only(check_target(target, "all", workers=workers), "damaged image")
    assert finding.place.endswith("half.jpg") and "Corrupt JPEG data" in finding.message


def test_other_output_reaches_stderr(capfd: pytest.CaptureFixture) -> None:
    with damage_reported() as messages:
        os.write(2, b"a warning\nPremature end of JPEG file\n")
    os.write(2, b"later\n")
    assert messages == ["Premature end of JPEG file"]
    assert capfd.readouterr().err == "a warning\nlater\n"


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is an error of the machine, not of the image."""

    def refuse() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UsageError, match="No usable temporary directory"), damage_reported():
        pass


@pytest.mark.parametrize("images", ["quick", "all"])
def test_image_without_read_permission(small_set: Any, images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is simulated, because root (in containers) may read everything."""
    name = str(small_set.image_file(4))

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(check_images, "open", refuse, raising=False)
    monkeypatch.setattr(images_module, "open", refuse, raising=False)
    finding = only(check(small_set, images), "unreadable image")
    assert finding.place == name and "Permission denied" in finding.message and finding.remedy


def test_generated_file_without_read_permission(small_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("refseg.data_tools.check.sha256_of", refuse)
    files = {str(small_set.refs_file): "0" * 64}
    assert "Permission denied" in only(check(small_set, files=files), "unreadable file").message


def test_image_in_two_splits(small_set: Any) -> None:
    """One of the two refs of image 1 is in val: the counts are wrong, and the image is reported."""
    small_set.change_refs(lambda refs: refs[1].update(split="val"))
    report = check(small_set)
    found = [finding for finding in report.findings if finding.kind == "image in two splits"]
    assert len(found) == 1 and "image 1" in found[0].place and "'train' and of 'val'" in found[0].message
    assert [f.kind for f in check(small_set, split_by="object", counts={}).findings] == ["images in two splits"]
    by_object = check(small_set, split_by="object", counts={})
    assert by_object.verdict == "OK" and by_object.findings[0].severity == "note"
    assert check(small_set, split_by=None, counts={}).verdict == "1 warning"


def test_empty_mask_of_a_target_is_a_defect(small_set: Any) -> None:
    """Annotations 10 and 71 lie outside of the image. Only 10 is a target."""

    def change(content: dict) -> None:
        for entry in content["annotations"]:
            if entry["id"] in (10, 71):
                entry["segmentation"] = [square(90.0, 1.0)]

    small_set.change_instances(change)
    report = check(small_set)
    assert "instance 10" in only(report, "empty mask").place
    assert "no expression refers to it" in only(report, "empty mask", "warning").message


def test_boxes(small_set: Any) -> None:
    small_set.change_instances(lambda content: content["annotations"][0].update(bbox=[5, 1, 9, 2]))
    finding = only(check(small_set), "box")
    assert "not inside the image of 10 x 8" in finding.message
    assert box_fault((0, 0, 10.9, 8), (8, 10)) == ""
    assert "no area" in box_fault((0, 0, 0, 8), (8, 10))


def test_ref_id_used_twice(small_set: Any) -> None:
    small_set.change_refs(lambda refs: refs[2].update(ref_id=refs[0]["ref_id"]))
    assert only(check(small_set), "ref_id used twice", "warning").place.endswith("ref_id 10")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "not found"), (b"\x80\x02", "truncated"), (pickle.dumps({"a": 1}), "not a list of refs")],
)
def test_unusable_annotation_files(small_set: Any, content: bytes | None, words: str) -> None:
    small_set.refs_file.unlink()
    if content is not None:
        small_set.refs_file.write_bytes(content)
    assert words in only(check(small_set), "annotation file").message


def test_missing_image_folder_is_reported_once(small_set: Any) -> None:
    finding = only(check(small_set, image_root=str(small_set.root / "nowhere")), "image folder")
    assert finding.place.endswith("nowhere") and "the image archive" in finding.remedy


def test_unverified_counts_are_warnings(small_set: Any) -> None:
    counts = {**small_set.target().counts, "val": Counts(None, 3, 7)}
    report = check(small_set, counts=counts, verified=False)
    assert report.verdict == "1 warning" and "unverified" in report.findings[0].remedy


def test_refs_without_sentences_are_a_note(small_set: Any) -> None:
    small_set.change_refs(lambda refs: refs.append(ref(99, 10, sentences=[])))
    report = check(small_set)
    finding = only(report, "skipped entries", "note")
    assert report.verdict == "OK" and finding.message.startswith("1 ref without sentences is skipped (train 1)")


def test_crowds_as_targets(small_set: Any) -> None:
    """Annotation 10 is first the only target of two sentences, and then a target beside annotation 11."""
    small_set.change_instances(lambda content: content["annotations"][0].update(iscrowd=1))
    finding = only(check(small_set), "crowd regions as targets", "warning")
    assert finding.message.startswith("2 expressions refer to crowd regions (iscrowd 1), 2 of them to nothing else")
    small_set.change_refs(lambda refs: refs[0].update(ann_id=[10, 11]))
    report = check(small_set)
    assert "0 of them" in only(report, "crowd regions as targets", "note").message and report.verdict == "OK"


def test_refs_of_seen_and_unseen_classes(small_set: Any) -> None:
    """The 12 train refs are 9 persons, a dog (unseen), a dog with a person, and a stop sign (neither)."""

    def change(content: dict) -> None:
        content["categories"] += [{"id": 3, "name": "stop sign"}]
        content["annotations"][0]["category_id"] = 2  # annotation 10: the first ref of train
        content["annotations"][3]["category_id"] = 3  # annotation 21: the second ref of image 2

    small_set.change_instances(change)
    small_set.change_refs(lambda refs: refs[1].update(ann_id=[10, 11]))
    published = {"train": (9, 1), "val": (3, None), "test": (2, 0)}
    note = only(check(small_set, seen_unseen=published), "refs of seen and unseen classes", "note")
    assert note.message == (
        "train 9 seen, val 3 seen, test 2 seen, train 1 unseen, test 0 unseen: as in CGFormer's code"
    )
    report = check(small_set, seen_unseen={"train": (10, 1)})
    assert "train 9 seen (not 10)" in only(report, "refs of seen and unseen classes", "warning").message


def test_unknown_split(small_set: Any) -> None:
    small_set.change_refs(lambda refs: [r.update(split="dev") for r in refs if r["split"] == "testA"])
    kinds = {(f.severity, f.kind) for f in check(small_set).findings}
    assert kinds == {("defect", "wrong count"), ("warning", "unknown split")}


def test_several_processes_give_the_same_result(small_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from refseg.datasets.annotations import open_annotations

    missing_image(small_set)
    truncated_jpeg(small_set)
    monkeypatch.setattr(check_images, "CHUNK", 4)
    target = small_set.target()
    checker = check_images.ImageChecker(open_annotations(**target.annotations), target.images, "all", "", "")
    alone = check_images.check_images(checker, workers=1)
    assert len(alone) == 2 and check_images.check_images(checker, workers=2) == alone


def test_empty_file_is_a_defect(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "my.jsonl").write_text("")
    assert main(["data", "check", str(tmp_path / "my.jsonl")]) == 1
    assert "there is no usable expression" in capsys.readouterr().out


def test_control_characters_of_names_are_replaced() -> None:
    report = DataReport("a", "b", [], findings=[DataIssue("defect", "missing image", "x\x1b[2J\ud800.jpg", "gone")])
    (line,) = [line for line in report_lines(report, everything=True) if "gone" in line]
    assert line == "    x\ufffd[2J\ufffd.jpg: gone"


class TestSwappedSplits:
    """Detection of swapped splits from their counts."""

    EXPECTED = {"train": Counts(100, 50, 300), "val": Counts(10, 5, 30), "testA": Counts(9, 5, 28)}

    def test_none(self) -> None:
        assert swapped_splits(self.EXPECTED, self.EXPECTED) == []

    def test_pair(self) -> None:
        found = {**self.EXPECTED, "train": self.EXPECTED["val"], "val": self.EXPECTED["train"]}
        assert swapped_splits(found, self.EXPECTED) == [("train", "val")]

    def test_similar_splits(self) -> None:
        found = {**self.EXPECTED, "testA": self.EXPECTED["val"], "val": self.EXPECTED["testA"]}
        assert swapped_splits(found, self.EXPECTED) == [("val", "testA")]

    def test_pair_with_missing_entries(self) -> None:
        found = {**self.EXPECTED, "train": Counts(9, 5, 29), "val": Counts(99, 50, 295)}
        assert swapped_splits(found, self.EXPECTED) == [("train", "val")]

    def test_incomplete_split_that_resembles_another(self) -> None:
        """Val lost a ref and has the expected counts of testA, which is complete."""
        found = {**self.EXPECTED, "val": Counts(9, 5, 28)}
        assert swapped_splits(found, self.EXPECTED) == []


# The command ----------------------------------------------------------------------------------------------------------


def test_command_on_a_data_root(small_set: Any, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """The folder `refcoco` counts as RefCOCO, whose counts it does not have."""
    out = tmp_path / "report.json"
    assert main(["data", "check", "--data-root", str(small_set.root), "--json", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "12 (not 42,404)" in printed and "refcoco  4 defects, 1 warning" in printed
    report = json.loads(out.read_text())
    assert report["defects"] == 4 and report["sets"][0]["verdict"] == "4 defects, 1 warning"
    assert report["sets"][0]["counts"]["train"] == {"refs": 12, "images": 6, "sentences": 18}


def test_long_lists_are_truncated(small_set: Any, capsys: pytest.CaptureFixture) -> None:
    for number in range(1, 12):
        small_set.image_file(number).unlink()
    command = ["data", "check", str(small_set.root / "refcoco")]
    assert main(command) == 1
    assert "... and 1 more (--all, or --json FILE)" in capsys.readouterr().out
    assert main([*command, "--all"]) == 1
    assert capsys.readouterr().out.count("is not there") == 11


def test_jsonl_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "size": [8, 10], "text": "it", "targets": [[square(1.0, 1.0)]], "split": "train"}
    file = tmp_path / "my.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert main(["data", "check", str(file)]) == 0
    assert "OK" in capsys.readouterr().out
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "targets": ["m.png"], "image": "b.png"}) + "\n{\n")
    assert main(["data", "check", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "line 3" in printed and "b.png" in printed and "m.png" in printed and "3 defects" in printed


def test_the_same_phrase_with_different_targets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two rows of one object are fine, even if their outlines differ. Two objects, or none and one, are reported."""
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (10, 8)).save(tmp_path / "b.png")
    one, two = [square(1.0, 1.0)], [square(5.0, 4.0)]
    again = [[1.0, 3.0, 1.0, 1.0, 3.0, 1.0, 3.0, 3.0]]
    assert sorted(again[0]) == sorted(one[0]) and again != one

    def rows(*pairs: tuple[str, list | None], image: str = "a.png") -> str:
        made = [{"image": image, "size": [8, 10], "text": text, "targets": targets} for text, targets in pairs]
        return "".join(json.dumps(row) + "\n" for row in made)

    def check(content: str) -> str:
        (tmp_path / "my.jsonl").write_text(content)
        assert main(["data", "check", str(tmp_path / "my.jsonl")]) == 0
        return capsys.readouterr().out

    good = rows(
        ("dog", [one]), ("Dog ", [again]), ("cat", None), ("cat", None), ("both", [one, two]), ("both", [two, one])
    )
    assert "OK" in check(good + rows(("dog", [two]), image="b.png"))
    printed = check(rows(("the  dog", [one]), ("The dog", [two]), ("x", [one])))
    assert "warning: the same phrase with different targets (1)" in printed and "1 warning" in printed
    assert "image a.png, 'the  dog': is in 2 rows with different targets (a.png:0, a.png:1)" in printed
    printed = check(rows(("dog", [one]), ("x", [one]), ("dog", None)))
    assert "warning: the same phrase with and without a target (1)" in printed
    assert "(a.png:0, a.png:2)" in printed and "delete the row that is wrong" in printed


def test_the_same_phrase_in_a_known_set_is_a_note(small_set: Any) -> None:
    refs = pickle.loads(small_set.refs_file.read_bytes())
    for entry in refs:
        for sentence in entry["sentences"]:
            sentence["raw"] = sentence["sent"] = "it"
    small_set.refs_file.write_bytes(pickle.dumps(refs))
    found = [
        one for one in check_target(small_set.target()).findings if one.kind == "the same phrase with different targets"
    ]
    assert len(found) == 6 and {one.severity for one in found} == {"note"}


def test_binary_files_get_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "refs.p").write_bytes(pickle.dumps([{"ref_id": 1}]))
    (tmp_path / "wide.jsonl").write_text("{}", encoding="utf-16")
    for name in ("photo.jpg", "refs.p", "wide.jsonl"):
        assert main(["data", "check", str(tmp_path / name)]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert f"{name} is not a JSONL file" in printed.err
    (tmp_path / "long.jsonl").write_text(json.dumps({"image": "\u00e9" * 3000}, ensure_ascii=False), encoding="utf-8")
    assert main(["data", "check", str(tmp_path / "long.jsonl")]) == 1
    assert "field 'text' is missing" in capsys.readouterr().out, "a character that is cut off at 4096 bytes is text"


def test_images_beside_a_link_to_annotations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Data sets look beside the link. The target of the link has no images beside it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "used").mkdir()
    Image.new("RGB", (10, 8)).save(tmp_path / "used" / "a.png")
    row = {"image": "a.png", "size": [8, 10], "text": "it", "targets": [[square(1.0, 1.0)]]}
    (tmp_path / "store" / "my.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "used" / "link.jsonl").symlink_to(tmp_path / "store" / "my.jsonl")
    code = main(["data", "check", str(tmp_path / "used" / "link.jsonl")])
    assert code == 0, capsys.readouterr().out


def test_known_folder_that_is_a_link(
    small_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the link counts, and images are beside the link."""
    (small_set.root / "refcoco").rename(tmp_path / "annotations-v1")
    (small_set.root / "refcoco").symlink_to(tmp_path / "annotations-v1")
    monkeypatch.chdir(small_set.root)
    assert main(["data", "check", "refcoco/"]) == 1
    printed = capsys.readouterr().out
    assert "12 (not 42,404)" in printed and "image folder" not in printed and "missing image" not in printed


def test_generated_folder_that_is_a_link(refshapes_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(refshapes_tiny)
    code = main(["data", "check", "--data-root", str(tmp_path / "data")])
    printed = capsys.readouterr().out
    assert code == 0 and "shapes/refshapes.jsonl" in printed, printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["refcoc"], "did you mean refcoco"),
        (["none.jsonl"], "no such file or folder: none.jsonl"),
        (["--data-root", "nowhere"], "`refseg data layout` shows"),
        (["my.jsonl", "--json", "my.jsonl/report.json"], "cannot be written"),
        (["."], "was not made by `refseg data refshapes`"),
    ],
)
def test_user_errors_are_one_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("")
    assert main(["data", "check", *arguments]) == 1
    err = capsys.readouterr().err
    assert "refseg data: error: " in err and says in err and "Traceback" not in err


class TestRefShapes:
    """A generated folder is checked in each of its layouts against its meta.json."""

    @pytest.fixture
    def folder(self, refshapes_tiny: Path, tmp_path: Path) -> Path:
        import shutil

        return Path(shutil.copytree(refshapes_tiny, tmp_path / "rs", ignore=shutil.ignore_patterns(".refseg_cache")))

    def test_complete(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        code = main(["data", "check", str(folder), "--images", "all"])
        printed = capsys.readouterr().out
        assert code == 0, printed
        assert "rs/refshapes.jsonl  OK" in printed

    def test_changed(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        lines = (folder / "refshapes.jsonl").read_text().splitlines(keepends=True)
        (folder / "refshapes.jsonl").write_text("".join(lines[1:]))
        assert main(["data", "check", str(folder)]) == 1
        printed = capsys.readouterr().out
        assert "changed file" in printed and "143 sentences instead of 144" in printed

    def test_swapped_splits_of_a_layout(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        file = folder / "grefcoco" / "grefs(unc).json"
        refs = json.loads(file.read_text())
        other = {"train": "val", "val": "train"}
        file.write_text(json.dumps([{**ref, "split": other.get(ref["split"], ref["split"])} for ref in refs]))
        assert main(["data", "check", str(folder), "--images", "none"]) == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert "splits 'train' and 'val' look exchanged" in printed and "rs/grefcoco 2 defects" in printed
        assert "wrong count" not in printed


def test_annotations_helper_is_inside_its_image() -> None:
    """The boxes of the small set are valid: 2 x 2 at (id % 5, 1)."""
    assert box_fault(tuple(annotation(4)["bbox"]), (8, 10)) == ""
