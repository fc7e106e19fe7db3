"""What image libraries say on stderr while they decode: the only sign that the middle of a JPEG is damaged."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from refseg.errors import UsageError

STDERR = 2
SIGNS_OF_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")  # libjpeg's; it goes on with what it has


@contextmanager
def damage_reported() -> Iterator[list[str]]:
    """What is written to file descriptor 2 within: after it, the list holds the lines that tell of damage; the others
    have gone on to stderr. It belongs to the whole process, so this is for processes whose one task is to check."""
    messages: list[str] = []
    try:
        stderr, file = os.dup(STDERR), tempfile.TemporaryFile()  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"to see damage while images are decoded, refseg needs stderr and a temporary file: {error}. Set TMPDIR, "
            "or leave image files out: --images none"
        ) from None
    with file:
        sys.stderr.flush()
        os.dup2(file.fileno(), STDERR)
        try:
            yield messages
        finally:
            sys.stderr.flush()
            os.dup2(stderr, STDERR)
            os.close(stderr)
            file.seek(0)
            messages += _sort_out(file.read())


def _sort_out(written: bytes) -> list[str]:
    lines = written.splitlines(keepends=True)
    damage = [line for line in lines if any(sign.encode() in line for sign in SIGNS_OF_DAMAGE)]
    others = b"".join(line for line in lines if line not in damage)
    if others:
        os.write(STDERR, others)
    return [line.decode(errors="replace").strip() for line in damage]
