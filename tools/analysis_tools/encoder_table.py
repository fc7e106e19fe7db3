"""Print the table of image encoders in docs/encoders.md: parameters, MACs, and latency on a CPU, with random weights.

python tools/analysis_tools/encoder_table.py --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from refseg.models.encoders import VisionEncoder
from refseg.models.encoders.fused import build_vision

TIMM = (
    *("convnext_tiny", "convnextv2_base", "resnet50", "efficientnet_b0", "tf_efficientnet_lite0"),
    *("mobilenetv3_large_100", "regnety_016", "fastvit_t8", "edgenext_small", "pvt_v2_b1", "efficientvit_b1"),
    *("hrnet_w18", "swin_base_patch4_window12_384", "swinv2_tiny_window8_256"),
    *("vit_base_patch16_224", "vit_base_patch14_dinov2", "vit_base_patch16_dinov3", "eva02_base_patch14_224"),
    *("vit_base_patch16_siglip_256",),
)
VIT = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
ENCODERS: dict[str, dict[str, Any]] = {
    "SwinEncoder(arch='tiny')": dict(type="SwinEncoder", arch="tiny"),
    "SwinEncoder(arch='base')": dict(type="SwinEncoder", arch="base"),
    **{f"TimmEncoder('{name}')": dict(type="TimmEncoder", name=name) for name in TIMM},
    "TransformersVisionEncoder: dinov3_vit": dict(
        type="TransformersVisionEncoder", config=dict(model_type="dinov3_vit", **VIT)
    ),
    "TransformersVisionEncoder: siglip_vision_model": dict(
        type="TransformersVisionEncoder", config=dict(model_type="siglip_vision_model", **VIT)
    ),
    "mmdet.ResNet(depth=50)": dict(type="mmdet.ResNet", depth=50),
    "mmseg.MixVisionTransformer()": dict(
        type="mmseg.MixVisionTransformer", embed_dims=32, num_layers=[2, 2, 2, 2], num_heads=[1, 2, 5, 8]
    ),
}


@torch.inference_mode()
def measure(encoder: VisionEncoder, side: int, runs: int) -> tuple[float, float]:
    """Return GMACs for one image and the median CPU seconds of some runs."""
    image = torch.zeros(1, 3, side, side)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # fused attention is not counted
        encoder(image)
    times = []
    for _ in range(runs):
        start = time.process_time()
        encoder(image)
        times.append(time.process_time() - start)
    return counter.get_total_flops() / 2e9, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=480, help="height and width of the image (default: 480)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs per encoder (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--only", default="", help="a part of the names of the encoders to measure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| `vision=` | stages | channels | strides | params (M) | GMAC | CPU (s) |\n|---|---|---|---|---|---|---|")
    for name, config in ENCODERS.items():
        if args.only not in name:
            continue
        encoder = build_vision(config, out_stages=(0, 1, 2, 3)).eval()
        gmacs, seconds = measure(encoder, args.side, args.runs)
        params = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        dims, strides = (", ".join(map(str, values)) for values in (encoder.dims, encoder.strides))
        staged = "yes" if encoder.staged else "no"
        print(f"| `{name}` | {staged} | {dims} | {strides} | {params:.1f} | {gmacs:.1f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
