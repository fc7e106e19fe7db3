"""The base class of every model of refseg."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from mmengine.model import BaseModel
from torch import Tensor

from refseg.models.postprocess import PostProcess, finish
from refseg.registry import MODELS
from refseg.structures import Batch, ImageResult, Prediction


class RefSegmentor(BaseModel):
    """Batch in; losses, results or the raw prediction out.

    A model implements `infer` (the one forward of training and prediction) and `losses`; it may hold anything else.
    `config_groups` names what dicts of the config without a `type` are arguments of. Which of the two runs is decided
    here, once, and so is how logits become masks (`postprocess`: `PostProcess`).

    A model whose words come after the images defines `encode_images` and `infer_encoded` in place of `infer`, and
    `shares_images` says so: what it made of an image serves any number of phrases, then and later.
    """

    config_groups: ClassVar[dict[str, type]] = {"postprocess": PostProcess}

    def __init__(self, *, data_preprocessor: dict | None = None, postprocess: dict | None = None) -> None:
        super().__init__(MODELS.build(data_preprocessor or dict(type="ReferringDataPreprocessor")))
        self.postprocess = PostProcess(**(postprocess or {}))

    @property
    def shares_images(self) -> bool:
        """Whether `encode_images` is there: no word is read before it ends."""
        return False

    def encode_images(self, batch: Batch) -> Any:
        """What depends on the batch's images alone."""
        raise TypeError(f"{type(self).__name__} reads words from the start: it cannot encode images alone")

    def infer_encoded(self, batch: Batch, images: Any) -> Prediction:
        """What `infer` does after `encode_images`; `images` is None where images are not shared."""
        raise TypeError(
            f"{type(self).__name__} must define infer(batch), or encode_images(batch) and infer_encoded(batch, images)"
        )

    def infer(self, batch: Batch) -> Prediction:
        """The prediction for all E expressions of the batch."""
        return self.infer_encoded(batch, self.encode_images(batch) if self.shares_images else None)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; those named `loss_*` are summed up, others are only logged."""
        raise TypeError(f"{type(self).__name__} must define losses(prediction, batch)")

    def forward(
        self, batch: Batch, mode: Literal["tensor", "loss", "predict"] = "tensor"
    ) -> Prediction | dict[str, Tensor] | list[ImageResult]:
        prediction = self.infer(batch)
        if mode == "loss":
            return self.losses(prediction, batch)
        if mode == "predict":
            return finish(prediction, batch, self.postprocess)
        if mode == "tensor":
            return prediction
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not {mode!r}")

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """mmengine sums every key that contains "loss"; here exactly those that start with `loss_` may contain it."""
        stray = [name for name in losses if "loss" in name and not name.startswith("loss_")]
        if stray:
            raise KeyError(
                f"{type(self).__name__}.losses returned {stray[0]!r}: name losses loss_<what>, others without"
            )
        return super().parse_losses(losses)
