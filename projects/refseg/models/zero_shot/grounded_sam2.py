"""Boxes for a phrase by a detector, and masks for the boxes by SAM 2 (InstAlign, section 10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refseg.errors import check_at_least, check_share
from refseg.models.zero_shot.base import ZeroShotSegmentor, images_of
from refseg.models.zero_shot.detectors import Boxes, build_detector
from refseg.models.zero_shot.prompted import PromptedMasks
from refseg.registry import MODELS
from refseg.structures import Batch, InstancePrediction, Prediction


@MODELS.register_module()
class GroundedSAM2(ZeroShotSegmentor):
    """Find boxes for a phrase, turn each into a mask, and answer with their union.

    An instance's score is that of its box. The no-target probability is 1 minus the best score. The paper gives no
    thresholds, so they are keys: `postprocess.instance_threshold` for boxes, `postprocess.no_target_threshold` for
    "nothing here", and `postprocess.max_instances` for data with one object per phrase.

    Args:
        detector: Grounding DINO, MM Grounding DINO, OWLv2 or OmDet-Turbo: a folder, or a name on the hub.
        masks: SAM 2, EdgeTAM or SAM 3's tracker: a folder, or a name on the hub.
        min_score: Boxes with a lower score get no mask, except the best one. The default is below any useful threshold,
            so that `refseg calibrate` can choose one from the instances of a prediction file.
        max_boxes: The most boxes per phrase that get a mask, best first.
        phrases_per_pass: Phrases that the detector reads together, which bounds memory.
        data_preprocessor: Config of the data preprocessor.
        postprocess: Arguments of `PostProcess`.
    """

    unites_instances = True

    def __init__(
        self,
        *,
        detector: str,
        masks: str,
        min_score: float = 0.1,
        max_boxes: int = 50,
        phrases_per_pass: int = 8,
        data_preprocessor: dict | None = None,
        postprocess: dict | None = None,
    ) -> None:
        super().__init__(sources=(detector, masks), data_preprocessor=data_preprocessor, postprocess=postprocess)
        check_at_least("GroundedSAM2.max_boxes", max_boxes, 1)
        check_at_least("GroundedSAM2.phrases_per_pass", phrases_per_pass, 1)
        check_share("GroundedSAM2.min_score", min_score)
        self.detector = build_detector(detector)
        self.prompted = PromptedMasks(masks, option="masks")
        self.min_score, self.max_boxes, self.phrases_per_pass = min_score, max_boxes, phrases_per_pass

    def encode_images(self, batch: Batch) -> Any:
        """Encode each image once for the detector and once for SAM 2."""
        images = images_of(batch)
        return [self.detector.encode(image) for image in images], self.prompted.encode(images)

    def prompt_embeddings(self, images: Any) -> list[Tensor]:
        return images[1]

    def infer_encoded(self, batch: Batch, images: Any) -> Prediction:
        of_detector, embeddings = images
        instances, best = [], []
        for row, meta in enumerate(batch.metas):
            # Boxes: a few phrases of the image at a time
            texts, found = list(meta.texts), []
            for start in range(0, len(texts), self.phrases_per_pass):
                part = texts[start : start + self.phrases_per_pass]
                found += self.detector.detect(of_detector[row], part, meta.content_size)
            chosen = [self._choose(boxes) for boxes in found]
            # Masks: all boxes of the image together
            logits = self.prompted.decode(
                [level[row : row + 1] for level in embeddings],
                meta.content_size,
                boxes=torch.cat([boxes for _, boxes in chosen]),
            )
            counts = [len(scores) for scores, _ in chosen]
            for (scores, _), of_phrase in zip(chosen, logits.split(counts), strict=True):
                instances.append(InstancePrediction(of_phrase, scores))
                best.append(scores[0])
        return Prediction(
            None, no_target_logit=-torch.stack(best).float().logit(eps=1e-6), instances=instances, covers="image"
        )

    def _choose(self, found: Boxes) -> Boxes:
        """Return the boxes that get a mask, best first: at least one."""
        scores, order = found[0].sort(descending=True, stable=True)
        count = min(max(int((scores >= self.min_score).sum()), 1), self.max_boxes)
        return scores[:count], found[1][order[:count]]
