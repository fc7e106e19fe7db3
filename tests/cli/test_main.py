import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg.cli.data import COMMANDS
from refseg.cli.main import RANK_WAIT_S, VERBS, main, print_error


def test_help_lists_every_verb(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0 and f"refseg {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "baseline_tiny_refshape"], "did you mean baseline_tiny_refshapes"),
        (["train", "baseline_tiny_refshapes", "--cfg-options", "train_cfg.max_epoch=1"], "did you mean 'max_epochs'?"),
        (["train", "baseline_tiny_refshapes", "--amp"], "--amp needs a GPU"),
        (["train", "baseline_tiny_refshapes", "--compile"], "--compile needs a GPU"),
        (["train", "baseline_tiny_refshapes", "--resume", "none.pth"], "no such checkpoint: none.pth"),
        (["test", "baseline_tiny_refshapes", "none.pth"], "no such checkpoint: none.pth"),
        (["test", "work_dirs/none"], "neither a work directory nor a checkpoint"),
        (["train", "{data}/refshapes.jsonl"], "is a file of data, not a config"),
        (["train", "{data}"], "is a folder, not a config"),
        (["train", "{config}", "--cfg-options", "optim_wrapper.optimizer.lr=fast"], "expects a number, not 'fast'"),
        (["train", "{config}", "--cfg-options", "train_dataloader.batch_size=0"], "batch_size must be a whole number"),
        (["train", "{config}", "--cfg-options", "train_dataloader.persistent_workers=True"], "set it to False"),
        (["train", "{config}", "--cfg-options", "model.text_encoder=bert"], "'bert' cannot replace"),
        (["train", "instalign_swinb", "--cfg-options", "model.encoder.vision.arch.depth=3"], "arch is 'base' here"),
        (["train", "{config}", "--cfg-options", "optim_wrapper.optimizer.lr=-1"], "optim_wrapper: it cannot be built"),
        (["train", "{config}", "--cfg-options", "model.embed_dim=33"], "model: it cannot be built"),
        (["quickstart", "--config", "instalign_swinb"], "quickstart trains on RefShapes"),
        (["benchmark", "{config}", "--device", "cuda"], "PyTorch sees 0 GPUs"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    tiny_config: Path,
    refshapes_tiny: Path,
) -> None:
    """The error comes last, after nothing but the lines of the preflight."""
    arguments = [word.format(data=refshapes_tiny, config=tiny_config) for word in arguments]
    if "none.pth" in arguments and arguments[0] == "test":
        arguments = [arguments[0], str(tiny_config), *arguments[2:]]
    where = [] if arguments[0] == "benchmark" else ["--work-dir", str(tmp_path)]
    assert main([*arguments, *where]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"refseg {arguments[0]}: error: ") and says in err and "Traceback" not in err
    assert all(line.startswith(("preflight ok", "--resume", "warning: batch: 4")) for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "c.py", "--cfg-options", "KEY"], "'KEY' is not of the form KEY=VALUE"),
        (["train", "c.py", "--gpus", "4"], "For 4 GPUs: bash tools/dist_train.sh ... 4"),
        (["train", "c.py", "--resumee"], "unrecognized arguments: --resumee. `refseg --help` shows"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert done.value.code == 2 and says in line


def test_errors_of_other_processes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The launcher ends a process that waits. A process that survives the wait prints its error with its rank."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    print_error("train", "bad")
    assert not waits and capsys.readouterr().err == "refseg train: error: bad\n"
    monkeypatch.setenv("RANK", "2")
    print_error("train", "bad")
    assert waits == [RANK_WAIT_S] and "error (process 2): bad" in capsys.readouterr().err


def test_list_of_configs(capsys: pytest.CaptureFixture) -> None:
    assert main(["configs", "refzom"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["instalign/instalign_swinb_refzom", "InstAlign", "Ref-ZOM"] in lines and len(lines) == 6
    assert main(["configs", "no_such_config"]) == 1 and "--ablations" in capsys.readouterr().err


def test_every_help_has_an_example(capsys: pytest.CaptureFixture) -> None:
    commands = {(name,): importlib.import_module(f"refseg.cli.{name}").EXAMPLES for name in VERBS}
    commands |= {("data", name): command.examples for name, command in COMMANDS.items()}
    for command, text in commands.items():
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        examples = text.strip().splitlines()
        out = capsys.readouterr().out
        assert examples and all(f"  {line}" in out for line in examples)


def test_testing_a_work_directory(work_dir: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = work_dir("baseline_tiny_refshapes")
    assert main(["test", str(folder), "--work-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "42 phrases" in out and "gIoU" in out and len(out.splitlines()) < 20


def test_system_errors_are_one_message(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> int:
        return len((tmp_path / "file" / "below").read_text())

    (tmp_path / "file").touch()
    monkeypatch.setattr("refseg.cli.configs.main", fail)
    assert main(["configs"]) == 1
    err = capsys.readouterr().err
    assert "refseg configs: error: " in err and "Not a directory" in err and str(tmp_path / "file") in err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_closed_pipe(lines: int) -> None:
    """`| head -1` closes the pipe while the verb prints, or after it has finished. A fake verb starts faster."""
    program = (
        "import sys, types; from refseg.cli import main; sys.stdin.read(); "
        "sys.modules['refseg.cli.configs'] = types.SimpleNamespace(EXAMPLES='', add_arguments=lambda parser: None, "
        f"main=lambda args: [print('line') for _ in range({lines})] and 0); "
        "sys.exit(main(['configs']))"
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_missing_data_names_the_path_and_the_command(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "nowhere"))
    assert main(["train", "baseline_tiny_refshapes", "--work-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "nowhere" / "refshapes_mini" / "refshapes.jsonl") in err
    assert f"refseg data refshapes --preset mini --out {tmp_path}/nowhere/refshapes_mini" in err
