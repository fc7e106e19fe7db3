"""Limits of the web page: number and length of phrases, size and format of files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from refseg.demo.limits import (
    Limits,
    check_click,
    check_mask,
    check_phrases,
    check_threshold,
    delete_old_files,
    display_name,
    read_upload,
)
from refseg.errors import DataError, UsageError

LIMITS = Limits(phrases=3, letters=10, upload_mb=0.01, megapixels=0.01)


class TestPhrases:
    def test_one_per_line_without_duplicates(self) -> None:
        assert check_phrases(" a  dog \n\n\r\na dog\n\tcat\x00s\n", LIMITS) == ("a dog", "cat s")

    def test_other_scripts(self) -> None:
        assert check_phrases("红色的圆\nमैं\u200dहूँ", LIMITS) == ("红色的圆", "मैं\u200dहूँ")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "Write at least one phrase"),
            (" \n\x00", "Write at least one phrase"),
            ("a\nb\nc\nd", r"Too many phrases: 4 \(limit: 3\)"),
            ("a\n" + "b" * 11, r"has 11 characters \(limit: 10\)"),
            (None, "Phrases must be text"),
            ({"path": "/etc/passwd"}, "Phrases must be text"),
        ],
    )
    def test_invalid(self, text: object, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            check_phrases(text, LIMITS)


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), True, "0.5", None])
def test_invalid_thresholds(value: object) -> None:
    assert check_threshold(0.05) == 0.05
    with pytest.raises(UsageError, match="between 0 and 1"):
        check_threshold(value)


def test_masks() -> None:
    assert [check_mask("0"), check_mask("12:3")] == [(0, None), (12, 3)]
    for value in (None, 0, "", "-1", "1:", "1:2:3", "1234", "\u0663", {"path": "/etc/passwd"}, ["0"]):
        with pytest.raises(UsageError, match="No such mask"):
            check_mask(value)


def test_clicks() -> None:
    """An image of 10 x 20 pixels, shown at 30 x 60: three pixels of the picture are one of the image."""
    places = [[0, 0], [2, 2], [3, 3], [59, 29], [59.9, 29.9]]
    assert [check_click(place, (30, 60), (10, 20)) for place in places] == [(0, 0), (0, 0), (1, 1), (19, 9), (19, 9)]
    assert check_click([10, 10], (30, 60), (3000, 6000)) == (1050, 1050), "the middle of a reduced pixel"
    nan = float("nan")
    for place in (None, "ab", [1], [1, 2, 3], [60, 0], [0, 30], [-1, 0], [nan, 0], [True, 1], ["1", "1"], {"x": 1}):
        with pytest.raises(UsageError, match="outside of the picture"):
            check_click(place, (30, 60), (10, 20))


def test_limits_must_be_positive() -> None:
    with pytest.raises(UsageError, match="limit phrases must be positive"):
        Limits(phrases=0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.jpg", "a.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a b.png", "a b.png"),
        ("a\nb\x00.png", "ab.png"),
        ("x" * 200 + ".png", "x" * 76 + ".png"),
        (None, "image"),
        ("..../", "image"),
        (7, "7"),
    ],
)
def test_display_names(name: object, shown: str) -> None:
    assert display_name(name) == shown


class TestUploads:
    def encoded(self, size: tuple[int, int], kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, "red").save(buffer, kind)
        return buffer.getvalue()

    def read(self, folder: Path, content: bytes) -> bytes:
        file = folder / "upload"
        file.write_bytes(content)
        return read_upload(str(file), "a.png", LIMITS)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_content_is_unchanged(self, kind: str, tmp_path: Path) -> None:
        content = self.encoded((30, 20), kind)
        assert self.read(tmp_path, content) == content

    def test_bytes_and_pixels(self, tmp_path: Path) -> None:
        """0.01 MiB are 10485.76 bytes, 0.01 megapixels are 100 x 100."""
        assert self.read(tmp_path, self.encoded((100, 100)))
        with pytest.raises(DataError, match=r"100 x 101 = 0.0 megapixels \(limit: 0.01\)"):
            self.read(tmp_path, self.encoded((100, 101)))
        padded = self.encoded((10, 10)) + b"\0" * 10485
        with pytest.raises(DataError, match=r"a.png is too large: 0.0 MB \(limit: 0.01 MB\)"):
            self.read(tmp_path, padded)

    @pytest.mark.parametrize(
        "content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>"]
    )
    def test_other_files_are_refused(self, content: bytes, tmp_path: Path) -> None:
        """Including PostScript, for which Pillow would start a program."""
        with pytest.raises(DataError, match=r"a.png.*JPEG, PNG"):
            self.read(tmp_path, content)

    def test_decompression_bombs_are_not_decoded(self, tmp_path: Path) -> None:
        """The header of this PNG announces 60000 x 60000 pixels."""
        content = bytearray(self.encoded((1, 1)))
        content[16:24] = (60000).to_bytes(4, "big") * 2
        with pytest.raises(DataError, match=r"a\.png"):
            self.read(tmp_path, bytes(content))

    def test_deleted_uploads(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.png has been deleted.*Upload it again"):
            read_upload(str(tmp_path / "gone"), "a.png", LIMITS)


def test_old_files_are_deleted_with_their_folders(tmp_path: Path) -> None:
    """The first pass deletes an upload, an answer, and their folders, and the second pass the parent folder."""
    example, upload, answer = tmp_path / "examples/0/a.png", tmp_path / "x/y/b.png", tmp_path / "z/c.zip"
    for file in (example, upload, answer):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"a")
    assert delete_old_files(tmp_path, 3600) == []
    assert sorted(delete_old_files(tmp_path, -1, {example})) == [upload, answer]
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["examples", "0", "a.png"]
    assert delete_old_files(tmp_path, -1, {example}) == delete_old_files(tmp_path / "none", -1) == []


def test_files_that_cannot_be_deleted_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    unlink = Path.unlink

    def taken(path: Path) -> None:
        if path.name == "b":
            raise FileNotFoundError(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", taken)
    assert delete_old_files(tmp_path, -1) == [tmp_path / "a"]
