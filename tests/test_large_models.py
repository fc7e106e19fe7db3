"""Sharded parameters (FSDP) in two processes of gloo, and blocks that are recomputed in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

from distributed import run_distributed
from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.nonfinite import GuardedOptimWrapper
from refseg.engine.run import RunOptions, build_model, build_runner, load_config, train
from refseg.engine.run import test as evaluate
from refseg.errors import ConfigError, UsageError
from refseg.large_models import blocks_of, is_sharded, recompute, shard, whole

METHODS = [
    *("instalign_swinb", "rela_swinb", "lavt_swinb", "lgformer_swinb", "vipa_swinb", "latentvg_beit3b", "dmmi_swinb"),
    *("cgformer_swinb", "deris_beit3b", "mask2former_swinb"),
]


def losses_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of a fixed batch and the whole gradients."""
    batch = dummy_batch(
        shape=(64, 64), num_images=2, expressions_per_image=2, num_words=7, vocab_size=vocabulary_size(model)
    )
    torch.manual_seed(1)
    data = model.data_preprocessor(batch, True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def tiny(config: str) -> Any:
    cfg = load_config(config)
    cfg.merge_from_dict(cfg._tiny)
    torch.manual_seed(0)
    return build_model(cfg).train()


@pytest.mark.parametrize("config", METHODS)
def test_recomputed_blocks_have_the_same_gradients(config: str) -> None:
    plain, saving = tiny(config), tiny(config)
    saving.load_state_dict(plain.state_dict())
    assert len(recompute(saving, True)) >= 2
    (loss, expected), (other, found) = losses_and_gradients(plain), losses_and_gradients(saving)
    for (name, buffer), other_buffer in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(other_buffer, buffer, msg=name)  # running statistics are updated once
    assert other == pytest.approx(loss, rel=1e-5) and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_recompute_by_name() -> None:
    model = tiny("lavt_swinb")
    (part,) = recompute(model, "encoder.text")
    assert part is model.encoder.text
    with pytest.raises(ConfigError, match="gradient_checkpointing: LAVT has no module 'decodr'"):
        recompute(model, ["decodr"])


def test_runner_recomputes(tmp_path: Path, tiny_options: dict) -> None:
    options = RunOptions(work_dir=str(tmp_path), cfg_options=tiny_options | {"gradient_checkpointing": True})
    runner = build_runner(load_config("baseline_tiny_refshapes", options))
    assert all("forward" in vars(block) for block in blocks_of(runner.model))


def check_gradients(rank: int, world_size: int, configs: list[str]) -> None:
    """Each process has the same batch, so the mean of their gradients is that of one process."""
    for config in configs:
        plain, sharded = tiny(config), tiny(config)
        shard(sharded)
        plain.load_state_dict({name: whole(value) for name, value in sharded.state_dict().items()})
        assert is_sharded(sharded) and not is_sharded(plain)
        (loss, expected), (other, found) = losses_and_gradients(plain), losses_and_gradients(sharded)
        assert abs(other - loss) < 1e-4 * abs(loss), config
        assert found.keys() == expected.keys(), config
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=f"{config} {name}")
        sharded.eval()
        with torch.no_grad(), DefaultScope.overwrite_default_scope("refseg"):
            batch = dummy_batch(shape=(64, 64), num_images=1, num_words=7, vocab_size=vocabulary_size(plain))
            sharded.val_step(batch)


def test_sharded_models_have_the_same_gradients() -> None:
    run_distributed(check_gradients, 2, ["instalign_swinb", "lavt_swinb", "vipa_swinb", "latentvg_beit3b"])


def train_all(rank: int, world_size: int, runs: list[tuple[dict, str, bool]]) -> None:
    for options, folder, resume in runs:
        train("baseline_tiny_refshapes", RunOptions(folder, options, launcher="pytorch", resume=resume))


def test_training_is_that_of_ordinary_processes(tmp_path: Path, tiny_options: dict) -> None:
    """The weights agree after two epochs, also if the second one continues a checkpoint of the other kind."""
    plain = tiny_options | {f"{split}_dataloader.batch_size": 2 for split in ("train", "val")}
    sharded, short = plain | {"fsdp": True}, {"train_cfg.max_epochs": 1}
    folders = [str(tmp_path / name) for name in ("plain", "sharded", "sharded then plain", "plain then sharded")]
    runs = [(plain, folders[0], False), (sharded, folders[1], False)]
    runs += [(sharded | short, folders[2], False), (plain, folders[2], True)]
    runs += [(plain | short, folders[3], False), (sharded, folders[3], True)]
    run_distributed(train_all, 2, runs)
    metrics = evaluate(f"{folders[1]}/baseline_tiny_refshapes.py", f"{folders[1]}/epoch_2.pth", RunOptions(folders[1]))
    assert metrics["refseg/gIoU"] >= 0  # one process, although the config says fsdp=True
    expected, *others = (torch.load(f"{folder}/epoch_2.pth", weights_only=False) for folder in folders)
    for folder, found in zip(folders[1:], others, strict=True):
        assert found["state_dict"].keys() == expected["state_dict"].keys()
        assert found["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
        for number, state in expected["optimizer"]["state"].items():
            other = found["optimizer"]["state"][number]["exp_avg"]
            assert type(other) is torch.Tensor
            torch.testing.assert_close(other, state["exp_avg"], rtol=1e-2, atol=1e-3, msg=f"{folder} {number}")
        for key, value in expected["state_dict"].items():
            torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=f"{folder} {key}")


def clip_and_step(rank: int, world_size: int) -> None:
    """ReLA has a parameter without a dimension, which is not sharded. Both models take the same steps."""
    plain, sharded = tiny("rela_swinb"), tiny("rela_swinb")
    shard(sharded)
    plain.load_state_dict({name: whole(value) for name, value in sharded.state_dict().items()})
    assert any(parameter.ndim == 0 for parameter in sharded.parameters())
    norms = []
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = GuardedOptimWrapper(optimizer, clip_grad=dict(max_norm=0.01))
        losses_and_gradients(model)
        wrapper._clip_grad()
        norms.append(wrapper.message_hub.get_scalar("train/grad_norm").current())
        optimizer.step()
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and norms[0] > 0.01
    state = sharded.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(whole(state[name]), value, rtol=1e-4, atol=1e-6, msg=name)


def test_clipping_counts_all_parts_of_the_gradient() -> None:
    run_distributed(clip_and_step, 2)


def test_encoders_recompute_their_own_blocks(tmp_path: Path, refshapes_tiny: Path) -> None:
    options: dict = {"gradient_checkpointing": True}
    for split in ("train", "val", "test"):
        options[f"{split}_dataloader.dataset.annotations.file"] = str(refshapes_tiny / "refshapes.jsonl")
        options[f"{split}_dataloader.dataset.pipeline.2.tokenizer.word_list"] = str(refshapes_tiny / "words.txt")
    runner = build_runner(load_config("lavt/lavt_tiny_refshapes", RunOptions(str(tmp_path), options)))
    vision = runner.model.encoder.vision
    assert vision.checkpointing and not any("forward" in vars(part) for part in vision.modules())
    assert any("forward" in vars(part) for part in runner.model.modules())


def test_fsdp_needs_processes(tmp_path: Path, tiny_options: dict) -> None:
    cfg = load_config("baseline_tiny_refshapes", RunOptions(str(tmp_path), tiny_options | {"fsdp": True}))
    with pytest.raises(UsageError, match="fsdp=True needs several processes"):
        build_runner(cfg)


def refuse_muon(rank: int, world_size: int, options: dict, folder: str) -> None:
    with pytest.raises(ConfigError, match="fsdp=True cannot train with MuonAdamW"):
        train("vipa_tiny_refshapes", RunOptions(folder, options, launcher="pytorch"))


def test_fsdp_needs_an_elementwise_optimizer(tmp_path: Path, refshapes_tiny: Path) -> None:
    options: dict = {"fsdp": True, "param_scheduler": None}
    for split in ("train", "val", "test"):
        options[f"{split}_dataloader.dataset.annotations.file"] = str(refshapes_tiny / "refshapes.jsonl")
        options[f"{split}_dataloader.dataset.pipeline.2.tokenizer.word_list"] = str(refshapes_tiny / "words.txt")
    run_distributed(refuse_muon, 2, options, str(tmp_path))
