import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY


@pytest.mark.slow
def test_kills_during_training_and_checkpoint_writes(tiny_config: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools/dev/kill_and_resume.py"), str(tiny_config), "--kills", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed during training" in done.stdout and "killed during a checkpoint write" in done.stdout
