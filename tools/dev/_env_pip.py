"""Running pip: progress while it works, and a useful end when it fails."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class SetupError(Exception):
    """What went wrong and what to do; shown without a traceback."""


_HINTS = (
    (
        r"Temporary failure in name resolution|Name or service not known|Failed to establish a new connection"
        r"|Network is unreachable|Connection refused|timed out|NewConnectionError|No route to host|nodename nor",
        "The package index was not reached. Behind a proxy, set HTTPS_PROXY; with a mirror, set it up with "
        "`pip config set global.index-url ...`; without a network, see 'Offline' in docs/installation.md.",
    ),
    (r"ProxyError|407 Proxy", "The proxy refused the connection: check HTTPS_PROXY, and NO_PROXY for local mirrors."),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The certificate of the index was not accepted: set PIP_CERT to your organisation's certificate file.",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "The disk is full. The CUDA build of torch takes about 6 GB: choose another place with REFSEG_VENV=/big/venv "
        "(and TMPDIR), or install a CPU build of torch first: see 'CPU only' in docs/installation.md.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies|No matching distribution",
        "The pinned versions do not fit here (Python version, platform, or a package that was kept). Try another "
        "interpreter with `make PYTHON=python3.11 ...`, or REFSEG_KEEP_TORCH=0 if a torch was kept.",
    ),
    (r"Permission denied", "A folder is not writable: choose another place with REFSEG_VENV=/some/where/venv."),
)


def say(message: str) -> None:
    print(f"[setup] {message}", file=sys.stderr, flush=True)


def hint_for(output: str) -> str:
    for pattern, hint in _HINTS:
        if re.search(pattern, output, re.IGNORECASE):
            return hint
    return "Run the same command again to retry; the full log is named above."


class _Progress:
    """One moving line on a terminal; elsewhere only the lines that tell why it takes long."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.moving = sys.stderr.isatty()

    def show(self, line: str) -> None:
        line = line.strip()
        seconds = int(time.monotonic() - self.start)
        stamp = f"{seconds // 60}:{seconds % 60:02d}"
        if self.moving:
            width = shutil.get_terminal_size().columns - 16
            sys.stderr.write(f"\r\033[K[setup]  {stamp} {line[:width]}")
            sys.stderr.flush()
        elif line.startswith(("Installing collected", "Building wheel")) or re.search(
            r"\((\d{2,}\.\d+|\d{3,}) MB\)|GB\)", line
        ):
            say(f" {stamp} {line[:110]}")

    def end(self) -> None:
        if self.moving:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def run_logged(
    command: Sequence[str], *, log: Path, what: str, pass_fds: Sequence[int] = (), quiet: bool = False
) -> None:
    """Run a command with its output in a log; raises `SetupError` with the last lines and advice."""
    progress = _Progress()
    lines: list[str] = []
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=pass_fds,
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                file.write(line)
                lines.append(line.rstrip())
                if not quiet:
                    progress.show(line)
        except BaseException:
            child.terminate()
            raise
        finally:
            progress.end()
    if child.returncode:
        shown = [line for line in lines if line and "is ignored: it is neither" not in line][-15:]
        tail = "\n".join(f"    {line[:300]}" for line in shown)
        hint = hint_for("\n".join(lines[-60:]))
        raise SetupError(f"{what} failed. Its last lines (all of it: {log}):\n{tail}\n{hint}")


def pip_command(python: str | Path, *args: str) -> list[str]:
    return [str(python), "-m", "pip", *args, "--no-input", "--disable-pip-version-check"]
