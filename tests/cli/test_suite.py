"""`refseg score --suite`: tables of a model or of prediction files, beside published rows."""

import json
import shutil
from pathlib import Path

import pytest

from refseg.cli.main import main
from refseg.datasets.targets import data_root
from refseg.evaluation.measure import Truth
from refseg.evaluation.prediction_file import Answer, write_predictions
from refseg.evaluation.protocols import PROTOCOLS, View
from refseg.evaluation.rows import Rows
from refseg.evaluation.scorer import open_data
from refseg.evaluation.suites import get_suite, suites


@pytest.fixture(scope="module")
def root(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data folder in which RefShapes replaces gRefCOCO and Ref-ZOM."""
    root = tmp_path_factory.mktemp("data")
    for layout in ("grefcoco", "ref-zom"):
        shutil.copytree(refshapes_tiny / layout, root / layout)
    (root / "images").mkdir()
    for folder in ("train2014", "trainval2014"):
        (root / "images" / folder).symlink_to(refshapes_tiny / "images")
    return root


def write_perfect(data: str, root: Path, file: Path) -> None:
    """Write the ground truth as predictions."""
    with data_root(str(root)):
        truths = open_data(data).truths
        answers = []
        for position in range(len(truths)):
            expression, truth = truths.expression(position), truths.truth(position)
            mask = Truth(truth.record).mask(expression, View(), truth.record.size)
            answers.append(Answer(expression.expression_id, mask, 0.0 if expression.referents else 1.0))
    write_predictions(file, answers)


@pytest.mark.parametrize("name", list(suites()))
def test_suites_are_consistent(name: str) -> None:
    """Each column's protocol has the metric, and each published row has a value or a gap per column and a source."""
    suite = get_suite(name)
    for column in suite.columns:
        assert column.metric in PROTOCOLS[column.protocol].terms(Rows.of(()))
    for row in suite.published:
        assert len(row.values) == len(suite.columns) and row.source
        assert all(value is None or 0 < value < 100 for value in row.values)


def test_prediction_files(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ground truth as predictions has 100 nearly everywhere. A split without a file is left out, and named."""
    files = tmp_path / "perfect"
    files.mkdir()
    for split in ("val", "testA"):
        write_perfect(f"grefcoco:{split}", root, files / f"grefcoco_{split}.jsonl")
    tables = [tmp_path / f"t{suffix}" for suffix in (".md", ".tex", ".json", ".txt")]
    for table in tables:
        command = ["score", str(files), "--suite", "gres", "--data-root", str(root), "--table", str(table)]
        assert main(command) == 0
    out, err = capsys.readouterr()
    assert "grefcoco:testB is left out: there is no" in err and "InstAlign, Table 5" in out
    measured = json.loads(tables[2].read_text())["measured"]["perfect"]
    assert measured[2] == measured[5] == 100 and measured[6:] == [None] * 3
    assert all(value > 90 for value in measured[:6])
    markdown, latex = tables[0].read_text(), tables[1].read_text()
    assert markdown.splitlines()[-1].startswith("| perfect |") and markdown.splitlines()[-1].endswith(
        "| - | measured |"
    )
    assert latex.startswith(r"\begin{tabular}") and r"\bottomrule" in latex and "68.94 & 74.51 & 79.72" in latex


def test_model_predicts_what_is_missing(
    root: Path, tmp_path: Path, work_dir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A second call takes the files that are there."""
    monkeypatch.chdir(tmp_path)
    model = str(work_dir("baseline_tiny_refshapes"))
    command = ["score", model, "--suite", "refzom", "--data-root", str(root), "--out", "answers"]
    assert main(command) == 0
    file = Path("answers/ref-zom_test.jsonl")
    before = file.stat().st_mtime_ns
    first = capsys.readouterr().out.splitlines()[-3:]
    assert main(command) == 0
    assert file.stat().st_mtime_ns == before and capsys.readouterr().out.splitlines()[-3:] == first
    # Other weights do not get the scores of these
    file.write_text(file.read_text().replace('"sha256":"', '"sha256":"0', 1))
    assert main(command) == 1 and "has the predictions of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--suite", "gress"], "did you mean gres?"),
        (["--suite", "gres", "--table", "t.pdf"], "--table t.pdf: the suffix must be one of .md"),
        (["--suite", "gres", "--data-root", "nowhere"], "no part of suite gres could be scored"),
        (["--suite", "gres", "--no-target-threshold", "0.3"], "--no-target-threshold does not go with --suite"),
        (["--suite", "gres", "--protocol", "gres"], "--protocol does not go with --suite"),
        (["--data", "x.jsonl", "--table", "t.md"], "--table goes with --suite"),
        ([], "--data is missing"),
    ],
)
def test_errors(more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "x.jsonl").write_text("")
    assert main(["score", str(tmp_path), *more]) == 1
    assert says in capsys.readouterr().err
