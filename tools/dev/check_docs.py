"""Check that links, anchors, repository paths and make targets in *.md files exist.

Standard library only: `python tools/dev/check_docs.py [FILE.md ...]`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "work_dirs", "build", "dist", "node_modules", ".mim"}
BLOCK = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^()\s>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"`([^`\n]+)`")
# A path is checked when it starts with one of these and has no placeholder in it.
PATH = re.compile(
    r"(?<![\w./-])((?:projects|configs|tools|tests|docs|requirements|\.ci|\.github)/[\w./-]*\w|data/README\.md"
    r"|Makefile|setup\.py|pyproject\.toml|MANIFEST\.in|README\.md|LICENSE)(?![\w*{<$/…])"
)
TARGET = re.compile(r"(?<![\w-])make (?:[A-Z_]+=\S+ )*([a-z][a-z-]*)")


def markdown_files() -> list[Path]:
    pages = []
    for folder, subfolders, files in os.walk(REPO):
        # a virtual environment may have any name
        subfolders[:] = [
            sub for sub in subfolders if sub not in SKIPPED and not Path(folder, sub, "pyvenv.cfg").exists()
        ]
        pages += [Path(folder, file) for file in files if file.endswith(".md")]
    return sorted(pages)


def anchors(file: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    counts: dict[str, int] = {}
    result = set()
    for title in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", without_blocks(file.read_text(encoding="utf-8")), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = counts.get(name, 0)
        counts[name] = count + 1
        result.add(f"{name}-{count}" if count else name)
    return result


def without_blocks(text: str) -> str:
    """Replace fenced blocks by spaces, so that positions stay the same."""
    return BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), text)


def make_targets() -> set[str]:
    makefile = REPO / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.exists() else ""
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


def broken_links(file: Path, text: str) -> Iterator[tuple[int, str]]:
    for match in LINK.finditer(without_blocks(text)):
        target = match.group(1)
        if re.match(r"[a-z][a-z0-9+.-]*:", target):  # http:, mailto: ...
            continue
        path, _, anchor = target.partition("#")
        page = (REPO / path.lstrip("/") if path.startswith("/") else file.parent / path) if path else file
        if not page.exists():
            yield match.start(), f"link to {path}, which does not exist"
        elif anchor and page.suffix == ".md" and anchor.lower() not in anchors(page):
            yield match.start(), f"link to #{anchor}, which is not a heading of {page.relative_to(REPO)}"


def broken_code(file: Path, text: str) -> Iterator[tuple[int, str]]:
    targets = make_targets()
    blocks = [(m.start(), m.group()) for m in BLOCK.finditer(text)]
    spans = [(m.start(), m.group(1)) for m in CODE.finditer(without_blocks(text))]
    for start, code in blocks + spans:
        for match in PATH.finditer(code):
            path = match.group(1)
            if not (REPO / path).exists() and not (file.parent / path).exists():
                yield start + match.start(), f"path {path}, which does not exist"
        for match in TARGET.finditer(code):
            if match.group(1) not in targets and code.lstrip("`~$ bash\n").startswith("make"):
                yield start + match.start(), f"`make {match.group(1)}`, which is not a target of the Makefile"


def check(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    problems = sorted([*broken_links(file, text), *broken_code(file, text)])
    name = file.relative_to(REPO) if file.is_relative_to(REPO) else file
    return [f"{name}:{text.count(chr(10), 0, at) + 1}: {what}" for at, what in problems]


def main() -> int:
    files = [Path(name).resolve() for name in sys.argv[1:]] or markdown_files()
    problems = [problem for file in files for problem in check(file)]
    print("\n".join([*problems, f"{len(files)} pages checked, {len(problems)} problems"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
