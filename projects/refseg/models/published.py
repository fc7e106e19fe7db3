"""Published layouts of weights: how to recognize each of them, and how its names become ours.

`load_from` and `refseg convert` use this table. The encoders' `pretrained` uses the same mappings of single encoders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.models.cgformer.weights import cgformer_state_from_official
from refseg.models.deris.weights import deris_state_from_official
from refseg.models.dmmi.weights import dmmi_state_from_official
from refseg.models.encoders.beit3_weights import beit3_state_from_official
from refseg.models.encoders.official_weights import shown
from refseg.models.encoders.swin_weights import swin_state_from_official
from refseg.models.encoders.text_weights import text_state_from_transformers
from refseg.models.lavt.weights import lavt_state_from_official
from refseg.models.mask2former_weights import mask2former_state
from refseg.models.rela.weights import rela_state_from_official
from refseg.models.vipa.weights import crossvlt_state
from refseg.weights import inner_state, state_dict_of

MAPPING_VERSION = 1  # increases when a mapping changes
Mapped = tuple[dict[str, Tensor], dict[str, str]]  # our state dict, and the reason for each key left out
BACKBONE = "backbone."


class Sizes(NamedTuple):
    """Sizes that position tables are resized to: Swin's window, and BEiT-3's grid of patches. None keeps the file's."""

    window_size: int | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Return the sizes of a model's encoder, or of an encoder."""
        encoder: Any = getattr(model, "encoder", model)
        vision = getattr(model, "vision", None) or getattr(encoder, "vision", encoder)  # DeRIS has two encoders
        window_size = getattr(vision, "window_size", None)
        return cls(window_size, getattr(encoder, "grid", None))


class Layout(NamedTuple):
    """A published layout.

    Args:
        name: Name in messages.
        mark: Pattern of a key that only this layout has.
        convert: Maps the content of a file.
        place: Prefix of the converted names in a model: empty for whole models.
        config: Config of the model; None for encoders.
        whole: Whether the file has all weights of the config's model.
    """

    name: str
    mark: str
    convert: Callable[[Mapping[str, Any], Sizes], Mapped]
    place: str = ""
    config: str | None = None
    whole: bool = False


def _swin(content: Mapping[str, Any], sizes: Sizes) -> Mapped:
    """Convert a Swin, also the backbone of a detector or segmentor of mmdet or mmseg."""
    weights = inner_state(content)
    backbone = {key: value for key, value in weights.items() if key.startswith(BACKBONE)} or weights
    state, left_out = swin_state_from_official(backbone, window_size=sizes.window_size)
    return state, left_out | {key: "not of the backbone" for key in weights if key not in backbone}


def _text(content: Mapping[str, Any], sizes: Sizes) -> Mapped:
    state, left_out, unknown = text_state_from_transformers(inner_state(content))
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys are not from a text model: {shown(unknown)}.")
    return state, left_out


LAYOUTS = (  # the more special ones first
    Layout(
        name="ReLA",
        mark=r"sem_seg_head\.predictor\.RIA_layers\..+",
        convert=lambda content, sizes: rela_state_from_official(content, window_size=sizes.window_size),
        config="rela/rela_swinb_grefcoco_published",
        whole=True,
    ),
    Layout(
        name="DMMI",
        mark=r"contrastive\.align_lan\..+",
        convert=lambda content, sizes: dmmi_state_from_official(content, window_size=sizes.window_size),
        config="dmmi_swinb",
        whole=True,
    ),
    Layout(
        name="LAVT",
        mark=r"backbone\.layers\.0\.fusion\..+",
        convert=lambda content, sizes: lavt_state_from_official(content, window_size=sizes.window_size),
        config="lavt_swinb",
        whole=True,
    ),
    Layout(
        name="CGFormer",
        mark=r"decoder\.cgattention1\..+",
        convert=lambda content, sizes: cgformer_state_from_official(content, window_size=sizes.window_size),
        config="cgformer_swinb",
        whole=True,
    ),
    Layout(
        name="DeRIS",
        mark=r"perception_branch\.predictor\.Q2TCA\..+",
        convert=lambda content, sizes: deris_state_from_official(
            content, window_size=sizes.window_size, grid=sizes.grid
        ),
        config="deris_beit3b",
        whole=True,
    ),
    Layout(
        name="Mask2Former",
        mark=r"sem_seg_head\.predictor\.transformer_cross_attention_layers\..+|model\.transformer_module\.quer.+"
        r"|panoptic_head\.transformer_decoder\..+",
        convert=lambda content, sizes: mask2former_state(inner_state(content), window_size=sizes.window_size),
        config="instalign/instalign_swinb_from_mask2former",
    ),
    Layout(
        name="CrossVLT",
        mark=r"lang_stage1\.embeddings\..+",
        convert=lambda content, sizes: crossvlt_state(inner_state(content), window_size=sizes.window_size),
        config="vipa_swinb",
    ),
    Layout(
        name="BEiT-3",
        mark=r"beit3\..+",
        convert=lambda content, sizes: beit3_state_from_official(inner_state(content), grid=sizes.grid),
        place="encoder.",
    ),
    Layout(
        name="Swin",
        mark=r"(backbone\.|swin\.|encoder\.)*(layers|stages)\.0\.blocks\.0\."
        r"(attn\.qkv|attn\.w_msa\.qkv|attention\.self\.query)\.weight",
        convert=_swin,
        place="encoder.vision.",
    ),
    Layout(
        name="text model",
        mark=r"((bert|roberta|distilbert|electra|text_model)\.)?embeddings\.(word_embeddings|token_embedding)\.weight",
        convert=_text,
        place="encoder.text.",
    ),
)


def find_layout(content: Mapping[str, Any]) -> Layout | None:
    """Return the published layout of a checkpoint's content, by its keys; None if it has none that refseg knows."""
    keys = [str(key).removeprefix("module.") for key in inner_state(content)]
    return next((layout for layout in LAYOUTS if any(re.fullmatch(layout.mark, key) for key in keys)), None)


def state_for(model: nn.Module, content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint for a model, whether it has the model's names or a published layout."""
    state = state_dict_of(content, path)
    layout = find_layout(content)
    if layout is None or state.keys() & model.state_dict().keys():
        return state
    try:
        state, _ = layout.convert(content, Sizes.of(model))
    except CheckpointError as error:
        raise CheckpointError(f"{path} ({layout.name}): {error}") from None
    return {layout.place + name: value for name, value in state.items()}
