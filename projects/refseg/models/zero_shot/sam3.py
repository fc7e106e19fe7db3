"""SAM 3: instances of a concept, with a presence score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from refseg.errors import check_at_least, check_share
from refseg.models.zero_shot.base import (
    ZeroShotSegmentor,
    class_of_transformers,
    images_of,
    load_whole,
    model_type,
    texts_of,
)
from refseg.models.zero_shot.prompted import PromptedMasks
from refseg.pretrained import load_pretrained
from refseg.registry import MODELS
from refseg.structures import Batch, InstancePrediction, Prediction

# Classes by the type of the weights. "facebook/sam3" is of type sam3_video: it has the tracker, too.
SAM3_CLASSES = {"sam3": "Sam3Model", "sam3_video": "Sam3Model", "sam3_lite_text": "Sam3LiteTextModel"}


@MODELS.register_module()
class SAM3(ZeroShotSegmentor):
    """SAM 3, or SAM 3 with the small text encoder (`Sam3LiteText`).

    An instance's score is its probability times the presence probability. "Nothing here" is decided by the presence
    probability, and by the absence of an instance above `postprocess.instance_threshold`.

    Args:
        pretrained: Folder, or name on the hub.
        tracker: Folder or hub name of SAM 3's tracker, which corrects answers by clicks ("facebook/sam3" has it). It
            encodes images again and costs about half of the model's memory, so None leaves it out.
        min_score: Instances with a lower score are dropped, except the best one. The default is below any useful
            threshold, so that `refseg calibrate` can choose one from the instances of a prediction file.
        phrases_per_pass: Phrases that go through the decoder together, which bounds memory.
        data_preprocessor: Config of the data preprocessor.
        postprocess: Arguments of `PostProcess`.
    """

    unites_instances = True

    def __init__(
        self,
        *,
        pretrained: str,
        tracker: str | None = None,
        min_score: float = 0.1,
        phrases_per_pass: int = 4,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        from transformers import AutoProcessor

        sources = (pretrained,) if tracker is None else (pretrained, tracker)
        super().__init__(sources=sources, data_preprocessor=data_preprocessor, postprocess=postprocess)
        check_at_least("SAM3.phrases_per_pass", phrases_per_pass, 1)
        check_share("SAM3.min_score", min_score)
        kind = model_type(pretrained, "pretrained", SAM3_CLASSES)
        self.net = load_whole(class_of_transformers(SAM3_CLASSES[kind]), pretrained)
        self.processor = load_pretrained(AutoProcessor, pretrained)
        self.prompted = None if tracker is None else PromptedMasks(tracker, option="tracker")
        self.min_score, self.phrases_per_pass = min_score, phrases_per_pass

    def encode_images(self, batch: Batch) -> Any:
        pixels = self.processor.image_processor(images=images_of(batch), return_tensors="pt")["pixel_values"]
        return self.net.get_vision_features(pixel_values=pixels.to(batch.images.device))

    def infer_encoded(self, batch: Batch, images: Any) -> Prediction:
        tokens = self.processor.tokenizer(
            texts_of(batch), padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        ).to(batch.images.device)
        instances, presence = [], []
        for start in range(0, batch.num_expressions, self.phrases_per_pass):
            part = slice(start, start + self.phrases_per_pass)
            rows = batch.image_of[part]
            output = self.net(
                vision_embeds=rows_of(images, rows),
                input_ids=tokens["input_ids"][part],
                attention_mask=tokens["attention_mask"][part],
            )
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            for of_phrase, logits in zip(scores, output.pred_masks, strict=True):
                found = of_phrase >= self.min_score
                found[of_phrase.argmax()] = True
                instances.append(InstancePrediction(logits[found], of_phrase[found]))
            presence.append(output.presence_logits[:, 0])
        return Prediction(None, no_target_logit=-torch.cat(presence), instances=instances, covers="image")


def rows_of(images: Any, rows: Tensor) -> Any:
    """Return vision features with one row per expression."""
    maps = {name: getattr(images, name) for name in ("fpn_hidden_states", "fpn_position_encoding")}
    return replace(images, **{name: tuple(level[rows] for level in levels) for name, levels in maps.items()})
