"""Errors of the user's making: the message is the whole answer, and the command prints it without a traceback.

Each names the file, record or key that is wrong, and the remedy. Anything else that is raised is a defect of refseg.
"""

from collections.abc import Iterable


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
