"""What a check found, and how it is told: defects and warnings by kind, each with its place and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from refseg.datasets.catalog import Counts
from refseg.terminal import aligned, printable

Severity = Literal["defect", "warning", "note"]
SHOWN = 10  # of each kind, without --all
FIELDS = ("refs", "images", "sentences")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing. `kind` is a heading; findings of a kind share their remedy."""

    severity: Severity
    kind: str
    place: str
    message: str
    remedy: str = ""


@dataclass
class Report:
    """All about one data set."""

    name: str
    title: str
    files: list[str]
    reference: str = ""
    counts: dict[str, Counts] = field(default_factory=dict)
    expected: dict[str, Counts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def number(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def verdict(self) -> str:
        parts = [
            f"{number} {word}{'s' * (number != 1)}"
            for word in ("defect", "warning")
            if (number := self.number(word))  # type: ignore[arg-type]
        ]
        return ", ".join(parts) or "OK"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def report_lines(report: Report, *, everything: bool) -> list[str]:
    lines = [f"{report.name}: {report.title}", *(f"  {file}" for file in report.files)]
    lines += [f"  {line}" for line in count_lines(report)]
    for severity in ("defect", "warning", "note"):
        chosen = [finding for finding in report.findings if finding.severity == severity]
        for kind in dict.fromkeys(finding.kind for finding in chosen):
            lines += _kind_lines([finding for finding in chosen if finding.kind == kind], everything)
    return [*lines, f"  {report.verdict} ({report.seconds:.1f} s)"]


def _kind_lines(findings: Sequence[Finding], everything: bool) -> list[str]:
    first = findings[0]
    lines = [f"  {first.severity}: {first.kind} ({len(findings)})"]
    shown = findings if everything else findings[:SHOWN]
    for number, finding in enumerate(shown):
        place = "" if finding.place in finding.message else f"{finding.place}: "
        lines.append(f"    {printable(place + finding.message)}")
        last = number + 1 == len(shown)
        if finding.remedy and (last or shown[number + 1].remedy != finding.remedy):
            if last and len(shown) < len(findings):
                lines.append(f"    ... and {len(findings) - len(shown)} more (--all, or --json FILE)")
            lines.append(f"    -> {finding.remedy}")
        elif last and len(shown) < len(findings):
            lines.append(f"    ... and {len(findings) - len(shown)} more (--all, or --json FILE)")
    return lines


def count_lines(report: Report) -> list[str]:
    """A row per split; what should be there is in brackets where it differs."""
    if not report.counts:
        return []
    rows = [["split", *FIELDS, ""]]
    for split, found in report.counts.items():
        expected = report.expected.get(split)
        cells = [_cell(getattr(found, name), getattr(expected, name, None)) for name in FIELDS]
        rows.append([split, *cells, _remark(found, expected, report.reference)])
    return aligned(rows)


def _cell(found: int | None, expected: int | None) -> str:
    if found is None:
        return "-"
    return f"{found:,}" if expected in (None, found) else f"{found:,} (not {expected:,})"


def _remark(found: Counts, expected: Counts | None, reference: str) -> str:
    known = [name for name in FIELDS if expected is not None and getattr(expected, name) is not None]
    if not known:
        return "nothing to compare with" if reference else ""
    agrees = all(getattr(found, name) == getattr(expected, name) for name in known)
    what = "" if len(known) == len(FIELDS) else f" ({', '.join(known)})"
    return f"as {reference}{what}" if agrees else f"differs from {reference}"
