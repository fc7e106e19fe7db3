"""A training that starts from weights: whose weights are tested, and what its work directory keeps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.logging import MMLogger
from safetensors.torch import save_file

from refseg.cli import main
from refseg.engine.run import RunOptions, build_model, build_runner, load_config, train
from refseg.engine.run import test as evaluate
from refseg.errors import CheckpointError
from refseg.weights import hash_weights, load_weights, read_checkpoint

ONE_EPOCH = {"train_cfg.max_epochs": 1}


class Tuned(NamedTuple):
    """`config` has load_from=`start`; `metrics`: of the last validation, by the work directory's log."""

    config: Path
    start: Path
    work_dir: Path
    best: Path
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def tuned(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """6 steps from random weights with about every other pixel in the masks, fast enough to change the answers; the
    test set is val."""
    folder = tmp_path_factory.mktemp("tuned")
    cfg = load_config(str(tiny_config))
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.query_head[-1].weight)
    torch.nn.init.zeros_(model.query_head[-1].bias)
    annotations = {"file": cfg.train_dataloader.dataset.annotations.file}
    data = {"annotations": annotations, "generated": {"preset": "tiny", "generator_version": 2}}
    start, config, work_dir = folder / "start.pth", folder / "own.py", folder / "work"
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": data}}, start)
    config.write_text(
        f"_base_ = {str(tiny_config)!r}\nload_from = {str(start)!r}\ntrain_cfg = dict(max_epochs=1)\n"
        "optim_wrapper = dict(optimizer=dict(lr=2e-4))\ntest_dataloader = dict(dataset=dict(split='val'))\n"
    )
    train(str(config), RunOptions(work_dir=str(work_dir)))
    (best,) = work_dir.glob("best_*.pth")
    return Tuned(config, start, work_dir, best, validations(work_dir)[-1])


def validations(work_dir: Path) -> list[dict[str, float]]:
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{key: row[key] for key in row if "/" in key} for row in rows if "loss" not in row]


def logs(work_dir: Path) -> str:
    return "".join(file.read_text() for file in sorted(work_dir.glob("*/*.log")))


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    """mmengine's loggers do not propagate: take what passes through them."""
    messages: list[str] = []
    plain = MMLogger.callHandlers

    def keep(self: MMLogger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())
        plain(self, record)

    MMLogger.callHandlers = keep
    yield messages
    MMLogger.callHandlers = plain


def test_the_named_weights_are_tested_and_no_others(tuned: Tuned, tmp_path: Path) -> None:
    """load_from once replaced them: the result was that of the weights that the fine-tuning began with."""
    out, predictions = tmp_path / "r.json", tmp_path / "p.jsonl"
    options = RunOptions(work_dir=str(tmp_path))
    metrics = evaluate(str(tuned.config), str(tuned.best), options, out=str(out), predictions=str(predictions))
    assert metrics == pytest.approx(tuned.metrics, abs=1e-4)
    before = evaluate(str(tuned.config), str(tuned.start), options)
    assert before != pytest.approx(metrics, abs=1e-4), "the test could not fail"

    model = build_model(load_config(str(tuned.config)))
    load_weights(model, tuned.best)
    header = json.loads(predictions.read_text().splitlines()[0])["refseg"]
    for checkpoint in (json.loads(out.read_text())["checkpoint"], header["checkpoint"]):
        assert checkpoint["weights_sha256"] == hash_weights(model)


def test_resume_in_the_config_does_not_matter_to_a_test(tuned: Tuned, tmp_path: Path) -> None:
    """Work directories that older versions resumed have such a config; the checkpoint in it may be gone."""
    poisoned = {"resume": True, "load_from": str(tmp_path / "rotated.pth")}
    options = RunOptions(work_dir=str(tmp_path), cfg_options=poisoned)
    assert evaluate(str(tuned.config), str(tuned.best), options) == pytest.approx(tuned.metrics, abs=1e-4)


def test_a_work_directory_keeps_the_config_not_the_state_of_a_run(tuned: Tuned, tmp_path: Path) -> None:
    work_dir, two = tmp_path / "work", {"train_cfg.max_epochs": 2}
    more = {"auto_scale_lr.enable": True, "optim_wrapper.accumulative_counts": 2}
    train(str(tuned.config), RunOptions(work_dir=str(work_dir), cfg_options=more))
    train(str(tuned.config), RunOptions(work_dir=str(work_dir), cfg_options=more | two, resume=True))
    assert f"resuming from {work_dir / 'epoch_1.pth'}" in logs(work_dir)

    written, given = load_config(str(work_dir / "own.py")), load_config(str(tuned.config), RunOptions(cfg_options=two))
    assert not written.resume and written.load_from == str(tuned.start)
    assert written.model == given.model and written.get("experiment_name") is None
    assert written.auto_scale_lr.base_batch_size == given.auto_scale_lr.base_batch_size

    for file in work_dir.glob("epoch_*.pth"):
        file.unlink()
    (best,) = work_dir.glob("best_*.pth")
    before = (work_dir / "own.py").read_text()
    evaluate(str(work_dir / "own.py"), str(best))
    assert (work_dir / "own.py").read_text() == before, "a test leaves the training's config alone"
    runner = train(str(work_dir / "own.py"), RunOptions(work_dir=str(tmp_path / "anew"), cfg_options=ONE_EPOCH))
    assert runner.iter == 6 and f"load_from {tuned.start}" in logs(tmp_path / "anew")
    assert "resum" not in logs(tmp_path / "anew").split("load_from")[-1]


def test_what_was_loaded_is_logged(tuned: Tuned, tmp_path: Path) -> None:
    log = logs(tuned.work_dir)
    total = len(read_checkpoint(tuned.start)["state_dict"])
    assert f"load_from {tuned.start} (trained on " in log
    assert f"refshapes.jsonl, RefShapes tiny, generator version 2): {total} of {total} tensors loaded\n" in log
    assert f"{tuned.best.name}: the weights at the only validation, not the best of several" in log

    state = {k: v for k, v in read_checkpoint(tuned.start)["state_dict"].items() if not k.startswith("query_head")}
    save_file(state, tmp_path / "part.safetensors")
    options = {"load_from": str(tmp_path / "part.safetensors"), "train_cfg.max_epochs": 2}
    train(str(tuned.config), RunOptions(work_dir=str(tmp_path), cfg_options=options))
    left = total - len(state)
    expected = f"{len(state)} of {total} tensors loaded; {left} kept their initial values: query_head ({left})"
    assert left and expected in logs(tmp_path)
    assert ": the best of 2 validations" in logs(tmp_path)


def test_weights_of_another_model_are_no_start(tuned: Tuned, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({f"other.{k}": v for k, v in read_checkpoint(tuned.start)["state_dict"].items()}, other)
    options = RunOptions(work_dir=str(tmp_path), cfg_options={"load_from": str(other)})
    with pytest.raises(CheckpointError, match=r"load_from: .*other\.pth is not of this model.*: 0 of \d+ tensors"):
        train(str(tuned.config), options)
    gone = RunOptions(work_dir=str(tmp_path), cfg_options={"load_from": str(tmp_path / "gone.pth")})
    with pytest.raises(CheckpointError, match=r"load_from: no such checkpoint: .*gone\.pth"):
        train(str(tuned.config), gone)


def broken_states(content: dict[str, Any], folder: Path) -> dict[str, str]:
    """Checkpoints whose weights fit, and what --resume must say."""
    optimizer, meta = content["optimizer"], content["meta"]
    run = f"open({str(folder / 'run')!r}, 'w')"
    variants: dict[str, tuple[dict, str]] = {
        "weights": ({"state_dict": content["state_dict"]}, "holds weights, but not the state of a training"),
        "meta": (content | {"meta": [1]}, r"it lacks meta\.epoch and meta\.iter"),
        "epoch": (content | {"meta": meta | {"epoch": "x"}}, r"it lacks meta\.epoch and meta\.iter"),
        "hub": (content | {"message_hub": 3}, "it lacks message_hub"),
        "bare": ({key: content[key] for key in content if key != "optimizer"}, "it lacks optimizer"),
        "groups": (content | {"optimizer": {"state": {}, "param_groups": []}}, "does not continue this training"),
        "code": (
            content | {"meta": meta | {"config": run}, "optimizer": optimizer | {"state": 3}},
            "does not continue",
        ),
        "fit": (content | {"state_dict": {"a": torch.ones(1)}}, "does not fit"),
    }
    for name, (variant, _) in variants.items():
        torch.save(variant, folder / f"{name}.pth")
    return {f"{name}.pth": says for name, (_, says) in variants.items()}


def test_what_cannot_be_resumed_is_one_sentence(tuned: Tuned, tmp_path: Path) -> None:
    good = tuned.work_dir / "epoch_1.pth"
    runner = build_runner(load_config(str(tuned.config), RunOptions(work_dir=str(tmp_path))), resume_from=good)
    for name, says in broken_states(read_checkpoint(good), tmp_path).items():
        with pytest.raises(CheckpointError, match=rf"{name}.*{says}") as raised:
            runner.resume(str(tmp_path / name))
        assert str(raised.value).isprintable()
    assert not (tmp_path / "run").exists()
    runner.resume(str(good))
    assert runner.iter == 6


class Attack:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


def test_a_hostile_file_is_refused_alike_everywhere(
    tuned: Tuned, tmp_path: Path, refshapes_images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    attack, config = str(tmp_path / "attack.pth"), str(tuned.config)
    torch.save({"state_dict": {}, "extra": Attack()}, attack)
    at = ["--work-dir", str(tmp_path / "work")]
    for command in (
        ["train", config, "--resume", attack, *at],
        ["train", config, *at, "--cfg-options", f"load_from={attack}"],
        ["test", config, attack, *at],
        ["predict", config, attack, "--image", refshapes_images[0], "--text", "it"],
    ):
        assert main(command) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"refseg {command[0]}: error: {attack} cannot be read as weights: it holds a Python")
        assert line.isprintable() and len(line) < len(attack) + 260


def test_data_of_another_generator_version_is_mentioned(
    tuned: Tuned, tmp_path: Path, warnings_logged: list[str]
) -> None:
    options = RunOptions(work_dir=str(tmp_path))
    evaluate(str(tuned.config), str(tuned.best), options)
    assert not [message for message in warnings_logged if "generator" in message]
    content = read_checkpoint(tuned.best)
    content["meta"]["dataset_meta"]["generated"]["generator_version"] = 1
    torch.save(content, tmp_path / "old.pth")
    evaluate(str(tuned.config), str(tmp_path / "old.pth"), options)
    (message,) = [message for message in warnings_logged if "generator" in message]
    assert "RefShapes tiny, generator version 1, and is tested on generator version" in message


def test_a_test_reads_the_words_that_the_model_was_trained_with(tuned: Tuned, tmp_path: Path) -> None:
    """The word list of the data may be another one by now: here it is in reverse order."""
    words = Path(load_config(str(tuned.config)).test_dataloader.dataset.pipeline[2].tokenizer.word_list)
    changed = tmp_path / "data" / words.name
    changed.parent.mkdir()
    changed.write_text("\n".join(words.read_text().split()[::-1]))
    cfg_options = {"test_dataloader.dataset.pipeline.2.tokenizer.word_list": str(changed)}
    options = RunOptions(work_dir=str(tmp_path / "work"), cfg_options=cfg_options)
    assert evaluate(str(tuned.config), str(tuned.best), options) == pytest.approx(tuned.metrics, abs=1e-4)
    bare = shutil.copy(tuned.best, tmp_path)  # without the word list beside it
    assert evaluate(str(tuned.config), bare, options) != pytest.approx(tuned.metrics, abs=1e-4)
