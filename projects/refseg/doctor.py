"""`refseg doctor`: what is installed, what works, and the command that mends what does not.

Every library is tried in a child process (`refseg.doctor_probes`), so that a broken one hides no other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refseg import doctor_checks as checks
from refseg.doctor_checks import FAIL, WARN, Finding
from refseg.doctor_probes import PROBES, Facts
from refseg.paths import configs_dir

PROBE_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def gather(names: Sequence[str] = tuple(PROBES), timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, Facts]:
    """Facts of every probe. When the child dies or hangs, the probe at fault is noted and a new child goes on."""
    facts: dict[str, Facts] = {}
    left = list(names)
    while left:
        facts.update(_gather_once(left, timeout_s))
        left = [name for name in left if name not in facts]
    return facts


def _gather_once(names: list[str], timeout_s: float) -> dict[str, Facts]:
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [path for path in (os.environ.get("PYTHONPATH"), package_root) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "refseg.doctor_probes", *names]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", env=environment
    )
    with child:
        return _collect(child, names, timeout_s)


def _collect(child: subprocess.Popen[str], names: list[str], timeout_s: float) -> dict[str, Facts]:
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    facts: dict[str, Facts] = {}
    begun, hung = names[0], False
    while True:
        try:
            line = lines.get(timeout=timeout_s)
        except queue.Empty:
            hung = True
            child.kill()
            break
        if not line:
            break
        answer = json.loads(line)
        begun = answer.get("begin", begun)
        if "end" in answer:
            facts[answer["end"]] = answer["facts"]
    code = child.wait()
    reader.join()
    if begun not in facts:
        why = (
            f"importing it hangs (more than {timeout_s:g} s)"
            if hung
            else f"importing it ends Python (exit code {code})"
        )
        facts[begun] = {"error": why}
    elif len(facts) < len(names):  # it died between two probes: blame the next one
        facts[next(name for name in names if name not in facts)] = {"error": f"the check died (exit code {code})"}
    return facts


def _read(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            lines.put(line)
    lines.put("")


def required_ranges() -> dict[str, str]:
    """Distribution -> range, from the installed package's metadata or the repository's requirements."""
    source = Path(__file__).resolve().parents[2] / "requirements/runtime.txt"
    lines: list[str] = []
    if source.is_file():
        lines = source.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = [line for line in importlib.metadata.requires("refseg") or [] if "extra ==" not in line]
        except importlib.metadata.PackageNotFoundError:
            pass
    found = (re.match(r"([A-Za-z0-9._-]+)\s*\(?([<>=][^;)#]*)?", line) for line in lines)
    return {match.group(1).lower(): (match.group(2) or "").strip() for match in found if match}


def judge_libraries(facts: dict[str, Facts], ranges: dict[str, str]) -> list[Finding]:
    findings: list[Finding] = []
    has_gpu = bool(facts.get("torch", {}).get("gpus"))
    for name, found in facts.items():
        wanted = ranges.get(checks.DISTRIBUTION.get(name, name), "")
        if name == "torch pair":
            pair = checks.check_pair(found)
            findings += [pair] if pair else []
        elif name == "torch":
            findings += checks.check_torch(found, wanted)
        elif name == "mmcv":
            findings.append(checks.check_mmcv(found, wanted or ">=2.0.1,<2.2"))
        elif name == "triton":
            findings.append(checks.check_triton(found, has_gpu))
        elif name == "deformable attention":
            findings.append(checks.check_backend(found))
        else:
            findings.append(checks.check_library(name, found, wanted))
    return findings


def look_at_machine() -> list[Finding]:
    """Data, configs, disk and shared memory."""
    root = Path(os.environ.get("REFSEG_DATA") or "data")
    folders = sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else []
    configs = configs_dir()
    leaves = [file for file in configs.rglob("*.py") if not file.relative_to(configs).parts[0].startswith("_")]
    gib = 2.0**30
    findings = [checks.check_configs(str(configs), len(leaves)), *checks.check_data(str(root), folders, root.is_dir())]
    findings.append(checks.check_disk(shutil.disk_usage(Path.cwd()).free / gib, str(Path.cwd())))
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm")
        found = checks.check_shm(shm.total / gib, shm.free / gib)
        findings += [found] if found else []
    return findings


def diagnose() -> list[Finding]:
    findings = [checks.check_python(tuple(sys.version_info[:3]))]
    findings += judge_libraries(gather(), required_ranges())
    return findings + look_at_machine()


def table(findings: Sequence[Finding]) -> str:
    """One line each; what is wrong is wrapped below, its remedy in full so that it can be copied."""
    width = max(40, shutil.get_terminal_size((110, 24)).columns)
    names = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        head = f"{finding.status:4}  {finding.name:{names}}  "
        lines += textwrap.wrap(
            head + finding.text, width, subsequent_indent=" " * len(head), break_long_words=False
        ) or [head]
        if finding.remedy:
            lines.append(" " * len(head) + f"-> {finding.remedy}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    failed = [finding.name for finding in findings if finding.status == FAIL]
    warned = [finding.name for finding in findings if finding.status == WARN]
    if failed:
        return f"refseg cannot work yet: {', '.join(failed)}. Run the commands after ->, then `refseg doctor` again."
    return "Everything needed works." + (f" To look at, when you need it: {', '.join(warned)}." if warned else "")


def main(args: argparse.Namespace) -> int:
    findings = diagnose()
    healthy = all(finding.status != FAIL for finding in findings)
    if args.json:
        report: dict[str, Any] = {"ok": healthy, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(table(findings))
        print()
        print(summary(findings))
    return 0 if healthy else 1


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="refseg doctor", description=__doc__)
    add_arguments(_parser)
    sys.exit(main(_parser.parse_args()))
