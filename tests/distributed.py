"""Run a function of a test module in several processes of torch.distributed."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _worker(rank: int, file: str, name: str, world_size: int, port: int, backend: str, args: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    spec = importlib.util.spec_from_file_location("distributed_test_module", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(rank, world_size, *args)
    dist.barrier()  # gloo may abort a process that leaves while others still send to it
    dist.destroy_process_group()


def run_distributed(function: Callable, world_size: int, *args: Any, backend: str = "gloo") -> None:
    """Run `function(rank, world_size, *args)` on every rank, and raise an exception of any of them here.

    The ranks are forks of one server without threads. It imports the libraries once, so they start in milliseconds.
    """
    mp.get_context("forkserver").set_forkserver_preload(["refseg.datasets.dataset", "refseg.evaluation.metrics"])
    # Functions are passed by file and name, because pytest's modules cannot be imported in another process.
    arguments = (function.__code__.co_filename, function.__name__, world_size, free_port(), backend, args)
    mp.start_processes(_worker, arguments, nprocs=world_size, start_method="forkserver")
