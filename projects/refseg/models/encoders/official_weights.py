"""Load official weights into an encoder: the steps that all encoders share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from refseg.errors import CheckpointError
from refseg.paths import data_path
from refseg.weights import by_prefix, inner_state, read_checkpoint, weights_file

Convert = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], Iterable[str]]]


def load_official(encoder: nn.Module, file: str, *, owner: str, where: str, optional: str, convert: Convert) -> str:
    """Load a file of official weights into an encoder. Log and return what was loaded.

    Args:
        encoder: The encoder.
        file: Path of the file, or of a folder of transformers.
        owner: Name of the encoder in messages.
        where: Source of the official files, for the error message.
        optional: Parameters whose names start with it may be missing from the file, and ones of the file are skipped if
            the encoder lacks them.
        convert: Returns our state dict and the keys left out, given the official one.

    Raises:
        CheckpointError: There is no such file, or its weights do not fit.
    """
    path = weights_file(data_path(file))
    if not path.is_file():
        raise CheckpointError(
            f"No {owner} weights at {path}. Get the official ones from {where}, or set pretrained=None to train from "
            "random weights."
        )
    try:
        official = inner_state(read_checkpoint(path))
        state, left_out = convert(official)
        expected = dict(encoder.named_parameters())
        state = {name: value for name, value in state.items() if name in expected or not name.startswith(optional)}
        # Names and shapes must be those of the encoder
        for problem, names in (
            ("missing", [name for name in expected if name not in state and not name.startswith(optional)]),
            ("unexpected", [name for name in state if name not in expected]),
            ("of another shape", [k for k, v in state.items() if k in expected and v.shape != expected[k].shape]),
        ):
            if names:
                raise CheckpointError(f"These are weights of another {owner}: {len(names)} {problem}: {shown(names)}.")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    encoder.load_state_dict(state, strict=False)
    # Log what was loaded
    report = f"{owner}: {len(state)} of {len(expected)} tensors loaded from {path}"
    if initial := [name for name in expected if name not in state]:
        report += f"; {len(initial)} kept their initial values: {by_prefix(initial, expected)}"
    if unused := [*left_out]:
        report += f"; {len(unused)} of the file not used: {by_prefix(unused, official)}"
    print_log(report, logger="current")
    return report


def published_model(content: Mapping[str, Any], method: str) -> dict[str, Tensor]:
    """Return the weights under "model" of a method's published checkpoint, without the prefix of several GPUs.

    Raises:
        CheckpointError: There are none.
    """
    if not isinstance(content.get("model"), Mapping):
        raise CheckpointError(
            f"Not a {method} checkpoint: 'model' with weights is missing. Found: {shown(sorted(map(str, content)))}."
        )
    return {key.removeprefix("module."): value for key, value in content["model"].items()}


def shown(keys: list[str]) -> str:
    """Return the first five keys as text."""
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
