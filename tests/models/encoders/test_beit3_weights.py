"""Conversion of official BEiT-3 weights. The official layout, as far as it is known, is written down here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from refseg.errors import CheckpointError
from refseg.models.encoders.beit3 import BEiT3Encoder, resize_positions
from refseg.models.encoders.beit3_weights import beit3_state_from_official, load_official_beit3

C, LAYERS, ARCH = 8, 2, dict(embed_dim=8, num_layers=2, num_heads=2, vocab_size=20, text_positions=12)


def official_state(grid: int = 2) -> dict[str, Tensor]:
    """Return the content of a pretrained file for ARCH and patches of 4, with the heads of other tasks."""
    shapes = {
        "beit3.text_embed.weight": (20, C),
        "beit3.vision_embed.proj.weight": (C, 3, 4, 4),
        "beit3.vision_embed.proj.bias": (C,),
        "beit3.vision_embed.cls_token": (1, 1, C),
        "beit3.vision_embed.mask_token": (1, 1, C),
        "beit3.encoder.embed_positions.A.weight": (grid**2 + 3, C),
        "beit3.encoder.embed_positions.B.weight": (12, C),
        "mlm_head.weight": (20, C),
        "mim_head.bias": (9,),
    }
    for way in "AB":
        shapes |= {f"beit3.encoder.layer_norm.{way}.{kind}": (C,) for kind in ("weight", "bias")}
        for layer in range(LAYERS):
            place = f"beit3.encoder.layers.{layer}"
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                shapes |= {
                    f"{place}.self_attn.{name}.{way}.weight": (C, C),
                    f"{place}.self_attn.{name}.{way}.bias": (C,),
                }
            for name in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
                shapes |= {f"{place}.{name}.{way}.{kind}": (C,) for kind in ("weight", "bias")}
            ffn = {"fc1.weight": (4 * C, C), "fc1.bias": (4 * C,), "fc2.weight": (C, 4 * C), "fc2.bias": (C,)}
            ffn |= {"ffn_layernorm.weight": (4 * C,), "ffn_layernorm.bias": (4 * C,)}
            shapes |= {f"{place}.ffn.{way}.{name}": shape for name, shape in ffn.items()}
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def encoder(image_size: int = 8, **settings: object) -> BEiT3Encoder:
    return BEiT3Encoder(**(dict(arch=ARCH, image_size=image_size, patch_size=4) | settings))


def test_every_key_is_converted_or_left_out() -> None:
    """Each official tensor has one place or a reason, and each weight of the encoder has one source."""
    official = official_state()
    state, left_out = beit3_state_from_official(official, grid=(2, 2))
    assert set(state) == set(encoder().state_dict())
    assert set(left_out) == {"beit3.vision_embed.mask_token", "mlm_head.weight", "mim_head.bias"}
    assert len(state) + len(left_out) == len(official)
    places = {tensor.data_ptr() for tensor in state.values()}
    assert len(places) == len(state)
    encoder().load_state_dict(state)


def test_names_by_hand() -> None:
    official = official_state()
    state, _ = beit3_state_from_official({f"module.{key}": value for key, value in official.items()}, grid=(2, 2))
    for ours, theirs in {
        "class_token": "vision_embed.cls_token",
        "positions.language.weight": "encoder.embed_positions.B.weight",
        "layers.1.query.vision.weight": "encoder.layers.1.self_attn.q_proj.A.weight",
        "layers.0.inner_norm.language.bias": "encoder.layers.0.self_attn.inner_attn_ln.B.bias",
        "layers.0.norm1.vision.weight": "encoder.layers.0.self_attn_layer_norm.A.weight",
        "layers.1.norm2.language.weight": "encoder.layers.1.final_layer_norm.B.weight",
        "layers.1.ffn.language.fc2.weight": "encoder.layers.1.ffn.B.fc2.weight",
        "layers.1.ffn.vision.norm.weight": "encoder.layers.1.ffn.A.ffn_layernorm.weight",
        "norm.vision.weight": "encoder.layer_norm.A.weight",
    }.items():
        assert torch.equal(state[ours], official[f"beit3.{theirs}"]), ours


def test_positions_are_resized() -> None:
    """The file is for 2 x 2 patches, the encoder has 3 x 3."""
    official = official_state()
    state, _ = beit3_state_from_official(official, grid=(3, 3))
    wanted = resize_positions(official["beit3.encoder.embed_positions.A.weight"], (3, 3))
    assert torch.equal(state["positions.vision.weight"], wanted) and len(wanted) == 12
    encoder(12).load_state_dict(state)


@pytest.mark.parametrize("name", ["beit3.pth", "beit3.zip", "beit3.safetensors"])
def test_files_are_loaded_when_training_starts(tmp_path: Path, name: str) -> None:
    """Under `model`, as official files have it; safetensors has no such level. The pyramid is left as it was."""
    official, file = official_state(), tmp_path / name
    save_file(official, file) if file.suffix == ".safetensors" else torch.save({"model": official}, file)
    module = encoder(pretrained=str(file), level_scales=(2, 1))
    before = module.pyramid[0][0].weight.clone()
    module.init_weights()
    assert torch.equal(module.text_embed.weight, official["beit3.text_embed.weight"])
    assert torch.equal(module.pyramid[0][0].weight, before)
    module.text_embed.weight.data.zero_()
    module.init_weights()  # mmengine may ask again
    assert not module.text_embed.weight.any()


def test_what_was_loaded_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "beit3.pth"
    torch.save({"module": official_state()}, file)
    module = encoder(level_scales=(2, 1))
    pyramid, loaded = len([*module.pyramid.parameters()]), len([*encoder().parameters()])
    assert load_official_beit3(module, str(file)) == (
        f"BEiT-3: {loaded} of {loaded + pyramid} tensors loaded from {file}; {pyramid} kept their initial values: "
        f"pyramid ({pyramid}); 3 of the file not used: beit3.vision_embed.mask_token, mim_head (1), mlm_head (1)"
    )


def test_invalid_inputs_raise(tmp_path: Path) -> None:
    official = official_state()
    with pytest.raises(CheckpointError, match=r"No key starts with 'beit3\.'"):
        beit3_state_from_official({"vision.weight": torch.zeros(1)}, grid=(2, 2))
    odd = {"beit3.encoder.embed_positions.A.weight": torch.zeros(8, C)}
    with pytest.raises(CheckpointError, match=r"8 rows\. Expected 3 and a square"):
        beit3_state_from_official(official | odd, grid=(2, 2))
    with pytest.raises(CheckpointError, match="No BEiT-3 weights at"):
        load_official_beit3(encoder(), str(tmp_path / "none.pth"))
    file = tmp_path / "beit3.pth"
    for content, what in (
        ({k: v for k, v in official.items() if "layers.1.ffn.A.fc1" not in k}, "2 missing"),
        (official | {"beit3.encoder.layers.2.ffn.A.fc1.bias": torch.zeros(32)}, "1 unexpected"),
        (official | {"beit3.encoder.gate": torch.zeros(1)}, r"1 unexpected: encoder\.gate"),
        (official | {"beit3.text_embed.weight": torch.zeros(9, C)}, "1 of another shape"),
    ):
        torch.save({"model": content}, file)
        with pytest.raises(CheckpointError, match=f"another BEiT-3: {what}"):
            load_official_beit3(encoder(), str(file))
