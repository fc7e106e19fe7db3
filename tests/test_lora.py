"""LoRA: what is trained, what stays, and that a state dict is an ordinary one with the same answers."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from refseg.engine.muon import MuonConstructor
from refseg.engine.run import RunOptions, train
from refseg.errors import CheckpointError, ConfigError
from refseg.inference.loading import load_model
from refseg.lora import adapters_of, lora_parameters, restore_adapters
from refseg.models import BackboneEncoder, FusedEncoder, TextEncoder, TimmEncoder, TransformersVisionEncoder
from refseg.structures import TextTokens
from refseg.weights import read_checkpoint

pytest.importorskip("peft")

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
BERT = dict(config=dict(model_type="bert", vocab_size=40, **SIZES))
MPNET = dict(config=dict(model_type="mpnet", vocab_size=40, pad_token_id=1, max_position_embeddings=20, **SIZES))
VIT = dict(name="vit_tiny_patch16_224", options=dict(depth=2, embed_dim=32, num_heads=2), pyramid_dim=16)
SWIN = dict(
    name="swin_tiny_patch4_window7_224", options=dict(depths=(1, 1, 1, 1), embed_dim=16, num_heads=(1, 1, 2, 2))
)
DINOV2 = dict(
    config=dict(
        model_type="dinov2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    ),
    pyramid_dim=16,
)


class Mixed(nn.Module):
    """A batch norm beside a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 16, 16, 16), nn.BatchNorm2d(16), nn.Linear(16, 16)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.linear(self.norm(self.conv(images)).transpose(1, -1)).transpose(1, -1)]


ENCODERS: dict[str, Callable[..., Any]] = {
    "bert": partial(TextEncoder, **BERT),
    "mpnet": partial(TextEncoder, **MPNET),
    "vit": partial(TimmEncoder, **VIT),
    "swin": partial(TimmEncoder, **SWIN),
    "dinov2": partial(TransformersVisionEncoder, **DINOV2),
    "mixed": lambda **settings: BackboneEncoder(backbone=Mixed(), pyramid_dim=16, **settings),
}
LORA = dict(rank=4, alpha=8)


def outputs(encoder: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    if isinstance(encoder, TextEncoder):
        ids = torch.randint(5, 40, (2, 5))
        return [encoder.encode(TextTokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2)))]
    return encoder(torch.randn(2, 3, *(encoder.fixed_size or (64, 64)) if hasattr(encoder, "fixed_size") else (64, 64)))


def take_steps(encoder: nn.Module, steps: int = 3) -> None:
    """Train what has gradients."""
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        loss = sum(output.sin().mean() for output in outputs(encoder.train()))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
        optimizer.step()


def differences(first: nn.Module, second: nn.Module) -> list[float]:
    with torch.no_grad():
        pairs = zip(outputs(first.eval()), outputs(second.eval()), strict=True)
        return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


@pytest.mark.parametrize("kind", ENCODERS)
def test_training_and_merging(kind: str) -> None:
    """A few steps leave all weights and statistics of the network bit-equal, and change its answers. An encoder without
    LoRA that loads the state dict gives the same answers, to 1e-5 of the largest value."""
    torch.manual_seed(0)
    encoder, plain = ENCODERS[kind](lora=LORA), ENCODERS[kind]()
    plain.load_state_dict(encoder.state_dict())
    assert max(differences(encoder, plain)) == 0
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or name.startswith("pyramid") for name in trained)
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    before = {name: tensor.clone() for name, tensor in tensors.items() if name not in trained}
    take_steps(encoder)
    assert all(torch.equal(tensors[name], value) for name, value in before.items())
    assert any(value.any() for name, value in adapters_of(encoder).items() if "lora_B" in name)
    assert max(differences(encoder, plain)) > 1e-3
    plain.load_state_dict(encoder.state_dict())
    assert max(differences(encoder, plain)) < 1e-5


def test_number_of_trained_parameters() -> None:
    """Rank 4 in two layers of BERT: four maps of 32 to 32, one of 32 to 48, and one of 48 to 32 in each. A map of n to
    m gets 4 (n + m)."""
    encoder = TextEncoder(**BERT, lora=LORA)
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert trained == 2 * 4 * (4 * (32 + 32) + (32 + 48) + (48 + 32)) == 3328


def test_layers_no_larger_than_the_rank_get_none() -> None:
    """The maps of 32 to 32 are smaller than rank 40; so are those of 32 to 48, whose smaller side counts."""
    with pytest.raises(ConfigError, match=r"bert has no linear layers of more than 40 channels.*Remove lora"):
        TextEncoder(**BERT, lora=dict(rank=40))


def test_loading_into_an_encoder_with_lora() -> None:
    """Loaded weights count as they are, so the answers are those of the encoder that they are from."""
    torch.manual_seed(0)
    encoder, plain = TextEncoder(**BERT, lora=LORA), TextEncoder(**BERT)
    take_steps(encoder)
    encoder.load_state_dict(plain.state_dict())
    assert max(differences(encoder, plain)) == 0


def test_adapters_continue_exactly() -> None:
    torch.manual_seed(0)
    encoder, other = TextEncoder(**BERT, lora=LORA), TextEncoder(**BERT, lora=LORA)
    take_steps(encoder)
    other.load_state_dict(encoder.state_dict())
    restore_adapters(other, adapters_of(encoder), "FILE")
    pairs = zip(encoder.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(CheckpointError, match="--resume: FILE was trained with other keys `lora`"):
        restore_adapters(other, {}, "FILE")


def test_layers_of_a_text_encoder() -> None:
    """`trained_layers` are the ones whose additions are trained."""
    encoder = TextEncoder(**BERT, lora=LORA, trained_layers=1)
    trained = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"0"}


@pytest.mark.parametrize("kind", ["vit", "swin", "dinov2"])
def test_gradient_checkpointing(kind: str) -> None:
    encoders = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoders.append(ENCODERS[kind](lora=LORA, checkpointing=checkpointing))
        take_steps(encoders[-1], steps=2)
    assert max(differences(*encoders)) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_frozen_and_lora_exclude_each_other(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"frozen=True and lora exclude each other.* remove frozen"):
        ENCODERS[kind](lora=LORA, frozen=True)


def test_convolutional_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"TimmEncoder tf_efficientnet_lite0 has no linear layers.*--lora text"):
        TimmEncoder(name="tf_efficientnet_lite0", lora={})
    with pytest.raises(ConfigError, match="ResNet: lora is for models of timm and transformers"):
        FusedEncoder(
            vision=dict(type="BackboneEncoder", backbone=dict(type="mmdet.ResNet", depth=18), lora={}),
            text=dict(type="TextEncoder", **BERT),
        )


def test_peft_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without_peft(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ConfigError, match=r"lora needs peft. Install it with `pip install refseg\[lora\]`"):
        TextEncoder(**BERT, lora={})


def test_rates() -> None:
    """Additions have the rate of new parts, whatever the encoder's layers have, and take AdamW's steps, not Muon's."""
    model = nn.Module()
    model.encoder = FusedEncoder(
        vision=dict(type="TimmEncoder", **VIT, lora=LORA), text=dict(type="TextEncoder", **BERT, lora=LORA)
    )
    model.decoder = nn.Linear(4, 4)
    optimizer = dict(type="MuonAdamW", lr=1e-3)
    paramwise = dict(encoder_lr_mult=0.02, new_parts_lr_mult=2.0, layer_decay=dict(vision=0.5))
    with DefaultScope.overwrite_default_scope("refseg"):
        build = MuonConstructor(dict(type="OptimWrapper", optimizer=optimizer), paramwise)
        groups = build(model).optimizer.param_groups
    adapters = lora_parameters(model)
    by_id = {id(p): (group["lr"], group["orthogonal"]) for group in groups for p in group["params"]}
    assert {by_id[key] for key in adapters} == {(2e-3, False)}
    assert by_id[id(model.decoder.weight)] == (2e-3, True)
    assert by_id[id(model.encoder.vision.pyramid.outputs[0][0].weight)] == (2e-3, True)


def test_checkpoints_are_ordinary_and_continue_exactly(tiny_config: Path, tmp_path: Path) -> None:
    """A training of two epochs, and its second epoch once more from the first one's checkpoint.

    The weights that LoRA adds to stay bit-equal. The model of the work directory is one without LoRA.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    options: dict[str, Any] = {"model.text_encoder.lora": LORA}
    train(str(tiny_config), RunOptions(work_dir=str(first), cfg_options=options))
    second.mkdir()
    shutil.copy(first / "epoch_1.pth", second)
    train(str(tiny_config), RunOptions(work_dir=str(second), cfg_options=options, resume=True))
    start, whole, continued = (
        read_checkpoint(file) for file in (first / "epoch_1.pth", first / "epoch_2.pth", second / "epoch_2.pth")
    )
    for part in ("state_dict", "adapters"):
        assert whole[part].keys() == continued[part].keys()
        assert all(torch.equal(value, continued[part][name]) for name, value in whole[part].items())
    same = {name for name, value in whole["adapters"].items() if torch.equal(value, start["adapters"][name])}
    assert same == {name for name in whole["adapters"] if "base_layer" in name}

    loaded = load_model(first)
    assert not lora_parameters(loaded.segmentor)
    best = read_checkpoint(loaded.checkpoint)
    assert "adapters" not in best and not any("lora" in name for name in best["state_dict"])
