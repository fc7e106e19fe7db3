"""Work in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from refseg.errors import UsageError


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_map(function: Callable, items: Sequence, workers: int, *, chunksize: int) -> Iterator[Iterator[Any]]:
    """Yield the results of a function, in the order of its items.

    Args:
        function: A function that can be pickled. Each process receives it once.
        items: Its arguments.
        workers: Number of new processes. With one worker, or if all items fit in one chunk, this process does the work.
        chunksize: Number of items that a process receives at a time.

    Raises:
        UsageError: A process died.
    """
    workers = min(workers, -(-len(items) // chunksize))
    if workers <= 1:
        yield map(function, items)
        return
    # Unlike a Pool, an executor does not start workers forever if a script lacks `if __name__ == "__main__":`.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(function,))
    try:
        yield pool.map(_call, items, chunksize=chunksize)
    except BrokenProcessPool:
        raise UsageError(
            "A worker process died (out of memory?). Use fewer workers, or fewer cores (taskset). A script must "
            "start the work below `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable  # set in each new process


def _start(function: Callable) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _function = function


def _call(item: Any) -> Any:
    return _function(item)
