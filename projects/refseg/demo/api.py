"""The HTTP API of `refseg serve`: segment images by phrases, and Label Studio's ML-backend protocol."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from refseg import __version__
from refseg.datasets.geometry import Size, box_of_mask
from refseg.datasets.masks import encode, rle_to_json
from refseg.demo.api_guard import ApiGuard
from refseg.demo.label_studio import IMAGE, Control, ImageSources, decode_base64, phrases_of, prediction, read_control
from refseg.demo.limits import Limits, TooLargeError, check_header, check_num_bytes, check_phrase_list, check_threshold
from refseg.demo.page import Asked, Sessions
from refseg.errors import DataError, UsageError, UserError
from refseg.files import sha256_of
from refseg.inference.inferencer import ImageSession, ReferringInferencer
from refseg.inference.inputs import ImageInput
from refseg.inference.results import PhraseAnswer, picture_png
from refseg.known_models import KNOWN_MODELS

LIMITS = ("upload_mb", "megapixels", "phrases", "letters", "objects", "per_minute", "kept_images", "kept_minutes")
MAX_TASKS = 100  # of Label Studio in one request
IMAGE_ID = r"^[0-9a-f]{64}$"
WARM_UP = np.full((64, 64, 3), 128, np.uint8)
T = TypeVar("T")
Masks = Annotated[Literal["rle", "png"], Query(description="`png` adds the masks as PNG files in base64")]

# Requests -------------------------------------------------------------------------------------------------------------


class SegmentRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="An image file in base64, or as a data URL")
    image_id: str | None = Field(None, pattern=IMAGE_ID, description="The `image_id` of an earlier answer")
    phrases: list[str] = Field(min_length=1, description="What to look for")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="Probability above which a pixel belongs to the mask (default: the model's)"
    )


class SetupRequest(BaseModel):
    """Label Studio sends more; the rest is not read."""

    label_config: str = Field("", alias="schema", description="Labeling config of the project")


class LabelStudioTask(BaseModel):
    id: int | str | None = None
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Label Studio sends more; the rest is not read."""

    tasks: list[LabelStudioTask] = Field(max_length=MAX_TASKS)
    label_config: str


# Answers --------------------------------------------------------------------------------------------------------------


class Rle(BaseModel):
    """A mask as COCO's compressed RLE."""

    size: tuple[int, int] = Field(description="Height and width")
    counts: str


class InstanceBody(BaseModel):
    score: float
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels")
    mask: Rle
    mask_png: str | None = None
    words: list[float] | None = Field(None, description="Weight of each word of the phrase")


class PhraseBody(BaseModel):
    text: str
    nothing_here: bool
    reason: str = Field(description="Why nothing is here, or empty")
    no_target_prob: float | None = Field(description="null: the model predicts no such probability")
    score: float
    unknown_words: list[str] = Field(description="Words that the model does not know")
    mask: Rle
    mask_png: str | None = None
    instances: list[InstanceBody]


class SegmentBody(BaseModel):
    image_id: str = Field(pattern=IMAGE_ID, description="SHA-256 of the image file")
    size: tuple[int, int] = Field(description="Height and width of the image and its masks")
    phrases: list[PhraseBody]
    encoded: bool = Field(description="Whether the image was encoded for this request")
    num_cut: int = Field(description="Number of phrases that were longer than the model reads")
    seconds: dict[str, float]
    note: str = Field(description="Why not to trust the answers, or empty")


class HealthBody(BaseModel):
    status: Literal["UP"] = "UP"
    model_class: str = "refseg"


class ModelBody(BaseModel):
    name: str
    weights: str
    version: str = Field(description="Changes with the weights; Label Studio's `model_version`")
    device: str
    refseg: str
    abilities: dict[str, bool]
    postprocess: dict[str, Any] = Field(description="Thresholds and rules of the answers")
    limits: dict[str, int | float]
    note: str


class SetupBody(BaseModel):
    model_version: str


class PredictionBody(BaseModel):
    result: list[dict[str, Any]] = Field(description="Regions of Label Studio")
    score: float
    model_version: str
    error: str | None = Field(None, description="Why there is no prediction for this task")


class PredictBody(BaseModel):
    results: list[PredictionBody]


class ErrorBody(BaseModel):
    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be read",
        401: "The token is missing or wrong",
        408: "The request took too long to arrive",
        413: "The request or the image is too large",
        415: "Another content type is expected",
        422: "A value is wrong",
        429: "Too many requests of this client",
        503: "The queue is full",
    }.items()
}
SEGMENT_CONTENT = {
    "application/json": {"schema": SegmentRequest.model_json_schema()},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["phrases"],
            "additionalProperties": False,
            "properties": {
                "image": {"type": "string", "format": "binary", "description": "An image file"},
                "image_id": {"type": "string", "pattern": IMAGE_ID, "description": "Instead of an image"},
                "phrases": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "description": "One per field, or one per line",
                },
                "threshold": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            },
        }
    },
}


# The model behind the API ---------------------------------------------------------------------------------------------


class Service:
    """One model: sessions of images by hash, and one call at a time.

    Args:
        inferencer: The model.
        limits: Limits for untrusted users.
        sources: Where the images of Label Studio's tasks may come from.
    """

    def __init__(self, inferencer: ReferringInferencer, limits: Limits, sources: ImageSources | None = None) -> None:
        self.inferencer, self.limits, self.sources = inferencer, limits, sources or ImageSources()
        self.sessions = Sessions(inferencer, limits)
        self._model_thread = ThreadPoolExecutor(1, "refseg-model")
        self._num_requests = 0  # that wait or run
        loaded = inferencer.loaded
        self.version = loaded.name
        if loaded.checkpoint is not None:
            self.version += f"-{sha256_of(loaded.checkpoint)[:8]}"
        # Answer once, which shows what the model can do, and loads what it loads at its first call
        answer = ImageSession(inferencer, ImageInput(IMAGE, WARM_UP))("a")[0]
        known = KNOWN_MODELS.get(loaded.name)
        self.abilities = {
            "instances": answer.raw_instances is not None,
            "nothing_here": answer.no_target_prob is not None or bool(known and "nothing here" in known.abilities),
            "word_weights": loaded.aligned,
            "shares_images": inferencer.shares_images,
        }

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place in the queue, or raise an HTTPException if it is full."""
        if self._num_requests > self.limits.waiting:
            sentence = f"The server is busy: {self.limits.waiting} requests are waiting. Try again in a few seconds."
            raise HTTPException(503, sentence, {"Retry-After": "5"})
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    async def in_model_thread(self, function: Callable[[], T]) -> T:
        """Run a function in the one thread that uses the model and the sessions."""
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, function)

    def segment(self, image: bytes | str, phrases: tuple[str, ...], threshold: float | None) -> Asked:
        """Answer phrases about the content of an image file, or about an image that was sent before, by its id."""
        if isinstance(image, str):
            opened = self.sessions.get(image)
            if opened is None:
                raise UnknownImageError(
                    f"There is no image with the id {image}, or it was deleted. Send the image again."
                )
        else:
            opened = self.sessions.open(image, IMAGE, hashlib.sha256(image).hexdigest())
        settings = self.inferencer.postprocess
        options: dict[str, Any] = {"max_instances": min(self.limits.objects, settings.max_instances)}
        if threshold is not None:
            options["threshold"] = threshold
        start = time.perf_counter()
        answer = opened.session(phrases, postprocess=options)
        return Asked(answer, opened, time.perf_counter() - start)

    def segment_body(
        self, image: bytes | str, phrases: tuple[str, ...], threshold: float | None, masks: str
    ) -> SegmentBody:
        """Return the answer of POST /segment."""
        asked = self.segment(image, phrases, threshold)
        size = asked.opened.full_size
        return SegmentBody(
            image_id=asked.opened.key,
            size=size,
            phrases=[phrase_body(phrase, size, masks == "png") for phrase in asked.answer],
            encoded=asked.opened.seconds > 0,
            num_cut=asked.answer.num_cut,
            seconds={"open": asked.opened.seconds, **asked.answer.seconds},
            note=asked.answer.note,
        )

    async def predict(self, task: LabelStudioTask, control: Control) -> PredictionBody:
        """Return the prediction for a task of Label Studio."""
        labels = phrases_of(task.data, control, self.limits)
        content = await run_in_threadpool(self.sources.read, task.data.get(control.field), self.limits)

        def answer() -> dict[str, Any]:
            asked = self.segment(content, tuple(labels), None)
            return prediction(asked, labels, control, self.version)

        return PredictionBody(**await self.in_model_thread(answer))

    def model_body(self) -> ModelBody:
        """Return the answer of GET /model."""
        loaded = self.inferencer.loaded
        return ModelBody(
            name=loaded.name,
            weights=loaded.weights_name,
            version=self.version,
            device=str(self.inferencer.device),
            refseg=__version__,
            abilities=self.abilities,
            postprocess=asdict(self.inferencer.postprocess),
            limits={name: getattr(self.limits, name) for name in LIMITS},
            note=loaded.note,
        )

    async def delete_old_sessions(self) -> None:
        """Delete sessions that were not used for long, as long as the server runs."""
        while True:
            await asyncio.sleep(min(60, 60 * self.limits.kept_minutes))
            await self.in_model_thread(self.sessions.delete_old)

    def close(self) -> None:
        self._model_thread.shutdown(wait=False, cancel_futures=True)


class UnknownImageError(DataError):
    """An image id without an image."""


def phrase_body(phrase: PhraseAnswer, size: Size, with_png: bool) -> PhraseBody:
    """Return the answer to a phrase, with masks at a size."""

    def mask_fields(mask: np.ndarray) -> dict[str, Any]:
        png = base64.b64encode(picture_png(mask)).decode() if with_png else None
        return {"mask": Rle(**rle_to_json(encode(mask))), "mask_png": png}

    instances = []
    for one in phrase.instances:
        mask = one.mask_at(size)
        fields = {"score": one.score, "box": box_of_mask(mask), "words": one.rounded_words, **mask_fields(mask)}
        instances.append(InstanceBody(**fields))
    return PhraseBody(
        text=phrase.text,
        nothing_here=phrase.nothing_here,
        reason=phrase.reason,
        no_target_prob=phrase.no_target_prob,
        score=phrase.score,
        unknown_words=list(phrase.unknown_words),
        instances=instances,
        **mask_fields(phrase.mask_at(size)),
    )


# Requests -> arguments ------------------------------------------------------------------------------------------------


async def read_segment_request(request: Request, limits: Limits) -> tuple[bytes | str, tuple[str, ...], float | None]:
    """Return the image (or its id), the phrases and the threshold of POST /segment, from JSON or a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            body = SegmentRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise UsageError(validation_sentence(error.errors(include_input=False))) from None
        image, image_id, phrases, threshold = body.image, body.image_id, body.phrases, body.threshold
        content = None if image is None else await run_in_threadpool(decode_base64, image, limits)
    elif kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=limits.phrases + 8) as form:
            unknown = sorted(set(form) - {"image", "image_id", "phrases", "threshold"})
            if unknown:
                raise UsageError(f"Unknown field {unknown[0][:80]!r}. Fields: image, image_id, phrases, threshold.")
            texts = {name: form.getlist(name) for name in ("image_id", "phrases", "threshold")}
            files = form.getlist("image")
            if any(isinstance(value, UploadFile) for values in texts.values() for value in values):
                raise UsageError("Only `image` is a file. Send the other fields as text.")
            if len(files) > 1 or any(len(texts[name]) > 1 for name in ("image_id", "threshold")):
                raise UsageError("Send each of image, image_id, and threshold at most once.")
            content = None
            if files:
                if not isinstance(files[0], UploadFile):
                    raise UsageError("The field image must be a file: -F image=@photo.jpg with curl.")
                content = await files[0].read()
        phrases = [line for text in texts["phrases"] for line in str(text).splitlines() or [""]]
        image_id = str(texts["image_id"][0]) if texts["image_id"] else None
        threshold = to_number(str(texts["threshold"][0])) if texts["threshold"] else None
        if content is not None:
            check_num_bytes(len(content), IMAGE, limits)
            await run_in_threadpool(check_header, content, IMAGE, limits)
    else:
        raise HTTPException(415, "Send application/json or multipart/form-data.")
    if (content is None) == (image_id is None):
        raise UsageError("Send either image or image_id.")
    if image_id is not None and not re.match(IMAGE_ID, image_id):
        raise UsageError("image_id must be the 64 hexadecimal digits of a SHA-256 hash.")
    threshold = None if threshold is None else check_threshold(threshold)
    return image_id if content is None else content, check_phrase_list(phrases, limits), threshold


def to_number(text: str) -> float:
    """Return the number of a form's field."""
    try:
        return float(text)
    except ValueError:
        raise UsageError("The threshold must be a number between 0 and 1.") from None


def validation_sentence(errors: Iterable[Any]) -> str:
    """Return the first error of pydantic as a sentence, with the place of the wrong value."""
    first = next(iter(errors))
    place = ".".join(str(part)[:80] for part in first["loc"] if part != "body")
    return f"{place or 'The request'}: {first['msg']}."


# The application ------------------------------------------------------------------------------------------------------


def build(
    service: Service, *, token: str | None = None, hosts: Iterable[str] | None = None, **guard_options: Any
) -> FastAPI:
    """Build the application.

    Args:
        service: The model.
        token: What clients must send, or None.
        hosts: Names under which clients may reach the server, or None for all.
        **guard_options: More arguments of `ApiGuard`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        deleting = asyncio.create_task(service.delete_old_sessions())
        yield
        deleting.cancel()
        service.close()

    guard = Middleware(
        ApiGuard, limits=service.limits, token=token, hosts=None if hosts is None else list(hosts), **guard_options
    )
    app = FastAPI(
        title="refseg",
        version=__version__,
        description="Segment what phrases refer to in images.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=[guard],
        responses=ERRORS,
    )

    @app.post(
        "/segment",
        responses={404: {"model": ErrorBody, "description": "No image has this image_id"}},
        openapi_extra={"requestBody": {"required": True, "content": SEGMENT_CONTENT}},
    )
    async def segment(request: Request, masks: Masks = "rle") -> SegmentBody:
        """Return the masks of what phrases refer to in an image. An image that was sent before needs only its id."""
        image, phrases, threshold = await read_segment_request(request, service.limits)
        async with service.place():
            return await service.in_model_thread(lambda: service.segment_body(image, phrases, threshold, masks))

    @app.get("/", include_in_schema=False)
    @app.get("/health")
    async def health() -> HealthBody:
        """Return that the server runs."""
        return HealthBody()

    @app.get("/model")
    async def model() -> ModelBody:
        """Return the model's name, abilities, thresholds, and limits."""
        return service.model_body()

    @app.post("/setup")
    async def setup(request: SetupRequest) -> SetupBody:
        """Connect a project of Label Studio: check its labeling config and return the version of the model."""
        if request.label_config:
            read_control(request.label_config)
        return SetupBody(model_version=service.version)

    @app.post("/predict")
    async def predict(request: PredictRequest) -> PredictBody:
        """Return predictions for tasks of Label Studio.

        If all tasks fail, the request fails. Otherwise each failed task gets an empty result with its error.
        """
        control = read_control(request.label_config)
        results: list[PredictionBody] = []
        async with service.place():
            for task in request.tasks:
                try:
                    results.append(await service.predict(task, control))
                except UserError as error:
                    failed = PredictionBody(result=[], score=0.0, model_version=service.version, error=str(error))
                    results.append(failed)
        if results and all(one.error for one in results):
            raise UsageError(f"No task has a prediction. The first error: {results[0].error}")
        return PredictBody(results=results)

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = templates.get_template("api.html").render(
            schema=app.openapi(), model=service.model_body(), limits=service.limits
        )
        return HTMLResponse(page)

    add_error_handlers(app)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors as {"detail": sentence}. Messages for the log stay on the server."""

    def error_response(status: int, sentence: str, headers: Any = None) -> JSONResponse:
        text = sentence.encode("utf-8", "replace").decode()
        return JSONResponse({"detail": text}, status, headers)

    @app.exception_handler(UserError)
    async def on_user_error(_: Request, error: UserError) -> JSONResponse:
        kinds = {TooLargeError: 413, UnknownImageError: 404}
        return error_response(next((kinds[kind] for kind in kinds if isinstance(error, kind)), 422), str(error))

    @app.exception_handler(RequestValidationError)
    async def on_wrong_value(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, validation_sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def on_bug(_: Request, __: Exception) -> JSONResponse:
        return error_response(500, "Internal error. The server's log says more.")
