"""Official Swin weights into SwinEncoder and back; what is known of the official layout is written down here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.official_swin import swin_state_to_official
from refseg.errors import CheckpointError
from refseg.models.encoders.swin import SwinEncoder
from refseg.models.encoders.swin_weights import (
    from_official_order,
    is_swin_key,
    load_official_swin,
    resize_table,
    swin_state_from_official,
)

ARCH = dict(embed_dims=4, depths=(2, 1), num_heads=(1, 2))
WINDOW = 3


def official_state(norms: bool = False) -> dict[str, Tensor]:
    """A classifier's weights as the official code names them, for ARCH: 2 stages, widths 4 and 8, 3 blocks."""
    shapes = {"patch_embed.proj.weight": (4, 3, 4, 4), "patch_embed.proj.bias": (4,)}
    shapes |= {"patch_embed.norm.weight": (4,), "patch_embed.norm.bias": (4,)}
    for name, width, heads in (("0.blocks.0", 4, 1), ("0.blocks.1", 4, 1), ("1.blocks.0", 8, 2)):
        block = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.relative_position_bias_table": (25, heads),
            "attn.relative_position_index": (9, 9),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        shapes |= {f"layers.{name}.{part}": shape for part, shape in block.items()}
    shapes |= {"layers.0.blocks.1.attn_mask": (4, 9, 9)}
    shapes |= {"layers.0.downsample.norm.weight": (16,), "layers.0.downsample.norm.bias": (16,)}
    shapes |= {"layers.0.downsample.reduction.weight": (8, 16)}
    if norms:
        shapes |= {"norm0.weight": (4,), "norm0.bias": (4,), "norm1.weight": (8,), "norm1.bias": (8,)}
    else:
        shapes |= {"norm.weight": (8,), "norm.bias": (8,), "head.weight": (10, 8), "head.bias": (10,)}
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


LEFT_OUT = [
    *(f"layers.{block}.attn.relative_position_index" for block in ("0.blocks.0", "0.blocks.1", "1.blocks.0")),
    "layers.0.blocks.1.attn_mask",
    *("norm.weight", "norm.bias", "head.weight", "head.bias"),
]


def encoder(**settings) -> SwinEncoder:
    return SwinEncoder(**{"arch": ARCH, "window_size": WINDOW, "out_stages": (0, 1), **settings})


def test_every_key_is_converted_or_left_out() -> None:
    official = official_state()
    state, left_out = swin_state_from_official(official, window_size=WINDOW)
    assert sorted(left_out) == sorted(LEFT_OUT)
    assert len(state) == len(official) - len(left_out)
    wanted = {name for name, _ in encoder(out_stages=(1,)).named_parameters() if not name.startswith("norm")}
    assert set(state) == wanted
    norms, left_out = swin_state_from_official(official_state(norms=True), window_size=WINDOW)
    assert sorted(left_out) == sorted(LEFT_OUT[:4])
    assert set(norms) == {name for name, _ in encoder().named_parameters()}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "module.backbone."])
def test_round_trip(prefix: str) -> None:
    official = {f"{prefix}{name}": value for name, value in official_state(norms=True).items()}
    state, left_out = swin_state_from_official(official, window_size=WINDOW)
    back = swin_state_to_official(state)
    kept = {name.removeprefix(prefix): value for name, value in official.items() if name not in left_out}
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[name], kept[name]) for name in kept)
    own = encoder().state_dict()
    again, _ = swin_state_from_official(swin_state_to_official(own), window_size=WINDOW)
    assert all(torch.equal(again[name], own[name]) for name in again)


def official_patch_merging(tokens: Tensor, size: tuple[int, int], weights: dict[str, Tensor]) -> Tensor:
    """Section 3.1 of the paper, with the order of neighbours in the official code: row offset first."""
    image = tokens.unflatten(1, size)  # (N, h, w, C)
    neighbours = [image[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    merged = torch.cat(neighbours, -1)
    merged = (merged - merged.mean(-1, keepdim=True)) / (merged.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    merged = merged * weights["norm.weight"] + weights["norm.bias"]
    return (merged @ weights["reduction.weight"].t()).flatten(1, 2)


def test_patch_merging_equals_the_official_one() -> None:
    from mmdet.models.layers import PatchMerging  # takes seconds to import

    torch.manual_seed(0)
    weights = {"norm.weight": torch.randn(12), "norm.bias": torch.randn(12), "reduction.weight": torch.randn(6, 12)}
    merging = PatchMerging(3, 6)
    merging.load_state_dict({name: from_official_order(value) for name, value in weights.items()})
    tokens = torch.randn(2, 24, 3)
    found, size = merging(tokens, (4, 6))
    assert size == (2, 3)
    torch.testing.assert_close(found, official_patch_merging(tokens, (4, 6), weights))


def test_channel_order_by_hand() -> None:
    """C = 2, channels named by 10 * (neighbour) + channel; official neighbours 00, 10, 01, 11 with both channels each;
    unfolded: channel 0 of 00, 01, 10, 11, then channel 1."""
    official = torch.tensor([0, 1, 100, 101, 10, 11, 110, 111])
    assert from_official_order(official).tolist() == [0, 10, 100, 110, 1, 11, 101, 111]


def test_tables_of_another_window() -> None:
    """A table that is linear in the row keeps its mean and its symmetry; a constant one stays constant."""
    constant = torch.full((25, 2), 3.0)
    torch.testing.assert_close(resize_table(constant, 6), torch.full((121, 2), 3.0))
    rows = torch.arange(5.0)[:, None].expand(5, 5).flatten()
    table = torch.stack([rows, torch.zeros(25)], dim=1)  # head 0: the row; head 1: 0
    resized = resize_table(table, 4).view(7, 7, 2)
    torch.testing.assert_close(resized[..., 0], resized[:, :1, 0].expand(7, 7))
    torch.testing.assert_close(resized[..., 0] + resized.flip(0)[..., 0], torch.full((7, 7), 4.0))
    assert torch.all(resized[1:, 0, 0] > resized[:-1, 0, 0]) and torch.all(resized[..., 1] == 0)
    state, _ = swin_state_from_official(official_state(), window_size=4)
    assert state["stages.0.blocks.0.attn.w_msa.relative_position_bias_table"].shape == (49, 1)


def test_unknown_keys_are_the_callers_business() -> None:
    official = official_state(norms=True)
    fusion = {"layers.0.fusion.project_mm.0.weight": torch.zeros(1), "layers.0.res_gate.0.weight": torch.zeros(1)}
    assert all(is_swin_key(key) for key in official)
    assert not any(is_swin_key(key) for key in [*fusion, "classifier.conv1_4.weight", "layers.0.blocks.0.attn.q.bias"])
    with pytest.raises(CheckpointError, match=r"2 keys are not from Swin: layers\.0\.fusion"):
        swin_state_from_official(official | fusion, window_size=WINDOW)


@pytest.mark.parametrize("key", ["patch_embed.norm.bias", "layers.0.downsample.norm.weight", "layers.0.blocks.0"])
def test_missing_keys_are_reported(key: str) -> None:
    official = {name: value for name, value in official_state().items() if not name.startswith(key)}
    with pytest.raises(CheckpointError, match=rf"keys of Swin are missing: {key}"):
        swin_state_from_official(official, window_size=WINDOW)


@pytest.mark.parametrize("kind", ["model", "state_dict", "bare", "safetensors"])
def test_loads_files(tmp_path: Path, kind: str) -> None:
    official = official_state()
    file = tmp_path / ("swin.safetensors" if kind == "safetensors" else "swin.pth")
    if kind == "safetensors":
        save_file(official, file)
    else:
        torch.save(official if kind == "bare" else {kind: official, "epoch": 3}, file)
    loaded = encoder(out_stages=(1,))
    assert f"{len(LEFT_OUT)} of the file not used" in load_official_swin(loaded, str(file))
    state, _ = swin_state_from_official(official, window_size=WINDOW)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
    assert torch.all(loaded.norm1.weight == 1)


def test_output_norms_are_loaded_if_the_encoder_has_them(tmp_path: Path) -> None:
    official, file = official_state(norms=True), tmp_path / "swin.pth"
    torch.save(official, file)
    loaded = encoder(out_stages=(1,))
    load_official_swin(loaded, str(file))
    assert torch.equal(loaded.norm1.weight, official["norm1.weight"])


def test_other_architectures_are_rejected(tmp_path: Path) -> None:
    torch.save(official_state(), tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"swin\.pth: .*of another Swin.*missing: stages\.1\.blocks\.1"):
        load_official_swin(encoder(arch={**ARCH, "depths": (2, 2)}), str(tmp_path / "swin.pth"))
    with pytest.raises(CheckpointError, match="of another shape: patch_embed"):
        load_official_swin(encoder(arch={**ARCH, "embed_dims": 8}), str(tmp_path / "swin.pth"))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_files_of_other_libraries_give_the_same_features(library: str, tmp_path: Path) -> None:
    """Two stages on 16 x 16 tokens and windows of 4, where no padding tells the libraries apart."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    if library == "timm":
        from timm.models.swin_transformer import SwinTransformer

        other = SwinTransformer(
            img_size=64, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, drop_path_rate=0.0
        ).eval()
        state = other.state_dict()
        with torch.no_grad():
            tokens = other.layers(other.patch_embed(images)).flatten(1, 2)  # (1, P, C), before the classifier's norm
            norm = other.norm
    else:
        from transformers import SwinConfig, SwinForImageClassification

        settings = SwinConfig(
            image_size=64, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=4, drop_path_rate=0.0
        )
        other = SwinForImageClassification(settings).eval()
        other.save_pretrained(tmp_path)
        from safetensors.torch import load_file

        state = load_file(tmp_path / "model.safetensors")  # the names of files, which modules need not have
        with torch.no_grad():
            tokens = other.swin.encoder(
                *[other.swin.embeddings(images)[0], other.swin.embeddings(images)[1]]
            ).last_hidden_state
            norm = other.swin.layernorm
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "swin.safetensors")
    arch = dict(embed_dims=16, depths=(2, 2), num_heads=(1, 2))
    encoder = SwinEncoder(arch=arch, window_size=4, drop_path_rate=0.0, out_stages=(1,)).eval()
    load_official_swin(encoder, str(tmp_path / "swin.safetensors"))
    encoder.norm1.load_state_dict(norm.state_dict())
    with torch.no_grad():
        ours = encoder(images)[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, norm(tokens), atol=1e-4, rtol=1e-4)
