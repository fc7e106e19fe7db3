"""Errors caused by user input. Commands print their messages without a traceback.

Each message names the wrong file, record, or key, and the remedy. Any other exception is a bug in refseg.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """Base class of the errors below."""


class UsageError(UserError):
    """Options that contradict each other, or that this machine does not support."""


class ConfigError(UserError):
    """A config with unknown keys or unusable values, or one that is incomplete."""


class DataError(UserError):
    """Missing or wrong data."""


class CheckpointError(UserError):
    """A missing or damaged checkpoint, or one of another model."""


class TrainingError(UserError):
    """A training that ended early because another process died."""


class NonFiniteLossError(UserError):
    """Too many non-finite losses in a row."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ConfigError unless the value of the config key `name` is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(f"Unknown {name} {value!r}. Valid values: {', '.join(map(str, choices))}.")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError if the value of the config key `name` is below `least`."""
    if value < least:
        raise ConfigError(f"{name} is {value}, but must be at least {least}.")


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless the value of the config key `name` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}, but must be in [0, 1].")


def with_sizes(name: str, settings: Mapping[str, Any] | None, **sizes: Any) -> dict[str, Any]:
    """Return the arguments of a part: its settings from the config group `name`, and sizes from the rest of the model.

    Raises:
        ConfigError: The group sets one of the sizes.
    """
    twice = sorted(set(settings or {}) & set(sizes))
    if twice:
        raise ConfigError(f"{name}.{twice[0]} follows from other keys of the model. Remove it from {name}.")
    return {**(settings or {}), **sizes}


# mmengine's registries put "class `InstAlign` in refseg/models/...py: " before a message, once per level.
_BUILDING = re.compile(r"class `\w+` in [\w/.-]+\.py: ")


def sentence(error: BaseException) -> str:
    """Return the message of an error without the prefixes of loader processes and registries."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # An error from a data worker carries that worker's traceback; its last line is the message.
    text = lines[-1] if lines[0].startswith("Caught ") else "\n".join(lines)
    return _BUILDING.sub("", text)


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn errors of constructors into a ConfigError that names the key of the config."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, AssertionError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{key}: it cannot be built from this config ({type(error).__name__}: {sentence(error)}). Compare its keys "
            "with those of the base config. REFSEG_TRACEBACK=1 shows where it failed"
        ) from error
