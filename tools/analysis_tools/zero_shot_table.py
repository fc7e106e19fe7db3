"""Print the tables of docs/zero_shot.md: parameters, work and memory of the zero-shot models, without their weights.

python tools/analysis_tools/zero_shot_table.py

Parameters are counted on the meta device, from the published sizes. Memory is the sum of all tensors that are alive
during one forward pass on fake tensors, which have shapes but no data. Attention does not store its maps, as in
PyTorch's fused kernels. Not counted: the CUDA context, workspaces of libraries, and the allocator's fragmentation.
FLOPs are those of matrix products, convolutions and attention in the same pass (two per multiply-add).
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import BatchEncoding

from refseg.engine.run import read_config
from refseg.known_models import KNOWN_MODELS, weights_in
from refseg.models.zero_shot.detectors import DETECTORS
from refseg.models.zero_shot.sam3 import rows_of
from refseg.paths import resolve_config

GIB = 2**30
TOKENS = 8  # of "the dog on the left.", with BERT's [CLS] and [SEP]
SAM3_GRID = 72  # side of SAM 3's grid of patches
BOXES = 5  # per phrase, which get a mask
RESERVE = 1.0  # GiB for the CUDA context, workspaces and fragmentation
CARDS = (8, 16, 24)  # GiB

# Published sizes ------------------------------------------------------------------------------------------------------

SWIN_B = dict(
    model_type="swin",
    image_size=384,
    window_size=12,
    embed_dim=128,
    depths=[2, 2, 18, 2],
    num_heads=[4, 8, 16, 32],
    out_indices=[2, 3, 4],
)


def grounding_dino(**config: Any) -> nn.Module:
    return transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig(**config))


def mm_grounding_dino() -> nn.Module:
    return transformers.MMGroundingDinoForObjectDetection(transformers.MMGroundingDinoConfig())


def owlv2() -> nn.Module:
    config = transformers.Owlv2Config(vision_config=dict(image_size=960))
    return transformers.Owlv2ForObjectDetection(config)


def omdet_turbo() -> nn.Module:
    return transformers.OmDetTurboForObjectDetection(transformers.OmDetTurboConfig())


def sam2(blocks: list[int], global_blocks: list[int], width: int = 96, heads: int = 1, **config: Any) -> nn.Module:
    """Build SAM 2 with a Hiera encoder, whose four stages double width and heads. The defaults are those of tiny."""
    widths = [width * 2**stage for stage in range(4)]
    backbone = dict(
        model_type="sam2_hiera_det_model",
        hidden_size=width,
        num_attention_heads=heads,
        blocks_per_stage=blocks,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        global_attention_blocks=global_blocks,
        **config,
    )
    vision = dict(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=vision))


def sam3() -> nn.Module:
    return transformers.Sam3Model(transformers.Sam3Config())


def sam3_lite_text() -> nn.Module:
    """Build SAM 3 with the text encoder of MobileCLIP-S0: 6 layers, 16 positions."""
    text = dict(num_hidden_layers=6, max_position_embeddings=16)
    return transformers.Sam3LiteTextModel(transformers.Sam3LiteTextConfig(text_config=text))


def clipseg() -> nn.Module:
    config = transformers.CLIPSegConfig(vision_config=dict(patch_size=16), use_complex_transposed_convolution=True)
    return transformers.CLIPSegForImageSegmentation(config)


# Weights: (network, published millions of parameters, remark)
MEMORY_PARTS = "memory for video, not built"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float | None, str]] = {
    "IDEA-Research/grounding-dino-tiny": (grounding_dino, 172, ""),
    "IDEA-Research/grounding-dino-base": (
        partial(grounding_dino, backbone_config=SWIN_B),
        233,
        "index tables of Swin, which the hub counts",
    ),
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det": (mm_grounding_dino, None, "hub: 0.2 B"),
    "google/owlv2-base-patch16-ensemble": (owlv2, 155, ""),
    "omlab/omdet-turbo-swin-tiny-hf": (omdet_turbo, 115, ""),
    "facebook/sam2.1-hiera-tiny": (partial(sam2, [1, 2, 7, 2], [5, 7, 9]), 38.9, MEMORY_PARTS),
    "facebook/sam2.1-hiera-small": (partial(sam2, [1, 2, 11, 2], [7, 10, 13]), 46.0, MEMORY_PARTS),
    "facebook/sam2.1-hiera-base-plus": (
        partial(
            sam2,
            [2, 3, 16, 3],
            [12, 16, 20],
            width=112,
            heads=2,
            window_positional_embedding_background_size=[14, 14],
        ),
        80.8,
        MEMORY_PARTS,
    ),
    "facebook/sam2.1-hiera-large": (
        partial(sam2, [2, 6, 36, 4], [23, 33, 43], width=144, heads=2, window_size_per_stage=[8, 4, 16, 8]),
        224.4,
        MEMORY_PARTS,
    ),
    "facebook/sam3": (sam3, 848, "tracker, not built"),
    "yonigozlan/sam3-litetext-s0": (sam3_lite_text, None, "hub: 0.5 B; text encoder 42.5 M, as published"),
    "CIDAS/clipseg-rd64-refined": (clipseg, 150.7, ""),
}


def parameters(weights: str) -> float:
    """Return the millions of parameters of a network, built on the meta device."""
    with torch.device("meta"):
        net = NETWORKS[weights][0]()
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


# Memory ---------------------------------------------------------------------------------------------------------------


class LiveTensors(TorchDispatchMode):
    """Count the bytes of all tensors that are made while this is active, and are alive, and the FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Code that reads a value gets True (no token is padding), or the only integer that any of them reads
        if op is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            return True if args[0].dtype == torch.bool else SAM3_GRID
        output = op(*args, **(kwargs or {}))
        if op.overloadpacket in flop_registry:
            self.flops += flop_registry[op.overloadpacket](*args, **(kwargs or {}), out_val=output)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: Any) -> None:
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.bytes -= size


class StandInProcessor:
    """A processor that returns inputs of the published size: `tokens` tokens per phrase, whatever its words."""

    def __init__(self, height: int, width: int, tokens: int) -> None:
        self.height, self.width, self.tokens = height, width, tokens

    def image_processor(self, images: list[Tensor], return_tensors: str) -> BatchEncoding:
        mask = torch.ones(len(images), self.height, self.width, dtype=torch.long)
        pixels = torch.empty(len(images), 3, self.height, self.width)
        return BatchEncoding(dict(pixel_values=pixels, pixel_mask=mask))

    def tokenizer(self, texts: list[str], **_: Any) -> BatchEncoding:
        tokens = torch.ones(len(texts), self.tokens, dtype=torch.long)
        return BatchEncoding(dict(input_ids=tokens, attention_mask=torch.ones_like(tokens)))

    def post_process_grounded_object_detection(self, output: Any, **_: Any) -> list[dict[str, Tensor]]:
        """Stand in for OmDet-Turbo's removal of overlapping boxes, which depends on values."""
        scores = output.decoder_class_logits.sigmoid().amax(-1)
        return [dict(scores=row, boxes=boxes) for row, boxes in zip(scores, output.decoder_coord_logits, strict=True)]


# Largest input of each detector's processor, and tokens per phrase
DETECTOR_INPUTS = {
    "grounding-dino": (800, 1333, TOKENS),
    "mm-grounding-dino": (800, 1333, TOKENS),
    "owlv2": (960, 960, 16),
    "omdet-turbo": (640, 640, 77),
}


def answer_grounded_sam2(phrases: int, detector: nn.Module, masks: nn.Module) -> Any:
    """Answer as `GroundedSAM2` does, with `BOXES` boxes per phrase."""
    kind = detector.config.model_type
    if kind == "omdet-turbo":
        detector.get_language_embedding = partial(omdet_text, detector.language_backbone)
    boxes_of = DETECTORS[kind](detector, StandInProcessor(*DETECTOR_INPUTS[kind]))
    # Both networks encode the image
    features = boxes_of.encode(torch.empty(3, 480, 640, dtype=torch.uint8))
    embeddings = masks.get_image_embeddings(torch.empty(1, 3, 1024, 1024))
    # All phrases in one pass, then all boxes in one pass
    found = boxes_of.detect(features, ["the dog on the left"] * phrases, (480, 640))
    boxes = torch.empty(1, BOXES * phrases, 4)
    return found, masks(image_embeddings=embeddings, input_boxes=boxes, multimask_output=False)


def omdet_text(encoder: nn.Module, classes: Tensor, _: Tensor, tasks: Tensor, mask: Tensor, *rest: Any) -> Any:
    """Return OmDet-Turbo's text features. Its own code looks at tokens, because it caches the features."""
    return encoder(classes, encode_type="class")[None], encoder.model(tasks)[0].transpose(0, 1), mask


def answer_sam3(phrases: int, net: nn.Module, *, phrases_per_pass: int = 4) -> Any:
    """Answer as `SAM3` does: a few phrases per pass."""
    features = net.get_vision_features(pixel_values=torch.empty(1, 3, 1008, 1008))
    outputs = []
    for tokens in torch.ones(phrases, 32, dtype=torch.long).split(phrases_per_pass):
        rows = torch.zeros(len(tokens), dtype=torch.long)
        mask = torch.ones_like(tokens)
        output = net(vision_embeds=rows_of(features, rows), input_ids=tokens, attention_mask=mask)
        outputs.append((output.pred_masks, output.pred_logits, output.presence_logits))
    return outputs


def answer_clipseg(phrases: int, net: nn.Module) -> Any:
    """Answer as `CLIPSeg` does."""
    states = net.clip.get_image_features(
        pixel_values=torch.empty(1, 3, 352, 352), output_hidden_states=True, interpolate_pos_encoding=True
    ).hidden_states
    tokens = torch.ones(phrases, 77, dtype=torch.long)
    conditions = net.clip.get_text_features(input_ids=tokens, attention_mask=torch.ones_like(tokens)).pooler_output
    rows = torch.zeros(phrases, dtype=torch.long)
    return net.decoder([states[layer + 1][rows] for layer in net.extract_layers], conditions)


ANSWERS: dict[str, Callable[..., Any]] = {
    "GroundedSAM2": answer_grounded_sam2,
    "SAM3": answer_sam3,
    "CLIPSeg": answer_clipseg,
}


def answer_on_paper(name: str, phrases: int) -> tuple[float, float, float]:
    """Answer some phrases about an image on fake tensors, in float32.

    Returns:
        The GiB of the model's weights, the peak with weights, and the TFLOPs.
    """
    model = read_config(resolve_config(KNOWN_MODELS[name].config)).model
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live:
        networks = [NETWORKS[weights][0]().eval() for weights in weights_in(model)]
        weights_bytes = live.peak = live.bytes
        ANSWERS[model.type](phrases, *networks)
    return weights_bytes / GIB, live.peak / GIB, live.flops / 1e12


# Tables ---------------------------------------------------------------------------------------------------------------


def network_row(weights: str) -> str:
    """Return the row of a network: parameters, published parameters, difference, and bytes of the weights."""
    _, published, remark = NETWORKS[weights]
    millions = parameters(weights)
    cells = [
        f"`{weights}`",
        f"{millions:.1f}",
        "-" if published is None else f"{published:g}",
        "-" if published is None else f"{millions - published:+.1f}",
        f"{millions * 4 / 1000:.2f}",
        f"{millions * 2 / 1000:.2f}",
        remark,
    ]
    return f"| {' | '.join(cells)} |"


def model_row(name: str) -> str:
    """Return the row of a model: weights, peaks, the cards that have room for them, and the work."""
    weights, one, work_of_one = answer_on_paper(name, 1)
    _, eight, work_of_eight = answer_on_paper(name, 8)
    cells = [f"`{name}`", f"{weights:.1f}", f"{one:.1f}", f"{eight:.1f}", card_for(one), card_for(eight)]
    return f"| {' | '.join([*cells, f'{work_of_one:.2f}', f'{work_of_eight:.2f}'])} |"


def card_for(gib: float) -> str:
    """Return the smallest card with room for a peak and `RESERVE`."""
    return next((f"{card} GB" for card in CARDS if gib + RESERVE <= card), f"over {CARDS[-1]} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names of the models and weights to measure")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()

    print(
        "| weights | params (M) | published | difference | GB in fp32 | GB in bf16 | |\n|---|---|---|---|---|---|---|"
    )
    for weights in NETWORKS:
        if args.only in weights:
            print(network_row(weights), flush=True)
    heads = "weights (GiB) | peak, 1 phrase | peak, 8 phrases | card for 1 | card for 8"
    print(f"\n| model | {heads} | TFLOPs, 1 phrase | TFLOPs, 8 phrases |")
    print("|---|---|---|---|---|---|---|---|")
    for name in KNOWN_MODELS:
        if args.only in name:
            print(model_row(name), flush=True)


if __name__ == "__main__":
    main()
