"""Base of models whose weights and preprocessing come from transformers.

Letters: B images, E expressions, K of them of an image, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from refseg.compat import keep_weights
from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.known_models import require_weights
from refseg.models.segmentor import RefSegmentor
from refseg.pretrained import load_pretrained
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction
from refseg.weights import by_prefix


@MODELS.register_module()
class KeepImages(BaseDataPreprocessor):
    """Move a batch to the device and leave its uint8 images as they are, for models with a processor of their own."""

    def forward(self, data: dict[str, Batch], training: bool = False) -> dict[str, Batch]:
        return {"batch": data["batch"].to(self.device, non_blocking=self._non_blocking)}


class ZeroShotSegmentor(RefSegmentor):
    """A model that answers with published weights, which it loads itself: it needs no checkpoint.

    Its test pipeline is LoadImage, RawText, PackSample: images keep their size, and the model's own processor of
    transformers resizes and normalizes them, so that masks equal those of transformers. Every image is encoded once,
    whatever the number of its phrases.

    Args:
        sources: Names or folders of the weights.
        data_preprocessor: Config of the data preprocessor.
        postprocess: Arguments of `PostProcess`.
    """

    brings_weights = True

    def __init__(
        self, *, sources: tuple[str, ...], data_preprocessor: dict | None = None, postprocess: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor or dict(type="KeepImages"), postprocess=postprocess)
        require_weights(sources)
        self.sources = sources

    @property
    def shares_images(self) -> bool:
        return True

    def losses(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        raise UsageError(
            f"{type(self).__name__} cannot be trained here. Use it as it is, calibrate its thresholds (`refseg "
            "calibrate`), or let it label images for another model (`refseg label`)."
        )


def images_of(batch: Batch) -> list[Tensor]:
    """Return the B images (3, H, W) without padding, as uint8."""
    sizes = [meta.content_size for meta in batch.metas]
    return [image[:, :height, :width] for image, (height, width) in zip(batch.images, sizes, strict=True)]


def texts_of(batch: Batch) -> list[str]:
    """Return the E phrases in the order of the batch."""
    return [text for meta in batch.metas for text in meta.texts]


def load_whole(model_class: Any, name: str) -> nn.Module:
    """Load a model of transformers in float32, frozen. All of its tensors must be in the file.

    Args:
        model_class: Class of transformers with `from_pretrained`.
        name: Folder, or name on the hub.

    Raises:
        CheckpointError: The file lacks tensors of the model, or has them in another shape.
    """
    with quiet_transformers():
        model, found = load_pretrained(
            model_class, name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    wrong = sorted({str(key) for key in (*found["missing_keys"], *found["mismatched_keys"])})
    if wrong:
        raise CheckpointError(
            f"{name} does not have all weights of {type(model).__name__}: {len(wrong)} tensors are missing or of "
            f"another shape ({by_prefix(wrong, model.state_dict())}). Download the folder again."
        )
    return keep_weights(model.requires_grad_(False).eval())


def model_type(name: str, option: str, valid: Iterable[str]) -> str:
    """Return the type of a model of transformers.

    Args:
        name: Folder, or name on the hub.
        option: Key of the config that has the name, for the error.
        valid: Types that fit the key.

    Raises:
        ConfigError: The type does not fit.
    """
    from transformers import AutoConfig

    kind = load_pretrained(AutoConfig, name).model_type
    if kind not in valid:
        raise ConfigError(f"{option}={name!r} is a model of type {kind!r}. Valid types: {', '.join(valid)}.")
    return kind


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the table of tensors that transformers logs, for checks of our own."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def class_of_transformers(name: str) -> Any:
    """Return a class of transformers.

    Raises:
        ConfigError: The installed version does not have it.
    """
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}. Install a newer one: pip install -U transformers"
        )
    return found


@contextmanager
def replaced(module: nn.Module, name: str, stand_in: nn.Module) -> Iterator[None]:
    """Let another module take the place of a submodule for a while."""
    original = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, original)
