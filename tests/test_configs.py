"""Every leaf config: no key is a typo, its parameter groups match something, and its model, at tiny size, takes a
training step and makes a prediction. A base file says how its model shrinks with `_tiny = dict(model=...)`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from conftest import REPOSITORY
from refseg.apis import load_config
from refseg.apis.dummy import build_model, dummy_batch, vocabulary_size
from refseg.registry import METRICS

LEAVES = sorted(
    path.relative_to(REPOSITORY / "configs")
    for path in (REPOSITORY / "configs").rglob("*.py")
    if not any(part.startswith("_") for part in path.relative_to(REPOSITORY / "configs").parts)
)
# One config per method for `make check`.
SMOKE = (
    "baseline_tiny_refshapes instalign_swinb lgformer_swinb vipa_swinb latentvg_beit3b lavt_swinb rela_swinb "
    "mask2former_swinb"
).split()


def tiny(leaf: Path) -> Config:
    cfg = load_config(str(REPOSITORY / "configs" / leaf))  # raises on unknown keys
    cfg.merge_from_dict(cfg.get("_tiny", {}))
    return cfg


def test_there_are_leaves() -> None:
    assert LEAVES


def test_smoke_configs_exist() -> None:
    assert {Path(f"{name}.py") for name in SMOKE} <= set(LEAVES)


@pytest.mark.parametrize(
    "leaf", [pytest.param(leaf, marks=[pytest.mark.smoke] * (leaf.stem in SMOKE), id=str(leaf)) for leaf in LEAVES]
)
def test_a_leaf_takes_a_step_and_predicts(leaf: Path) -> None:
    cfg = tiny(leaf)
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = dummy_batch(
        shape=(64, 64), num_images=2, expressions_per_image=2, num_words=7, vocab_size=vocabulary_size(model)
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for key in (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys", {}):
        assert any(key in name for name in before), f"paramwise_cfg.custom_keys[{key!r}] matches no parameter"
    model.train()
    log = model.train_step(batch, wrapper)
    assert torch.isfinite(log["loss"])
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert moved, "no parameter changed"

    model.eval()
    results = model.val_step(batch)
    assert [result.masks.shape for result in results] == [(2, 64, 64)] * 2
    assert all(result.masks.dtype is torch.bool and result.rejected.shape == (2,) for result in results)


def test_leaves_of_a_data_set_choose_the_best_checkpoint_alike() -> None:
    """By what the data set's file says: validation protocols and metric agree within a data set, and no leaf sets them.
    The metric is one that validation gives."""
    chosen: dict[str, set[tuple]] = {}
    for leaf in LEAVES:
        cfg = Config.fromfile(REPOSITORY / "configs" / leaf)
        assert cfg.default_hooks.checkpoint.save_best == "auto", leaf
        evaluator = cfg.val_evaluator
        assert evaluator.save_best in METRICS.build(evaluator).metric_names, leaf
        data = cfg.val_dataloader.dataset
        name = f"{data.annotations.to_dict()} {data.get('no_target')}"
        chosen.setdefault(name, set()).add((tuple(evaluator.protocols), evaluator.save_best))
        source = (REPOSITORY / "configs" / leaf).read_text()
        assert "val_evaluator" not in source and "save_best" not in source, leaf
    assert len(chosen) >= 8 and {name: found for name, found in chosen.items() if len(found) > 1} == {}


@pytest.mark.parametrize("leaf", ["lgformer_swinb.py", "lgformer_ablations/table4_pwam.py", "lavt_swinb.py"])
def test_refcoco_configs_score_as_lavt_does(leaf: str) -> None:
    cfg = Config.fromfile(REPOSITORY / "configs" / leaf)
    assert tuple(cfg.val_evaluator.protocols) == tuple(cfg.test_evaluator.protocols) == ("lavt", "refseg")
    assert cfg.val_evaluator.save_best == "lavt/oIoU"


def test_leaves_are_short() -> None:
    for leaf in LEAVES:
        lines = (REPOSITORY / "configs" / leaf).read_text().splitlines()
        assert len(lines) <= 40, f"{leaf} has {len(lines)} lines: a leaf is four bases and a few overrides"
