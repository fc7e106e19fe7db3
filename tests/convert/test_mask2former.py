"""Mask2Former's published layouts give InstAlign the same masks as transformers' implementation."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from safetensors.torch import load_file
from torch import Tensor

from models.referring_checks import prepared, tiny_model
from refseg.errors import CheckpointError
from refseg.models.instalign import InstAlign
from refseg.models.mask2former_weights import FROM_TRANSFORMERS, mask2former_state
from refseg.models.published import find_layout
from refseg.ops.module import use_refseg_deformable_attention
from refseg.weights import read_checkpoint


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Return transformers' Mask2Former with random weights, in the sizes of `instalign_swinb`'s tiny model, and the
    weights of its file."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        hidden_dim=32,
        mask_feature_size=16,
        encoder_layers=1,
        encoder_feedforward_dim=32,
        decoder_layers=10,  # 9, and one for the initial queries
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(settings).eval()
    with torch.no_grad():  # initial biases are zero and norms one; weights that are trained are not
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


DETECTRON2 = re.compile(  # facts: section E.4
    r"backbone\.(patch_embed\.|layers\.\d\.(blocks\.\d\.|downsample\.)|norm\d?\.|swin\.layernorm\.).+|criterion\..+"
    r"|sem_seg_head\.pixel_decoder\.(input_proj\.[012]\.[01]|mask_features|(adapter_1|layer_1)(\.norm)?)\.(weight|bias)"
    r"|sem_seg_head\.pixel_decoder\.transformer\.(level_embed|encoder\.layers\.0\.(self_attn\.\w+|norm[12]|linear[12])\..+)"
    r"|sem_seg_head\.predictor\.transformer_self_attention_layers\.\d\.(self_attn\.(in_proj_|out_proj\.)|norm\.)(weight|bias)"
    r"|sem_seg_head\.predictor\.transformer_cross_attention_layers\.\d\.(multihead_attn\.(in_proj_|out_proj\.)|norm\.)\w+"
    r"|sem_seg_head\.predictor\.transformer_ffn_layers\.\d\.(linear[12]|norm)\.(weight|bias)"
    r"|sem_seg_head\.predictor\.(decoder_norm|class_embed|mask_embed\.layers\.[012])\.(weight|bias)"
    r"|sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.weight"
)


def to_detectron2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in the official layout (facts: section E.4), whose Swin has one matrix for query, key, value."""
    official = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in FROM_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        if ".q_proj." in name or ".self.query." in name:
            parts = [key.replace("query", part) for part in ("query", "key", "value")]
            if ".q_proj." in name:
                parts = [key.replace("q_proj", f"{part}_proj") for part in "qkv"]
            value = torch.cat([weights[part] for part in parts])
            name = re.sub(r"self_attn\.q_proj\.", "self_attn.in_proj_", name).replace(
                "attention.self.query", "attn.qkv"
            )
        elif re.search(r"\.[kv]_proj\.|\.self\.(key|value)\.", name):
            continue
        name = name.replace("backbone.encoder.layers", "backbone.layers")
        for theirs, ours in (
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.norm", "patch_embed.norm"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.self", "attn"),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            *((f"hidden_states_norms.stage{stage + 1}", f"norm{stage}") for stage in range(4)),
        ):
            name = name.replace(theirs, ours) if name.startswith("backbone.") else name
        official[name] = value
    return official


def new_parts(model: InstAlign, state: dict[str, Tensor]) -> set[str]:
    """Load converted weights. Return the parts of the model that they do not fill."""
    found = model.load_state_dict(state, strict=False)
    assert found.unexpected_keys == []
    missing = [key for key in found.missing_keys if not key.endswith("relative_position_index")]
    return {re.match(r"(decoder\.blocks\.\d\.)?(encoder\.)?\w+", key)[0].split(".")[-1] for key in missing}


@pytest.fixture
def ours() -> InstAlign:
    """InstAlign whose decoder reads no words ("M2F + InstAlign", Table 3d): Mask2Former's."""
    return tiny_model("instalign_swinb", **{"decoder.reads_words": False, "decoder.first_masked": True}).eval()


def masks_of(model: InstAlign, images: Tensor) -> Tensor:
    batch = prepared(model, expressions_per_image=1)
    batch.images[:] = images
    with torch.no_grad():
        return torch.stack([one.mask_logits for one in model(batch).instances])


def test_masks_equal_those_of_transformers(published: tuple, ours: InstAlign) -> None:
    theirs, weights = published
    state, left_out = mask2former_state(weights)
    last_norm = "model.pixel_level_module.encoder.swin.layernorm."
    heads = {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    assert set(left_out) == heads | {last_norm + "weight", last_norm + "bias"}
    assert new_parts(ours, state) == {"text", "decoder", "heads", "no_target", "aggregate"}
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = theirs(pixel_values=images).masks_queries_logits
    torch.testing.assert_close(masks_of(ours, images), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.5


def test_detectron2s_names_give_the_same_weights(published: tuple, tmp_path: Path) -> None:
    """Also from a pickle of numpy arrays, as detectron2 publishes them."""
    _, weights = published
    official = to_detectron2(weights)
    assert [name for name in official if not DETECTRON2.fullmatch(name)] == []
    content = {"model": {key: value.numpy() for key, value in official.items()}, "__author__": "third_party"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))
    read = read_checkpoint(tmp_path / "model_final.pkl")
    layout = find_layout(read)
    assert layout is not None and layout.name == "Mask2Former"
    state, left_out = mask2former_state(read["model"])
    wanted, _ = mask2former_state(weights)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert len(left_out) == 5


def test_masks_equal_those_of_mmdet(ours: InstAlign) -> None:
    """mmdet's Swin and Mask2FormerHead, built from its own classes, with random weights."""
    from mmdet.models.backbones import SwinTransformer
    from mmdet.models.dense_heads import Mask2FormerHead

    attention = dict(embed_dims=32, num_heads=2, dropout=0.0, batch_first=True)
    ffn = dict(embed_dims=32, feedforward_channels=32, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type="ReLU", inplace=True))
    encoder = dict(
        num_layers=1,
        layer_cfg=dict(self_attn_cfg=dict(**attention, num_levels=3, num_points=4), ffn_cfg=ffn),
    )
    torch.manual_seed(0)
    swin = SwinTransformer(
        embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4, drop_path_rate=0.0
    )
    head = Mask2FormerHead(
        in_channels=[16, 32, 64, 128],
        feat_channels=32,
        out_channels=16,
        num_things_classes=3,
        num_stuff_classes=0,
        num_queries=5,
        pixel_decoder=ConfigDict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=encoder,
            positional_encoding=dict(num_feats=16, normalize=True),
        ),
        positional_encoding=dict(num_feats=16, normalize=True),
        transformer_decoder=ConfigDict(
            return_intermediate=True,
            num_layers=9,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
            init_cfg=None,
        ),
        loss_cls=ConfigDict(type="mmdet.CrossEntropyLoss", class_weight=[1.0] * 3 + [0.1]),
        loss_mask=ConfigDict(type="mmdet.CrossEntropyLoss", use_sigmoid=True),
        loss_dice=ConfigDict(type="mmdet.DiceLoss"),
    )
    swin.eval(), head.eval()
    use_refseg_deformable_attention(head)
    with torch.no_grad():
        for parameter in [*swin.parameters(), *head.parameters()]:
            parameter += 0.2 * torch.randn_like(parameter)
    weights = {f"backbone.{key}": value for key, value in swin.state_dict().items()}
    weights |= {f"panoptic_head.{key}": value for key, value in head.state_dict().items()}
    state, left_out = mask2former_state(weights)
    assert set(left_out.values()) == {
        "buffer, computed from the window",
        "COCO's classes; InstAlign has a relevance instead",
    }
    assert new_parts(ours, state) == {"text", "decoder", "heads", "no_target", "aggregate"}
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = head(swin(images), [])[1][-1]
    torch.testing.assert_close(masks_of(ours, images), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.5


def test_accounts_for_every_key(published: tuple) -> None:
    _, weights = published
    extra = {"model.transformer_module.decoder.gate.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"1 keys are not from Mask2Former: model\.transformer_module\.decoder\.gate"
    ):
        mask2former_state(weights | extra)
    for key in (
        "model.transformer_module.decoder.layers.3.fc1.bias",
        "model.transformer_module.queries_embedder.weight",
    ):
        with pytest.raises(CheckpointError, match="1 weights of Mask2Former are missing"):
            mask2former_state({name: value for name, value in weights.items() if name != key})
    resnet = {key.replace(".blocks.", ".units."): value for key, value in weights.items()}
    state, left_out = mask2former_state(resnet)
    assert not any(name.startswith("encoder.") for name in state)
    assert "a backbone other than Swin" in left_out.values()
