"""Answer phrases about images: the one path that the API, the command and the web page share.

Letters: B images, E expressions (phrases) of them, K phrases of an image.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from refseg.datasets.collate import collate_samples
from refseg.datasets.transforms.state import TransformState
from refseg.errors import DataError, UsageError
from refseg.inference import hub
from refseg.inference.clicks import ClickedMask, MaskUnion, check_clicks
from refseg.inference.inputs import ImageInput, Loading, check_phrases, find_images, pair_phrases
from refseg.inference.loading import LoadedModel, build_transforms, find_model, load_model
from refseg.inference.model_folder import save_model
from refseg.inference.results import ImageAnswer, PhraseAnswer, answers_of, corrected
from refseg.json_config import CONFIG
from refseg.known_models import KNOWN_MODELS
from refseg.models.postprocess import LogitMask, PostProcess, check_finite, finish
from refseg.models.segmentor import RefSegmentor
from refseg.records import Expression, Record
from refseg.shipped import REFSHAPES, image_note, warn_shapes_only
from refseg.structures import Batch, Sample

if TYPE_CHECKING:
    from refseg.models.zero_shot.prompted import PromptedMasks

DType = Literal["float32", "bfloat16", "float16"]
Task = tuple[ImageInput, tuple[str, ...]]
Failure = Callable[[ImageInput, DataError], None]

LOOK_AHEAD = 2  # batches that are loaded while the model works


@dataclass(slots=True)
class PreparedImage:
    """An image with its phrases, loaded and packed, and the seconds that each step took."""

    source: ImageInput
    pixels: np.ndarray
    sample: Sample
    seconds: dict[str, float]


class Clock:
    """Seconds by name, including the work that the device still does when a call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        """Add the seconds since the last call to those of `name`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class ReferringInferencer:
    """A model that answers phrases about images.

    Args:
        model: A name that `refseg models` lists, a config (with `weights`), a checkpoint, a work directory, a model
            folder, a name on the hub (see `find_model`), or a `LoadedModel`.
        weights: Checkpoint of a config.
        device: Device of the model. The default is the GPU, if there is one.
        dtype: Precision of the model. Other values than "float32" mean mixed precision.
        batch_size: Images per pass.
        max_phrases: Phrases per pass for models whose phrases share the encoding of an image. For other models, each
            phrase is an image of its own, and `batch_size` bounds them too.
        postprocess: Changes of the config's `PostProcess`, such as dict(threshold=0.4).
        loading: How images are loaded.
        cfg_options: Changes of the config.
        clicks: Folder or hub name of SAM 2, EdgeTAM or SAM 3's tracker, which corrects answers by clicks
            (`ImageSession.refine`). The default is the model's own one, if it has one.
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
        clicks: str | Path | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_phrases", max_phrases)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not isinstance(model, LoadedModel):
            model = load_model(model, weights, device=device, cfg_options=cfg_options)
        if model.note:
            warn_shapes_only(model.note)
        self.loaded = model
        self.segmentor = model.segmentor
        self.device = device_of(model.segmentor)
        self.prompted = _find_prompted(model.segmentor, clicks)
        self.dtype = _find_dtype(dtype, self.device)
        self.batch_size, self.max_phrases = batch_size, max_phrases
        self.postprocess = _changed(model.segmentor.postprocess, postprocess)
        self.loading = loading or Loading()
        self.transforms = build_transforms(model.pipeline)[1:]  # without LoadImage: `ImageInput` loads images
        self._tokenizer_lock = threading.Lock()  # fast tokenizers serve one thread at a time
        self._model_lock = threading.Lock()

    def __call__(
        self, images: Any, texts: Any, *, postprocess: Mapping[str, Any] | None = None
    ) -> ImageAnswer | list[ImageAnswer]:
        """Answer phrases about images.

        Args:
            images: An image (path, URL, Pillow image, array, tensor), a list of them, a folder or a pattern.
            texts: A phrase or a list of phrases for all images, or a list of lists, one for each image.
            postprocess: Changes of the inferencer's `postprocess` for this call.

        Returns:
            The answer for one image, or a list of answers for a list, a folder or a pattern.
        """
        inputs, several = find_images(images)
        tasks = zip(inputs, pair_phrases(texts, len(inputs)), strict=True)
        answers = list(self.stream(tasks, postprocess=postprocess))
        noted = [answer for answer in answers if answer.note]
        if noted:
            others = f" (and {len(noted) - 1} more images)" if len(noted) > 1 else ""
            warn_shapes_only(f"{noted[0].name}{others}: {noted[0].note}")
        return answers if several else answers[0]

    def stream(
        self,
        tasks: Iterable[Task],
        *,
        postprocess: Mapping[str, Any] | None = None,
        failed: Failure | None = None,
        one_by_one: bool = False,
    ) -> Iterator[ImageAnswer]:
        """Yield answers in the order of the tasks. The next images are loaded meanwhile.

        Args:
            tasks: Images, each with its phrases.
            postprocess: Changes of the inferencer's `postprocess` for this call.
            failed: Called with each image that cannot be loaded, or that the model cannot take. Without it, such an
                image raises an error.
            one_by_one: Give each image a pass of its own. Sums depend on what shares a pass in their last bits, so the
                answers of an image are then the same whatever the other tasks are.
        """
        images_per_pass = 1 if one_by_one else self.batch_size
        settings = _changed(self.postprocess, postprocess)
        tasks = iter(tasks)
        with ThreadPoolExecutor(1, "refseg-load") as pool:

            def submit(count: int) -> list[tuple[ImageInput, Future]]:
                return [(one, pool.submit(self._prepare, one, texts)) for one, texts in islice(tasks, count)]

            waiting = submit(LOOK_AHEAD * self.batch_size)
            group: list[PreparedImage] = []
            num_phrases = 0
            try:
                while waiting:
                    source, future = waiting.pop(0)
                    waiting += submit(1)
                    try:
                        prepared = future.result()
                    except DataError as error:
                        if failed is None:
                            raise
                        failed(source, error)
                        continue
                    # Answer the group before it becomes larger than one pass
                    num_phrases += len(prepared.sample.token_ids)
                    if group and (len(group) == images_per_pass or num_phrases > self.phrases_per_pass):
                        yield from self._answer_or_skip(group, settings, failed)
                        group, num_phrases = [], len(prepared.sample.token_ids)
                    group.append(prepared)
                if group:
                    yield from self._answer_or_skip(group, settings, failed)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def session(self, image: Any) -> ImageSession:
        """Open one image to ask about it again and again."""
        inputs, several = find_images(image)
        if several:
            raise UsageError("A session is about one image, not several. Open a session for each.")
        opened = ImageSession(self, inputs[0])
        if opened.note:
            warn_shapes_only(f"{opened.source.name}: {opened.note}")
        return opened

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, revision: str | None = None, allow_download: bool | None = None, **options: Any
    ) -> ReferringInferencer:
        """Load a model folder or a model on the hub. Only data is read: no program in the folder is run.

        Args:
            model: A folder, or a name such as "user/model", which is looked for in the local cache.
            revision: Branch, tag, or commit on the hub.
            allow_download: Whether missing files are downloaded. The default is the user's choice
                (REFSEG_ALLOW_DOWNLOAD=1).
            **options: Further arguments of the class.
        """
        if Path(model).is_dir():
            return cls(Path(model, CONFIG), Path(model), **options)
        name = f"{model}@{revision}" if revision else str(model)
        return cls(hub.hub_folder(name, allow_download=allow_download), **options)

    def save_pretrained(self, folder: str | Path, *, half: bool = False, license: str | None = None) -> Path:
        """Write a model folder with config.json, model.safetensors, tokenizer, and model card.

        Args:
            folder: Folder to write. It must not exist, be empty, or be a model folder, which is replaced.
            half: Write 16 bits per number.
            license: License of the weights, for the card. None: the one that a model folder has, or "unknown".

        Returns:
            The path of the card.
        """
        return save_model(self.loaded, folder, half=half, license=license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a refseg model",
        token: str | None = None,
        half: bool = False,
        license: str | None = None,
    ) -> str:
        """Write a model folder and upload it to the hub.

        Args:
            repo_id: Name on the hub, "user/model". The repository is made if there is none.
            private: Whether a new repository is private.
            revision: Branch to upload to. The default is the main one.
            commit_message: Message of the commit.
            token: Token of the user. The default is the one of `hf auth login`.
            half: Write 16 bits per number.
            license: License of the weights, for the card. None: the one that a model folder has, or "unknown".

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, half=half, license=license)
            return hub.push_folder(
                folder, repo_id, private=private, revision=revision, message=commit_message, token=token
            )

    @property
    def shares_images(self) -> bool:
        """Whether the phrases of an image share its encoding."""
        return self.segmentor.shares_images

    @property
    def phrases_per_pass(self) -> int:
        """The most phrases that go through the model together."""
        return self.max_phrases if self.shares_images else self.batch_size

    # From an image with phrases to a batch ----------------------------------------------------------------------------

    def _prepare(self, source: ImageInput, texts: Sequence[str]) -> PreparedImage:
        start = time.perf_counter()
        pixels = source.load(self.loading)
        loaded = time.perf_counter()
        sample = self.pack(pixels, texts, name=source.name)
        return PreparedImage(source, pixels, sample, {"load": loaded - start, "prepare": time.perf_counter() - loaded})

    def pack(self, pixels: np.ndarray, texts: Sequence[str], *, name: str) -> Sample:
        """Run the config's test pipeline on an image (H, W, 3) and phrases."""
        expressions = [Expression(str(k), text, ()) for k, text in enumerate(texts)]
        record = Record(name, name, (pixels.shape[0], pixels.shape[1]), [], expressions)
        state: Any = TransformState(record, expressions, np.random.default_rng(0), pixels)
        with self._tokenizer_lock:
            for transform in self.transforms:
                state = transform(state)
        state.ground_truth = None  # unknown
        return state

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch on the device, normalized and padded."""
        return self.segmentor.data_preprocessor(collate_samples(samples), False)["batch"]

    def _answer_or_skip(
        self, group: Sequence[PreparedImage], settings: PostProcess, failed: Failure | None
    ) -> list[ImageAnswer]:
        """Answer a group. If the model refuses it, answer its images one by one, and pass the refused to `failed`."""
        try:
            return self._answer(group, settings)
        except DataError as error:
            if failed is None:
                raise
            if len(group) > 1:
                return [answer for one in group for answer in self._answer_or_skip([one], settings, failed)]
            failed(group[0].source, DataError(f"{group[0].source.name}: {error}"))
            return []

    def _answer(self, group: Sequence[PreparedImage], settings: PostProcess) -> list[ImageAnswer]:
        clock = Clock(self.device)
        batch = self.collate([one.sample for one in group])
        clock.note("prepare")
        encoded = self.encode(batch)
        clock.note("encode")
        return self.decode(batch, encoded, group, settings, clock)

    # From a batch to answers ------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Any:
        """Encode the images. The result is None for models that encode images and words together."""
        with self.running(batch):
            return self.segmentor.encode_images(batch) if self.shares_images else None

    def decode(
        self, batch: Batch, encoded: Any, group: Sequence[PreparedImage], settings: PostProcess, clock: Clock
    ) -> list[ImageAnswer]:
        """Return the answers for encoded images, each with the seconds that it took."""
        phrases: list[tuple[PhraseAnswer, ...]] = [()] * len(group)
        with self.running(batch):
            for part in split_phrases(batch, self.phrases_per_pass):
                if self.shares_images:
                    prediction = self.segmentor.infer_encoded(part, encoded)
                else:
                    prediction = self.segmentor.infer(part)
                clock.note("decode")
                for k, result in enumerate(finish(prediction, part, settings)):
                    check_finite(result)
                    phrases[k] += answers_of(result.to("cpu"), aligned=self.loaded.aligned)
                clock.note("finish")
        shares = {name: seconds / len(group) for name, seconds in clock.seconds.items()}
        answers = []
        for one, of_image in zip(group, phrases, strict=True):
            seconds = {name: one.seconds.get(name, 0.0) + shares.get(name, 0.0) for name in (*one.seconds, *shares)}
            note = image_note(one.pixels) if self.loaded.note else ""
            answers.append(ImageAnswer(one.source.name, one.pixels, of_image, one.sample.num_truncated, seconds, note))
        return answers

    @contextmanager
    def running(self, batch: Batch) -> Iterator[None]:
        """Run the model in one thread at a time, without gradients, in the precision that was asked for."""
        mixed = self.dtype != torch.float32
        with self._model_lock, torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=mixed):
            try:
                yield
            except torch.cuda.OutOfMemoryError:
                size = list(batch.images.shape[2:])
                raise UsageError(
                    f"Out of memory: {self.device} does not hold {batch.num_images} images of {size} with "
                    f"{batch.num_expressions} phrases. Lower batch_size or max_phrases."
                ) from None


class ImageSession:
    """One image whose encoding is kept.

    With models that read words after the image (`inferencer.shares_images`), every further phrase costs the text
    encoder and the decoder only. Other models encode the image anew with each phrase.

    Args:
        inferencer: The model.
        source: The image.
    """

    def __init__(self, inferencer: ReferringInferencer, source: ImageInput) -> None:
        self.inferencer = inferencer
        self.source = source
        self.pixels = source.load(inferencer.loading)
        clock = Clock(inferencer.device)
        self._batch = inferencer.collate([inferencer.pack(self.pixels, ["?"], name=source.name)])
        clock.note("prepare")
        self._encoded = inferencer.encode(self._batch)
        clock.note("encode")
        self.seconds = clock.seconds
        self.note = image_note(self.pixels) if inferencer.loaded.note else ""  # see `ImageAnswer`

    def __call__(self, texts: str | Sequence[str], *, postprocess: Mapping[str, Any] | None = None) -> ImageAnswer:
        """Answer a phrase, or several at once."""
        phrases = check_phrases([texts] if isinstance(texts, str) else texts)
        settings = _changed(self.inferencer.postprocess, postprocess)
        device = self.inferencer.device
        clock = Clock(device)
        # The image of the batch stays, its phrases are new
        sample = self.inferencer.pack(self.pixels, phrases, name=self.source.name)
        collated = collate_samples([sample])["batch"]
        batch = replace(
            self._batch,
            tokens=collated.tokens.to(device),
            image_of=collated.image_of.to(device),
            metas=collated.metas,
            referents=collated.referents,
        )
        clock.note("prepare")
        group = [PreparedImage(self.source, self.pixels, sample, {})]
        return self.inferencer.decode(batch, self._encoded, group, settings, clock)[0]

    def refine(
        self,
        answer: PhraseAnswer | None,
        *,
        points: Iterable[Sequence[float]] = (),
        box: Sequence[float] | None = None,
        instance: int | None = None,
    ) -> ImageAnswer:
        """Correct a mask by clicks. A corrected answer can be corrected again: its points are used again, too.

        Args:
            answer: An answer to a phrase about this image. None: segment from the clicks alone.
            points: (x, y, positive) in pixels: positive points are on the object, the others are beside it.
            box: x0, y0, x1, y1 around the object, in pixels. It replaces an earlier box.
            instance: Number of the only instance in `answer.instances` to correct. None: correct the merged mask as a
                whole, so that the answer no longer has instances.

        Returns:
            The corrected phrase, as from a call of the session.

        Raises:
            UsageError: The model has no promptable mask model, the answer is about another image, or a click is not a
                place in the image.
        """
        inferencer, size = self.inferencer, (self.pixels.shape[0], self.pixels.shape[1])
        prompted = inferencer.prompted
        if prompted is None:
            raise UsageError(no_clicks(inferencer))
        if answer is None and instance is not None:
            raise UsageError(f"instance={instance} needs an answer whose instance it is.")
        clicks = check_clicks(points, box, size)
        clock = Clock(inferencer.device)
        # The mask to correct, and its earlier clicks
        target = None if answer is None else self._target(answer, instance)
        if isinstance(target, ClickedMask):
            clicks = target.clicks.then(clicks)
        rough = None
        if target is not None and not answer.nothing_here and target.small.any():
            rough = target.logits_at(prompted.mask_size).clamp(-32, 32)[None].to(inferencer.device)
        # Clicks and the mask go to SAM
        embeddings = self._embeddings
        with inferencer.running(self._batch):
            logits = prompted.decode(embeddings, size, masks=rough, **clicks.prompts(inferencer.device))
        mask = ClickedMask(logits[0].float().cpu(), None, self._batch.metas[0], clicks=clicks)
        phrase = corrected(answer, mask, instance)
        clock.note("refine")
        return ImageAnswer(self.source.name, self.pixels, (phrase,), seconds=clock.seconds, note=self.note)

    def _target(self, answer: PhraseAnswer, instance: int | None) -> LogitMask | MaskUnion:
        """Return the mask that clicks correct: the merged one, or that of an instance."""
        if not isinstance(answer, PhraseAnswer):
            raise UsageError(f"Cannot refine a {type(answer).__name__}. Pass the answer to one phrase: answer[0].")
        meta = answer.source.meta
        if (meta.image_id, meta.original_size) != (self.source.name, self.pixels.shape[:2]):
            raise UsageError(
                f"The answer is about {meta.image_id} {meta.original_size}, and the session about {self.source.name} "
                f"{self.pixels.shape[:2]}. Refine an answer of this session."
            )
        if instance is None:
            return answer.source
        count = len(answer.instances)
        if instance not in range(count):
            shown = f"instances 0 to {count - 1}" if count else "no instances"
            raise UsageError(f"There is no instance {instance!r}: the answer has {shown}.")
        return cast("LogitMask", answer.instances[instance].source)

    @cached_property
    def _embeddings(self) -> list[Tensor]:
        """The embeddings for `refine`, computed once. Some models have computed them already."""
        inferencer = self.inferencer
        if inferencer.prompted is getattr(inferencer.segmentor, "prompted", None):
            embeddings = inferencer.segmentor.prompt_embeddings(self._encoded)
            if embeddings is not None:
                return embeddings
        with inferencer.running(self._batch):
            return inferencer.prompted.encode([torch.tensor(self.pixels).permute(2, 0, 1)])


def no_clicks(inferencer: ReferringInferencer) -> str:
    """Return the error message for a model whose answers cannot be corrected."""
    able = ", ".join(name for name, known in KNOWN_MODELS.items() if "clicks" in known.abilities)
    return (
        f"{type(inferencer.segmentor).__name__} has no promptable mask model, so that clicks cannot correct its "
        "answers. Load one beside it, clicks='facebook/sam2.1-hiera-tiny' (refseg demo: --clicks), or use one of "
        f"{able}, or sam3 with cfg_options={{'model.tracker': 'facebook/sam3'}}."
    )


def split_phrases(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch of one image into batches of at most `count` phrases. Batches of several images stay whole."""
    if batch.num_expressions <= count or batch.num_images > 1:
        yield batch
        return
    (meta,) = batch.metas
    for start in range(0, batch.num_expressions, count):
        part = slice(start, start + count)
        rows, text_of = batch.tokens.text_of[part].unique(return_inverse=True)
        tokens = replace(
            batch.tokens,
            ids=batch.tokens.ids[rows],
            word_mask=batch.tokens.word_mask[rows],
            text_of=text_of,
            word_of=None if batch.tokens.word_of is None else batch.tokens.word_of[rows],
        )
        part_meta = replace(
            meta,
            expression_ids=meta.expression_ids[part],
            texts=meta.texts[part],
            tags=meta.tags[part],
            unknown_words=meta.unknown_words[part],
        )
        yield replace(
            batch,
            tokens=tokens,
            image_of=batch.image_of[part],
            metas=[part_meta],
            referents=batch.referents[part],
        )


def _changed(settings: PostProcess, changes: Mapping[str, Any] | None) -> PostProcess:
    names = [field.name for field in fields(settings)]
    unknown = sorted(set(changes or {}) - set(names))
    if unknown:
        raise UsageError(f"Unknown postprocess option {unknown[0]!r}. Valid options: {', '.join(names)}.")
    return replace(settings, **(changes or {}))


def _find_prompted(segmentor: RefSegmentor, clicks: str | Path | None) -> PromptedMasks | None:
    """Return the mask model that corrects answers: that of the name, or else the segmentor's own one."""
    if clicks is None:
        return getattr(segmentor, "prompted", None)
    from refseg.models.zero_shot.prompted import PromptedMasks

    return PromptedMasks(str(clicks), option="clicks").to(device_of(segmentor))


def device_of(segmentor: RefSegmentor) -> torch.device:
    """Return the device of a model, which may have buffers only."""
    return next(chain(segmentor.parameters(), segmentor.buffers())).device


def _find_dtype(name: str, device: torch.device) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise UsageError(f"Unknown dtype {name!r}. Valid dtypes: {', '.join(dtypes)}.")
    if name == "float16" and device.type == "cpu":
        raise UsageError("float16 needs a GPU. Use float32 or bfloat16 on the CPU.")
    return dtypes[name]


@lru_cache(maxsize=1)
def _cached_inferencer(config: Path, weights: Path | None, modified: int, device: str | None) -> ReferringInferencer:
    """Keep the last model. `modified` is the weights' time stamp: new weights under an old name are loaded anew."""
    return ReferringInferencer(config, weights, device=device)


def segment(
    images: Any,
    texts: Any,
    *,
    model: str | Path = REFSHAPES,
    weights: str | Path | None = None,
    device: str | None = None,
    postprocess: Mapping[str, Any] | None = None,
) -> ImageAnswer | list[ImageAnswer]:
    """Segment what phrases refer to in images: `ReferringInferencer` in one call.

    The last model is kept, and used again for the same weights and device.

    Args:
        images: An image (path, URL, Pillow image, array, tensor), a list of them, a folder or a pattern.
        texts: A phrase or a list of phrases for all images, or a list of lists, one for each image.
        model: A name that `refseg models` lists ("sam3", "grounded-sam2", ...), a config (with `weights`), a
            checkpoint, or a work directory. The default is the model that ships with refseg. It knows drawn shapes
            only, and a `ShapesOnlyWarning` says so: name another model for photographs.
        weights: Checkpoint of a config.
        device: Device of the model. The default is the GPU, if there is one.
        postprocess: Changes of the config's `PostProcess`, such as dict(threshold=0.4).

    Returns:
        The answer for one image, or a list of answers for a list, a folder or a pattern.
    """
    config, checkpoint = find_model(model, weights)
    modified = 0 if checkpoint is None else checkpoint.stat().st_mtime_ns
    inferencer = _cached_inferencer(config, checkpoint, modified, device)
    return inferencer(images, texts, postprocess=postprocess)
