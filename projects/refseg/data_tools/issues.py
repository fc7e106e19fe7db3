"""Issues that `refseg data check` finds in a data set, and the report that it prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from refseg.datasets.catalog import Counts
from refseg.terminal import aligned, printable

Severity = Literal["defect", "warning", "note"]
SHOWN = 10  # issues per kind, without --all
FIELDS = ("refs", "images", "sentences")


@dataclass(frozen=True)
class DataIssue:
    """Something that is wrong with a data set, or worth knowing. Issues of one `kind` are printed together."""

    severity: Severity
    kind: str
    place: str
    message: str
    remedy: str = ""


@dataclass
class DataReport:
    """The result of checking one data set."""

    name: str
    title: str
    files: list[str]
    reference: str = ""  # source of the expected counts
    counts: dict[str, Counts] = field(default_factory=dict)
    expected: dict[str, Counts] = field(default_factory=dict)
    findings: list[DataIssue] = field(default_factory=list)
    seconds: float = 0.0

    def number(self, severity: str) -> int:
        return sum(issue.severity == severity for issue in self.findings)

    @property
    def verdict(self) -> str:
        numbers = {word: self.number(word) for word in ("defect", "warning")}
        return ", ".join(f"{number} {word}{'s' * (number != 1)}" for word, number in numbers.items() if number) or "OK"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def report_lines(report: DataReport, *, everything: bool) -> list[str]:
    """Return the lines of a printed report, with the first issues of each kind or with everything."""
    lines = [f"{report.name}: {report.title}", *(f"  {file}" for file in report.files)]
    lines += [f"  {line}" for line in count_lines(report)]
    for severity in ("defect", "warning", "note"):
        by_kind: dict[str, list[DataIssue]] = {}
        for issue in report.findings:
            if issue.severity == severity:
                by_kind.setdefault(issue.kind, []).append(issue)
        for kind, issues in by_kind.items():
            lines.append(f"  {severity}: {kind} ({len(issues)})")
            shown = issues if everything else issues[:SHOWN]
            for issue, following in zip_longest(shown, shown[1:]):
                place = "" if issue.place in issue.message else f"{issue.place}: "
                lines.append(f"    {printable(place + issue.message)}")
                if following is None and len(shown) < len(issues):
                    lines.append(f"    ... and {len(issues) - len(shown)} more (--all, or --json FILE)")
                # Consecutive issues with the same remedy print it once
                if issue.remedy and (following is None or following.remedy != issue.remedy):
                    lines.append(f"    -> {issue.remedy}")
    return [*lines, f"  {report.verdict} ({report.seconds:.1f} s)"]


def count_lines(report: DataReport) -> list[str]:
    """Return a table with one row per split. Expected counts are in brackets where they differ."""
    if not report.counts:
        return []
    rows = [["split", *FIELDS, ""]]
    for split, counts in report.counts.items():
        expected = report.expected.get(split, Counts())
        cells, known, differs = [], [], False
        for name in FIELDS:
            number, wanted = getattr(counts, name), getattr(expected, name)
            cell = "-" if number is None else f"{number:,}"
            if wanted is not None:
                known.append(name)
                differs |= number != wanted
                if number not in (None, wanted):
                    cell += f" (not {wanted:,})"
            cells.append(cell)
        if not known:
            remark = "nothing to compare with" if report.reference else ""
        elif differs:
            remark = f"differs from {report.reference}"
        else:
            remark = f"as {report.reference}" + ("" if len(known) == len(FIELDS) else f" ({', '.join(known)})")
        rows.append([split, *cells, remark])
    return aligned(rows)
