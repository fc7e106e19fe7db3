"""`refseg data browse`: the page shows the samples as the model gets them, and escapes text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from refer_files import square
from refseg.cli import main
from refseg.data_tools.browse import contact_sheet, cut_tokens, draw_sample, ink_on, tokenizer_of, tokens_of
from refseg.datasets.dataset import MixedDataset, ReferringDataset
from refseg.visualization.overlay import PALETTE

EVIL = '<script>alert(1)</script> & "dog" \''


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Return a data set of two images, one of them damaged, with a phrase that holds HTML and one without a target."""
    Image.new("RGB", (10, 8), (90, 90, 90)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    one, two = [square(1.0, 1.0)], [square(6.0, 4.0)]
    rows = [
        {"image": "a.png", "size": [8, 10], "text": EVIL, "targets": [one, two], "instance_ids": ["i", "j"]},
        {"image": "a.png", "text": "nothing at all of it", "targets": None, "tags": {"skill": "<b>"}},
        {"image": "b.png", "size": [8, 10], "text": "lost", "targets": [one]},
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows))
    (tmp_path / "words.txt").write_text("dog nothing at all of it")
    return dict(
        annotations=dict(format="jsonl", file=str(file)),
        split="train",
        pipeline=[
            dict(type="LoadImage"),
            dict(type="Resize", size=(16, 20)),
            dict(type="LoadText", tokenizer=dict(word_list=str(tmp_path / "words.txt"), max_words=5)),
            dict(type="PackSample"),
        ],
    )


def test_page(arguments: dict[str, Any]) -> None:
    html, failed = contact_sheet(ReferringDataset(**arguments), num=5, title="<i>config</i>")
    assert failed == 1 and "cannot be read" in html and "lost" in html
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;dog&#34; &#39;" in html
    assert "<i>config" not in html and "skill: &lt;b&gt;" in html
    assert "nothing here" in html
    assert "<strong>cut off:</strong> <s>of it</s>" in html and "<strong>[UNK]</strong>" in html
    assert "unknown to the tokenizer" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "2 of 2 items, seed 0, epoch 0" in html


def test_mixed_dataset(arguments: dict[str, Any]) -> None:
    part = dict(type="ReferringDataset", **arguments)
    mixed = MixedDataset(datasets=[part, part])
    html, failed = contact_sheet(mixed, num=4, title="mix")
    assert failed == 2 and html.count('<article class="case">') == 4


def test_picture_shows_instances_in_their_colors(arguments: dict[str, Any]) -> None:
    """A 20 x 16 input is enlarged by 14. It has outlines in the first two colors of the palette, none in the third."""
    dataset = ReferringDataset(**arguments)
    picture = draw_sample(dataset.make_sample(_key(0)))
    assert picture.shape == (224, 280, 3)
    seen = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert PALETTE[0] in seen and PALETTE[1] in seen and PALETTE[2] not in seen


def _key(item: int) -> Any:
    from refseg.datasets.samplers import SampleKey

    return SampleKey(item)


def test_sample_without_instances(arguments: dict[str, Any]) -> None:
    sample = ReferringDataset(**arguments).make_sample(_key(0))
    sample.instance_masks = torch.zeros(0, *sample.image.shape[1:], dtype=torch.bool)
    sample.instance_boxes = torch.zeros(0, 4)
    assert draw_sample(sample).shape == (224, 280, 3)


def test_tokens(arguments: dict[str, Any]) -> None:
    """[CLS] 2, [SEP] 3, [UNK] 1; words from 4. Of 7 tokens, 5 remain, and the end token is one of them."""
    tokenizer = tokenizer_of(ReferringDataset(**arguments))
    (ids,) = tokenizer(["nothing at all of it"]).token_ids
    assert cut_tokens(ids, [2, 5, 6, 7, 8, 9, 3]) == [8, 9]
    assert cut_tokens([2, 5], [2, 5, 3]) == [3]
    assert cut_tokens([2, 5, 3], [2, 5, 3]) == []
    (ids,) = tokenizer(["a <dog>"]).token_ids
    tokens = tokens_of(ids, "a <dog>", tokenizer)
    assert tokens["words"].count("[UNK]") == tokens["num_unknown"] > 0 and tokens["unknown"] == "[UNK]"
    assert tokens_of([2, 5], "x", None)["words"] == ["2", "5"]


def test_ink_is_readable_on_every_color() -> None:
    """Contrast by WCAG's formula, with a gamma of 2.2 for its curve: at least 4.5 to 1."""

    def light(color: tuple[int, int, int]) -> float:
        red, green, blue = ((value / 255) ** 2.2 for value in color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for color in PALETTE:
        bright, dark = sorted((light(color), light(ink_on(color))), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, color


def test_command(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "page.html"
    assert main(["data", "browse", str(tiny_config), "--loader", "val", "--num", "3", "--out", str(out)]) == 0
    assert "3 of 7 items" in capsys.readouterr().out
    first = out.read_text(encoding="utf-8")
    assert first.count('<article class="case">') == 3
    assert main(["data", "browse", str(tiny_config), "--loader", "val", "--num", "3", "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--num", "0"], "--num must be at least 1"),
        (["--cfg-options", "train_dataloader.dataset.splitt=x"], "did you mean 'split'"),
    ],
)
def test_error_messages(
    tiny_config: Path, more: list[str], says: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["data", "browse", str(tiny_config), "--out", str(tmp_path / "p.html"), *more]) == 1
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_options_may_contain_blanks(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """mmengine would delete every blank of a value."""
    option = f"val_dataloader.dataset.annotations.file={tmp_path}/my data/no such.jsonl"
    command = ["data", "browse", str(tiny_config), "--loader", "val", "--out", str(tmp_path / "p.html")]
    assert main([*command, "--cfg-options", option]) == 1
    assert f"annotation file not found: {tmp_path}/my data/no such.jsonl" in capsys.readouterr().err


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = str(tmp_path / "nowhere")
    assert main(["data", "browse", "baseline_tiny_refshapes", "--data-root", root]) == 1
    assert "refshapes.jsonl" in capsys.readouterr().err


def test_jsonl_file(arguments: dict[str, Any], tmp_path: Path) -> None:
    """The images of the file are shown as they are, with tags and without tokens."""
    out = tmp_path / "browse.html"
    assert main(["data", "browse", arguments["annotations"]["file"], "--out", str(out)]) == 0
    html = out.read_text()
    assert "10 × 8 → 10 × 8" in html and "nothing at all of it" in html and "skill: &lt;b&gt;" in html
    assert "all splits" in html and " tokens:" not in html and "cannot be read" in html
