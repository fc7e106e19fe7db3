"""Work in several processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from refseg.errors import UsageError


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step on the CPU frees, for the next step.

    By default, glibc returns each large array to the system, which clears all pages again for the next one. This took a
    fifth of a step with large arrays (docs/troubleshooting.md). Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    # From malloc.h: no arrays of their own (M_MMAP_MAX), no shrinking (M_TRIM_THRESHOLD), growth by 64 MiB (M_TOP_PAD)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):
            libc.mallopt(option, value)


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
