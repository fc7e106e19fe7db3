import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refseg.cli import VERBS, main


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
    ],
)
def test_mistakes_are_one_message_without_a_traceback(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture, tmp_path: Path, tiny_config: Path
) -> None:
    if "none.pth" in arguments and arguments[0] == "test":
        arguments = [arguments[0], str(tiny_config), *arguments[2:]]
    assert main([*arguments, "--work-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert f"refseg {arguments[0]}: error: " in err and says in err and "Traceback" not in err


def test_what_the_machine_refuses_is_one_message(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(args: object) -> int:
        return len((tmp_path / "file" / "below").read_text())

    (tmp_path / "file").touch()
    monkeypatch.setitem(VERBS, "doctor", ("", lambda parser: None, refused))
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "refseg doctor: error: " in err and "Not a directory" in err and str(tmp_path / "file") in err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_whoever_has_read_enough_may_leave(lines: int) -> None:
    """As `| head -1` does, whether the pipe is noticed while the verb writes or only when it is done."""
    program = (
        "import sys; from refseg.cli import VERBS, main; sys.stdin.read(); "
        f"VERBS['doctor'] = ('', lambda parser: None, lambda args: [print('line') for _ in range({lines})] and 0); "
        "sys.exit(main(['doctor']))"
    )
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as left:
        left.stdout.close()
        left.stdin.close()
        assert left.stderr.read() == b"" and left.wait() == 141


def test_missing_data_names_the_path_and_the_command(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "nowhere"))
    assert main(["train", "baseline_tiny_refshapes", "--work-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "nowhere" / "refshapes_mini" / "refshapes.jsonl") in err
    assert f"refseg data refshapes --preset mini --out {tmp_path}/nowhere/refshapes_mini" in err
