"""A work directory of a model with pretrained encoders answers where their packages are not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from refseg import pretrained
from refseg.engine.run import RunOptions, train
from refseg.inference.inferencer import ReferringInferencer
from refseg.inference.results import ImageAnswer
from refseg.pretrained import PACKAGES

TEXTS = ["the red circle", "a small triangle", "the zebra"]


@pytest.fixture(scope="module")
def trained(refshapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train InstAlign with MiniLM and EfficientNet-Lite0 for an epoch of two steps."""
    for package in PACKAGES.values():
        pytest.importorskip(package.module)
    vision = dict(type="TimmEncoder", name="tf_efficientnet_lite0", pretrained="efficientnet_lite0", _delete_=True)
    options: dict = {
        "model.embed_dim": 32,
        "model.decoder": dict(num_blocks=2, num_queries=4, ffn_dim=32),
        "model.encoder.vision": vision,
        "model.encoder.text": dict(type="TextEncoder", pretrained="minilm", frozen=True, _delete_=True),
        "param_scheduler": None,
        "train_cfg": dict(max_epochs=1, val_interval=2),
        "default_hooks.checkpoint": dict(interval=1, save_best=None),
        "env_cfg.mp_cfg.mp_start_method": "fork",
        "visualizer": dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")], _delete_=True),
        "train_dataloader.dataset.expressions_per_image": 2,
    }
    for split in ("train", "val", "test"):
        options |= {
            f"{split}_dataloader.num_workers": 0,
            f"{split}_dataloader.persistent_workers": False,
            f"{split}_dataloader.batch_size": 12,
            f"{split}_dataloader.dataset.annotations.file": str(refshapes_tiny / "refshapes.jsonl"),
            f"{split}_dataloader.dataset.pipeline.2.tokenizer.word_list": str(refshapes_tiny / "words.txt"),
        }
    work_dir = tmp_path_factory.mktemp("trained")
    train("instalign_tiny_refshapes", RunOptions(work_dir=str(work_dir), cfg_options=options))
    return work_dir


def answers(folder: Path, image: str) -> list[ImageAnswer]:
    return [ReferringInferencer(folder, device="cpu")(image, text) for text in TEXTS]


def test_a_moved_folder_answers_alike(
    trained: Path, tmp_path: Path, refshapes_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has the architecture, all weights, and the tokenizer."""
    before = answers(trained, refshapes_images[0])
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    trained.rename(trained.with_name("gone"))
    try:
        monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
        after = answers(moved, refshapes_images[0])
    finally:
        trained.with_name("gone").rename(trained)
    assert (moved / "tokenizer" / "tokenizer.json").is_file()
    for one, other in zip(before, after, strict=True):
        (one,), (other,) = one.phrases, other.phrases
        assert one.no_target_prob == other.no_target_prob
        np.testing.assert_array_equal(one.mask, other.mask)
    assert len({one.phrases[0].no_target_prob for one in before}) == len(TEXTS)
