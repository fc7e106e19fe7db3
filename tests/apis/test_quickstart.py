from pathlib import Path

from PIL import Image

from refseg.apis.quickstart import quickstart


def test_data_training_evaluation_and_report(tmp_path: Path, tiny_options: dict) -> None:
    report = quickstart(
        config="baseline_tiny_refshapes",
        work_dir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        preset="tiny",
        cfg_options=tiny_options,
    )
    html = report.read_text()
    assert html.count("data:image/") >= 20
    for words in ("gIoU", "RefShapes tiny", "test: 7 images", "by skill", "relation", "nothing here", "<svg"):
        assert words in html, words
    assert (tmp_path / "work" / "metrics.json").is_file()
    with Image.open(tmp_path / "work" / "examples.png") as sheet:
        assert sheet.width > 900 and sheet.height > 300
