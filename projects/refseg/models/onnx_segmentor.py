"""A model that was exported to ONNX (`refseg export`), run by onnxruntime on the CPU.

Letters: B images, E expressions, L words, N queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refseg.errors import CheckpointError, ConfigError, UsageError
from refseg.files import sha256_of
from refseg.models.segmentor import RefSegmentor
from refseg.registry import MODELS
from refseg.structures import Batch, Prediction, RegionPrediction, StackedInstances

IMAGE, PHRASES = "image", "phrases"  # graphs of models that encode an image once for all phrases
WHOLE = "model"  # the one of models that read words while they encode the image


def named_tensors(prediction: Prediction) -> dict[str, Tensor]:
    """Return the outputs of a graph for a prediction, by name. `prediction_of` is the inverse."""
    tensors = {"mask_logits": prediction.mask_logits, "no_target_logit": prediction.no_target_logit}
    if isinstance(instances := prediction.instances, StackedInstances):
        tensors["instance_mask_logits"] = instances.mask_logits
        tensors["instance_relevance"] = instances.relevance
        tensors["instance_word_attention"] = instances.word_attention
    if prediction.regions is not None:
        tensors["region_scores"] = prediction.regions.scores
        tensors["region_retrieved"] = prediction.regions.retrieved
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def prediction_of(tensors: dict[str, Tensor]) -> Prediction:
    """Return the prediction whose `named_tensors` these are."""
    instances = regions = None
    if "instance_relevance" in tensors:
        names = ("mask_logits", "relevance", "word_attention")
        instances = StackedInstances(*(tensors.get(f"instance_{name}") for name in names))
    if "region_scores" in tensors:
        regions = RegionPrediction(tensors["region_scores"], tensors["region_retrieved"])
    return Prediction(tensors.get("mask_logits"), tensors.get("no_target_logit"), instances, regions=regions)


class Graph:
    """An ONNX file in onnxruntime, as a function of named tensors.

    Args:
        file: File of the graph.
    """

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(f"{file} needs onnxruntime. Install it: pip install 'refseg[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of errors per cause, without a common public base
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{file} is not a graph that onnxruntime can run: {reason}") from None
        self.inputs = {one.name: one.shape for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]

    def __call__(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name. Tensors that the graph does not read are ignored."""
        outputs = self.session.run(None, {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, outputs, strict=True))


@MODELS.register_module()
class OnnxSegmentor(RefSegmentor):
    """A model in the ONNX graphs that `refseg export` wrote, with everything else of `RefSegmentor`.

    One image goes through a graph at a time, with any number of phrases. The graphs run on the CPU.

    Args:
        folder: Folder of the graphs: `image.onnx` and `phrases.onnx`, or `model.onnx`.
        data_preprocessor: Config of the data preprocessor.
        postprocess: Arguments of `PostProcess`.
    """

    brings_weights = True

    def __init__(self, *, folder: str, data_preprocessor: dict | None = None, postprocess: dict | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor, postprocess=postprocess)
        names = (IMAGE, PHRASES) if Path(folder, f"{IMAGE}.onnx").is_file() else (WHOLE,)
        files = [Path(folder, f"{name}.onnx") for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{folder} has no {missing[0]}. Export the model again with `refseg export`.")
        self.sources = tuple(map(str, files))
        graphs = [Graph(file) for file in files]
        self.image, self.phrases = (graphs[0] if len(graphs) == 2 else None), graphs[-1]
        self.unites_instances = "mask_logits" not in self.phrases.outputs
        # The hash of a model is that of its state, which here are the hashes of the graphs
        digest = bytes.fromhex("".join(map(sha256_of, files)))
        self.register_buffer("graphs_sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    @property
    def shares_images(self) -> bool:
        return self.image is not None

    def encode_images(self, batch: Batch) -> list[dict[str, np.ndarray]]:
        """Return the outputs of the image graph for each image."""
        if self.image is None:
            return super().encode_images(batch)
        return [self.image(inputs) for inputs in self._images(batch, self.image)]

    def infer_encoded(self, batch: Batch, images: list[dict[str, np.ndarray]] | None) -> Prediction:
        rows = batch.tokens.text_of.cpu()
        ids, word_mask = (x.cpu()[rows].numpy() for x in (batch.tokens.ids, batch.tokens.word_mask))  # (E, L)
        of_images = self._images(batch, self.image or self.phrases)
        # The phrases of one image at a time
        parts, first = [], 0
        for number, (count, inputs) in enumerate(zip(batch.expression_counts, of_images, strict=True)):
            part = slice(first, first + count)
            features = images[number] if images is not None else inputs
            inputs = {**inputs, **features, "token_ids": ids[part], "word_mask": word_mask[part]}
            parts.append(self.phrases(inputs))
            first += count
        device = batch.images.device
        joined = {name: np.concatenate([part[name] for part in parts]) for name in self.phrases.outputs}
        return prediction_of({name: torch.from_numpy(array).to(device) for name, array in joined.items()})

    def _images(self, batch: Batch, graph: Graph) -> list[dict[str, np.ndarray]]:
        """Return the inputs that describe each image, after checking them."""
        size, wanted = list(batch.images.shape[-2:]), graph.inputs["image"][-2:]  # names where any size will do
        if any(isinstance(side, int) and side != given for side, given in zip(wanted, size, strict=True)):
            raise ConfigError(
                f"The graph takes images of {wanted} and got {size}. Keep Resize and size_divisor of the exported "
                "config, or export a model with another image size."
            )
        if batch.is_padded and "pixel_mask" not in graph.inputs:
            raise ConfigError(
                "The graph was made for images that fill its input: their sizes must be multiples of size_divisor. "
                "Keep the exported config's Resize, or change its size to other multiples."
            )
        images, masks = batch.images.float().cpu().numpy(), batch.pixel_mask.cpu().numpy()
        return [{"image": images[b : b + 1], "pixel_mask": masks[b : b + 1]} for b in range(batch.num_images)]
