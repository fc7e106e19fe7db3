"""Swin Transformer (Liu et al. 2021) as stages: mmdet's modules behind an API that fusions can use.

Letters: N images, P = h * w tokens of a stage, C channels of that stage.

State dict: the keys are those of mmdet's `SwinTransformer`, so either loads the other's weights:
`patch_embed.{projection,norm}`, `stages.{i}.blocks.{j}.{norm1,attn.w_msa.{qkv,proj},norm2,ffn.layers.{0.0,1}}`,
`stages.{i}.blocks.{j}.attn.w_msa.{relative_position_bias_table,relative_position_index}`,
`stages.{i}.downsample.{norm,reduction}` (not in the last stage), `norm{i}` of the output stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refseg.compat import keep_weights
from refseg.errors import ConfigError
from refseg.models.encoders.vision import VisionEncoder
from refseg.ops import use_fast_linear
from refseg.registry import MODELS


@dataclass(frozen=True, slots=True)
class SwinArch:
    """Width of the first stage (each stage doubles it), and the blocks and attention heads of every stage."""

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not 1 <= len(self.depths) <= 4:
            raise ConfigError(f"SwinEncoder.arch: depths and num_heads must have the same length, 1 to 4. Got {self}.")


FIELDS = tuple(SwinArch.__dataclass_fields__)
ARCHS = {
    "tiny": SwinArch(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinArch(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinArch(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinArch(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def swin_arch(arch: str | Mapping) -> SwinArch:
    """Return a named architecture, or one from a dict with the fields of `SwinArch`."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ConfigError(f"Unknown SwinEncoder.arch {arch!r}. Valid: {', '.join(ARCHS)}, or a dict with {FIELDS}.")
        return ARCHS[arch]
    if set(arch) != set(FIELDS):
        raise ConfigError(f"SwinEncoder.arch must have exactly the keys {FIELDS}, got {sorted(arch)}.")
    return SwinArch(arch["embed_dims"], tuple(arch["depths"]), tuple(arch["num_heads"]))


def init_swin(module: nn.Module) -> None:
    """Initialize as the official code: linear weights and position tables truncated normal of width 0.02, biases 0.

    LayerNorms get 1 and 0. The patch projection keeps PyTorch's initialization.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)


@MODELS.register_module()
class SwinEncoder(VisionEncoder):
    """mmdet's Swin Transformer, stage by stage.

    Args:
        arch: tiny, small, base, large, or a dict with embed_dims, depths and num_heads.
        window_size: Side of the attention windows, in tokens.
        drop_path_rate: Drop path rate of the last block. It increases linearly from the first block.
        out_stages: Stages whose output is normalized and returned. Only they have a norm, because distributed training
            fails on parameters without gradients. `forward` stops after the last of them.
        pretrained: Official Swin weights (.pth or .safetensors), loaded when training starts (`init_weights`).
        checkpointing: Recompute blocks in the backward pass, which saves memory and costs time. mmdet's `with_cp` is
            not used: PyTorch deprecates its call, and it skips blocks after frozen ones.
    """

    staged = True
    one_size = "The windows of Swin's attention are laid out for one image size."

    def __init__(
        self,
        *,
        arch: str | dict = "base",
        window_size: int = 12,
        drop_path_rate: float = 0.3,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        from mmdet.models.backbones import SwinTransformer  # takes seconds to import

        from refseg.models.encoders.window_attention import use_fast_window_attention

        shape = swin_arch(arch)
        stages = range(len(shape.depths))
        self.set_stages(
            [shape.embed_dims * 2**stage for stage in stages], [4 * 2**stage for stage in stages], out_stages
        )
        self.window_size, self.pretrained, self.checkpointing = window_size, pretrained, checkpointing
        swin = SwinTransformer(
            embed_dims=shape.embed_dims,
            depths=shape.depths,
            num_heads=shape.num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_indices=self.out_stages,
        )
        init_swin(swin)
        self.patch_embed = keep_weights(swin.patch_embed)
        self.stages = keep_weights(swin.stages)
        for stage in self.out_stages:
            self.add_module(f"norm{stage}", getattr(swin, f"norm{stage}"))
        use_fast_window_attention(self)
        use_fast_linear(self)

    def init_weights(self) -> None:
        """Load `pretrained`, once. Without it, the constructor's weights stay."""
        if not self.is_init and self.pretrained is not None:
            from refseg.models.encoders.swin_weights import load_official_swin

            load_official_swin(self, self.pretrained)
        self.is_init = True

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (N, 3, H, W), padded to a multiple of 4, -> tokens (N, P, C) of stage 0, and their (h, w)."""
        return self.patch_embed(images)

    def run_stage(self, stage: int, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Run the blocks of one stage: (N, P, C) -> (N, P, C)."""
        for block in self.stages[stage].blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, size, use_reentrant=False)
            else:
                tokens = block(tokens, size)
        return tokens

    def downsample(self, stage: int, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (N, P, C) of a stage -> (N, P / 4, 2 C) of the next one, and their (h, w)."""
        return self.stages[stage].downsample(tokens, size)

    def norm(self, stage: int, tokens: Tensor) -> Tensor:
        """Apply the output norm of one of `out_stages`: (N, P, C) -> (N, P, C)."""
        return getattr(self, f"norm{stage}")(tokens)
