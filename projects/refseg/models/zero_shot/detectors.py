"""Detectors of transformers that find boxes for phrases. Each encodes an image once for all of its phrases.

Letters: K phrases of one image, Q boxes, H x W pixels of the image.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refseg.datasets.geometry import Size
from refseg.errors import DataError
from refseg.models.zero_shot.base import load_whole, model_type, replaced
from refseg.pretrained import load_pretrained

Boxes = tuple[Tensor, Tensor]  # scores (Q,), and boxes (Q, 4) as x0, y0, x1, y1 in pixels


class BoxDetector(nn.Module):
    """A detector of transformers.

    Args:
        net: The detector.
        processor: Its processor.
    """

    def __init__(self, net: nn.Module, processor: Any) -> None:
        super().__init__()
        self.net = net
        self.processor = processor

    def encode(self, image: Tensor) -> Any:
        """Return the features of an image (3, H, W)."""
        raise NotImplementedError

    def detect(self, features: Any, texts: list[str], size: Size) -> list[Boxes]:
        """Return all boxes for each of the K phrases. `size` is the (H, W) of the image."""
        raise NotImplementedError

    def pixels(self, image: Tensor) -> dict[str, Tensor]:
        """Return the inputs that the processor makes of an image."""
        try:
            inputs = self.processor.image_processor(images=[image], return_tensors="pt")
        except ValueError:
            height, width = image.shape[1:]
            if min(height, width) * 100 > max(height, width):
                raise
            name = type(self.processor.image_processor).__name__
            raise DataError(
                f"An image of {height} x {width} pixels (height x width) is too thin for {name}, which reduces it to "
                "less than one pixel. Crop the image, or use a model with OWLv2 or SAM 3."
            ) from None
        return dict(inputs.to(image.device))


class GroundingDino(BoxDetector):
    """Grounding DINO, and MM Grounding DINO. Phrases are lower-cased and end with a period, as the processor does it.

    The score of a box is its highest probability over the tokens of the phrase.
    """

    def encode(self, image: Tensor) -> Any:
        pixels = self.pixels(image)
        return pixels, self.net.model.backbone(pixels["pixel_values"], pixels["pixel_mask"])

    def detect(self, features: Any, texts: list[str], size: Size) -> list[Boxes]:
        pixels, (maps, positions) = features
        count = len(texts)
        prompts = [text if text.endswith(".") else f"{text}." for text in (text.lower().strip() for text in texts)]
        tokens = self.processor.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.net.config.max_text_len, return_tensors="pt"
        ).to(self.net.device)
        # The backbone has run already: its maps are the same for all phrases
        shared = _SharedBackbone(
            [(feats.expand(count, -1, -1, -1), mask.expand(count, -1, -1)) for feats, mask in maps],
            [position.expand(count, -1, -1, -1) for position in positions],
            self.net.model.backbone.position_embedding,
        )
        with replaced(self.net.model, "backbone", shared):
            output = self.net(
                pixel_values=pixels["pixel_values"].expand(count, -1, -1, -1),
                pixel_mask=pixels["pixel_mask"].expand(count, -1, -1),
                **tokens,
            )
        scores = output.logits.sigmoid().amax(-1)
        height, width = size
        scale = torch.tensor([width, height, width, height], device=scores.device)
        return list(zip(scores, corners(output.pred_boxes) * scale, strict=True))


class _SharedBackbone(nn.Module):
    """Stands in for a backbone whose output is known."""

    def __init__(self, maps: list, positions: list, position_embedding: nn.Module) -> None:
        super().__init__()
        self.output = maps, positions
        self.position_embedding = position_embedding

    def forward(self, *_: Any) -> Any:
        maps, positions = self.output
        return list(maps), list(positions)


class Owlv2(BoxDetector):
    """OWLv2. Images are padded to a square, right and below. Each phrase is a class of its own."""

    def encode(self, image: Tensor) -> Any:
        feature_map, _ = self.net.image_embedder(self.pixels(image)["pixel_values"])
        feats = feature_map.flatten(1, 2)
        return feats, self.net.box_predictor(feats, feature_map)[0]

    def detect(self, features: Any, texts: list[str], size: Size) -> list[Boxes]:
        feats, boxes = features
        tokens = self.processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._num_tokens, return_tensors="pt"
        ).to(self.net.device)
        queries = self.net.owlv2.get_text_features(**tokens).pooler_output
        queries = queries / torch.linalg.norm(queries, dim=-1, keepdim=True)
        logits, _ = self.net.class_predictor(feats, queries[None], torch.ones_like(queries[None, :, 0], dtype=bool))
        found = corners(boxes) * max(size)
        return [(scores, found) for scores in logits[0].sigmoid().T]

    @property
    def _num_tokens(self) -> int:
        return self.net.config.text_config.max_position_embeddings


class OmDetTurbo(BoxDetector):
    """OmDet-Turbo. Each phrase is a task with one class, "Detect PHRASE.". Overlapping boxes are removed."""

    nms_threshold: ClassVar[float] = 0.5  # the processor's default

    def encode(self, image: Tensor) -> Any:
        pixels = self.pixels(image)["pixel_values"]
        return pixels, self.net.vision_backbone(pixels)

    def detect(self, features: Any, texts: list[str], size: Size) -> list[Boxes]:
        pixels, maps = features
        count = len(texts)
        options = dict(padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        classes = self.processor.tokenizer(texts, **options).to(self.net.device)
        tasks = self.processor.tokenizer([f"Detect {text}." for text in texts], **options).to(self.net.device)
        with replaced(self.net, "vision_backbone", _SharedMaps([level.expand(count, -1, -1, -1) for level in maps])):
            output = self.net(
                pixel_values=pixels,
                classes_input_ids=classes["input_ids"],
                classes_attention_mask=classes["attention_mask"],
                tasks_input_ids=tasks["input_ids"],
                tasks_attention_mask=tasks["attention_mask"],
                classes_structure=torch.ones(count, dtype=torch.long, device=self.net.device),
            )
        found = self.processor.post_process_grounded_object_detection(
            output, threshold=0.0, nms_threshold=self.nms_threshold, target_sizes=[size] * count
        )
        return [(one["scores"], one["boxes"]) for one in found]


class _SharedMaps(nn.Module):
    """Stands in for a vision backbone whose maps are known."""

    def __init__(self, maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, *_: Any) -> list[Tensor]:
        return self.maps


DETECTORS: dict[str, type[BoxDetector]] = {
    "grounding-dino": GroundingDino,
    "mm-grounding-dino": GroundingDino,
    "owlv2": Owlv2,
    "omdet-turbo": OmDetTurbo,
}


def build_detector(name: str) -> BoxDetector:
    """Load the detector of a folder or hub name. Its config says which one it is."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    kind = model_type(name, "detector", DETECTORS)
    net = load_whole(AutoModelForZeroShotObjectDetection, name)
    return DETECTORS[kind](net, load_pretrained(AutoProcessor, name))


def corners(boxes: Tensor) -> Tensor:
    """Turn boxes (..., 4) of center and size into x0, y0, x1, y1, in float32 because bfloat16 rounds pixels."""
    center, size = boxes.float().split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)
