"""Folders of tiny zero-shot models with random weights, as transformers saves them: nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from refseg.inference.inferencer import ReferringInferencer

WORDS = "a the red blue dog cat man on left of two detect photo".split()


def bert_tokenizer(folder: Path):
    """A tokenizer of whole words with BERT's special tokens."""
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", ","]
    file = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*special, *WORDS]), encoding="utf-8")
    return BertTokenizerFast(vocab_file=str(file))


def clip_tokenizer(folder: Path, *, pad: str = "<|endoftext|>"):
    """CLIP's tokenizer without merges: letters."""
    from transformers import CLIPTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizerFast(str(vocab), str(merges), pad_token=pad)


def clip_text(tokenizer, *, length: int) -> dict:
    size = len(tokenizer)
    return dict(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=16,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def save(model, processor, folder: Path) -> str:
    """Draw weights with a spread that tells images and phrases apart, and save the folder."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def grounding_dino(folder: Path, *, mm: bool = False) -> str:
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
    )

    tokenizer = bert_tokenizer(folder)
    text = dict(model_type="bert", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2)  # fmt: skip
    backbone = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                    image_size=64, out_indices=[2, 3, 4])  # fmt: skip
    config_class, model_class = (
        (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
        if mm
        else (GroundingDinoConfig, GroundingDinoForObjectDetection)
    )
    config = config_class(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,  # with one, its heads are not tied
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=10,
        max_text_len=32,
    )
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 160}), tokenizer
    )
    return save(model_class(config), processor, folder)


def owlv2(folder: Path) -> str:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    tokenizer = clip_tokenizer(folder, pad="!")
    text = clip_text(tokenizer, length=16) | dict(pad_token_id=tokenizer.pad_token_id)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64,
                  patch_size=16)  # fmt: skip
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    return save(Owlv2ForObjectDetection(config), processor, folder)


def omdet_turbo(folder: Path) -> str:
    from transformers import (
        DetrImageProcessor,
        OmDetTurboConfig,
        OmDetTurboForObjectDetection,
        OmDetTurboProcessor,
    )

    tokenizer = clip_tokenizer(folder)
    text = dict(model_type="clip_text_model", **clip_text(tokenizer, length=77))
    backbone = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                    image_size=64, out_indices=[2, 3, 4])  # fmt: skip
    config = OmDetTurboConfig(
        backbone_config=backbone,
        text_config=text,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=16,
        class_embed_dim=16,
        num_queries=10,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        encoder_hidden_dim=32,
        decoder_hidden_dim=32,  # another than class_embed_dim, as in the published model
        encoder_dim_feedforward=16,
        decoder_dim_feedforward=16,
        decoder_num_layers=1,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_num_heads=2,
        apply_layernorm_after_vision_backbone=False,  # it is for timm's Swin, whose maps are channels-last
        image_size=64,
    )
    image_processor = DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return save(OmDetTurboForObjectDetection(config), OmDetTurboProcessor(image_processor, tokenizer), folder)


def sam2(folder: Path) -> str:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    config = Sam2Config(
        vision_config=dict(
            backbone_config=dict(
                model_type="sam2_hiera_det_model",
                hidden_size=8,
                num_attention_heads=1,
                blocks_per_stage=[1, 1, 1, 1],
                embed_dim_per_stage=[8, 16, 32, 64],
                num_attention_heads_per_stage=[1, 1, 2, 2],
                window_size_per_stage=[4, 4, 4, 4],
                global_attention_blocks=[],
                image_size=[64, 64],
                window_positional_embedding_background_size=[4, 4],
            ),
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=8),
        mask_decoder_config=dict(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    processor = Sam2Processor(
        Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    )
    return save(Sam2Model(config), processor, folder)


def sam3(folder: Path, *, lite_text: bool = False) -> str:
    import transformers

    tokenizer = clip_tokenizer(folder)
    detr = dict(hidden_size=32, num_layers=1, num_attention_heads=2, intermediate_size=32)
    vision = dict(
        backbone_config=dict(
            model_type="sam3_vit_model",
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            pretrain_image_size=28,
            patch_size=14,
            window_size=2,
            global_attn_indexes=[1],
        ),
        fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    parts = dict(
        vision_config=vision,
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config=dict(detr, num_queries=6),
        mask_decoder_config=dict(hidden_size=32, num_attention_heads=2, num_upsampling_stages=3),
    )
    if lite_text:
        text = clip_text(tokenizer, length=32) | dict(num_hidden_layers=4)
        config = transformers.Sam3LiteTextConfig(text_config=text, **parts)
        model = transformers.Sam3LiteTextModel(config)
    else:
        config = transformers.Sam3Config(text_config=clip_text(tokenizer, length=32), **parts)
        model = transformers.Sam3Model(config)
    image_processor = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
    return save(model, transformers.Sam3Processor(image_processor, tokenizer), folder)


def sam3_tracker(folder: Path) -> str:
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    config = Sam3TrackerConfig(
        vision_config=dict(
            model_type="sam3_vision_model",
            backbone_config=dict(
                model_type="sam3_vit_model",
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=56,
                pretrain_image_size=28,
                patch_size=14,
                window_size=2,
                global_attn_indexes=[1],
            ),
            fpn_hidden_size=32,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        prompt_encoder_config=dict(hidden_size=32, image_size=56, patch_size=14, mask_input_channels=8),
        mask_decoder_config=dict(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    processor = Sam3TrackerProcessor(
        Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    )
    return save(Sam3TrackerModel(config), processor, folder)


MEMORY = dict(
    memory_attention_hidden_size=32,
    memory_attention_num_layers=1,
    memory_attention_num_attention_heads=1,
    memory_attention_downsample_rate=1,
    memory_attention_feed_forward_hidden_size=32,
    memory_encoder_hidden_size=32,
    memory_encoder_output_channels=16,
    mask_downsampler_embed_dim=32,
    memory_fuser_embed_dim=32,
    memory_fuser_intermediate_dim=32,
)


def save_as_video(model, images: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a video model with the processor of `images`, and return its tensors.

    The names of tensors are those of published files. `save_pretrained` changes them.
    """
    from safetensors.torch import save_file

    shutil.copytree(images, folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    return state


def parts_of(config) -> dict:
    """Return the settings that SAM's model of images and that of videos share."""
    return {key: config.to_dict()[key] for key in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}


def sam2_video(folder: Path, folders: dict[str, str]) -> dict[str, torch.Tensor]:
    """Save SAM 2 as `facebook/sam2.1-hiera-tiny` is published."""
    from transformers import Sam2Config, Sam2VideoConfig, Sam2VideoModel

    parts = parts_of(Sam2Config.from_pretrained(folders["sam2"]))
    return save_as_video(Sam2VideoModel(Sam2VideoConfig(**parts, **MEMORY, image_size=64)), folders["sam2"], folder)


def sam3_video(folder: Path, folders: dict[str, str]) -> dict[str, torch.Tensor]:
    """Save SAM 3 and its tracker as `facebook/sam3` is published."""
    from transformers import Sam3Config, Sam3TrackerConfig, Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel

    parts = parts_of(Sam3TrackerConfig.from_pretrained(folders["sam3_tracker"]))
    tracker = Sam3TrackerVideoConfig(**parts, **MEMORY, image_size=56)
    detector = Sam3Config.from_pretrained(folders["sam3"])
    config = Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker.to_dict())
    return save_as_video(Sam3VideoModel(config), folders["sam3"], folder)


def clipseg(folder: Path) -> str:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    tokenizer = clip_tokenizer(folder)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64,
                  patch_size=16)  # fmt: skip
    config = CLIPSegConfig(
        text_config=clip_text(tokenizer, length=77),
        vision_config=vision,
        projection_dim=16,
        reduce_dim=16,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    processor = CLIPSegProcessor(ViTImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    return save(CLIPSegForImageSegmentation(config), processor, folder)


BUILDERS = {
    "grounding_dino": grounding_dino,
    "mm_grounding_dino": lambda folder: grounding_dino(folder, mm=True),
    "owlv2": owlv2,
    "omdet_turbo": omdet_turbo,
    "sam2": sam2,
    "sam3": sam3,
    "sam3_tracker": sam3_tracker,
    "sam3_lite_text": lambda folder: sam3(folder, lite_text=True),
    "clipseg": clipseg,
}

MODELS = {  # name: (config, options with the kinds of tiny models)
    "grounding_dino": ("grounded-sam2", {"model.detector": "grounding_dino", "model.masks": "sam2"}),
    "mm_grounding_dino": ("mm-grounded-sam2", {"model.detector": "mm_grounding_dino", "model.masks": "sam2"}),
    "owlv2": ("owlv2-sam2", {"model.detector": "owlv2", "model.masks": "sam2"}),
    "omdet_turbo": ("omdet-sam2", {"model.detector": "omdet_turbo", "model.masks": "sam2"}),
    "sam3": ("sam3", {"model.pretrained": "sam3"}),
    "sam3_lite_text": ("sam3-litetext", {"model.pretrained": "sam3_lite_text"}),
    "clipseg": ("clipseg", {"model.pretrained": "clipseg"}),
}


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return an image of colored blocks."""
    height, width = size
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def open_model(folders: dict[str, str], name: str, **options: Any) -> ReferringInferencer:
    """Open one of `MODELS`, with changes of its config."""
    from refseg.inference.inferencer import ReferringInferencer

    config, kinds = MODELS[name]
    paths = {key: folders[kind] for key, kind in kinds.items()}
    return ReferringInferencer(config, cfg_options={**paths, **options})
