"""ONNX graphs of a model: functions of tensors, traced by torch.export.

Letters: E expressions, L words, (H, W) the input's size.
"""

from __future__ import annotations

import logging
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

OPSET = 20
MAX_BYTES = 2_000_000_000  # of an ONNX file with its weights inside, a limit of protobuf
EXAMPLE = (3, 7)  # E and L while tracing: numbers that no other dimension is likely to have
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
    """

    def __init__(self, model: RefSegmentor, function: Function, examples: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.function, self.examples = model, function, examples
        self.inputs = tuple(examples)
        with exporting(model), torch.no_grad():
            self.outputs = tuple(function(examples))
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(dict(zip(self.inputs, tensors, strict=True))).values())

    def axes(self, expressions: object, words: object) -> tuple[tuple[dict[int, object], ...]]:
        """Return the dynamic axes of each input, with `expressions` and `words` for E and L."""
        dynamic = {0: expressions, 1: words}
        return (tuple(dynamic if name in ("token_ids", "word_mask") else {} for name in self.inputs),)

    def trace(self) -> ExportedProgram:
        """Return the function as a program of `torch.export`, which holds the weights and needs no Python.

        Raises:
            UsageError: PyTorch's exporter cannot follow the model.
        """
        with exporting(self.model), torch.no_grad():
            shapes = self.axes(Dim.DYNAMIC, Dim.DYNAMIC)
            return torch.export.export(self, tuple(self.examples.values()), dynamic_shapes=shapes)

    def write(self, file: Path) -> None:
        """Write the function as an ONNX file. Errors as in `trace`."""
        with exporting(self.model), torch.no_grad():
            torch.onnx.export(
                self,
                tuple(self.examples.values()),
                str(file),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=self.inputs,
                output_names=self.outputs,
                dynamic_shapes=self.axes("expressions", "words"),
                external_data=False,
            )


def batch_of(inputs: Mapping[str, Tensor], size: tuple[int, int], *, pad_id: int) -> GraphBatch:
    """Return the batch that the inputs of a graph describe.

    Without an image, its place is taken by zeros: models read its size. Without `pixel_mask`, the image fills the
    input. Without words, the batch is for `encode_images` alone.
    """
    image = inputs.get("image", torch.zeros(1, 3, *size))
    pixel_mask = inputs.get("pixel_mask", torch.ones(1, *size, dtype=torch.bool))
    ids = inputs.get("token_ids", torch.zeros(1, 1, dtype=torch.long))
    tokens = TextTokens(
        ids, inputs.get("word_mask", torch.ones_like(ids, dtype=torch.bool)), torch.arange(ids.shape[0]), pad_id=pad_id
    )
    return GraphBatch(
        image, pixel_mask, tokens, torch.zeros_like(tokens.text_of), [], [], [], [], padded="pixel_mask" in inputs
    )


def build_graphs(
    model: RefSegmentor, *, size: tuple[int, int], padded: bool = False, pad_id: int = 0
) -> dict[str, Graph]:
    """Return the graphs of a model: "image" and "phrases", or "model" alone where words are read with the image.

    Args:
        model: A model on the CPU, in evaluation mode.
        size: (H, W).
        padded: Whether images can be smaller than that. The graphs then have the input `pixel_mask`.
        pad_id: Token id of padding.

    Raises:
        UsageError: The model does not answer.
    """

    def predict(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return named_tensors(model.infer(batch_of(inputs, size, pad_id=pad_id)))

    pixels = {"image": torch.rand(1, 3, *size)} | ({"pixel_mask": torch.ones(1, *size).bool()} if padded else {})
    words = {"token_ids": torch.ones(EXAMPLE, dtype=torch.long), "word_mask": torch.ones(EXAMPLE).bool()}
    if not model.shares_images:
        return {WHOLE: Graph(model, predict, pixels | words)}

    # What the first graph returns for the second one: the tensors in what `encode_images` returns. The rest of it,
    # such as the sizes of levels, is constant, because the size of images is.
    def encode(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        encoded = pytree.tree_leaves(model.encode_images(batch_of(inputs, size, pad_id=pad_id)))
        tensors = [leaf for leaf in encoded if isinstance(leaf, Tensor)]
        return {f"feature_{number}": tensor for number, tensor in enumerate(tensors)}

    def answer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        features = iter(tensor for name, tensor in inputs.items() if name.startswith("feature_"))
        encoded = pytree.tree_unflatten([next(features) if isinstance(x, Tensor) else x for x in leaves], structure)
        return named_tensors(model.infer_encoded(batch_of(inputs, size, pad_id=pad_id), encoded))

    with torch.no_grad():
        leaves, structure = pytree.tree_flatten(model.encode_images(batch_of(pixels, size, pad_id=pad_id)))
        features = encode(pixels)
    masks = {name: tensor for name, tensor in pixels.items() if name == "pixel_mask"}
    return {IMAGE: Graph(model, encode, pixels), PHRASES: Graph(model, answer, words | masks | features)}


def write_graphs(model: RefSegmentor, folder: Path, *, size: tuple[int, int], padded: bool, pad_id: int) -> list[Path]:
    """Write the graphs of a model into a folder as ONNX, and return their files. Arguments: see `build_graphs`.

    Raises:
        UsageError: The model is too large, or PyTorch's exporter cannot follow it.
    """
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if num_bytes > MAX_BYTES:
        raise UsageError(f"The model has {num_bytes / 1e9:.1f} GB of weights. An ONNX file holds 2 GB at most.")
    files = []
    for name, graph in build_graphs(model, size=size, padded=padded, pad_id=pad_id).items():
        files.append(folder / f"{name}.onnx")
        graph.write(files[-1])
    return files


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
