"""Arguments, timing, and output that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make_parser(doc: str | None, *, repeats: int, repeats_help: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the script's docstring as description, and with `--repeats` and `--json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=repeats_help)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser


def time_in_turns(
    functions: dict[str, Callable[[], Any]], repeats: int, *, warm_ups: int = 0, untimed: int = 0
) -> dict[str, list[float]]:
    """Return the seconds of each call of each function. They run in turns, so ratios compare runs of the same minute.

    Args:
        warm_ups: Number of turns that do not count.
        untimed: Number of calls before each timed one, so that it does not pay for memory that another function has
            just returned to the system.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-warm_ups, repeats):
        for name, function in functions.items():
            for _ in range(untimed):
                function()
            start = time.perf_counter()
            function()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def write_json(file: Path | None, result: dict[str, Any]) -> None:
    """Write the numbers if `--json` asks for it."""
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
