"""ONNX graphs of a model: functions of tensors, traced by torch.export.

Letters: E expressions, L words, (H, W) the input's size.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from refseg.errors import UsageError
from refseg.models.onnx_segmentor import IMAGE, PHRASES, WHOLE, named_tensors
from refseg.models.segmentor import RefSegmentor
from refseg.structures import Batch, EncodedFeatures, TextTokens

Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # of tensors by name
Axes = dict[str, dict[int, str]]  # names of dynamic axes, by input and axis

OPSET = 20
MAX_BYTES = 2_000_000_000  # of an ONNX file with its weights inside, a limit of protobuf
EXAMPLE = (3, 7)  # E and L while tracing: numbers that no other dimension is likely to have
EXAMPLE_SIZES = ((4, 5), (5, 7))  # H and W of two images, in units of 32 pixels or more: what depends on a size differs
torch.export.register_dataclass(EncodedFeatures)  # some models return it from `encode_images`


@dataclass(slots=True)
class GraphBatch(Batch):
    """A batch of one image inside a graph. How many phrases it has is a symbol, and not the length of a list."""

    padded: bool = False

    @property
    def expression_counts(self) -> list[int]:
        return [self.image_of.shape[0]]

    @property
    def is_padded(self) -> bool:
        return self.padded


class Graph(nn.Module):
    """A function of named tensors, with the model whose parameters it reads, for PyTorch's exporters.

    Args:
        model: The model.
        function: Maps inputs by name to outputs by name.
        examples: Inputs by name, to trace the function with.
        axes: Names of the dynamic axes of the inputs that have some.
    """

    def __init__(self, model: RefSegmentor, function: Function, examples: dict[str, Tensor], axes: Axes) -> None:
        super().__init__()
        self.model, self.function, self.examples = model, function, examples
        self.inputs = tuple(examples)
        self.axes = (tuple(axes.get(name, {}) for name in self.inputs),)  # of the argument `tensors`
        with exporting(model), torch.no_grad():
            self.outputs = tuple(function(examples))
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(dict(zip(self.inputs, tensors, strict=True))).values())

    def trace(self) -> ExportedProgram:
        """Return the function as a program of `torch.export`, which holds the weights and needs no Python.

        Raises:
            UsageError: PyTorch's exporter cannot follow the model.
        """
        shapes = pytree.tree_map(lambda name: Dim.DYNAMIC, self.axes)
        with exporting(self.model), torch.no_grad():
            return torch.export.export(self, tuple(self.examples.values()), dynamic_shapes=shapes)

    def write(self, file: Path) -> None:
        """Write the function as an ONNX file. Errors as in `trace`."""
        program = self.trace()
        with exporting(self.model), torch.no_grad():
            torch.onnx.export(
                program,
                f=str(file),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=self.inputs,
                output_names=self.outputs,
                dynamic_shapes=self.axes,
                external_data=False,
            )


def batch_of(inputs: Mapping[str, Tensor], size: tuple[int, int], *, pad_id: int) -> GraphBatch:
    """Return the batch that the inputs of a graph describe.

    Without an image, its place is taken by zeros of a size: models read it. Without `pixel_mask`, the image fills the
    input. Without words, the batch is for `encode_images` alone.
    """
    image = inputs.get("image", torch.zeros(1, 3, *size))
    pixel_mask = inputs.get("pixel_mask", torch.ones(1, *image.shape[2:], dtype=torch.bool))
    ids = inputs.get("token_ids", torch.zeros(1, 1, dtype=torch.long))
    tokens = TextTokens(
        ids, inputs.get("word_mask", torch.ones_like(ids, dtype=torch.bool)), torch.arange(ids.shape[0]), pad_id=pad_id
    )
    return GraphBatch(
        image, pixel_mask, tokens, torch.zeros_like(tokens.text_of), [], [], [], [], padded="pixel_mask" in inputs
    )


def whole_steps(inputs: Mapping[str, Tensor], step: tuple[int, int] | None) -> Mapping[str, Tensor]:
    """Cut images after whole steps: nothing is cut, but the exporter knows then that sizes are multiples of steps."""
    if step is None:
        return inputs
    height, width = (side // one * one for side, one in zip(inputs["image"].shape[2:], step, strict=True))
    return {
        **inputs,
        **{name: inputs[name][..., :height, :width] for name in ("image", "pixel_mask") if name in inputs},
    }


def build_graphs(
    model: RefSegmentor,
    *,
    size: tuple[int, int],
    step: tuple[int, int] | None = None,
    padded: bool = False,
    pad_id: int = 0,
) -> dict[str, Graph]:
    """Return the graphs of a model: "image" and "phrases", or "model" alone where words are read with the image.

    Args:
        model: A model on the CPU, in evaluation mode.
        size: (H, W) of all images, unless there is a step.
        step: H and W of images are any multiples of this pair.
        padded: Whether images can be smaller than the input. The graphs then have the input `pixel_mask`.
        pad_id: Token id of padding.

    Raises:
        UsageError: The model does not answer, or it encodes images of different sizes differently.
    """

    def images(size: tuple[int, int]) -> dict[str, Tensor]:
        return {"image": torch.rand(1, 3, *size)} | ({"pixel_mask": torch.ones(1, *size).bool()} if padded else {})

    def predict(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return named_tensors(model.infer(batch_of(whole_steps(inputs, step), size, pad_id=pad_id)))

    words = {"token_ids": torch.ones(EXAMPLE, dtype=torch.long), "word_mask": torch.ones(EXAMPLE).bool()}
    axes: Axes = {name: {0: "expressions", 1: "words"} for name in words}
    another = size
    if step is not None:
        units = [math.lcm(side, 32) for side in step]
        size, another = ((rows * units[0], columns * units[1]) for rows, columns in EXAMPLE_SIZES)
        axes |= {"image": {2: "height", 3: "width"}, "pixel_mask": {1: "height", 2: "width"}}
    pixels = images(size)
    if not model.shares_images:
        return {WHOLE: Graph(model, predict, pixels | words, axes)}

    # What the first graph returns for the second one: the tensors in what `encode_images` returns. The rest of it is
    # constant. The second graph learns the size of images from the shapes of these tensors alone.
    def encode(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        encoded = pytree.tree_leaves(model.encode_images(batch_of(whole_steps(inputs, step), size, pad_id=pad_id)))
        tensors = [leaf for leaf in encoded if isinstance(leaf, Tensor)]
        return {f"feature_{number}": tensor for number, tensor in enumerate(tensors)}

    def answer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        features = iter(tensor for name, tensor in inputs.items() if name.startswith("feature_"))
        encoded = pytree.tree_unflatten([next(features) if isinstance(x, Tensor) else x for x in leaves], structure)
        unknown = size if step is None else (0, 0)
        return named_tensors(model.infer_encoded(batch_of(inputs, unknown, pad_id=pad_id), encoded))

    with exporting(model), torch.no_grad():
        (leaves, structure), (others, _) = (
            pytree.tree_flatten(model.encode_images(batch_of(images(one), one, pad_id=pad_id)))
            for one in (size, another)
        )
    features: dict[str, Tensor] = {}
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            name = f"feature_{len(features)}"
            features[name] = leaf
            sides = enumerate(zip(leaf.shape, other.shape, strict=True))
            axes[name] = {axis: f"{name}_{axis}" for axis, (side, length) in sides if side != length}
        elif leaf != other:
            raise UsageError(f"{type(model).__name__} passes the size of images on as a number ({leaf}).")
    masks = {name: tensor for name, tensor in pixels.items() if name == "pixel_mask"}
    return {IMAGE: Graph(model, encode, pixels, axes), PHRASES: Graph(model, answer, words | masks | features, axes)}


def one_size(model: RefSegmentor) -> str:
    """Return why the graphs of a model take images of one size only. Empty: they take any."""
    return next((part.one_size for part in model.modules() if getattr(part, "one_size", "")), "")


def write_graphs(
    model: RefSegmentor, folder: Path, *, size: tuple[int, int], step: tuple[int, int], padded: bool, pad_id: int
) -> tuple[list[Path], str]:
    """Write the graphs of a model into a folder as ONNX, for images of all sizes if possible.

    Args:
        model: See `build_graphs`, as for the other arguments.
        folder: Where to write.
        size: The size of images if they can have only one.
        step: The step of their sizes if they can have several.
        padded: See `build_graphs`.
        pad_id: See `build_graphs`.

    Returns:
        The files, and why images have one size only (empty: they have any).

    Raises:
        UsageError: The model is too large, or PyTorch's exporter cannot follow it.
    """
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise UsageError(f"The model has {num_bytes / 1e9:.1f} GB of weights. An ONNX file holds 2 GB at most.")

    def write(step: tuple[int, int] | None) -> list[Path]:
        graphs = build_graphs(model, size=size, step=step, padded=padded, pad_id=pad_id)
        for name, graph in graphs.items():
            graph.write(folder / f"{name}.onnx")
        return [folder / f"{name}.onnx" for name in graphs]

    reason = one_size(model)
    if not reason:
        try:
            return write(step), ""
        except UsageError as error:
            reason = f"For several sizes, {error}"
    return write(None), reason


@contextmanager
def exporting(model: RefSegmentor) -> Iterator[None]:
    """Turn any error of the exporters, or of the model while it is traced, into one that users can read."""
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(line.strip() for line in str(cause).splitlines()[:2])
        raise UsageError(
            f"{type(model).__name__} cannot be exported: PyTorch's exporter cannot follow it ({type(cause).__name__}: "
            f"{reason[:300]})."
        ) from error


def quantize(graph: Path, target: Path) -> None:
    """Write a graph whose products with weights are computed with 8-bit numbers. Convolutions stay as they are."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet_libraries():
        quantize_dynamic(graph, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the warnings of ONNX's libraries about what their users cannot change."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
