"""Masks from boxes, points and rough masks, by SAM 2 or SAM 3's tracker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from refseg.datasets.geometry import Size
from refseg.known_models import require_weights
from refseg.models.zero_shot.base import load_whole, model_type
from refseg.pretrained import load_pretrained

# Types of transformers that squash an image to a square. (The first SAM and SAM-HQ pad it.)
PROMPTED_TYPES = ("sam2", "sam2_video", "edgetam", "edgetam_video", "sam3_tracker", "sam3_video")
CHUNK = 64  # objects per pass


class PromptedMasks(nn.Module):
    """A promptable mask model of transformers.

    Args:
        name: Folder, or name on the hub, of SAM 2, EdgeTAM or SAM 3's tracker.
        option: The option that has the name, for errors.
    """

    def __init__(self, name: str, *, option: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration

        super().__init__()
        require_weights([name])
        model_type(name, option, PROMPTED_TYPES)
        self.net = load_whole(AutoModelForMaskGeneration, name)
        self.processor = load_pretrained(AutoImageProcessor, name)

    @property
    def mask_size(self) -> Size:
        """(h, w) of the rough masks that it reads."""
        return self.net.prompt_encoder.mask_input_size

    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Return the embeddings of images (3, H, W): maps (B, C, h, w) of several levels."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"].to(self.net.device)
        return list(self.net.get_image_embeddings(pixels))

    def decode(
        self,
        embeddings: list[Tensor],
        size: Size,
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Return mask logits (N, h, w) for N objects of one image, which cover the whole image.

        Args:
            embeddings: Maps (1, C, h, w) of `encode`.
            size: (H, W) of the image.
            boxes: (N, 4), x0, y0, x1, y1 in pixels.
            points: (N, P, 2), x, y in pixels.
            labels: (N, P), 1 for a point on the object, 0 for one beside it.
            masks: (N, h, w) logits of rough masks.
        """
        target = self.processor.size["height"], self.processor.size["width"]
        # In float32: with mixed precision, the embeddings have too few digits for places
        scale = torch.tensor([target[1] / size[1], target[0] / size[0]], device=embeddings[0].device)
        prompts: dict[str, Any] = {}
        if boxes is not None:
            prompts["input_boxes"] = boxes * scale.repeat(2)
        if points is not None:
            prompts.update(input_points=points * scale, input_labels=labels)
        if masks is not None:
            prompts["input_masks"] = masks[:, None]
        logits = []
        step = CHUNK if masks is None else 1  # SAM reads one rough mask per pass
        for start in range(0, len(next(iter(prompts.values()))), step):
            part = {name: values[start : start + step][None] for name, values in prompts.items()}
            if masks is not None:
                part["input_masks"] = part["input_masks"][0]
            output = self.net(image_embeddings=embeddings, multimask_output=False, **part)
            logits.append(output.pred_masks[0, :, 0])
        return torch.cat(logits)
