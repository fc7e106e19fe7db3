"""Base class of all models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from mmengine.model import BaseModel
from torch import Tensor

from refseg.models.postprocess import ImageResult, PostProcess, finish
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction


class RefSegmentor(BaseModel):
    """Map a batch to losses, results, or the raw prediction.

    A model implements `infer`, the forward pass of both training and prediction, and `losses`. A late-fusion model,
    which encodes images before it reads words, instead implements `encode_images` and `infer_encoded` and returns True
    from `shares_images`. Encoded images then serve any number of phrases.

    `config_groups` maps config keys whose dicts have no `type` to the class that takes them as arguments.

    Args:
        data_preprocessor: Config of the data preprocessor; `ReferringDataPreprocessor` with its defaults if None.
        postprocess: Arguments of `PostProcess`: how logits become masks.
    """

    config_groups: ClassVar[dict[str, type]] = {"postprocess": PostProcess}
    brings_weights: ClassVar[bool] = False  # True: the model loads published weights itself, from `sources`
    sources: tuple[str, ...] = ()
    unites_instances: bool = False  # True: the merged mask is the union of the instances
    one_size: ClassVar[str] = ""  # why graphs of the model (`refseg export`) take images of one size only

    def __init__(self, *, data_preprocessor: dict | None = None, postprocess: dict | None = None) -> None:
        super().__init__(MODELS.build(data_preprocessor or dict(type="ReferringDataPreprocessor")))
        self.postprocess = PostProcess(**(postprocess or {}))

    def build_encoder(self, config: dict) -> Any:
        """Build an encoder from its config. Images are then normalized as its weights expect."""
        encoder = MODELS.build(config)
        if hasattr(self.data_preprocessor, "follow"):
            self.data_preprocessor.follow(getattr(encoder, "vision", None))
        return encoder

    @property
    def shares_images(self) -> bool:
        """Whether `encode_images` is implemented: image features do not depend on words."""
        return False

    def encode_images(self, batch: Batch) -> Any:
        """Return the features that depend on the images alone."""
        raise TypeError(f"{type(self).__name__} reads words while it encodes images, so it cannot encode images alone.")

    def infer_encoded(self, batch: Batch, images: Any) -> Prediction:
        """Predict from the output of `encode_images`, which is None if images are not shared."""
        raise TypeError(
            f"{type(self).__name__} must define infer(batch), or encode_images(batch) and infer_encoded(batch, images)"
        )

    def prompt_embeddings(self, images: Any) -> list[Tensor] | None:
        """Return the image embeddings of `self.prompted` from the output of `encode_images`; None if it has none."""
        return None

    def infer(self, batch: Batch) -> Prediction:
        """Return the prediction for all E expressions of the batch."""
        return self.infer_encoded(batch, self.encode_images(batch) if self.shares_images else None)

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name. Those named `loss_*` are summed; others are only logged."""
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
        raise ValueError(f"Unknown mode {mode!r}. Valid modes: tensor, loss, predict.")

    def parse_losses(self, losses: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses. mmengine sums every name that contains "loss", so only names `loss_*` may contain it."""
        stray = [name for name in losses if "loss" in name and not name.startswith("loss_")]
        if stray:
            raise KeyError(
                f"{type(self).__name__}.losses returned {stray[0]!r}. Losses must be named loss_<what>; "
                "other names must not contain 'loss'."
            )
        return super().parse_losses(losses)
