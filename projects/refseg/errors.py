"""Errors of the user's making: the message is the whole answer, and the command prints it without a traceback.

Each names the file, record or key that is wrong, and the remedy. Anything else that is raised is a defect of refseg.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """The base of the errors below."""


class UsageError(UserError):
    """Options that do not go together, or that this machine cannot serve."""


class ConfigError(UserError):
    """A config with keys that nobody reads, or without what it needs."""


class DataError(UserError):
    """Data that are missing or wrong."""


class CheckpointError(UserError):
    """A checkpoint that is missing, broken, or of another model."""


class TrainingError(UserError):
    """A training that ended early in another process."""


class NonFiniteLossError(UserError):
    """Too many non-finite losses in a row."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ConfigError unless the value of the config key `name` is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(f"Unknown {name} {value!r}. Valid values: {', '.join(map(str, choices))}.")


# mmengine's registries put "class `InstAlign` in refseg/models/...py: " before a message, once per level.
_BUILDING = re.compile(r"class `\w+` in [\w/.-]+\.py: ")


def sentence(error: BaseException) -> str:
    """Return the message of an error without what loader processes and registries put before it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # An error from a data worker carries that worker's traceback; its last line is the message.
    text = lines[-1] if lines[0].startswith("Caught ") else "\n".join(lines)
    return _BUILDING.sub("", text)


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn errors of constructors into a ConfigError that names the key of the config that they were built from."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, AssertionError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{key}: it cannot be built from this config ({type(error).__name__}: {sentence(error)}). Compare its keys "
            "with those of the config that it is based on; REFSEG_TRACEBACK=1 shows where it failed"
        ) from error
