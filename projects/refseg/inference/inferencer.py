"""Images and phrases in, masks out: the one path that the API, the command and the web page share.

Letters: B images, E expressions (phrases) of them, K phrases of an image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from refseg.datasets.collate import collate_samples
from refseg.datasets.transforms import TransformState
from refseg.errors import DataError, UsageError
from refseg.evaluation.metrics import check_finite
from refseg.inference.batching import Clock, join_predictions, split_phrases
from refseg.inference.inputs import ImageInput, Loading, check_phrases, find_images, pair_phrases
from refseg.inference.loading import LoadedModel, build_transforms, find_model, load_model
from refseg.inference.results import ImageAnswer, answers_of
from refseg.models.postprocess import PostProcess, finish
from refseg.records import Expression, Record
from refseg.structures import Batch, Sample

DType = Literal["float32", "bfloat16", "float16"]
Task = tuple[ImageInput, tuple[str, ...]]
Failure = Callable[[ImageInput, DataError], None]

LOOK_AHEAD = 2  # batches that are loaded while the model works


@dataclass(slots=True)
class Prepared:
    """An image with its phrases, loaded and packed."""

    source: ImageInput
    pixels: np.ndarray
    sample: Sample
    seconds: dict[str, float]


class ReferringInferencer:
    """A model that answers phrases about images.

    `model`, `weights`: a config and its checkpoint, or a checkpoint or a work directory alone (`find_model`), or a
    `LoadedModel`. `dtype`: other than float32 is mixed precision. `batch_size`: images per pass. `max_phrases`: phrases
    per pass, of models whose phrases share an image's encoding; with the others, each phrase is an image of its own,
    and `batch_size` bounds them too. `postprocess`: changes of the config's `PostProcess`, such as dict(threshold=0.4).
    `loading`: how images are loaded. `cfg_options`: changes of the config.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        weights: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: DType = "float32",
        batch_size: int = 8,
        max_phrases: int = 64,
        postprocess: Mapping[str, Any] | None = None,
        loading: Loading | None = None,
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_phrases", max_phrases)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not isinstance(model, LoadedModel):
            model = load_model(model, weights, device=device, cfg_options=cfg_options)
        self.loaded = model
        self.segmentor = model.segmentor
        self.device = next(model.segmentor.parameters()).device
        self.dtype = _find_dtype(dtype, self.device)
        self.batch_size, self.max_phrases = batch_size, max_phrases
        self.postprocess = _changed(model.segmentor.postprocess, postprocess)
        self.loading = loading or Loading()
        self.transforms = build_transforms(model.pipeline)[1:]  # images are loaded here, from wherever they are
        self._texts = threading.Lock()  # fast tokenizers are not for several threads at once
        self._model = threading.Lock()

    def __call__(
        self, images: Any, texts: Any, *, postprocess: Mapping[str, Any] | None = None
    ) -> ImageAnswer | list[ImageAnswer]:
        """The answer for one image; a list for a list of images, a folder or a pattern.

        `texts`: a phrase or a list of phrases for all images, or a list of lists, one for each image.
        """
        found, several = find_images(images)
        answers = list(self.stream(zip(found, pair_phrases(texts, len(found)), strict=True), postprocess=postprocess))
        return answers if several else answers[0]

    def stream(
        self,
        tasks: Iterable[Task],
        *,
        postprocess: Mapping[str, Any] | None = None,
        failed: Failure | None = None,
    ) -> Iterator[ImageAnswer]:
        """Answers one after the other, in order, the next images being loaded meanwhile. An image that cannot be loaded
        goes to `failed`; without it, it is an error."""
        settings = _changed(self.postprocess, postprocess)
        tasks = iter(tasks)
        with ThreadPoolExecutor(1, "refseg-load") as pool:

            def ahead(count: int) -> list[tuple[ImageInput, Future]]:
                return [(one, pool.submit(self._prepare, one, texts)) for one, texts in islice(tasks, count)]

            waiting = ahead(LOOK_AHEAD * self.batch_size)
            group: list[Prepared] = []
            try:
                while waiting:
                    source, future = waiting.pop(0)
                    waiting += ahead(1)
                    try:
                        prepared = future.result()
                    except DataError as error:
                        if failed is None:
                            raise
                        failed(source, error)
                        continue
                    if group and not self._fits([*group, prepared]):
                        yield from self._answer(group, settings)
                        group = []
                    group.append(prepared)
                if group:
                    yield from self._answer(group, settings)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def session(self, image: Any) -> ImageSession:
        """One image to ask about again and again."""
        found, several = find_images(image)
        if several:
            raise UsageError("a session is about one image")
        return ImageSession(self, found[0])

    @property
    def shares_images(self) -> bool:
        """Whether phrases of an image share its encoding."""
        return self.segmentor.shares_images

    # From an image with phrases to a batch ----------------------------------------------------------------------------

    def _prepare(self, source: ImageInput, texts: Sequence[str]) -> Prepared:
        start = time.perf_counter()
        pixels = source.load(self.loading)
        loaded = time.perf_counter()
        sample = self.pack(pixels, texts, name=source.name)
        return Prepared(source, pixels, sample, {"load": loaded - start, "prepare": time.perf_counter() - loaded})

    def pack(self, pixels: np.ndarray, texts: Sequence[str], *, name: str) -> Sample:
        """What the config's test pipeline makes of an image (H, W, 3) and phrases."""
        expressions = [Expression(str(k), text, ()) for k, text in enumerate(texts)]
        record = Record(name, name, (pixels.shape[0], pixels.shape[1]), [], expressions)
        state: Any = TransformState(record, expressions, np.random.default_rng(0), pixels)
        with self._texts:
            for transform in self.transforms:
                state = transform(state)
        state.ground_truth = None  # nobody told
        return state

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """On the device, normalised and padded."""
        return self.segmentor.data_preprocessor(collate_samples(samples), False)["batch"]

    def _fits(self, group: Sequence[Prepared]) -> bool:
        return len(group) <= self.batch_size and sum(len(one.sample.token_ids) for one in group) <= self.rows_per_pass

    @property
    def rows_per_pass(self) -> int:
        """Phrases that go through the model together."""
        return self.max_phrases if self.shares_images else self.batch_size

    def _answer(self, group: Sequence[Prepared], settings: PostProcess) -> list[ImageAnswer]:
        clock = Clock(self.device)
        batch = self.collate([one.sample for one in group])
        clock.note("prepare")
        images = self.encode(batch)
        clock.note("encode")
        return self.decode(batch, images, group, settings, clock)

    # From a batch to answers ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Any:
        """What phrases share of the images; None where they share nothing."""
        with self._running(batch):
            return self.segmentor.encode_images(batch) if self.shares_images else None

    def decode(
        self, batch: Batch, images: Any, group: Sequence[Prepared], settings: PostProcess, clock: Clock
    ) -> list[ImageAnswer]:
        """The answers, and in each the seconds that it took."""
        with self._running(batch):
            parts = [
                self.segmentor.infer_encoded(part, images) if self.shares_images else self.segmentor.infer(part)
                for part in split_phrases(batch, self.rows_per_pass)
            ]
            prediction = join_predictions(parts)
            clock.note("decode")
            results = finish(prediction, batch, settings)
            for result in results:
                check_finite(result)
            found = [answers_of(result.to("cpu"), aligned=self.loaded.aligned) for result in results]
        clock.note("finish")
        shares = {name: seconds / len(group) for name, seconds in clock.seconds.items()}
        answers = []
        for prepared, phrases in zip(group, found, strict=True):
            before = prepared.seconds
            seconds = {name: before.get(name, 0.0) + shares.get(name, 0.0) for name in (*before, *shares)}
            cut = prepared.sample.num_truncated
            answers.append(ImageAnswer(prepared.source.name, prepared.pixels, phrases, cut, seconds))
        return answers

    @contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        """The model is for one thread at a time, without gradients, in the precision that was asked for."""
        mixed = self.dtype != torch.float32
        with self._model, torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=mixed):
            try:
                yield
            except torch.cuda.OutOfMemoryError:
                size = list(batch.images.shape[2:])
                raise UsageError(
                    f"the memory of {self.device} does not hold {batch.num_images} images of {size} with "
                    f"{batch.num_expressions} phrases: lower batch_size or max_phrases"
                ) from None


class ImageSession:
    """One image whose encoding is kept: where the model reads words after it (`inferencer.shares_images`), every
    further phrase costs the text encoder and the decoder only. Other models encode the image anew with each phrase."""

    def __init__(self, inferencer: ReferringInferencer, source: ImageInput) -> None:
        self.inferencer = inferencer
        self.source = source
        self.pixels = source.load(inferencer.loading)
        clock = Clock(inferencer.device)
        self._batch = inferencer.collate([inferencer.pack(self.pixels, ["?"], name=source.name)])
        clock.note("prepare")
        self._images = inferencer.encode(self._batch)
        clock.note("encode")
        self.seconds = clock.seconds

    def __call__(self, texts: str | Sequence[str], *, postprocess: Mapping[str, Any] | None = None) -> ImageAnswer:
        """The answer to a phrase, or to several at once."""
        phrases = check_phrases([texts] if isinstance(texts, str) else texts)
        settings = _changed(self.inferencer.postprocess, postprocess)
        clock = Clock(self.inferencer.device)
        sample = self.inferencer.pack(self.pixels, phrases, name=self.source.name)
        told = collate_samples([sample])["batch"]
        device = self.inferencer.device
        batch = replace(
            self._batch,
            tokens=told.tokens.to(device),
            image_of=told.image_of.to(device),
            metas=told.metas,
            referents=told.referents,
        )
        clock.note("prepare")
        group = [Prepared(self.source, self.pixels, sample, {})]
        return self.inferencer.decode(batch, self._images, group, settings, clock)[0]


def _changed(settings: PostProcess, changes: Mapping[str, Any] | None) -> PostProcess:
    unknown = sorted(set(changes or {}) - {field.name for field in fields(settings)})
    if unknown:
        names = ", ".join(field.name for field in fields(settings))
        raise UsageError(f"postprocess has no {unknown[0]!r}; there are {names}")
    return replace(settings, **(changes or {}))


def _find_dtype(name: str, device: torch.device) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UsageError(f"dtype is one of {', '.join(dtypes)}, not {name!r}")
    if name == "float16" and device.type == "cpu":
        raise UsageError("float16 needs a GPU; on the CPU there are float32 and bfloat16")
    return dtypes[name]


@lru_cache(maxsize=1)
def _inferencer(config: Path, weights: Path, written: int, device: str | None) -> ReferringInferencer:
    """`written`: when the weights were, so that new ones under an old name are seen."""
    return ReferringInferencer(config, weights, device=device)


def segment(
    images: Any,
    texts: Any,
    *,
    model: str | Path,
    weights: str | Path | None = None,
    device: str | None = None,
    postprocess: Mapping[str, Any] | None = None,
) -> ImageAnswer | list[ImageAnswer]:
    """What phrases refer to in images: `ReferringInferencer`'s call in one line. The last model is kept, and used again
    for the same weights and device."""
    config, checkpoint = find_model(model, weights)
    inferencer = _inferencer(config, checkpoint, checkpoint.stat().st_mtime_ns, device)
    return inferencer(images, texts, postprocess=postprocess)
