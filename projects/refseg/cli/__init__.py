"""The `refseg` command: one file per verb."""

from refseg.cli.main import main

__all__ = ["main"]
