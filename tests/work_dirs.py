"""Work directories of tiny models with random weights, as a training leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

WorkDir = Callable[[str], Path]

# Random weights of LAVT say 0.51..0.57 everywhere: here about half of the pixels are mask.
MORE_OPTIONS: dict[str, dict] = {"lavt_tiny_refshapes": {"model.postprocess": {"threshold": 0.544}}}


@pytest.fixture(scope="session")
def work_dir(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """config name -> a folder with the config, on RefShapes tiny, and best_refseg_gIoU_epoch_1.pth; made once each."""
    from refseg.engine.run import RunOptions, build_model, load_config

    made: dict[str, Path] = {}

    def make(config: str) -> Path:
        if config not in made:
            made[config] = folder = tmp_path_factory.mktemp(config)
            options = {
                "test_dataloader.batch_size": 1,
                "test_dataloader.num_workers": 0,
                "test_dataloader.dataset.no_target": "keep",
                "test_dataloader.dataset.annotations.file": str(refshapes_tiny / "refshapes.jsonl"),
                "test_dataloader.dataset.pipeline.2.tokenizer.word_list": str(refshapes_tiny / "words.txt"),
                "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}], "_delete_": True},
            }
            cfg = load_config(config, RunOptions(cfg_options=options | MORE_OPTIONS.get(config, {})))
            for key in ("launcher", "work_dir"):
                cfg.pop(key)
            cfg.dump(folder / f"{config}.py")
            torch.manual_seed(0)
            state = build_model(cfg).state_dict()
            torch.save({"state_dict": state, "meta": {}}, folder / "best_refseg_gIoU_epoch_1.pth")
        return made[config]

    return make


@pytest.fixture(scope="session")
def refshapes_images(refshapes_tiny: Path) -> list[str]:
    return sorted(str(path) for path in (refshapes_tiny / "images").glob("*.png"))[:5]
