"""Shared fixtures: a tiny generated data set, and options that make a config small enough for a test."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores. torch reads this at import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tiny_models import BUILDERS
from work_dirs import refshapes_images, work_dir  # noqa: F401  (fixtures)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]  # of tests that run on both


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, except for `-m gpu`, because all other tests run on the CPU.

    Import the test modules without garbage collection, which takes seconds and would find nothing.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gc.disable()
    if "PYTEST_XDIST_WORKER" not in os.environ:  # before the workers start
        from refseg.compat import write_yapf_cache

        write_yapf_cache()


@pytest.hookimpl(optionalhook=True)  # also without xdist
def pytest_xdist_auto_num_workers() -> int:
    """Use three workers for two cores, since tests wait for subprocesses and timers. Four were slower."""
    return len(os.sched_getaffinity(0)) * 3 // 2 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of a GPU if there is none. Run slow tests first, so that no worker waits for one at the end."""
    for_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpus and not importlib.import_module("torch").cuda.is_available():
        for item in for_gpus:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; `pytest -m gpu` runs these tests on one"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Turn garbage collection on again, for objects that do not exist yet."""
    gc.freeze()
    gc.enable()


def load_script(path: str) -> ModuleType:
    """Import a Python file of the repository, such as a tool, as a new module."""
    file = REPOSITORY / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def forget_logs_of_deleted_runs() -> Iterator[None]:
    """Remove the log files of runs whose folder is gone from mmengine's loggers, which would open them again."""
    yield
    if logging_module := sys.modules.get("mmengine.logging"):
        for logger in logging_module.MMLogger._instance_dict.values():
            for handler in list(logger.handlers):
                file = getattr(handler, "baseFilename", None)
                if file and not Path(file).parent.is_dir():
                    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_sam2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a tiny SAM 2 with random weights."""
    return BUILDERS["sam2"](tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of all tiny zero-shot models, by kind."""
    root = tmp_path_factory.mktemp("zero_shot")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def refshapes_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate RefShapes tiny: 24 / 7 / 7 images."""
    from refseg.refshapes import generate

    out = tmp_path_factory.mktemp("refshapes_tiny")
    generate("tiny", out, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def tiny_options(refshapes_tiny: Path) -> dict:
    """Return `cfg_options` with which `baseline_tiny_refshapes` trains in seconds: tiny data and model."""
    options: dict = {
        "model.embed_dim": 32,
        "model.num_decoder_layers": 2,
        "model.text_encoder.config.hidden_size": 16,
        "model.text_encoder.config.intermediate_size": 16,
        "model.text_encoder.config.num_hidden_layers": 1,
        "optim_wrapper.paramwise_cfg": None,
        "param_scheduler": None,
        "train_cfg.max_epochs": 2,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.logger.interval": 1,
        "env_cfg.mp_cfg.mp_start_method": "fork",
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}], "_delete_": True},
        "train_dataloader.dataset.expressions_per_image": 6,
    }
    for split in ("train", "val", "test"):
        options |= {
            f"{split}_dataloader.num_workers": 0,
            f"{split}_dataloader.persistent_workers": False,
            f"{split}_dataloader.batch_size": 4,
            f"{split}_dataloader.dataset.annotations.file": str(refshapes_tiny / "refshapes.jsonl"),
            f"{split}_dataloader.dataset.pipeline.2.tokenizer.word_list": str(refshapes_tiny / "words.txt"),
        }
    return options


@pytest.fixture(scope="session")
def tiny_config(tiny_options: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write `baseline_tiny_refshapes` with `tiny_options` to a file, for commands."""
    from refseg.engine.run import RunOptions, load_config

    cfg = load_config("baseline_tiny_refshapes", RunOptions(cfg_options=tiny_options))
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    for key in ("launcher", "work_dir"):
        cfg.pop(key)
    cfg.dump(file)
    return file
