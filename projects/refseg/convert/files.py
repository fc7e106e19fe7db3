"""Convert a file of published weights to a safetensors file in our names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save
from torch import Tensor, nn

from refseg import __version__
from refseg.engine.run import build_model, load_config
from refseg.errors import CheckpointError, check_choice
from refseg.files import sha256_of, write_atomically
from refseg.models.encoders.official_weights import shown
from refseg.models.published import LAYOUTS, MAPPING_VERSION, Layout, Sizes, find_layout
from refseg.weights import COMPUTED, WEIGHT_KEYS, inner_state, read_checkpoint, state_dict_of, weights_file

Target = Literal["encoder", "model"]
ENCODER = "encoder.vision."  # the image encoder in our models


@dataclass(slots=True)
class Conversion:
    """Converted weights, and what became of the file's keys.

    Args:
        layout: Layout of the source.
        state: Our state dict.
        left_out: Reasons by the source's keys.
        num_keys: Number of tensors in the source.
        others: Other content of the file, such as the optimizer's state.
        config: Config whose model the weights were compared with, or None.
        missing: Tensors of that model that are not in the file.
        metadata: Metadata of the new file.
    """

    layout: Layout
    state: dict[str, Tensor]
    left_out: dict[str, str]
    num_keys: int
    others: list[str]
    config: str | None = None
    missing: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def save(self, out: str | Path) -> None:
        """Write a safetensors file. A kill leaves either the old file or the new one."""
        write_atomically(out, save({name: value.contiguous() for name, value in self.state.items()}, self.metadata))


def convert(source: str | Path, *, config: str | None = None, to: Target | None = None) -> Conversion:
    """Convert a file of published weights.

    Args:
        source: A .pth, .pkl or .safetensors file, or a folder of transformers.
        config: Config of the model that the weights are for. Position tables get its sizes, and each name and shape is
            compared with it. The default is the layout's own model; encoders have none, and keep their sizes.
        to: "encoder": weights of the image encoder, for its `pretrained`. "model": weights for `load_from`, or, of a
            whole model, to predict and test with. The default is what the file holds.

    Raises:
        CheckpointError: The layout is unknown, a key is unknown, or weights are missing.
    """
    file = weights_file(source)
    content = read_checkpoint(file)
    weights = state_dict_of(content, file)
    layout = find_layout(content)
    if layout is None:
        raise CheckpointError(
            f"{file} has no published layout that refseg knows. Known: {', '.join(one.name for one in LAYOUTS)}. The "
            f"file has the keys {shown(sorted(weights))}"
        )
    is_encoder = layout.name in ("Swin", "BEiT-3")
    to = to or ("encoder" if is_encoder else "model")
    check_choice("--to", to, get_args(Target))
    if to == "encoder" and layout.place == "encoder.text.":
        raise CheckpointError(f"{file} is a text model, which has no image encoder. Use --to model")
    config = config or (layout.config if to == "model" else None)
    model = None if config is None else build_model(load_config(config))

    # Map the keys, then choose the part
    try:
        state, left_out = layout.convert(content, Sizes() if model is None else Sizes.of(model))
    except CheckpointError as error:
        raise CheckpointError(f"{file} ({layout.name}): {error}") from None
    result = Conversion(layout, state, left_out, len(tensors_of(content)), others_of(content), config)
    if to == "model":
        result.state = {layout.place + name: value for name, value in state.items()}
    elif not is_encoder:
        result.state = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
        if not result.state:
            raise CheckpointError(f"{file} ({layout.name}) has no image encoder that refseg can take out of it")
    if model is not None:
        compare(result, model if to == "model" else image_encoder(model), file)
    result.metadata = {
        "format": "pt",
        "layout": layout.name,
        "mapping_version": str(MAPPING_VERSION),
        "refseg_version": __version__,
        "source": file.name,
        "source_sha256": sha256_of(file),
        "to": to,
        "config": config or "",
        "left_out": json.dumps(result.left_out),
        "missing": json.dumps(result.missing),
    }
    return result


def compare(result: Conversion, model: nn.Module, file: Path) -> None:
    """Compare converted weights with a model. Weights of a whole model must be exactly its own; of others, those whose
    shape differs are left out."""
    expected = model.state_dict()
    unexpected = [name for name in result.state if name not in expected]
    differing = [k for k, value in result.state.items() if k in expected and value.shape != expected[k].shape]
    result.missing = [k for k in expected if not k.endswith(COMPUTED) and (k not in result.state or k in differing)]
    partial = result.layout.config is not None and not result.layout.whole
    for problem, names in (
        ("unexpected", [] if partial else unexpected),
        ("of another shape", [] if partial else differing),
        ("missing", result.missing if result.layout.whole else []),
    ):
        if names:
            raise CheckpointError(
                f"{file} ({result.layout.name}) does not fit the model of {result.config}: {len(names)} tensors "
                f"{problem}: {shown(names)}. Name the right config with --config"
            )
    for name in [*unexpected, *differing]:
        del result.state[name]
        what = "has another shape" if name in differing else "does not exist"
        result.left_out[name] = f"{what} in the model of {result.config} (refseg's name)"


def image_encoder(model: nn.Module) -> nn.Module:
    """Return the image encoder of a model."""
    encoder: Any = model.encoder
    return getattr(encoder, "vision", encoder)


def tensors_of(content: Mapping[str, Any]) -> list[str]:
    """Return the names of all weights of a checkpoint. LAVT's have BERT's under `bert_model`."""
    return [*inner_state(content), *(content.get("bert_model") or {})]


def others_of(content: Mapping[str, Any]) -> list[str]:
    """Return the names of what a checkpoint holds beside weights."""
    if inner_state(content) is content:
        return []
    return sorted(str(key) for key in content if key not in (*WEIGHT_KEYS, "bert_model"))
