"""`refseg score --suite`: all sets and splits of a paper's table for one model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from refseg.datasets.catalog import get_set
from refseg.datasets.targets import data_root
from refseg.errors import DataError, UsageError
from refseg.evaluation.prediction_file import read_header
from refseg.evaluation.protocols import get_protocol
from refseg.evaluation.scorer import open_data, score_file
from refseg.evaluation.suites import get_suite, table_rows, to_json, to_latex, to_markdown, to_text
from refseg.files import sha256_of
from refseg.terminal import write_whole

FORMATS = {".md": to_markdown, ".tex": to_latex, ".txt": to_text}


def main(args: argparse.Namespace) -> int:
    """Predict what is missing, score everything, and print the table beside published rows."""
    suite = get_suite(args.suite)
    unread = ("data", "json", "by", "ci", "annotators", "calibration", "alignment", "min_score", "no_target_rule",
              "no_target_threshold", "min_area", "absent_is_nothing", "drop_no_target", "allow_partial")  # fmt: skip
    given = [name.replace("_", "-") for name in unread if getattr(args, name) not in (None, False, "", [])]
    given += ["protocol"] * (args.protocol != "refseg")  # its default
    if given:
        raise UsageError(f"--{given[0]} does not go with --suite, whose tables have data and protocols of their own")
    target = Path(args.table) if args.table else None
    if target is not None and target.suffix not in (*FORMATS, ".json"):
        raise UsageError(f"--table {target}: the suffix must be one of {', '.join((*FORMATS, '.json'))}")
    source = Path(args.predictions)
    is_folder = source.is_dir() and not list(source.glob("*.py")) and any(source.glob("*.jsonl"))
    name = f"{source.parent.name}_{source.stem}" if source.is_file() else source.name
    folder = source if is_folder else Path(args.out or f"work_dirs/suites/{name}")
    weights = None if is_folder else weights_of(args.predictions)
    found: dict[tuple[str, str, str], float] = {}
    with data_root(args.data_root):
        for data, protocols in suite.data.items():
            file = folder / f"{data.replace(':', '_')}.jsonl"
            try:
                truths = open_data(data).truths
                if not file.is_file():
                    if is_folder:
                        raise DataError(f"there is no {file}")
                    predict(args.predictions, data, file)
                check_weights(file, weights)
                chosen = [get_protocol(name) for name in protocols]
                rows = score_file(file, truths, chosen).rows
            except DataError as error:
                print(f"{data} is left out: {error}", file=sys.stderr)
                continue
            for protocol in chosen:
                for metric, value in protocol.score(rows[protocol.name]).items():
                    found[data, protocol.name, metric] = value
    if not found:
        raise DataError(f"no part of suite {suite.name} could be scored. `refseg data layout` shows the expected files")
    own = {name: [found.get((one.data, one.protocol, one.metric)) for one in suite.columns]}
    rows_of_table = table_rows(suite, own)
    print(f"{suite.title}\n\n{to_text(rows_of_table)}")
    print(f"predictions: {folder}. A file that is there is not predicted again")
    if target is not None:
        write = FORMATS.get(target.suffix)
        write_whole(target, to_json(suite, own) if write is None else write(rows_of_table))
    return 0


def weights_of(model: str) -> Path | None:
    from refseg.inference.loading import find_model  # which imports torch

    return find_model(model)[1]


def check_weights(file: Path, weights: Path | None) -> None:
    """Refuse predictions that other weights made. Files of other programs do not say what made them."""
    made_by = read_header(file).get("checkpoint")
    digest = made_by.get("sha256") if isinstance(made_by, dict) else None
    if weights is not None and digest is not None and digest != sha256_of(weights):
        other = made_by.get("file", "other weights")
        raise UsageError(f"{file} has the predictions of {other}, not of {weights}. Remove it, or pass --out DIR")


def predict(model: str, data: str, file: Path) -> None:
    """Write the predictions of a model for SET:SPLIT."""
    from refseg.engine.run import RunOptions, test
    from refseg.inference.loading import find_model

    config, checkpoint = find_model(model)
    name, _, split = data.partition(":")
    known = get_set(name)
    dataset = "test_dataloader.dataset"
    options = {
        f"{dataset}.annotations": dict(_delete_=True, **known.annotations),
        f"{dataset}.image_root": known.image_root,
        f"{dataset}.split": split,
        f"{dataset}.no_target": "keep",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    run = RunOptions(work_dir=str(file.parent / "logs"), cfg_options=options)
    test(str(config), None if checkpoint is None else str(checkpoint), run, predictions=str(file))
